"""Hand-made runs whose events, records and answers are known: to be compared, or refused."""

from __future__ import annotations

import gzip
import hashlib
import json
from pathlib import Path
from typing import Any

from evaluated import made

from speechlab import config, evaluation, runs

LOSSES = (0.1 + 0.2, 0.25, 1 / 3)  # the first is no number that a short decimal writes
MANIFEST = tuple(f'{{"audio":"pcm-sha256:{k}","duration":1.0,"id":"{k}","split":"test","text":"word"}}' for k in "abcd")
ANSWERS = ("please press one", "thank you", "Goodbye", "the number is 21")


def digest(text: object) -> str:
    return hashlib.sha256(str(text).encode()).hexdigest()


def record(manifest: tuple[str, ...] = MANIFEST, **changed: Any) -> dict[str, Any]:
    """As provenance.json holds it, with ``row__field`` in place of what is usual."""
    kept: dict[str, Any] = {
        "code": {"git_sha": "a" * 40, "dirty": False, "patch": None, "patch_sha256": None, "left_out": []},
        "data": {"manifest_sha256": digest("".join(f"{line}\n" for line in manifest))},
        "weights": {"name": "tiny.en", "sha256": "c" * 64},
        "dependencies": {"lock_sha256": "b" * 64, "python": "3.11.7", "torch": "2.11.0"},
        "hardware": {"cpu": "one", "capability": "AVX512"},
        "execution": {"workers": 1, "threads": 2, "environment": {"OMP_NUM_THREADS": None}},
    }
    for name, value in changed.items():
        row, _, field = name.partition("__")
        kept[row] = {**kept[row], field: value}
    return kept


def run(
    folder: Path,
    *overrides: str,
    losses: tuple[float, ...] = LOSSES,
    weights: str = "w",
    threads: int = 2,
    manifest: tuple[str, ...] = MANIFEST,
    answers: tuple[str, ...] = (),
    end: str = "end",
    **changed: Any,
) -> runs.Run:
    """A run of a step for each loss, with a checkpoint after the second and the last.

    Args:
        folder: Of the runs.
        overrides: Of its config.
        losses: Of its steps.
        weights: What the digests after the last step are made of.
        threads: Of its worker.
        manifest: Lines of its clips.
        answers: To the four clips of an evaluation; none leaves it out.
        end: Kind of its last event.
        changed: In its record.
    """
    made_run = runs.Run.create(config.load("configs/smoke.yaml", list(overrides)), folder)
    steps = [{"kind": "step", "step": i, "lr": 1e-5, "clips": 4, "tokens": 9, "loss": loss} for i, loss in enumerate(losses, 1)]
    saved = [{"kind": "checkpoint", "step": 2, "digest": digest(losses[:2])}, {"kind": "checkpoint", "step": len(losses)}]
    saved[1]["digest"] = digest((losses, weights))
    start = {"kind": "start", "workers": 1, "device": "cpu", "precision": "bf16", "device_seconds": 240.0}
    for event in (start, *steps[:2], saved[0], *steps[2:], saved[1], {"kind": end, "step": len(losses)}):
        made_run.append(event)
    (made_run.path / "threads.json").write_text(json.dumps({"1": threads}))
    (made_run.path / "manifest.jsonl.gz").write_bytes(gzip.compress("".join(f"{line}\n" for line in manifest).encode()))
    (made_run.path / "provenance.json").write_text(json.dumps(record(manifest, **changed)))
    if answers:
        evaluated = made("finetuned", "silence", list(answers))
        evaluated.rows["speaker"] = "x"  # intervals over two speakers would decide nothing
        evaluation.save(made_run.path / "evaluations", evaluated)
    return made_run
