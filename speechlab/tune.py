"""Sweeps on Ray Tune: trials side by side, the hopeless ones stopped early by ASHA (Li et al., 2020).

A trial trains its own run directory by the one loop; Tune only decides who goes on. So a sweep that was interrupted goes
on where its runs are, and everything that reads a run reads a trial.

Not covered: trials of several workers each, population-based training.
"""

from __future__ import annotations

import asyncio
import logging
import subprocess
from pathlib import Path
from typing import Any

from speechlab import cluster, detached, head, pool
from speechlab.errors import InputError
from speechlab.runs import Event, Run, message
from speechlab.sweeps import Sweep
from speechlab.units import Seconds

HALVING = 3  # of the trials that came as far, one in three goes on


def drive(sweep: Sweep, *, concurrent: int | None = None, quiet: bool = True) -> Path | None:
    """Train the trials of a sweep, or those that are left of it.

    Args:
        sweep: New, or interrupted.
        concurrent: Trials at once; none is one a GPU, or one for every two cores where there is none.
        quiet: Keep Ray's own log out of the terminal.

    Returns:
        The best config as YAML, or None if no trial got as far as a validation.

    Raises:
        InputError: if Ray cannot start, or every trial failed; the first error is given.
    """
    first = sweep.runs[0].config
    head.start(first.cluster.address, cores=pool.cores(), quiet=quiet)
    import ray
    from ray import tune
    from ray.tune.schedulers import ASHAScheduler

    if quiet:
        logging.getLogger("ray.tune").setLevel(logging.ERROR)
    try:
        there = ray.cluster_resources()
        gpus = int(there.get("GPU", 0)) if first.cluster.device != "cpu" else 0
        wanted = concurrent or gpus or max(1, int(there["CPU"]) // 2)
        cpus = max(1, int(there["CPU"]) // wanted)
        validations = -(-first.training.epochs // first.training.validate_epochs)
        tuner = tune.Tuner(
            tune.with_resources(_trial, {"cpu": cpus, "gpu": 1 if gpus else 0}),
            param_space={"run": tune.grid_search([str(run.path) for run in sweep.runs]), "threads": cpus},
            tune_config=tune.TuneConfig(
                metric="wer",
                mode="min",
                scheduler=ASHAScheduler(max_t=validations + 1, grace_period=1, reduction_factor=HALVING, stop_last_trials=False),
                max_concurrent_trials=wanted,
            ),
            run_config=tune.RunConfig(name="tune", storage_path=str(sweep.path / "ray"), verbose=0),
        )
        results = tuner.fit()
    finally:
        ray.shutdown()
    for run in sweep.runs:  # those that ASHA stopped were ended without a word
        if run.state == "interrupted" and len(run.validations()):
            run.append(message("stopped early: other trials were better at this point"))
            run.append({"kind": "stopped", "step": int(run.validations().step.iloc[-1])})
    best = sweep.keep_best()
    if best is None and results.errors:
        raise InputError("Every trial of the sweep failed.", got=str(results.errors[0]).strip().splitlines()[-1], do=f"see {sweep.path}")
    return best


def launch(sweep: Sweep) -> subprocess.Popen[bytes]:
    """Drive a sweep in a process of its own, which leaves a notebook's kernel free; output in driver.log."""
    return detached.start(sweep.path, "tune", "--resume", str(sweep.path))


def _trial(settings: dict[str, Any]) -> None:
    """Train one run to its end, telling Tune of every validation, those of earlier drives first."""
    import torch
    from ray import tune

    def heard(event: Event) -> None:
        if event["kind"] == "validation":
            tune.report({"wer": event["wer"]})

    torch.set_num_threads(settings["threads"])
    run = Run(settings["run"])
    for wer in run.validations().get("wer", []):
        tune.report({"wer": float(wer)})
    if run.state not in ("finished", "stopped"):
        cluster.drive(run, heard=heard)


async def finished(sweep: Sweep, process: subprocess.Popen[bytes], poll: Seconds = 0.5) -> Path | None:
    """Wait without blocking the kernel until a launched sweep has ended.

    Returns:
        The best config as YAML.

    Raises:
        cluster.TrainingFailed: with what the process said, if it failed.
    """
    while process.poll() is None:
        await asyncio.sleep(poll)
    if process.returncode:
        raise cluster.TrainingFailed(
            f"The sweep {sweep.id} failed.\n{detached.said(sweep.path)}\n  do:       go on with: speechlab tune --resume {sweep.id}"
        )
    return sweep.keep_best()
