"""Latency against numpy, deadlines against scoring with emptied hypotheses."""

from __future__ import annotations

import dataclasses
import math
import re

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from counts import RAW, assert_complete, fuzz, some_scores
from hypothesis import given, settings
from hypothesis import strategies as st

from speechlab.errors import InputError
from speechlab.latency import deadline, deadline_curve, measure, percentile
from speechlab.scoring import Scores, score

SENTENCE = st.lists(st.sampled_from(["a", "b", "c"]), max_size=5).map(" ".join)
CLIPS = st.lists(st.tuples(SENTENCE, SENTENCE, st.sampled_from([0.1, 0.2]) | st.floats(0, 10)), min_size=1, max_size=12)
BUDGETS = st.tuples(st.floats(0, 12), st.floats(0, 12)).map(sorted)


def scored(clips, hypothesis=lambda ref, hyp: hyp) -> tuple[Scores, np.ndarray]:
    return score([r for r, _, _ in clips], [hypothesis(r, h) for r, h, _ in clips], RAW), np.array([t for _, _, t in clips])


# --- percentiles and real time ---


@settings(deadline=None)
@given(st.lists(st.floats(0, 100), min_size=1, max_size=300), st.sampled_from([50, 95, 99, 100]))
def test_percentiles_are_clips_as_numpy_has_them(values, percent):
    found = percentile(values, percent)
    assert found in values
    assert np.mean(np.array(values) <= found) >= percent / 100 - 1e-12  # as a budget it is met by so many
    assert np.mean(np.array(values) < found) < percent / 100
    share = percent / 100
    if abs(share * len(values) - round(share * len(values))) > 1e-9 or share * len(values) == round(share * len(values)):
        assert found == np.quantile(values, share, method="inverted_cdf")


def test_a_hundred_clips_have_a_99th_percentile_that_is_not_the_slowest():
    values = np.random.default_rng(0).permutation(np.arange(1.0, 101))
    few, enough = measure(values[:99], np.ones(99)), measure(values, np.ones(100))
    assert few.p99 == few.slowest and "only 99 clips" in few.warning
    assert (enough.p50, enough.p95, enough.p99, enough.slowest, enough.warning) == (50, 95, 99, 100, "")


def test_real_time_factors_are_of_totals():
    found = measure([1.0, 1.0], [1.0, 9.0])
    assert (found.rtf, found.rtfx) == (0.2, 5.0)  # the mean of the clips' would be 0.56 and 5
    assert (found.clips, found.audio, found.processing) == (2, 10, 2)
    assert measure([3.0, 1.0], [1.0, 9.0]).rtfx == 2.5  # their mean would be 4.67
    assert measure([0.0], [1.0]).rtfx == math.inf


# --- deadlines ---


@settings(deadline=None)
@given(CLIPS, st.floats(0, 12))
def test_deadline_wer_is_the_wer_of_emptied_hypotheses(clips, budget):
    scores, times = scored(clips)
    emptied = score([r for r, _, _ in clips], [h if t <= budget else "" for _, h, t in clips], RAW)
    found = deadline(scores, times, budget, resamples=20)
    assert found.wer == pytest.approx(emptied.wer, nan_ok=True)
    assert (found.low, found.high) == pytest.approx((emptied.interval(20).low, emptied.interval(20).high), nan_ok=True)
    met = [i for i, t in enumerate(times) if t <= budget]
    assert (found.met, found.words_met, found.words) == (len(met), scores.only(met).words, scores.words)
    assert found.met_wer == pytest.approx(scores.only(met).wer, nan_ok=True)
    assert found.coverage == len(met) / len(clips)


@settings(deadline=None)
@given(CLIPS, BUDGETS)
def test_more_time_never_covers_less(clips, budgets):
    scores, times = scored(clips)
    short, long = (deadline(scores, times, budget, resamples=1) for budget in budgets)
    assert short.coverage <= long.coverage and short.words_met <= long.words_met


@settings(deadline=None)
@given(CLIPS, BUDGETS)
def test_more_time_never_costs_words_where_no_answer_is_worse_than_none(clips, budgets):
    scores, times = scored(clips, lambda ref, hyp: " ".join(hyp.split()[: len(ref.split())]))
    assert (scores.errors_U <= scores.words_U).all()  # so it is where a hypothesis is no longer than its reference
    if scores.words:
        short, long = (deadline(scores, times, budget, resamples=1) for budget in budgets)
        assert long.wer <= short.wer <= 1


