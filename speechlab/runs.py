"""A run is a directory: frozen config in, append-only events, checkpoints and evaluations out.

Everything that shows or compares a run (MLflow, board, report) is a reader of this directory, so one
thing serves the live cell, the batch run, the served page and the reader a month later::

    reports/<run id>/
      config.yaml        the resolved config, frozen
      overrides.txt      cluster.* and tracking.* values given since, of which the last counts: see Run.change
      tags.txt           what people call it: see speechlab.tags
      provenance.json    code, its patch (code.patch), data, weights, seeds, hardware: see speechlab.provenance
      manifest.jsonl.gz  the clips, a line each, with the digest of their samples; packages.txt, what was installed
      budget.json        how much audio a pass may hear: see speechlab.budget
      threads.json       how many a worker has, by number of workers: see speechlab.world
      job.json           its place in this machine's queue: see speechlab.jobs
      events.jsonl       one JSON object a line; kinds in EVENT_KINDS
      checkpoints/       see speechlab.checkpoints
      evaluations/       one table a system, condition and context: see speechlab.evaluation
      samples/           the validation clips that the board plays
      failures/          the batch whose loss was not a number, if one was

This module knows neither torch nor a view. A copy elsewhere is :mod:`speechlab.storage`'s.
"""

from __future__ import annotations

import errno
import fcntl
import json
import math
import os
import re
import shlex
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import IO, Any, Literal, TypeGuard

import pandas as pd

from speechlab import config as configs
from speechlab import versions
from speechlab.errors import InputError

Event = dict[str, Any]
State = Literal["new", "running", "finished", "stopped", "failed", "interrupted"]

EVENT_KINDS = {
    "start": "a driver began or resumed: steps, epochs, workers, device, precision, resumed_from, corpus, parameters, device_seconds",
    "step": "one optimizer step: step, epoch, loss, lr, grad_norm, clips, tokens, infeasible, skipped, audio_seconds, padded_seconds, "
    "full_context, step_seconds, wait_seconds, memory_bytes, machine (of rank 0), digest (of the weights, every so many steps)",
    "validation": "step, epoch, wer, cer, clips, seconds, samples",
    "checkpoint": "step, path, digest, bytes, seconds, best",
    "message": "level, text",
    "failure": "error",
    "stopped": "step",
    "end": "step, seconds, best",
}
CHANGEABLE = ("cluster", "tracking")  # sections that are no part of an experiment's identity
_TERMINAL: dict[str, State] = {"failure": "failed", "stopped": "stopped", "end": "finished"}


def message(text: str, level: Literal["info", "warning"] = "info") -> Event:
    """An event in words."""
    return {"kind": "message", "level": level, "text": text}


