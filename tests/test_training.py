"""The loop: exact after every kind of interruption, and the same for one worker as for two."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from safetensors.torch import load_file
from torch.amp.grad_scaler import GradScaler

from speechlab import audio, checkpoints, config, corpora, models, provenance, training
from speechlab.batches import Clips, feed
from speechlab.errors import InputError
from speechlab.models import Loss
from speechlab.models.whisper import Whisper
from speechlab.plan import Micro, Plan, Step
from speechlab.runs import Run
from speechlab.world import World

# what a step is, leaving out how long it took
RESULT = ["step", "epoch", "loss", "lr", "grad_norm", "clips", "audio_seconds", "padded_seconds", "heard_seconds", "full_context"]


def experiment(**sections: Any) -> config.Experiment:
    """Eight steps in two epochs, for :func:`little`."""
    values: dict[str, Any] = {
        "name": "test",
        "question": "Does it learn the same?",
        "context": {"margin_min": 0.1, "margin_max": 0.5, "full_fraction": 0.2},
        "optim": {"lr": 1e-3, "warmup_steps": 2},
        "training": {"epochs": 2, "batch_seconds": 6.5, "micro_batches": 2, "precision": "fp32"},
        "cluster": {"device_seconds": 240.0},  # no probe: some tests count the model's calls
    }
    for name, section in sections.items():
        values[name] = {**values.get(name, {}), **section} if isinstance(section, dict) else section
    return config.validate(values, "test")


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """More threads only wait for one another: the model is small, and the machine may be busy."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def little(prompts) -> corpora.Corpus:
    """Short clips of the real corpus: 16 to train on, 3 for validation."""
    from lhotse import CutSet

    def few(split: str, count: int) -> CutSet:
        cuts = sorted(prompts.cuts[split], key=lambda c: (c.duration, c.id))
        return CutSet.from_cuts(sorted(cuts[5 :: len(cuts) // (2 * count)][:count], key=lambda c: c.id))

    return dataclasses.replace(prompts, cuts={"train": few("train", 16), "dev": few("dev", 3), "test": few("test", 3)})


@pytest.fixture(scope="module")
def noisy(small_whisper, tmp_path_factory) -> Path:
    """A small Whisper with dropout, so that each step draws random numbers."""
    folder = tmp_path_factory.mktemp("noisy") / "whisper"
    shutil.copytree(small_whisper, folder)
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | {"dropout": 0.1}))
    return folder


@pytest.fixture(scope="module")
def train(little, noisy, tmp_path_factory) -> Callable[..., Run]:
    """Trains a run, new or interrupted, to wherever it gets."""

    def to_the_end(made: config.Experiment, run: Run | None = None, weights: Path = noisy, stop_after: int | None = None) -> Run:
        run = run or Run.create(made, tmp_path_factory.mktemp("runs"))
        for event in training.train(made, little, str(weights), run):
            run.append(event)
            if event["kind"] == "step" and event["step"] == stop_after:
                run.stop()
        return run

    return to_the_end


@pytest.fixture(scope="module")
def whole(train) -> Run:
    """A run that nothing interrupted."""
    return train(experiment())


def digest(run: Run) -> str:
    return [e for e in run.events() if e["kind"] == "checkpoint"][-1]["digest"]


def assert_same(a: Run, b: Run) -> None:
    """Bit by bit: every step and the weights at the end."""
    assert a.steps()[RESULT].to_dict("records") == b.steps()[RESULT].to_dict("records")
    assert list(a.validations().wer) == list(b.validations().wer)
    assert digest(a) == digest(b)


def spoil(monkeypatch: pytest.MonkeyPatch, at: int, change: Callable[[Loss], Loss]) -> None:
    """Change what the model returns for one micro-batch, counted from 0."""
    calls, forward = itertools.count(), Whisper.loss
    monkeypatch.setattr(
        Whisper, "forward", lambda model, batch: change(forward(model, batch)) if next(calls) == at else forward(model, batch)
    )


# --- what a run tells ---


def test_events_of_a_run(whole, little):
    events = whole.events()
    kinds = [e["kind"] for e in events]
    start = events[0]
    steps = start["steps"]
    assert start["device_seconds"] == 240
    assert (start["kind"], start["workers"], start["resumed_from"], start["device"]) == ("start", 1, None, "cpu")
    assert steps == 2 * training.plan_for(experiment(), Clips.of(little)).steps_in(0) >= 8
    assert (kinds.count("step"), kinds.count("validation"), kinds.count("checkpoint"), kinds[-1]) == (steps, 2, 2, "end")
    assert whole.state == "finished"
    table = whole.steps()
    assert list(table.step) == list(range(1, steps + 1))
    assert list(table.groupby("epoch").clips.sum()) == [16, 16]
    assert table.groupby("epoch").audio_seconds.sum().tolist() == pytest.approx([little.seconds["train"]] * 2)
    assert (table.heard_seconds > table.padded_seconds).all()
    assert (table.padded_seconds >= table.audio_seconds).all()
    assert table.lr.iloc[-1] == pytest.approx(1e-6)
    assert table.loss.between(0, 2 * math.log(51864)).all()
    assert (table.step_seconds >= table.wait_seconds).all()
    busy = [row["cpu_utilization_percentage"] for row in table.machine]
    assert len(busy) == len(table) and max(busy) > 0 and all(0 <= percent <= 100 for percent in busy)
    assert table.memory_bytes.min() > 50_000_000
    kept = checkpoints.existing(whole.path / "checkpoints")
    assert [c.step for c in kept] == [steps // 2, steps]
    best = checkpoints.best(kept)
    assert events[-1]["best"] == {"step": best.step, "wer": best.wer, "path": f"checkpoints/{best.path.name}"}
    assert [c.wer for c in kept] == list(whole.validations().wer)


def test_validation_shows_clips_that_can_be_played(whole, little):
    dev = {c.id: c for c in little.cuts["dev"]}
    for event in (e for e in whole.events() if e["kind"] == "validation"):
        assert event["clips"] == 3
        assert {s["id"] for s in event["samples"]} == set(dev)
        for sample in event["samples"]:
            cut = dev[sample["id"]]
            assert sample["reference"] == cut.supervisions[0].text
            assert isinstance(sample["hypothesis"], str)
            assert sample["audio"].startswith("samples/")
            assert sample["audio"].endswith(".mp3")
            heard = audio.decode((whole.path / sample["audio"]).read_bytes())
            assert len(heard) / 16_000 == pytest.approx(cut.duration, abs=0.2)
    assert len(list((whole.path / "samples").iterdir())) == 3


# --- exactness ---


@pytest.mark.slow
def test_the_same_run_twice_gives_the_same_bits(whole, train):
    assert_same(whole, train(experiment()))


@pytest.mark.slow
def test_another_seed_gives_other_weights(whole, train):
    other = train(experiment(seed=2))
    assert digest(other) != digest(whole)
    assert list(other.steps().loss) != list(whole.steps().loss)


@pytest.mark.slow
def test_a_run_stopped_at_three_places_goes_on_as_if_it_had_not_been(whole, train):
    run, cuts = None, (2, 4, 7)
    for cut in cuts:
        run = train(experiment(), run, stop_after=cut - 1)
        assert run.state == "stopped"
        assert [e for e in run.events() if e["kind"] == "stopped"][-1]["step"] == cut == len(run.steps())
        run.stop_file.unlink()
    assert any(cut % (len(whole.steps()) // 2) for cut in cuts)  # in mid-epoch
    train(experiment(), run)
    assert [e["resumed_from"] for e in run.events() if e["kind"] == "start"] == [None, *cuts]
    assert_same(whole, run)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_loader_workers_change_no_bit(whole, train, workers):
    assert_same(whole, train(experiment(cluster={"loader_workers": workers})))


@pytest.mark.slow
def test_a_run_that_breaks_in_mid_epoch_goes_on_from_its_last_checkpoint(whole, train, tmp_path, monkeypatch):
    made = experiment(training={"checkpoint_steps": 2})  # checkpoints more or less do not change what is learnt
    run = Run.create(made, tmp_path)

    def break_down(loss: Loss) -> Loss:
        raise RuntimeError("lost worker")

    with monkeypatch.context() as patch:
        spoil(patch, at=2 * 3 - 1, change=break_down)  # the last micro-batch of the third step
        with pytest.raises(RuntimeError, match="lost worker"):
            train(made, run)
    assert len(run.steps()) == 2
    train(made, run)
    assert [e["resumed_from"] for e in run.events() if e["kind"] == "start"] == [None, 2]
    assert_same(whole, run)


def test_a_damaged_checkpoint_is_passed_over_and_its_steps_are_done_again(whole, train, tmp_path):
    run = Run(shutil.copytree(whole.path, tmp_path / whole.id))
    last = checkpoints.existing(run.path / "checkpoints")[-1]
    data = bytearray((last.path / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (last.path / "model.safetensors").write_bytes(data)
    (run.path / "events.jsonl").unlink()
    train(experiment(), run)
    message, start = run.events()[:2]
    assert (message["kind"], message["level"]) == ("message", "warning")
    assert message["text"].startswith(f"{last.path.name} is damaged: model.safetensors")
    assert start["resumed_from"] == last.step // 2
    assert digest(run) == digest(whole)


def test_a_finished_run_trained_again_ends_at_once(whole, train, tmp_path):
    run = Run(shutil.copytree(whole.path, tmp_path / whole.id))
    (run.path / "events.jsonl").unlink()
    assert [e["kind"] for e in train(experiment(), run).events()] == ["start", "end"]


def test_a_loss_that_is_not_a_number_names_step_and_clips(train, little, monkeypatch, tmp_path):
    spoil(monkeypatch, at=3, change=lambda loss: Loss(loss.total * math.nan, loss.tokens))
    run = Run.create(experiment(), tmp_path)
    with pytest.raises(
        InputError,
        match=r"loss of step 2 is not a number(.|\n)*got: *loss nan(.|\n)*finite(.|\n)*look at its clips, kept in .*failures.*: ",
    ) as e:
        train(experiment(), run)
    clips = Clips.of(little)
    _, step = training.plan_for(experiment(), clips).step(1)
    spoilt = [clips.cuts[i] for i in step.micros[1].clips]
    assert str(e.value).rpartition(".*: ")[2].split(", ") == [cut.id for cut in spoilt]
    assert [e["kind"] for e in run.events()] == ["start", "step"]
    # the batch is kept: what was heard, what was to be learnt, and which part of it failed
    (about,) = (run.path / "failures").glob("*.json")
    assert about.name == "step-000002-worker-0.json"
    parts = json.loads(about.read_text())
    assert [math.isnan(float(part["loss"])) for part in parts] == [False, True]
    assert parts[1]["texts"] == [cut.supervisions[0].text for cut in spoilt]
    wave_BN = load_file(about.with_suffix(".safetensors"))["wave_1"]
    np.testing.assert_array_equal(wave_BN[0, : round(16_000 * parts[1]["seconds"][0])], corpora.load_audio(spoilt[0]))


# --- what the loop can do beside, each exact after an interruption ---

SMALL_LORA = {"rank": 4, "targets": ["q_proj", "v_proj"]}
VARIANTS: dict[str, dict[str, Any]] = {
    "ema": {"training": {"ema": 0.9}},
    "lora": {"model": {"lora": SMALL_LORA}},
    "lora and ema": {"model": {"lora": SMALL_LORA}, "training": {"ema": 0.9}},
    "frozen encoder": {"model": {"freeze": "encoder"}},
    "gradient checkpointing": {"training": {"gradient_checkpointing": True}},
    "fp16": {"training": {"precision": "fp16"}},
    "mean of checkpoints": {"training": {"average": 2, "checkpoint_steps": 2}},
}


@pytest.mark.parametrize("name", VARIANTS)
def test_each_variant_goes_on_exactly_where_it_was_stopped(train, name):
    made = experiment(**VARIANTS[name])
    undisturbed, stopped = train(made), train(made, stop_after=2)
    assert stopped.state == "stopped"
    stopped.stop_file.unlink()
    train(made, stopped)
    assert_same(undisturbed, stopped)
    best = [run.events()[-1]["best"] for run in (undisturbed, stopped)]
    assert best[0] == best[1]


@pytest.mark.parametrize("name", ["ema", "lora", "mean of checkpoints"])
def test_a_digest_between_checkpoints_is_what_a_checkpoint_there_would_have(train, monkeypatch, name):
    monkeypatch.setattr(training, "DIGEST_STEPS", 1)
    monkeypatch.setattr(training, "DIGEST_PARAMETERS", 10**9)
    made = experiment(**VARIANTS[name])
    digests = [e["digest"] for e in train(made).events() if e["kind"] == "step"]
    assert len(set(digests)) == len(digests), "each step moves the weights"
    stopped = train(made, stop_after=2)
    kept = {e["step"]: e["digest"] for e in stopped.events() if e["kind"] == "checkpoint"}
    assert kept[3] == digests[2] and provenance.record(stopped)["weights"]["chain"][-1] == {"step": 3, "digest": digests[2]}
    monkeypatch.setattr(training, "DIGEST_STEPS", 2)
    assert [e["digest"] for e in train(made).events() if e["kind"] == "step"] == [d if i % 2 else None for i, d in enumerate(digests)]


def test_the_average_is_what_is_published_and_the_weights_go_on_beside_it(train, whole):
    averaged = train(experiment(training={"ema": 0.9}))
    assert list(averaged.steps().loss) == list(whole.steps().loss), "an average does not change what is learnt"
    published, plain = (load_file(checkpoints.existing(r.path / "checkpoints")[-1].path / "model.safetensors") for r in (averaged, whole))
    kept = load_file(checkpoints.existing(averaged.path / "checkpoints")[-1].path / "trained.safetensors")
    name = "model.decoder.layers.0.fc1.weight"
    assert torch.equal(kept[f"parameter/net.{name}"], plain[name])
    assert torch.equal(kept[f"average/net.{name}"], published[name])
    assert not torch.equal(published[name], plain[name])


def test_the_mean_of_the_last_checkpoints_is_their_mean_and_a_candidate(train):
    run = train(experiment(training={"average": 2, "checkpoint_steps": 2}))
    folder = run.path / "checkpoints"
    last = [load_file(c.path / "model.safetensors") for c in checkpoints.existing(folder)[-2:]]
    mean = load_file(folder / "average" / "model.safetensors")
    for name, value in mean.items():
        torch.testing.assert_close(value, (last[0][name] + last[1][name]) / 2)
    found = checkpoints.averaged(folder)
    assert found is not None and found in checkpoints.candidates(folder)
    assert checkpoints.damage(found) is None
    assert found.wer is not None and f"{100 * found.wer:.2f} %" in next(e["text"] for e in run.events() if "mean of" in e.get("text", ""))
    assert models.load("whisper", found.path, "en")
    assert [e["kind"] for e in train(run.config, run).events()][-2:] == ["start", "end"], "it is not made twice"


def test_training_stops_early_where_nothing_gets_better_and_stays_stopped(train, monkeypatch):
    wers = iter([0.5, 0.4, 0.4, 0.6, 0.1, 0.1])

    def validate(*args: Any) -> dict[str, Any]:
        return {
            "kind": "validation",
            "step": args[5],
            "epoch": args[6],
            "wer": next(wers),
            "cer": 0.0,
            "clips": 3,
            "seconds": 0.0,
            "samples": [],
        }

    monkeypatch.setattr(training, "validate", validate)
    made = experiment(training={"epochs": 6, "patience": 2})
    run = train(made)
    assert list(run.validations().wer) == [0.5, 0.4, 0.4, 0.6]
    assert run.state == "finished"
    assert run.events()[-1]["best"]["wer"] == 0.4
    assert any("stopped early" in e.get("text", "") for e in run.events())
    train(made, run)
    assert len(run.validations()) == 4, "called again it does not go on"


def test_validation_every_other_epoch_and_after_the_last(train):
    run = train(experiment(training={"epochs": 3, "validate_epochs": 2}))
    assert list(run.validations().epoch) == [1, 2]


def test_fp16_skips_steps_that_overflow_and_says_so(train, monkeypatch):
    monkeypatch.setattr(training, "GradScaler", lambda device, enabled: GradScaler(device, enabled=enabled, init_scale=2.0**40))
    run = train(experiment(training={"precision": "fp16"}))
    skipped = run.steps().skipped.tolist()
    assert any(skipped)
    assert run.state == "finished"


def test_more_workers_than_parts_of_a_step_are_refused(little, small_whisper, tmp_path):
    run = Run.create(experiment(), tmp_path)
    with pytest.raises(InputError, match=r"more workers than parts[\s\S]*3 workers for training.micro_batches 2"):
        next(training.train(experiment(), little, str(small_whisper), run, World(0, 3)))


# --- one objective, however a step is cut up ---


class Merged:
    """A plan whose steps are one micro-batch each."""

    def __init__(self, plan: Plan) -> None:
        self.plan, self.steps, self.locate = plan, plan.steps, plan.locate

    def step(self, step: int) -> tuple[int, Step]:
        epoch, cut = self.plan.step(step)
        clips = tuple(i for m in cut.micros for i in m.clips)
        return epoch, Step((Micro(clips, max(m.context for m in cut.micros)),), cut.full_context)


def gradients(events: Iterator[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> torch.Tensor:
    """All gradients of the first step, before clipping."""
    caught: list[torch.Tensor] = []
    clip = torch.nn.utils.clip_grad_norm_

    def catch(parameters: Any, norm: float) -> torch.Tensor:
        parameters = list(parameters)
        caught.append(torch.cat([p.grad.flatten().clone() for p in parameters if p.grad is not None]))
        return clip(parameters, norm)

    with monkeypatch.context() as patch:
        patch.setattr(torch.nn.utils, "clip_grad_norm_", catch)
        next(e for e in events if e["kind"] == "step")
        events.close()  # type: ignore[attr-defined]
    return caught[0]


@pytest.mark.slow
def test_the_gradient_does_not_depend_on_how_a_step_is_cut_up(little, small_whisper, tmp_path, monkeypatch):
    made = experiment(context={"full_fraction": 1.0}, training={"batch_seconds": 16.0})  # one context for all, as merging changes it

    def first_step(**cluster: Any) -> torch.Tensor:
        cut = experiment(**made.model_dump(include={"context", "training"}), cluster=cluster)
        return gradients(training.train(cut, little, str(small_whisper), Run.create(cut, tmp_path)), monkeypatch)

    whole, pieces = first_step(), first_step(device_seconds=60.0)  # two clips a pass
    with monkeypatch.context() as patch:
        planned = training.plan_for
        patch.setattr(training, "plan_for", lambda *a: Merged(planned(*a)))
        merged = first_step(device_seconds=1000.0)
    assert (whole - merged).norm() / merged.norm() < 1e-5
    assert (pieces - merged).norm() / merged.norm() < 1e-5

    # negative control: the mean over micro-batches of their means, as many templates have it
    clips = Clips.of(little)
    model = models.load("whisper", small_whisper, "en")
    tokens = [sum(model.count_tokens([clips.texts[i] for i in m.clips])) for m in planned(made, clips).step(0)[1].micros]
    assert tokens[0] != tokens[1]
    with monkeypatch.context() as patch:
        loss = Whisper.loss
        patch.setattr(Whisper, "forward", lambda m, b: Loss((one := loss(m, b)).total * sum(tokens) / (2 * one.tokens), one.tokens))
        naive = first_step(device_seconds=1000.0)
    assert (naive - merged).norm() / merged.norm() > 1e-3


def worker(rank: int, made: config.Experiment, corpus: corpora.Corpus, weights: str, path: Path, stop_after: int | None = None) -> None:
    """One of two processes that train a run together."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{path}/rendezvous", rank=rank, world_size=2)
    run = Run(path)
    with listening(run):
        for event in training.train(made, corpus, weights, run, World(rank, 2)):
            if rank == 0:
                run.append(event)
                if event["kind"] == "step" and event["step"] == stop_after:
                    run.stop()
    dist.destroy_process_group()
    (path / "rendezvous").unlink(missing_ok=True)


@contextmanager
def listening(run: Run) -> Iterator[None]:
    """Write down which clips a process was really fed, step by step: not what the plan says, what the batches held."""
    step = training._Learner.step
    backward = training._Learner._backward
    ids: list[str] = []

    def heard_in(self: Any, batch: Any, *args: Any) -> Any:
        ids.extend(batch.ids)
        return backward(self, batch, *args)

    def listened(self: Any, number: int) -> Any:
        ids.clear()
        event = step(self, number)
        with open(run.path / f"heard-{os.getpid()}.jsonl", "a") as f:
            f.write(json.dumps([number, list(ids)]) + "\n")
        return event

    training._Learner.step, training._Learner._backward = listened, heard_in  # type: ignore[method-assign]
    try:
        yield
    finally:
        training._Learner.step, training._Learner._backward = step, backward  # type: ignore[method-assign]


def heard(run: Run) -> list[list[str]]:
    """The clips of each step, over all processes that took part in it, sorted."""
    steps: dict[int, list[str]] = {}
    for path in run.path.glob("heard-*.jsonl"):
        for line in path.read_text().splitlines():
            number, ids = json.loads(line)
            steps.setdefault(number, []).extend(ids)
    return [sorted(steps[number]) for number in sorted(steps)]


@pytest.mark.slow
@pytest.mark.parametrize("first", [1, 2])
def test_the_number_of_workers_changes_in_mid_epoch_and_the_clips_are_the_plan_s(little, noisy, train, tmp_path, first):
    """1 to 2 and 2 to 1, stopped after the third step: same clips, step by step, and the curve of an undisturbed run."""
    made = experiment()
    undisturbed, run = Run.create(made, tmp_path / "undisturbed"), Run.create(made, tmp_path / "changed")

    def on(workers: int, run: Run, stop_after: int | None = None) -> None:
        if workers == 1:
            with listening(run):
                train(made, run, stop_after=stop_after)
        else:
            mp.spawn(worker, (made, little, str(noisy), run.path, stop_after), nprocs=2)

    on(1, undisturbed)
    on(first, run, stop_after=2)
    assert run.state == "stopped"
    assert len(run.steps()) == 3 and 3 % (len(undisturbed.steps()) // 2), "in mid-epoch"
    run.stop_file.unlink()
    on(3 - first, run)
    assert [e["workers"] for e in run.events() if e["kind"] == "start"] == [first, 3 - first]
    assert run.state == "finished"

    clips = Clips.of(little)
    plan = training.plan_for(made, clips)
    planned = [sorted(clips.cuts[i].id for m in plan.step(n)[1].micros for i in m.clips) for n in range(plan.steps(2))]
    assert heard(run) == heard(undisturbed) == planned
    a, b = (r.steps()[["loss", "grad_norm"]].to_numpy() for r in (undisturbed, run))
    print("largest difference of loss and gradient norm:", abs(a / b - 1).max())
    assert a == pytest.approx(b, rel=1e-4)
    # negative control: another seed is told apart by both
    other = Run.create(experiment(seed=2), tmp_path / "other")
    with listening(other):
        train(other.config, other)
    assert heard(other) != planned
    assert other.steps().loss.to_numpy() != pytest.approx(a[:, 0], rel=1e-4)


@pytest.mark.slow
def test_two_workers_learn_what_one_does(train, little, noisy, tmp_path):
    # at 30 s a clip a pass: workers differ in how many they make
    made = experiment(context={"full_fraction": 1.0}, cluster={"device_seconds": 40.0})
    planned = [s for epoch in (0, 1) for s in training.plan_for(made, Clips.of(little)).epoch(epoch)]
    assert any(len({len(m.pieces(40.0)) for m in s.micros}) > 1 for s in planned)
    one, two = train(made), Run.create(made, tmp_path)
    mp.spawn(worker, (made, little, str(noisy), two.path), nprocs=2)
    assert two.events()[0]["workers"] == 2
    exact = ["step", "epoch", "lr", "clips", "audio_seconds", "full_context"]
    assert one.steps()[exact].equals(two.steps()[exact])
    a, b = (r.steps()[["loss", "grad_norm"]].to_numpy() for r in (one, two))
    print("largest difference of loss and gradient norm:", abs(a / b - 1).max())
    assert a == pytest.approx(b, rel=1e-4)
    start, (one_end, two_end) = flat(noisy), (flat(checkpoints.existing(r.path / "checkpoints")[-1].path) for r in (one, two))
    apart = ((one_end - two_end).norm() / (one_end - start).norm()).item()
    print("difference of the weights over what was learnt:", apart)
    assert apart < 1e-3
    assert list(one.validations().wer) == list(two.validations().wer)
    assert two.state == "finished"


def flat(folder: Path) -> torch.Tensor:
    """All weights of a folder, one after another."""
    return torch.cat([value.flatten() for _, value in sorted(load_file(folder / "model.safetensors").items())])


# --- learning ---


@pytest.mark.slow
def test_the_real_weights_learn(train, tiny_en):
    made = experiment(optim={"lr": 5e-5, "warmup_steps": 1}, training={"epochs": 3, "precision": "bf16"}, context={"full_fraction": 0.0})
    run = train(made, weights=tiny_en)
    losses = run.steps().groupby("epoch").loss.mean().tolist()
    print("loss by epoch:", [round(x, 3) for x in losses])
    assert losses[0] > 1.5 * losses[1] > losses[2]


# --- augmentation ---

AUGMENT = {"speed": {}, "noise": {"probability": 1.0}, "gain": {}, "codec": {"probability": 0.5, "kinds": ["telephone"]}, "spec": {}}


@pytest.fixture(scope="module")
def augmented(train) -> Run:
    return train(experiment(augment=AUGMENT))


def test_augmentation_changes_what_is_learnt_and_the_plan_knows_its_durations(augmented, whole, little):
    made = experiment(augment=AUGMENT)
    clips = Clips.of(little, made)
    plan = training.plan_for(made, clips, [5] * 16)
    table = augmented.steps()
    assert len(table) == plan.steps(2)
    assert digest(augmented) != digest(whole)
    for epoch, rows in table.groupby("epoch"):
        assert rows.clips.sum() == 16
        assert rows.audio_seconds.sum() == pytest.approx(sum(clips.stretched(epoch)), abs=1e-6)
    assert clips.stretched(0) != clips.stretched(1)
    heard = [clips(i, epoch=1) for i in range(16)]
    assert [len(h.wave_N) / 16_000 for h in heard] == clips.stretched(1)


def test_masks_reach_the_model(little, noisy, monkeypatch):
    """SpecAugment alone: the loss differs from that of the same waves unmasked."""
    made = experiment(augment={"spec": {}})
    clips = Clips.of(little, made)
    batch = next(feed(clips, [Micro(tuple(range(6)), 3.0)]))
    assert batch.masks is not None
    assert all(m is not None for m in batch.masks)
    model = Whisper(noisy).eval()
    masked, bare = model.encode(batch), model.encode(dataclasses.replace(batch, masks=None))
    assert not torch.equal(masked, bare)
    assert torch.equal(model.encode(batch), masked)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_an_augmented_run_is_the_same_with_loader_workers(augmented, train, workers):
    assert_same(train(experiment(augment=AUGMENT, cluster={"loader_workers": workers})), augmented)


def test_an_augmented_run_that_was_stopped_goes_on_in_the_middle_of_an_epoch(augmented, train):
    run = train(experiment(augment=AUGMENT), stop_after=3)
    assert run.state == "stopped"
    (run.path / "stop").unlink(missing_ok=True)
    assert_same(train(experiment(augment=AUGMENT), run), augmented)


def test_a_clip_near_thirty_seconds_is_not_slowed_beyond_them(prompts):
    from speechlab.augment import Augmenter
    from speechlab.config import AugmentConfig, SpeedConfig

    slow = Augmenter(AugmentConfig(speed=SpeedConfig(factors=(0.9,))), 1)
    assert slow.samples(26 * 16_000, "a", 0) == round(26 * 16_000 / 0.9)
    assert slow.samples(28 * 16_000, "a", 0) == 28 * 16_000
    assert len(slow(np.full(28 * 16_000, 0.1, np.float32), "a", 0)) == 28 * 16_000
