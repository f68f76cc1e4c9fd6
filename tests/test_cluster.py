"""Real Ray workers: one, two, lost, interrupted, refused. Each fit costs seconds of start-up, so they are few."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from speechlab import checkpoints, cluster, config, decoding, runs
from speechlab.errors import InputError

SMOKE = ["corpus.limit=8", "training.epochs=2", "tracking.enabled=false"]


def make(tmp_path: Path, *overrides: str) -> runs.Run:
    """A small run of the real model on the real corpus."""
    return runs.Run.create(config.load("configs/smoke.yaml", [*SMOKE, *overrides]), tmp_path)


def wait_for(run: runs.Run, kind: str, count: int = 1, seconds: float = 240) -> None:
    """Until so many events of a kind are on disk."""
    deadline = time.monotonic() + seconds
    while sum(e["kind"] == kind for e in run.events()) < count:
        assert time.monotonic() < deadline, (
            run.events(),
            (run.path / "driver.log").read_text() if (run.path / "driver.log").exists() else "",
        )
        time.sleep(0.05)


def digest(run: runs.Run) -> str:
    """Of the final weights."""
    return checkpoints.existing(run.path / "checkpoints")[-1].digest


def ray_processes(parent: int) -> list[psutil.Process]:
    """Ray's processes below a driver."""
    try:
        return [p for p in psutil.Process(parent).children(recursive=True) if "ray" in " ".join(p.cmdline())]
    except psutil.NoSuchProcess:
        return []


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, prompts, tiny_en):
    """A run trained without Ray: what all others must equal bit for bit."""
    run = make(tmp_path_factory.mktemp("undisturbed"), "cluster.workers=0")
    assert cluster.drive(run) == "finished"
    return run


@pytest.mark.slow
def test_a_lost_worker_and_a_lost_driver_leave_the_same_weights(tmp_path, undisturbed):
    run = make(tmp_path)
    driver = cluster.launch(run)
    wait_for(run, "checkpoint")
    worker = next(p for p in ray_processes(driver.pid) if "RayTrainWorker" in " ".join(p.cmdline()))
    worker.kill()
    wait_for(run, "start", 2)  # Ray restarted it, and it found its place
    assert [e["resumed_from"] for e in run.events() if e["kind"] == "start"][1] is not None
    driver.kill()
    driver.wait()
    assert run.state in ("interrupted", "finished")
    again = cluster.launch(run)
    assert again is not None, "a killed driver leaves no lock behind"
    assert asyncio.run(cluster.finished(run, again)) == "finished"
    assert digest(run) == digest(undisturbed)
    assert list(run.steps().loss) == list(undisturbed.steps().loss)
    assert run.provenance["data"] == undisturbed.provenance["data"]


@pytest.mark.slow
def test_two_workers_follow_the_same_plan(tmp_path, undisturbed):
    run = make(tmp_path, "cluster.workers=2")
    assert asyncio.run(cluster.finished(run, cluster.launch(run))) == "finished"
    alone, together = undisturbed.steps(), run.steps()
    assert list(together.clips) == list(alone.clips)
    assert together.audio_seconds.sum() == pytest.approx(alone.audio_seconds.sum())
    # bf16 sums in another order: the curves agree, the bits need not
    assert list(together.loss) == pytest.approx(list(alone.loss), rel=0.1)
    assert next(e for e in run.events() if e["kind"] == "start")["workers"] == 2


@pytest.mark.slow
def test_ctrl_c_saves_and_the_run_can_go_on(tmp_path, undisturbed):
    run = make(tmp_path)
    driver = cluster.launch(run)
    wait_for(run, "step")
    below = ray_processes(driver.pid)
    assert below
    driver.send_signal(signal.SIGINT)
    assert driver.wait(timeout=120) == 130
    assert run.state == "stopped"
    assert run.events()[-1]["kind"] == "stopped"  # last events on disk
    gone, alive = psutil.wait_procs(below, timeout=30)
    assert alive == [], "workers are gone"
    assert "speechlab train --resume" in (run.path / "driver.log").read_text()
    assert asyncio.run(cluster.finished(run, cluster.launch(run))) == "finished"
    assert digest(run) == digest(undisturbed)


