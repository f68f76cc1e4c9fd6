"""The served app goes on: with many visitors at once, and after its server was killed and started again."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO

import pytest
from browser import answers, chromium, free_port, make_run, step_event, watch
from playwright.sync_api import expect
from test_app import says, served  # noqa: F401 - a fixture
from visits import visit

from speechlab import pulse

SESSIONS = 50


@pytest.mark.slow
def test_fifty_visitors_at_once_all_see_what_comes(tmp_path):
    """In a process of its own: what Bokeh holds for a whole process, it would hold of servers that other tests have ended."""
    root = tmp_path / "reports"
    root.mkdir()
    runs = [make_run(root, steps=200, name=f"run-{i}", end=i != 0) for i in range(5)]
    port = free_port()
    url = f"http://127.0.0.1:{port}/"
    pages = [url, f"{url}run?run=run-0", f"{url}run?run=run-1", f"{url}system", f"{url}compare"]

    def told(visitor, step):
        return f"step {step} of" if visitor.url == url else f"{step} / "

    async def together(visitors):
        watching = [v for v in visitors if v.url in pages[:2]]
        await asyncio.gather(*(v.sees(told(v, 200)) for v in watching))
        assert not any(told(v, 201) in v.said for v in watching), "control"
        runs[0].append(step_event(201, 300))
        began = time.monotonic()
        await asyncio.gather(*(v.sees(told(v, 201)) for v in watching))
        return time.monotonic() - began, len(watching)

    with open(tmp_path / "server.log", "w") as log:
        server = start(runs[0].path, port, log)
    try:
        answers(port, 120)
        with ThreadPoolExecutor(1) as apart:  # Playwright's loop runs in this thread
            seconds, watching = apart.submit(visit, [pages[i % len(pages)] for i in range(SESSIONS)], together).result()
    finally:
        server.kill()
        server.wait()
    print(f"{SESSIONS} visitors, {watching} of them saw an event {seconds:.2f} s after it was written")
    first, *more = (tmp_path / "server.log").read_text().splitlines()
    assert url in first, "control: what it says is kept"
    # not by the word ERROR: where nobody has set logging up, most loggers write the message alone
    assert [line for line in more if not re.match(r"(\S+ \S+ )?WARNING:", line)] == []


@pytest.mark.slow
def test_what_an_event_changes_on_a_page_is_one_message(served, tmp_path):  # noqa: F811
    run = make_run(tmp_path, steps=20, name="one", end=False)
    url = f"{served(tmp_path)}run?run=one"

    async def together(visitors):
        (visitor,) = visitors
        await visitor.sees("20 / 20")
        await asyncio.sleep(2)  # the page may have more to say of itself
        said = len(visitor.said)
        run.append(step_event(21, 30))
        await visitor.sees("21 / ")
        await asyncio.sleep(2)
        return visitor.said[said:]

    with ThreadPoolExecutor(1) as apart:
        said = apart.submit(visit, [url], together).result()
    assert said.count("ColumnsStreamed") == said.count("21 / ") == said.count("PATCH-DOC") == 1


@pytest.mark.slow
def test_a_page_that_does_not_keep_up_is_not_sent_more_than_it_draws(served, tmp_path, monkeypatch):  # noqa: F811
    """Its script is held up for as long as events come; then it sees the newest."""
    monkeypatch.setattr(pulse, "ASK", 0.0)
    run = make_run(tmp_path, steps=20, name="one", end=False)
    url = f"{served(tmp_path)}run?run=one"

    def sent(browser, step: int) -> int:
        page, frames = browser.new_page(), []
        page.on("websocket", lambda socket: socket.on("framereceived", lambda frame: frames.append(frame)))
        page.goto(url)
        says(page, f"{step} / ")
        page.wait_for_timeout(3000)
        before = len(frames)
        page.evaluate("setTimeout(() => { const end = Date.now() + 8000; while (Date.now() < end); })")
        for i in range(step + 1, step + 33):
            run.append(step_event(i, 100))
            time.sleep(0.25)
        says(page, f"{step + 32} / ")
        page.close()
        return sum("ColumnsStreamed" in str(frame) for frame in frames[before:])

    with chromium() as browser:
        assert 1 <= sent(browser, 20) <= 4
        monkeypatch.setattr(pulse.Echo, "late", False)
        assert sent(browser, 52) > 4, "control"


def start(path: Path, port: int, told: int | IO[str] = subprocess.DEVNULL) -> subprocess.Popen:
    command = [sys.executable, "-u", "-m", "speechlab", "dashboard", str(path), "--port", str(port)]
    return subprocess.Popen(command, stdout=told, stderr=told, env=os.environ | {"PYTHONWARNINGS": "ignore"})


@pytest.mark.slow
def test_pages_come_back_after_their_server_was_killed_and_started_again(tmp_path):
    make_run(tmp_path, steps=5, name="one")
    port = free_port()
    server = start(tmp_path / "one", port)
    try:
        with chromium() as browser:
            context = browser.new_context(viewport={"width": 1280, "height": 900})
            runs, playground = context.new_page(), context.new_page()
            log = watch(runs)
            answers(port, 60)
            runs.goto(f"http://127.0.0.1:{port}/")
            says(runs, "1 run:")
            log.errors.clear()
            words = runs.get_by_label("Filter by name")
            words.fill("nothing")
            says(runs, "No run holds")
            words.fill("finished")
            words.press("Tab")
            runs.wait_for_url("**/?filter=finished")
            playground.goto(f"http://127.0.0.1:{port}/playground")
            said = playground.get_by_label("What was said")
            said.fill("what nobody wants to type twice")
            server.kill()
            server.wait()
            for page in (runs, playground):
                says(page, "has not answered since")
            assert runs.get_by_text("1 run:").count() == 1, "what was shown stays"
            make_run(tmp_path, steps=7, name="two")
            server = start(tmp_path / "one", port)
            says(runs, "2 runs:", timeout=120_000)
            expect(runs.get_by_text("has not answered since")).to_have_count(0)
            expect(runs.get_by_label("Filter by name")).to_have_value("finished")
            anew = playground.get_by_role("button", name="Load the page anew")
            anew.wait_for(timeout=120_000)
            assert said.input_value() == "what nobody wants to type twice", "nothing that was entered goes unasked"
            anew.click()
            says(playground, "Choose a file or record something.")
            expect(said).to_have_value("")
            expect(anew).to_have_count(0)
    finally:
        server.kill()
        server.wait()
