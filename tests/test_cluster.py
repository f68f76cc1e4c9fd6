"""Real Ray workers: one, two, lost, interrupted, refused. Each fit costs seconds of start-up, so they are few."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from speechlab import checkpoints, cluster, config, decoding, runs
from speechlab.errors import InputError
from speechlab.share import Share

# a Conformer of a few thousand weights, from scratch: a step takes a fiftieth of a second
TINY = ["model={family: conformer, shape: {dim: 16, layers: 1, heads: 2, ffn: 32, kernel: 3}}"]
TINY += ["context={margin_min: 0.0, margin_max: 0.0, full_fraction: 0.0}"]
STEPS = ["corpus.limit=8", "training={epochs: 60, batch_clips: 4, micro_batches: 2, precision: fp32, validate_epochs: 1000}"]
SMOKE = [*TINY, *STEPS, "cluster.device_seconds=60.0", "tracking.enabled=false"]


def make(tmp_path: Path, *overrides: str) -> runs.Run:
    """A run of a small model on the real corpus: 120 steps, a checkpoint after every other."""
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


def command(*words: str) -> subprocess.Popen[str]:
    """The command line as a user starts it, its output captured."""
    return subprocess.Popen(
        [sys.executable, "-m", "speechlab", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def assert_quiet(output: str) -> None:
    """Nothing of Ray's own: no log lines, no prefixes of its processes, no news of its telemetry and dashboard."""
    noise = ("(raylet)", "(RayTrainWorker", "(TrainController", "(pid=", "INFO ", "WARNING ", "usage stats", "dashboard", "ray::", "auth")
    assert [line for line in output.splitlines() if any(word in line for word in noise)] == []


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, prompts):
    """A run trained without Ray: what all others must equal bit for bit."""
    run = make(tmp_path_factory.mktemp("undisturbed"), "cluster.workers=0")
    # in a process of its own, as the others: earlier tests may have left this one with another number of threads
    assert asyncio.run(cluster.finished(run, cluster.launch(run))) == "finished"
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
    assert list(together.audio_seconds) == list(alone.audio_seconds)
    # sums in another order: the curves agree, the bits need not
    assert list(together.loss) == pytest.approx(list(alone.loss), rel=1e-4)
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
def test_ctrl_c_twice_ends_at_once_and_another_number_of_workers_goes_on(tmp_path, undisturbed):
    run = make(tmp_path)
    frozen = (run.path / "config.yaml").read_bytes()
    driver = command("train", "--resume", str(run.path))
    wait_for(run, "checkpoint", 3)
    below = ray_processes(driver.pid)
    driver.send_signal(signal.SIGINT)
    driver.send_signal(signal.SIGINT)
    said, complained = driver.communicate(timeout=30)  # at once
    assert driver.returncode == 130
    assert run.state == "stopped"
    assert psutil.wait_procs(below, timeout=30)[1] == []
    assert_quiet(said + complained)
    assert "Traceback" not in said + complained

    driver = command("train", "--resume", str(run.path), "--set", "cluster.workers=2")
    said, complained = driver.communicate(timeout=240)
    assert driver.returncode == 0, complained
    assert_quiet(said + complained)
    assert "2 workers on cpu" in said
    assert [e["workers"] for e in run.events() if e["kind"] == "start"] == [1, 2]
    assert (run.path / "config.yaml").read_bytes() == frozen
    assert run.config.signature == undisturbed.config.signature
    assert list(run.steps().clips) == list(undisturbed.steps().clips)
    assert list(run.steps().loss) == pytest.approx(list(undisturbed.steps().loss), rel=1e-4)


@pytest.mark.slow
def test_a_worker_that_fails_is_one_readable_error(tmp_path, prompts):
    run = make(tmp_path, "cluster.max_failures=0")
    (run.path / "checkpoints").rmdir()
    (run.path / "checkpoints").write_text("in the way")
    driver = command("train", "--resume", str(run.path))
    said, complained = driver.communicate(timeout=240)
    assert driver.returncode == 1
    assert_quiet(said + complained)
    lines = complained.strip().splitlines()
    error = "\n".join(line for line in lines if "step/s" not in line and "it/s" not in line)
    assert "worker 0:" in error
    assert "checkpoints" in error
    assert len(error.splitlines()) <= 20, error
    assert "\x1b" not in run.events()[-1]["error"]
    with pytest.raises(cluster.TrainingFailed, match="worker 0:"):
        asyncio.run(cluster.finished(run))