@pytest.mark.slow
def test_bad_input_in_a_worker_is_one_readable_error_and_no_restart(tmp_path):
    run = make(tmp_path, "model.weights=/nowhere")
    began = time.monotonic()
    with pytest.raises(InputError) as error:
        cluster.drive(run)
    assert "/nowhere" in str(error.value)
    assert "Traceback" not in str(error.value)
    assert run.state == "failed"
    assert sum(e["kind"] == "failure" for e in run.events()) == 1
    assert time.monotonic() - began < 90


@pytest.mark.slow
def test_an_unreachable_cluster_says_so(tmp_path):
    code = "import sys; from speechlab import cluster, runs\ntry: cluster.drive(runs.Run(sys.argv[1]))\nexcept ValueError as e: print(e)"
    run = make(tmp_path, "cluster.address=127.0.0.1:1")
    done = subprocess.run([sys.executable, "-c", code, str(run.path)], capture_output=True, text=True, timeout=180)
    assert "The Ray cluster cannot be reached." in done.stdout, done.stderr[-2000:]
    assert "127.0.0.1:1" in done.stdout
    assert "do:" in done.stdout


def test_ray_that_cannot_start_says_so(tmp_path, monkeypatch):
    import ray

    def refuse(**_):
        raise OSError("No space left on device: '/tmp/ray'")

    monkeypatch.setattr(ray, "init", refuse)
    with pytest.raises(InputError, match=r"Ray could not start[\s\S]*No space left[\s\S]*doctor"):
        cluster.drive(make(tmp_path))


def test_a_second_driver_is_refused(tmp_path):
    run = make(tmp_path)
    with run.lock(), pytest.raises(InputError, match="Another process is training run"):
        cluster.drive(run)


def test_cuda_where_there_is_none():
    with pytest.raises(InputError, match=r"No CUDA device[\s\S]*set cluster.device"):
        decoding.resolve_device("cuda", cuda=False)
    assert decoding.resolve_device("auto", cuda=True) == "cuda"
    assert decoding.resolve_device("auto", cuda=False) == "cpu"
    assert decoding.resolve_device("cpu", cuda=True) == "cpu"


def test_a_finished_run_is_not_launched_again(tmp_path):
    run = make(tmp_path)
    run.append({"kind": "start", "resumed_from": None, "steps": 1})
    run.append({"kind": "end", "step": 1, "seconds": 1.0, "best": None})
    assert cluster.launch(run) is None
    assert asyncio.run(cluster.finished(run)) == "finished"


def test_a_failed_run_raises_what_the_worker_said(tmp_path):
    run = make(tmp_path)
    run.append({"kind": "start", "resumed_from": None, "steps": 1})
    run.append({"kind": "failure", "error": "worker 0: the dog ate it"})
    with pytest.raises(cluster.TrainingFailed, match="the dog ate it"):
        asyncio.run(cluster.finished(run))


def test_a_driver_that_dies_at_once_is_not_waited_for(tmp_path):
    run = make(tmp_path)
    (run.path / "driver.log").write_text("ImportError: no module named x")
    with pytest.raises(cluster.TrainingFailed, match="no module named x"):
        asyncio.run(cluster.finished(run, subprocess.Popen([sys.executable, "-c", "raise SystemExit(3)"])))


def test_worker_errors_are_unwrapped():
    lost = RuntimeError("long")
    lost.worker_failures = {1: ValueError("rank one"), 0: ValueError("\n\nTraceback\n  x\nValueError: bad clip")}  # type: ignore[attr-defined]
    said = cluster._worker_error(lost)
    assert said.startswith("worker 0:")
    assert said.endswith("ValueError: bad clip")


@pytest.mark.slow
def test_a_scheduler_s_sigterm_saves_first(tmp_path, tiny_en, prompts):
    run = make(tmp_path, "cluster.workers=0", "training.epochs=50")
    driver = cluster.launch(run)
    wait_for(run, "step")
    driver.send_signal(signal.SIGTERM)
    assert driver.wait(timeout=60) == 130
    assert run.state == "stopped"
    assert json.loads((checkpoints.existing(run.path / "checkpoints")[-1].path / "state.json").read_text())["step"] == len(run.steps())
    assert os.path.exists(run.path / "driver.log")