class Run:
    """One run's directory: reader for all, writer for the driver and rank 0.

    Args:
        path: The directory.

    Raises:
        InputError: if it is not a run directory.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).resolve()
        if not (self.path / "config.yaml").is_file():
            known = ", ".join(p.parent.name for p in sorted(self.path.parent.glob("*/config.yaml"))) or "none yet"
            raise InputError(
                "This is not a run directory: it holds no config.yaml.",
                got=str(path),
                expected="reports/<run id>",
                do=f"runs beside it: {known}",
            )

    @classmethod
    def create(cls, experiment: configs.Experiment, root: str | Path | None = None) -> Run:
        """Make a new run directory with its frozen config, where an alias is its version; an existing one is never reused.

        Raises:
            InputError: if the directory cannot be written, or as for :func:`speechlab.versions.pin`.
        """
        experiment = versions.pin(experiment)
        root = place(experiment, root)
        stem = f"{experiment.name}-{time.strftime('%Y%m%d-%H%M%S')}-{experiment.signature[:6]}"
        for n in range(100):
            path = root / (stem if n == 0 else f"{stem}-{n}")
            try:
                path.mkdir(parents=True)
            except FileExistsError:
                continue
            except OSError as e:
                raise InputError("The run directory cannot be made.", got=str(e), expected=f"a writable {root}") from None
            for part in ("checkpoints", "evaluations", "samples"):
                (path / part).mkdir()
            write_atomic(path / "config.yaml", experiment.to_yaml().encode())
            return cls(path)
        raise AssertionError("a hundred runs in one second")

    @property
    def id(self) -> str:
        """The directory's name."""
        return self.path.name

    @property
    def config(self) -> configs.Experiment:
        """The resolved config as frozen when the run was made, and where it runs now: see :meth:`change`."""
        return self.changed([])

    def changed(self, overrides: Sequence[str]) -> configs.Experiment:
        """The config with other ``cluster.*`` and ``tracking.*`` values; writes nothing.

        Args:
            overrides: ``section.key=value`` texts.

        Raises:
            InputError: if one is of another section, or a value cannot be used.
        """
        for item in overrides:
            if not item.startswith(tuple(f"{section}." for section in CHANGEABLE)) or len(item.splitlines()) > 1:
                raise InputError(
                    f"Run {self.id} is frozen but for where it runs.",
                    got=item,
                    expected=" or ".join(f"{section}.key=value" for section in CHANGEABLE)
                    + "; all else makes the signature, which says what was trained: another value is another experiment",
                    do=f"make a new run: speechlab train --config {self.path / 'config.yaml'} --set {shlex.quote(item)}",
                )
        before = self._overrides.read_text("utf-8").splitlines() if self._overrides.exists() else []
        return configs.load(self.path / "config.yaml", [*before, *overrides])

    def change(self, overrides: Sequence[str]) -> None:
        """Keep other ``cluster.*`` and ``tracking.*`` values for all drivers from now on; ``config.yaml`` stays as it is.

        Raises:
            InputError: as for :meth:`changed`, or if another process trains this run.
        """
        self.changed(overrides)
        with self.lock():
            before = self._overrides.read_text("utf-8") if self._overrides.exists() else ""
            write_atomic(self._overrides, (before + "".join(f"{item}\n" for item in overrides)).encode())

    @property
    def _overrides(self) -> Path:
        return self.path / "overrides.txt"

    @property
    def provenance(self) -> dict[str, Any]:
        """What made this run; empty before training starts."""
        path = self.path / "provenance.json"
        return json.loads(path.read_text("utf-8")) if path.exists() else {}

    # -- events ---------------------------------------------------------------------------------

    def append(self, event: Event) -> None:
        """Write one event: a single O_APPEND write, so that a reader sees whole lines or a half last one.

        Non-finite numbers become null, which JSON can hold. What a writer that died left of its last line is
        ended first, so that it costs no more than itself.

        Raises:
            InputError: if the disk is full.
        """
        assert event["kind"] in EVENT_KINDS, event
        line = (json.dumps({"time": time.time(), **_finite(event)}, ensure_ascii=False) + "\n").encode()
        try:
            fd = os.open(self.path / "events.jsonl", os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
            try:
                size = os.fstat(fd).st_size
                if size and os.pread(fd, 1, size - 1) != b"\n":
                    line = b"\n" + line
                if os.write(fd, line) < len(line):  # a disk that fills up takes a part before it refuses
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                if event["kind"] != "step":
                    os.fsync(fd)
            finally:
                os.close(fd)
        except OSError as e:
            if e.errno == errno.ENOSPC:
                raise disk_full(self.path, len(line)) from None
            raise

    def warn(self, text: str) -> None:
        """Write a message event for whoever looks."""
        self.append(message(text, "warning"))

    def events(self) -> list[Event]:
        """All events so far, oldest first; a half-written last line is left for later."""
        return self.tail().read()

    def tail(self, offset: int = 0) -> Tail:
        """A reader of its own that returns only what is new at each read, from a :attr:`Tail.offset` on."""
        return Tail(self.path / "events.jsonl", offset)

    def steps(self) -> pd.DataFrame:
        """The step events, one row a step: of steps that a resume repeated, the last one counts."""
        return per_step(self.events(), "step")

    def validations(self) -> pd.DataFrame:
        """The validation events, one row a step."""
        return per_step(self.events(), "validation")

    @property
    def state(self) -> State:
        """Where the run stands: a held lock means running, else the last terminal event decides."""
        return "running" if self.locked() else ended(self.events())

    def need_finished(self) -> None:
        """Refuse a run that has not trained to its end.

        Raises:
            InputError: unless it is finished.
        """
        if (state := self.state) != "finished":
            raise InputError(f"Run {self.id} is not finished.", got=state, expected="finished", do=f"speechlab train --resume {self.id}")

    # -- one driver at a time -------------------------------------------------------------------

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the run: the lock goes with the process, so a killed driver leaves none behind.

        Raises:
            InputError: if another process trains this run.
        """
        with open(self.path / "driver.lock", "w") as f:
            if not _acquire(f):
                raise InputError(
                    f"Another process is training run {self.id}.", do="wait for it, or stop it with: speechlab stop " + self.id
                )
            yield

    def locked(self) -> bool:
        """Whether a driver holds the run, as far as this machine can see."""
        with suppress(FileNotFoundError), open(self.path / "driver.lock") as f:
            try:
                fcntl.flock(f, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
        return False

    @property
    def stop_file(self) -> Path:
        """While this file exists, training ends after the step at hand, with a checkpoint."""
        return self.path / "stop"

    def stop(self) -> None:
        """Ask the trainer to save and stop after the step at hand; the run can be resumed."""
        self.stop_file.touch()


class Tail:
    """Incremental reader of a JSONL file that another process appends to; ``more`` says that there was more than it was to read."""

    def __init__(self, path: Path, offset: int = 0) -> None:
        self._path, self._offset, self._rest, self.more = path, offset, b"", False

    @property
    def offset(self) -> int:
        """Bytes of the file that were returned as events."""
        return self._offset - len(self._rest)

    def read(self, most: int = -1) -> list[Event]:
        """The events since the last read; starts over if the file was replaced by a shorter one.

        A line that is no JSON object with a kind becomes a message event that says so. What is over ``most`` bytes waits.
        """
        try:
            if self._path.stat().st_size < self._offset:
                self._offset, self._rest = 0, b""
            with open(self._path, "rb") as f:
                f.seek(self._offset)
                data = f.read(most)
        except FileNotFoundError:
            return []
        self._offset, self.more = self._offset + len(data), len(data) == most
        *lines, self._rest = (self._rest + data).split(b"\n")
        return [_parse(line) for line in lines if line.strip()]


def _acquire(file: IO[str]) -> bool:
    for _ in range(20):  # a second: a reader's look in locked() holds the file for a moment
        with suppress(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        time.sleep(0.05)
    return False


def _parse(line: bytes) -> Event:
    try:
        event = json.loads(line)
        if isinstance(event, dict) and event.get("kind") in EVENT_KINDS:
            return event
    except (ValueError, TypeError, RecursionError):  # the last two: a kind that is a list, and deep nesting
        pass
    return {"time": 0.0, **message(f"unreadable event: {line[:80]!r}", "warning")}


def ended(events: list[Event], before: State = "new") -> State:
    """Where a run stands that nobody drives; ``before`` is where it stood before these events."""
    last = before
    for event in events:
        last = _TERMINAL.get(event["kind"], "interrupted" if event["kind"] == "start" else last)
    return last


def per_step(events: list[Event], kind: str) -> pd.DataFrame:
    """Events of a kind, one row a step: of steps that a resume repeated, the last one counts."""
    rows: dict[int, Event] = {}
    for event in events:
        if event["kind"] == "start":  # without a checkpoint it began anew
            rows = {step: row for step, row in rows.items() if step <= (event.get("resumed_from") or 0)}
        elif event["kind"] == kind:
            rows[event["step"]] = event
    return pd.DataFrame([rows[step] for step in sorted(rows)])


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return value


def find(name: str | Path, root: str | Path | None = None) -> Run:
    """A run by its id under ``root`` (``reports``), by path, or ``latest``; or the one that made a registered model.

    Raises:
        InputError: if there is none of that name; the known ones are listed.
    """
    name, root = str(name), Path(root) if root is not None else configs.reports()
    if versions.is_name(name):
        return Run(versions.maker(name, root))
    if name == "latest":
        found = sorted(root.glob("*/config.yaml"), key=lambda p: p.stat().st_mtime)
        if not found:
            raise InputError("There is no run yet.", got=str(root), do="make one: speechlab train --config configs/quickstart.yaml")
        return Run(found[-1].parent)
    if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        return Run(root / name)
    return Run(name)


def place(experiment: configs.Experiment, root: str | Path | None = None) -> Path:
    """The folder that an experiment's runs are made in: ``root``, its ``cluster.storage`` where that is a path, or ``reports``."""
    storage = experiment.cluster.storage
    return Path(root or (configs.reports() if is_uri(storage) else storage) or configs.reports())


def is_uri(place: str | None) -> TypeGuard[str]:
    """Whether a place is a URI, such as of a store, and no path."""
    return bool(place and re.match(r"[a-z][a-z0-9+.-]*://", place))


def write_atomic(path: Path, data: bytes, mode: int = 0o666) -> None:
    """Write a whole file or none: temporary name, fsync, rename; what the umask takes of ``mode`` it takes here too.

    Raises:
        InputError: if the disk is full; nothing is left behind.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb", opener=partial(os.open, mode=mode)) as f:
            f.write(data)
            f.flush()
            os.fsync(f.fileno())
        os.replace(temporary, path)
    except OSError as e:
        temporary.unlink(missing_ok=True)
        if e.errno == errno.ENOSPC:
            raise disk_full(path.parent, len(data)) from None
        raise


def disk_full(folder: Path, needed: int) -> InputError:
    """The error for a full disk, with what is free and what was needed."""
    stat = os.statvfs(folder)
    return InputError(
        "The disk is full; what could not be written whole was removed, earlier checkpoints are untouched.",
        got=f"{stat.f_bavail * stat.f_frsize / 1e6:,.0f} MB free at {folder}",
        expected=f"room for {needed / 1e6:,.0f} MB",
        do="free space, then go on where it stopped: speechlab train --resume RUN",
    )
