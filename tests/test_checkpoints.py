"""Checkpoints under damage, crashes and full disks."""

from __future__ import annotations

import copy
import dataclasses
import errno
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from released import better, finished
from safetensors.torch import save_file
from torch import nn

from speechlab import checkpoints, models, optim
from speechlab.checkpoints import Checkpoint
from speechlab.config import OptimConfig
from speechlab.errors import InputError
from speechlab.models.whisper import Whisper
from speechlab.runs import Run


class Tiny(nn.Sequential):
    """A model of a hundred weights that saves itself."""

    def __init__(self, seed: int = 0) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            super().__init__(nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 4))

    def save(self, folder: Path) -> None:
        save_file(self.state_dict(), folder / "model.safetensors")
        (folder / "config.json").write_text("{}")


def stepped(model: nn.Module) -> torch.optim.Optimizer:
    """An optimizer with state: after two steps over made-up gradients."""
    optimizer = optim.adamw(model, OptimConfig(lr=0.01))
    for seed in range(2):
        generator = torch.Generator().manual_seed(seed)
        for p in model.parameters():
            p.grad = torch.randn(p.shape, generator=generator) if p.requires_grad else None
        optimizer.step()
    return optimizer


def saved(folder: Path, step: int, wer: float | None = None, seed: int | None = None) -> Checkpoint:
    model = Tiny(step if seed is None else seed)
    return checkpoints.save(folder, model, stepped(model), {"step": step, "epoch": 0, "wer": wer})


def flip(path: Path, at: float = 0.5) -> None:
    """Turn one bit of a file, at a share of its length."""
    data = bytearray(path.read_bytes())
    data[int(at * (len(data) - 1))] ^= 1
    path.write_bytes(data)


def steps(folder: Path) -> list[int]:
    return [c.step for c in checkpoints.existing(folder)]


@pytest.fixture(scope="module")
def small(small_whisper) -> tuple[Whisper, torch.optim.Optimizer]:
    """A real model, 14 MiB of weights, and its optimizer with 27."""
    model = models.load("whisper", small_whisper, "en")
    return model, stepped(model)


# --- round trip ---


def test_weights_and_optimizer_come_back_bit_by_bit(small_whisper, small, tmp_path):
    model, optimizer = copy.deepcopy(small)
    checkpoint = checkpoints.save(tmp_path, model, optimizer, {"step": 7, "epoch": 1, "wer": 0.25})
    assert (
        checkpoint == checkpoints.existing(tmp_path)[0] == Checkpoint(tmp_path / "step-000007", 7, 0.25, checkpoints.weights_digest(model))
    )
    assert checkpoints.damage(checkpoint) is None
    assert not [p for p in tmp_path.iterdir() if p != checkpoint.path]

    again = models.load("whisper", checkpoint.path, "en")
    assert checkpoints.weights_digest(again) == checkpoint.digest != checkpoints.weights_digest(models.load("whisper", small_whisper, "en"))
    fresh = optim.adamw(again, OptimConfig(lr=0.01))
    assert not fresh.state
    checkpoints.load(checkpoint, again, fresh)
    ours, theirs = optimizer.state_dict()["state"], fresh.state_dict()["state"]
    assert set(ours) == set(theirs)
    assert len(ours) > 50
    for index, state in ours.items():
        assert set(state) == set(theirs[index]) == {"exp_avg", "exp_avg_sq", "step"}
        assert all(torch.equal(value, theirs[index][key]) for key, value in state.items())

    for each in (optimizer, fresh):  # and so the next step is the same too
        for group in each.param_groups:
            for p in group["params"]:
                p.grad = torch.full_like(p, 0.01)
        each.step()
    assert checkpoints.weights_digest(again) == checkpoints.weights_digest(model)


def test_equal_tensors_have_equal_digests_wherever_they_lie(tmp_path):
    one, two = saved(tmp_path, 1, seed=5), saved(tmp_path / "elsewhere", 2, seed=5)
    assert one.digest == two.digest
    assert (one.path / "model.safetensors").read_bytes() == (two.path / "model.safetensors").read_bytes()
    assert (one.path / "optimizer.safetensors").read_bytes() == (two.path / "optimizer.safetensors").read_bytes()
    assert one.digest != saved(tmp_path, 3, seed=6).digest


