"""The runs of a folder, kept up to date at little cost: what has changed is read, all else only looked at.

Notable: a look lists the folder and asks a run for the times of six of its files. Of a run that goes on, events are read from where
the last look ended, once for all that show them (:class:`speechlab.history.Feed`); of one that has ended no more stays in memory than a
row and the points of two small curves. All displays share one catalogue, so ten people who watch cost one look. A run that cannot be
read is an entry that says why, and hides no other.

Not covered: runs in a folder within the folder; what they take on the disk (:func:`speechlab.experiments.table`).
"""

from __future__ import annotations

import math
import os
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from speechlab import config as configs
from speechlab import experiments, plots, tags
from speechlab.errors import InputError
from speechlab.history import Feed, number
from speechlab.runs import Run
from speechlab.units import Seconds

PERIOD: Seconds = 0.2  # between two looks, however many ask
POINTS = 60  # of a small curve

Points = tuple[tuple[float, float], ...]
Mark = tuple[tuple[int, ...] | None, ...]  # inode, size and time of files


@dataclass(frozen=True)
class Entry:
    """What is known of a run.

    Attributes:
        id: The directory's name.
        path: The directory.
        state: As :attr:`speechlab.runs.Run.state`, or ``broken``.
        model: Family and weights.
        question: The config's.
        dev: Lowest validation WER, a fraction; NaN if there is none, as for the other numbers.
        wer: Of the trained system on clean test clips; a fraction.
        low: Of its 95 % interval over utterances.
        high: Likewise.
        seconds: Of all training steps, those that a resume repeated included.
        clips: Likewise.
        step: The last.
        steps: Of the plan.
        remaining: Seconds.
        started: When, in seconds since 1970; of one that never started, when it was made.
        note: Why it is broken, or what to know.
        tracker: The config's tracking URI; empty is the default.
        head: Of the Ray cluster that it trains on; empty is none.
        losses: Step and smoothed loss.
        wers: Step and validation WER, a fraction.
        tags: What people call it.
    """

    id: str
    path: Path
    state: str = "broken"
    model: str = ""
    question: str = ""
    dev: float = math.nan
    wer: float = math.nan
    low: float = math.nan
    high: float = math.nan
    seconds: Seconds = math.nan
    clips: int = 0
    step: float = math.nan
    steps: float = math.nan
    remaining: Seconds = math.nan
    started: float = math.nan
    note: str = ""
    tracker: str = ""
    head: str = ""
    losses: Points = ()
    wers: Points = ()
    tags: tuple[str, ...] = ()

    @property
    def live(self) -> bool:
        """Whether it goes on."""
        return self.state == "running"

    def holds(self, words: str) -> bool:
        """Whether every word is in its id, state, model, tags or question, in whatever case; ``#`` before a tag may be left out."""
        told = " ".join((self.id, self.state, self.model, self.question, *(f"#{tag}" for tag in self.tags))).casefold()
        return all(word in told for word in words.casefold().split())


class Catalogue:
    """The runs of a folder; safe to be asked from several threads.

    Args:
        root: The folder; none is ``reports``.

    Attributes:
        read: How many times a file of a run was read, to see that unchanged ones are not.
    """

    def __init__(self, root: str | Path | None = None) -> None:
        self.root = Path(root if root is not None else configs.reports())
        self.read = 0
        self._lock = threading.Lock()
        self._runs: dict[str, _Watched] = {}
        self._entries: list[Entry] = []
        self._looked = -math.inf

    def look(self, fresh: bool = False) -> list[Entry]:
        """All runs, live ones first, then the newest.

        Args:
            fresh: Whether to look again though somebody has just looked.
        """
        with self._lock:
            if fresh or time.monotonic() - self._looked >= PERIOD:
                names = self.names()
                self._runs = {name: self._runs.get(name) or _Watched(self.root / name) for name in names}
                found = [run.look() for run in self._runs.values()]
                self.read = sum(run.reads for run in self._runs.values())
                self._entries = sorted(found, key=lambda e: (not e.live, -(e.started if e.started == e.started else 0.0), e.id))
                self._looked = time.monotonic()
            return list(self._entries)

    def run(self, id: str) -> Run:
        """A run by the name of its directory, which lies in the folder itself, whatever the name says.

        Raises:
            InputError: if there is none, or it lies elsewhere.
        """
        root = self.root.resolve()
        known = self.names()
        if id not in known:
            shown = ", ".join(known[:8]) + (f" and {len(known) - 8} more" if len(known) > 8 else "")
            raise InputError("There is no such run.", got=id[:200], expected=shown or "a run; there is none yet", do="choose one on Runs")
        if (root / id).resolve().parent != root:
            raise InputError("The run is a link that leads out of the folder of runs.", got=id, expected=f"a directory in {root}")
        return Run(root / id)

    def names(self) -> list[str]:
        """The runs that there are now, by the names of their directories."""
        try:
            with os.scandir(self.root) as found:
                names = [e.name for e in found if not e.name.startswith(".") and e.is_dir()]
        except OSError:
            return []
        holds = ("config.yaml", "events.jsonl")
        return sorted(name for name in names if any(os.path.lexists(self.root / name / file) for file in holds))


