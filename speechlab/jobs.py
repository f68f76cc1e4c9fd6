"""A queue of runs on this machine: each starts as soon as there is room for it, everyone's turn in order.

A job is a run directory with a ``job.json`` in it, so that the queue outlives every server and shell that serves it: what waits
is started by whoever looks next, what was started goes on in a process of its own. All that changes the queue happens under one lock,
``.queue.lock`` in the folder of runs; two servers over one folder share one queue.

Notable: who is next is :mod:`speechlab.scheduling`'s to say. A job gets the threads and the GPUs that it asked for, and no others. A
driver that died frees its place. Runs of this folder that were started without the queue take up their part of the machine, too.

Not covered: limits on memory; jobs of other machines that share the folder (each machine has its own).
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import psutil

from speechlab import cluster, detached, pool
from speechlab.errors import InputError
from speechlab.runs import Run, write_atomic
from speechlab.scheduling import Job, Room, State, choose, wish
from speechlab.units import Seconds

FILE = "job.json"
PERIOD: Seconds = 1.0  # between two looks of a server

log = logging.getLogger(__name__)


def room(cpus: int | None = None, gpus: int | None = None) -> Room:
    """What this machine hands out: all it has, or as given.

    Args:
        cpus: Processors.
        gpus: GPUs, the first so many.

    Raises:
        InputError: if it has not so many GPUs, or less than a processor is given.
    """
    known = len(_gpus()) if gpus != 0 else 0
    found = Room(pool.cores() if cpus is None else cpus, known if gpus is None else gpus)
    if found.cpus < 1 or not 0 <= found.gpus <= known:
        expected = f"1 CPU or more, 0 to {known} GPUs"
        raise InputError("The queue cannot hand that out.", got=f"{found.cpus} CPUs, {found.gpus} GPUs", expected=expected)
    return found


class Queue:
    """The queue of a folder of runs; several may stand over one folder.

    Args:
        root: The folder.
        given: What this machine hands out; None is all it has.
        clusters: Dashboards of Ray clusters that runs can be sent to instead: see :mod:`speechlab.rayjobs`.
    """

    def __init__(self, root: str | Path, given: Room | None = None, clusters: Sequence[str] = ()) -> None:
        self.root, self._given, self.clusters = Path(root), given, tuple(clusters)
        self._read: dict[str, tuple[tuple[int, int], Job | None]] = {}  # by mark of the file
        self._over: dict[str, tuple[int, int]] = {}  # ended, and seen to be so
        self._guard = threading.Lock()

    @cached_property
    def room(self) -> Room:
        """What this machine hands out, found out when it is first asked for."""
        return self._given or room()

    def jobs(self) -> list[Job]:
        """All jobs, in the order they were submitted; those of other machines are ``elsewhere``, as are those of Ray clusters."""
        with self._guard:
            found = [job for name in self._names() if (job := self._job(name)) is not None]
        return sorted(found, key=lambda j: j.number)

    def job(self, id: str) -> Job | None:
        """A run's job as it stands now, or None: the run was not left to a queue."""
        with self._guard:
            return self._job(id)

    def begins(self, job: Job) -> bool:
        """Whether a job was started and its driver has not written any event yet."""
        return job.state == "running" and not _driven(job, self.root / job.id)

    def complaint(self, job: Job) -> str:
        """What the driver of a job said last, if it ended before it had written any event; else nothing."""
        folder = self.root / job.id
        return "" if job.state != "ended" or _driven(job, folder) else detached.said(folder)[-400:].strip()

    def submit(self, run: Run, by: str, asked: Room | None = None, start: bool = True) -> Job:
        """Leave a run to the queue; it starts at once if it is its turn and there is room.

        Args:
            run: New, or one that can go on.
            by: Who asks.
            asked: What it takes; none is as :func:`speechlab.scheduling.wish`.
            start: Whether to start what is to be started, or leave that to a server, which may have less to hand out.

        Raises:
            InputError: if it fits never, goes on already, or is in the queue.
        """
        asked = asked or wish(run.config.cluster, self.room)
        self.need_room(asked)
        with self._locked():
            self._need_idle(run)
            self._add(run, by, asked)
        if start:
            self.advance()
        return next(job for job in self.jobs() if job.id == run.id)

    def need_room(self, asked: Room) -> None:
        """Refuse what fits never.

        Args:
            asked: What a job takes.

        Raises:
            InputError: if there is less, or nothing is asked for.
        """
        if asked.cpus < 1 or asked.gpus < 0 or not self.room.holds(asked):
            raise InputError(
                "The job would wait for ever.", got=str(asked), expected=f"1 CPU or more, at most {self.room}",
                do="ask for less, or serve the queue with more: speechlab dashboard --cpus N --gpus N",
            )  # fmt: skip

    def note(self, run: Run, by: str, address: str, submission: str) -> Job:
        """Write down a run that was sent to a Ray cluster instead, so that it is listed with the others.

        Args:
            run: The run.
            by: Who asked.
            address: Of the cluster's job server.
            submission: The job's name there.
        """
        with self._locked():
            return self._add(run, by, Room(0), ray=address, submission=submission)

    def cancel(self, id: str) -> None:
        """Take a waiting job out; one that runs stops after the step at hand, with a checkpoint.

        Raises:
            InputError: if there is no such job, or it is over.
        """
        with self._locked():
            job = next((j for j in self.jobs() if j.id == id), None)
            if job is None or job.state not in ("waiting", "running"):
                raise InputError("There is nothing to cancel.", got=f"{id[:200]} is {job.state if job else 'in no queue'}")
            if job.state == "waiting":
                self._write(replace(job, cancelled=True))
            else:
                Run(self.root / id).stop()

    def advance(self) -> list[Job]:
        """Start what is to be started now.

        Returns:
            The jobs that were started.
        """
        started: list[Job] = []
        if not any(j.state == "waiting" for j in self.jobs()):
            return []
        with self._locked():
            known = self.jobs()
            for job in choose([*known, *self._outside(known)], self.room):
                try:
                    started.append(self._start(job, [j for j in known if j.state == "running"] + started))
                except (InputError, OSError) as e:  # a run that was damaged or deleted meanwhile must not hold the queue up
                    log.warning("job %s could not be started: %s", job.id, e)
                    with suppress(OSError, InputError):
                        self._write(replace(job, cancelled=True))
        return started

    def keep(self, alive: Callable[[], bool] = lambda: True, period: Seconds = PERIOD) -> threading.Thread:
        """Advance again and again, from a thread that ends with the process, or earlier.

        Args:
            alive: Asked before each look, whether to go on.
            period: Between two looks.
        """

        def look() -> None:
            while alive():
                try:
                    self.advance()
                except Exception:  # such as a full disk: the next look may find it mended
                    log.exception("the queue could not go on")
                time.sleep(period)

        thread = threading.Thread(target=look, daemon=True, name="queue")
        thread.start()
        return thread

    # -- under the lock -------------------------------------------------------------------------------

    @contextmanager
    def _locked(self) -> Iterator[None]:
        self.root.mkdir(parents=True, exist_ok=True)
        with open(self.root / ".queue.lock", "w") as f:
            fcntl.flock(f, fcntl.LOCK_EX)
            yield

    def _add(self, run: Run, by: str, asked: Room, ray: str = "", submission: str = "") -> Job:
        job = Job(
            run.id, by, time.time(), self._next(), asked.cpus, asked.gpus,
            offset=_written(run.path), host=socket.gethostname(), ray=ray, submission=submission,
        )  # fmt: skip
        self._write(job)
        return job

    def _next(self) -> int:
        return 1 + max((max(job.number, job.turn) for job in self.jobs()), default=0)

    def _need_idle(self, run: Run) -> None:
        job = next((j for j in self.jobs() if j.id == run.id), None)
        state = "waiting" if job is not None and job.state == "waiting" else run.state
        if state in ("waiting", "running", "finished"):
            raise InputError(f"Run {run.id} cannot be queued.", got=state, expected="a run that is new or can go on")

    def _start(self, job: Job, running: Sequence[Job]) -> Job:
        run = Run(self.root / job.id)
        taken = {device for other in running for device in other.devices}
        devices = tuple([d for d in range(self.room.gpus) if d not in taken][: job.gpus])
        process = cluster.launch(run, _environment(job, devices, run.config.cluster.workers))
        pid = process.pid if process else 0
        job = replace(job, turn=self._next(), pid=pid, devices=devices, state="running")
        self._write(job)
        return job

    def _outside(self, known: Sequence[Job]) -> list[Job]:
        """Runs of this folder that go on without the queue, which take up room all the same."""
        mine = {job.id for job in known if job.state == "running"}
        found = []
        for path in self.root.glob("*/driver.lock"):
            with suppress(InputError, OSError):
                run = Run(path.parent)
                if run.id not in mine and run.locked():
                    asked = wish(run.config.cluster, self.room)
                    found.append(Job(run.id, "", 0.0, 0, asked.cpus, asked.gpus, "running"))
        return found

    def _write(self, job: Job) -> None:
        values = {name: value for name, value in asdict(job).items() if name not in ("id", "state")}
        write_atomic(self.root / job.id / FILE, json.dumps(values).encode())

    # -- what there is --------------------------------------------------------------------------------

    def _names(self) -> list[str]:
        try:
            with os.scandir(self.root) as found:
                return [e.name for e in found if not e.name.startswith(".") and e.is_dir(follow_symlinks=False)]
        except OSError:
            return []

    def _job(self, name: str) -> Job | None:
        """A run's job as it stands now; the file is read when it has changed, the process looked at until it has ended."""
        try:
            stat = os.stat(self.root / name / FILE)
        except OSError:
            return None
        mark = (stat.st_ino, stat.st_mtime_ns)
        if self._read.get(name, ((0, 0), None))[0] != mark:
            self._read[name] = (mark, _parsed(self.root / name))
        job = self._read[name][1]
        if job is None or self._over.get(name) == mark:
            return job and replace(job, state="cancelled" if job.cancelled else "ended")
        state = _state(job, self.root / name)
        if state in ("ended", "cancelled"):
            self._over[name] = mark
        return replace(job, state=state)


