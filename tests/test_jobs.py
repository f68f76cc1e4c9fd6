"""The queue in its files, with real processes: whoever looks starts what waits, what was started goes on, what died frees its place."""

from __future__ import annotations

import getpass
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from browser import becomes
from test_cli import speechlab
from test_cluster import make

from speechlab import cluster, config, jobs
from speechlab.errors import InputError
from speechlab.jobs import Queue
from speechlab.runs import Run
from speechlab.scheduling import Room

# in place of a driver: holds the run's lock until a file says that it may end, and names the run in its command, as a driver does
DRIVER = """
import fcntl, os, sys, time
path = sys.argv[1]
lock = open(path + "/driver.lock", "w")
fcntl.flock(lock, fcntl.LOCK_EX)
with open(path + "/events.jsonl", "a") as f:
    f.write('{"kind": "start", "time": 1, "steps": 9}\\n')
with open(path + "/seen", "w") as f:
    f.write(os.environ["OMP_NUM_THREADS"] + ";" + os.environ["CUDA_VISIBLE_DEVICES"])
while not os.path.exists(path + "/go"):
    time.sleep(0.02)
with open(path + "/events.jsonl", "a") as f:
    f.write('{"kind": "end", "time": 2, "step": 9, "best": null}\\n')
"""
ROOM = Room(2)


@pytest.fixture
def driven(monkeypatch):
    """Launches stand-ins for drivers; those that are left are ended."""
    begun: dict[str, subprocess.Popen] = {}

    def launch(run: Run, environment):
        words = [sys.executable, "-S", "-c", DRIVER, str(run.path)]
        begun[run.id] = subprocess.Popen(words, env={**os.environ, **environment}, start_new_session=True)
        return begun[run.id]

    monkeypatch.setattr(cluster, "launch", launch)
    yield begun
    for process in begun.values():
        process.kill()
        process.wait()


def made(root: Path, name: str, *overrides: str) -> Run:
    run = Run.create(config.load("configs/smoke.yaml", overrides), root)
    return Run(run.path.rename(root / name))


def states(queue: Queue) -> dict[str, str]:
    return {job.id: job.state for job in queue.jobs()}


def until(true, seconds: float = 60) -> None:
    assert becomes(true, seconds)


def ready(run: Run) -> None:
    """Until the stand-in holds the lock."""
    until(lambda: (run.path / "seen").exists() and (run.path / "seen").read_text())


def finish(run: Run) -> None:
    """Let a stand-in end that has begun, until its process has ended too."""
    ready(run)
    (run.path / "go").touch()
    pid = json.loads((run.path / jobs.FILE).read_text())["pid"]
    until(lambda: not run.locked() and not jobs._alive(pid, run.path))


def test_jobs_start_as_room_comes_and_survive_the_server(tmp_path, driven):
    queue = Queue(tmp_path, ROOM)
    a, b, c = (made(tmp_path, name) for name in "abc")
    assert queue.submit(a, "ann", Room(2)).state == "running", "at once, as there is room"
    assert queue.submit(b, "ann", Room(1)).state == "waiting"
    assert queue.submit(c, "bob", Room(1)).state == "waiting"
    ready(a)
    later = Queue(tmp_path, ROOM)  # another server, or this one started again: it knows all from the files
    assert states(later) == {"a": "running", "b": "waiting", "c": "waiting"}
    assert later.advance() == [], "and starts nothing over what there is"
    finish(a)
    assert [job.id for job in later.advance()] == ["c", "b"], "bob was never served"
    for run in (b, c):
        ready(run)
    assert states(queue) == {"a": "ended", "b": "running", "c": "running"}
    assert a.state == "finished"
    for run in (b, c):
        finish(run)
    assert set(states(queue).values()) == {"ended"}
    assert later.advance() == []


def test_a_driver_that_died_frees_its_place(tmp_path, driven):
    queue = Queue(tmp_path, ROOM)
    a, b = made(tmp_path, "a"), made(tmp_path, "b")
    queue.submit(a, "ann", Room(2))
    queue.submit(b, "ann", Room(2))
    assert queue.advance() == []
    driven["a"].send_signal(signal.SIGKILL)  # perhaps before it ever held the lock, and nobody waits for it: a zombie
    until(lambda: psutil.Process(driven["a"].pid).status() == psutil.STATUS_ZOMBIE)
    assert [job.id for job in queue.advance()] == ["b"]
    assert states(queue) == {"a": "ended", "b": "running"}
    ready(b)
    assert queue.submit(a, "ann", Room(1)).state == "waiting", "and can be left to the queue again"


