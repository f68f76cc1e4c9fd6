"""Checkpoints: whole or absent, and never loaded unless their digests agree.

A checkpoint is a folder that transformers' ``from_pretrained`` loads, with the optimizer beside it::

    step-000057/
      model.safetensors, config.json, tokenizer files …
      optimizer.safetensors   exp_avg, exp_avg_sq and step of each parameter, by name
      trained.safetensors     the weights in training, where model.safetensors holds their average, or adapters merged in
      state.json              step, epoch, validations, digest of the weights, scale of fp16 losses
      files.json              SHA-256 of each of the above; written last

A step's randomness derives from (seed, step), so no generator state needs saving. Nothing is pickled.
Two tensors that are equal give the same digest whatever file they lie in (safetensors' bytes would
too, ``torch.save``'s do not). ``average`` beside the steps is the mean of the last of them, and is not trained on.

Not covered: storage that is not a file system.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.amp.grad_scaler import GradScaler

from speechlab.errors import InputError
from speechlab.optim import Average
from speechlab.runs import Run, disk_full, write_atomic


class Savable(Protocol):
    """A model that writes itself as a folder."""

    def save(self, folder: Path) -> None:
        """Write weights, config and tokenizer."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on disk.

    Attributes:
        path: The folder.
        step: Optimizer steps done.
        wer: Validation WER, None where the step was not validated.
        digest: Of the weights: see :func:`weights_digest`.
        history: Fields of :class:`History`.
        apart: Whether the weights in training lie beside the published ones.
    """

    path: Path
    step: int
    wer: float | None
    digest: str
    history: dict[str, Any] | None = None
    apart: bool = False


@dataclass(frozen=True)
class History:
    """What earlier validations gave, for early stopping.

    Attributes:
        best: Lowest WER so far.
        since: Validations since then.
    """

    best: float | None = None
    since: int = 0

    def after(self, wer: float) -> History:
        """With one validation more."""
        return History(wer, 0) if self.best is None or wer < self.best else History(self.best, self.since + 1)


def weights_digest(model: nn.Module) -> str:
    """SHA-256 over sorted (name, dtype, shape, bytes) of all parameters and buffers that are saved."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        value = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def save(
    folder: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    state: dict[str, Any],
    *,
    apart: bool = False,
    average: Average | None = None,
    scaler: GradScaler | None = None,
) -> Checkpoint:
    """Write a checkpoint under a temporary name and rename it when it is whole and on disk.

    Args:
        folder: Of the run's checkpoints.
        model: In training.
        optimizer: Of its weights.
        state: step, epoch, wer, history.
        apart: Whether the weights that learn are not those that the model writes: adapters, which it merges in.
        average: Of the weights, which is then what is published.
        scaler: Of fp16 losses.

    Raises:
        InputError: if the disk is full; what was written is removed.
    """
    final = folder / f"step-{state['step']:06d}"
    with _whole(final, sum(p.numel() * 12 for p in model.parameters())) as partial:
        tensors = trained(model)
        with average.applied() if average else nullcontext():
            digest = weights_digest(model)
            model.save(partial)  # type: ignore[operator]
        if average:
            tensors |= {f"average/{name}": value for name, value in average.weights.items()}
        if average or apart:
            save_file({name: value.contiguous() for name, value in tensors.items()}, partial / "trained.safetensors")
        save_file(_optimizer_tensors(model, optimizer), partial / "optimizer.safetensors")
        scale = scaler.state_dict() if scaler else {}
        (partial / "state.json").write_text(json.dumps({**state, "digest": digest, "scaler": scale}))
    return _read(final)


def trained(model: nn.Module) -> dict[str, torch.Tensor]:
    """The weights that learn, by name."""
    return {f"parameter/{name}": p.detach() for name, p in model.named_parameters() if p.requires_grad}


