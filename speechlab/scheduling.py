"""Who is next in a queue of runs: a pure function of the jobs and of what there is to hand out.

Notable: submitters take turns; each one's own jobs go first come, first served. A job that does not fit yet lets others past only where
there will be room for it and all of them side by side, so small ones that keep coming delay it no longer than those that ran before it.
Order follows a counter, as clocks jump.

Not covered: how long jobs take, which nobody knows; limits on memory; parts of a GPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from speechlab.config import ClusterConfig

State = Literal["waiting", "running", "ended", "cancelled", "elsewhere"]


@dataclass(frozen=True)
class Room:
    """What there is to hand out.

    Attributes:
        cpus: Processors.
        gpus: GPUs.
    """

    cpus: int
    gpus: int = 0

    def __sub__(self, other: Room) -> Room:
        return Room(self.cpus - other.cpus, self.gpus - other.gpus)

    def __add__(self, other: Room) -> Room:
        return Room(self.cpus + other.cpus, self.gpus + other.gpus)

    def holds(self, other: Room) -> bool:
        """Whether the other fits into it."""
        return other.cpus <= self.cpus and other.gpus <= self.gpus

    def __str__(self) -> str:
        return f"{self.cpus} CPU{'s' * (self.cpus != 1)}" + (f", {self.gpus} GPU{'s' * (self.gpus != 1)}" if self.gpus else "")


@dataclass(frozen=True)
class Job:
    """A run that was left to a queue.

    Attributes:
        id: Of the run.
        by: Who submitted it.
        at: When, in seconds since 1970; to be read, not to go by.
        number: Of its submission, by the queue's counter.
        cpus: That it asks for.
        gpus: Likewise.
        state: Where it stands.
        turn: Of its start, by the same counter; 0 before.
        pid: Of its driver.
        devices: Its GPUs, by their place among those of the machine.
        offset: Bytes of the run's events when it was submitted; more of them, and somebody has driven it.
        host: The machine whose queue it is in.
        cancelled: Whether it was taken out.
        ray: Address of the Ray cluster that it was sent to instead, and …
        submission: … its name there.
    """

    id: str
    by: str
    at: float
    number: int
    cpus: int
    gpus: int = 0
    state: State = "waiting"
    turn: int = 0
    pid: int = 0
    devices: tuple[int, ...] = ()
    offset: int = 0
    host: str = ""
    cancelled: bool = False
    ray: str = ""
    submission: str = ""

    @property
    def room(self) -> Room:
        """What it takes."""
        return Room(self.cpus, self.gpus)


def order(jobs: Sequence[Job]) -> list[Job]:
    """The jobs that wait, as they are to be started: whoever was served longest ago is next, with the oldest job of theirs.

    Args:
        jobs: Of all states: the turns of those that were started say who was served when.
    """
    served: dict[str, int] = {}
    for job in jobs:
        served[job.by] = max(served.get(job.by, 0), job.turn)
    queues: dict[str, list[Job]] = {}
    for job in sorted((j for j in jobs if j.state == "waiting"), key=lambda j: j.number):
        queues.setdefault(job.by, []).append(job)
    found: list[Job] = []
    turn = max(served.values(), default=0)
    while queues:
        by = min(queues, key=lambda by: (served[by], queues[by][0].number))
        found.append(queues[by].pop(0))
        turn += 1
        served[by] = turn
        if not queues[by]:
            del queues[by]
    return found


def choose(jobs: Sequence[Job], room: Room) -> list[Job]:
    """The waiting jobs that are to be started now.

    A job that must wait is passed by another only where it, what has started since it was submitted and the other all fit side by
    side: then it waits for nothing but what was there before it. Jobs that fit never hold nobody up.

    Args:
        jobs: Of all states.
        room: All there is.
    """
    running = [j for j in jobs if j.state == "running"]
    free = room
    for job in running:
        free = free - job.room
    chosen: list[Job] = []
    held: list[tuple[Job, Room]] = []  # each with the room left beside it and those that have passed it
    for job in order(jobs):
        if not room.holds(job.room):
            continue
        if free.holds(job.room) and all(left.holds(job.room) for _, left in held):
            chosen.append(job)
            free = free - job.room
            held = [(other, left - job.room) for other, left in held]
        else:
            passed = sum((j.room for j in running if j.turn > job.number), Room(0))
            held.append((job, room - job.room - passed - sum((j.room for j in chosen), Room(0))))
    return chosen


def wish(wanted: ClusterConfig, room: Room) -> Room:
    """What a run takes if nobody says otherwise: a GPU and a processor for each worker and its loaders; without GPUs, all processors."""
    workers = max(1, wanted.workers)
    if wanted.address is not None:  # its workers are elsewhere
        return Room(1)
    if room.gpus and wanted.device != "cpu":
        return Room(min(workers * (1 + wanted.loader_workers), room.cpus), min(workers, room.gpus))
    return Room(room.cpus)
