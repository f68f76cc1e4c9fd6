"""A finished run with a checkpoint and hand-made evaluations, as training and evaluation would have left it."""

from __future__ import annotations

import gzip
import hashlib
import json
from pathlib import Path
from typing import Any

from evaluated import AFTER, BEFORE, experiment

from speechlab import checkpoints, evaluation, models, optim
from speechlab.checkpoints import Checkpoint
from speechlab.runs import Run

RECORD = {
    "code": {"git_sha": "c0ffee", "dirty": False},
    "data": {"manifest_sha256": "ab" * 32, "licence": "CC BY-SA 3.0", "attribution": "Allison Smith"},
    "weights": {"name": "tiny.en", "sha256": "cd" * 32, "licence": "MIT (OpenAI)"},
    "dependencies": {"lock_sha256": "ef" * 32, "python": "3.11.7", "torch": "2.11.0"},
    "hardware": {"cpu": "AMD EPYC", "cores": 2, "gpu": None},
}


def finished(folder: Path, weights: Path, family: str = "whisper", record: dict[str, Any] = RECORD) -> Run:
    """A finished run of a family, evaluated on clean speech before and after."""
    settings = experiment(str(weights)).model_dump()
    settings["model"]["family"] = family
    run = Run.create(type(experiment()).model_validate(settings), folder)
    run.append({"kind": "start", "steps": 1, "epochs": 1, "workers": 1, "device": "cpu", "precision": "fp32", "resumed_from": None})
    best = better(run, weights, 1)
    evaluation.save(run.path / "evaluations", type(AFTER)(**{**vars(AFTER), "context": "silence", "weights_sha256": best.digest}))
    evaluation.save(run.path / "evaluations", BEFORE)
    run.append({"kind": "end", "step": 1, "seconds": 1.0, "best": {"step": 1, "wer": 0.5}})
    (run.path / "provenance.json").write_text(json.dumps(record))
    return run


def better(run: Run, weights: Path, step: int) -> Checkpoint:
    """One more checkpoint, with other weights and a lower WER than those before."""
    family = run.config.model.family
    model = models.load(family, weights, "en")
    next(model.parameters()).data.mul_(1 + 0.01 * step)
    state = {"step": step, "epoch": 0, "wer": 0.5 / step}
    return checkpoints.save(run.path / "checkpoints", model, optim.adamw(model, run.config.optim), state)


def with_manifest(run: Run) -> str:
    """Give a run a manifest of three clips, and a record that names it; the manifest's hash."""
    rows = [{"id": f"c{i}", "split": split, "duration": 1.5 + i} for i, split in enumerate(("train", "train", "test"))]
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    digest = hashlib.sha256(lines).hexdigest()
    (run.path / "manifest.jsonl.gz").write_bytes(gzip.compress(lines))
    record = {**RECORD, "data": {**RECORD["data"], "manifest_sha256": digest}}
    (run.path / "provenance.json").write_text(json.dumps(record))
    return digest
