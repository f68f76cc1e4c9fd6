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
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
from browser import answers, chromium, free_port, make_run, step_event
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
    with tempfile.TemporaryDirectory() as folder:
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
            url, run = f"http://127.0.0.1:{port}/", Run(root / "run-0")
            answers(port, 60)
            print(f"server up after {time.perf_counter() - began:.1f} s")
            with chromium() as browser:
                seen(browser, url, run, asked.runs, asked.steps, asked.events)
            watching(url, run, server.pid, asked.steps + 2 * asked.events)
        finally:
            server.terminate()
            server.wait(30)


def seen(browser: Any, url: str, run: Run, runs: int, steps: int, events: int) -> None:
    """What there is to see in a browser: pages that open, a curve that is drawn about, events that come."""
    for visitor in ("first", "second", "third"):
        seconds, page = opening(browser, url, f"step {steps:,} of", runs)
        print(f"Runs, {visitor} visitor: all {runs} rows after {seconds:.2f} s")
        page.context.close()
    for visitor in ("first", "second"):
        seconds, page = opening(browser, f"{url}run?run=run-1", f"{steps} / {steps}", 1)
        print(f"Run, {visitor} visitor: last step after {seconds:.2f} s")
        page.context.close()
    panning(browser, f"{url}run?run=run-1", f"{steps} / {steps}")
    fresh(browser, url, run, steps, events, "step {:,} of", "Runs")
    fresh(browser, f"{url}run?run=run-0", run, steps + events, events, "{} /", "Run")


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
    page.locator(".bk-Figure").first.get_by_title("Pan").click()
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


def training(config: str, turns: int, seconds: int = 12) -> None:
    """What ten visitors of its page cost a training on the same machine, which it has to itself otherwise.

    In turns the server goes on and is stopped by a signal, with all pages open. A training that is bound by its processors gets on as it
    gets them: what is told is the processor time that it gets, which varies less than its steps do, of clips of all lengths. The visitors
    are without a browser, in this process, so that what they take themselves is in it.
    """
    with tempfile.TemporaryDirectory() as folder:
        experiment = configs.load(
            config, ["training.epochs=1000", "cluster.workers=0", "training.validate_epochs=1000", "tracking.enabled=false"]
        )
        run = Run.create(experiment, folder)
        python, quiet = [sys.executable, "-m", "speechlab"], {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        patient = {**os.environ, "OMP_WAIT_POLICY": "passive"}  # a thread that waits for another takes nothing
        port = free_port()
        processes = [
            psutil.Popen([*python, "train", "--resume", str(run.path)], env=patient, **quiet),
            psutil.Popen([*python, "dashboard", str(run.path), "--port", str(port)], **quiet),
        ]
        trainer, server = processes

        async def together(visitors: list[Visitor]) -> None:
            await asyncio.sleep(10)
            events = run.tail()
            events.read()
            shares: dict[bool, list[list[float]]] = {True: [], False: []}
            for turn in range(2 * turns):
                goes_on = turn % 2 == 0
                server.resume() if goes_on else server.suspend()
                await asyncio.sleep(0.5)
                before, began = [sum(p.cpu_times()[:2]) for p in processes], time.perf_counter()
                await asyncio.sleep(seconds)
                took = time.perf_counter() - began
                shares[goes_on].append([100 * (sum(p.cpu_times()[:2]) - t) / took for p, t in zip(processes, before, strict=True)])
            server.resume()
            steps = [e["step_seconds"] for e in events.read() if e["kind"] == "step"]
            cost = [100 * (1 - a[0] / b[0]) for a, b in zip(shares[True], shares[False], strict=True)]
            alone, took = (statistics.mean(s[i] for s in shares[on]) for i, on in ((0, False), (1, True)))
            error = statistics.stdev(cost) / len(cost) ** 0.5
            each = ", ".join(f"{c:.1f}" for c in cost)
            print(f"the training takes {alone:.0f} % of a core alone, a step {statistics.median(steps):.1f} s; "
                  f"the server {took:.1f} % of a core, so at most {100 * took / alone:.1f} % of the training's")  # fmt: skip
            print(f"ten visitors cost the training {statistics.mean(cost):.1f} +- {error:.1f} % "
                  f"(mean and standard error of {turns} turns of {seconds} s: {each})")  # fmt: skip

        try:
            answers(port, 60)
            while not len(run.steps()):
                time.sleep(0.5)
            visit([f"http://127.0.0.1:{port}/run?run={run.id}"] * 10, together)
        finally:
            for process in processes:
                process.kill()
                process.wait()


if __name__ == "__main__":
    main()
