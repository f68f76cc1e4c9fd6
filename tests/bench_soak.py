"""Whether the served app stays as small as it was: pages opened and left, and a working day of updates.

    python tests/bench_soak.py [--cycles 500] [--hours 8]

The server is a process of its own, started as ``speechlab dashboard`` does. Cycles: a visitor opens Runs or a run's page, gets it whole
and leaves; Bokeh lets a session go some 15 s after that, so what is measured is measured once the last is gone. Hours: an event a second,
which Chromium watches on a run's page; simulated, that is every :data:`PACE` seconds, faster than Chromium draws without a GPU, and as
often the server looks. Memory is the server's resident set and the page's JavaScript heap after a collection.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
from bench_app import SHOWN
from browser import answers, chromium, free_port, make_run, step_event
from visits import visit

PACE = 0.022  # seconds between two events, and between two looks
LINGER = 40  # seconds until the last session is let go
TOGETHER = 5
SERVER = "from speechlab import app, pulse; pulse.PERIOD, pulse.ASK = {pace}, 8 * {pace}; app.serve({root!r}, port={port})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cycles", type=int, default=500)
    parser.add_argument("--hours", type=float, default=8.0)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        runs = [make_run(root, steps=2000, epochs=10, name=f"run-{i}", end=i != 0) for i in range(3)]
        for measure in (lambda url, pid: cycles(url, pid, asked.cycles), lambda url, pid: hours(url, pid, runs[0], asked.hours)):
            port = free_port()
            server = subprocess.Popen([sys.executable, "-c", SERVER.format(pace=PACE, root=folder, port=port)], stderr=subprocess.DEVNULL)
            try:
                answers(port, 60)
                measure(f"http://127.0.0.1:{port}/", server.pid)
            finally:
                server.terminate()
                server.wait(30)


def resident(pid: int) -> float:
    """Of a process, in MB."""
    return psutil.Process(pid).memory_info().rss / 1e6


def cycles(url: str, pid: int, count: int) -> None:
    """Open pages and leave them; say what the server holds after each fifth."""

    async def seen(visitors: list) -> None:
        for visitor in visitors:
            await visitor.sees("2,000 of 2,000" if visitor.url == url else "2000 / 2000", 120)

    print("cycles  resident MB")
    for done in range(0, count + 1, max(count // 5, TOGETHER)):
        if done:
            for _ in range(max(count // 5, TOGETHER) // TOGETHER):
                visit([url if i % 2 else f"{url}run?run=run-0" for i in range(TOGETHER)], seen)
        else:
            visit([url, f"{url}run?run=run-0"] * 5, seen)  # what is loaded once
        time.sleep(LINGER)
        print(f"{done:6}  {resident(pid):8.1f}", flush=True)


def hours(url: str, pid: int, run: object, count: float) -> None:
    """Watch a run that gets an event a second for so long, in less time."""
    with chromium("--js-flags=--expose-gc") as browser:
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.goto(f"{url}run?run=run-0")
        page.wait_for_function(SHOWN, arg="2000 / ", polling=100, timeout=120_000)
        print("hours  resident MB  heap MB  lag steps")
        step, total = 2000, int(3600 * count)
        for i in range(total + 1):
            if i % max(total // 8, 1) == 0:
                began = time.monotonic()
                page.wait_for_function(SHOWN, arg=f"{step} / ", polling=100, timeout=120_000)
                heap = page.evaluate("(gc(), performance.memory.usedJSHeapSize / 1e6)")
                print(f"{i / 3600:5.1f}  {resident(pid):11.1f}  {heap:7.1f}  {(time.monotonic() - began) / PACE:9.0f}", flush=True)
            step += 1
            run.append(step_event(step, step))
            time.sleep(PACE)


if __name__ == "__main__":
    main()
