"""Test sets through workers: what is answered, what a death costs, what an interruption leaves. Ray starts once for the file."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from speechlab import cluster, config, corpora, decoding, evaluation, head, infer, models
from speechlab.config import EvaluationConfig
from speechlab.errors import InputError
from speechlab.infer import System, Workers

SETTINGS = EvaluationConfig(batch_seconds=12.0)
HERE = Path(__file__).parent


class Died(BaseException):
    """What stands for the death of a process where there is only one."""


class Fake(nn.Module):
    """A family whose texts are digests of what it hears, and which some clips bring down."""

    contexts = ("clip", "other")

    def __init__(self, folder: str | Path, language: str = "en", config: Any = None) -> None:
        super().__init__()
        self.rules = json.loads((Path(folder) / "rules.json").read_text())
        if "load" in self.rules:
            self._die()
        if "refuse" in self.rules:
            raise InputError("The weights are odd.", got="odd", expected="even")
        self.weight = nn.Parameter(torch.zeros(1))
        self.search: Callable[..., Any] | None = None

    def transcribe(self, batch: Any, *, context: str | None = None, fallback: bool = True) -> list[models.Hypothesis]:
        time.sleep(self.rules.get("sleep", 0.0))
        if any("poison" in id for id in batch.ids):
            self._die()
        texts = [
            hashlib.sha256(wave_N[:n].numpy().tobytes()).hexdigest()[:8]
            for wave_N, n in zip(batch.wave_BN, batch.samples_B.tolist(), strict=True)
        ]
        return [models.Hypothesis(f"{context} {text}", True, n, (0.5, 0.25)) for text, n in zip(texts, batch.seconds, strict=True)]

    def _die(self) -> None:
        if self.rules.get("really"):
            os.kill(os.getpid(), signal.SIGKILL)
        raise Died


class Inline(Workers):
    """Ray's part without Ray: blocks one after another, each begun again as often as it dies."""

    def _run(self, rows: list[dict[str, Any]], work: Callable[[dict[str, Any]], dict[str, Any]], gpu: bool) -> Iterator[dict[str, Any]]:
        self.ran, self.deaths = [row["block"] for row in rows], 0
        for row in rows:
            while True:
                try:
                    yield work(row)
                    break
                except Died:
                    self.deaths += 1
                    infer._loaded.cache_clear()


@pytest.fixture
def fake(tmp_path, monkeypatch) -> Callable[..., System]:
    """A system of the fake family with rules of the test's."""
    monkeypatch.setitem(models.FAMILIES, "fake", "test_infer:Fake")
    infer._loaded.cache_clear()
    threads = torch.get_num_threads()

    def make(**rules: object) -> System:
        said = json.dumps(rules)
        folder = tmp_path / f"weights-{hashlib.sha256(said.encode()).hexdigest()[:8]}"
        folder.mkdir(exist_ok=True)
        (folder / "rules.json").write_text(said)
        return System("fake", "fake", str(folder), hashlib.sha256(said.encode()).hexdigest(), "en")

    yield make
    infer._loaded.cache_clear()
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def clips(prompts) -> list[Any]:
    return [cut for cut in prompts.cuts["train"] if cut.duration < 4][:40]


def renamed(cut: Any, id: str) -> Any:
    return type(cut).from_dict(cut.to_dict()).with_id(id)  # nothing shared


def decoded(
    workers: Workers, system: System, cuts: Any, sha256: str = "a" * 64, settings: EvaluationConfig = SETTINGS, **how: Any
) -> list[infer.Part]:
    return list(workers.decode(system, cuts, "x--clean--clip", sha256, settings, **{"context": "clip", "precision": "fp32", **how}))


def texts(parts: list[infer.Part]) -> dict[str, str]:
    answers = [a for part in parts for a in part.answers]
    found = {a.id: a.hypothesis for a in answers}
    assert len(found) == len(answers), "each clip once"
    return found


def here(system: System, cuts: list[Any], context: str = "clip") -> dict[str, str]:
    """What one process makes of them, without blocks."""
    model = system.load(None, "cpu", ())
    return {a.id: a.hypothesis for part in decoding.decode(model, cuts, context=context, precision="fp32") for a in part}


# --- blocks ---