@pytest.mark.parametrize(
    "change", [lambda m: m[0].weight.data.view(-1)[3:4].mul_(1 + 1e-6), lambda m: m.to(torch.float64), lambda m: m.append(nn.Linear(1, 1))]
)
def test_the_digest_sees_values_types_and_names(change):
    model = Tiny()
    before = checkpoints.weights_digest(model)
    assert before == checkpoints.weights_digest(Tiny())
    change(model)
    assert checkpoints.weights_digest(model) != before


# --- damage ---


@pytest.mark.parametrize("at", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "config.json", "state.json", "files.json"])
def test_a_flipped_bit_anywhere_is_found_and_the_one_before_is_taken(tmp_path, name, at):
    saved(tmp_path, 1), saved(tmp_path, 2)
    flip(tmp_path / "step-000002" / name, at)
    assert checkpoints.damage(checkpoints.existing(tmp_path)[1])
    found, passed_over = checkpoints.newest(tmp_path)
    assert found is not None
    assert found.step == 1
    assert len(passed_over) == 1
    assert passed_over[0].startswith("step-000002 is damaged: ")
    if name != "files.json":
        assert name in passed_over[0]


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json"])
def test_a_missing_file_is_named(tmp_path, name):
    saved(tmp_path, 1), saved(tmp_path, 2)
    (tmp_path / "step-000002" / name).unlink()
    found, passed_over = checkpoints.newest(tmp_path)
    assert found is not None
    assert found.step == 1
    assert passed_over == [f"step-000002 is damaged: {name} is missing"]


def test_nothing_intact_is_nothing(tmp_path):
    assert checkpoints.newest(tmp_path) == (None, [])
    assert checkpoints.newest(tmp_path / "absent") == (None, [])
    for step in (1, 2):
        flip(saved(tmp_path, step).path / "model.safetensors")
    found, passed_over = checkpoints.newest(tmp_path)
    assert found is None
    assert [line[:11] for line in passed_over] == ["step-000002", "step-000001"]


def test_a_damaged_checkpoint_is_replaced_by_the_same_step_done_again(tmp_path):
    flip(saved(tmp_path, 3).path / "model.safetensors")
    again = saved(tmp_path, 3)
    assert checkpoints.newest(tmp_path) == (again, [])


def test_what_a_dead_writer_left_is_ignored_and_pruned(tmp_path):
    saved(tmp_path, 1)
    partial = tmp_path / ".step-000002.partial"
    shutil.copytree(tmp_path / "step-000001", partial)
    unfinished = tmp_path / "step-000003"  # without files.json, which is written last
    unfinished.mkdir()
    assert steps(tmp_path) == [1]
    checkpoints.prune(tmp_path, keep_last=3)
    assert not partial.exists()
    assert steps(tmp_path) == [1]
    assert saved(tmp_path, 3).path == unfinished
    assert steps(tmp_path) == [1, 3]


# --- which are kept ---


def test_steps_are_in_order_beyond_a_million(tmp_path):
    for step in (1_000_000, 999_999):
        saved(tmp_path, step)
    assert steps(tmp_path) == [999_999, 1_000_000]


@pytest.mark.parametrize(
    ("wers", "keep_last", "kept"),
    [
        ([0.3, 0.1, 0.2, 0.4, 0.5], 2, [2, 4, 5]),
        ([0.3, 0.1, 0.1, 0.4, 0.5], 1, [3, 5]),
        ([0.5, 0.4, 0.3, 0.2, 0.1], 2, [4, 5]),
        ([None, 0.2, None, None, None], 1, [2, 5]),
        ([None] * 5, 3, [3, 4, 5]),
        ([0.1] * 5, 9, [1, 2, 3, 4, 5]),
    ],
)
def test_prune_keeps_the_best_and_the_last(tmp_path, wers, keep_last, kept):
    for step, wer in enumerate(wers, 1):
        saved(tmp_path, step, wer)
    checkpoints.prune(tmp_path, keep_last)
    assert steps(tmp_path) == kept


