"""The Launch page: a config changed, tried and launched in Chromium, with real processes; and who may do what, without a browser."""

from __future__ import annotations

import asyncio
import re
import shutil
import socket
import time
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote

import pytest
from browser import EVIL, EVIL_TEXT, becomes, free_port, make_run, pwned, watch
from playwright.sync_api import expect
from test_app import served  # noqa: F401 - a fixture
from test_cluster import make
from test_jobs import driven, finish, ready  # noqa: F401 - a fixture

from speechlab import config, door, jobs, launch, login, rayjobs, text
from speechlab.catalogue import Catalogue
from speechlab.errors import InputError
from speechlab.jobs import Queue
from speechlab.launch import Launch
from speechlab.login import Visitor
from speechlab.runs import Run
from speechlab.scheduling import Room

ROOM = Room(2)


@pytest.fixture
def page_of(tmp_path):
    """The page over an empty folder, and its queue, without a server."""

    def made(room: Room = ROOM, clusters: tuple[str, ...] = (), **more) -> tuple[Launch, Queue]:
        queue = Queue(tmp_path, room, clusters)
        return Launch(Catalogue(tmp_path), queue, **more), queue

    return made


def runs(root: Path) -> list[Run]:
    return [Run(path.parent) for path in sorted(root.glob("*/config.yaml"))]


def launched(page: Launch) -> str:
    asyncio.run(page._launched(None))
    return page.said.value


# -- without a browser -------------------------------------------------------------------------------


def test_what_is_launched_is_the_config_as_changed_and_joins_the_queue(page_of, tmp_path, driven, monkeypatch):  # noqa: F811
    page, queue = page_of()
    page._form.enter("training.epochs", "7")
    page._form.enter("cluster.workers", "2")
    assert "speechlab train --config configs/quickstart.yaml --set training.epochs=7 --set cluster.workers=2" in page._command.value
    assert page.cpus.value == "2", "what it takes, if nobody says otherwise"
    page.cpus.value = "1"
    page._form.enter("training.epochs", "8")
    assert page.cpus.value == "1", "what somebody said stays"
    (run,) = runs(tmp_path) if "Launched:" in launched(page) else ()
    assert run.config == config.load("configs/quickstart.yaml", ["training.epochs=8", "cluster.workers=2"])
    (job,) = queue.jobs()
    assert (job.id, job.by, job.room, job.state) == (run.id, "visitor", Room(1), "running")
    monkeypatch.setattr(login, "visitor", lambda: Visitor("ann", "operator"))
    launched(page)
    assert [j.by for j in queue.jobs()] == ["visitor", "ann"], "turns go by who has logged in"


def test_who_may_not_change_anything_launches_tries_and_cancels_nothing(page_of, tmp_path, driven, monkeypatch):  # noqa: F811
    page, queue = page_of(Room(1))
    waiting = [make(tmp_path / ".", "cluster.workers=0") for _ in range(2)]
    for run in waiting:
        queue.submit(run, "ann")
    rows = launch._Waiting(page._catalogue, queue)._rows
    monkeypatch.setattr(door, "may_change", lambda: False)
    assert "change nothing" in launched(page)
    asyncio.run(page._dried(None))
    assert "change nothing" in page.said.value and page._apart is None
    for row in rows.values():
        asyncio.run(row._cancelled(None))
    assert [j.state for j in queue.jobs()] == ["running", "waiting"] and not waiting[0].stop_file.exists()
    assert len(runs(tmp_path)) == 2
    monkeypatch.setattr(door, "may_change", lambda: True)
    asyncio.run(rows[waiting[1].id]._cancelled(None))
    assert [j.state for j in queue.jobs()] == ["running", "cancelled"], "control"


@pytest.mark.parametrize(
    ("cpus", "told"), [("3", "wait for ever"), ("0", "wait for ever"), ("many", "no numbers"), ("1.5", "no numbers"), ("", "no numbers")]
)
def test_what_the_queue_refuses_leaves_no_run(page_of, tmp_path, cpus, told):
    page, queue = page_of()
    page.cpus.value = cpus
    assert told in launched(page)
    assert runs(tmp_path) == [] and queue.jobs() == []
    assert not page.go.disabled, "to be tried again"


def test_nothing_is_launched_while_something_is_wrong(page_of, tmp_path):
    page, _ = page_of()
    page._form.enter("training.epochs", "0")
    assert page.go.disabled and page.dry.disabled
    launched(page)
    asyncio.run(page._dried(None))
    assert runs(tmp_path) == [] and page._apart is None


@pytest.mark.parametrize("name", ["../../etc/passwd", "cluster/rayjob.yaml", "/etc/passwd", "quickstart", "run x"])
def test_no_config_is_chosen_by_a_path(page_of, name):
    with pytest.raises(InputError, match="no such config"):
        page_of(config=name)
    page, _ = page_of(config="smoke.yaml")
    assert page._form.experiment.name == "smoke", "control"
    page.config.value = name
    assert "no such config" in page.said.value and page.go.disabled and page.dry.disabled
    launched(page)
    assert runs(page._queue.root) == []


