"""A sweep on Ray Tune for real: the worst trials are stopped early, and a killed driver loses nothing."""

from __future__ import annotations

import time

import pytest
from test_sweeps import experiment

from speechlab import config, sweeps, tune
from speechlab.cluster import TrainingFailed


@pytest.mark.slow
def test_ray_tune_trains_the_trials_stops_the_worst_and_goes_on_after_a_kill(tmp_path, prompts):
    """A hopeless learning rate is among the trials; the driver is killed in the middle."""
    made = experiment(
        model={"family": "conformer", "shape": {"dim": 32, "layers": 1, "heads": 2, "dropout": 0.0}},
        corpus={"limit": 8},
        training={"epochs": 6, "micro_batches": 2, "batch_clips": 4, "precision": "fp32", "checkpoint_steps": 1},
        optim={"warmup_steps": 1},
    )
    sweep = sweeps.Sweep.create(made, sweeps.space(["optim.lr=choice(1e-3, 3e-3, 1e-6, 2e-6)", "seed=randint(1, 3)"]), 6, tmp_path)
    process = tune.launch(sweep)
    deadline = time.monotonic() + 240
    while sweep.table().epochs.sum() < 3:
        assert process.poll() is None, (sweep.path / "driver.log").read_text()
        assert time.monotonic() < deadline, (sweep.path / "driver.log").read_text()
        time.sleep(0.2)
    process.kill()
    process.wait()
    time.sleep(3)  # Ray's processes notice
    best = tune.drive(sweep)
    table = sweep.table()
    assert best is not None
    assert set(table.state) <= {"finished", "stopped"}
    assert (table.state == "stopped").any(), "ASHA stops some early"
    assert (table.state == "finished").any()
    assert config.load(best).optim.lr in (1e-3, 3e-3, 1e-6, 2e-6)


def test_a_sweep_that_failed_says_what_its_process_said(tmp_path):
    import asyncio
    import subprocess
    import sys

    sweep = sweeps.Sweep.create(experiment(), sweeps.space(["seed=randint(1, 9)"]), 2, tmp_path)
    (sweep.path / "driver.log").write_text("Ray could not start.")
    with pytest.raises(TrainingFailed, match=r"Ray could not start[\s\S]*speechlab tune --resume"):
        asyncio.run(tune.finished(sweep, subprocess.Popen([sys.executable, "-c", "raise SystemExit(2)"]), 0.05))
