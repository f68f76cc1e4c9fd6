"""Two sides of a benchmark, a step of one and then a step of the other: what else the machine does then slows both alike."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from typing import Any

Turn = Callable[[], None]


def in_turns(sides: dict[str, list[tuple[Any, ...]]]) -> dict[str, list[Any]]:
    """Run sides in processes of their own, one at a time.

    Args:
        sides: By name, what each of a side's processes calls: ``(function, *arguments)``. The function gets as its first
            argument a ``turn`` to call whenever it is about to do what is timed: it returns when it is this side's turn,
            and then all of a side's processes run at once.

    Returns:
        What the functions returned, by side.

    Raises:
        RuntimeError: if a process ends without an answer.
    """
    spawn = multiprocessing.get_context("spawn")  # memory and caches of its own
    running: dict[str, list[Any]] = {}
    answers: dict[str, list[Any]] = {name: [None] * len(members) for name, members in sides.items()}
    processes = []
    for name, members in sides.items():
        running[name] = []
        for member in members:
            here, there = spawn.Pipe()
            processes.append(spawn.Process(target=_member, args=(there, *member)))
            processes[-1].start()
            there.close()
            running[name].append(here)
        _wait(running[name], answers[name])  # whatever comes before its first step is done alone too
    try:
        while any(running.values()):
            for name, pipes in running.items():
                for pipe in filter(None, pipes):
                    pipe.send("go")
                running[name] = _wait(pipes, answers[name])
    finally:
        for process in processes:
            process.terminate()
            process.join()
    return answers


def _wait(pipes: list[Any], answers: list[Any]) -> list[Any]:
    """Until each has come to its next turn or its end; those that have not ended, nothing if all have."""
    left = []
    for i, pipe in enumerate(pipes):
        if pipe is None:
            left.append(None)
            continue
        try:
            word, answer = pipe.recv()
        except EOFError:
            raise RuntimeError("a side ended without an answer: see its traceback above") from None
        if word == "ended":
            answers[i] = answer
        left.append(None if word == "ended" else pipe)
    return left if any(left) else []


def _member(pipe: Any, function: Callable[..., Any], *arguments: Any) -> None:
    def turn() -> None:
        pipe.send(("waiting", None))
        pipe.recv()

    pipe.send(("ended", function(turn, *arguments)))