def test_a_config_that_broke_is_told(page_of, tmp_path):
    run = make(tmp_path)
    page, _ = page_of(run=run)
    assert page.config.value == f"run {run.id}" and page._form.experiment == run.config
    page.config.value = "smoke.yaml"
    (run.path / "config.yaml").write_text("name: [")
    page.config.value = f"run {run.id}"
    assert "YAML" in page.said.value


def test_a_run_is_sent_to_a_ray_cluster_that_the_server_was_given(page_of, tmp_path, monkeypatch):
    """The cluster itself is in tests/test_rayjobs.py."""
    sent = []
    monkeypatch.setattr(rayjobs, "submit", lambda run, address, by: sent.append((run.id, address, by)) or "raysubmit_1")
    monkeypatch.setattr(rayjobs, "state", lambda address, submission: {"raysubmit_1": "RUNNING"}[submission])
    page, queue = page_of(clusters=("http://127.0.0.1:8265",))
    page.place.value = "http://evil.example"
    assert "no such Ray cluster" in launched(page) and not sent
    page.place.value = "http://127.0.0.1:8265"
    assert not page.cpus.visible, "they are the cluster's to hand out"
    assert "Launched:" in launched(page)
    (run,) = runs(tmp_path)
    assert run.config.cluster.address == "auto"
    assert sent == [(run.id, "http://127.0.0.1:8265", "visitor")]
    (job,) = queue.jobs()
    assert (job.state, job.submission) == ("elsewhere", "raysubmit_1")
    assert queue.advance() == []
    waiting = launch._Waiting(page._catalogue, queue)
    asyncio.run(waiting._look())
    assert "running on http://127.0.0.1:8265" in waiting._rows[run.id]._text.value
    queue.clusters = ()
    monkeypatch.setattr(rayjobs, "state", lambda *_: pytest.fail("asked an address that only a file names"))
    asyncio.run(launch._Waiting(page._catalogue, queue)._look())
    monkeypatch.undo()
    page._queue.clusters = (nowhere := f"http://127.0.0.1:{free_port()}",)
    page.place.value = nowhere
    assert "does not take the job" in launched(page), "nobody answers there"
    assert len(runs(tmp_path)) == 1, "what the cluster does not take is taken back"


def test_a_job_s_file_is_read_again_only_when_it_has_changed(tmp_path, monkeypatch):
    queue = Queue(tmp_path, Room(1))
    for i in range(300):
        path = tmp_path / f"r{i}"
        path.mkdir()
        (path / "config.yaml").write_text("name: x\nquestion: y\n")
        if i % 2:
            queue._write(jobs.Job(path.name, "ann", 1.0, i, 1, turn=i, host=socket.gethostname()))
    read, parsed = [], jobs._parsed
    monkeypatch.setattr(jobs, "_parsed", lambda folder: read.append(folder.name) or parsed(folder))
    for _ in range(3):
        assert len(queue.jobs()) == 150
    assert len(read) == 150
    queue._write(replace(queue.job("r7"), turn=1000))
    assert len(queue.jobs()) == 150
    assert read[150:] == ["r7"]


# -- in the browser ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_whole_way_from_a_config_to_two_trainings_one_after_the_other(chrome, served, tmp_path, prompts):  # noqa: F811
    base = make(tmp_path, "cluster.workers=0")
    url = served(tmp_path, Queue(tmp_path, Room(1))) + "launch"
    page = chrome.new_context(viewport={"width": 1280, "height": 900}).new_page()
    log = watch(page)
    page.goto(f"{url}?run={base.id}")
    epochs = page.get_by_label("training.epochs")
    epochs.wait_for(timeout=60_000)
    # something is wrong, at its field; all of it by keyboard
    epochs.focus()
    page.keyboard.press("Control+A")
    page.keyboard.type("0")
    page.keyboard.press("Tab")
    page.get_by_role("alert").filter(has_text="got 0 (int), expected greater than or equal to 1").wait_for(timeout=30_000)
    go, dry = page.get_by_role("button", name="Launch", exact=True), page.get_by_role("button", name="Dry run", exact=True)
    expect(go).to_be_disabled()
    expect(dry).to_be_disabled()
    epochs.focus()
    page.keyboard.press("Control+A")
    page.keyboard.type("4000")
    page.keyboard.press("Tab")
    page.locator("pre", has_text="--set training.epochs=4000").wait_for(timeout=30_000)
    expect(page.get_by_role("alert")).to_have_count(0)
    card = page.get_by_role("button", name="training", exact=True)
    card.focus()
    page.keyboard.press("Enter")
    page.get_by_label("training.precision").select_option("fp32", timeout=30_000)
    # a dry run, and one that is cancelled
    dry.focus()
    page.keyboard.press("Enter")
    page.get_by_text("Dry run: ").wait_for(timeout=30_000)
    page.get_by_text("8000 in 4000 epochs").wait_for(timeout=120_000)
    page.get_by_text("of steps on this machine in one process").wait_for(timeout=120_000)
    dry.click()
    page.get_by_role("button", name="Cancel the dry run").click()
    page.get_by_text("The dry run was cancelled.").wait_for(timeout=30_000)
    # two trainings, of which one waits for the other
    go.focus()
    page.keyboard.press("Enter")
    page.get_by_text("Launched:").wait_for(timeout=60_000)
    epochs.fill("2")
    epochs.press("Tab")
    page.locator("pre", has_text="--set training.epochs=2").wait_for(timeout=30_000)
    time.sleep(1.1)  # run ids are of a second, and with the same name the links below would be two
    go.click()
    page.get_by_text("1st in line: needs 1 CPU").wait_for(timeout=60_000)
    first, second = sorted((j for j in Queue(tmp_path, Room(1)).jobs()), key=lambda j: j.number)
    page.locator(".badge", has_text=re.compile(r"running on 1 CPU, step \d+ of 8,000")).wait_for(timeout=120_000)
    page.get_by_role("button", name="Stop").click()
    page.locator(".badge", has_text="stopped").wait_for(timeout=120_000)
    page.locator(".badge", has_text="finished").wait_for(timeout=120_000)
    assert Run(tmp_path / first.id).state == "stopped" and Run(tmp_path / second.id).state == "finished"
    assert Run(tmp_path / second.id).config.training.epochs == 2
    page.get_by_role("link", name=second.id).last.click()
    page.locator(".tiles b").get_by_text("4 / 4").wait_for(timeout=60_000)
    assert log.external == []
    assert log.errors == []


