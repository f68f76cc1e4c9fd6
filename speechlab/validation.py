"""What a model in training makes of the dev clips: error rates, and a few clips to read and to hear."""

from __future__ import annotations

import hashlib
import time
from typing import Any

from speechlab import audio, corpora, decoding, scoring
from speechlab.config import Experiment
from speechlab.errors import InputError
from speechlab.runs import Event, Run, write_atomic
from speechlab.text import normaliser
from speechlab.world import World

SAMPLES = 6  # clips that the board shows and plays


def validate(experiment: Experiment, model: Any, corpus: corpora.Corpus, run: Run, world: World, step: int, epoch: int) -> Event:
    """Decode the dev clips, shared among the workers, and score them.

    Args:
        experiment: Batch size, precision and normaliser are used.
        model: On the worker's device.
        corpus: Its dev split is decoded, in the model's usual context.
        run: Gets the sound of the clips that are shown.
        world: This worker.
        step: Steps done, for the event.
        epoch: Of the last one.

    Returns:
        A validation event, the same on every rank.
    """
    began = time.perf_counter()
    cuts = sorted(corpus.cuts["dev"], key=lambda c: (c.duration, c.id))
    answers = decoding.decode(
        model,
        cuts[world.rank :: world.size],
        seconds=experiment.evaluation.batch_seconds,
        precision=experiment.training.precision,
        device=world.device,
    )
    rows = sorted(world.gather([row for batch in answers for row in batch]), key=lambda r: r.id)
    if broken := [row for row in rows if row.problem]:
        raise InputError(broken[0].problem)
    scores = scoring.score([r.reference for r in rows], [r.hypothesis for r in rows], normaliser(experiment.evaluation.normaliser))
    shown = sorted(cuts, key=lambda c: hashlib.sha256(c.id.encode()).digest())[:SAMPLES]
    heard = {r.id: r.hypothesis for r in rows}
    return {
        "kind": "validation",
        "step": step,
        "epoch": epoch,
        "wer": scores.wer,
        "cer": scores.cer,
        "clips": len(rows),
        "seconds": time.perf_counter() - began,
        "samples": [
            {"id": c.id, "reference": c.supervisions[0].text, "hypothesis": heard[c.id], "audio": _sample(run, c, world.rank == 0)}
            for c in shown
        ],
    }


def _sample(run: Run, cut: Any, write: bool) -> str:
    # clip ids are untrusted: the file name is their hash
    name = f"samples/{hashlib.sha256(cut.id.encode()).hexdigest()[:16]}.mp3"
    if write and not (run.path / name).exists():
        write_atomic(run.path / name, audio.encode_mp3(corpora.load_audio(cut)))
    return name
