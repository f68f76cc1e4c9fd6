"""A process that hears for this one: recordings go in, passages come out, those of several requests in common batches.

Notable: it is started by the first request and ends with this process, whichever way that goes. When it dies, another is started:
what it was not working on is sent again, and so is, once and by itself, what it was; then it is known who is to blame. What goes over
the pipe between them is JSON and samples, so neither runs what the other sends.

Not covered: several machines or replicas, see :mod:`speechlab.serving`.
"""

from __future__ import annotations

import asyncio
import atexit
import itertools
import json
import logging
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from speechlab import detached
from speechlab.audio import Wave
from speechlab.errors import InputError
from speechlab.passages import Passage, Word
from speechlab.units import SAMPLE_RATE, Seconds, clock

MOST = 64  # requests that are heard or wait, and …
LONGEST: Seconds = 4 * 3600.0  # … of audio: 0.9 GB
PATIENCE: Seconds = 600.0  # for the next passage of a request; a model may have to be fetched first
TRIES = 2  # of a request that the process died over

log = logging.getLogger(__name__)


class Hearing:
    """One request: its passages as they come, by ``async for``, which raises InputError where it fails.

    Attributes:
        seconds: That it took, once it has ended, without loading the model.
    """

    def __init__(self, worker: Worker, id: int, name: str, language: str, wave_N: Wave, patience: Seconds) -> None:
        self.id, self.name, self.language, self.wave_N = id, name, language, wave_N
        self.seconds: Seconds | None = None
        self.heard, self.tries = 0, 0
        self._worker, self._patience = worker, patience
        self._loop, self._coming = asyncio.get_running_loop(), asyncio.Queue[Passage | InputError | None]()

    async def __aiter__(self) -> AsyncIterator[Passage]:
        try:
            while True:
                try:
                    found = await asyncio.wait_for(self._coming.get(), self._patience)
                except TimeoutError:
                    self._worker.doubt(self._patience)
                    do = "try a smaller model, or later"
                    raise InputError("The recording was not heard in time.", got=f"nothing for {clock(self._patience)}", do=do) from None
                if isinstance(found, InputError):
                    raise found
                if found is None:
                    return
                yield found
        finally:
            self.close()

    def close(self) -> None:
        """Nobody waits for it any more; whoever still does gets no more passages."""
        self._worker.let_go(self)
        self.put(None)

    def put(self, found: Passage | InputError | None) -> None:
        """Hand on what has come, from any thread; None is the end."""
        with suppress(RuntimeError):  # the loop has ended, and with it who waited
            self._loop.call_soon_threadsafe(self._coming.put_nowait, found)


