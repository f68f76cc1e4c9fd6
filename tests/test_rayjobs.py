"""Ray Jobs: a run sent to a real cluster on this machine, and what is said where none answers."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from browser import answers, becomes, free_port
from test_cluster import make

from speechlab import rayjobs
from speechlab.errors import InputError

# in a process of its own: a cluster with its dashboard, until standard input ends
HEAD = """
import os, ray, sys
ray.init(address="local", num_cpus=4, include_dashboard=True, dashboard_host="127.0.0.1", dashboard_port=int(sys.argv[1]),
         object_store_memory=200 * 1024**2, log_to_driver=False, logging_level="ERROR")
print("up", flush=True)
sys.stdin.read()
ray.shutdown()
"""


@pytest.fixture(scope="module")
def head():
    """The address of a cluster's job server."""
    port = free_port()
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(Path(__file__).parents[1]),
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    process = subprocess.Popen(
        [sys.executable, "-c", HEAD, str(port)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    )
    try:
        assert process.stdout.readline().strip() == "up"
        address = f"http://127.0.0.1:{port}"
        assert becomes(lambda: takes(address), 120), "its agent did not come"
        yield address
    finally:
        process.stdin.close()
        process.wait(60)


def takes(address: str) -> bool:
    """Whether the agent that starts jobs is there: on a busy machine it comes long after the cluster is up."""
    try:
        return bool(rayjobs._asked(address, lambda client: client.submit_job(entrypoint="true")))
    except InputError as e:
        if "No available agent" not in str(e):
            raise
        return False


def until(address: str, submission: str, *wanted: str, seconds: float = 240) -> str:
    deadline = time.monotonic() + seconds
    while (state := rayjobs.state(address, submission)) not in wanted:
        assert time.monotonic() < deadline, (state, rayjobs.log(address, submission))
        time.sleep(0.3)
    return state


@pytest.mark.slow
def test_a_run_is_driven_by_the_cluster_it_is_sent_to(tmp_path, head, prompts, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "192.0.2.1:6379")  # of another cluster, which Ray's client would prefer
    run = make(tmp_path, "cluster.workers=1", rayjobs.OVERRIDE, "training.epochs=3")
    submission = rayjobs.submit(run, head, "ann")
    assert until(head, submission, *rayjobs.OVER) == "SUCCEEDED", rayjobs.log(head, submission)
    assert run.state == "finished"
    assert [e["kind"] for e in run.events()][-1] == "end"
    assert str(run.path) in rayjobs.log(head, submission)
    assert "RAY_API_SERVER_ADDRESS" not in os.environ
    with pytest.raises(InputError, match="does not take the job"):
        rayjobs.state(head, "nobody")


@pytest.mark.slow
def test_a_job_that_is_stopped_leaves_a_run_that_goes_on(tmp_path, head, prompts):
    run = make(tmp_path, "cluster.workers=0", rayjobs.OVERRIDE, "training.epochs=4000")
    submission = rayjobs.submit(run, head, "ann")
    assert becomes(lambda: any(e["kind"] == "step" for e in run.events()), 240), rayjobs.log(head, submission)
    rayjobs.stop(head, submission)
    assert until(head, submission, *rayjobs.OVER) == "STOPPED"
    assert run.state in ("stopped", "interrupted")


@pytest.mark.parametrize("address", ["http://127.0.0.1:{}", "127.0.0.1:{}", "ray://127.0.0.1:{}", "file:///etc/passwd", "http://", ""])
def test_where_no_cluster_answers_it_is_an_input_error(tmp_path, address):
    run = make(tmp_path, rayjobs.OVERRIDE)
    with pytest.raises(InputError, match="does not take the job") as error:
        rayjobs.submit(run, address.format(free_port()), "ann")
    assert "ray start --head" in str(error.value)


def test_a_server_that_is_no_cluster_s_is_an_input_error(tmp_path):
    port = free_port()
    words = [sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1", "--directory", str(tmp_path)]
    server = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        answers(port)
        with pytest.raises(InputError, match="does not take the job"):
            rayjobs.state(f"http://127.0.0.1:{port}", "x")
    finally:
        server.kill()
        server.wait()