@pytest.mark.slow
def test_bad_input_in_a_worker_is_one_readable_error_and_no_restart(tmp_path, monkeypatch):
    import ray

    run = make(tmp_path, "model.weights=/nowhere")
    # shut down under a thread that still waited for it, Ray aborted this whole process, 1 time in 11
    shutdown, waiting = ray.shutdown, []
    monkeypatch.setattr(ray, "shutdown", lambda: (waiting.append([t.name for t in threading.enumerate() if t.name == "fit"]), shutdown()))
    with pytest.raises(InputError) as error:
        cluster.drive(run)
    assert "/nowhere" in str(error.value)
    assert "Traceback" not in str(error.value)
    assert run.state == "failed"
    assert sum(e["kind"] == "failure" for e in run.events()) == 1
    assert waiting == [[]]


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


def test_only_where_a_run_is_done_can_change(tmp_path):
    run = make(tmp_path)
    frozen = (run.path / "config.yaml").read_bytes()
    run.change(["cluster.workers=2", "tracking.enabled=true"])
    run.change(["cluster.workers=1", "cluster.max_failures=7"])
    assert (run.config.cluster.workers, run.config.cluster.max_failures, run.config.tracking.enabled) == (1, 7, True)
    assert run.changed(["cluster.workers=2"]).cluster.workers == 2
    assert run.config.cluster.workers == 1, "asking changes nothing"
    assert (run.path / "config.yaml").read_bytes() == frozen
    assert run.config.signature == config.load(run.path / "config.yaml").signature


@pytest.mark.parametrize(
    ("override", "said"),
    [
        (
            "training.epochs=9",
            ["frozen but for where it runs", "training.epochs=9", "cluster.key=value or tracking.key=value", "signature"],
        ),
        ("seed=2", ["frozen", "speechlab train --config", "--set seed=2"]),
        ("cluster={workers: 2}\nseed: 2", ["frozen"]),
        ("cluster.workers=2\nseed=2", ["frozen"]),
        ("cluster.workers=3", ["micro_batches 2", "multiple of workers"]),
        ("cluster.wokers=1", ['did you mean "workers"']),
        ("cluster.workers", ["An override cannot be read"]),
    ],
)
def test_all_else_of_a_run_is_frozen(tmp_path, override, said):
    run = make(tmp_path)
    with pytest.raises(InputError) as error:
        run.change([override])
    assert [part for part in said if part not in str(error.value)] == [], error.value
    assert not (run.path / "overrides.txt").exists()


def test_a_run_that_trains_is_not_changed(tmp_path):
    run = make(tmp_path)
    with run.lock(), pytest.raises(InputError, match="Another process is training run"):
        run.change(["cluster.workers=2"])
    assert not (run.path / "overrides.txt").exists()


def test_the_command_refuses_to_change_what_is_frozen(tmp_path):
    run = make(tmp_path)
    driver = command("train", "--resume", str(run.path), "--set", "optim.lr=0.1")
    said, complained = driver.communicate(timeout=60)
    assert driver.returncode == 2
    assert "frozen but for where it runs" in complained
    assert run.state == "new"


def test_the_backend_follows_the_device(tmp_path):
    pytest.importorskip("ray")
    run = make(tmp_path, "cluster.workers=2", "cluster.workers_min=1")
    for gpu, backend in ((False, "gloo"), (True, "nccl")):
        trainer = cluster._trainer(run, run.config.cluster, Share(3, gpu), quiet=True)
        assert trainer.backend_config.backend == backend
        assert trainer.scaling_config.num_workers == (1, 2)
        assert trainer.scaling_config._resources_per_worker_not_none == Share(3, gpu).resources


def test_a_lost_worker_is_the_cause_and_not_those_that_miss_it():
    lost = RuntimeError("long")
    lost.worker_failures = {0: RuntimeError("[gloo/pair.cc:598] Connection closed by peer"), 1: ValueError("\x1b[36mray::x\x1b[39m died")}  # type: ignore[attr-defined]
    assert cluster._worker_error(lost) == "worker 1: ray::x died"


def test_a_cluster_that_cannot_call_back_has_a_remedy():
    assert "RAY_AUTH_MODE" in cluster._worker_error(RuntimeError("The actor died unexpectedly.\n\tclass_name: TrainController"))


def test_worker_errors_are_unwrapped():
    lost = RuntimeError("long")
    lost.worker_failures = {1: ValueError("rank one"), 0: ValueError("\n\nTraceback\n  x\nValueError: bad clip")}  # type: ignore[attr-defined]
    said = cluster._worker_error(lost)
    assert said.startswith("worker 0:")
    assert said.endswith("ValueError: bad clip")


@pytest.mark.slow
def test_a_scheduler_s_sigterm_saves_first(tmp_path, prompts):
    run = make(tmp_path, "cluster.workers=0", "training.epochs=5000")
    driver = cluster.launch(run)
    wait_for(run, "step")
    driver.send_signal(signal.SIGTERM)
    assert driver.wait(timeout=60) == 130
    assert run.state == "stopped"
    assert json.loads((checkpoints.existing(run.path / "checkpoints")[-1].path / "state.json").read_text())["step"] == len(run.steps())
    assert os.path.exists(run.path / "driver.log")
