"""Checkpoints: whole or absent, and never loaded unless their digests agree.

A checkpoint is a folder that transformers' ``from_pretrained`` loads, with the optimizer beside it::

    step-000057/
      model.safetensors, config.json, tokenizer files …
      optimizer.safetensors   exp_avg, exp_avg_sq and step of each parameter, by name
      state.json              step, epoch, validation, digest of the weights
      files.json              SHA-256 of each of the above; written last

A step's randomness derives from (seed, step), so no generator state needs saving. Nothing is pickled.
Two tensors that are equal give the same digest whatever file they lie in (safetensors' bytes would
too, ``torch.save``'s do not). Not covered yet: averaging, storage that is not a file system.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from speechlab.runs import disk_full, write_atomic


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
    """

    path: Path
    step: int
    wer: float | None
    digest: str


def weights_digest(model: nn.Module) -> str:
    """SHA-256 over sorted (name, dtype, shape, bytes) of all parameters and buffers that are saved."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        value = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def save(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, *, step: int, epoch: int, wer: float | None) -> Checkpoint:
    """Write a checkpoint under a temporary name and rename it when it is whole and on disk.

    Raises:
        InputError: if the disk is full; what was written is removed.
    """
    final = folder / f"step-{step:06d}"
    partial = folder / f".{final.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    digest = weights_digest(model)
    try:
        partial.mkdir(parents=True)
        model.save(partial)  # type: ignore[operator]
        save_file(_optimizer_tensors(model, optimizer), partial / "optimizer.safetensors")
        state = {"step": step, "epoch": epoch, "wer": wer, "digest": digest}
        (partial / "state.json").write_text(json.dumps(state))
        sums = {p.name: _sha256(p) for p in sorted(partial.iterdir())}
        write_atomic(partial / "files.json", json.dumps(sums, indent=1).encode())
        for path in partial.iterdir():
            _fsync(path)
        shutil.rmtree(final, ignore_errors=True)
        os.replace(partial, final)
        _fsync(folder)
    except Exception as e:
        shutil.rmtree(partial, ignore_errors=True)
        # safetensors reports a full disk as its own error, with the system's words in it
        if getattr(e, "errno", None) == errno.ENOSPC or os.strerror(errno.ENOSPC) in str(e):
            raise disk_full(folder, sum(p.numel() * 12 for p in model.parameters())) from None
        raise
    return Checkpoint(final, step, wer, digest)


def load(checkpoint: Checkpoint, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Put a verified checkpoint's optimizer state back; the model was built from its folder."""
    tensors = load_file(checkpoint.path / "optimizer.safetensors")
    names = {id(p): name for name, p in model.named_parameters()}
    for group in optimizer.param_groups:
        for p in group["params"]:
            state = {key.split("/", 1)[0]: value for key, value in tensors.items() if key.split("/", 1)[1] == names[id(p)]}
            if state:
                optimizer.state[p] = {key: value.to(p.device if key != "step" else "cpu") for key, value in state.items()}


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


def best(checkpoints: Iterable[Checkpoint]) -> Checkpoint | None:
    """The one with the lowest validation WER; of equals the latest, which has seen more."""
    validated = [c for c in checkpoints if c.wer is not None]
    return min(validated, key=lambda c: (c.wer, -c.step), default=None)


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
        return Checkpoint(path, state["step"], state["wer"], state["digest"])
    except (OSError, ValueError, TypeError, KeyError):  # damaged: kept in the list, so that damage() can say so
        return Checkpoint(path, int(path.name.removeprefix("step-")), None, "")


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
