"""Hand-made evaluations whose counts are known."""

from __future__ import annotations

import pandas as pd

from speechlab import config
from speechlab.evaluation import COUNTED, Evaluation
from speechlab.scoring import score
from speechlab.text import normaliser


def experiment(weights: str = "tiny.en", **evaluated: object) -> config.Experiment:
    values = {
        "name": "test",
        "question": "What does it hear?",
        "corpus": {"limit": 3},
        "model": {"weights": weights},
        "training": {"precision": "fp32"},
        "cluster": {"device": "cpu"},
        "evaluation": {"resamples": 100, "batch_seconds": 8.0, **evaluated},
    }
    return config.validate(values, "test")


def made(system: str, context: str, hypotheses: list[str], condition: str = "clean", **more: object) -> Evaluation:
    """An evaluation of four clips by two speakers with given answers."""
    references = ["Please press one.", "Thank you!", "Goodbye.", "The number is twenty one."]
    if condition in ("silence", "noise-only"):
        references = [""] * 4
    rows = pd.DataFrame(
        {
            "id": list("abcd"),
            "speaker": ["x", "x", "y", "y"],
            "duration": [1.5, 0.8, 0.6, 2.1],
            "reference": references,
            "hypothesis": hypotheses,
            "ended": True,
            "context": 30.0 if context == "full" else 2.6,
            "seconds": 0.25,
            "confidences": [[0.9] * len(text.split()) for text in hypotheses],
            "latency": [0.1, 0.05, 0.3, 0.2],
        }
    )
    counts = score(list(rows.reference), list(rows.hypothesis), normaliser("english"), list(rows.speaker))
    rows[COUNTED] = counts.table()[COUNTED]
    values = {
        "weights_sha256": "0" * 64,
        "heard_sha256": "1" * 64,
        "how": {"device": "cpu", "precision": "fp32", "search": "greedy"},
        "normaliser": counts.normaliser,
        "wer": counts.wer,
        "cer": counts.cer,
        "rtf": 0.2,
        "memory_bytes": 1e9,
        "fallbacks": 0,
        "broken": {},
        "notes": {},
    }
    return Evaluation(**{"system": system, "condition": condition, "context": context, **values, **more}, rows=rows)


PERFECT = ["please press one", "thank you", "Goodbye", "the number is 21"]
# a substitution, a deletion, an insertion
BEFORE = made("pretrained", "full", ["Please press two.", "Thank", "Goodbye now.", "The number is 21."])
AFTER = made("finetuned", "short", [*PERFECT[:2], "", "The number is 21."])  # a deletion