class Worker:
    """The process, as seen from this one, for any number of requests at once.

    Args:
        most: Requests that are heard or wait; more are refused.
    """

    def __init__(self, most: int = MOST) -> None:
        self._most, self._ids = most, itertools.count(1)
        self._waiting: dict[int, Hearing] = {}
        self._lock = threading.RLock()
        self._process: subprocess.Popen[bytes] | None = None
        self._line: Connection | None = None
        self._sending = ThreadPoolExecutor(1, "to the worker")
        self._up, self._at_hand, self._news = False, set[int](), 0.0

    @property
    def pid(self) -> int | None:
        """Of the process, if there is one."""
        return self._process.pid if self._process else None

    def ask(self, name: str, language: str, wave_N: Wave, patience: Seconds = PATIENCE) -> Hearing:
        """Have a recording heard; called in an event loop, which the passages come to.

        Args:
            name: Of the model, as for :func:`speechlab.systems.resolve`.
            language: Of the speech.
            wave_N: 16 kHz samples.
            patience: Seconds for the next passage.

        Raises:
            InputError: if too many wait.
        """
        with self._lock:
            seconds = sum(len(hearing.wave_N) for hearing in self._waiting.values()) / SAMPLE_RATE
            if len(self._waiting) >= self._most or (self._waiting and seconds + len(wave_N) / SAMPLE_RATE > LONGEST):
                raise InputError(
                    "Too many recordings wait to be heard.",
                    got=f"{len(self._waiting)} of them, {clock(seconds)} of audio",
                    expected=f"fewer than {self._most}, {clock(LONGEST)} together",
                    do="try again in a moment",
                )
            if self._process is None:
                self._start()
            hearing = Hearing(self, next(self._ids), name, language, wave_N, patience)
            self._waiting[hearing.id] = hearing
            self._send(hearing)
        return hearing

    def let_go(self, hearing: Hearing) -> None:
        """Forget a request; no more of its passages are heard."""
        with self._lock:
            if self._waiting.pop(hearing.id, None) and self._line:
                self._sending.submit(_say, self._line, {"drop": hearing.id})

    def doubt(self, patience: Seconds) -> None:
        """End the process if it has said nothing to anybody for so long, seconds; another one is started."""
        with self._lock:
            if self._process and time.monotonic() - self._news > patience:
                log.warning("the process that hears has said nothing for %s and is ended", clock(patience))
                self._process.kill()

    def close(self) -> None:
        """End the process and all requests."""
        with self._lock:
            process, self._process, self._line = self._process, None, None
            waiting = list(self._waiting.values())
            self._waiting.clear()
        for hearing in waiting:
            hearing.put(InputError("The server stops.", do="ask again when it is back"))
        if process:
            process.kill()
            process.wait()

    # -- the process ----------------------------------------------------------------------------------

    def _start(self) -> None:
        ours, theirs = Pipe()
        said = tempfile.TemporaryFile()  # noqa: SIM115 - read when it has died
        command = [sys.executable, "-m", "speechlab.worker", str(theirs.fileno())]
        # threads that spin while they wait would take the page's time; a session of its own, so that Ctrl-C reaches this process alone
        environment = {"OMP_WAIT_POLICY": "passive", **detached.MALLOC, **os.environ}
        how: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": said, "stderr": said, "start_new_session": True, "env": environment}
        try:
            process = subprocess.Popen(command, pass_fds=[theirs.fileno()], **how)
        except OSError as e:
            raise InputError("The process that hears cannot be started.", got=str(e), do="see speechlab doctor") from None
        finally:
            theirs.close()
        self._process, self._line, self._up, self._at_hand, self._news = process, ours, False, set(), time.monotonic()
        threading.Thread(target=self._listen, args=(process, ours, said), name="from the worker", daemon=True).start()
        atexit.unregister(self.close)
        atexit.register(self.close)

    def _send(self, hearing: Hearing) -> None:
        assert self._line
        about = {"id": hearing.id, "name": hearing.name, "language": hearing.language, "skip": hearing.heard, "alone": hearing.tries > 0}
        self._sending.submit(_say, self._line, about, hearing.wave_N)

    def _listen(self, process: subprocess.Popen[bytes], line: Connection, said: Any) -> None:
        """What one process says, until it dies."""
        with suppress(EOFError, OSError):
            while True:
                self._hear(process, json.loads(line.recv_bytes()))
        process.kill()  # if it has only closed the pipe
        process.wait()
        line.close()
        with self._lock:
            if self._process is process:
                said.seek(max(0, said.seek(0, os.SEEK_END) - 2000))
                log.warning("the process that hears ended with status %s: %s", process.returncode, said.read().decode("utf-8", "replace"))
                self._again()
        said.close()

    def _hear(self, process: subprocess.Popen[bytes], message: dict[str, Any]) -> None:
        with self._lock:
            if self._process is not process:
                return
            self._up, self._news = True, time.monotonic()
            if "at hand" in message:
                self._at_hand = set(message["at hand"])
                return
            hearing = self._waiting.get(message["id"])
            if hearing is None:
                return
            if "passage" in message:
                hearing.heard += 1
            else:
                del self._waiting[hearing.id]
        if "passage" in message:
            told = message["passage"]
            hearing.put(Passage(**{**told, "words": tuple(Word(**word) for word in told["words"])}))
        elif "error" in message:
            hearing.put(InputError(message["error"]))
        else:
            hearing.seconds = message["seconds"]
            hearing.put(None)

    def _again(self) -> None:
        """The process has died: blame, and start another for those who wait."""
        self._process = self._line = None
        for hearing in list(self._waiting.values()):
            if hearing.id in self._at_hand or not self._up:
                hearing.tries += 1
                if hearing.tries >= TRIES:
                    del self._waiting[hearing.id]
                    hearing.put(
                        InputError(
                            "The process that hears died over the recording, twice.",
                            got=f"{clock(len(hearing.wave_N) / SAMPLE_RATE)} of audio for {hearing.name}",
                            expected="memory enough for the model",
                            do="try a smaller model or a shorter recording",
                        )
                    )
        if self._waiting:
            try:
                self._start()
            except InputError as e:
                for hearing in self._waiting.values():
                    hearing.put(e)
                self._waiting.clear()
            for hearing in self._waiting.values():
                self._send(hearing)


SHARED = Worker()  # of all sessions; its process is started by the first request


def _say(line: Connection, message: dict[str, Any], wave_N: Wave | None = None) -> None:
    with suppress(OSError):  # it has died, which whoever listens sees
        line.send_bytes(json.dumps(message).encode())
        if wave_N is not None:
            line.send_bytes(np.ascontiguousarray(wave_N, dtype=np.float32).data.cast("B"))


# -- inside the process -----------------------------------------------------------------------------


def main() -> None:
    """Hear what comes over the pipe whose number is the argument, until its other end is closed."""
    from speechlab.batcher import Batcher

    line, lock = Connection(int(sys.argv[1])), threading.Lock()

    def say(message: dict[str, Any]) -> None:
        try:
            with lock:
                line.send_bytes(json.dumps(message).encode())
        except OSError:
            os._exit(0)  # nobody is there any more

    def tell(id: int, found: Any) -> None:
        if isinstance(found, Passage):
            say({"id": id, "passage": asdict(found)})
        elif isinstance(found, Exception):
            say({"id": id, "error": str(found)})
        else:
            say({"id": id, "seconds": found.seconds})

    batcher = Batcher(at_hand=lambda ids: say({"at hand": ids}))
    say({"at hand": []})
    while True:
        try:
            message = json.loads(line.recv_bytes())
            if "drop" in message:
                batcher.drop(message["drop"])
                continue
            wave_N = np.frombuffer(bytearray(line.recv_bytes()), np.float32)
        except (EOFError, OSError):
            os._exit(0)  # a batch at hand is for nobody
        how = {"skip": message["skip"], "alone": message["alone"]}
        batcher.ask(message["id"], message["name"], message["language"], wave_N, partial(tell, message["id"]), **how)


if __name__ == "__main__":
    main()