@given(st.lists(st.floats(0.05, 100), max_size=50).map(sorted), st.floats(1, 200))
def test_blocks_hold_every_clip_once_and_no_more_than_their_seconds(seconds, block):
    found = infer.spans(seconds, block)
    assert [i for start, stop in found for i in range(start, stop)] == list(range(len(seconds)))
    assert all(sum(seconds[start:stop]) <= block or stop - start == 1 for start, stop in found)
    assert all(stop > start for start, stop in found)
    for (start, stop), (_, end) in itertools.pairwise(found):
        assert sum(seconds[start : stop + 1]) > block, "none is begun that the one before had room for"
        assert stop < end


def test_blocks_are_of_like_durations_whatever_the_order(clips, tmp_path):
    job = infer._Job(tmp_path, System("", "", "", "", ""), "", None, "", 0, "", "", type(clips[0]))
    found = []
    for seed in range(3):
        cuts = random.Random(seed).sample(clips, len(clips))
        cut, spans = infer._spool(iter(cuts), tmp_path, 20.0)
        found.append([[c.id for c in infer._cuts(job, *span)] for span in spans])
        assert cut is type(clips[0])
    assert found[0] == found[1] == found[2]
    assert len(found[0]) > 3
    there = {c.id: c for c in clips}
    flat = [there[id] for block in found[0] for id in block]
    assert [c.duration for c in flat] == sorted(c.duration for c in clips)
    again = [c for span in spans for c in infer._cuts(job, *span)]
    assert all(a.to_dict() == there[a.id].to_dict() for a in again), "what a worker reads is what was given"
    assert infer._spool([], tmp_path, 20.0)[1] == []


# --- answers ---


def test_answers_are_those_of_one_process(fake, clips, tmp_path):
    system = fake()
    alone = here(system, clips)
    assert len(set(alone.values())) == len(clips)
    for n, block in enumerate((5.0, 20.0, 1e6)):
        workers = Inline(1, tmp_path / str(n), block=block)
        parts = decoded(workers, system, random.Random(n).sample(clips, len(clips)))
        assert texts(parts) == alone
        assert len(parts) == len(workers.ran) == len(infer.spans(sorted(c.duration for c in clips), block))
        assert all(a.confidences == (0.5, 0.25) and a.ended and a.seconds > 0 for part in parts for a in part.answers)
    assert texts(decoded(Inline(1, tmp_path / "0"), system, clips, context="other")) == here(system, clips, "other") != alone


def test_a_clip_that_cannot_be_read_is_an_answer(fake, clips, tmp_path):
    bad = renamed(clips[0], "gone")
    bad.recording.sources[0].source = str(tmp_path / "gone.flac")
    parts = decoded(Inline(1, tmp_path, block=20.0), fake(), [*clips[1:], bad])
    (answer,) = [a for part in parts for a in part.answers if a.problem]
    assert answer.id == "gone" and "gone.flac" in answer.problem and not answer.ended
    assert len(texts(parts)) == len(clips)


# --- what is kept ---


def test_what_is_done_is_not_done_again(fake, clips, tmp_path):
    system, workers = fake(), Inline(1, tmp_path, block=20.0)
    coming = workers.decode(system, clips, "x--clean--clip", "a" * 64, SETTINGS, context="clip", precision="fp32")
    first = [next(coming), next(coming)]
    coming.close()
    blocks = list(workers.ran)
    rest = decoded(workers, system, clips[::-1])
    assert sorted(workers.ran) == sorted(blocks[2:]), "the missing ones, though the cuts came in another order"
    assert Counter(map(str, rest[:2])) == Counter(map(str, first)), "what is there comes first"
    assert texts(rest) == here(system, clips)
    workers.ran = []
    assert texts(decoded(workers, system, clips, settings=SETTINGS.model_copy(update={"batch_seconds": 3.0}))) == texts(rest)
    assert workers.ran == [], "the size of a batch changes no result"
    workers.forget("x--clean--clip")
    assert not (tmp_path / "parts").exists()


def test_nobody_takes_the_blocks_of_another(fake, clips, tmp_path):
    system, few = fake(), clips[:6]
    settings = {"a": {}, "b": {"sha256": "b" * 64}, "c": {"context": "other"}, "d": {"precision": "bf16"}}
    for name, more in settings.items():
        workers = Inline(1, tmp_path)
        decoded(workers, system, few, **more)
        assert workers.ran == [0], name
    workers = Inline(1, tmp_path)
    assert texts(decoded(workers, fake(other=1), few)) and workers.ran == [0], "weights"
    workers = Inline(1, tmp_path, block=5.0)
    assert texts(decoded(workers, system, few)) and len(workers.ran) > 1, "other blocks"
    folders = list((tmp_path / "parts" / "x--clean--clip").iterdir())
    assert len(folders) == 6
    states = [json.loads((folder / "state.json").read_text()) for folder in folders]
    assert {state["weights"] for state in states} == {system.sha256, fake(other=1).sha256}


