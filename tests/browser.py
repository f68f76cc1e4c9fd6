"""Helpers of the browser tests: Debian's Chromium under Playwright, a request log, a run to look at.

``chromium()`` starts the browser, ``Page`` log is kept by ``watch``; ``make_run`` writes a run directory
through the same writer that training uses.
"""

from __future__ import annotations

import io
import math
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from accessible import barriers
from playwright.sync_api import expect

from speechlab import config
from speechlab.runs import Run

CHROMIUM = os.environ.get("SPEECHLAB_CHROMIUM", "/usr/bin/chromium")
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--autoplay-policy=no-user-gesture-required",
]  # fmt: skip

expect.set_options(timeout=30_000)  # what follows from one click may come in several messages

EPOCH = time.time() + 3600  # so that a written run is not a silent one, however long the tests before take

EVIL = (
    "<script>window.pwned=1</script>",
    "<img src=x onerror=window.pwned=1>",
    "</script><script>window.pwned=1</script>",
    "\"'><svg onload=window.pwned=1>",
)
EVIL_TEXT = " ".join(EVIL)


@contextmanager
def chromium(*flags: str) -> Iterator[Any]:
    """A Playwright browser; the test is skipped where Chromium is not installed."""
    if not Path(CHROMIUM).exists():
        pytest.skip(f"{CHROMIUM} is not installed (Debian: apt-get install chromium)")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=[*FLAGS, *flags])
        try:
            yield browser
        finally:
            browser.close()


@dataclass
class Log:
    """What a page asked for and complained about."""

    requests: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    @property
    def external(self) -> list[str]:
        """Requests that left this machine or its file."""
        local = ("data:", "blob:", "about:", "file:", "http://127.0.0.1", "ws://127.0.0.1", "http://localhost", "ws://localhost")
        return [url for url in self.requests if not url.startswith(local)]


def watch(page: Any) -> Log:
    """Keep a page's requests, console errors and uncaught exceptions; call it before ``goto``."""
    log = Log()
    page.on("request", lambda request: log.requests.append(request.url))
    page.on("console", lambda message: log.errors.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: log.errors.append(str(error)))
    return log


def settle(page: Any) -> None:
    """Wait until Panel lets a click in JupyterLab through.

    Its comm holds events back while one is unanswered, for five seconds at most (``comm_manager.ts``). One that is sent before the
    kernel knows the comm never is answered, as happens on a busy machine, and a click in those five seconds would stay in the buffer.
    """
    page.wait_for_timeout(6000)


def on_a_telephone(path: Path) -> Iterator[Any]:
    """A page from the disk at 390 pixels, light and dark: it runs nothing, asks for nothing, fits, and keeps nobody out."""
    with chromium() as browser:
        for scheme in ("light", "dark"):
            tab = browser.new_page(viewport={"width": 390, "height": 800}, color_scheme=scheme)
            log = watch(tab)
            tab.goto(path.as_uri())
            assert not pwned(tab) and not log.external and not log.errors
            assert tab.evaluate("document.documentElement.scrollWidth") <= 390
            assert barriers(tab) == []
            yield tab


def pwned(page: Any) -> bool:
    """Whether injected script ran."""
    return bool(page.evaluate("window.pwned !== undefined"))


def canvas_pixels(page: Any, index: int = 0) -> str:
    """The pixels of a canvas (shadow roots are searched), to see whether it changed."""
    return str(page.locator("canvas").nth(index).evaluate("c => c.toDataURL()"))


def becomes(look: Callable[[], Any], patience: float = 30.0) -> bool:
    """Look until what is looked for is so; False where it is not for so many seconds."""
    until = time.monotonic() + patience
    while not look():
        if time.monotonic() > until:
            return False
        time.sleep(0.05)
    return True


def play(audio: Any) -> dict[str, float]:
    """Play an ``<audio>`` locator until it moves, for half a minute at most as a busy machine takes its time, and tell how far it came."""
    return dict(
        audio.evaluate(
            """async a => { a.muted = true; await a.play(); const until = performance.now() + 30000;
               while (!a.currentTime && performance.now() < until) await new Promise(r => setTimeout(r, 20));
               return {time: a.currentTime, ready: a.readyState, duration: a.duration}; }"""
        )
    )


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody holds."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def answers(port: int, patience: float = 10.0) -> None:
    """Wait until something listens on a port of 127.0.0.1."""
    until = time.monotonic() + patience
    while True:
        try:
            return socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            if time.monotonic() > until:
                raise
            time.sleep(0.05)


