"""How fast the served app opens, and how soon an event on disk is on its pages.

    python tests/bench_app.py [--runs 10] [--steps 10000] [--events 60]

The server is a process of its own, started by ``speechlab dashboard``; Chromium opens its pages. Opening is measured from the request
to the last run's row, for the first visitor, for whom all events are read, and for the next; and one run's board to its last step.
Freshness is from the end of the write to the text on the page, on Runs and on Run. The cost of watching is the server's processor
time for each second with so many open pages, of a folder in which one run gets an event a second.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
from browser import chromium, free_port, make_run, step_event

from speechlab.runs import Run

SHOWN = """words => { const find = root => { for (const e of root.querySelectorAll('*')) {
    if (e.matches('.tiles b, .faint') && e.textContent.includes(words)) return true;
    if (e.shadowRoot && find(e.shadowRoot)) return true; } return false; }; return find(document); }"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--events", type=int, default=60)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, chromium() as browser:
        root = Path(folder)
        for i in range(asked.runs):
            make_run(root, steps=asked.steps, epochs=10, name=f"run-{i}", end=i != 0)
        size = sum(p.stat().st_size for p in root.glob("*/events.jsonl"))
        print(f"{asked.runs} runs of {asked.steps:,} steps, {size / 1e6:.0f} MB of events")
        port = free_port()
        command = [sys.executable, "-m", "speechlab", "dashboard", str(root / "run-0"), "--port", str(port)]
        began = time.perf_counter()
        server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            url = f"http://127.0.0.1:{port}/"
            wait_for(port)
            print(f"server up after {time.perf_counter() - began:.1f} s")
            last = f"step {asked.steps:,} of"
            for visitor in ("first", "second", "third"):
                seconds, page = opening(browser, url, last, asked.runs)
                print(f"Runs, {visitor} visitor: all {asked.runs} rows after {seconds:.2f} s")
                page.context.close()
            for visitor in ("first", "second"):
                seconds, page = opening(browser, f"{url}run?run=run-1", f"{asked.steps} / {asked.steps}", 1)
                print(f"Run, {visitor} visitor: last step after {seconds:.2f} s")
                page.context.close()
            run = Run(root / "run-0")
            fresh(browser, url, run, asked.steps, asked.events, "step {:,} of", "Runs")
            fresh(browser, f"{url}run?run=run-0", run, asked.steps + asked.events, asked.events, "{} /", "Run")
            watching(browser, url, run, server.pid, asked.steps + 2 * asked.events)
        finally:
            server.terminate()
            server.wait(30)


def wait_for(port: int) -> None:
    """Wait until somebody listens."""
    import socket

    for _ in range(600):
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            time.sleep(0.1)


def opening(browser: Any, url: str, words: str, rows: int) -> tuple[float, Any]:
    """Seconds until a page shows its last words, in a browser that has nothing of it yet."""
    page = browser.new_context(viewport={"width": 1280, "height": 900}).new_page()
    began = time.perf_counter()
    page.goto(url, wait_until="commit")
    page.wait_for_function(SHOWN, arg=words, polling=20, timeout=120_000)
    if rows > 1:
        while page.locator(".run .name").count() < rows:
            page.wait_for_timeout(10)
    return time.perf_counter() - began, page


def fresh(browser: Any, url: str, run: Run, steps: int, events: int, pattern: str, name: str) -> None:
    """Seconds from an event on disk to its text on the page."""
    page = browser.new_context(viewport={"width": 1280, "height": 900}).new_page()
    page.goto(url)
    page.wait_for_function(SHOWN, arg=pattern.format(steps), polling=20, timeout=120_000)
    delays = []
    for step in range(steps + 1, steps + events + 1):
        time.sleep(0.137)  # so that writes fall anywhere in a period
        run.append(step_event(step, steps))
        written = time.perf_counter()
        page.wait_for_function(SHOWN, arg=pattern.format(step), polling=20, timeout=60_000)
        delays.append(1000 * (time.perf_counter() - written))
    page.context.close()
    p95 = sorted(delays)[int(0.95 * len(delays))]
    print(f"{name}: event to page, median {statistics.median(delays):.0f} ms, 95 % {p95:.0f} ms, worst {max(delays):.0f} ms of {events}")


def watching(browser: Any, url: str, run: Run, pid: int, step: int, seconds: int = 20) -> None:
    """The server's processor time with more and more open pages."""
    server, pages = psutil.Process(pid), []
    time.sleep(20)  # until the server has let go of the pages before
    for count in (0, 1, 10):
        while len(pages) < count:
            pages.append(browser.new_context().new_page())
            pages[-1].goto(url if len(pages) % 2 else f"{url}run?run={run.id}")
            pages[-1].locator(".speechlab").first.wait_for()
        time.sleep(2)
        before = sum(server.cpu_times()[:2])
        for _ in range(seconds):
            step += 1
            run.append(step_event(step, step))
            time.sleep(1)
        print(f"{count} open pages: the server takes {100 * (sum(server.cpu_times()[:2]) - before) / seconds:.1f} % of a core")


if __name__ == "__main__":
    main()