def _parsed(folder: Path) -> Job | None:
    """What a job file says; one that cannot be read is no job."""
    try:
        values: Mapping[str, Any] = json.loads((folder / FILE).read_text("utf-8"))
        kept = {f.name for f in fields(Job)} - {"id", "state"}
        known = {name: value for name, value in values.items() if name in kept}
        job = Job(folder.name, **{**known, "devices": tuple(map(int, known.get("devices", ())))})
        numbers = (job.at, job.number, job.cpus, job.gpus, job.turn, job.pid, job.offset)
        if all(isinstance(n, int | float) and n >= 0 for n in numbers) and all(isinstance(t, str) for t in (job.by, job.host, job.ray)):
            return job
    except (OSError, ValueError, TypeError, AttributeError):
        pass
    return None


def _state(job: Job, folder: Path) -> State:
    if job.cancelled:
        return "cancelled"
    if job.ray or job.host != socket.gethostname():
        return "elsewhere"
    try:
        run = Run(folder)
        if run.locked() or (job.pid and _alive(job.pid, run.path)):
            return "running"
    except (InputError, OSError):  # damaged, or deleted at this moment
        return "ended"
    return "ended" if job.turn or _driven(job, folder) else "waiting"


def _driven(job: Job, folder: Path) -> bool:
    """Whether somebody has driven the run since it was submitted."""
    return _written(folder) > job.offset


def _written(folder: Path) -> int:
    """Bytes of a run's events."""
    try:
        return (folder / "events.jsonl").stat().st_size
    except OSError:  # none yet, or deleted at this moment
        return 0


def _alive(pid: int, path: Path) -> bool:
    """Whether a process is this run's driver still: its command names the run, whoever has its number by now."""
    with suppress(psutil.Error, OSError):
        process = psutil.Process(pid)
        return process.status() != psutil.STATUS_ZOMBIE and str(path) in process.cmdline()
    return False


def _environment(job: Job, devices: Sequence[int], workers: int) -> dict[str, str]:
    """Under which a driver and its workers see what the job asked for, and no more."""
    known = _gpus()
    threads = max(1, job.cpus // max(1, workers))
    return {"OMP_NUM_THREADS": str(threads), "CUDA_VISIBLE_DEVICES": ",".join(known[d] for d in devices if d < len(known))}


def _gpus() -> list[str]:
    """The GPUs of this machine that this process may use, as CUDA names them."""
    if (visible := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [name.strip() for name in visible.split(",") if name.strip()]
    import torch

    return [str(i) for i in range(torch.cuda.device_count())]
