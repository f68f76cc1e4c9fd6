"""Hand-made runs to stand side by side: configs, events, checkpoints and evaluations whose numbers are known."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from evaluated import AFTER, BEFORE

from speechlab import config, evaluation
from speechlab.runs import Run


def experiment(name: str, **sections: dict[str, Any]) -> config.Experiment:
    values = {"name": name, "question": "Which?", "tracking": {"enabled": False}, **sections}
    return config.validate(values, "test")


def trained(root: Path, name: str, wers: tuple[float, ...] = (0.5, 0.25), **sections: dict[str, Any]) -> Run:
    """A finished run of ten steps an epoch, 2 s and 4 clips each, validated after each epoch."""
    run = Run.create(experiment(name, **sections), root)
    run.append({"kind": "start", "steps": 10 * len(wers), "epochs": len(wers), "resumed_from": None})
    for epoch, wer in enumerate(wers):
        for n in range(10):
            run.append({"kind": "step", "step": 10 * epoch + n + 1, "epoch": epoch, "loss": 1.0, "clips": 4, "step_seconds": 2.0})
        run.append({"kind": "validation", "step": 10 * epoch + 10, "epoch": epoch, "wer": wer, "cer": wer / 2, "seconds": 1.0})
    run.append({"kind": "end", "step": 10 * len(wers), "seconds": 50.0, "best": None})
    return run


def checkpoint(run: Run, step: int, wer: float | None, digest: str = "0" * 64, name: str = "") -> Path:
    """A whole checkpoint of a few hundred bytes."""
    folder = run.path / "checkpoints" / (name or f"step-{step:06d}")
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"w" * 100)
    (folder / "config.json").write_text("{}")
    (folder / "state.json").write_text(json.dumps({"step": step, "wer": wer, "digest": digest}))
    sums = {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir()}
    (folder / "files.json").write_text(json.dumps(sums))
    return folder


def evaluated(run: Run, **more: Any) -> None:
    """The trained system of ``tests/evaluated.py``, heard in its usual context and at 30 s, beside the one it began with."""
    for e in (BEFORE, AFTER, replace(AFTER, context="silence", **more)):
        evaluation.save(run.path / "evaluations", e)


def snapshot(root: Path) -> dict[str, bytes]:
    """Every file of a folder, to see that none has changed."""
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file() and not p.is_symlink()}
