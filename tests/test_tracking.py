"""MLflow follows the run directory: a real SQLite store, locked, gone, and back."""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from datetime import datetime
from pathlib import Path

import pytest

from speechlab import config, runs, tracking


@pytest.fixture
def run(tmp_path):
    """A run with a few events, as a driver would have written them."""
    run = runs.Run.create(config.load("configs/smoke.yaml"), tmp_path)
    run.append({"kind": "start", "steps": 3, "resumed_from": None})
    for step in (1, 2, 3):
        run.append(_step(step))
    run.append({"kind": "validation", "step": 3, "epoch": 0, "wer": 0.25, "cer": 0.1, "clips": 8, "seconds": 1.0, "samples": []})
    return run


def _step(step: int) -> dict:
    return {
        "kind": "step",
        "step": step,
        "epoch": 0,
        "loss": 1.0 / step,
        "lr": 1e-5,
        "grad_norm": 1.0,
        "clips": 4,
        "audio_seconds": 9.0,
        "padded_seconds": 10.0,
        "heard_seconds": 12.0,
        "full_context": False,
        "step_seconds": 0.5,
        "wait_seconds": 0.01,
        "memory_bytes": 10**9,
    }


def recorded(run):
    """What MLflow has: the run and the history of its loss."""
    import mlflow

    client = mlflow.MlflowClient(tracking_uri=tracking.uri_for(run))
    (experiment,) = [e for e in client.search_experiments() if e.name == run.config.tracking.experiment]
    (found,) = client.search_runs([experiment.experiment_id], filter_string=f"tags.`speechlab.run` = '{run.id}'")
    return found, [(m.step, m.value) for m in client.get_metric_history(found.info.run_id, "train/loss")], client


def test_everything_arrives_once_however_often_it_is_sent(run):
    assert tracking.catch_up(run) == 5
    assert tracking.catch_up(run) == 0
    run.append(_step(4))
    assert tracking.catch_up(run) == 1
    (run.path / "tracking.json").unlink()  # as if it was lost: all is sent again, to the same MLflow run
    assert tracking.catch_up(run) == 6
    found, losses, client = recorded(run)
    assert losses == [(s, pytest.approx(1.0 / s)) for s in (1, 2, 3, 4)]
    assert found.data.metrics["dev/wer"] == 0.25
    assert found.data.params["training.epochs"] == "2"
    assert found.data.params["model.weights"] == "tiny.en"
    assert found.data.tags["speechlab.signature"] == run.config.signature
    assert [a.path for a in client.list_artifacts(found.info.run_id)] == ["config.yaml"]
    assert found.info.status == "RUNNING" or run.state == "interrupted"


def test_the_state_of_the_run_is_the_state_in_mlflow(run):
    tracking.catch_up(run)
    run.append({"kind": "end", "step": 3, "seconds": 2.0, "best": None})
    tracking.catch_up(run)
    assert recorded(run)[0].info.status == "FINISHED"


def test_evaluations_become_metrics(run):
    meta = {"system": "finetuned", "condition": "clean", "context": "short", "wer": 0.03, "cer": 0.01, "rtf": 0.02}
    (run.path / "evaluations" / "finetuned--clean--short.json").write_text(json.dumps(meta))
    tracking.catch_up(run)
    assert recorded(run)[0].data.metrics["test/finetuned/clean/short/wer"] == 0.03


def test_what_describes_a_run_goes_along(run):
    for name in tracking.DESCRIBING[1:]:
        (run.path / name).write_bytes(b"{}")
    tracking.catch_up(run)
    found, _, client = recorded(run)
    assert {a.path for a in client.list_artifacts(found.info.run_id)} == set(tracking.DESCRIBING)


def rerun(folder, **values):
    """A rerun with its verdict's files."""
    again = runs.Run.create(config.load("configs/smoke.yaml", ["tracking.enabled=false"]), folder)
    (again.path / "reproduction.json").write_text(json.dumps(values))
    (again.path / "reproduction.html").write_text("<p>verdict</p>")
    return again