def test_the_best_has_the_lowest_wer_and_of_equals_is_the_latest():
    made = [Checkpoint(Path(f"step-{s:06d}"), s, wer, "") for s, wer in ((4, 0.1), (2, 0.1), (1, 0.3), (3, None))]
    best = checkpoints.best(made)
    assert best is not None
    assert best.step == 4
    assert checkpoints.best([dataclasses.replace(c, wer=None) for c in made]) is None
    assert checkpoints.best([]) is None
    zero = Checkpoint(Path("step-000009"), 9, 0.0, "")
    assert checkpoints.best([*made, zero]) == zero


# --- a full disk ---


@pytest.fixture
def disk(tmp_path):
    """Mounts a file system of so many megabytes, and takes it away again."""
    place = tmp_path / "disk"
    place.mkdir()

    def mount(megabytes: int) -> Path:
        command = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(place)]
        if os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode:
            pytest.skip("mounting needs root")
        return place

    yield mount
    subprocess.run(["umount", str(place)], capture_output=True)


def holds_only_the_first(folder: Path, first: Checkpoint) -> bool:
    return [p.name for p in folder.iterdir()] == ["step-000001"] and checkpoints.newest(folder) == (first, [])


DISK_FULL = (
    r"disk is full(.|\n)*earlier checkpoints are untouched(.|\n)*got: *[\d,]+ MB free(.|\n)*expected: *room for 4\d MB(.|\n)*--resume"
)


@pytest.mark.parametrize(("megabytes", "full_at"), [(1, "model"), (14, "tokenizer"), (30, "optimizer")])
def test_a_disk_that_is_full_at_a_checkpoint(small, disk, megabytes, full_at):
    folder = disk(megabytes) / "checkpoints"
    first = saved(folder, 1, 0.5)
    with pytest.raises(InputError, match=DISK_FULL):
        checkpoints.save(folder, *small, {"step": 2, "epoch": 0, "wer": 0.1})
    assert holds_only_the_first(folder, first), full_at
    assert shutil.disk_usage(folder).used < 100_000
    assert saved(folder, 3).step == 3  # and what fits still goes


@pytest.mark.parametrize("where", ["save_file", "write_atomic", "_fsync"])
def test_a_disk_that_reports_to_be_full_late(tmp_path, monkeypatch, where):
    first = saved(tmp_path, 1, 0.5)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, where, full)
        with pytest.raises(InputError, match=r"disk is full(.|\n)*got(.|\n)*expected(.|\n)*do"):
            saved(tmp_path, 2)
    assert holds_only_the_first(tmp_path, first)


def test_another_error_is_not_called_a_full_disk(tmp_path, monkeypatch):
    first = saved(tmp_path, 1)
    monkeypatch.setattr(Tiny, "save", lambda *_: (_ for _ in ()).throw(PermissionError(errno.EACCES, "Permission denied")))
    with pytest.raises(PermissionError):
        saved(tmp_path, 2)
    assert holds_only_the_first(tmp_path, first)


def test_what_is_in_a_checkpoint_is_json_and_tensors(tmp_path):
    path = saved(tmp_path, 12, 0.5).path
    assert {p.name for p in path.iterdir()} == {"model.safetensors", "config.json", "optimizer.safetensors", "state.json", "files.json"}
    assert {p.suffix for p in path.iterdir()} == {".safetensors", ".json"}
    state = json.loads((path / "state.json").read_text())
    assert (state["step"], state["epoch"], state["wer"]) == (12, 0, 0.5)
    assert set(json.loads((path / "files.json").read_text())) == {p.name for p in path.iterdir()} - {"files.json"}


def test_what_is_handed_on_is_the_best_verified_and_its_absence_is_told(tmp_path, small_whisper):
    run = finished(tmp_path, small_whisper)
    first, second = checkpoints.chosen(run), better(run, small_whisper, 2)
    assert first.step == 1 and checkpoints.need_chosen(run) == second
    with open(second.path / "config.json", "a") as f:
        f.write(" ")
    for asked in (checkpoints.chosen, checkpoints.need_chosen):
        with pytest.raises(InputError, match=f"best checkpoint of run {run.id} is damaged(.|\\n)*step-000002: config.json is not the file"):
            asked(run)
    empty = Run.create(run.config, tmp_path)
    assert checkpoints.chosen(empty) is None
    with pytest.raises(InputError, match="no validated checkpoint(.|\\n)*that is new(.|\\n)*--resume"):
        checkpoints.need_chosen(empty)