def on_a_page(make: Any, **more: Any) -> tuple[Any, str]:
    """Serve what ``make`` gives, from a thread for :func:`ended`; returns it and the address."""
    import panel as pn

    port = free_port()
    how = {"address": "127.0.0.1", "websocket_origin": [f"127.0.0.1:{port}"], "show": False, "threaded": True, "verbose": False}
    return pn.serve(make, port=port, **how, **more), f"http://127.0.0.1:{port}/"


def ended(*threads: Any) -> None:
    """End servers in threads, and wait until they have: two that run at once would take each other's page for the one whose turn it is,
    which Bokeh keeps for a whole process."""
    for thread in threads:
        thread.stop()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive(), "a server did not end within a minute"


def mp3(seconds: float = 1.0, hertz: float = 440.0) -> bytes:
    """A real MP3 file of a tone."""
    import soundfile

    wave_N = (0.2 * np.sin(2 * np.pi * hertz * np.arange(int(16_000 * seconds)) / 16_000)).astype("float32")
    out = io.BytesIO()
    soundfile.write(out, wave_N, 16_000, format="MP3")
    return out.getvalue()


SENTENCES = [
    ("please enter your password followed by the pound key", "please enter your password followed by the pound key"),
    ("the number you have dialed is not in service", "the number you dialed is not in surface"),
    ("all of our agents are busy at the moment", "all of our agents are very busy at the moment"),
    ("thank you for calling, goodbye", "thank you for calling goodbye"),
]


def make_run(
    root: Path,
    steps: int = 60,
    epochs: int = 3,
    name: str | None = None,
    evil: str = "",
    end: bool = True,
    first: int = 1,
    question: str | None = None,
) -> Run:
    """Write a run directory such as training leaves behind.

    Args:
        root: Where runs are kept.
        steps: How many steps it has.
        epochs: How many validations it has.
        name: Rename the directory so.
        evil: Text to put wherever a run holds text.
        end: Whether it ended.
        first: Number of the first step.
        question: The config's question.
    """
    experiment = config.Experiment(name="views", question=question or evil or "Does it draw?")
    run = Run.create(experiment, root)
    if name:
        run = Run(run.path.rename(root / name))
    for i, pitch in enumerate((300, 400, 500, 600)):
        (run.path / "samples" / f"{i:x}.mp3").write_bytes(mp3(1.5, pitch))
    run.append(
        {"kind": "start", "time": EPOCH, "steps": steps, "epochs": epochs, "workers": 1, "device": evil or "cpu", "resumed_from": None}
    )
    run.append({"kind": "message", "time": EPOCH + 0.1, "level": "warning", "text": evil or "3 clips were longer than 30 s and set aside"})
    for step in range(first, steps + 1):
        run.append(step_event(step, steps, epochs))
        if step % max(steps // epochs, 1) == 0:
            run.append(validation_event(step, steps, epochs, evil))
    if end:
        run.append({"kind": "end", "time": EPOCH + steps / 10 + 1, "step": steps, "seconds": steps, "best": {"step": steps, "wer": 0.027}})
    return run


def step_event(step: int, steps: int = 60, epochs: int = 3, **values: Any) -> dict[str, Any]:
    """A step event with plausible numbers."""
    share, noise = step / steps, math.sin(step * 12.9898) % 0.7
    event = {
        "kind": "step", "time": EPOCH + step / 10, "step": step, "epoch": min(int(share * epochs), epochs - 1),
        "loss": 0.2 + 1.5 * math.exp(-4 * share) + 0.4 * noise, 
        "lr": 1e-6 + 3e-5 * min(step / (0.1 * steps), 0.5 + 0.5 * math.cos(math.pi * share)),
        "grad_norm": 1 + 6 * noise, "clips": 30, "audio_seconds": 50.0, "padded_seconds": 54 + 3 * noise, "full_context": step % 12 == 0,
        "step_seconds": 0.7 + noise / 3, "wait_seconds": 0.02 + noise / 20, "memory_bytes": int(1.2e9 + 3e8 * share),
    }  # fmt: skip
    return {**event, **values}


def validation_event(step: int, steps: int = 60, epochs: int = 3, evil: str = "") -> dict[str, Any]:
    """A validation event with four clips."""
    samples = [
        {
            "id": evil or f"en/clip-{i}",
            "reference": evil or ref,
            "hypothesis": (evil + " x") if evil else hyp,
            "audio": f"samples/{i:x}.mp3",
        }
        for i, (ref, hyp) in enumerate(SENTENCES)
    ]
    wer = 0.07 - 0.04 * step / steps
    return {
        "kind": "validation",
        "time": EPOCH + step / 10,
        "step": step,
        "epoch": 0,
        "wer": wer,
        "cer": wer / 2,
        "clips": 4,
        "seconds": 1.0,
        "samples": samples,
    }
