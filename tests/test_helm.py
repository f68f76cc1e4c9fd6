"""What can be done about a run from its page, by itself and in Chromium: started by way of the queue, taken out, stopped, resumed."""

from __future__ import annotations

import asyncio
import html
import re
import shutil
import subprocess
import sys

import pytest
from browser import step_event
from playwright.sync_api import expect
from test_app import opened, runs, says, served  # noqa: F401 - fixtures
from test_cluster import make, wait_for
from test_jobs import driven, finish, made, ready, until  # noqa: F401 - a fixture

from speechlab import cluster, door
from speechlab.catalogue import Catalogue
from speechlab.errors import InputError
from speechlab.helm import Helm
from speechlab.jobs import Queue
from speechlab.runs import Run
from speechlab.scheduling import Room


@pytest.fixture
def refused(monkeypatch):
    """In place of a driver, a process that ends at once; the runs it was launched for."""
    launched = []

    def launch(run: Run, environment):
        launched.append(run.path)
        return subprocess.Popen([sys.executable, "-S", "-c", "raise SystemExit(1)", str(run.path)])

    monkeypatch.setattr(cluster, "launch", launch)
    return launched


def stands(helm: Helm) -> tuple[str, str]:
    """What a page offers to do, or nothing, and what it says."""
    helm.tick()
    offered = "" if not helm._ask.visible or helm._ask.disabled else helm._ask.label
    return offered, html.unescape(re.sub("<[^>]*>", "", helm._said.value)).strip()


def do(helm: Helm) -> None:
    helm._confirm(True)
    asyncio.run(helm._act(None))


# -- without a browser -------------------------------------------------------------------------------


def test_a_run_is_started_when_there_is_room_and_can_be_taken_out_before(tmp_path, driven):  # noqa: F811
    catalogue, queue = Catalogue(tmp_path), Queue(tmp_path, Room(1))
    a, b = made(tmp_path, "a"), made(tmp_path, "b")
    first, second = Helm(catalogue, queue, a), Helm(catalogue, queue, b)
    assert stands(first) == ("Start", "")
    do(first)
    assert stands(first)[0] in ("", "Stop"), "it begins, or has begun"
    ready(a)
    until(lambda: stands(first) == ("Stop", ""))
    do(second)
    assert stands(second) == ("Take out", "Waits in the queue for 1 CPU.")
    assert list(driven) == ["a"], "nothing over what there is"
    do(second)
    assert stands(second) == ("Start", "")
    assert queue.job("b").state == "cancelled"
    do(second)
    assert stands(second)[0] == "Take out"
    do(first)
    assert stands(first) == ("", "It stops after the step at hand, with a checkpoint.")
    finish(a)
    until(lambda: stands(first) == ("", ""), 5)
    assert a.state == "finished"
    assert [job.id for job in queue.advance()] == ["b"]
    ready(b)
    until(lambda: stands(second) == ("Stop", ""))


def test_a_driver_that_never_began_says_why_on_every_page(tmp_path, refused):
    run = made(tmp_path, "a")
    (run.path / "driver.log").write_text("no <memory> left")
    queue = Queue(tmp_path, Room(1))
    helm = Helm(Catalogue(tmp_path), queue, run)
    do(helm)
    until(lambda: stands(helm) == ("Start", "Its driver ended: no <memory> left"))
    assert "<memory>" not in helm._said.value
    assert stands(Helm(Catalogue(tmp_path), queue, run)) == ("Start", "Its driver ended: no <memory> left")
    assert refused == [run.path]
    run.append({"kind": "start", "steps": 9, "time": 1})  # of somebody who then started it by hand
    run.append({"kind": "stopped", "step": 1})
    until(lambda: stands(helm) == ("Resume", ""))


def test_what_was_sent_elsewhere_is_not_started_here_too(tmp_path, driven):  # noqa: F811
    run = made(tmp_path, "a")
    queue = Queue(tmp_path, Room(1), ("http://cluster:8265",))
    queue.note(run, "ann", "http://cluster:8265", "raysubmit_1")
    assert stands(Helm(Catalogue(tmp_path), queue, run)) == ("", "It was sent to http://cluster:8265.")
    assert driven == {}


