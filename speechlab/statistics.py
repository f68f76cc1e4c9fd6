"""Intervals and tests for error counts that come in units: utterances, or the speakers who said them.

Arrays of counts in, numbers out; knows neither text nor a model. An interval or a test speaks either of *these speakers*
(utterances are what varies) or of *new speakers* (speakers are). Where speakers differ, the first is far too narrow as a
statement about the second: resampling utterances covered 50 to 69 % where 95 % was claimed (``tests/bench_statistics.py``).

Units, of one kind in each call: K of them, with ``errors_K`` and ``words_K``. Of a difference between two systems,
``errors_K`` is one system's errors minus the other's.

Not covered: more than two systems at once, models with several sources of variation (speaker by recording).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import scipy.stats  # type: ignore[import-untyped]
from numpy.typing import NDArray

from speechlab.errors import InputError, did_you_mean

By = Literal["utterance", "speaker", "training"]
Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

SCOPES = {"utterance": "these speakers", "speaker": "new speakers", "training": "new trainings"}  # of an interval, by what varies
# units from which a percentile bootstrap covers what it claims; with fewer it is too narrow (of 40 speakers 92.8 %), Student's t is not
ENOUGH = {"utterance": 30, "speaker": 100}
FEW = 20  # units under which the width itself is uncertain
EXACT = 12  # up to so many units all 2^12 sign patterns are enumerated
FLIPS = 10_000  # sign patterns drawn where there are more units
BLOCK = 2**22  # random numbers held at a time (32 MiB as int64)
SEEDS = 3  # trainings of a family under which its seeds say little
GOOD = 2  # words right in both systems that end a segment of MAPSSWE, as in NIST's sc_stats


@dataclass(frozen=True)
class Interval:
    """An interval and what it speaks of.

    Attributes:
        low: Lower end, in the unit of what it belongs to (a fraction for a rate, points for a difference); ``nan`` if it cannot be had.
        high: Upper end, likewise.
        level: Nominal coverage, such as 0.95.
        by: What varies: ``utterance``, ``speaker``, or ``training`` (with another seed).
        units: How many of them there are.
        method: ``bootstrap``, ``cluster-t`` where units are few, or ``welch`` between trainings.
        warning: Why it is missing or should be read with care; empty if neither.
    """

    low: float
    high: float
    level: float
    by: By
    units: int
    method: str = "bootstrap"
    warning: str = ""

    @property
    def scope(self) -> str:
        """Whom it speaks of: ``these speakers``, ``new speakers`` or ``new trainings``."""
        return SCOPES[self.by]


def ratio_interval(
    errors_K: Ints, words_K: Ints, *, by: By, resamples: int = 1000, seed: int = 0, level: float = 0.95, least: float = -math.inf
) -> Interval:
    """Interval of ``sum(errors) / sum(words)`` over units.

    The percentile bootstrap (Bisani & Ney, 2004); under :data:`ENOUGH` units the linearised ratio with Student's t of K - 1
    degrees of freedom (the cluster-robust interval of survey statistics: Cochran, 1977, section 6).

    Args:
        errors_K: Of each unit.
        words_K: Of each unit.
        by: What the units are.
        resamples: How many times the units are drawn anew.
        seed: The same seed gives the same interval.
        level: Nominal coverage, between 0 and 1.
        least: What the ratio cannot fall below: 0 for a rate.

    Returns:
        Fractions, or ``nan`` with a warning where one unit alone, or no word, leaves nothing to vary.

    Raises:
        InputError: if an argument is out of range.
    """
    if by not in ENOUGH:
        raise InputError("Unknown unit to resample.", got=by, expected="utterance or speaker", do=did_you_mean(str(by), ENOUGH))
    if resamples < 1 or not 0 < level < 1:
        got, expected = f"resamples={resamples}, level={level}", "resamples >= 1, 0 < level < 1"
        raise InputError("No interval can be drawn like this.", got=got, expected=expected, do="for example 1000 and 0.95")
    units = len(words_K)
    if words_K.sum() == 0:
        return Interval(math.nan, math.nan, level, by, units, "none", "there is no reference word, so there is no rate")
    if units == 1:
        warning = f"there is one {by}: how much {by}s differ, and so this interval, cannot be had"
        return Interval(math.nan, math.nan, level, by, units, "none", warning)
    if units < ENOUGH[by]:
        low, high = _cluster_t(errors_K, words_K, level)
        warning = f"only {units} {by}s: how wide the interval must be is itself uncertain under {FEW}" if units < FEW else ""
        return Interval(max(low, least), high, level, by, units, "cluster-t", warning)
    tail = (1 - level) / 2
    low, high = np.nanquantile(_resampled(errors_K, words_K, resamples, seed), [tail, 1 - tail])
    return Interval(float(low), float(high), level, by, units)


def _cluster_t(errors_K: Ints, words_K: Ints, level: float) -> tuple[float, float]:
    units = len(words_K)
    ratio = errors_K.sum() / words_K.sum()
    residual_K = errors_K - ratio * words_K
    error = math.sqrt(units / (units - 1) * float((residual_K**2).sum())) / float(words_K.sum())
    half = float(scipy.stats.t.ppf((1 + level) / 2, units - 1)) * error
    return float(ratio) - half, float(ratio) + half


def _resampled(errors_K: Ints, words_K: Ints, resamples: int, seed: int) -> Floats:
    """Ratios of sums (R) over units drawn with replacement; ``nan`` where no reference word was drawn."""
    rng = np.random.default_rng(seed)
    units = len(words_K)
    totals = []
    for start in range(0, resamples, step := max(1, BLOCK // units)):
        drawn = rng.integers(0, units, (min(step, resamples - start), units))
        totals.append((errors_K[drawn].sum(1), words_K[drawn].sum(1)))
    errors_R, words_R = (np.concatenate(part) for part in zip(*totals, strict=True))
    rates_R: Floats = np.divide(errors_R, words_R, out=np.full(resamples, np.nan), where=words_R > 0)
    return rates_R


def sign_flip(differences_K: Ints, seed: int = 0) -> tuple[float, bool]:
    """Two-sided p of ``|sum of ± differences|`` reaching the observed one, and whether every pattern was enumerated.

    Units that do not differ are left out: their sign changes nothing. Drawn patterns count the observed one
    (Phipson & Smyth, 2010), so p is never 0.
    """
    moved = differences_K[differences_K != 0]
    observed = abs(int(moved.sum()))
    if len(moved) <= EXACT:
        patterns = np.array(list(itertools.product((-1, 1), repeat=len(moved))), np.int64).reshape(2 ** len(moved), len(moved))
        return float(np.mean(np.abs(patterns @ moved) >= observed)), True
    rng = np.random.default_rng(seed)
    reached = 0
    for start in range(0, FLIPS, step := max(1, BLOCK // len(moved))):
        flipped = rng.random((min(step, FLIPS - start), len(moved)), np.float32) < 0.5
        reached += int(np.sum(np.abs(moved.sum() - 2 * (flipped @ moved)) >= observed))
    return (1 + reached) / (1 + FLIPS), False


@dataclass(frozen=True)
class Mapsswe:
    """Result of the matched-pairs sentence-segment word error test; differences are a minus b.

    Attributes:
        segments: How many segments hold an error of either system.
        errors_a: Errors of a in them.
        errors_b: Errors of b in them.
        mean: Of the differences of errors.
        deviation: Their standard deviation.
        z: Of the mean, standard normal if the systems do not differ.
        p: Two-sided.
    """

    segments: int
    errors_a: int
    errors_b: int
    mean: float
    deviation: float
    z: float
    p: float


def mapsswe(operations_a: Sequence[str], operations_b: Sequence[str]) -> Mapsswe:
    """Matched-pairs sentence-segment word error (Gillick & Cox, 1989; Pallett et al., 1990), as NIST's ``sc_stats`` has it.

    An utterance is cut into segments that hold all its errors: one begins at an error of either system and ends where
    :data:`GOOD` words in a row are right in both, or with the utterance. Takes segments as independent, also those of one
    speaker: where speakers differ in how they like the systems, it raises far too many alarms.

    Args:
        operations_a: Of each utterance the alignment of system a, a letter a column: C, S, D, I.
        operations_b: The same of b, against the same references.

    Returns:
        Where no segment differs, ``z`` 0 and ``p`` 1.
    """
    pairs = [pair for a, b in zip(operations_a, operations_b, strict=True) for pair in _segments(a, b)]
    counts = np.array(pairs, np.int64).reshape(-1, 2)
    differences = counts[:, 0] - counts[:, 1]
    mean = float(differences.mean()) if len(pairs) else 0.0
    deviation = float(differences.std(ddof=1)) if len(pairs) > 1 else 0.0
    z = mean / (deviation / math.sqrt(len(pairs))) if deviation else 0.0
    p = float(2 * scipy.stats.norm.sf(abs(z)))
    return Mapsswe(len(pairs), int(counts[:, 0].sum()), int(counts[:, 1].sum()), mean, deviation, z, p)


def _segments(a: str, b: str) -> list[tuple[int, int]]:
    """Errors of a and of b in each segment of an utterance."""
    (right_a, added_a), (right_b, added_b) = _columns(a), _columns(b)
    if len(right_a) != len(right_b):
        got = f"{len(right_a)} and {len(right_b)} reference words"
        raise InputError("Two alignments are not of the same reference.", got=got, expected="the same", do="score both on one set")
    found: list[tuple[int, int]] = []
    errors: list[int] | None = None
    good = 0
    for i in range(len(added_a)):
        here = [added_a[i], added_b[i]]
        if any(here):
            errors = [x + y for x, y in zip(errors or (0, 0), here, strict=True)]
            good = 0
        if i == len(right_a):
            break
        if right_a[i] and right_b[i]:
            good += 1
            if errors and good == GOOD:
                found.append((errors[0], errors[1]))
                errors = None
        else:
            errors = [x + (not y) for x, y in zip(errors or (0, 0), (right_a[i], right_b[i]), strict=True)]
            good = 0
    return [*found, (errors[0], errors[1])] if errors else found


def _columns(operations: str) -> tuple[list[bool], list[int]]:
    """Of each reference word whether it is right, and before each, and after the last, how many words were added."""
    right: list[bool] = []
    added = [0]
    for operation in operations:
        if operation == "I":
            added[-1] += 1
        else:
            right.append(operation == "C")
            added.append(0)
    return right, added


def paired_t(rates_a: Floats, rates_b: Floats) -> float:
    """Two-sided p of Student's paired t-test on utterances' rates (``scipy.stats.ttest_rel``); 1 where none differ.

    The familiar row, beside better ones: it tests the mean of ratios, not the corpus rate, and takes utterances as independent.
    """
    differences = rates_a - rates_b
    if len(differences) < 2 or np.ptp(differences) < 1e-12:  # all differ by the same: t is infinite
        return 1.0 if len(differences) < 2 or abs(differences[0]) < 1e-12 else 0.0
    return float(scipy.stats.ttest_rel(rates_a, rates_b).pvalue)


def welch(rates_a: Sequence[float], rates_b: Sequence[float], level: float = 0.95) -> tuple[Interval, float]:
    """Interval of the difference of two families' mean rates, b minus a, over their trainings, and its p (Welch, 1947).

    Args:
        rates_a: One of each training, on the same clips.
        rates_b: Likewise; their number may differ.
        level: Nominal coverage.

    Returns:
        The interval in the unit of the rates, and the two-sided p; ``nan`` with a warning where a family has one training.
    """
    units = min(len(rates_a), len(rates_b))
    if units < 2:
        few = "a family has one training: how much trainings differ, and so this interval, cannot be had"
        return Interval(math.nan, math.nan, level, "training", units, "none", few), math.nan
    warning = f"{units} trainings of a family: under {SEEDS} say little of what another seed would do" if units < SEEDS else ""
    difference = float(np.mean(rates_b) - np.mean(rates_a))
    if np.ptp(rates_a) == np.ptp(rates_b) == 0:  # equal trainings, which vary in nothing
        return Interval(difference, difference, level, "training", units, "welch", warning), float(difference == 0)
    test = scipy.stats.ttest_ind(rates_b, rates_a, equal_var=False)
    ends = test.confidence_interval(level)
    return Interval(float(ends.low), float(ends.high), level, "training", units, "welch", warning), float(test.pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values over which the chance of any false alarm is kept (Holm, 1979); ``nan`` stay and do not count."""
    p = np.asarray(p_values, np.float64)
    adjusted: Any = np.full(len(p), np.nan)
    known = np.flatnonzero(~np.isnan(p))
    highest = 0.0
    for rank, i in enumerate(known[np.argsort(p[known], kind="stable")]):
        highest = max(highest, min(1.0, (len(known) - rank) * p[i]))
        adjusted[i] = highest
    return [float(value) for value in adjusted]
