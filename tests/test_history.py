"""What a live view keeps of the events: bounded, with its peaks, and right after a resume."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from browser import step_event, validation_event

from speechlab.history import MOST_POINTS, History


def start(**values):
    return {"kind": "start", "time": 1.0, "steps": 100, "epochs": 1, "resumed_from": None, **values}


def test_history_event_by_event_equals_all_at_once():
    events = [start(), *(step_event(s, 100) for s in range(1, 60)), validation_event(59)]
    one, many = History(), History()
    one.add(events)
    for event in events:
        many.add([event])
    pd.testing.assert_frame_equal(one.curves, many.curves)
    assert one.step == many.step == 59
    assert one.remaining == pytest.approx(many.remaining) == pytest.approx(4.1)


def test_history_forgets_what_a_resume_repeats():
    history = History()
    history.add(
        [start(), *(step_event(s) for s in range(1, 41)), validation_event(20), validation_event(40), {"kind": "stopped", "step": 40}]
    )
    assert history.ended
    rows = history.add([start(resumed_from=30), step_event(31)])
    assert rows is None, "curves must be drawn afresh"
    assert list(history.curves.step) == [*range(1, 32)]
    assert [v["step"] for v in history.validations] == [20]
    assert history.state == "running"
    history.add([start()])
    assert history.step == 0
    assert not history.validations


def test_history_is_bounded_and_keeps_peaks():
    history = History()
    for chunk in range(20):
        events = [step_event(s, 10_000) for s in range(1 + 500 * chunk, 501 + 500 * chunk)]
        if chunk == 3:
            events[77]["loss"] = 99.0
        history.add(events)
    assert len(history.curves) <= MOST_POINTS
    assert history.curves.loss.max() == 99
    assert history.step == 10_000
    assert np.diff(history.curves.step).min() > 0


def test_only_the_last_validation_keeps_its_clips():
    history = History()
    history.add([validation_event(1), validation_event(2)])
    assert [len(v["samples"]) for v in history.validations] == [0, 4]


def test_history_takes_steps_back_when_only_the_workers_restarted():
    history = History()
    history.add([start(), *(step_event(s) for s in range(1, 11))])
    assert history.add([step_event(8, loss=7.0)]) is None
    assert list(history.curves.step) == [*range(1, 9)]
    assert history.curves.loss.iloc[-1] == 7