def test_a_number_that_another_process_has_by_now_is_no_driver(tmp_path, driven):
    queue = Queue(tmp_path, ROOM)
    a = made(tmp_path, "a")
    queue.submit(a, "ann")
    driven["a"].kill()
    driven["a"].wait()
    other = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(60)"])
    try:
        values = json.loads((a.path / jobs.FILE).read_text())
        (a.path / jobs.FILE).write_text(json.dumps({**values, "pid": other.pid}))
        assert states(queue) == {"a": "ended"}
        stand_in = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(60)", str(a.path)])
        driven["control"] = stand_in
        (a.path / jobs.FILE).write_text(json.dumps({**values, "pid": stand_in.pid, "note": "of another version"}))
        until(lambda: states(Queue(tmp_path, ROOM)) == {"a": "running"})
    finally:
        other.kill()
        other.wait()


def test_a_job_is_cancelled_while_it_waits_and_stopped_while_it_runs(tmp_path, driven):
    queue = Queue(tmp_path, Room(1))
    a, b = made(tmp_path, "a"), made(tmp_path, "b")
    queue.submit(a, "ann")
    queue.submit(b, "ann")
    queue.cancel("b")
    assert states(queue) == {"a": "running", "b": "cancelled"}
    ready(a)
    queue.cancel("a")
    assert a.stop_file.exists(), "it saves a checkpoint and ends"
    finish(a)
    assert queue.advance() == [], "what was cancelled is not started"
    for id in ("a", "b", "nobody", "../a"):
        with pytest.raises(InputError, match="nothing to cancel"):
            queue.cancel(id)
    assert queue.submit(b, "ann").state == "running", "control"


@pytest.mark.parametrize("asked", [Room(3), Room(1, 1), Room(0), Room(1, -1)])
def test_what_fits_never_is_refused_at_once(tmp_path, driven, asked):
    queue = Queue(tmp_path, ROOM)
    run = made(tmp_path, "a")
    with pytest.raises(InputError, match=r"wait for ever[\s\S]*at most 2 CPUs[\s\S]*--cpus"):
        queue.submit(run, "ann", asked)
    assert queue.jobs() == [] and not driven


def test_a_run_is_in_the_queue_once(tmp_path, driven):
    queue = Queue(tmp_path, Room(1))
    a, b = made(tmp_path, "a"), made(tmp_path, "b")
    queue.submit(a, "ann")
    queue.submit(b, "ann")
    ready(a)
    for run, state in ((a, "running"), (b, "waiting")):
        with pytest.raises(InputError, match=state):
            queue.submit(run, "ann")
    finish(a)
    with pytest.raises(InputError, match="finished"):
        queue.submit(a, "ann")


def test_runs_that_were_started_without_the_queue_take_up_room(tmp_path, driven):
    queue = Queue(tmp_path, ROOM)
    other, a = made(tmp_path, "other"), made(tmp_path, "a")
    with other.lock():
        assert queue.submit(a, "ann", Room(1)).state == "waiting"
    assert [job.id for job in queue.advance()] == ["a"]


def test_a_waiting_run_that_somebody_starts_by_hand_is_not_started_again(tmp_path, driven):
    queue = Queue(tmp_path, Room(1))
    a, b = made(tmp_path, "a"), made(tmp_path, "b")
    queue.submit(a, "ann")
    queue.submit(b, "ann")
    ready(a)
    with b.lock():
        assert states(queue)["b"] == "running"
        b.append({"kind": "start", "steps": 9})
    finish(a)
    assert states(queue)["b"] == "ended"
    assert queue.advance() == []


