"""Several recordings heard at once in this process, their passages in common batches.

Notable: three threads, so that nothing waits for what it does not need: one loads models, one cuts recordings at pauses, one hears batches.
A batch begins as soon as it is full, or a few hundredths of a second after its first passage came; while one is heard, the next fills.
What fails in a batch is heard once more by itself, so that one passage spoils no other.

Not covered: a model that brings the process down, see :mod:`speechlab.worker`; batches on several GPUs.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from speechlab import passages, systems
from speechlab.audio import Wave
from speechlab.errors import InputError
from speechlab.lanes import Lanes
from speechlab.passages import Passage, Piece
from speechlab.units import Seconds

BATCH: Seconds = 60.0  # of audio, padding included
WAIT: Seconds = 0.03  # for others, from the first passage of a batch that is not full
LOADED = 3  # models kept
Ready = tuple[Any, dict[str, str]]  # a model and how it is asked, as systems.ready gives them
Tell = Callable[["Passage | Done | Exception"], None]


@dataclass(frozen=True)
class Done:
    """The end of a request.

    Attributes:
        seconds: That it took, from when the model was there; what others had heard in the meantime is in it.
    """

    seconds: Seconds


@dataclass
class _Request:
    name: str
    tell: Tell
    wave_N: Wave
    skip: int
    alone: bool
    began: float = 0.0
    left: int = 0


class Batcher:
    """Takes requests until it is closed.

    Args:
        most: Of a batch: seconds of audio, padding included.
        wait: For others, in seconds.
        ready: Name and language to a model and how it is asked.
        at_hand: Told which requests are being worked on, each time before that changes: those to blame if this process dies.
        threads: Of torch, for the one that hears; None leaves what is set.
    """

    def __init__(
        self,
        *,
        most: Seconds = BATCH,
        wait: Seconds = WAIT,
        ready: Callable[[str, str], Ready] = systems.ready,
        at_hand: Callable[[list[int]], None] = lambda _: None,
        threads: int | None = None,
    ) -> None:
        self._ready, self._at_hand, self._most, self._wait = ready, at_hand, most, wait
        self._lanes, self._since = Lanes(most), 0.0
        self._requests: dict[int, _Request] = {}
        self._models: OrderedDict[tuple[str, str], Future[Ready]] = OrderedDict()
        self._busy: Counter[int] = Counter()
        self._threads = threads
        self._changed, self._closed = threading.Condition(threading.RLock()), False
        self._loading, self._cutting = ThreadPoolExecutor(1, "loading"), ThreadPoolExecutor(1, "cutting")
        self._hearing = threading.Thread(target=self._hear, name="hearing", daemon=True)
        self._hearing.start()

    def ask(self, id: int, name: str, language: str, wave_N: Wave, tell: Tell, *, skip: int = 0, alone: bool = False) -> None:
        """Have a recording heard.

        Args:
            id: Of the request, not in use.
            name: Of the model, as for :func:`speechlab.systems.resolve`.
            language: Of the speech.
            wave_N: 16 kHz samples.
            tell: Called, in another thread, with each passage in order, then with :class:`Done`; or with the error.
            skip: Passages at the beginning that are known already.
            alone: Whether it is heard in batches of its own.
        """
        with self._changed:
            self._requests[id] = _Request(name, tell, wave_N, skip, alone)
            key = (name, language)
            if key not in self._models:
                self._models[key] = self._loading.submit(self._ready, *key)
            self._models.move_to_end(key)
            while len(self._models) > LOADED:
                self._models.popitem(last=False)
            loading = self._models[key]
            held = [] if loading.done() else [id]  # a model that cannot be loaded is the fault of all who want it
            self._hold(held)

        def loaded(_: Any) -> None:
            self._release(held)
            if not self._closed:
                self._cutting.submit(self._cut, id, key, loading)

        loading.add_done_callback(loaded)

    def drop(self, id: int) -> None:
        """Let a request go; nothing is told of it any more."""
        with self._changed:
            self._requests.pop(id, None)
            self._lanes.drop(id)

    def close(self) -> None:
        """Let all requests go, and end the threads when they are done with what is at hand."""
        with self._changed:
            self._closed = True
            self._requests.clear()
            self._changed.notify_all()
        for executor in (self._loading, self._cutting):
            executor.shutdown(wait=False, cancel_futures=True)

    # -- before it is heard ---------------------------------------------------------------------------

    def _cut(self, id: int, key: tuple[str, str], loading: Future[Ready]) -> None:
        with self._changed:
            if loading.exception() is not None and self._models.get(key) is loading:
                del self._models[key]  # the next request tries anew
            request = self._requests.get(id)
            if request is None:
                return
        request.began = time.perf_counter()
        try:
            ready = loading.result()
            with self._working([id]):
                spans = passages.cut(request.wave_N)[request.skip :]
        except Exception as e:
            self._end(id, _error(request.name, e))
            return
        found = passages.pieces(request.wave_N, spans)
        if not found:
            self._end(id, Done(time.perf_counter() - request.began))
            return
        with self._changed:
            if id in self._requests:
                if not self._lanes:
                    self._since = time.monotonic()
                request.left = len(found)
                # by the model itself: of two with one name, one of them loaded anew, each hears its own
                self._lanes.add(id, _Same(ready), [(b - a, ((a, b), wave)) for (a, b), wave in found], alone=request.alone)
                self._changed.notify_all()

    # -- heard --------------------------------------------------------------------------------------

    def _hear(self) -> None:
        if self._threads:
            torch.set_num_threads(self._threads)  # a thread's own
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or bool(self._lanes))
                until = self._since + self._wait
                self._changed.wait_for(lambda: self._closed or self._lanes.full(), max(0.0, until - time.monotonic()))
                if self._closed:
                    return
                if not self._lanes:  # those who asked have gone
                    continue
                same, batch = self._lanes.take()
            assert isinstance(same, _Same)
            with self._working([id for id, _ in batch]):
                for (id, _), found in zip(batch, self._heard(same.ready, [piece for _, piece in batch]), strict=True):
                    self._found(id, found)

    def _heard(self, ready: Ready, batch: Sequence[Piece]) -> Sequence[Passage | Exception]:
        try:
            return passages.heard(ready[0], batch, **ready[1])
        except Exception as e:
            return [e] if len(batch) == 1 else [self._heard(ready, [piece])[0] for piece in batch]

    def _found(self, id: int, found: Passage | Exception) -> None:
        with self._changed:
            request = self._requests.get(id)
        if request is None:
            return
        if isinstance(found, Exception):
            self._end(id, _error(request.name, found))
            return
        request.tell(found)
        request.left -= 1
        if not request.left:
            self._end(id, Done(time.perf_counter() - request.began))

    def _end(self, id: int, last: Done | Exception) -> None:
        with self._changed:
            request = self._requests.pop(id, None)
            self._lanes.drop(id)
        if request is not None:
            request.tell(last)

    @contextmanager
    def _working(self, ids: Sequence[int]) -> Iterator[None]:
        self._hold(ids)
        try:
            yield
        finally:
            self._release(ids)

    def _hold(self, ids: Sequence[int]) -> None:
        with self._changed:
            self._busy.update(ids)
            self._at_hand(sorted(self._busy))

    def _release(self, ids: Sequence[int]) -> None:
        with self._changed:
            self._busy -= Counter(ids)
            self._at_hand(sorted(self._busy))


@dataclass(frozen=True, eq=False)
class _Same:
    """A loaded model, equal to itself alone."""

    ready: Ready

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.ready[0] is other.ready[0]

    def __hash__(self) -> int:
        return id(self.ready[0])


def _error(name: str, e: Exception) -> InputError:
    if isinstance(e, InputError):
        return e
    return InputError(f"{name} could not hear the recording.", got=f"{type(e).__name__}: {e}"[:300], do="try another model")
