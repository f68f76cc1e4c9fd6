"""Thinned curves: few points whatever the length, no peak lost, the same however they were read."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from speechlab.decimation import DENSE, Curves, bucket


def thinned(losses, start: int = 1) -> list:
    """Points of a curve, read in one go."""
    curves = Curves()
    points = [p for step, loss in enumerate(losses, start) for p in curves.add(step, step * 100, {"loss": loss})]
    return points + curves.rest


def test_buckets_follow_each_other_without_gaps_and_grow():
    step, widths = 1, []
    while step < 100_000:
        first, last = bucket(step)
        assert first == step and bucket(last) == (first, last)
        widths.append(last - first + 1)
        step = last + 1
    assert widths == sorted(widths) and widths[: DENSE + 1] == [1] * DENSE + [2]
    assert all(bucket(s)[1] - bucket(s)[0] <= s / DENSE for s in range(1, 100_000, 7)), "a part of 250 of the run so far"


@pytest.mark.parametrize(("steps", "most"), [(250, 250), (750, 750), (10_000, 2500), (100_000, 4100), (1_000_000, 5800)])
def test_a_curve_has_some_thousands_of_points_and_all_its_peaks(steps, most):
    rng = np.random.default_rng(steps)
    losses = rng.normal(1, 0.1, steps)
    peaks = rng.choice(steps, 20, replace=False)
    losses[peaks] += 50
    points = thinned(losses.tolist())
    assert len(points) <= most
    kept = {step: value for _, value, _, step in points}
    assert all(kept[int(step) + 1] == losses[step] for step in peaks if bucket(int(step) + 1) not in _shared(peaks))
    assert min(kept.values()) == losses.min() and max(kept.values()) == losses.max()
    assert all(losses[step - 1] == value and when == step * 100 for _, value, when, step in points), "measured points, none made up"
    assert [p[3] for p in points] == sorted(p[3] for p in points)
    every_nth = losses[:: max(steps // most, 1)]
    assert steps < 10_000 or (every_nth > 25).sum() < (np.array(list(kept.values())) > 25).sum(), "each n-th step loses peaks"


def _shared(peaks) -> set:
    """Buckets with two peaks or more, of which one alone is the highest."""
    first = [bucket(int(step) + 1) for step in peaks]
    return {b for b in first if first.count(b) > 1}


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.floats(-10, 10), min_size=1, max_size=400),
    st.lists(st.integers(0, 400), max_size=12),
    st.integers(1, 5000),
)
def test_in_one_go_or_in_pieces_it_keeps_the_same(losses, stops, start):
    whole = thinned(losses, start)
    curves, points = Curves(), []
    for i, loss in enumerate(losses):
        if i in stops:  # kept as JSON, and gone on with by another process
            curves = Curves(json.loads(json.dumps(curves.held)))
        points += curves.add(start + i, (start + i) * 100, {"loss": loss})
    assert points + curves.rest == whole


def test_steps_that_are_repeated_end_the_bucket():
    curves = Curves()
    assert [p for step in range(1003, 1006) for p in curves.add(step, step, {"loss": float(step)})] == []
    assert curves.add(800, 1, {"loss": 7.0}) == [("loss", 1003.0, 1003, 1003), ("loss", 1005.0, 1005, 1005)]
    assert curves.rest == [("loss", 7.0, 1, 800)]
    assert curves.close() == [("loss", 7.0, 1, 800)] and curves.held == {} and curves.rest == []


def test_curves_have_peaks_of_their_own_and_may_lack_a_step():
    curves = Curves()
    curves.add(1003, 1, {"loss": 1.0, "norm": 5.0})
    curves.add(1004, 2, {"norm": 9.0})
    curves.add(1005, 3, {"loss": 0.5, "norm": 7.0})
    assert curves.rest == [("loss", 1.0, 1, 1003), ("norm", 5.0, 1, 1003), ("norm", 9.0, 2, 1004), ("loss", 0.5, 3, 1005)]
