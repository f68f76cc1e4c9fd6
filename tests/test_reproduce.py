"""A run made again: what is refused before anything is trained, what is shown, and once the whole way, to the bit."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import get_args

import numpy as np
import pytest
import soundfile
from bs4 import BeautifulSoup
from repeated import ANSWERS, LOSSES, MANIFEST, run
from typer.testing import CliRunner

from speechlab import cli, cli_reproduce, commit, config, corpora, fetch, provenance, reproduce, runs, tracking, verdict, verify
from speechlab.errors import InputError

ROOT = Path(__file__).resolve().parents[1]
START = SimpleNamespace(name="made", source="made", sha256="c" * 64, revision=None, licence="")
# a Conformer of a few thousand weights, from scratch
TINY = ["model={family: conformer, shape: {dim: 16, layers: 1, heads: 2, ffn: 32, kernel: 3}}"]
TINY += ["context={margin_min: 0.0, margin_max: 0.0, full_fraction: 0.0}", "corpus.limit=8", "cluster.workers=0", "tracking.enabled=false"]
TINY += ["training={epochs: 2, batch_clips: 4, micro_batches: 2, precision: fp32}"]


class Answers:
    """In place of a checkout: what its verify.py would write."""

    def __init__(self, **found: object) -> None:
        self.settings = ["--set", "corpus.root=/x", "--set", "tracking.enabled=false"]
        self.found = {"manifest": list(MANIFEST), "broken": {}, "problem": "", **found}

    def call(self, *words: str, what: str) -> None:
        assert words[4:] == ("corpus.root=/x",)
        Path(words[3]).write_text(json.dumps(self.found))


# --- what is refused ---


def test_only_a_finished_run_with_a_commit_can_be_made_again(tmp_path):
    stopped = run(tmp_path, end="stopped")
    with pytest.raises(InputError, match="is not finished") as e:
        reproduce.reproduce(stopped)
    assert "stopped" in str(e.value) and f"--resume {stopped.id}" in str(e.value)
    with pytest.raises(InputError, match="does not say which commit made it"):
        reproduce.reproduce(run(tmp_path, code__git_sha=None))
    with pytest.raises(InputError, match="does not hold the commit"):
        reproduce.reproduce(run(tmp_path))
    patched = run(tmp_path, code__patch="code.patch", code__patch_sha256=hashlib.sha256(b"one").hexdigest())
    for damage in (None, b"another"):
        if damage:
            (patched.path / "code.patch").write_bytes(damage)
        with pytest.raises(InputError, match="code.patch is not the one of its record"):
            reproduce.reproduce(patched)


def test_other_clips_are_refused_with_the_list_of_what_differs(tmp_path):
    made = run(tmp_path)
    reproduce._verify(made, Answers(), tmp_path)
    flipped = [*MANIFEST[:3], MANIFEST[3].replace("pcm-sha256:d", "pcm-sha256:0")]
    with pytest.raises(InputError, match="not the one that the run was trained on") as e:
        reproduce._verify(made, Answers(manifest=flipped), tmp_path)
    assert "1 with another audio: d" in str(e.value)
    with pytest.raises(InputError, match="1 clips are not what the run was trained on") as e:
        reproduce._verify(made, Answers(broken={"b": "A clip holds other samples."}), tmp_path)
    assert "b\nA clip holds other samples." in str(e.value)
    with pytest.raises(InputError, match="cannot be had") as e:
        reproduce._verify(made, Answers(problem="The corpus folder does not exist."), tmp_path)
    assert "The corpus folder does not exist." in str(e.value)
    (made.path / "manifest.jsonl.gz").unlink()  # of an older run only the hash is known
    with pytest.raises(InputError, match="of 4 clips"):
        reproduce._verify(made, Answers(manifest=flipped), tmp_path)
    assert not (tmp_path / "clips.json").exists()


def test_every_clip_is_looked_at_under_a_bar(tmp_path, prompts, monkeypatch, capsys):
    frozen = runs.Run.create(config.load("configs/smoke.yaml", ["corpus.limit=3"]), tmp_path).path / "config.yaml"
    verify.main(str(frozen), str(tmp_path / "out.json"), "corpus.limit=4")
    found = json.loads((tmp_path / "out.json").read_text())
    wanted = corpora.configured(config.load(frozen, ["corpus.limit=4"]).corpus)
    assert re.search(r"clips: 100%.* 12/12 \[\d\d:\d\d<\d\d:\d\d", capsys.readouterr().err)
    assert found == {"manifest": wanted.manifest, "broken": {}, "problem": ""} and len(wanted.manifest) == 12
    last = wanted.cuts["test"][3].id

    def load(cut):
        if cut.id == last:
            raise InputError("A clip holds other samples than when its corpus was prepared.", got=cut.id)

    monkeypatch.setattr(corpora, "load_audio", load)
    verify.main(str(frozen), str(tmp_path / "out.json"), "corpus.limit=4")
    assert list(json.loads((tmp_path / "out.json").read_text())["broken"]) == [last]
    verify.main(str(frozen), str(tmp_path / "out.json"), "corpus.name=nowhere")
    assert 'Unknown corpus "nowhere"' in json.loads((tmp_path / "out.json").read_text())["problem"]


@pytest.mark.slow
def test_a_flipped_byte_in_a_clip_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("SPEECHLAB_CACHE", str(tmp_path / "cache"))
    rng = np.random.default_rng(1)
    for split in corpora.SPLITS:
        (tmp_path / "speech" / split).mkdir(parents=True)
        for i in range(2):
            path = tmp_path / "speech" / split / f"{split}-{i}.wav"
            soundfile.write(path, rng.standard_normal(16_000) * 0.1, 16_000, subtype="PCM_16")
            path.with_suffix(".txt").write_text(f"words of {split} {i}")
    overrides = ["corpus={name: own, language: en, check: {vad: false}}", f"corpus.root={tmp_path / 'speech'}"]
    made = runs.Run.create(config.load("configs/smoke.yaml", overrides), tmp_path / "reports")
    corpus = corpora.configured(made.config.corpus)
    provenance.keep(made, corpus, START, 1, "cpu")
    made.append({"kind": "start", "workers": 1, "device_seconds": 60.0})
    child = reproduce._Child(ROOT, Path(sys.executable), made)
    reproduce._verify(made, child, tmp_path)
    path = tmp_path / "speech" / "train" / "train-1.wav"
    data = bytearray(path.read_bytes())
    data[5000] ^= 1
    path.write_bytes(data)
    changed = next(cut.id for cut in corpus.cuts["train"] if "train-1" in cut.id)
    with pytest.raises(InputError, match=f"1 with another audio: {changed}"):
        reproduce._verify(made, child, tmp_path)


# --- under which settings ---


def test_the_rerun_gets_what_the_run_had(tmp_path, monkeypatch):
    overrides = ["corpus.decisions=decided.jsonl", "cluster.address=10.0.0.1:6379", "evaluation.noise=/noises"]
    made = run(tmp_path, *overrides, threads=3, execution__environment={"OMP_NUM_THREADS": "3", "MKL_CBWR": "AVX2"})
    made.change(["cluster.loader_workers=2"])
    monkeypatch.chdir(tmp_path)
    settings = list(reproduce._settings(made))
    assert settings == [
        "cluster.loader_workers=2",
        f'corpus.decisions="{tmp_path}/decided.jsonl"',
        'evaluation.noise="/noises"',
        "cluster.device_seconds=240.0",
        "cluster.address=null",
        "tracking.enabled=false",
    ]
    again = config.load(made.path / "config.yaml", settings)
    assert again.signature == made.config.signature and again.corpus.decisions == str(tmp_path / "decided.jsonl")
    child = reproduce._Child(tmp_path, Path(sys.executable), made)
    wanted = {"OMP_NUM_THREADS": "3", "MKL_CBWR": "AVX2", "PYTHONPATH": str(tmp_path)}
    assert wanted.items() <= child.env.items()


def test_a_command_of_the_commit_that_fails_is_the_users_to_see(tmp_path):
    child = reproduce._Child(ROOT, Path(sys.executable), run(tmp_path))
    child.call("-c", "pass", what="nothing")
    with pytest.raises(InputError, match="nothing of the run's commit failed") as e:
        child.call("-c", "raise SystemExit(3)", what="nothing")
    assert "exit status 3" in str(e.value)


# --- what is shown ---


@pytest.mark.parametrize(
    ("more", "code", "word"),
    [
        ({}, 0, "bit-exact: "),
        ({"weights": "x", "answers": ANSWERS}, 0, "statistically equal: "),
        ({"weights": "x"}, 3, "same code and data: "),
        ({"weights": "x", "answers": ANSWERS, "weights__sha256": "d" * 64}, 1, "different: "),
    ],
)
def test_a_verdict_is_an_exit_status_and_a_page(tmp_path, monkeypatch, more, code, word):
    original, again = run(tmp_path, "tracking.enabled=false", answers=ANSWERS), run(tmp_path, **more)

    def made_again(given, say):
        assert given.id == original.id
        say("training")
        return again, verdict.compare(original, again)

    monkeypatch.setattr(reproduce, "reproduce", made_again)
    result = CliRunner().invoke(cli.app, ["reproduce", "--run-id", str(original.path)])
    lines = result.output.splitlines()
    assert result.exit_code == code, result.output
    assert lines[0] == "training" and lines[-2].startswith(word) and Path(lines[-1]) == again.path / "reproduction.html"
    page = BeautifulSoup(Path(lines[-1]).read_text("utf-8"), "html.parser")
    assert page.h1.text == f"{original.id} made again: {word[:-2]}" and lines[-2] in page.p.text
    rows = [[cell.text for cell in row.find_all("td")] for row in page.find_all("table")[0].find_all("tr")[1:]]
    alike = "equal" if word == "bit-exact: " else "differ"
    assert [row[0] for row in rows] == ["2", "3"] and [row[3] for row in rows] == ["equal", alike]


def test_where_it_was_noted_is_said(tmp_path, monkeypatch):
    original, again = run(tmp_path), run(tmp_path)
    monkeypatch.setattr(reproduce, "reproduce", lambda *_: (again, verdict.compare(original, again)))
    monkeypatch.setattr(tracking, "reproduced", lambda *given: f"{given[0].id} {given[1].id} {given[2]}")
    result = CliRunner().invoke(cli.app, ["reproduce", "--run-id", str(original.path)])
    assert result.exit_code == 0 and result.output.splitlines()[-2] == f"{original.id} {again.id} bit-exact"


def test_untrusted_text_of_a_record_stays_text(tmp_path):
    original = run(tmp_path)
    again = run(tmp_path, hardware__cpu="<script>alert(1)</script>", losses=(LOSSES[0], 0.3, LOSSES[2]))
    page = BeautifulSoup(reproduce.page(original, again, verdict.compare(original, again)).read_text("utf-8"), "html.parser")
    assert page.find("script") is None and "<script>alert(1)</script>" in page.text
    assert "step 2 is the first that differs: loss 0.25 and 0.3" in page.text


def test_the_error_rates_stand_beside_what_seeds_do(tmp_path):
    original = run(tmp_path, answers=ANSWERS)
    assert reproduce.rates(verdict.compare(original, run(tmp_path))) == {"WER": "not measured: the weights are equal"}
    assert reproduce.rates(verdict.compare(original, run(tmp_path, weights="x"))) == {"WER": "not measured"}
    found = reproduce.rates(verdict.compare(original, run(tmp_path, weights="x", answers=ANSWERS)))
    assert found["WER, rerun minus original"] == "+0.00 points" and found["interval"].startswith("[+0.00, +0.00], 95 %")
    assert found["counts as equal"] == "within 0.5 points either way" and "0.1 to 0.2 points" in found["seeds alone"]


def test_the_record_is_shown_whole_and_inert(tmp_path):
    shown = BeautifulSoup(reproduce.record_html(run(tmp_path, hardware__cpu="<script>")), "html.parser")
    assert [h.text for h in shown.find_all("h3")] == [*provenance.ROWS, "execution", "besides"]
    said = dict(zip([d.text for d in shown.find_all("dt")], [d.text for d in shown.find_all("dd")], strict=True))
    assert (
        said["cpu"] == "<script>"
        and said["git_sha"] == "a" * 40
        and re.search(r" UTC[+-]\d\d:\d\d$", said["time.start"])
        and "chain" not in said
    )


def test_bad_input_is_said(tmp_path):
    result = CliRunner().invoke(cli.app, ["reproduce", "--run-id", str(tmp_path)])
    assert isinstance(result.exception, InputError) and "This is not a run directory" in str(result.exception)
    assert cli_reproduce.EXITS.keys() == set(get_args(verdict.Level))


# --- the whole way ---


def trained(folder: Path, *overrides: str) -> runs.Run:
    """A run as a user trains it, with one thread."""
    words = [word for item in (*TINY, f"cluster.storage={folder}", *overrides) for word in ("--set", item)]
    command = [sys.executable, "-m", "speechlab", "train", "--config", "configs/smoke.yaml", "--no-progress", *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    return runs.Run(done.stdout.strip().splitlines()[-1].removeprefix("finished: "))


@pytest.mark.slow
def test_a_run_comes_out_again_to_the_bit_and_a_changed_line_or_seed_does_not(tmp_path, prompts, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "2")  # what this process has is not what the run had
    run_once, said = trained(tmp_path), []
    again, found = reproduce.reproduce(run_once, said.append)
    assert found.level == "bit-exact" and found.steps == 4 and found.digests == 2, found
    assert found.changes == (), "not even in their records, of the code with its patch"
    assert again.path.parent == tmp_path / "reproductions" / run_once.id and again.state == "finished"
    assert json.loads((again.path / "reproduction.json").read_text())["level"] == "bit-exact"
    assert verdict.threads(again) == 1 and said[-1] == "training"
    assert provenance.missing(provenance.record(again)) == []
    listed = subprocess.run(["git", "worktree", "list"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert str(fetch.cache() / "worktrees") not in listed

    other = verdict.compare(run_once, trained(tmp_path, "seed=2"))
    assert (other.level, other.first_step) == ("different", 1) and "seeds.seed" in [c.what for c in other.changes]

    # the same record, but of code with another line: the rerun is of that code, whatever this process runs
    row = run_once.provenance["code"]
    patch = (run_once.path / "code.patch").read_bytes() if row["patch"] else b""
    with commit.checkout(ROOT, row["git_sha"], patch) as tree:
        module = tree / "speechlab" / "training.py"
        before = module.read_text("utf-8")
        module.write_text(before.replace('group["lr"] = rate', 'group["lr"] = rate * (1 + (step == 1))'), "utf-8")
        assert module.read_text("utf-8") != before
        changed, patch = commit.source(tree / "speechlab")
    (run_once.path / "code.patch").write_bytes(patch)
    (run_once.path / "provenance.json").write_bytes(provenance.to_json({**run_once.provenance, "code": changed}))
    _, found = reproduce.reproduce(run_once, said.append)
    # the second update is twice as large: step 2's own loss does not know it yet, the checkpoint behind it does
    assert (found.level, found.first_step, found.reason) == ("same code and data", 2, "the weights after it")
