"""Progress bars with an ETA, on standard error, for the waits of the set-up: in a terminal, a notebook and a log alike.

Not covered: the progress of a training run, which is in its events.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from tqdm.std import tqdm

T = TypeVar("T")


@contextlib.contextmanager
def bar(description: str, total: float) -> Iterator[Callable[[float, float], None]]:
    """Show a bar; yields a function that sets it to ``(done, total)``.

    Args:
        description: What is waited for.
        total: In any unit; 0 if it is not known yet.
    """
    shape = "{desc} {percentage:3.0f}% |{bar:30}| ETA {remaining}"
    with tqdm(desc=description, total=total or None, bar_format=shape if total else None, mininterval=0.3) as progress:

        def advance(done: float, of: float) -> None:
            progress.bar_format, progress.total = shape if of else None, of or None
            progress.update(done - progress.n)

        yield advance


def track(items: Iterable[T], description: str, total: int) -> Iterator[T]:
    """Pass items through under a bar.

    Args:
        items: Anything to go through.
        description: What is done with them.
        total: How many there are.
    """
    with bar(description, total) as advance:
        for done, item in enumerate(items, 1):
            yield item
            advance(done, total)