class _Watched:
    """A run, and what was seen of it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.reads = 0
        self._entry = Entry(path.name, path)
        self._marks: tuple[Mark, ...] = ()
        self._told: dict[str, Any] = {}  # by its config
        self._tested: dict[str, Any] = {}
        self._feed: Feed | None = None  # while it goes on; what was read for it may be shown on a board too
        self._stood = "new"

    def look(self) -> Entry:
        marks = marks_of(self._path)
        if marks == self._marks and not self.more and self._same():
            return self._entry
        before = self._marks if self._marks and self._entry.state != "broken" else ((),) * len(marks)
        self._marks = marks
        try:
            if self._path.is_symlink() and self._path.resolve().parent != self._path.parent.resolve():
                raise InputError("A link that leads out of the folder of runs; it is not followed.")
            run = Run(self._path)
            if (marks[0], marks[4]) != (before[0], before[4]):
                self.reads += 1
                config = run.config
                model = ", ".join((config.model.family, config.model.weights or "from scratch"))
                where = {"tracker": config.tracking.uri or "", "head": config.cluster.address or ""}
                self._told = {"model": model, "question": config.question, "tags": tags.read(self._path), **where}
            if marks[2] != before[2] or self.more:
                self.reads += 1
                self._feed = self._feed or Feed.of(run)
                self._feed.look()
            if marks[:2] != before[:2]:
                self.reads += 1
                self._tested = experiments.tested(run)
            self._entry = self._made(run)
        except Exception as e:  # whatever a damaged file makes its reader raise; what was read before it stands
            why = " ".join(f"{'' if isinstance(e, InputError) else type(e).__name__ + ': '}{e}".split())[:300]
            self._entry = replace(Entry(self._path.name, self._path, note=why), **self._told)
            self._feed = None
        return self._entry

    @property
    def more(self) -> bool:
        """Whether there are events that the next look reads."""
        return self._feed is not None and self._feed.more

    def _stands(self, run: Run) -> str:
        """Where it stands as its events and its lock say."""
        if self._feed is not None:
            self._stood = self._feed.history.standing(run)
        return "running" if run.locked() else self._stood

    def _same(self) -> bool:
        """Whether it stands where it stood, its files being the same: a live one may have lost its driver."""
        try:
            return not self._entry.live or self._stands(Run(self._path)) == self._entry.state
        except InputError:
            return False

    def _made(self, run: Run) -> Entry:
        tested = {name: value for name, value in self._tested.items() if name in ("wer", "low", "high", "note")}
        state = self._stands(run)
        if self._feed is None:
            return replace(self._entry, **{"wer": math.nan, "note": "", **self._told, **tested, "state": state})
        history = self._feed.history
        wers = tuple((number(v.get("step")), number(v.get("wer"))) for v in history.validations)
        entry = Entry(
            self._path.name,
            self._path,
            state,
            **self._told,
            dev=_least(history.averaged, *(wer for _, wer in wers)),
            seconds=history.seconds,
            clips=history.clips,
            step=history.step,
            steps=number(history.start.get("steps")),
            remaining=history.remaining if state == "running" else math.nan,
            started=history.started if history.started == history.started else os.stat(self._path / "config.yaml").st_mtime,
            losses=_small(history.curves),
            wers=wers[-POINTS:],
            **tested,
        )
        if not entry.live and self._stood != "new" and not self.more:
            self._feed = None
        return entry


def entry(path: Path) -> Entry:
    """What is known of one run, all its events read; of one that cannot be read, why."""
    watched = _Watched(path)
    while (found := watched.look()).state != "broken" and watched.more:
        pass
    return found


def marks_of(path: Path) -> tuple[Mark, ...]:
    """What tells whether a run has changed: of its config, its evaluations and checkpoints, its events, its driver, its tags."""
    files = (("config.yaml",), ("evaluations", "checkpoints"), ("events.jsonl",), ("driver.lock",), (tags.FILE,))
    return tuple(_mark(path, *names) for names in files)


def _mark(folder: Path, *names: str) -> Mark:
    """What tells whether files have changed; a name in a folder that came or went changes the folder."""
    found: list[tuple[int, ...] | None] = []
    for name in names:
        try:
            stat = os.stat(folder / name)
        except OSError:
            found.append(None)
        else:
            found.append((stat.st_ino, stat.st_size, stat.st_mtime_ns))
    return tuple(found)


def _small(curves: pd.DataFrame) -> Points:
    """The points of a small curve of the loss."""
    curve = curves[["step", "smoothed"]].dropna() if len(curves) else pd.DataFrame({"step": [], "smoothed": []})
    return tuple(plots.decimate(curve, POINTS).itertuples(index=False, name=None))


def _least(*values: float) -> float:
    """The least of the numbers there are."""
    return min((v for v in values if v == v), default=math.nan)
