"""The machine's page: what it reads, that it asks nothing twice, and what it says of what is not there."""

from __future__ import annotations

import math
import socket
import sqlite3
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from browser import EVIL_TEXT
from test_plots import live_markup

from speechlab import machine, text
from speechlab.machine import Machine, Reading, Service, machine_html


def test_processor_memory_and_disk_are_this_machine_s(tmp_path):
    found = {r.what: r for r in machine.readings(tmp_path / "not" / "yet")}
    assert {"processor", "memory", "disk of the runs"} <= set(found)
    assert all(0 <= r.share <= 1 for r in found.values() if r.share == r.share)
    memory = psutil.virtual_memory()
    assert found["memory"].share == pytest.approx(1 - memory.available / memory.total, abs=0.1)


def test_a_gpu_is_told_by_the_driver_s_tool(tmp_path, monkeypatch):
    tool = tmp_path / "nvidia-smi"
    tool.write_text('#!/bin/sh\necho "NVIDIA H100 80GB HBM3, 37, 40960, 81920, 51"\necho "Odd, [N/A], [N/A], [N/A], 40"\n')
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    first, second = machine.gpus()
    assert (first.what, first.share) == ("GPU 0", 0.5)
    assert first.told == "NVIDIA H100 80GB HBM3: 37 % busy, 40.0 of 80.0 GiB, 51 °C"
    assert math.isnan(second.share)
    assert "memory not known" in second.told
    tool.write_text("#!/bin/sh\nexit 9\n")
    assert machine.gpus() == []
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    assert machine.gpus() == []


def test_a_driver_that_hangs_is_given_up(tmp_path, monkeypatch):
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\nexec sleep 3600\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(machine, "PATIENCE", 0.2)
    assert machine.gpus() == []


def test_the_tracker_is_read_and_not_written(tmp_path):
    path = tmp_path / "mlflow.db"
    assert machine.database(path).state == "off"
    assert not path.exists()
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE runs (run_uuid TEXT, lifecycle_stage TEXT)")
        db.executemany("INSERT INTO runs VALUES (?, ?)", [("a", "active"), ("b", "active"), ("c", "deleted")])
    before = path.read_bytes()
    found = machine.database(path)
    assert (found.state, found.told.split(" in ")[0]) == ("up", "2 runs")
    assert machine.tracker(f"sqlite:///{path}") == found
    assert path.read_bytes() == before
    path.write_bytes(b"no database")
    assert machine.database(path).state == "down"


def test_a_server_answers_or_does_not_and_its_password_is_not_shown():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        port = server.getsockname()[1]
        up = machine.tracker(f"http://ann:secret@127.0.0.1:{port}")
        assert (up.state, "secret" in up.told) == ("up", False)
    down = machine.tracker(f"http://ann:secret@127.0.0.1:{port}")
    assert (down.state, "secret" in down.told) == ("down", False)
    found = {s.what: s for s in machine.services(Path("nowhere"), [f"http://127.0.0.1:{port}", ""], [f"127.0.0.1:{port}", ""])}
    assert found["Ray head"].state == "down"
    assert machine.answers("Ray head", "auto", "auto").state == "down"


def test_ray_is_known_by_its_processes(monkeypatch):
    def processes(*names):
        held = SimpleNamespace(rss=10**9)
        return lambda attrs: [SimpleNamespace(info={"name": n, "memory_info": None if n == "gone" else held}) for n in names]

    monkeypatch.setattr(psutil, "process_iter", processes("python", "raylet", "ray::train", "ray::IDLE", None, "gone"))
    found = machine.ray_here()
    assert (found.state, found.told) == ("up", "1 node, 2 workers, 3 GB with what they share")
    monkeypatch.setattr(psutil, "process_iter", processes("python", "x-ray"))
    assert machine.ray_here().state == "off"


def test_all_who_look_share_a_look(tmp_path, monkeypatch):
    looks = []
    monkeypatch.setattr(machine, "readings", lambda root: looks.append(1) or [])
    monkeypatch.setattr(machine, "services", lambda *_: looks.append(2) or [])
    shown = Machine(tmp_path)
    for _ in range(10):
        shown.look()
    assert looks == [1, 2]


def test_the_page_tells_all_and_is_no_markup(tmp_path, monkeypatch):
    def page() -> str:
        return str(machine_html([Reading(EVIL_TEXT, EVIL_TEXT, 0.95), Reading("x", "y")], [Service(EVIL_TEXT, "down", EVIL_TEXT)]))

    assert 'class="bar full"' in page()
    assert "none that nvidia-smi tells of" in page()
    assert live_markup(page()) == []
    monkeypatch.setattr(text, "escape", str)  # negative control
    assert live_markup(page())
    assert "processor" in Machine(tmp_path).static()[0].value
