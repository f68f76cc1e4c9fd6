"""Emissions made from texts: what a CTC model would write that mishears some labels and is never quite sure."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from speechlab.models import ctc


def vocabulary_of(folder: Path, labels: Sequence[str]) -> ctc.Vocabulary:
    """A vocabulary of characters, in this order."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({label: i for i, label in enumerate(labels)}))
    return ctc.Vocabulary(folder)


def normalised(scores_FV: np.ndarray) -> np.ndarray:
    """Scores as log-probabilities."""
    return (scores_FV - np.logaddexp.reduce(scores_FV, axis=1, keepdims=True)).astype(np.float32)


def noise(rng: np.random.Generator, frames: int, labels: int) -> np.ndarray:
    """Log-probabilities that say nothing, (F, V)."""
    return normalised(rng.normal(0, 2, (frames, labels)))


def emit(text: str, vocabulary: ctc.Vocabulary, seed: int, wrong: float, longest: int = 2) -> np.ndarray:
    """Log-probabilities (F, V) for a text.

    Each label lasts one frame or several and has a blank behind it; a share ``wrong`` of the labels is misheard: another one, drawn
    anew each time, comes a little before the right one.

    Args:
        text: As written.
        vocabulary: Of the labels.
        seed: Of all that is drawn.
        wrong: Share of labels that are misheard.
        longest: Frames of a label at most.
    """
    rng = np.random.default_rng(seed)
    size = len(vocabulary)
    heard = [i for i in range(size) if vocabulary.decode([i])]  # labels that are text
    rows = []
    for label in vocabulary.encode([text])[0]:
        row = rng.normal(-6, 1, size)
        row[label] = 0.0
        if rng.random() < wrong:
            row[rng.choice([i for i in heard if i != label])] = rng.uniform(0.2, 1.5)
        blank = rng.normal(-6, 1, size)
        blank[vocabulary.blank] = 0.0
        rows += [row] * int(rng.integers(1, longest + 1)) + [blank]
    return normalised(np.array(rows).reshape(-1, size))
