"""Who is next in the queue: never over what there is, everyone's turn, nobody waits for ever."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from speechlab.config import ClusterConfig
from speechlab.scheduling import Job, Room, choose, order, wish

ROOM = Room(4, 2)
ASKED = st.tuples(st.integers(1, 4), st.integers(0, 2))


def job(id: str, by: str = "ann", cpus: int = 1, gpus: int = 0, number: int = 1, **more) -> Job:
    return Job(id, by, 0.0, number, cpus, gpus, **more)


class World:
    """A queue as it lives: what is submitted, started and ended, with the counter that the files keep."""

    def __init__(self, choosing=choose, room: Room = ROOM) -> None:
        self.jobs: dict[str, Job] = {}
        self.counter, self.room, self._choosing = 0, room, choosing

    def submit(self, by: str, cpus: int, gpus: int = 0) -> Job:
        self.counter += 1
        new = job(f"j{self.counter}", by, cpus, gpus, self.counter)
        self.jobs[new.id] = new
        return new

    def advance(self) -> list[str]:
        started = self._choosing(list(self.jobs.values()), self.room)
        for chosen in started:
            self.counter += 1
            self.jobs[chosen.id] = replace(chosen, state="running", turn=self.counter)
        return [chosen.id for chosen in started]

    def end(self, id: str) -> None:
        self.jobs[id] = replace(self.jobs[id], state="ended")

    def of(self, state: str) -> list[Job]:
        return [j for j in self.jobs.values() if j.state == state]

    @property
    def taken(self) -> Room:
        return sum((j.room for j in self.of("running")), Room(0))


STEPS = st.lists(
    st.one_of(st.tuples(st.just("submit"), st.sampled_from(["ann", "bob", "eve"]), ASKED), st.tuples(st.just("end"), st.integers(0, 9)))
)


@settings(max_examples=100, deadline=None)
@given(STEPS)
def test_never_over_what_there_is_and_whatever_is_submitted_starts(steps):
    world = World()
    for what, *rest in steps:
        if what == "submit":
            world.submit(rest[0], *rest[1])
        elif world.of("running"):
            running = world.of("running")
            world.end(running[rest[0] % len(running)].id)
        started = world.advance()
        assert world.room.holds(world.taken)
        assert world.advance() == [], "a second look finds nothing more to do"
        assert len(set(started)) == len(started)
    for _ in range(len(world.jobs) + 1):  # all that runs ends, again and again
        for running in world.of("running"):
            world.end(running.id)
        world.advance()
    assert not world.of("waiting")


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["ann", "bob", "eve"]), ASKED), max_size=12), st.lists(st.integers(0, 5), max_size=3))
def test_the_order_gives_turns_and_keeps_each_one_s_own(submitted, turns):
    world = World()
    for by, asked in submitted:
        world.submit(by, *asked)
    served = [replace(job("s", by), state="ended", turn=turn, id=by) for by, turn in zip(("ann", "bob", "eve"), turns, strict=False)]
    found = order([*world.jobs.values(), *served])
    assert sorted(j.id for j in found) == sorted(world.jobs)
    for by in ("ann", "bob", "eve"):
        own = [j.number for j in found if j.by == by]
        assert own == sorted(own), "first come, first served"
    left = {by: sum(j.by == by for j in found) for by in ("ann", "bob", "eve")}
    while any(left.values()):  # as long as somebody has jobs waiting, none has two turns to another's none
        among = [by for by, count in left.items() if count]
        least = min(left[by] for by in among)
        part, found = found[: least * len(among)], found[least * len(among) :]
        for i in range(0, len(part), len(among)):
            assert {j.by for j in part[i : i + len(among)]} == set(among)
        left = {by: sum(j.by == by for j in found) for by in left}


def churn(choosing, rounds: int = 60) -> tuple[bool, int]:
    """Small jobs of two people keep coming and fit, one ending as the next comes; in among them one that needs all there is.

    Returns:
        Whether it ever ran, and how many others were started after it was submitted and before it.
    """
    world = World(choosing, Room(4))
    world.submit("ann", 1), world.submit("bob", 1), world.submit("ann", 1)
    world.advance()
    big = world.submit("eve", 4)
    passed = 0
    for i in range(rounds):
        world.submit("ann" if i % 2 else "bob", 1)
        started = world.advance()
        if big.id in started:
            return True, passed
        passed += len(started)
        if world.of("running"):
            world.end(min(world.of("running"), key=lambda j: j.turn).id)
    return False, passed


def greedy(jobs, room):
    """What starves: whatever fits now, in order."""
    free = room - sum((j.room for j in jobs if j.state == "running"), Room(0))
    chosen = []
    for waiting in order(jobs):
        if free.holds(waiting.room):
            chosen.append(waiting)
            free = free - waiting.room
    return chosen


def test_a_big_job_does_not_starve_behind_small_ones():
    assert churn(choose) == (True, 0)
    assert not churn(greedy)[0], "control: whoever only looks for what fits lets it wait for ever"


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["ann", "bob"]), ASKED), min_size=1, max_size=40), ASKED)
def test_whoever_waits_is_passed_by_no_more_than_fits_beside_it(stream, asked):
    """Of the next in line: what started after it came fits side by side with it, so that it waits for nothing but what was there before."""
    world = World()
    for by, wanted in stream[: len(stream) // 2]:
        world.submit(by, *wanted)
    world.advance()
    mine = world.submit("eve", *asked)
    for by, wanted in stream[len(stream) // 2 :]:
        world.submit(by, *wanted)
        world.advance()
        if world.jobs[mine.id].state == "running":
            return
        if order(list(world.jobs.values()))[0].id == mine.id:
            passed = sum((j.room for j in world.of("running") if j.turn > mine.number), Room(0))
            assert ROOM.holds(passed + mine.room) or passed == Room(0)


def test_what_needs_something_else_is_not_held_up():
    waits = [job("gpu", gpus=2, number=3), job("small", "bob", 1, number=4), job("large", "bob", 4, number=5)]
    runs = job("running", gpus=1, number=1, state="running", turn=2)
    assert [j.id for j in choose([runs, *waits], ROOM)] == ["small"], "beside both the running and the waiting job"


def test_what_fits_never_holds_nobody_up():
    """As when a server is started again with less."""
    assert [j.id for j in choose([job("huge", cpus=9), job("small", number=2)], ROOM)] == ["small"]
    assert choose([job("runs", cpus=4, state="running", turn=1), job("small", number=2)], Room(2)) == []


@pytest.mark.parametrize(
    ("wanted", "room", "asked"),
    [
        ({}, Room(8), Room(8)),  # without a GPU training has all processors
        ({"workers": 2, "loader_workers": 3}, Room(16, 4), Room(8, 2)),
        ({"workers": 0}, Room(16, 4), Room(1, 1)),
        ({"workers": 8}, Room(4, 2), Room(4, 2)),
        ({"device": "cpu"}, Room(8, 1), Room(8)),
        ({"address": "head:6399", "workers": 32}, Room(8, 1), Room(1)),
    ],
)
def test_what_a_run_takes_if_nobody_says_otherwise(wanted, room, asked):
    assert wish(ClusterConfig(**wanted), room) == asked


def test_a_room_is_told_in_words():
    assert [str(r) for r in (Room(1), Room(4, 1), Room(8, 2))] == ["1 CPU", "4 CPUs, 1 GPU", "8 CPUs, 2 GPUs"]
