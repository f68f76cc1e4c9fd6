"""Progress bars with an ETA, on standard error, for the waits of the set-up.

Not covered: the progress of a training run, which is in its events.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


@contextlib.contextmanager
def bar(description: str, total: float) -> Iterator[Callable[[float, float], None]]:
    """Show a bar; yields a function that sets it to ``(done, total)``.

    Args:
        description: What is waited for.
        total: In any unit; 0 if it is not known yet.
    """
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    label = TextColumn("{task.description}", markup=False)
    columns = (label, BarColumn(), TaskProgressColumn(), TextColumn("ETA"), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(description, total=total or None)
        yield lambda done, of: progress.update(task, completed=done, total=of or None)


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
