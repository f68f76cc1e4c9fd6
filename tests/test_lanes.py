"""Whose turn it is: by property, over any requests that come at any time."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from speechlab.lanes import Lanes

MOST = 60.0
REQUESTS = st.lists(
    st.tuples(st.integers(0, 6), st.sampled_from("ab"), st.lists(st.floats(0.1, 90.0), min_size=1, max_size=12), st.booleans()), max_size=12
)


def drained(requests):
    """Batches, with the number of batches before each request came and how many waited then."""
    lanes, batches, came, waited = Lanes(MOST), [], {}, {}
    coming = sorted(enumerate(requests), key=lambda r: r[1][0])
    while coming or lanes:
        while coming and coming[0][1][0] <= len(batches):
            id, (_, model, seconds, alone) = coming.pop(0)
            lanes.add(id, model, [(s, (i, s)) for i, s in enumerate(seconds)], alone=alone)
            came[id] = len(batches)
        if lanes:
            waited[len(batches)] = {id for id, lane in lanes._ring.items()}
            batches.append(lanes.take())
        elif coming:  # nothing to do until then
            batches.append((None, []))
    return batches, came, waited


@given(REQUESTS)
@settings(deadline=None, max_examples=150)
def test_every_passage_is_given_once_in_order_and_nobody_waits_long(requests):
    batches, came, waited = drained(requests)
    for id, (_, _, seconds, _) in enumerate(requests):
        given_ = [item for _, batch in batches for other, item in batch if other == id]
        assert given_ == list(enumerate(seconds))
    for model, batch in batches:
        ids = {id for id, _ in batch}
        assert all(requests[id][1] == model for id in ids)
        assert len(batch) <= 1 or len(batch) * max(s for _, (_, s) in batch) <= MOST
        assert len(ids) <= 1 or not any(requests[id][3] for id in ids)
        firsts = [id for id, (i, _) in batch if i == 0]
        assert all(sum(other == id for other, _ in batch) == 1 for id in firsts), "the first passage goes without its next"
    for n, who in waited.items():
        for id in who:  # whoever waits is heard within as many batches as requests wait with it
            assert any(other == id for _, batch in batches[n : n + len(who)] for other, _ in batch)


def test_a_long_recording_does_not_hold_up_a_short_one():
    lanes = Lanes(MOST)
    lanes.add(1, "a", [(20.0, n) for n in range(100)])
    lanes.take()
    lanes.add(2, "a", [(2.0, "short")])
    assert (2, "short") in lanes.take()[1]
    in_line = [(1, n) for n in range(100)] + [(2, "short")]  # the negative control: first come, first served
    assert in_line.index((2, "short")) // 3 > 30


def test_what_is_full_and_what_is_dropped():
    lanes = Lanes(MOST)
    assert not lanes.full() and len(lanes) == 0
    lanes.add(1, "a", [(30.0, "x")])
    lanes.add(2, "b", [(40.0, "y")])
    assert not lanes.full(), "the other model's passages are no reason to begin"
    lanes.add(3, "a", [(30.0, "z")])
    assert lanes.full() and len(lanes) == 3
    lanes.drop(1)
    lanes.drop(99)
    assert lanes.take() == ("b", [(2, "y")]) and lanes.take() == ("a", [(3, "z")])
    lanes.add(4, "a", [(1.0, "once more")], alone=True)
    assert lanes.full(), "for whom nobody else may come, nothing is waited"
    lanes.take()
    with pytest.raises(IndexError):
        lanes.take()