def test_a_reproduction_is_noted_on_the_original(run, tmp_path):
    made = [rerun(tmp_path / "reproductions", level=level) for level in ("different", "bit-exact")]
    for again, level in zip(made, ("different", "bit-exact"), strict=True):
        assert "noted in MLflow" in tracking.reproduced(run, again, level)
    found, losses, client = recorded(run)
    tags = {k: v for k, v in found.data.tags.items() if k.startswith("speechlab.reproduced")}
    at = tags.pop("speechlab.reproduced.at")
    assert abs(datetime.fromisoformat(at).timestamp() - time.time()) < 60
    assert tags == {"speechlab.reproduced": "bit-exact", "speechlab.reproduced.by": made[1].id}, "the last one"
    assert len(losses) == 3, "it was not in MLflow before, and is now"
    for again in made:
        place = f"reproductions/{again.id}"
        kept = [a.path for a in client.list_artifacts(found.info.run_id, place)]
        assert kept == [f"{place}/reproduction.html", f"{place}/reproduction.json"]
    text = client.download_artifacts(found.info.run_id, f"reproductions/{made[1].id}/reproduction.json", str(tmp_path))
    assert json.loads(Path(text).read_text()) == {"level": "bit-exact"}


def test_a_tracker_that_is_away_costs_the_verdict_nothing(tmp_path):
    away, off = (
        runs.Run.create(config.load("configs/smoke.yaml", [item]), tmp_path)
        for item in ("tracking.uri=http://127.0.0.1:9", "tracking.enabled=false")
    )
    again = rerun(tmp_path)
    said = tracking.reproduced(away, again, "bit-exact")
    assert said.startswith("MLflow: ") and "the verdict stands" in said and str(again.path) in said
    assert tracking.reproduced(off, again, "bit-exact") == "" and not (tmp_path / "mlflow.db").exists()


@pytest.mark.slow
def test_a_locked_store_does_not_stop_the_run_and_is_caught_up(run):
    tracking.catch_up(run)
    path = tracking.uri_for(run).removeprefix("sqlite:///")
    locker = sqlite3.connect(path, isolation_level=None)
    locker.execute("BEGIN EXCLUSIVE")
    began = time.monotonic()
    with tracking.Follower(run, period=0.2, patience=2.0):
        for step in range(4, 30):
            run.append(_step(step))
    assert time.monotonic() - began < 10, "training does not wait for the tracker"
    assert any(e["kind"] == "message" and "MLflow" in e["text"] for e in run.events())
    locker.execute("ROLLBACK")
    locker.close()
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and len(recorded(run)[1]) < 29:
        tracking.catch_up(run)
    assert [s for s, _ in recorded(run)[1]] == list(range(1, 30))


def test_of_several_that_catch_up_at_once_one_sends(run, monkeypatch):
    tracking.catch_up(run)
    for step in range(4, 60):
        run.append(_step(step))
    read = tracking._Sent.read
    monkeypatch.setattr(tracking._Sent, "read", lambda run: (read(run), time.sleep(0.3))[0])  # between knowing and sending
    sent = []
    threads = [threading.Thread(target=lambda: sent.append(tracking.catch_up(run))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(sent) == [0, 0, 0, 56]
    assert [s for s, _ in recorded(run)[1]] == list(range(1, 60))


def test_a_store_that_is_gone_costs_one_message(tmp_path):
    run = runs.Run.create(config.load("configs/smoke.yaml", ["tracking.uri=http://127.0.0.1:9"]), tmp_path)
    run.append({"kind": "start", "steps": 1, "resumed_from": None})
    with tracking.Follower(run, period=0.1, patience=1.0):
        time.sleep(1.0)
    said = [e["text"] for e in run.events() if e["kind"] == "message"]
    assert 1 <= len(said) <= 2
    assert "training goes on" in said[0] or "speechlab track" in said[0]


def test_tracking_can_be_off(tmp_path):
    run = runs.Run.create(config.load("configs/smoke.yaml", ["tracking.enabled=false"]), tmp_path)
    with tracking.Follower(run):
        pass
    assert not (tmp_path / "mlflow.db").exists()


def test_flatten_names_every_leaf(run):
    flat = tracking.flatten(run.config)
    assert flat["optim.lr"] == 1e-5
    assert flat["name"] == "smoke"
    assert not any(isinstance(v, dict) for v in flat.values())


def test_a_config_with_everything_on_is_recorded_whole(tmp_path):
    """With augmentation it has about as many leaves as MLflow takes at once."""
    sections = [f"augment.{name}={{}}" for name in config.AugmentConfig.model_fields]
    run = runs.Run.create(config.load("configs/smoke.yaml", sections), tmp_path)
    run.append({"kind": "start", "steps": 3, "resumed_from": None})
    tracking.catch_up(run)
    flat = tracking.flatten(run.config)
    found = recorded(run)[0].data.params
    assert set(found) == set(flat)
    assert found["augment.noise.low"] == "10.0"
    assert found["corpus.check.set_aside"] == "('truncated',)"
    assert len(flat) > 80
