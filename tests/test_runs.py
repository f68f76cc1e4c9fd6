"""The run directory under crashes: half lines, two writers, lost drivers, full disks."""

from __future__ import annotations

import itertools
import json
import math
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from speechlab import config as configs
from speechlab import runs
from speechlab.config import Experiment
from speechlab.errors import InputError
from speechlab.runs import Run

EXPERIMENT = Experiment(name="test", question="Does it hold?")


@pytest.fixture
def run(tmp_path) -> Run:
    return Run.create(EXPERIMENT, tmp_path)


def python(code: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", code, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


HOLD = """
import sys
from speechlab.runs import Run
with Run(sys.argv[1]).lock():
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def driver(run):
    """Another process that holds the run, as a driver does."""
    process = python(HOLD, str(run.path))
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def step(number: int, **more: object) -> runs.Event:
    return {"kind": "step", "step": number, "loss": 1 / number, **more}


# --- the directory ---


def test_a_run_directory_is_made_whole_and_reads_back(tmp_path):
    run = Run.create(EXPERIMENT, tmp_path / "deep" / "reports")
    assert run.config == EXPERIMENT == configs.load(run.path / "config.yaml")
    assert {p.name for p in run.path.iterdir()} == {"config.yaml", "checkpoints", "evaluations", "samples"}
    assert run.id.startswith("test-")
    assert run.id.endswith(EXPERIMENT.signature[:6])
    assert (run.provenance, run.events(), run.state, len(run.steps()), len(run.validations())) == ({}, [], "new", 0, 0)


def test_a_directory_is_never_reused(tmp_path, monkeypatch):
    monkeypatch.setattr(time, "strftime", lambda _: "20260101-000000")  # all in the same second
    made = [Run.create(EXPERIMENT, tmp_path).id for _ in range(4)]
    assert len(set(made)) == 4
    assert made[1:] == [f"{made[0]}-{n}" for n in (1, 2, 3)]


def test_storage_of_the_cluster_is_where_runs_go(tmp_path):
    stored = EXPERIMENT.model_copy(update={"cluster": EXPERIMENT.cluster.model_copy(update={"storage": str(tmp_path / "shared")})})
    assert Run.create(stored).path.parent == tmp_path / "shared"


def test_a_root_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"cannot be made(.|\n)*expected: *a writable"):
        Run.create(EXPERIMENT, tmp_path / "file")


def test_what_is_no_run_directory_is_refused_and_the_runs_beside_it_are_named(tmp_path, run):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=rf"not a run directory(.|\n)*empty(.|\n)*reports/<run id>(.|\n)*{run.id}"):
        Run(tmp_path / "empty")


def test_find(tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"no run yet(.|\n)*speechlab train"):
        runs.find("latest", tmp_path)
    first, second = Run.create(EXPERIMENT, tmp_path), Run.create(EXPERIMENT, tmp_path)
    os.utime(first.path / "config.yaml", (1, 1))
    assert runs.find("latest", tmp_path).id == second.id
    assert runs.find(first.id, tmp_path).path == first.path
    assert runs.find(str(first.path)).path == first.path
    monkeypatch.chdir(tmp_path)
    assert runs.find(f"./{first.id}").path == first.path
    with pytest.raises(InputError, match=rf"nonsense(.|\n)*{first.id}, {second.id}"):
        runs.find("nonsense", tmp_path)


# --- atomic writes ---


def test_write_atomic_replaces_whole_files(tmp_path):
    for data in (b"one", b"another", b""):
        runs.write_atomic(tmp_path / "file", data)
        assert (tmp_path / "file").read_bytes() == data
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("broken", ["fsync", "replace"])
def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, broken):
    (tmp_path / "file").write_bytes(b"old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, broken, full)
    with pytest.raises(InputError, match=r"disk is full(.|\n)*MB free at(.|\n)*room for(.|\n)*--resume"):
        runs.write_atomic(tmp_path / "file", b"new")
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("file", b"old")]


# --- events ---


def test_events_read_back_as_written_with_a_time(run):
    before = time.time()
    run.append({"kind": "message", "level": "info", "text": "é \u2028 \n 你好 </script>"})
    run.append(step(1))
    message, one = run.events()
    assert message["text"] == "é \u2028 \n 你好 </script>"
    assert (one["step"], one["loss"]) == (1, 1.0)
    assert before <= message["time"] <= one["time"] <= time.time()
    assert len((run.path / "events.jsonl").read_bytes().splitlines()) == 2


def test_an_unknown_kind_is_an_error_of_the_code(run):
    with pytest.raises(AssertionError):
        run.append({"kind": "nonsense"})


def test_numbers_that_json_lacks_become_null(run):
    run.append(step(1, grad_norm=math.inf, nested={"list": [math.nan, 1.0, (-math.inf,)]}))
    line = (run.path / "events.jsonl").read_text()
    strict = json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} in the file"))
    assert strict["grad_norm"] is None
    assert strict["nested"] == {"list": [None, 1.0, [None]]}
    assert run.events()[0]["loss"] == 1.0


APPEND = """
import sys
from speechlab.runs import Run
run = Run(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
n = 0
while not run.stop_file.exists():
    run.append({"kind": "step", "step": n, "who": sys.argv[2], "padding": sys.argv[2] * (n * 37 % 5000)})
    n += 1
print(n)
"""


def test_two_processes_append_whole_lines(run):
    writers = [python(APPEND, str(run.path), who) for who in "ab"]
    assert [w.stdout.readline() for w in writers] == ["ready\n"] * 2
    for w in writers:
        w.stdin.write("go\n")
        w.stdin.flush()

    def turns():
        return sum(a["who"] != b["who"] for a, b in itertools.pairwise(seen))

    tail, seen, deadline = run.tail(), [], time.monotonic() + 60
    while turns() <= 10 and time.monotonic() < deadline:
        seen += tail.read()
        time.sleep(0.05)
    run.stop()
    for w in writers:
        w.wait()
    seen += tail.read()
    assert all(e["kind"] == "step" and e["padding"] == e["who"] * (e["step"] * 37 % 5000) for e in seen)
    for who, w in zip("ab", writers, strict=True):
        assert [e["step"] for e in seen if e["who"] == who] == list(range(int(w.stdout.read())))
    assert turns() > 10  # they did interleave


def test_a_half_written_last_line_is_left_for_later(run):
    run.append(step(1))
    tail = run.tail()
    whole = json.dumps({"time": 0.0, **step(2), "text": "é"}, ensure_ascii=False).encode() + b"\n"
    assert [e["step"] for e in tail.read()] == [1]
    with open(run.path / "events.jsonl", "ab", buffering=0) as f:
        for at in range(len(whole)):  # at any byte, in the middle of é too
            f.write(whole[at : at + 1])
            got = tail.read()
            assert [e["step"] for e in got] == ([2] if at == len(whole) - 1 else [])
    assert [e["step"] for e in run.events()] == [1, 2]


def test_a_dead_writers_half_line_does_not_swallow_the_next_event(run):
    run.append(step(1))
    with open(run.path / "events.jsonl", "ab") as f:
        f.write(b'{"time": 1.0, "kind": "step", "st')
    assert [e["kind"] for e in run.events()] == ["step"]
    run.append({"kind": "start", "resumed_from": 1})
    run.append(step(2))
    assert [e["kind"] for e in run.events()] == ["step", "message", "start", "step"]


@pytest.mark.parametrize(
    "garbage", [b"nonsense", b"\xff\xfe\x00", b"[1]", b'{"kind": "nonsense"}', b"null", b'{"kind": ["step"]}', b"[" * 100_000]
)
def test_a_line_that_is_no_event_becomes_a_warning(run, garbage):
    run.append(step(1))
    with open(run.path / "events.jsonl", "ab") as f:
        f.write(garbage + b"\n\n")
    run.append(step(2))
    one, warning, two = run.events()
    assert (one["step"], two["step"]) == (1, 2)
    assert (warning["kind"], warning["level"]) == ("message", "warning")
    assert warning["text"].startswith("unreadable event: ")
    assert len(warning["text"]) < 400
    assert list(run.steps().step) == [1, 2]


def test_a_truncated_file_is_read_anew(run):
    tail = run.tail()
    for n in (1, 2, 3):
        run.append(step(n))
    assert len(tail.read()) == 3
    (run.path / "events.jsonl").write_bytes(b"")
    assert tail.read() == []
    run.append(step(9))
    assert [e["step"] for e in tail.read()] == [9]
    (run.path / "events.jsonl").unlink()
    assert tail.read() == []


@pytest.mark.parametrize("part", [0, 10])
def test_a_full_disk_while_appending(run, monkeypatch, part):
    """A disk that fills up takes a part of the line, or refuses it."""
    run.append(step(1))
    write = os.write

    def full(fd: int, data: bytes) -> int:
        if not part:
            raise OSError(28, "No space left on device")
        return write(fd, data[:part])

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.raises(InputError, match="disk is full"):
            run.append(step(2))
    run.append(step(2))
    assert [e["step"] for e in run.events() if e["kind"] == "step"] == [1, 2]


# --- steps ---


def test_steps_that_a_resume_repeats_count_once(run):
    run.append({"kind": "start", "resumed_from": None})
    for n in range(1, 6):
        run.append(step(n, drive=1))
        run.append({"kind": "validation", "step": n, "wer": 0.1, "drive": 1})
    run.append({"kind": "start", "resumed_from": 3})
    assert list(run.steps().step) == [1, 2, 3]  # at once, not only when 4 comes again
    run.append(step(4, drive=2))
    assert list(run.steps().step) == [1, 2, 3, 4]
    assert list(run.steps().drive) == [1, 1, 1, 2]
    assert list(run.validations().step) == [1, 2, 3]


def test_a_start_without_a_checkpoint_begins_anew(run):
    for drive in (1, 2):
        run.append({"kind": "start", "resumed_from": None})
        assert len(run.steps()) == 0
        run.append(step(1, drive=drive))
    assert list(run.steps().drive) == [2]


# --- state ---


def test_states(run):
    assert run.state == "new"
    run.append({"kind": "start", "resumed_from": None})
    assert run.state == "interrupted"  # nobody holds it
    run.append(step(1))
    assert run.state == "interrupted"
    for terminal, state in {"stopped": "stopped", "failure": "failed", "end": "finished"}.items():
        run.append({"kind": terminal})
        assert run.state == state
        run.append({"kind": "message", "level": "info", "text": "the tracker caught up"})
        assert run.state == state
        run.append({"kind": "start", "resumed_from": 1})
        assert run.state == "interrupted"


def test_a_held_run_is_running_and_admits_no_second_driver(run, driver):
    run.append({"kind": "stopped", "step": 1})
    assert run.locked()
    assert run.state == "running"  # whatever the last event says
    with pytest.raises(InputError, match=rf"Another process is training run {run.id}(.|\n)*speechlab stop {run.id}"), run.lock():
        pytest.fail("two drivers")


def test_a_killed_driver_leaves_no_lock(run, driver):
    driver.kill()
    driver.wait()
    assert run.state == "new"
    with run.lock():
        assert run.state == "running"
    assert run.state == "new"


def test_looking_at_a_run_does_not_keep_a_driver_out(run):
    """A look takes the lock for a moment; a board looks again and again."""
    done = threading.Event()

    def look() -> None:
        while not done.is_set():
            run.locked()

    boards = [threading.Thread(target=look) for _ in range(2)]
    for board in boards:
        board.start()
    try:
        for _ in range(100):
            with run.lock():
                pass
    finally:
        done.set()
        for board in boards:
            board.join()


def test_stop_asks_with_a_file(run):
    assert not run.stop_file.exists()
    run.stop()
    run.stop()
    assert run.stop_file == Path(run.path) / "stop"
    assert run.stop_file.exists()
