"""Two systems on the same utterances: by how much they differ, how sure that is, and what follows from it.

The difference is paired: both systems heard the same clips, so what makes a clip hard for both cancels. The verdict comes
from an interval of it and a margin, never from the two rates alone: "new > old + 0.5" raised 38 to 42 % false alarms on
small sets where the systems were equal.

Two families of trainings, which differ in their seeds alone, are compared by their means (:func:`families`): seed noise by itself
spreads 0.1 to 0.2 points of WER, so one training beats another only over several of each.

Not covered: more than two systems at once; trainings, speakers and utterances in one model.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import pandas as pd

from speechlab.errors import InputError
from speechlab.scoring import Scores
from speechlab.statistics import By, Interval, Ints, Mapsswe, holm, mapsswe, paired_t, ratio_interval, sign_flip, welch
from speechlab.strata import SMALL, split

MARGIN = 0.5  # points of WER that a new system may be worse


@dataclass(frozen=True)
class Difference:
    """How two systems differ on the same utterances: b minus a, in points of WER (negative: b is better).

    Attributes:
        points: Difference of the corpus WERs times 100.
        interval: Its paired interval over utterances, in points: these speakers.
        speaker_interval: The same over speakers: new speakers; ``nan`` and a warning where it cannot be had.
        p: Two-sided p-value of a sign-flip permutation test.
        p_by: What the signs were flipped over; ``utterance`` only where there are not two speakers.
        p_exact: Whether every sign pattern was enumerated, rather than drawn.
        mapsswe: The test of the literature, a minus b; takes segments as independent.
        p_t: Of the paired t-test on utterances' rates, the familiar row.
        utterances: How many there are.
        p_warning: What limits the p-value; empty if nothing does.
    """

    points: float
    interval: Interval
    speaker_interval: Interval
    p: float
    p_by: By
    p_exact: bool
    mapsswe: Mapsswe
    p_t: float
    utterances: int
    p_warning: str = ""

    @property
    def low(self) -> float:
        """Lower end of :attr:`interval`, in points."""
        return self.interval.low

    @property
    def high(self) -> float:
        """Upper end of :attr:`interval`, in points."""
        return self.interval.high

    def __str__(self) -> str:
        """One line: ``-4.35 points [-5.9, -2.9] (these speakers), p = 0.002 by speaker``."""
        return f"{self.points:+.2f} points [{self.low:+.2f}, {self.high:+.2f}] ({self.interval.scope}), p = {self.p:.3g} by {self.p_by}"


def compare(a: Scores, b: Scores, resamples: int = 1000, seed: int = 0, level: float = 0.95) -> Difference:
    """Paired difference of two systems' corpus WER, b minus a.

    Both are drawn with the same units in each resample. The p-value flips, speaker by speaker, which system is called a: it
    keeps its 5 % of false alarms where the difference varies between speakers, and a paired t-test or MAPSSWE over
    utterances was measured to raise 22 %.

    Args:
        a: The system compared against.
        b: The system in question, scored on the same utterances in the same order with the same normaliser.
        resamples: Bootstrap resamples.
        seed: Of the resamples and of drawn sign patterns.
        level: Nominal coverage of the intervals.

    Raises:
        InputError: if normaliser, references or speakers of the two are not the same (the first difference is shown),
            or an argument is out of range.
    """
    _comparable(a, b)
    errors_U = b.errors_U - a.errors_U
    p, exact, by, warning = _flipped(a, errors_U, seed)
    how: dict[str, Any] = {"resamples": resamples, "seed": seed, "level": level}
    rated = a.words_U > 0
    return Difference(
        points=100 * (b.wer - a.wer),
        interval=_interval(a, errors_U, a.words_U, "utterance", how),
        speaker_interval=_interval(a, errors_U, a.words_U, "speaker", how),
        p=p,
        p_by=by,
        p_exact=exact,
        mapsswe=mapsswe(a.operations, b.operations),
        p_t=paired_t(*(s.errors_U[rated] / s.words_U[rated] for s in (a, b))),
        utterances=len(a),
        p_warning=warning,
    )


@dataclass(frozen=True)
class Families:
    """How two families of trainings differ on the same utterances: b minus a, in points of WER (negative: b is better).

    Attributes:
        rates_a: Corpus WER of each training of a, fractions.
        rates_b: Likewise.
        points: Difference of their means times 100.
        trainings: Its interval over trainings (Welch), in points: new trainings, on these utterances.
        interval: Its paired interval over utterances: these trainings, these speakers.
        speaker_interval: The same over speakers.
        p: Of the sign-flip test on the means of the trainings.
        p_by: What the signs were flipped over.
        p_trainings: Of Welch's test.
        utterances: How many there are.
        p_warning: What limits ``p``; empty if nothing does.
    """

    rates_a: tuple[float, ...]
    rates_b: tuple[float, ...]
    points: float
    trainings: Interval
    interval: Interval
    speaker_interval: Interval
    p: float
    p_by: By
    p_trainings: float
    utterances: int
    p_warning: str = ""


def families(a: Sequence[Scores], b: Sequence[Scores], resamples: int = 1000, seed: int = 0, level: float = 0.95) -> Families:
    """Compare the means of two families of trainings.

    Args:
        a: Trainings of the system compared against, on the same utterances.
        b: Of the system in question.
        resamples: Bootstrap resamples.
        seed: Of the resamples and of drawn sign patterns.
        level: Nominal coverage of the intervals.

    Raises:
        InputError: if a family is empty, or as for :func:`compare`.
    """
    if not a or not b:
        raise InputError("A family has no training.", got=f"{len(a)} and {len(b)}", expected="one or more of each")
    first = a[0]
    for other in (*a[1:], *b):
        _comparable(first, other)
    # whole numbers, as the counts are: errors of every training, weighed by how many there are of the other family
    errors_U = len(a) * sum(s.errors_U for s in b) - len(b) * sum(s.errors_U for s in a)
    words_U = len(a) * len(b) * first.words_U
    rates_a, rates_b = tuple(s.wer for s in a), tuple(s.wer for s in b)
    trainings, p_trainings = welch(rates_a, rates_b, level)
    p, _, by, warning = _flipped(first, errors_U, seed)
    how: dict[str, Any] = {"resamples": resamples, "seed": seed, "level": level}
    return Families(
        rates_a=rates_a,
        rates_b=rates_b,
        points=100 * float(np.mean(rates_b) - np.mean(rates_a)),
        trainings=replace(trainings, low=100 * trainings.low, high=100 * trainings.high),
        interval=_interval(first, errors_U, words_U, "utterance", how),
        speaker_interval=_interval(first, errors_U, words_U, "speaker", how),
        p=p,
        p_by=by,
        p_trainings=p_trainings,
        utterances=len(first),
        p_warning=warning,
    )


def sides(a: Scores, b: Scores, ids: Sequence[str]) -> pd.DataFrame:
    """The utterances in which two systems differ in errors, where b lost most first and where it won most last.

    Args:
        a: The system compared against.
        b: The system in question.
        ids: Of the utterances (U).

    Returns:
        id, reference, a, b (normalised texts), errors a, errors b, and change: errors of b minus those of a.
    """
    _comparable(a, b)
    texts = {"id": list(ids), "reference": a.references, "a": a.hypotheses, "b": b.hypotheses}
    table = pd.DataFrame({**texts, "errors a": a.errors_U, "errors b": b.errors_U, "change": b.errors_U - a.errors_U})
    return table[table.change != 0].sort_values(["change", "id"], ascending=[False, True]).reset_index(drop=True)


def _comparable(a: Scores, b: Scores) -> None:
    if a.normaliser != b.normaliser:
        got = f"{a.normaliser} and {b.normaliser}"
        raise InputError("Two normalisers cannot be compared.", got=got, expected="the same", do="score both with one")
    _same("reference", a.references, b.references)
    _same("speaker", a.speakers or (), b.speakers or ())


def _flipped(scores: Scores, errors_U: Any, seed: int) -> tuple[float, bool, By, str]:
    """The sign-flip test of differences of errors: p, whether it is exact, over what, and what limits it."""
    by: By = "speaker" if len(set(scores.speakers or ())) > 1 else "utterance"
    differences = scores.units(errors_U, by)
    p, exact = sign_flip(differences, seed)
    warnings = []
    if by == "utterance":
        known = "there is one speaker" if scores.speakers else "the speakers are not known"
        warnings.append(f"{known}, so a test over speakers cannot be had: p takes utterances as independent, and speaks of these speakers")
    if (least := 2.0 ** (1 - len(differences))) > 0.01:
        warnings.append(f"with {len(differences)} {by}s p cannot fall below {least:.3g}")
    return p, exact, by, "; ".join(warnings)


def _interval(scores: Scores, errors_U: Any, words_U: Any, by: By, how: dict[str, Any]) -> Interval:
    """In points."""
    found = ratio_interval(scores.units(errors_U, by), scores.units(words_U, by), by=by, **how)
    warning = found.warning
    if by == "speaker" and scores.speakers is None:
        warning = "the speakers are not known: how much speakers differ, and so this interval, cannot be had"
    return replace(found, low=100 * found.low, high=100 * found.high, warning=warning)


def _same(what: str, a: Sequence[str], b: Sequence[str]) -> None:
    for i, (in_a, in_b) in enumerate(itertools.zip_longest(a, b)):
        if in_a != in_b:
            raise InputError(
                f"The two systems were not scored on the same utterances: the {what} of utterance {i} differs.",
                got=f"{in_a!r} in a, {in_b!r} in b",
                expected=f"the same {what}s in the same order",
                do="join the two by id before scoring",
            )


@dataclass(frozen=True)
class Verdict:
    """What a difference means for a release.

    Attributes:
        kind: ``OK``: worse by more than the margin is ruled out; ``REGRESSED``: worse by more than the margin is sure;
            ``INCONCLUSIVE``: the interval holds the margin.
        margin: Points of WER that the new system may be worse.
        interval: Of the difference, which decided.
        needed: About how many utterances of this kind, or trainings of a family, would decide, if the difference stayed what it
            is; None where it was
            decided, or where no number would do.
        text: All of it in a sentence.
    """

    kind: Literal["OK", "REGRESSED", "INCONCLUSIVE"]
    margin: float
    interval: Interval
    needed: int | None
    text: str


def need_margin(margin: float) -> None:
    """Refuse a margin that is none.

    Raises:
        InputError: if it is no number from 0 on.
    """
    if not (math.isfinite(margin) and margin >= 0):
        raise InputError("The margin cannot be used.", got=f"{margin}", expected="points of WER, 0 or more", do="for example 0.5")


def judge(difference: Difference | Families, margin: float = MARGIN, by: By | None = None) -> Verdict:
    """The verdict of the paired interval; of families the more cautious one of that and of the interval over trainings.

    Args:
        difference: New system minus old, from :func:`compare` or :func:`families`.
        margin: Points of WER that the new system may be worse.
        by: ``speaker`` to speak of new speakers, ``utterance`` of these; none takes speakers where there are two or more.

    Raises:
        InputError: if the margin is no number from 0 on.
    """
    need_margin(margin)
    if by is None:
        by = "utterance" if math.isnan(difference.speaker_interval.low) else "speaker"
    interval = difference.speaker_interval if by == "speaker" else difference.interval
    found = _verdict(difference.points, interval, margin, difference.utterances, "utterances of this kind")
    if isinstance(difference, Families):
        trained = _verdict(difference.points, difference.trainings, margin, difference.trainings.units, "trainings of each")
        if found.kind != trained.kind:
            found = found if found.kind == "INCONCLUSIVE" else trained if trained.kind == "INCONCLUSIVE" else found
    return found


def judge_counts(
    errors_U: Ints, words_U: Ints, speakers: Sequence[str], margin: float = MARGIN, resamples: int = 1000, seed: int = 0
) -> tuple[float, Verdict]:
    """The difference in points and the verdict of :func:`judge`, from counts alone: of many pairs, where no test is asked for.

    Args:
        errors_U: Errors of the new system minus those of the old one, of each utterance.
        words_U: Words of each.
        speakers: Who said each.
        margin: Points of WER that the new system may be worse.
        resamples: Bootstrap resamples.
        seed: Of the resamples.
    """
    who, index_U = np.unique(np.asarray(speakers), return_inverse=True)
    by: By = "speaker" if len(who) > 1 else "utterance"
    units = [np.bincount(index_U, values, len(who)).astype(np.int64) if by == "speaker" else values for values in (errors_U, words_U)]
    found = ratio_interval(units[0], units[1], by=by, resamples=resamples, seed=seed)
    points = 100 * float(errors_U.sum() / words_U.sum())
    interval = replace(found, low=100 * found.low, high=100 * found.high)
    return points, _verdict(points, interval, margin, len(errors_U), "utterances of this kind")


def _verdict(points: float, interval: Interval, margin: float, units: int, what: str) -> Verdict:
    seen = f"{points:+.2f} points [{interval.low:+.2f}, {interval.high:+.2f}] ({interval.scope}), margin {margin:g}"
    if interval.high <= margin:
        return Verdict("OK", margin, interval, None, f"OK: {seen}; worse by more than the margin is ruled out")
    if interval.low > margin:
        return Verdict("REGRESSED", margin, interval, None, f"REGRESSED: {seen}; worse by more than the margin")
    if math.isnan(interval.low):
        return Verdict("INCONCLUSIVE", margin, interval, None, f"INCONCLUSIVE: {points:+.2f} points; {interval.warning}")
    distance = abs(points - margin)
    half = interval.high - points if points < margin else points - interval.low
    # the width falls with the root of the number
    needed = math.ceil(units * (half / distance) ** 2) if distance > 1e-9 else None
    more = f"about {needed:,} {what} would decide, {units:,} did not" if needed else "no number decides"
    return Verdict("INCONCLUSIVE", margin, interval, needed, f"INCONCLUSIVE: {seen}; {more}")


def strata(a: Scores, b: Scores, labels: Sequence[str], resamples: int = 1000, seed: int = 0) -> pd.DataFrame:
    """The difference in each stratum of the utterances, p-values adjusted by Holm's method over all of them.

    Args:
        a: The system compared against.
        b: The system in question.
        labels: The stratum of each utterance (U).
        resamples: Bootstrap resamples.
        seed: Of the resamples.

    Returns:
        One row a stratum: stratum, utterances, words, wer_a, wer_b (fractions), points, low, high (these speakers), p, p_holm and
        warning. In strata of fewer than :data:`SMALL` utterances interval and p are ``nan``.
    """
    rows = []
    for label, chosen in split(labels):
        in_a, in_b = a.only(chosen), b.only(chosen)
        row: dict[str, Any] = {"stratum": label, "utterances": len(chosen), "words": in_a.words, "wer_a": in_a.wer, "wer_b": in_b.wer}
        if len(chosen) < SMALL:
            row |= {"points": 100 * (in_b.wer - in_a.wer), "low": math.nan, "high": math.nan, "p": math.nan}
            row |= {"warning": f"{len(chosen)} utterances are too few"}
        else:
            d = compare(in_a, in_b, resamples, seed)
            row |= {"points": d.points, "low": d.low, "high": d.high, "p": d.p, "warning": d.p_warning}
        rows.append(row)
    for row, adjusted in zip(rows, holm([row["p"] for row in rows]), strict=True):
        row["p_holm"] = adjusted
    columns = ["stratum", "utterances", "words", "wer_a", "wer_b", "points", "low", "high", "p", "p_holm", "warning"]
    return pd.DataFrame(rows, columns=columns)
