"""Two machines, simulated: one is lost while training goes on, another comes. One Ray fit, restarted twice: minutes."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
from browser import becomes
from test_cluster import SMOKE, assert_quiet, wait_for

from speechlab import cluster, config, head, runs

MEMORY = {"object_store_memory": 150 * 1024**2}
# a machine that says nothing counts as lost after four seconds instead of twenty
IMPATIENT = {"health_check_initial_delay_ms": 5000, "health_check_period_ms": 1000, "health_check_failure_threshold": 3}


@pytest.fixture
def machines(monkeypatch) -> Iterator[Any]:
    """A cluster of two machines with a core each, that asks those who connect for a token as a real one should."""
    head.environment()
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setattr(cluster, "RESIZE", 5.0)
    from ray._private.authentication import authentication_token_setup as tokens
    from ray.cluster_utils import Cluster

    tokens._enable_token_auth()  # read when Ray is imported, which another test may have done
    tokens.ensure_token_if_auth_enabled()
    simulated = Cluster()

    def start() -> None:
        simulated.add_node(num_cpus=1, include_dashboard=False, _system_config=IMPATIENT, **MEMORY)
        simulated.add_node(num_cpus=1, **MEMORY)

    try:
        head.patiently(start, simulated.shutdown)
        yield simulated
    finally:
        simulated.shutdown()


def starts(run: runs.Run) -> list[tuple[int, int | None]]:
    return [(e["workers"], e["resumed_from"]) for e in run.events() if e["kind"] == "start"]


def last_step(run: runs.Run) -> int:
    return max((e["step"] for e in run.events() if e["kind"] == "step"), default=0)


@pytest.mark.slow
def test_training_goes_on_with_the_machines_that_are_left_and_those_that_come(tmp_path, machines, prompts, capfd):
    elastic = [f"cluster.address={machines.address}", "cluster.workers=2", "cluster.workers_min=1"]
    run = runs.Run.create(config.load("configs/smoke.yaml", [*SMOKE, "training.epochs=20000", *elastic]), tmp_path)
    assert [machine["CPU"] for machine in cluster.machines(run.config.cluster)] == [1, 1], "what a dry run asks"
    outcome: dict[str, Any] = {}

    def drive() -> None:
        try:
            outcome["state"] = cluster.drive(run)
        except Exception as e:
            outcome["error"] = e

    # in a thread: machines are added and removed from the main one, where Ray installs signal handlers
    driver = threading.Thread(target=drive)
    driver.start()
    wait_for(run, "checkpoint", 2)
    machines.remove_node(machines.list_all_nodes()[1], allow_graceful=False)
    wait_for(run, "start", 2)
    alone = starts(run)[-1]
    assert alone[0] == 1
    assert alone[1], "it found its place"

    machines.add_node(num_cpus=1, **MEMORY)
    wait_for(run, "start", 3)
    again = starts(run)[-1]
    assert again[0] == 2
    assert again[1] > alone[1]
    assert becomes(lambda: last_step(run) >= again[1] + 10, 60)
    run.stop()
    driver.join(120)
    assert outcome == {"state": "stopped"}

    said = [e["text"] for e in run.events() if e["kind"] == "message"]
    assert said == ["training with 1 of 2 workers"]
    printed = capfd.readouterr()
    assert_quiet(printed.out + printed.err)

    reference = runs.Run.create(config.load(run.path / "config.yaml", ["cluster.workers=0", "cluster.workers_min=null"]), tmp_path)
    assert reference.config.signature == run.config.signature
    steps = run.steps()
    stopper = threading.Thread(target=lambda: (wait_for(reference, "step", len(steps)), reference.stop()))
    stopper.start()
    cluster.drive(reference)
    stopper.join()
    expected = reference.steps()[: len(steps)]
    assert len(steps) > again[1]
    assert list(steps.step) == list(range(1, len(steps) + 1)), "no step is missing and none counts twice"
    assert list(steps.clips) == list(expected.clips)
    assert list(steps.audio_seconds) == list(expected.audio_seconds)
    assert list(steps.tokens) == list(expected.tokens)
    assert list(steps.loss) == pytest.approx(list(expected.loss), rel=1e-3)