def test_with_many_insertions_more_time_can_cost_words():
    """Negative control of the property above, and why it is not claimed of all."""
    scores = score(["a"], ["x y z"], RAW)
    assert (deadline(scores, [1.0], 0.5).wer, deadline(scores, [1.0], 1.0).wer) == (1.0, 3.0)


@settings(deadline=None)
@given(CLIPS)
def test_without_a_deadline_it_is_the_plain_wer(clips):
    scores, times = scored(clips)
    found = deadline(scores, times, math.inf, resamples=20)
    assert (found.coverage, found.met) == (1, len(clips))
    assert found.wer == pytest.approx(scores.wer, nan_ok=True) and found.met_wer == pytest.approx(scores.wer, nan_ok=True)
    assert (found.low, found.high) == pytest.approx((scores.interval(20).low, scores.interval(20).high), nan_ok=True)


def test_those_in_time_flatter():
    """Where what is slow is wrong, the WER of those in time falls with the budget while deadline-WER rises."""
    refs, hyps = fuzz(200, 0.3, 4)
    scores = score(refs, hyps, RAW)
    times = scores.errors_U / np.maximum(scores.words_U, 1) + 0.05
    tight, loose = (deadline(scores, times, budget) for budget in (0.2, 0.6))
    assert tight.met_wer < loose.met_wer < tight.met_high + 1 and tight.wer > loose.wer > scores.wer > tight.met_wer
    theirs = scipy.stats.binomtest(tight.met, 200).proportion_ci(method="wilson")
    assert (tight.coverage_low, tight.coverage_high) == (theirs.low, theirs.high) and theirs.low < tight.coverage < theirs.high
    assert tight.met_low < tight.met_wer < tight.met_high and tight.low < tight.wer < tight.high


def test_nobody_in_time():
    found = deadline(some_scores(), np.ones(60), 0.5)
    assert (found.met, found.coverage, found.wer, found.words_coverage) == (0, 0, 1, 0)
    assert math.isnan(found.met_wer) and math.isnan(found.met_low) and found.warning == "no utterance met it"
    few = deadline(some_scores(), np.arange(60) / 10, 0.45)
    assert few.met == 5 and "only 5 utterances" in few.warning


def test_a_curve_is_its_deadlines_in_order():
    scores, times = some_scores(), np.random.default_rng(2).lognormal(-1, 0.5, 60)
    table = deadline_curve(scores, times, [1.0, 0.2, 0.5])
    rows = [dataclasses.asdict(deadline(scores, times, budget)) for budget in (0.2, 0.5, 1.0)]
    pd.testing.assert_frame_equal(table, pd.DataFrame(rows))
    assert table.coverage.is_monotonic_increasing and 0 < table.coverage[0] < 1


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda s: measure([], []), "The latency of clips"),
        (lambda s: measure([1.0, math.nan], [1, 1]), "nan for clip 1"),
        (lambda s: measure([1.0, math.inf], [1, 1]), "inf for clip 1"),
        (lambda s: measure([1.0, -1.0], [1, 1]), "-1.0 for clip 1"),
        (lambda s: measure([[1.0]], [1]), "shape (1, 1)"),
        (lambda s: measure([1.0], [1, 1]), "1 latencies, 2 durations"),
        (lambda s: measure([1.0], [0]), "0 s of audio"),
        (lambda s: percentile([1.0], 0), "no such percentile"),
        (lambda s: percentile([1.0], 99.9), "99.9"),
        (lambda s: deadline(s, [1.0], 1.0), "1 latencies, 60 utterances"),
        (lambda s: deadline(s, np.ones(60), math.nan), "The budget"),
        (lambda s: deadline(s, np.ones(60), -1), "The budget"),
        (lambda s: deadline_curve(s, np.ones(60), []), "no budgets"),
    ],
)
def test_bad_input_is_refused_with_a_remedy(call, said):
    with pytest.raises(InputError, match=re.escape(said)) as e:
        call(some_scores())
    assert_complete(e)
