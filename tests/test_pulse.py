"""The clock of all pages: who has news is woken, nobody else, and who has left is not looked at."""

from __future__ import annotations

import time
from types import SimpleNamespace

import panel as pn
import pytest
from browser import becomes

from speechlab import pulse


class Page:
    """What the clock needs of a Bokeh document."""

    def __init__(self):
        loop = SimpleNamespace(add_callback=lambda call: call())
        server = SimpleNamespace(application_context=SimpleNamespace(io_loop=loop))
        self.session_context = SimpleNamespace(session=object(), server_context=server)
        self.turns, self.left = [], []

    def add_next_tick_callback(self, call):
        self.turns.append(call)

    def on_session_destroyed(self, call):
        self.left.append(call)


def wait(until, seconds=60.0):
    assert becomes(until, seconds)


@pytest.fixture
def echo():
    return pulse.Echo()


@pytest.fixture
def page(monkeypatch):
    found = Page()
    monkeypatch.setattr(pulse, "PERIOD", 0.02)
    monkeypatch.setattr(type(pn.state), "curdoc", property(lambda _: found))
    yield found
    for left in found.left:
        left(None)
    wait(lambda: not pulse._clock._runs)


def test_a_display_is_woken_by_news_only(page):
    state, asked, ticks = {"sign": 1}, [], []

    def sign():
        asked.append(1)
        return state["sign"]

    pulse.follow(lambda: ticks.append(state["sign"]), sign)
    wait(lambda: len(page.turns) == 1)
    page.turns.pop()()
    assert ticks == [1]
    seen = len(asked)
    wait(lambda: len(asked) > seen + 5)
    assert not page.turns, "nothing is new"
    state["sign"] = 2
    wait(lambda: len(page.turns) == 1)
    state["sign"] = 3
    time.sleep(0.1)
    assert len(page.turns) == 1, "one call waits for its turn, however long that takes"
    page.turns.pop()()
    assert ticks == [1, 3]


def test_a_page_is_looked_at_once_its_session_is_made(page):
    """Before, Bokeh may lose what a thread asks for, or meet it twice: a page stood still, on a busy machine, once in a while."""
    page.session_context.session = None
    ticks = []
    pulse.follow(lambda: ticks.append(1), lambda: "news")
    time.sleep(0.2)
    assert not page.turns
    page.session_context.session = object()
    wait(lambda: len(page.turns) == 1)
    page.turns.pop()()
    assert ticks == [1]


def test_a_page_is_asked_in_the_server_s_thread_alone(page):
    """Of 200 pages that another thread asked while they were made or drawn nine stood still: Bokeh had lost the call."""
    loop, ticks = [], []
    page.session_context.server_context.application_context.io_loop.add_callback = loop.append
    pulse.follow(lambda: ticks.append(1), lambda: "news")
    wait(lambda: len(loop) == 1)
    time.sleep(0.1)
    assert len(loop) == 1 and not page.turns, "not by the clock"
    loop.pop()()
    page.turns.pop()()
    assert ticks == [1]


def test_who_has_left_is_looked_at_no_more_and_the_clock_ends(page):
    asked = []
    pulse.follow(lambda: None, lambda: asked.append(1))
    wait(lambda: asked)
    page.left[0](None)
    wait(lambda: not pulse._clock._runs)
    seen = len(asked)
    time.sleep(0.1)
    assert len(asked) == seen
    page.left.clear()


def test_a_sign_that_cannot_be_had_wakes_once_and_holds_up_nobody(page):
    def broken():
        raise OSError("gone")

    ticks = []
    pulse.follow(lambda: ticks.append("broken"), broken)
    pulse.follow(lambda: ticks.append("well"), lambda: 1)
    wait(lambda: len(page.turns) == 2)
    while page.turns:
        page.turns.pop()()
    assert sorted(ticks) == ["broken", "well"]
    time.sleep(0.1)
    assert not page.turns, "the same error is no news"


def test_a_browser_that_does_not_keep_up_is_waited_for(echo, page, monkeypatch):
    monkeypatch.setattr(pulse, "ASK", 0.0)
    monkeypatch.setattr(pulse, "PATIENCE", 3600.0)
    monkeypatch.setattr(type(pn.state), "loaded", True)
    ticks, (asked, answered) = [], echo.place
    pulse.follow(lambda: ticks.append(1), lambda: object(), echo)  # there is news each time
    wait(lambda: page.turns)
    page.turns.pop()()
    assert asked.value == 1 and echo.late
    time.sleep(0.2)
    assert ticks == [1] and not page.turns
    answered.value = asked.value  # as the browser does
    wait(lambda: page.turns)
    page.turns.pop()()
    assert ticks == [1, 1]
    monkeypatch.setattr(pulse, "PATIENCE", 0.0)
    wait(lambda: page.turns)  # nothing is stopped for good by an answer that is lost


def test_a_page_that_is_not_open_yet_is_not_asked(echo, page, monkeypatch):
    """It would read the question as part of itself and give no answer."""
    ticks = []
    monkeypatch.setattr(type(pn.state), "loaded", False)
    pulse.follow(lambda: ticks.append(1), lambda: object(), echo)
    for _ in range(2):
        wait(lambda: page.turns)
        page.turns.pop()()
    assert echo.place[0].value == 0 and len(ticks) == 2


def test_a_page_that_is_left_while_it_is_looked_at_holds_up_no_other(page, monkeypatch):
    """Bokeh empties a document whose session ends, and whoever calls it then meets an error."""
    gone, asked, sign = Page(), [], {"sign": 0}
    gone.add_next_tick_callback = lambda call: gone.missing
    with monkeypatch.context() as patched:
        patched.setattr(type(pn.state), "curdoc", property(lambda _: gone))
        pulse.follow(lambda: None, lambda: asked.append(1) or len(asked))
    pulse.follow(lambda: None, lambda: sign["sign"])
    wait(lambda: asked and page.turns)
    page.turns.pop()()
    seen, sign["sign"] = len(asked), 1
    wait(lambda: page.turns)
    assert len(asked) == seen, "it is looked at no more"
