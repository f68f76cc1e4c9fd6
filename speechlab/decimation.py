"""Curves of some thousands of points from any number of steps, peaks kept: over more, MLflow's own page is slow (mlflow#9779).

Steps fall into buckets, and of each bucket a curve keeps its lowest and its highest point. Buckets are of one step to begin with and
twice as wide after every :data:`DENSE` of them, so no bucket is longer than a 1/250 of the run so far: a curve that grows looks alive
at any length, and has 4,000 points after 100,000 steps, 5,700 after a million. Which bucket a step is in follows from its number
alone, so what is kept does not depend on how a run was read, in one go or step by step.

Not covered: which of these points MLflow's page draws: a sample of its own choice, in which a peak may be missing that the history has.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

DENSE = 250  # buckets of one width

Value = tuple[float, int, int]  # what it is, when (ms since 1970), at which step
Point = tuple[str, float, int, int]  # the same, of a curve


class Curves:
    """Curves that are thinned while they come.

    Args:
        held: :attr:`held` of curves that are gone on with.
    """

    def __init__(self, held: Mapping[str, Any] | None = None) -> None:
        self._held: dict[str, tuple[Value, Value]] = {
            name: ((low[0], low[1], low[2]), (high[0], high[1], high[2])) for name, (low, high) in (held or {}).items()
        }

    @property
    def held(self) -> dict[str, tuple[Value, Value]]:
        """The lowest and the highest point so far of the bucket at hand, by curve: plain values that JSON can hold."""
        return dict(self._held)

    @property
    def rest(self) -> list[Point]:
        """The points of the bucket at hand, which may not be its last."""
        points = [(name, *value) for name, (low, high) in self._held.items() for value in sorted({low, high}, key=lambda v: v[2])]
        return sorted(points, key=lambda point: point[3])

    def add(self, step: int, time: int, values: Mapping[str, float]) -> list[Point]:
        """Take a step's values.

        Args:
            step: Counted from 1; smaller than the last one where a run went back to a checkpoint.
            time: In ms since 1970.
            values: By curve.

        Returns:
            The points that are now known to stay.
        """
        first, last = bucket(step)
        at_hand = next((low[2] for low, _ in self._held.values()), step)
        done = [] if first <= at_hand <= last else self.close()
        for name, number in values.items():
            value = (number, time, step)
            low, high = self._held.get(name, (value, value))
            self._held[name] = (value if number < low[0] else low, value if number > high[0] else high)
        return done + (self.close() if step == last else [])

    def close(self) -> list[Point]:
        """End the bucket at hand: its points."""
        points = self.rest
        self._held = {}
        return points


def bucket(step: int) -> tuple[int, int]:
    """First and last step of the bucket that a step, counted from 1, is in.

    >>> [bucket(step) for step in (1, 250, 251, 252, 751)]
    [(1, 1), (250, 250), (251, 252), (251, 252), (751, 754)]
    """
    doublings = ((step - 1) // DENSE + 1).bit_length() - 1
    width, begin = 2**doublings, DENSE * (2**doublings - 1) + 1
    first = begin + (step - begin) // width * width
    return first, first + width - 1
