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

from speechlab import conditions, latency, models
from speechlab.comparison import Difference, Families, compare
from speechlab.config import EvaluationConfig
from speechlab.evaluation import Evaluation
from speechlab.pairs import Pair
from speechlab.statistics import Interval

BUDGETS = (0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0)  # seconds
HEADS = {
    "label": "system",
    "condition": "condition",
    "clips": "clips",
    "words": "words",
    "wer": "WER",
    "low": "from",
    "high": "to",
    "cer": "CER",
    "wer_raw": "raw WER",
    "cer_raw": "raw CER",
    "substitutions": "S",
    "deletions": "D",
    "insertions": "I",
    "invented": "invented words a minute",
}
PERCENT = ("WER", "from", "to", "CER", "raw WER", "raw CER", "in time", "WER of those in time", "deadline-WER")
FORMATS = dict.fromkeys(PERCENT, "{:.2f} %")
FORMATS |= dict.fromkeys(("p50 ms", "p95 ms", "p99 ms", "budget ms"), "{:.0f}")
FORMATS |= {"invented words a minute": "{:.1f}", "RTFx": "{:.1f}", "memory GB": "{:.2f}"}


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


def usual_first(evaluations: Sequence[Evaluation]) -> list[Evaluation]:
    """Those in a family's usual context before those in others, else in the order they have."""
    rank = {context: place for place, context in enumerate(models.CONTEXTS)}
    return sorted(evaluations, key=lambda e: rank.get(e.context, 0))


def rates(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of :func:`summary` to be read, with :data:`FORMATS` for their numbers."""
    percent = ["wer", "low", "high", "cer", "wer_raw", "cer_raw"]
    shown = table.assign(**{name: 100 * table[name] for name in percent})
    return shown[list(HEADS)].rename(columns=HEADS)


def speeds(table: pd.DataFrame) -> pd.DataFrame:
    """How fast each system was, the rows of :func:`summary` on clean speech; latencies in ms, memory in GB."""
    clean = table[table.kind == "clean"]
    milliseconds = {f"{name} ms": 1000 * clean[name] for name in ("p50", "p95", "p99")}
    about = {"system": clean.label, "clips": clean.clips, "RTFx": clean.rtfx, **milliseconds}
    return pd.DataFrame({**about, "memory GB": clean.memory / 1e9, "once more at 30 s": clean.fallbacks})


def deadlines(evaluation: Evaluation, settings: EvaluationConfig, seed: int = 0) -> pd.DataFrame:
    """Coverage and error rates over :data:`BUDGETS`, of an evaluation whose clips were decoded one by one too.

    Returns:
        As :func:`speechlab.latency.deadline_curve`.
    """
    timed = evaluation.rows.latency.notna().to_numpy()
    scores = evaluation.scores(settings.normaliser).only(timed.nonzero()[0])
    return latency.deadline_curve(scores, evaluation.rows.latency[timed].to_numpy(), BUDGETS, settings.resamples, seed)


def waiting(table: pd.DataFrame) -> pd.DataFrame:
    """A few rows of :func:`deadlines` to be read, in ms and percent."""
    rows = table[table.budget.isin([0.05, 0.1, 0.2, 0.5, 1.0])]
    shares = {"in time": rows.coverage, "WER of those in time": rows.met_wer, "deadline-WER": rows.wer, "from": rows.low, "to": rows.high}
    return pd.DataFrame({"budget ms": 1000 * rows.budget, **{name: 100 * values for name, values in shares.items()}})


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
        curves.append(pd.concat([clean, part]).sort_values("snr", ascending=False).assign(system=name))
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


def of_pair(both: Pair) -> pd.DataFrame:
    """A row a training: which, its WER with an interval over utterances, CER, and counts; percent, with :data:`FORMATS`."""
    rows = []
    for side, names, scores in (("a", both.names_a, both.a), ("b", both.names_b, both.b)):
        for name, s in zip(names, scores, strict=True):
            interval = s.interval()
            rates = {"WER": 100 * s.wer, "from": 100 * interval.low, "to": 100 * interval.high, "CER": 100 * s.cer}
            rows.append({"": side, "system": name, "words": s.words, **rates, "S": s.substitutions, "D": s.deletions, "I": s.insertions})
    return pd.DataFrame(rows)


def tests(found: Difference | Families) -> pd.DataFrame:
    """What a difference's intervals and tests say, a row each: what, value, p, about."""

    def ends(interval: Interval) -> str:
        return "–" if math.isnan(interval.low) else f"{interval.low:+.2f} to {interval.high:+.2f}"

    spans = [found.interval, found.speaker_interval, *([found.trainings] if isinstance(found, Families) else [])]
    rows: list[dict[str, Any]] = [{"what": "difference, points", "value": f"{found.points:+.2f}"}]
    rows += [{"what": f"95 %, {i.scope}", "value": ends(i), "about": i.warning or f"{i.units} {i.by}s, {i.method}"} for i in spans]
    rows.append({"what": f"sign-flip over {found.p_by}s", "p": found.p, "about": found.p_warning})
    if isinstance(found, Families):
        rows.append({"what": "Welch's test over trainings", "p": found.p_trainings})
    else:
        m = found.mapsswe
        rows.append({"what": "MAPSSWE", "value": f"z = {-m.z:.2f}", "p": m.p, "about": f"{m.segments} segments, taken as independent"})
        rows.append({"what": "paired t-test", "p": found.p_t, "about": "of utterances' rates, taken as independent"})
    return pd.DataFrame(rows, columns=["what", "value", "p", "about"])


def readable_strata(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of :func:`speechlab.comparison.strata` in words: no rates where there are few utterances."""
    rows = []
    for r in table.to_dict("records"):
        few = r["low"] != r["low"]
        rates = {"WER a": 100 * r["wer_a"], "WER b": 100 * r["wer_b"]}
        shown = {name: "–" if few else f"{value:.2f} %" for name, value in rates.items()}
        span = "–" if few else f"{r['points']:+.2f} [{r['low']:+.2f}, {r['high']:+.2f}]"
        ps = {name: "–" if few else f"{r[key]:.3g}" for name, key in (("p", "p"), ("p (Holm)", "p_holm"))}
        rows.append({"stratum": r["stratum"], "utterances": r["utterances"], "words": r["words"], **shown, "b minus a": span, **ps})
    return pd.DataFrame(rows)


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
