"""What a live view keeps of a run's events: tables in bounded memory, brought up to date as events come.

Knows neither a widget nor a page: :mod:`speechlab.board` draws it. A resume takes back the steps it
is about to repeat; values that are no numbers count as missing. However many look at a run in one
process, its events are read and worked out once: they share a :class:`Feed`. Not covered: several runs at once.
"""

from __future__ import annotations

import math
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, ClassVar
from weakref import WeakValueDictionary

import pandas as pd

from speechlab import plots
from speechlab.plots.training import STEP_COLUMNS
from speechlab.runs import Event, Run
from speechlab.units import Seconds

MOST_POINTS = 2000  # points a curve holds
AT_ONCE = 8_000_000  # bytes of events read at a look, half a second's work; a display of a long run fills as they come
BEHIND = 50  # news that a display may have missed before it draws all afresh
SILENCE: Seconds = 120  # a run that says it goes on, has no driver here and was quiet for so long was interrupted
STATES = {"failure": "failed", "stopped": "stopped", "end": "finished"}


class History:
    """What a board keeps of the events so far, in bounded memory.

    Attributes:
        curves: The columns of :func:`speechlab.plots.curves`, decimated with their peaks kept.
        start: The latest start event.
        validations: Validation events, one a step; only the last keeps its samples.
        log: The latest messages and failures.
        state: running, finished, stopped, failed or new.
        seconds: Of all training steps, those that a resume repeated included; NaN before the first.
        clips: Likewise; 0 before the first.
        started: When it first was, in seconds since 1970; NaN if it was not.
        averaged: Validation WER of the mean of checkpoints, for which there is no validation event; NaN if there is none.
    """

    def __init__(self) -> None:
        self.curves = plots.curves(pd.DataFrame())
        self.start: Event = {}
        self.last: Event = {}
        self.validations: list[Event] = []
        self.log: list[Event] = []
        self.state = "new"
        self.seconds, self.clips, self.started, self.averaged = math.nan, 0, math.nan, math.nan
        self._newest = 0.0
        self._times: list[tuple[float, float]] = []

    def add(self, events: list[Event]) -> pd.DataFrame | None:
        """Take new events in.

        Returns:
            The rows to append to the curves, or None if :attr:`curves` must be drawn afresh: steps
            were taken back, or when the points were thinned out.
        """
        redraw = False
        pending: list[Event] = []
        new = [self.curves.iloc[:0]]
        for event in events:
            kind = event["kind"]
            if kind == "step":
                if number(event.get("step")) <= self._newest:  # workers came back without a new driver
                    new.append(self._extend(pending))
                    pending = []
                    redraw |= self._rewind({**self.start, "resumed_from": number(event["step"]) - 1})
                self._newest = number(event.get("step"), self._newest)
                pending.append(event)
                seconds, clips = (number(event.get(name)) for name in ("step_seconds", "clips"))
                self.seconds = (self.seconds if math.isfinite(self.seconds) else 0.0) + (seconds if math.isfinite(seconds) else 0.0)
                self.clips += int(clips) if math.isfinite(clips) else 0
            elif kind == "start":
                if self.started != self.started:
                    self.started = number(event.get("time"))
                new.append(self._extend(pending))
                pending = []
                redraw |= self._rewind(event)
            elif kind == "validation":
                earlier = [v for v in self.validations if v.get("step") != event.get("step")]
                self.validations = [*({**v, "samples": []} for v in earlier), event]
            elif kind == "end" and isinstance(event.get("best"), dict):
                self.averaged = number(event["best"].get("wer"))
            elif kind in {"message", "failure"}:
                self.log = [*self.log, event][-100:]
            self.state = STATES.get(kind, "running" if kind in {"start", "step"} else self.state)
            if isinstance(event.get("time"), int | float) and event["time"] > 0:
                self.last = {**self.last, "time": event["time"]}
        new.append(self._extend(pending))
        if len(self.curves) > MOST_POINTS:
            self.curves = plots.decimate(self.curves, MOST_POINTS // 2)
            redraw = True
        return None if redraw else pd.concat(new, ignore_index=True)

    def _extend(self, events: list[Event]) -> pd.DataFrame:
        if not events:
            return self.curves.iloc[:0]
        known = self.curves.smoothed.iloc[-1:].dropna()  # it is carried over steps without a loss
        needed = pd.DataFrame([{name: event.get(name) for name in STEP_COLUMNS} for event in events])
        rows = plots.curves(needed, float(known.iloc[-1]) if len(known) else None)
        self.curves = pd.concat([self.curves, rows], ignore_index=True) if len(self.curves) else rows
        self.last = {**self.last, **events[-1]}
        self._times = [*self._times, *((number(e.get("time")), number(e.get("step"))) for e in events)][-50:]
        return rows

    def _rewind(self, start: Event) -> bool:
        """Forget what a resume is about to repeat; a start from scratch forgets all."""
        at = number(start.get("resumed_from"), default=0.0)
        before = len(self.curves)
        self.start, self._times, self._newest = start, [], at
        self.curves = self.curves[self.curves.step <= at].reset_index(drop=True)
        self.validations = [v for v in self.validations if number(v.get("step")) <= at]
        return len(self.curves) != before

    @property
    def ended(self) -> bool:
        """Whether the last word has been said."""
        return self.state in STATES.values()

    @property
    def quiet(self) -> Seconds:
        """Seconds since the latest event; 0 if there is none."""
        now = time.time()
        return now - number(self.last.get("time"), now)

    def standing(self, run: Run) -> str:
        """The state, in which a run whose driver is gone is ``interrupted``.

        Its driver may be on another machine, whose lock is not seen here, so events count for :data:`SILENCE` seconds.
        """
        if self.state in {"running", "new"} and self.quiet > SILENCE and not run.locked():
            return "interrupted"
        return self.state

    @property
    def step(self) -> float:
        """The last step done."""
        return float(self.curves.step.iloc[-1]) if len(self.curves) else number(self.start.get("resumed_from"), 0.0)

    @property
    def remaining(self) -> Seconds:
        """Seconds to the last step at the pace of the latest fifty, validations included; NaN if unknown."""
        steps = number(self.start.get("steps"))
        if len(self._times) < 2 or self._times[-1][1] <= self._times[0][1]:
            return float("nan")
        (t0, s0), (t1, s1) = self._times[0], self._times[-1]
        return max(steps - s1, 0) * (t1 - t0) / (s1 - s0)


class Feed:
    """A run's history as it grows, and what is new of it for each of those who look.

    Args:
        run: The run; :meth:`of` gives all who ask for one run the same feed.

    Attributes:
        history: Of all events read so far.
        version: How many times something was new.
    """

    _shared: ClassVar[WeakValueDictionary[tuple[str, int], Feed]] = WeakValueDictionary()

    def __init__(self, run: Run) -> None:
        self.history, self.version = History(), 0
        self._run, self._tail, self._file = run, run.tail(), (0, 0)
        self._news: deque[pd.DataFrame | None] = deque(maxlen=BEHIND)
        self._since: tuple[tuple[int, int], dict[str, list[float]]] | None = None
        self._said: dict[str, tuple[Any, str]] = {}
        self._lock = threading.Lock()

    @classmethod
    def of(cls, run: Run) -> Feed:
        """The feed of a run that those who look at it now share; a directory that was made anew is another run."""
        return cls._shared.setdefault((str(run.path.resolve()), run.path.stat().st_ino), cls(run))

    def look(self) -> int:
        """Read what has come, all of it anew where the file of events is another.

        Returns:
            The version.
        """
        with self._lock:
            self._begin()
            if events := self._tail.read(AT_ONCE):
                self._news.append(self.history.add(events))
                self.version += 1
            return self.version

    @property
    def more(self) -> bool:
        """Whether there are events that the next look reads."""
        return self._tail.more

    def _begin(self) -> None:
        """Forget what was read from a file that is no more."""
        try:
            found = os.stat(self._run.path / "events.jsonl")
        except OSError:
            return
        file, size = self._file
        if file and (found.st_ino != file or found.st_size < size):
            self.history, self._tail = History(), self._run.tail()
            self._news.append(None)
            self.version += 1
        self._file = found.st_ino, found.st_size

    def since(self, version: int) -> dict[str, list[float]] | None:
        """The columns of the curves since a version, or None where they must be drawn afresh, as for version 0 and :meth:`History.add`.

        They are made for the first who asks, and are not to be changed.
        """
        with self._lock:
            missed = self.version - version
            news = list(self._news)[-missed:] if missed else []
            if not version or missed > len(news) or any(rows is None for rows in news):
                return None
            if self._since is None or self._since[0] != (version, self.version):
                rows = pd.concat([self.history.curves.iloc[:0], *news], ignore_index=True)
                self._since = (version, self.version), {str(name): column.tolist() for name, column in rows.items()}
            return self._since[1]

    def once(self, what: str, sign: Any, make: Callable[[], str]) -> str:
        """A text that all who look show, made by the first of them.

        Args:
            what: Its name.
            sign: What it follows from; another one has it made anew.
            make: Makes it.
        """
        known = self._said.get(what)
        if known is None or known[0] != sign:
            known = self._said[what] = sign, make()
        return known[1]


def number(value: Any, default: float = float("nan")) -> float:
    """The value as a float, or the default where it is no number."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else default