def load(
    checkpoint: Checkpoint,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: Average | None = None,
    scaler: GradScaler | None = None,
) -> None:
    """Put a verified checkpoint's state back.

    Args:
        checkpoint: Intact: see :func:`newest`.
        model: Built from its folder, or, where its weights lie apart, from the run's start.
        optimizer: Of the model's weights; gets its moments.
        average: Gets what it was.
        scaler: Gets its scale.
    """
    if checkpoint.apart:
        kept = load_file(checkpoint.path / "trained.safetensors")
        with torch.no_grad():
            for name, p in model.named_parameters():
                if p.requires_grad:
                    p.copy_(kept[f"parameter/{name}"])
                    if average:
                        average.weights[name].copy_(kept[f"average/{name}"])
    tensors = load_file(checkpoint.path / "optimizer.safetensors")
    names = {id(p): name for name, p in model.named_parameters()}
    for group in optimizer.param_groups:
        for p in group["params"]:
            state = {key.split("/", 1)[0]: value for key, value in tensors.items() if key.split("/", 1)[1] == names[id(p)]}
            if state:
                optimizer.state[p] = {key: value.to(p.device if key != "step" else "cpu") for key, value in state.items()}
    if scaler and (scale := json.loads((checkpoint.path / "state.json").read_text("utf-8")).get("scaler")):
        scaler.load_state_dict(scale)


