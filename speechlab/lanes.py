"""Whose passage is heard next: those of several recordings, batched by model and by seconds, in turns.

Notable: requests stand in a ring. The one in front says which model is asked, and from it on each gives a passage, round after round, until
the batch is full; who has given goes to the back. So nobody waits for more batches than there are requests, however long their
recordings are. The first passage of a request goes without its next ones, so that there is something to read soon.

Not covered: the hearing itself, see :mod:`speechlab.batcher`; weights or priorities between requests.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field
from typing import Any

from speechlab.units import Seconds


@dataclass
class _Lane:
    model: Hashable
    alone: bool
    waiting: deque[tuple[Seconds, Any]]
    fresh: bool = field(default=True)


class Lanes:
    """Passages that wait, by request.

    Args:
        most: Seconds of audio in a batch, padding included; a longer passage is a batch of its own.
    """

    def __init__(self, most: Seconds) -> None:
        self._most = most
        self._ring: dict[int, _Lane] = {}  # in turn: whoever has given is put behind all others

    def __len__(self) -> int:
        """Passages that wait."""
        return sum(len(lane.waiting) for lane in self._ring.values())

    def full(self) -> bool:
        """Whether there is a batch for which nothing need be waited for."""
        front = next(iter(self._ring.values()), None)
        return front is not None and (
            front.alone
            or sum(seconds for lane in self._ring.values() if lane.model == front.model for seconds, _ in lane.waiting) >= self._most
        )

    def add(self, id: int, model: Hashable, passages: Iterable[tuple[Seconds, Any]], *, alone: bool = False) -> None:
        """A request, behind all others.

        Args:
            id: Of the request, not in use.
            model: What hears it; passages for equal ones are heard together.
            passages: Seconds and whatever else, in order.
            alone: Whether nobody else's passages may be in a batch with these.
        """
        waiting = deque(passages)
        if waiting:
            self._ring[id] = _Lane(model, alone, waiting)

    def drop(self, id: int) -> None:
        """Forget a request, if it is known."""
        self._ring.pop(id, None)

    def take(self) -> tuple[Hashable, list[tuple[int, Any]]]:
        """The next batch: its model, and passages with the requests they are of, each request's in order.

        Raises:
            IndexError: if nothing waits.
        """
        if not self._ring:
            raise IndexError("nothing waits")
        front_id, front = next(iter(self._ring.items()))
        taken: list[tuple[int, Any]] = []
        longest, given = 0.0, True
        began = {id for id, lane in self._ring.items() if lane.fresh}
        while given:
            given = False
            for id, lane in list(self._ring.items()):
                other = lane.model != front.model or ((lane.alone or front.alone) and id != front_id)
                if other or (id in began and not lane.fresh):
                    continue
                seconds = lane.waiting[0][0]
                if taken and (len(taken) + 1) * max(longest, seconds) > self._most:
                    continue  # it keeps its place, and is in front of the next batch at the latest when its turn comes
                longest, given, lane.fresh = max(longest, seconds), True, False
                taken.append((id, lane.waiting.popleft()[1]))
                del self._ring[id]
                if lane.waiting:
                    self._ring[id] = lane
        return front.model, taken