# --- deaths ---


def test_a_clip_that_brings_its_worker_down_is_found_and_named(fake, clips, tmp_path):
    poisoned = [*clips[:12], renamed(clips[12], "poison a"), *clips[13:30], renamed(clips[30], "poison b"), *clips[31:]]
    workers = Inline(1, tmp_path, block=1e6)
    (part,) = decoded(workers, fake(), poisoned)
    problems = {a.id: a.problem for a in part.answers if a.problem}
    assert problems == dict.fromkeys(("poison a", "poison b"), "its worker died twice while it was decoded alone")
    whole = [c for c in poisoned if "poison" not in c.id]
    assert {k: v for k, v in texts([part]).items() if k not in problems} == here(fake(), whole)
    # once in the batch of each, or once if both were in hand; twice alone
    assert workers.deaths in (5, 6)
    assert not list(tmp_path.rglob("*.at"))


def test_the_journal_names_what_was_in_hand(fake, clips, tmp_path):
    cuts = sorted(clips, key=lambda c: (c.duration, c.id))
    planned = decoding.plan(cuts, SETTINGS.batch_seconds)
    assert len(planned) > 5
    victim = planned[3][1].id
    cuts = [renamed(c, "poison") if c.id == victim else c for c in cuts]
    job_cuts = decoding.plan(cuts, SETTINGS.batch_seconds)
    journals: list[dict[str, int]] = []

    class Watched(Inline):
        def _run(self, rows, work, gpu):
            while True:
                try:
                    yield work(rows[0])
                    return
                except Died:
                    journals.append(json.loads(next(tmp_path.rglob("*.at")).read_text()))

    decoded(Watched(1, tmp_path, block=1e6), fake(), cuts)
    suspects = dict.fromkeys([c.id for batch in job_cuts[3:5] for c in batch], 0)
    assert journals == [suspects, suspects | {"poison": 1}, suspects | {"poison": 2}]


def test_a_worker_that_was_ended_from_outside_costs_no_clip(fake, clips, tmp_path, monkeypatch):
    """Twice at the same place, and once while a clip was alone."""
    system, calls = fake(), Counter()
    transcribe = Fake.transcribe

    def ended(self: Fake, batch: Any, **how: Any) -> Any:
        calls["all"] += 1
        if calls["all"] in (3, 5, 9):
            raise Died
        return transcribe(self, batch, **how)

    workers = Inline(1, tmp_path, block=1e6)
    with monkeypatch.context() as patch:
        patch.setattr(Fake, "transcribe", ended)
        parts = decoded(workers, system, clips)
    assert workers.deaths == 3
    assert texts(parts) == here(system, clips)


def test_a_damaged_journal_is_none(fake, clips, tmp_path):
    system, workers = fake(), Inline(1, tmp_path)
    workers._run = lambda *_, **__: iter(())  # type: ignore[method-assign]
    decoded(workers, system, clips)
    (state,) = tmp_path.rglob("state.json")
    (state.parent / "000000.at").write_text('{"half')
    assert texts(decoded(Inline(1, tmp_path), system, clips)) == here(system, clips)


def test_a_model_that_brings_its_workers_down_is_an_error_not_a_loop(fake, clips, tmp_path):
    workers = Inline(1, tmp_path)
    with pytest.raises(InputError, match=r"brings its workers down(.|\n)*fake: 3 died while they loaded it(.|\n)*fewer workers"):
        decoded(workers, fake(load=1), clips)
    assert workers.deaths == 3
    with pytest.raises(InputError, match="brings its workers down"):  # tried anew, not remembered
        decoded(workers, fake(load=1), clips)
    assert workers.deaths == 3


def test_what_the_user_has_to_mend_is_said_in_its_own_words(fake, clips, tmp_path):
    with pytest.raises(InputError, match=r"^The weights are odd.\n  got: +odd"):
        decoded(Inline(1, tmp_path), fake(refuse=1), clips)


# --- where ---


