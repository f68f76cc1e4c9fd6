"""The page of all runs, without a browser: rows, filter, ticks, and what is said where there is nothing."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import pytest
from browser import EVIL_TEXT, make_run, step_event
from sidelong import evaluated, trained
from test_plots import live_markup

from speechlab import catalogue, door, tags, text
from speechlab.catalogue import Catalogue, Entry
from speechlab.shelf import MOST, Shelf, _Place, _View, ago, run_html, spark_html


@pytest.fixture
def view(tmp_path, monkeypatch):
    """A display of three runs that looks whenever it is told to."""
    monkeypatch.setattr(catalogue, "PERIOD", 0.0)
    make_run(tmp_path, steps=9, name="live", end=False)
    for name in ("first", "second"):
        evaluated(trained(tmp_path, name))
    found = _View(Shelf(Catalogue(tmp_path)))
    found.tick()
    return found


def shown(view: _View) -> list[str]:
    return [place.name.removeprefix("run ").split("-")[0] for place in view._list]


def value(view: _View, id: str) -> str:
    return next(place._text.value for name, place in view._places.items() if name.startswith(id))


def test_live_ones_are_on_top_with_what_is_known_of_them(view):
    assert shown(view)[0] == "live"
    assert "3 runs: 1 running, 2 finished" in view._head.value
    assert "step 9 of 9" in value(view, "live")
    assert "10.00 %" in value(view, "first")
    assert "time left" in value(view, "live")
    assert value(view, "first").count("<svg") == 2


def test_only_what_has_changed_is_written(view, tmp_path):
    written = []
    for place in view._places.values():
        place._text.param.watch(lambda event: written.append(event.obj), "value")
    view.tick()
    assert written == []
    run = next(p for p in tmp_path.iterdir() if p.name == "live")
    catalogue_ = view._shelf.catalogue
    catalogue_.run(run.name).append(step_event(10, 20))
    view.tick()
    assert written == [view._places["live"]._text]
    assert "step 10 of" in value(view, "live")


def test_the_filter_keeps_ticks_and_says_when_nothing_is_left(view):
    tick = next(place.tick for id, place in view._places.items() if id.startswith("first"))
    tick.value = list(tick.options)
    view._shelf.words = "SECOND"
    assert shown(view) == ["second"]
    view._shelf.words = "no such run"
    assert shown(view) == []
    assert "No run holds" in view._foot.value
    view._shelf.words = ""
    assert len(shown(view)) == 3
    assert tick.value


def test_what_is_typed_is_not_sent_back_over_what_was_typed_since(view):
    words, sent = view.layout[1], []
    words.param.watch(sent.append, "value")
    words.value_input = "#b"
    assert view._shelf.words == "#b"
    assert sent == []
    view._shelf.words = "live"  # an address says so
    assert words.value == words.value_input == "live"


def test_two_ticks_lead_to_their_comparison_the_older_first(view):
    places = {id.split("-")[0]: (id, place) for id, place in view._places.items()}
    assert places["live"][1].tick.disabled, "it was not evaluated"
    for _, place in places.values():
        assert place.tick.options == [place.layout.name.removeprefix("run ")], "what a screen reader says of it"
    places["second"][1].tick.value = list(places["second"][1].tick.options)
    assert "tick a second run" in view._tray.value
    places["first"][1].tick.value = list(places["first"][1].tick.options)
    order = [e.id for e in view._shelf.catalogue.look()]
    b, a = sorted((places["first"][0], places["second"][0]), key=order.index)
    assert f'href="compare?a={a}&amp;b={b}"' in view._tray.value
    view._places["live"].tick.value = ["live"]
    assert "3 are ticked" in view._tray.value


def pressed(deed) -> None:
    """What a button does, to its end."""
    if (coming := deed(None)) is not None:
        asyncio.run(coming)


def test_a_run_is_tagged_and_found_by_its_tag(view):
    place = view._places["live"]
    hand = place._hand
    hand._turn(True)
    hand._words.value = "baseline,  v2 new"
    pressed(hand._save)
    view.tick()
    assert "#baseline" in value(view, "live") and "#v2 new" in value(view, "live") and hand.inside.objects == []
    view._shelf.words = "#base"
    assert shown(view) == ["live"]
    hand._turn(True)
    assert hand._words.value == "baseline, v2 new"
    hand._words.value = EVIL_TEXT
    pressed(hand._save)
    assert "A tag cannot be taken" in hand._said.value and "<script>" not in hand._said.value and hand.inside.objects
    view.tick()
    assert "#baseline" in value(view, "live"), "as they were"
    assert "<i>" not in run_html(Entry("a", Path("a"), tags=("<i>",))), "whoever wrote the file"


def test_a_run_is_deleted_after_a_question_and_not_while_it_trains(view, tmp_path):
    hand, run = view._places["live"]._hand, view._shelf.catalogue.run("live")
    hand._turn(True)
    pressed(hand._confirm)
    assert "Delete live with all that is in its directory" in hand._said.value and hand._yes.visible and run.path.exists()
    with run.lock():
        pressed(hand._delete)
        assert "Another process is training run live" in hand._said.value and (run.path / "config.yaml").exists()
    pressed(hand._delete)
    view.tick()
    assert not run.path.exists() and len(shown(view)) == 2, "control"


def test_nothing_is_deleted_through_a_link_or_that_another_run_needs(view, tmp_path):
    (tmp_path / "linked").symlink_to(tmp_path / "live")
    view.tick()
    for id in ("linked", first := next(id for id in view._places if id.startswith("first"))):
        view._places[id]._hand._turn(True)
    pressed(view._places["linked"]._hand._delete)
    assert "through a link" in view._places["linked"]._hand._said.value
    config = tmp_path / "live" / "config.yaml"
    config.write_text(config.read_text().replace("weights: tiny.en", f"weights: {tmp_path / first / 'checkpoints'}"))
    pressed(view._places[first]._hand._delete)
    assert "other runs refer to it" in view._places[first]._hand._said.value
    assert (tmp_path / "live" / "config.yaml").exists() and (tmp_path / first / "config.yaml").exists()


def test_a_reader_has_no_hand_and_an_operator_s_is_asked_again(view, monkeypatch):
    hand, run = view._places["live"]._hand, view._shelf.catalogue.run("live")
    hand._turn(True)
    monkeypatch.setattr(door, "may_change", lambda: False)
    hand._words.value = "mine"
    for deed in (hand._save, hand._confirm, hand._delete):
        hand._tell("")
        pressed(deed)
        assert "Only operators may do this." in hand._said.value
    assert run.path.exists() and tags.read(run.path) == ()
    assert _Place("x", view._shelf.catalogue, print)._hand is None


def test_an_empty_folder_says_what_to_do_and_fills_itself(tmp_path, monkeypatch):
    monkeypatch.setattr(catalogue, "PERIOD", 0.0)
    view = _View(Shelf(Catalogue(tmp_path / "none")))
    view.tick()
    assert "make report" in view._foot.value
    (tmp_path / "none").mkdir()
    make_run(tmp_path / "none", steps=3, epochs=1, name="a")
    view.tick()
    assert shown(view) == ["a"]
    assert "make report" not in view._foot.value
    shutil.rmtree(tmp_path / "none" / "a")
    view.tick()
    assert shown(view) == []
    assert "make report" in view._foot.value


def test_of_very_many_the_first_are_shown_and_the_rest_can_be_found(tmp_path, monkeypatch):
    entries = [Entry(f"run-{i:03d}", tmp_path, "finished") for i in range(MOST + 5)]
    known = Catalogue(tmp_path)
    monkeypatch.setattr(known, "look", lambda: entries)
    view = _View(Shelf(known))
    view.tick()
    assert len(view._list) == MOST
    assert "5 more" in view._foot.value
    view._shelf.words = f"run-{MOST + 4:03d}"
    assert shown(view) == ["run"]


def test_a_small_curve_keeps_its_ends_and_leaves_out_what_is_no_number(tmp_path):
    nan = float("nan")
    curve = spark_html(((1, 4.0), (2, nan), (3, 2.0)), "loss", "#0072b2", "{:.1f}")
    assert 'aria-label="loss from 4.0 to 2.0"' in curve
    assert 'points="0.0,2.0 120.0,28.0"' in curve
    assert "<svg" not in spark_html(((1, nan),), "loss", "#0072b2", "{:.1f}")
    assert "<polyline" in spark_html(((5, 1.0),), "loss", "#0072b2", "{:.1f}"), "one value is a line"


@pytest.mark.parametrize(
    ("gone", "told"),
    [
        (-5, "now"),
        (59, "now"),
        (60, "1 min ago"),
        (3599, "59 min ago"),
        (3600, "1 h ago"),
        (86_400, "24 h ago"),
        (2 * 86_400, "2 days ago"),
    ],
)
def test_times_are_told_without_a_zone(gone, told):
    assert ago(1e9, 1e9 + gone) == told
    assert ago(float("nan")) == "–"


def test_no_text_of_a_run_becomes_markup(tmp_path, monkeypatch):
    entry = Entry(EVIL_TEXT, tmp_path, EVIL_TEXT, model=EVIL_TEXT, question=EVIL_TEXT, note=EVIL_TEXT, wer=0.1, low=0.0, high=0.2)
    assert live_markup(run_html(entry)) == []
    monkeypatch.setattr(text, "escape", str)  # negative control
    assert live_markup(run_html(entry))
