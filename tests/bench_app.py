"""How fast the served app opens, and how soon an event on disk is on its pages.

    python tests/bench_app.py [--runs 10] [--steps 10000] [--events 60]
    python tests/bench_app.py --training configs/quickstart.yaml [--turns 6]

The server is a process of its own, started by ``speechlab dashboard``; Chromium opens its pages. Opening is measured from the request
to the last run's row, for the first visitor, for whom all events are read, and for the next; and one run's board to its last step.
Freshness is from the end of the write to the text on the page, on Runs and on Run. The cost of watching is the server's processor
time for each second with so many open pages, of a folder in which one run gets an event a second; with ``--training`` it is what ten
visitors cost a real training on this machine.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
from browser import chromium, free_port, make_run, step_event
from visits import Visitor, visit

from speechlab import config as configs
from speechlab.runs import Run

SHOWN = """words => { const find = root => { for (const e of root.querySelectorAll('*')) {
    if (e.matches('.tiles b, .faint') && e.textContent.includes(words)) return true;
    if (e.shadowRoot && find(e.shadowRoot)) return true; } return false; }; return find(document); }"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--events", type=int, default=60)
    parser.add_argument("--training", default="")
    parser.add_argument("--turns", type=int, default=6)
    asked = parser.parse_args()
    if asked.training:
        training(asked.training, asked.turns)
        return
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
            panning(browser, f"{url}run?run=run-1", f"{asked.steps} / {asked.steps}")
            run = Run(root / "run-0")
            fresh(browser, url, run, asked.steps, asked.events, "step {:,} of", "Runs")
            fresh(browser, f"{url}run?run=run-0", run, asked.steps + asked.events, asked.events, "{} /", "Run")
            watching(url, run, server.pid, asked.steps + 2 * asked.events)
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


FRAMES = """() => { window.frames_ = []; let last = performance.now();
    const next = now => { window.frames_.push(now - last); last = now; requestAnimationFrame(next); }; requestAnimationFrame(next); }"""


def panning(browser: Any, url: str, words: str) -> None:
    """Frames a second while a curve of a board is drawn about with the mouse, two seconds long."""
    _, page = opening(browser, url, words, 1)
    page.wait_for_timeout(3000)
    box = page.locator(".bk-Figure").first.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    start = "Bokeh.index.query_one(v => v.model.type == 'Figure').model.x_range.start"
    before = page.evaluate(start)
    page.mouse.move(x, y)
    page.mouse.down()
    page.evaluate(FRAMES)
    began = time.perf_counter()
    while (gone := time.perf_counter() - began) < 2:
        page.mouse.move(x + 60 * (gone % 1), y)
    frames = page.evaluate("window.frames_.slice(1)")
    page.mouse.up()
    after = page.evaluate(start)
    page.context.close()
    moved = "moved" if before != after else "DID NOT MOVE"
    print(f"panning: {len(frames) / 2:.0f} frames a second, the longest took {max(frames):.0f} ms; the curve {moved}")


def watching(url: str, run: Run, pid: int, step: int, seconds: int = 20) -> None:
    """The server's processor time with ten visitors of a page, of a folder in which one run gets an event a second."""
    server = psutil.Process(pid)

    async def together(visitors: list[Visitor]) -> None:
        nonlocal step
        await asyncio.sleep(4)
        before = sum(server.cpu_times()[:2])
        for _ in range(seconds):
            step += 1
            run.append(step_event(step, step))
            await asyncio.sleep(1)
        share = 100 * (sum(server.cpu_times()[:2]) - before) / seconds
        print(f"{len(visitors)} visitors of {visitors[0].url if visitors else 'nothing'}: the server takes {share:.1f} % of a core")

    time.sleep(20)  # until the server has let go of the pages before
    for pages in ([], [url] * 10, [f"{url}run?run={run.id}"] * 10):
        visit(pages, together)


def training(config: str, turns: int, seconds: int = 20) -> None:
    """What ten visitors of its page cost a training on the same machine: its speed with and without them, in turns.

    They are visitors without a browser, in this process, so what they take themselves is in it.
    """
    with tempfile.TemporaryDirectory() as folder:
        experiment = configs.load(
            config, ["training.epochs=1000", "cluster.workers=0", "training.validate_epochs=1000", "tracking.enabled=false"]
        )
        run = Run.create(experiment, folder)
        trainer = subprocess.Popen([sys.executable, "-m", "speechlab", "train", "--resume", str(run.path)], stdout=subprocess.DEVNULL)
        port = free_port()
        server = subprocess.Popen(
            [sys.executable, "-m", "speechlab", "dashboard", str(run.path), "--port", str(port)], stdout=subprocess.DEVNULL
        )
        speeds: dict[bool, list[float]] = {False: [], True: []}

        async def together(visitors: list[Visitor]) -> None:
            await asyncio.sleep(3)
            tail = run.tail()
            tail.read()
            await asyncio.sleep(seconds)
            steps = [e for e in tail.read() if e["kind"] == "step"]
            speeds[bool(visitors)].append(sum(e["heard_seconds"] for e in steps) / sum(e["step_seconds"] for e in steps))

        try:
            wait_for(port)
            while not len(run.steps()):
                time.sleep(0.5)
            time.sleep(10)
            for _ in range(turns):
                for count in (0, 10):
                    visit([f"http://127.0.0.1:{port}/run?run={run.id}"] * count, together)
        finally:
            for process in (trainer, server):
                process.kill()
                process.wait()
    ratios = [with_ / without for without, with_ in zip(speeds[False], speeds[True], strict=True)]
    cost = [100 * (1 - r) for r in ratios]
    told = ", ".join(f"{c:.1f}" for c in cost)
    print(f"ten visitors cost the training {statistics.median(cost):.1f} % (median of {turns} turns of {seconds} s: {told})")


if __name__ == "__main__":
    main()