def test_a_job_sees_the_threads_and_gpus_it_asked_for(tmp_path, driven, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5, GPU-abc,7")
    queue = Queue(tmp_path, jobs.room(8))
    assert queue.room == Room(8, 3)
    seen = {}
    for name, asked, more in (("a", Room(4, 1), []), ("b", Room(2, 2), ["cluster.workers=2"]), ("c", Room(2), [])):
        run = made(tmp_path, name, *more)
        queue.submit(run, "ann", asked)
        ready(run)
        seen[name] = (run.path / "seen").read_text()
    assert seen == {"a": "4;5", "b": "1;GPU-abc,7", "c": "2;"}
    for run in (Run(tmp_path / "a"), Run(tmp_path / "c")):
        finish(run)
    run = made(tmp_path, "d")
    queue.submit(run, "ann", Room(1, 1))
    ready(run)
    assert (run.path / "seen").read_text() == "1;5", "the one that became free"


@pytest.mark.parametrize(("cpus", "gpus"), [(0, 0), (2, -1), (2, 2)])
def test_a_room_that_is_not_there_is_refused(monkeypatch, cpus, gpus):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    with pytest.raises(InputError, match="0 to"):
        jobs.room(cpus, gpus)
    assert jobs.room(1, 1) == Room(1, 1)


def test_broken_job_files_and_runs_hide_no_others(tmp_path, driven):
    queue = Queue(tmp_path, Room(1))
    runs = [made(tmp_path, name) for name in "abcdefg"]
    for run in runs:
        queue.submit(run, "ann")
    ready(runs[0])
    texts = ["", "{", "[1]", '{"by": "x", "at": 1, "number": "2", "cpus": 1}']
    for run, text in zip(runs[1:], texts, strict=False):
        (run.path / jobs.FILE).write_text(text)
    (runs[5].path / "config.yaml").unlink()
    finish(runs[0])
    assert [job.id for job in queue.advance()] == ["g"]
    assert states(queue) == {"a": "ended", "f": "ended", "g": "running"}


def test_jobs_of_another_machine_are_its_own(tmp_path, driven):
    queue = Queue(tmp_path, Room(1))
    a, b = made(tmp_path, "a"), made(tmp_path, "b")
    queue.submit(a, "ann")
    queue.submit(b, "ann")
    values = json.loads((b.path / jobs.FILE).read_text())
    (b.path / jobs.FILE).write_text(json.dumps({**values, "host": "elsewhere"}))
    finish(a)
    assert queue.advance() == []
    assert states(queue) == {"a": "ended", "b": "elsewhere"}


def test_a_server_keeps_the_queue_going_from_a_thread(tmp_path, driven):
    queue = Queue(tmp_path, Room(1))
    a, b = made(tmp_path, "a"), made(tmp_path, "b")
    alive = [True]
    thread = queue.keep(lambda: alive[0], 0.05)
    queue.submit(a, "ann")
    queue.submit(b, "ann")
    finish(a)
    ready(b)
    alive.clear()
    alive.append(False)
    thread.join(10)
    assert not thread.is_alive()


def test_many_at_once_start_nothing_twice_and_nothing_over_what_there_is(tmp_path, driven):
    """Several processes that submit and look at the same moment."""
    for i in range(6):
        made(tmp_path, f"r{i}")
    code = f"""
import subprocess, sys
from speechlab import cluster
from speechlab.jobs import Queue
from speechlab.runs import Run
from speechlab.scheduling import Room
cluster.launch = lambda run, env: (open(run.path / "begun", "a").write("x"), subprocess.Popen(
    [sys.executable, "-S", "-c", {DRIVER!r}, str(run.path)], env=env, start_new_session=True))[1]
queue = Queue(sys.argv[1], Room(2))
for name in sys.argv[2:]:
    queue.submit(Run(sys.argv[1] + "/" + name), name)
for _ in range(20):
    queue.advance()
"""
    both = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path), *(f"r{i}" for i in part)]) for part in (range(3), range(3, 6))]
    try:
        assert [process.wait(60) for process in both] == [0, 0]
        found = Queue(tmp_path, Room(2)).jobs()
        assert len(found) == 6 and len({j.number for j in found}) == 6, "no two got one number"
        assert sum(j.cpus for j in found if j.state == "running") == 2
        assert [(tmp_path / j.id / "begun").read_text() for j in found if j.turn] == ["x"] * sum(j.turn > 0 for j in found)
    finally:
        for job in Queue(tmp_path, Room(2)).jobs():
            if job.pid:
                os.kill(job.pid, signal.SIGKILL)


@pytest.mark.slow
def test_a_shell_leaves_a_run_to_the_queue_and_a_server_says_what_it_hands_out(tmp_path, driven):
    where = ("--set", f"cluster.storage={tmp_path}")
    done = speechlab("train", "--queue", "--config", "configs/smoke.yaml", *where)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("waits for ") and str(tmp_path) in done.stdout
    (job,) = Queue(tmp_path, Room(64)).jobs()
    assert (job.state, job.by) == ("waiting", getpass.getuser()), "a shell starts nothing: the server may have less to hand out"
    assert [j.id for j in Queue(tmp_path, Room(64)).advance()] == [job.id]
    refused = speechlab("dashboard", "--cpus", "0")
    assert refused.returncode == 2 and "1 CPU or more" in refused.stderr


@pytest.mark.slow
def test_the_queue_goes_on_when_its_server_is_killed(tmp_path, prompts):
    """With real trainings: what a server started goes on without it, and the next one starts what waits."""
    more = ("cluster.workers=0", "training.epochs=30")
    first, second = make(tmp_path, *more), make(tmp_path, *more)
    code = """
import sys
from speechlab.jobs import Queue
from speechlab.runs import Run
from speechlab.scheduling import Room
queue = Queue(sys.argv[1], Room(1))
for path in sys.argv[2:]:
    queue.submit(Run(path), "ann")
print("up", flush=True)
queue.keep(period=0.1).join()
"""

    def server(*paths: Path) -> subprocess.Popen:
        process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path), *map(str, paths)], stdout=subprocess.PIPE, text=True)
        assert process.stdout.readline() == "up\n"
        return process

    queue = Queue(tmp_path, Room(1))
    process = server(first.path, second.path)
    process.kill()
    process.wait()
    assert states(queue) == {first.id: "running", second.id: "waiting"}
    process = server()
    try:
        until(lambda: set(states(queue).values()) == {"ended"}, 240)
    finally:
        process.kill()
        process.wait()
    assert (first.state, second.state) == ("finished", "finished")
    end, start = (next(e["time"] for e in run.events() if e["kind"] == kind) for run, kind in ((first, "end"), (second, "start")))
    assert end <= start, "one after the other"