@contextmanager
def _whole(final: Path, size: int) -> Iterator[Path]:
    """A folder that appears under its name only when all in it is summed and on disk.

    Raises:
        InputError: if the disk is full, where about ``size`` bytes were to be written.
    """
    partial = final.with_name(f".{final.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        yield partial
        _seal(partial)
        shutil.rmtree(final, ignore_errors=True)
        os.replace(partial, final)
        _fsync(final.parent)
    except Exception as e:
        shutil.rmtree(partial, ignore_errors=True)
        # safetensors reports a full disk as its own error, with the system's words in it
        if getattr(e, "errno", None) == errno.ENOSPC or os.strerror(errno.ENOSPC) in str(e):
            raise disk_full(final.parent, size) from None
        raise


def _seal(folder: Path) -> None:
    """Sum up all files and see them to the disk; from now on they count."""
    paths = sorted(p for p in folder.iterdir() if p.is_file())
    for path in paths:
        _fsync(path)
    write_atomic(folder / "files.json", json.dumps({path.name: _sha256(path) for path in paths}, indent=1).encode())


AVERAGE = "average"


def average(parts: list[Checkpoint], folder: Path) -> Path:
    """Write the mean of the published weights of checkpoints (Izmailov et al., 2018; Vaswani et al., 2017), not yet validated.

    Returns:
        The folder, which :func:`finish_average` makes a checkpoint.
    """
    target = folder / AVERAGE
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    for path in parts[-1].path.iterdir():
        if path.is_file() and path.suffix != ".safetensors" and path.name not in ("state.json", "files.json"):
            shutil.copy(path, target / path.name)
    loaded = [load_file(c.path / "model.safetensors") for c in parts]
    mean = {name: torch.stack([one[name].double() for one in loaded]).mean(0).to(value.dtype) for name, value in loaded[0].items()}
    save_file(mean, target / "model.safetensors", metadata={"format": "pt"})
    return target


def finish_average(folder: Path, *, step: int, epoch: int, wer: float, model: nn.Module) -> None:
    """Note the validation WER of the mean, with which it counts as a checkpoint."""
    target = folder / AVERAGE
    state = {"step": step, "epoch": epoch, "wer": wer, "digest": weights_digest(model)}
    write_atomic(target / "state.json", json.dumps(state).encode())
    _seal(target)


def averaged(folder: Path) -> Checkpoint | None:
    """The mean of the last checkpoints, if it was made and validated."""
    target = folder / AVERAGE
    return _read(target) if (target / "files.json").is_file() else None


def existing(folder: Path) -> list[Checkpoint]:
    """All whole checkpoints, oldest first; not yet verified."""
    found = [_read(path) for path in folder.glob("step-[0-9]*") if (path / "files.json").is_file()]
    return sorted(found, key=lambda c: c.step)


def damage(checkpoint: Checkpoint) -> str | None:
    """What is wrong with a checkpoint's files, or None."""
    try:
        sums = dict(json.loads((checkpoint.path / "files.json").read_text("utf-8")))
    except (OSError, ValueError, TypeError):
        return "files.json cannot be read"
    for name, expected in sums.items():
        path = checkpoint.path / Path(name).name
        if not path.is_file():
            return f"{name} is missing"
        if _sha256(path) != expected:
            return f"{name} is not the file that was written (its SHA-256 differs)"
    return None


def newest(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint whose files are intact.

    Returns:
        The checkpoint, or None, and a line for each newer one that was passed over and why.
    """
    passed_over: list[str] = []
    for checkpoint in reversed(existing(folder)):
        reason = damage(checkpoint)
        if reason is None:
            return checkpoint, passed_over
        passed_over.append(f"{checkpoint.path.name} is damaged: {reason}")
    return None, passed_over


def candidates(folder: Path) -> list[Checkpoint]:
    """What evaluation may take: the checkpoints, and the mean of the last."""
    mean = averaged(folder)
    return [*existing(folder), *([mean] if mean else [])]


def best(checkpoints: Iterable[Checkpoint]) -> Checkpoint | None:
    """The one with the lowest validation WER; of equals the latest, which has seen more."""
    validated = [c for c in checkpoints if c.wer is not None]
    return min(validated, key=lambda c: (c.wer, -c.step), default=None)


def chosen(run: Run) -> Checkpoint | None:
    """What of a run is evaluated and handed on: the best of :func:`candidates`, verified; None if nothing was validated yet.

    Of a pretraining, which has no error rate, it is the newest that is whole.

    Raises:
        InputError: if it is damaged.
    """
    if not run.config.transcribes:
        return newest(run.path / "checkpoints")[0]
    found = best(candidates(run.path / "checkpoints"))
    if found is not None and (reason := damage(found)):
        raise InputError(
            f"The best checkpoint of run {run.id} is damaged.",
            got=f"{found.path.name}: {reason}",
            expected="the files that were written",
            do=f"restore {found.path}, or train again: speechlab train --config {run.path / 'config.yaml'}",
        )
    return found


def need_chosen(run: Run) -> Checkpoint:
    """As :func:`chosen`, of a run that must have one.

    Raises:
        InputError: if it is damaged, or nothing was validated.
    """
    if (found := chosen(run)) is None:
        do = "train again" if run.state == "finished" else f"speechlab train --resume {run.id}"
        raise InputError(f"Run {run.id} has no validated checkpoint.", got=f"a run that is {run.state}", expected="a checkpoint", do=do)
    return found


def need_text(run: Run) -> None:
    """Refuse a run whose model writes no text.

    Raises:
        InputError: if it is a pretraining.
    """
    if not run.config.transcribes:
        start = next((c.path for c in reversed(existing(run.path / "checkpoints"))), run.path / "checkpoints" / "STEP")
        raise InputError(
            f"Run {run.id} is a pretraining: its model writes no text, so it has no error rate.",
            got="model.objective: pretraining",
            expected="a run that was trained on transcripts",
            do=f"train on from it: speechlab train --config configs/wav2vec2.yaml --set model.weights={start}",
        )


def prune(folder: Path, keep_last: int) -> None:
    """Remove all but the best and the last ``keep_last``, and leftovers of writers that died."""
    found = existing(folder)
    kept = {c.path for c in found[-keep_last:]} | {c.path for c in [best(found)] if c}
    for c in found:
        if c.path not in kept:
            shutil.rmtree(c.path)
    for leftover in folder.glob(".step-*.partial"):
        shutil.rmtree(leftover, ignore_errors=True)


def _read(path: Path) -> Checkpoint:
    try:
        state = json.loads((path / "state.json").read_text("utf-8"))
        apart = (path / "trained.safetensors").is_file()
        return Checkpoint(path, state["step"], state["wer"], state["digest"], state.get("history"), apart)
    except (OSError, ValueError, TypeError, KeyError):  # damaged: kept in the list, so that damage() can say so
        return Checkpoint(path, int(path.name.removeprefix("step-")) if path.name != AVERAGE else 0, None, "")


def _optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    names: dict[int, Any] = {id(p): name for name, p in model.named_parameters()}
    return {f"{key}/{names[id(p)]}": value.contiguous() for p, state in optimizer.state.items() for key, value in state.items()}


def _sha256(path: Path) -> str:
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def _fsync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
