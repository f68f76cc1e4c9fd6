"""What evaluations say: rates with their intervals, differences, and what went wrong, as tables.

Notable: every function is from evaluations to a table, so a report months later says the same as the cell that measured. Where
nothing was said there is no word error rate, and what was heard is counted as invented instead.

Not covered: figures (:mod:`speechlab.plots`); verdicts (:mod:`speechlab.comparison`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pandas as pd

from speechlab import conditions
from speechlab.comparison import Difference, compare
from speechlab.config import EvaluationConfig
from speechlab.evaluation import Evaluation


def summary(evaluations: Sequence[Evaluation], settings: EvaluationConfig, seed: int = 0) -> pd.DataFrame:
    """One row an evaluation.

    Args:
        evaluations: In the order of the rows.
        settings: Normaliser and resamples are used.
        seed: Of the intervals.

    Returns:
        system, condition, kind, about, which, snr (dB, infinite for clean speech, missing off the curve), context, label, clips, broken,
        words, wer, low, high (fractions; 95 % over utterances: these speakers), new_low, new_high (over speakers: new speakers), cer,
        wer_raw, cer_raw, substitutions, deletions, insertions, invented (words a minute where nothing was said, else missing),
        fallbacks, rtfx, p50, p95, p99 (seconds at batch 1, where measured), memory (bytes), notes (clips), warning.
    """
    rows = []
    for e in evaluations:
        normal, raw = e.scores(settings.normaliser), e.scores("raw")
        interval = normal.interval(resamples=settings.resamples, seed=seed)
        speakers = normal.interval(resamples=settings.resamples, seed=seed, by="speaker")
        condition, timed = conditions.condition(e.condition), e.timed
        rows.append(
            {
                "system": e.system,
                "condition": e.condition,
                "kind": condition.kind,
                "about": condition.about,
                "which": condition.which,
                "snr": math.inf if condition.kind == "clean" else condition.snr,
                "context": e.context,
                "label": e.label,
                "clips": len(e.rows),
                "broken": len(e.broken),
                "words": normal.words,
                "wer": normal.wer,
                "low": interval.low,
                "high": interval.high,
                "new_low": speakers.low,
                "new_high": speakers.high,
                "cer": normal.cer,
                "wer_raw": raw.wer,
                "cer_raw": raw.cer,
                "substitutions": normal.substitutions,
                "deletions": normal.deletions,
                "insertions": normal.insertions,
                "invented": math.nan if normal.words else 60 * normal.insertions / float(e.rows.duration.sum()),
                "fallbacks": e.fallbacks,
                "rtfx": e.rtfx,
                "p50": timed.p50 if timed else math.nan,
                "p95": timed.p95 if timed else math.nan,
                "p99": timed.p99 if timed else math.nan,
                "memory": e.memory_bytes,
                "notes": len(e.notes),
                "warning": speakers.warning,
            }
        )
    return pd.DataFrame(rows)


def usual(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of :func:`summary` in each system's usual context, in which all conditions were heard: its first of a condition."""
    return table.drop_duplicates(["system", "condition"]).reset_index(drop=True)


def by_condition(table: pd.DataFrame) -> pd.DataFrame:
    """Conditions by systems: each cell ``WER % [low, high]``, or words invented a minute where nothing was said.

    Args:
        table: From :func:`summary`.
    """
    rows = usual(table)
    cells = [
        f"{r['invented']:.1f} words a minute"
        if r["wer"] != r["wer"]
        else f"{100 * r['wer']:.2f} [{100 * r['low']:.2f}, {100 * r['high']:.2f}]"
        for r in rows.to_dict("records")
    ]
    wide = rows.assign(cell=cells).pivot(index="condition", columns="system", values="cell")
    order = rows.drop_duplicates("condition").set_index("condition")
    wide = wide.loc[order.index, list(dict.fromkeys(rows.system))].fillna("–")
    wide.insert(0, "what is heard", order.about)
    return wide.reset_index()


def over_snr(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of :func:`summary` on curves over SNR, clean speech at their end: system, snr, wer, low, high.

    A system has a curve for every kind of noise that it was heard in.
    """
    rows = usual(table)
    curves = []
    noisy = rows[rows.kind == "noise"]
    for (system, which), part in noisy.groupby(["system", "which"], sort=False):
        clean = rows[(rows.system == system) & (rows.kind == "clean")]
        name = f"{system}, {which}" if noisy.which.nunique() > 1 else str(system)
        curves.append(pd.concat([clean, part]).assign(system=name))
    columns = ["system", "snr", "wer", "low", "high"]
    return pd.concat(curves)[columns].reset_index(drop=True) if curves else pd.DataFrame(columns=columns)


def differences(evaluations: Sequence[Evaluation], settings: EvaluationConfig, seed: int = 0) -> pd.DataFrame:
    """Every other system minus the first on the same clips, by condition and context, in points of WER; no rows without two.

    The first is taken in its usual context, and so is what had no words to be wrong in left out.

    Returns:
        system, condition, context, points, low, high (95 %, paired, these speakers), p, p_by, warning.
    """
    rows = []
    base: dict[str, Evaluation] = {}
    for e in evaluations:
        if e.system == evaluations[0].system:
            base.setdefault(e.condition, e)
    for e in evaluations:
        before = base.get(e.condition)
        if before is None or e.system == before.system or not before.rows.words.sum():
            continue
        both = before.scores(settings.normaliser), e.scores(settings.normaliser)
        d: Difference = compare(*both, settings.resamples, seed)
        about: dict[str, Any] = {"system": e.system, "condition": e.condition, "context": e.context}
        rows.append(about | {"points": d.points, "low": d.low, "high": d.high, "p": d.p, "p_by": d.p_by, "warning": d.p_warning})
    return pd.DataFrame(rows, columns=["system", "condition", "context", "points", "low", "high", "p", "p_by", "warning"])


def side_by_side(evaluations: Sequence[Evaluation], name: str, condition: str = "clean") -> tuple[pd.DataFrame, dict[str, str]]:
    """The clips of a condition that any system got wrong, worst first by the last system.

    Args:
        evaluations: Each system is taken in its usual context, the first that there is.
        name: Of the normaliser.
        condition: Of the clips.

    Returns:
        id, duration, reference (normalised), for each system a column of its normalised text and one of its errors, ``errors
        <system>``; and what the text columns are called.
    """
    heard: dict[str, Evaluation] = {}
    for e in evaluations:
        if e.condition == condition:
            heard.setdefault(e.system, e)
    if not heard:
        return pd.DataFrame(columns=["id", "duration", "reference"]), {}
    scores = {system: e.scores(name) for system, e in heard.items()}
    first = next(iter(heard))
    columns: dict[str, Any] = {"id": heard[first].rows.id, "duration": heard[first].rows.duration, "reference": scores[first].references}
    for system, s in scores.items():
        columns |= {system: s.hypotheses, f"errors {system}": s.errors_U}
    table = pd.DataFrame(columns)
    errors = [f"errors {system}" for system in reversed(list(heard))]
    wrong = table[(table[errors] > 0).any(axis=1)].sort_values([*errors, "id"], ascending=[False] * len(errors) + [True])
    return wrong.reset_index(drop=True), {system: e.label for system, e in heard.items()}
