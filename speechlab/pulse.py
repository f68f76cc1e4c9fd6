"""One clock for all pages of a process: it looks at what they show, and wakes only those for which something has changed.

Notable: a page that has nothing new costs a comparison, where a periodic callback of its own would cost the server a lock and a turn of
its loop each time; ten people who watch one run make the training wait no more than one does. A browser that draws slower than there is
news is not sent more than it can draw (:class:`Echo`): it sees fewer, later states, and none too late. In a notebook, where few displays
are and their updates go through the kernel's own loop, a display has Panel's periodic callback.

Not covered: waking by the file system's own notices, which network file systems do not give.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Hashable
from typing import Any

import panel as pn

from speechlab.units import Seconds

PERIOD: Seconds = 0.5  # between two looks
ASK: Seconds = 4.0  # between two questions to a browser; an answer costs the server about as much as an update does
PATIENCE: Seconds = 30.0  # in which it answers; hidden pages, whose browsers hold their timers back, and lost answers stop nothing for good

log = logging.getLogger(__name__)


class Echo:
    """Whether the browser of a page keeps up: it is asked now and then, and answers once it has done all that came before.

    Without it what comes faster than a browser draws piles up in the browser, and the page is behind for good.

    Attributes:
        place: Goes onto the page; nothing of it is seen.
    """

    def __init__(self) -> None:
        self._asked, self._answered = (pn.widgets.IntInput(label=label, value=0, visible=False) for label in ("asked", "answered"))
        self._asked.jslink(self._answered, code={"value": "setTimeout(() => { target.value = source.value })"})
        self.place = pn.Column(self._asked, self._answered, visible=False, margin=0)
        self._when = -ASK

    @property
    def late(self) -> bool:
        """Whether an answer is still waited for."""
        return self._answered.value != self._asked.value and time.monotonic() - self._when < PATIENCE

    def ask(self) -> None:
        """Ask behind what has just been written, in the page's own turn, unless that was done a moment ago."""
        if pn.state.loaded and time.monotonic() - self._when >= ASK:  # before, a question is read as part of the page, and not answered
            self._when = time.monotonic()
            self._asked.value += 1


def follow(tick: Callable[[], object], sign: Callable[[], Hashable], echo: Echo | None = None) -> Any:
    """Call a display's tick whenever its sign has changed, as long as its page is open.

    Args:
        tick: Looks and writes, in the page's own turn.
        sign: What tells whether there is something to write; cheap, and safe to be asked in another thread.
        echo: Of the page, whose browser is waited for; where there is none it is taken to keep up.

    Returns:
        What has a ``stop()``.
    """
    page = pn.state.curdoc
    if page is None or page.session_context is None:
        return pn.state.add_periodic_callback(tick, period=int(1000 * PERIOD))
    display = _Display(page, tick, sign, echo)
    page.on_session_destroyed(lambda _: display.stop())
    display.start()
    return display


class _Display:
    """Something on a page."""

    def __init__(self, page: Any, tick: Callable[[], object], sign: Callable[[], Hashable], echo: Echo | None) -> None:
        self._page, self._tick, self._sign, self._echo = page, tick, sign, echo
        self._seen: Hashable = None
        self._called = False

    def start(self) -> None:
        _clock.add(self)

    def stop(self) -> None:
        """Look no more."""
        _clock.remove(self)

    def look(self) -> None:
        """Call the display if something has changed; one call at a time waits for its turn."""
        context = self._page.session_context
        if context is None:
            self.stop()
        if self._called or context is None or context.session is None or (self._echo is not None and self._echo.late):
            return
        try:
            seen = self._sign()
        except Exception as e:  # the tick meets it too, where it is told to the page or logged
            seen = f"{type(e).__name__}: {e}"
        if seen != self._seen:
            self._seen, self._called = seen, True
            # in the server's own thread: what another asks of a page that is being made or drawn, Bokeh loses once in a while
            context.server_context.application_context.io_loop.add_callback(self._ask)

    def _ask(self) -> None:
        try:
            self._page.add_next_tick_callback(self._turn)
        except Exception as e:  # a page that is left in this moment has no loop any more
            log.debug("a display is looked at no more: %s", e)
            self.stop()

    def _turn(self) -> None:
        self._called = False
        with pn.io.unlocked():  # so that all that it writes is one message
            self._tick()
            if self._echo is not None:
                self._echo.ask()


class _Clock:
    """A thread that lives while there is something to look at."""

    def __init__(self) -> None:
        self._displays: set[_Display] = set()
        self._lock = threading.Lock()
        self._runs = False

    def add(self, display: _Display) -> None:
        with self._lock:
            self._displays.add(display)
            if not self._runs:
                self._runs = True
                threading.Thread(target=self._run, daemon=True, name="pulse").start()

    def remove(self, display: _Display) -> None:
        with self._lock:
            self._displays.discard(display)

    def _run(self) -> None:
        while True:
            time.sleep(PERIOD)
            with self._lock:
                self._runs = bool(self._displays)
                if not self._runs:
                    return
                displays = list(self._displays)
            for display in displays:
                try:
                    display.look()
                except Exception as e:  # a page that is left in this moment; whoever it is, the others are not held up
                    log.debug("a display is looked at no more: %s", e)
                    display.stop()


_clock = _Clock()