@pytest.mark.slow
def test_no_text_in_any_field_or_job_becomes_markup(chrome, served, tmp_path, driven, monkeypatch):  # noqa: F811
    evil = "<img src=x onerror=window.pwned=1>"
    run = make_run(tmp_path, steps=9, name=evil, evil=EVIL_TEXT, end=False)
    queue = Queue(tmp_path, Room(1))
    queue.submit(run, EVIL_TEXT)
    waiting = make(tmp_path)
    queue.submit(Run(waiting.path.rename(tmp_path / (evil + "2"))), EVIL_TEXT)
    url = served(tmp_path, queue) + "launch"

    def visit() -> bool:
        page = chrome.new_page()
        page.goto(f"{url}?run={quote(evil)}")
        page.get_by_label("training.epochs").wait_for(timeout=60_000)
        page.get_by_text("by <script>").first.wait_for(timeout=30_000) if text.escape is not str else None
        for i, name in enumerate(("name", "question", "corpus.root", "training.epochs", "optim.lr")):
            page.get_by_label(name, exact=True).fill(EVIL[i % len(EVIL)] + EVIL_TEXT)
            page.get_by_label(name, exact=True).press("Tab")
        page.get_by_text("3 values cannot be used").wait_for(timeout=30_000)
        page.get_by_label(re.compile("^CPUs")).fill(EVIL_TEXT)
        page.wait_for_timeout(1500)
        page.get_by_role("heading", name="Queue").wait_for()
        found = becomes(lambda: pwned(page), 1 if text.escape is not str else 30)
        page.context.close()
        return found

    assert not visit()
    monkeypatch.setattr(text, "escape", str)  # negative control
    assert visit()


@pytest.mark.slow
@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_the_page_fits_and_says_what_stands_in_line(chrome, served, tmp_path, driven, width, scheme):  # noqa: F811
    queue = Queue(tmp_path, Room(2))
    names = ["whisper-tiny-20261128-010203-abcdef", "b", "c", "d"]
    found = []
    for name, by in zip(names, ("ann", "ann", "bob", "ann"), strict=True):
        run = make(tmp_path)
        found.append(Run(run.path.rename(tmp_path / name)))
        queue.submit(found[-1], by, Room(2 if name == "d" else 1))
    for run in found[:2]:
        ready(run)
    page = chrome.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme).new_page()
    log = watch(page)
    page.goto(served(tmp_path, queue) + "launch")
    page.get_by_text("2 running, 2 waiting; 0 CPUs free of 2 CPUs").wait_for(timeout=60_000)
    page.get_by_text("1st in line: needs 1 CPU").wait_for()
    page.get_by_text("2nd in line: needs 2 CPUs").wait_for()
    page.get_by_role("button", name="evaluation", exact=True).click()
    page.get_by_label("evaluation.batch_seconds").wait_for()
    expect(page.get_by_label("evaluation.search.beam"), "of a section that is left out").to_be_hidden()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    finish(found[0])
    page.locator(".badge", has_text="finished").wait_for(timeout=30_000)
    page.get_by_role("button", name="Cancel", exact=True).last.click()
    page.locator(".badge", has_text="cancelled").wait_for(timeout=30_000)
    shutil.rmtree(tmp_path / "b")  # a run that is deleted is in no queue
    page.get_by_role("link", name="b", exact=True).wait_for(state="detached", timeout=30_000)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert log.external == [] and log.errors == []
