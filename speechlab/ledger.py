"""What is known of all runs, to be set side by side: kept in ``.index.json`` of their folder until one of a run's files changes.

Notable: rates carry the errors of every utterance, so paired differences of many runs need no table to be opened again; and what has to
be the same for two of them to be compared. A run that cannot be read says why, and hides no other.

Not covered: runs in a folder within the folder, such as a sweep's trials; more than two conditions of a run.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from speechlab import catalogue, conditions, evaluation, results
from speechlab.comparison import judge_counts
from speechlab.runs import Run, write_atomic
from speechlab.units import Seconds

KEPT = ".index.json"
ALL_PAIRS = 4  # runs of a test set of which each is compared with each; of more, each with the one of the lowest WER
NOISE = ("white-10db", "babble-10db", "noise-10db")  # of several conditions beside clean speech, which is shown


@dataclass(frozen=True)
class Rate:
    """A system of a run under a condition.

    Attributes:
        system: ``pretrained`` is the one that training began with.
        condition: Its name.
        test: What has to be the same for two rates to be compared: clips as they were heard, utterances, texts and normaliser.
        normaliser: Its identity.
        wer: A fraction, as the interval's ends.
        low: 95 % over utterances.
        high: Likewise.
        errors: Of each utterance.
        words: Likewise.
        speakers: Likewise, as numbers.
    """

    system: str
    condition: str
    test: str
    normaliser: str
    wer: float
    low: float
    high: float
    errors: list[int] = field(repr=False)
    words: list[int] = field(repr=False)
    speakers: list[int] = field(repr=False)


@dataclass(frozen=True)
class Known:
    """What is known of a run.

    Attributes:
        id: The directory's name.
        state: As :attr:`speechlab.runs.Run.state`, or ``broken``.
        model: Family and weights.
        question: The config's.
        started: Seconds since 1970; NaN if it is not known.
        seconds: Of all training steps; NaN if there is none.
        note: Why it is broken, or what to know.
        seed: Of the config, for the intervals of differences.
        rates: Before and after training, clean speech and one more condition.
    """

    id: str
    state: str
    model: str = ""
    question: str = ""
    started: Seconds = math.nan
    seconds: Seconds = math.nan
    note: str = ""
    seed: int = 0
    rates: tuple[Rate, ...] = ()

    def rate(self, clean: bool, before: bool) -> Rate | None:
        """On clean speech or in noise, before training or after it."""
        return next((r for r in self.rates if (r.condition == "clean") == clean and (r.system == "pretrained") == before), None)

    @property
    def test(self) -> str:
        """What its clean rate is of; empty if it was not evaluated."""
        found = self.rate(True, False) or self.rate(True, True)
        return found.test if found else ""


def known(root: Path) -> list[Known]:
    """All runs of a folder, the newest first; those that have not changed since the last page as they were then."""
    kept = _kept(root / KEPT)
    found: list[Known] = []
    for name in catalogue.Catalogue(root).names():
        marks = json.loads(json.dumps([version("speechlab"), *catalogue.marks_of(root / name)]))
        before = kept.get(name)
        if before is None or before["marks"] != marks or before["run"].state == "running":  # whose driver may be gone
            before = {"marks": marks, "run": read(root / name)}
        kept[name] = before
        found.append(before["run"])
    there = {run.id for run in found}
    lines = {name: {"marks": row["marks"], "run": asdict(row["run"])} for name, row in kept.items() if name in there}
    write_atomic(root / KEPT, json.dumps(lines, separators=(",", ":")).encode())
    return sorted(found, key=lambda run: (-(run.started if run.started == run.started else 0.0), run.id))


def _kept(path: Path) -> dict[str, dict[str, Any]]:
    try:
        rows = json.loads(path.read_text("utf-8"))
        made = {}
        for name, row in rows.items():
            run = {**row["run"], "rates": tuple(Rate(**rate) for rate in row["run"]["rates"])}
            made[name] = {"marks": row["marks"], "run": Known(**run)}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):  # none yet, or another version's: all runs are read again
        return {}
    return made


def read(path: Path) -> Known:
    """A run from its directory."""
    entry = catalogue.entry(path)
    known = Known(entry.id, entry.state, entry.model, entry.question, entry.started, entry.seconds, entry.note)
    if entry.state == "broken":
        return known
    try:
        run = Run(path)
        settings, seed = run.config.evaluation, run.config.seed
        found = results.usual_first(evaluation.load(path / "evaluations"))
        chosen = _conditions({e.condition for e in found})
        first = {(e.system == "pretrained", e.condition): e for e in reversed(found) if e.condition in chosen}
        rates = tuple(filter(None, (_rate(e, settings.normaliser, settings.resamples, seed) for e in first.values())))
    except Exception as e:  # whatever a damaged file makes its reader raise
        why = f"its evaluations cannot be read: {type(e).__name__}: {e}"
        return replace(known, state="broken", note=" ".join(why.split())[:300])
    return replace(known, seed=seed, rates=rates)


def _conditions(heard: set[str]) -> list[str]:
    """Clean speech, and one condition more: noise at 10 dB if it was heard, else the first that has words."""
    others = [c for c in (*NOISE, *conditions.STANDARD) if c in heard and c not in ("clean", "silence", "noise-only")]
    return [*(["clean"] if "clean" in heard else []), *others[:1]]


def _rate(e: evaluation.Evaluation, normaliser: str, resamples: int, seed: int) -> Rate | None:
    scores = e.scores(normaliser)
    if not scores.words:
        return None
    interval = scores.interval(resamples=resamples, seed=seed)
    texts = json.dumps([e.heard_sha256, e.condition, list(e.rows.id), scores.references, scores.normaliser], ensure_ascii=True)
    _, speakers = np.unique(np.array(scores.speakers), return_inverse=True)
    return Rate(
        e.system,
        e.condition,
        f"{e.heard_sha256[:12]}-{hashlib.sha256(texts.encode()).hexdigest()[:12]}",
        scores.normaliser,
        scores.wer,
        interval.low,
        interval.high,
        scores.errors_U.tolist(),
        scores.words_U.tolist(),
        speakers.tolist(),
    )


def difference(a: Rate, b: Rate, seed: int = 0) -> tuple[str, str]:
    """b minus a in points with its paired interval, and the verdict; of rates of two tests, that they are not compared."""
    if a.test != b.test:
        return "–", "other clips: not to be compared"
    points, verdict = judge_counts(np.subtract(b.errors, a.errors), np.array(b.words), [str(s) for s in b.speakers], seed=seed)
    low, high = verdict.interval.low, verdict.interval.high
    return f"{points:+.2f} [{low:+.2f}, {high:+.2f}]" if low == low else f"{points:+.2f}", verdict.kind


def pairs(runs: Sequence[Known]) -> list[tuple[Known, Known]]:
    """Of the trained runs of a test set, newest first, those that are set against each other: the older, and the newer."""
    trained = [run for run in runs if run.rate(True, False)]
    if len(trained) <= ALL_PAIRS:
        return [(b, a) for a, b in itertools.combinations(trained, 2)]
    best = min(trained, key=lambda run: run.rate(True, False).wer)  # type: ignore[union-attr]
    at = trained.index(best)
    return [(run, best) if i > at else (best, run) for i, run in enumerate(trained) if i != at]
