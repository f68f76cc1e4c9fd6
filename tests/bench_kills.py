"""Nothing lost: SIGKILL at random moments, and the weights at the end are the undisturbed run's, bit for bit.

    .venv/bin/python tests/bench_kills.py [--moments 20] [--kinds worker driver kernel] [--seed 1]

A small Conformer trains on real prompts, with a checkpoint every second step. For each moment a process is killed: a Ray
worker (Ray restarts it), the driver (the run is driven again), or the notebook's kernel (training goes on without it). A
third of the moments fall into the writing of a checkpoint, the others lie anywhere between the first and the last step.
Prints one line a moment: what was killed, at which step, in which phase, the seconds lost, and whether the weights are equal.
Ends with exit status 1 if any are not. The control is a run with another seed, whose weights must differ.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import psutil

from speechlab import checkpoints, cluster, config, runs

ROOT = Path(__file__).resolve().parents[1]


def experiment(workers: int, seed: int = 1) -> config.Experiment:
    """About forty short steps."""
    return config.validate(
        {
            "name": "kills",
            "question": "Is anything lost?",
            "seed": seed,
            "corpus": {"limit": 24},
            "model": {"family": "conformer", "shape": {"dim": 48, "layers": 2, "heads": 2}},
            "augment": {"speed": {}, "spec": {"time_width": 20}},
            "optim": {"lr": 1e-3, "warmup_steps": 4},
            "training": {
                "epochs": 8,
                "batch_clips": 6,
                "micro_batches": 2,
                "precision": "fp32",
                "checkpoint_steps": 2,
                "validate_epochs": 4,
            },
            "cluster": {"workers": workers, "device_seconds": 240.0, "max_failures": 3},
            "tracking": {"enabled": False},
        },
        "bench",
    )


def digest(run: runs.Run) -> str:
    return checkpoints.existing(run.path / "checkpoints")[-1].digest


def wait(run: runs.Run, until: float, during_checkpoint: bool, process: subprocess.Popen[bytes]) -> str:
    """Until a share of the steps is done, and a checkpoint is being written where that is wanted; the phase."""
    while True:
        steps = run.steps()
        total = next((e["steps"] for e in run.events() if e["kind"] == "start"), 10**9)
        if len(steps) and steps.step.iloc[-1] >= until * total:
            break
        assert process.poll() is None or run.state == "finished", (run.path / "driver.log").read_text()[-2000:]
        time.sleep(0.01)
    if not during_checkpoint:
        return "in a step"
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        if next((run.path / "checkpoints").glob(".step-*.partial"), None):
            return "in a checkpoint"
    return "after a checkpoint"


def kill(kind: str, process: subprocess.Popen[bytes]) -> None:
    """SIGKILL to what the kind says, found below the process that was started."""
    below = psutil.Process(process.pid).children(recursive=True)
    if kind == "driver":
        process.kill()
        process.wait()
        for child in below:  # what a scheduler that kills the job would take along
            with suppress(psutil.NoSuchProcess):
                child.kill()
    else:
        word = {"worker": "RayTrainWorker", "kernel": "ipykernel_launcher"}[kind]
        victim = next(p for p in below if word in " ".join(p.cmdline()))
        os.kill(victim.pid, signal.SIGKILL)


def one(kind: str, until: float, during_checkpoint: bool, root: Path) -> tuple[str, int, float, str]:
    """Kill once, see the run to its end: phase, step, seconds lost, digest."""
    run = runs.Run.create(experiment(1 if kind == "worker" else 0), root)
    if kind == "kernel":
        command = [
            str(Path(sys.executable).parent / "papermill"),
            "notebooks/03_train.ipynb",
            str(run.path / "out.ipynb"),
            "-p",
            "run",
            str(run.path),
        ]
        log = open(run.path / "driver.log", "wb")  # noqa: SIM115
        process = subprocess.Popen([*command, "--no-progress-bar"], cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)
    else:
        process = cluster.launch(run)
    assert process is not None
    phase = wait(run, until, during_checkpoint, process)
    at = int(run.steps().step.iloc[-1])
    killed = time.time()
    kill(kind, process)
    if kind == "kernel":
        while run.locked():
            time.sleep(0.1)
        process.wait()
    else:
        asyncio.run(cluster.finished(run, cluster.launch(run) if kind == "driver" else process))
    assert run.state == "finished", run.state
    later = [e["time"] for e in run.events() if e["kind"] == "step" and e["step"] > at and e["time"] > killed]
    return phase, at, (min(later) - killed if later else 0.0), digest(run)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--moments", type=int, default=20)
    parser.add_argument("--kinds", nargs="+", default=["worker", "driver", "kernel"])
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    rng = random.Random(asked.seed)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        undisturbed, control = (runs.Run.create(experiment(0, seed), root) for seed in (1, 2))
        for run in (undisturbed, control):
            assert cluster.drive(run) == "finished"
        wanted = digest(undisturbed)
        assert digest(control) != wanted, "another seed gives other weights"
        print(f"undisturbed: {len(undisturbed.steps())} steps, weights {wanted[:12]}; control with another seed {digest(control)[:12]}")
        equal = 0
        for number in range(asked.moments):
            kind = asked.kinds[number % len(asked.kinds)]
            phase, at, lost, found = one(kind, rng.uniform(0.0, 0.9), rng.random() < 1 / 3, root)
            equal += found == wanted
            verdict = "equal" if found == wanted else "DIFFERENT"
            print(f"{number + 1:>3}  {kind:<7} at step {at:>3}, {phase:<19} {lost:6.1f} s lost  {verdict}", flush=True)
        print(f"{equal} of {asked.moments} equal")
        raise SystemExit(equal != asked.moments)


if __name__ == "__main__":
    main()