def test_the_device_is_this_machines_or_that_of_the_cluster(monkeypatch):
    def made(**values: Any) -> config.Experiment:
        return config.validate({"name": "a", "question": "Where?", **values}, "test")

    assert infer.device(made()) == decoding.resolve_device("auto", torch.cuda.is_available())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(cluster, "machines", lambda wanted: [{"CPU": 4.0}, {"CPU": 4.0, "GPU": 1.0}])
    there = {"cluster": {"address": "head:1"}}
    assert infer.device(made(**there)) == "cpu", "without workers it is this process that decodes"
    assert infer.device(made(**there, evaluation={"workers": 2, "latency": False})) == "cuda"
    assert infer.device(made(cluster={"address": "head:1", "device": "cpu"}, evaluation={"workers": 2})) == "cpu"
    assert infer.device(made(evaluation={"workers": 2})) == "cpu"
    with pytest.raises(InputError, match="Latency is timed in this process(.|\n)*evaluation.latency to false"):
        infer.device(made(**there, evaluation={"workers": 2}))


def test_an_evaluation_by_workers_is_the_one_of_one_process(fake, prompts, tmp_path, monkeypatch):
    system = fake()
    values = {"name": "test", "question": "The same?", "training": {"precision": "fp32"}, "cluster": {"device": "cpu"}}
    little = corpora.base.changed(prompts, {split: list(prompts.cuts[split])[:30] for split in corpora.SPLITS})
    made: list[Inline] = []
    monkeypatch.setattr(infer, "Workers", lambda *how: made.append(Inline(*how, block=20.0)) or made[-1])
    found = []
    for workers in (0, 2):
        experiment = config.validate({**values, "evaluation": {"conditions": ["clean", "white-10db"], "workers": workers}}, "test")
        folder = tmp_path / str(workers)
        found.append(evaluation.evaluate_all([system], little, experiment, folder, progress=False))
        assert sorted(p.name for p in folder.iterdir() if p.is_dir()) == [], "blocks are gone when the table is kept"
    columns = ["id", "speaker", "duration", "reference", "hypothesis", "ended", "context", "confidences"]
    for one, other in zip(*found, strict=True):
        assert one.rows[columns].map(str).equals(other.rows[columns].map(str))
        assert (one.name, one.how, one.wer, one.heard_sha256) == (other.name, other.how, other.wer, other.heard_sha256)
        assert other.memory_bytes > 0 and other.rtf > 0
        assert one.rows.latency.notna().tolist() == other.rows.latency.notna().tolist()
    assert [w.count for w in made] == [0, 2] and not hasattr(made[0], "ran") and len(made[1].ran) > 1
    assert experiment.signature == config.validate({**values, "evaluation": {"conditions": ["clean", "white-10db"]}}, "test").signature
    made[1].ran = []
    assert evaluation.evaluate_all([system], little, experiment, folder, progress=False) == found[1]
    assert made[1].ran == [], "what was measured is not measured again"


# --- with Ray ---


@pytest.fixture(scope="module")
def ray(tmp_path_factory) -> Iterator[Callable[[Path, float], Workers]]:
    """Two workers on this machine, that know this file; gives them a folder and blocks of so many seconds."""
    with pytest.MonkeyPatch.context() as patch, Workers(2, tmp_path_factory.mktemp("ray")) as first:
        patch.setenv("PYTHONPATH", str(HERE))  # which Ray's processes inherit
        head.start(None, cores=2)
        first._started = True

        def on(folder: Path, block: float) -> Workers:
            workers = Workers(2, folder, block=block)
            workers._started = True
            return workers

        yield on


@pytest.fixture(scope="module")
def tiny(tiny_en) -> System:
    return System("tiny.en", "whisper", str(tiny_en), "t" * 64, "en")


@pytest.mark.slow
def test_results_depend_on_neither_workers_nor_blocks_nor_order(ray, tiny, prompts, tmp_path):
    cuts = list(prompts.cuts["test"])[:32]
    alone = here(tiny, cuts, "silence")
    assert sum(map(bool, alone.values())) > 28
    settings = EvaluationConfig(batch_seconds=30.0)
    found = {}
    for block in (25.0, 60.0):
        mixed = random.Random(block).sample(cuts, len(cuts))
        found[block] = decoded(ray(tmp_path, block), tiny, mixed, settings=settings, context="silence")
        assert texts(found[block]) == alone
    assert len(found[25.0]) > len(found[60.0]) > 2
    assert all(part.memory_bytes > 100e6 for part in found[25.0]), "the weights at least"


