"""What a live view keeps of the events: bounded, with its peaks, and right after a resume."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from browser import make_run, step_event, validation_event

from speechlab import history as module
from speechlab.history import BEHIND, MOST_POINTS, Feed, History
from speechlab.runs import Run


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


def test_all_who_look_at_a_run_share_one_reading(tmp_path):
    run = make_run(tmp_path, steps=20, epochs=1, end=False)
    feed = Feed.of(run)
    assert Feed.of(Run(run.path)) is feed
    version = feed.look()
    assert version == 1 and feed.since(0) is None, "who comes draws all"
    assert feed.since(version)["step"] == []
    for step in (21, 22):
        run.append(step_event(step))
        feed.look()
    assert feed.since(version)["step"] == [21, 22]
    assert feed.since(version + 1)["step"] == [22]
    run.append(start(resumed_from=10))
    feed.look()
    assert feed.since(version + 1) is None, "steps were taken back"
    for step in range(11, 11 + BEHIND + 1):
        run.append(step_event(step))
        feed.look()
    assert feed.since(feed.version - BEHIND) is not None
    assert feed.since(feed.version - BEHIND - 1) is None, "too far behind"


def test_a_run_that_was_made_anew_has_a_feed_of_its_own(tmp_path):
    run = make_run(tmp_path, steps=2, epochs=1)
    feed = Feed.of(run)
    run.path.rename(tmp_path / "away")
    again = make_run(tmp_path, steps=3, epochs=1, name=run.id)
    assert Feed.of(again) is not feed


def test_a_file_of_events_that_is_another_is_read_anew(tmp_path):
    run = make_run(tmp_path, steps=30, epochs=1, end=False)
    feed = Feed(run)
    version = feed.look()
    other = make_run(tmp_path / "other", steps=40, epochs=1, end=False)
    (other.path / "events.jsonl").replace(run.path / "events.jsonl")
    feed.look()
    assert (feed.history.step, feed.history.clips) == (40, 40 * 30), "nothing of the first file is counted"
    assert feed.since(version) is None, "who looks draws afresh"


def test_a_file_of_events_that_lost_its_end_is_counted_once(tmp_path):
    run = make_run(tmp_path, steps=30, epochs=1, end=False)
    file = run.path / "events.jsonl"
    whole = file.read_bytes()
    file.write_bytes(whole + b'{"kind": "st')
    feed = Feed(run)
    feed.look()
    file.write_bytes(whole)
    feed.look()
    assert (feed.history.step, feed.history.clips) == (30, 30 * 30)


@pytest.mark.parametrize("nonsense", [float("nan"), float("inf"), "x", None, True])
def test_what_is_no_number_counts_nothing(nonsense):
    history = History()
    history.add([start(), step_event(1), {**step_event(2), "clips": nonsense, "step_seconds": nonsense}])
    assert (history.clips, history.seconds) == (30, step_event(1)["step_seconds"])


def test_a_text_that_all_show_is_made_once_until_its_sign_changes(tmp_path):
    feed, made = Feed.of(make_run(tmp_path, steps=1, epochs=1)), []

    def make():
        made.append(1)
        return str(len(made))

    assert [feed.once("head", sign, make) for sign in (1, 1, 2, 2)] == ["1", "1", "2", "2"]


def test_a_long_run_is_read_piece_by_piece_and_comes_to_the_same(tmp_path, monkeypatch):
    run = make_run(tmp_path, steps=300, epochs=3)
    whole = Feed(run)
    whole.look()
    monkeypatch.setattr(module, "AT_ONCE", 2000)
    pieces, seen = Feed(run), []
    while not seen or seen[-1] != pieces.version:
        seen.append(pieces.version)
        pieces.look()
    assert len(seen) > 20
    pd.testing.assert_frame_equal(pieces.history.curves, whole.history.curves)
    assert pieces.history.validations == whole.history.validations
