"""How long a clip takes, and what a deadline does to the word error rate.

Latency is wall-clock time from a clip's last sample to its text, measured one clip at a time (batch 1), in seconds.

Notable: a WER over those clips alone that met a budget flatters. What is slow is long, noisy or hard, so a tight budget drops
just the clips that are got wrong. Here coverage, WER of those that met, and deadline-WER stand side by side; in the last, a
clip that missed counts as if all its words had been deleted, which is what a listener who waits no longer gets.

Not covered: streaming (when a word first appears, and whether it stays); load: several clips at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd
import scipy.stats  # type: ignore[import-untyped]

from speechlab.errors import InputError
from speechlab.scoring import Scores
from speechlab.statistics import Floats, ratio_interval
from speechlab.units import Seconds

PERCENTS = (50, 95, 99)
ENOUGH = 100  # clips under which the 99th percentile is the slowest one


@dataclass(frozen=True)
class Latency:
    """Latency over clips.

    Attributes:
        clips: How many.
        audio: Seconds of audio in all.
        processing: Seconds of latency in all.
        p50: Median, in seconds; each percentile is the latency of a clip, see :func:`percentile`.
        p95: 95th percentile.
        p99: 99th percentile.
        slowest: The longest.
        warning: What limits the percentiles; empty if nothing does.
    """

    clips: int
    audio: Seconds
    processing: Seconds
    p50: Seconds
    p95: Seconds
    p99: Seconds
    slowest: Seconds
    warning: str = ""

    @property
    def rtf(self) -> float:
        """Real-time factor: processing over audio, totals; below 1 is faster than real time."""
        return self.processing / self.audio

    @property
    def rtfx(self) -> float:
        """Its inverse, audio over processing, as the Open ASR leaderboard has it (there at large batches); ``inf`` if it took no time."""
        return self.audio / self.processing if self.processing else float("inf")


def measure(latency_U: npt.ArrayLike, duration_U: npt.ArrayLike) -> Latency:
    """Percentiles and real-time factors.

    Args:
        latency_U: Seconds that each clip took.
        duration_U: Seconds of audio of each clip.

    Raises:
        InputError: if there is no clip, the two differ in length, a latency is no number from 0 on, or there is no audio.
    """
    latencies, durations = _seconds(latency_U, "latency"), _seconds(duration_U, "duration")
    if len(latencies) != len(durations):
        got = f"{len(latencies)} latencies, {len(durations)} durations"
        raise InputError("Latencies and durations differ in number.", got=got, expected="one of each for every clip", do="join them by id")
    if not durations.sum():
        raise InputError("The clips have no duration.", got="0 s of audio", expected="more", do="take the manifest's durations, in seconds")
    clips = len(latencies)
    warning = f"only {clips} clips: under {ENOUGH} the 99th percentile is the slowest one" if clips < ENOUGH else ""
    p50, p95, p99 = (percentile(latencies, percent) for percent in PERCENTS)
    return Latency(clips, float(durations.sum()), float(latencies.sum()), p50, p95, p99, float(latencies.max()), warning)


def percentile(latency_U: npt.ArrayLike, percent: int) -> Seconds:
    """The shortest latency of a clip that so many per cent of the clips do not exceed.

    An order statistic (Hyndman & Fan, 1996, type 1; numpy's ``inverted_cdf``): no value between two clips is made up, and as
    a budget it is met by at least that share.

    Args:
        latency_U: Seconds.
        percent: From 1 to 100.

    Raises:
        InputError: if there is no clip, a latency is no number from 0 on, or the percent is out of range.
    """
    if not 1 <= percent <= 100 or percent != int(percent):
        raise InputError("There is no such percentile.", got=percent, expected="a whole number from 1 to 100", do="for example 95")
    ordered = np.sort(_seconds(latency_U, "latency"))
    return float(ordered[-(-int(percent) * len(ordered) // 100) - 1])  # in whole numbers: 0.99 * 100 might round up


def _seconds(values: npt.ArrayLike, name: str) -> Floats:
    found = np.asarray(values, np.float64)
    bad = np.flatnonzero(~(np.isfinite(found) & (found >= 0)))
    if found.ndim != 1 or not len(found) or len(bad):
        got = f"{found[bad[0]]} for clip {bad[0]}" if found.ndim == 1 and len(bad) else f"shape {found.shape}"
        raise InputError(f"The {name} of clips cannot be used.", got=got, expected="seconds, 0 or more, for each of one clip or more",
                         do="of a clip that never came leave the hypothesis empty")  # fmt: skip
    return found


@dataclass(frozen=True)
class Deadline:
    """What is left of a system under a time budget; intervals are 95 % and speak of these speakers.

    Attributes:
        budget: Seconds.
        utterances: How many there are.
        met: How many took no longer than the budget.
        coverage: Share of the utterances that met it.
        coverage_low: Its interval (Wilson, 1927).
        coverage_high: Upper end.
        words: Reference words.
        words_met: Of them in utterances that met it.
        words_coverage: Share of the words; it has no interval of its own, for words come and go with their utterance.
        met_wer: WER of those that met it: too good, since what misses is hard; ``nan`` if none did.
        met_low: Its interval.
        met_high: Upper end.
        wer: Deadline-WER: an utterance that missed has all its words deleted.
        low: Its interval.
        high: Upper end.
        warning: What limits the interval of those that met it; empty if nothing does.
    """

    budget: Seconds
    utterances: int
    met: int
    coverage: float
    coverage_low: float
    coverage_high: float
    words: int
    words_met: int
    words_coverage: float
    met_wer: float
    met_low: float
    met_high: float
    wer: float
    low: float
    high: float
    warning: str


def deadline(scores: Scores, latency_U: npt.ArrayLike, budget: Seconds, resamples: int = 1000, seed: int = 0) -> Deadline:
    """Coverage, WER of those that met a budget, and deadline-WER.

    With a longer budget coverage cannot fall. Deadline-WER cannot rise unless an utterance has more errors than words: of one
    with so many insertions, no answer is a better answer. With no end to the budget it is the plain WER.

    Args:
        scores: Of all utterances (U).
        latency_U: Seconds that each took, in the same order.
        budget: Seconds; ``inf`` is no deadline.
        resamples: Bootstrap resamples of the intervals.
        seed: Of the resamples.

    Raises:
        InputError: if there is not a latency for each utterance, one is no number from 0 on, or neither is the budget.
    """
    latencies = _seconds(latency_U, "latency")
    if len(latencies) != len(scores):
        got = f"{len(latencies)} latencies, {len(scores)} utterances"
        raise InputError("There is not a latency for each utterance.", got=got, expected="the same number", do="join them by id")
    if not budget >= 0:
        raise InputError("The budget cannot be used.", got=f"{budget}", expected="seconds, 0 or more", do="200 ms are 0.2")
    met_U = latencies <= budget
    met, words = int(met_U.sum()), scores.words
    share = scipy.stats.binomtest(met, len(scores)).proportion_ci(method="wilson")
    those = scores.only(np.flatnonzero(met_U))
    inside = those.interval(resamples, seed)
    errors_U = np.where(met_U, scores.errors_U, scores.words_U)
    over_all = ratio_interval(errors_U, scores.words_U, by="utterance", resamples=resamples, seed=seed, least=0.0)
    return Deadline(
        budget=float(budget),
        utterances=len(scores),
        met=met,
        coverage=met / len(scores),
        coverage_low=float(share.low),
        coverage_high=float(share.high),
        words=words,
        words_met=those.words,
        words_coverage=those.words / words if words else float("nan"),
        met_wer=those.wer,
        met_low=inside.low,
        met_high=inside.high,
        wer=int(errors_U.sum()) / words if words else float("nan"),
        low=over_all.low,
        high=over_all.high,
        warning="no utterance met it" if not met else inside.warning,
    )


def deadline_curve(
    scores: Scores, latency_U: npt.ArrayLike, budgets: Sequence[Seconds], resamples: int = 1000, seed: int = 0
) -> pd.DataFrame:
    """Budgets one after another.

    Args:
        scores: Of all utterances (U).
        latency_U: Seconds that each took, in the same order.
        budgets: Seconds.
        resamples: Bootstrap resamples of the intervals.
        seed: Of the resamples; the same for all budgets, so that the curve is smooth.

    Returns:
        One row a budget, ascending, with the columns of :class:`Deadline`.

    Raises:
        InputError: as for :func:`deadline`, or if there is no budget.
    """
    if not len(budgets):
        raise InputError("There are no budgets.", got="none", expected="seconds, one or more", do="for example [0.1, 0.2, 0.5, 1.0]")
    return pd.DataFrame([asdict(deadline(scores, latency_U, budget, resamples, seed)) for budget in sorted(budgets)])