def test_nothing_is_done_for_a_visitor_who_may_not(tmp_path, driven, monkeypatch):  # noqa: F811
    run = made(tmp_path, "a")
    queue = Queue(tmp_path, Room(1))
    before = Helm(Catalogue(tmp_path), queue, run)
    monkeypatch.setattr(door, "may_change", lambda: False)
    do(before)  # the button was there before the role was taken
    assert stands(before)[1] == door.OPERATORS
    assert stands(Helm(Catalogue(tmp_path), queue, run)) == ("", door.OPERATORS)
    assert queue.jobs() == [] and driven == {}
    monkeypatch.setattr(door, "may_change", lambda: True)
    do(before)
    assert list(driven) == ["a"]


def test_a_refusal_of_the_queue_is_told(tmp_path, driven, monkeypatch):  # noqa: F811
    helm = Helm(Catalogue(tmp_path), Queue(tmp_path, Room(1)), made(tmp_path, "a"))

    def refuse(*_):
        raise InputError("The disk is full.")

    monkeypatch.setattr(Queue, "submit", refuse)
    do(helm)
    assert stands(helm) == ("Start", "The disk is full.")


# -- in Chromium -------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_run_that_is_deleted_while_it_is_shown_says_so(chrome, served, runs):  # noqa: F811
    page, log = opened(chrome, served(runs) + "run?run=live")
    page.locator(".tiles b").first.wait_for(timeout=60_000)
    shutil.rmtree(runs / "live")
    says(page, "Run live is gone")
    page.locator(".tiles b").first.wait_for(state="hidden", timeout=30_000)
    assert log.errors == []


@pytest.mark.slow
def test_a_run_is_stopped_after_a_confirmation(chrome, served, runs):  # noqa: F811
    run = Run(runs / "live")
    with run.lock():
        page, log = opened(chrome, served(runs) + "run?run=live")
        stop = page.get_by_role("button", name="Stop")
        stop.wait_for(timeout=60_000)
        stop.click()
        says(page, "Stop after the step at hand?")
        page.get_by_role("button", name="No").click()
        stop.wait_for(timeout=30_000)
        assert not run.stop_file.exists()
        stop.click()
        page.get_by_role("button", name="Yes").click()
        says(page, "It stops after the step at hand")
        assert run.stop_file.exists()
        expect(stop).to_be_disabled()
        run.append({"kind": "stopped", "step": 9})
        run.stop_file.unlink()
    page.get_by_role("button", name="Resume").wait_for(timeout=30_000)
    expect(page.locator(".badge").first).to_have_text("stopped")
    assert log.errors == []


@pytest.mark.slow
def test_a_stopped_run_is_resumed_and_followed(chrome, served, runs, refused):  # noqa: F811
    run = Run(runs / "live")
    run.append({"kind": "stopped", "step": 9})
    (run.path / "driver.log").write_text("no memory left")
    page, log = opened(chrome, served(runs) + "run?run=live")
    resume = page.get_by_role("button", name="Resume")
    resume.wait_for(timeout=60_000)
    resume.click()
    says(page, "Go on from the last checkpoint")
    assert refused == []
    page.get_by_role("button", name="Yes").click()
    says(page, "Its driver ended: no memory left")
    assert refused == [run.path]
    with run.lock():
        run.append({"kind": "start", "steps": 20, "epochs": 1, "resumed_from": 9})
        run.append(step_event(10, 20))
        page.locator(".tiles b").get_by_text("10 / 20").wait_for(timeout=30_000)
        page.get_by_role("button", name="Stop").wait_for(timeout=30_000)
        expect(resume).to_have_count(0)
    assert log.errors == []


@pytest.mark.slow
def test_a_real_training_is_started_stopped_and_resumed_from_its_page(chrome, served, tmp_path, prompts):  # noqa: F811
    run = make(tmp_path, "cluster.workers=0", "training.epochs=400")
    page, log = opened(chrome, served(tmp_path) + f"run?run={run.id}")
    badge = page.locator(".badge").first

    def do(deed: str) -> None:
        page.get_by_role("button", name=deed).click(timeout=120_000)
        page.get_by_role("button", name="Yes").click()

    do("Start")
    wait_for(run, "step", 5)
    do("Stop")
    badge.filter(has_text="stopped").wait_for(timeout=120_000)
    stopped = run.events()[-1]
    assert stopped["kind"] == "stopped" and stopped["step"] < 800
    do("Resume")
    badge.filter(has_text="finished").wait_for(timeout=300_000)
    assert [e["resumed_from"] for e in run.events() if e["kind"] == "start"] == [None, stopped["step"]]
    page.get_by_role("button", name="Resume").wait_for(state="hidden")
    expect(page.locator("body")).not_to_contain_text("Its driver ended")
    assert log.errors == []