@pytest.mark.slow
def test_a_killed_worker_costs_its_block_only(ray, fake, clips, tmp_path):
    system, workers = fake(sleep=0.3, really=1), ray(tmp_path, 20.0)
    killed: dict[str, Any] = {}

    def kill() -> None:
        while not killed:
            done = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("0*.json")}
            at = list(tmp_path.rglob("*.at"))
            for process in psutil.Process().children(recursive=True) if done and at else ():
                with contextlib.suppress(psutil.Error):
                    if "Map(_work)" in " ".join(process.cmdline()):
                        process.kill()
                        killed.update(pid=process.pid, done=done)
                        return
            time.sleep(0.02)

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    parts = decoded(workers, system, clips)
    killer.join(5)
    assert not psutil.pid_exists(killed["pid"])
    assert 0 < len(killed["done"]) < len(parts)
    assert {p: p.stat().st_mtime_ns for p in killed["done"]} == killed["done"]
    assert texts(parts) == here(fake(), clips)
    assert not any(a.problem for part in parts for a in part.answers)


@pytest.mark.parametrize("tried", [0, 1, 3], ids=["none", "one", "all"])
def test_a_block_is_whole_however_many_of_its_clips_are_tried_alone(fake, clips, tmp_path, tried):
    """A worker was killed with all clips of a small block in its hands."""
    system, block = fake(), clips[:3]
    job = infer._Job(tmp_path, system, "test_infer:Fake", None, "clip", 60.0, "fp32", "cpu", type(clips[0]))
    (tmp_path / "000000.at").write_text(json.dumps({cut.id: 0 for cut in block[:tried]}))
    infer._decode(0, block, job)
    assert texts([infer._read(tmp_path, 0)]) == here(system, block)
    assert not list(tmp_path.glob("*.at"))


@pytest.mark.slow
def test_a_clip_that_kills_its_worker_is_answered_with_the_reason(ray, fake, clips, tmp_path):
    poisoned = [*clips[:20], renamed(clips[20], "poison"), *clips[21:]]
    parts = decoded(ray(tmp_path, 40.0), fake(really=1), poisoned)
    problems = {a.id: a.problem for part in parts for a in part.answers if a.problem}
    assert problems == {"poison": "its worker died twice while it was decoded alone"}
    assert {k: v for k, v in texts(parts).items() if k != "poison"} == here(fake(), [c for c in poisoned if c.id != "poison"])


@pytest.mark.slow
def test_workers_say_what_the_user_has_to_mend(ray, fake, clips, tmp_path):
    with pytest.raises(InputError, match=r"^The weights are odd."):
        decoded(ray(tmp_path, 40.0), fake(refuse=1), clips)
    parts = decoded(ray(tmp_path, 40.0), fake(), clips)
    assert texts(parts) == here(fake(), clips), "the next evaluation finds Ray in order"


@pytest.mark.slow
def test_a_command_that_was_killed_goes_on(prompts, small_whisper, tmp_path):
    out = tmp_path / "out"
    code = "from speechlab import cli, infer; infer.Workers.__init__.__defaults__ = (None, 20.0); cli.main()"  # small blocks
    how = ("corpus.limit=40", "evaluation.conditions=[clean]", "evaluation.latency=false", "cluster.device=cpu")
    sets = [part for each in how for part in ("--set", each)]
    command = [sys.executable, "-c", code, "evaluate", str(small_whisper), "--workers", "2", "--out", str(out), *sets]
    first = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while len(list(out.glob("parts/*--silence/*/0*.json"))) < 2:
        assert first.poll() is None
        time.sleep(0.02)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    done = {p: p.stat().st_mtime_ns for p in out.glob("parts/*--silence/*/0*.json")}
    assert not list(out.glob("*.json")), "no table yet"
    second = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    kept: dict[Path, int] = {}
    while second.poll() is None:
        kept |= {p: p.stat().st_mtime_ns for p in done if p.exists()}
        time.sleep(0.02)
    assert second.returncode == 0, second.stdout.read()
    assert kept == done, "what was done is not done again"
    (silence,) = [e for e in evaluation.load(out) if e.context == "silence"]
    assert sorted(silence.rows.id) == sorted(c.id for c in corpora.prepare("prompts", limit=40).cuts["test"])
    assert not (out / "parts").exists()
