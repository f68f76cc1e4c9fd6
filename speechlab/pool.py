"""Work on many small things in several processes, where one of them may bring its process down.

Notable: decoders are C code that is fed files from anywhere. A process that dies takes the items in flight with it;
each of those is then tried alone, so the one to blame is known and all others are done.

Not covered: items that never end (decoding is bounded by its own limits), other machines (:mod:`speechlab.ingest`).
"""

from __future__ import annotations

import multiprocessing
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from typing import TypeVar

AHEAD = 4  # items in flight for each process
FEW = 100  # items up to which other processes are not worth their start

Item = TypeVar("Item")
Result = TypeVar("Result")


class Crashed(RuntimeError):
    """The process that worked on an item died."""


def cores() -> int:
    """Processors that this process may use, which can be fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def workers_for(count: int) -> int:
    """Processes for so many items: none of their own for a few, else one for each core."""
    return 0 if count < FEW else cores()


def preload(*modules: str) -> None:
    """Have processes that are started from now on begin with modules imported, so that each is there in 20 ms and not 300.

    Args:
        modules: Names of such as start no threads. Without effect once a process has been started.
    """
    multiprocessing.set_forkserver_preload(list(modules))


def over(work: Callable[[Item], Result], items: Iterable[Item], workers: int | None = None) -> Iterator[tuple[Item, Result | Crashed]]:
    """Do work on items, in order.

    Args:
        work: Picklable, as are items and results.
        items: Taken lazily, a few ahead.
        workers: Processes; None is one for each core, 0 works in this one, where a crash is nobody's to catch.

    Yields:
        Each item with its result, or with :class:`Crashed`.

    Raises:
        Exception: what ``work`` raises.
    """
    if workers == 0:
        for item in items:
            yield item, work(item)
        return
    workers = workers or cores()
    rest, flying = iter(items), deque[tuple[Item, "object"]]()
    pool = _pool(workers)
    try:
        while True:
            for item in islice(rest, workers * AHEAD - len(flying)):
                flying.append((item, pool.submit(work, item)))
            if not flying:
                return
            item, future = flying.popleft()
            try:
                result: Result | Crashed = future.result()  # type: ignore[attr-defined]
            except BrokenProcessPool:
                pool.shutdown(wait=True)
                for lost in [item, *(other for other, _ in flying)]:
                    yield lost, _alone(work, lost)
                flying.clear()
                pool = _pool(workers)
                continue
            yield item, result
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _pool(workers: int) -> ProcessPoolExecutor:
    # forked children would inherit the locks of this process' threads
    return ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("forkserver"))


def _alone(work: Callable[[Item], Result], item: Item) -> Result | Crashed:
    with _pool(1) as pool:
        try:
            return pool.submit(work, item).result()
        except BrokenProcessPool:
            return Crashed("the process that worked on it died")
