"""MLflow follows the run directory: a real SQLite store, locked, gone, and back."""

from __future__ import annotations

import gzip
import hashlib
import json
import shutil
import sqlite3
import threading
import time
from datetime import datetime
from pathlib import Path

import pytest
from released import with_manifest

from speechlab import config, runs, tracking, versions
from speechlab.decimation import bucket
from speechlab.errors import InputError


@pytest.fixture
def run(tmp_path, store):
    """A run with a few events, as a driver would have written them."""
    shutil.copy(store, tmp_path / "mlflow.db")
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


def test_a_run_that_goes_on_elsewhere_is_followed_on(run):
    """The config's parameters are as at first; MLflow changes none."""
    tracking.catch_up(run)
    run.change(["cluster.workers=2", "cluster.device_seconds=33.0"])
    run.append({"kind": "start", "steps": 5, "resumed_from": 3})
    run.append(_step(4))
    assert tracking.catch_up(run) == 2
    found, losses, _ = recorded(run)
    assert [s for s, _ in losses] == [1, 2, 3, 4] and found.data.tags["speechlab.step"] == "4"
    assert found.data.params["cluster.workers"] != "2"
    assert found.data.tags["speechlab.now.cluster.workers"] == "2" and found.data.tags["speechlab.now.cluster.device_seconds"] == "33.0"


def test_how_busy_the_machine_was_goes_along(run):
    tracking.catch_up(run)
    assert not [key for key in recorded(run)[0].data.metrics if key.startswith("system/")], "an earlier version's steps do not say"
    run.append({**_step(4), "machine": {"cpu_utilization_percentage": 93.5, "gpu_0_utilization_percentage": 71.0}})
    tracking.catch_up(run)
    found = {key: value for key, value in recorded(run)[0].data.metrics.items() if key.startswith("system/")}
    assert found == {"system/cpu_utilization_percentage": 93.5, "system/gpu_0_utilization_percentage": 71.0}


def test_the_corpus_is_the_run_s_input_and_leads_to_its_manifest(run):
    import mlflow

    digest = with_manifest(run)
    tracking.catch_up(run)
    (run.path / "tracking.json").unlink()
    tracking.catch_up(run)  # twice: they are the same inputs
    found, _, _ = recorded(run)
    inputs = {i.tags[0].value: i.dataset for i in found.inputs.dataset_inputs}
    assert [i.tags[0].key for i in found.inputs.dataset_inputs] == ["mlflow.data.context"] * 2
    assert {split: d.name for split, d in inputs.items()} == {"train": "prompts/en/train", "test": "prompts/en/test"}
    assert json.loads(inputs["train"].profile) == {"clips": 2, "seconds": 4.0, "manifest_sha256": digest}
    assert all(digest.startswith(d.digest) and len(d.digest) == 36 for d in inputs.values())
    kept = mlflow.data.get_source(inputs["test"]).load()
    assert hashlib.sha256(gzip.decompress(Path(kept).read_bytes())).hexdigest() == digest == found.data.tags["speechlab.manifest"]


def test_a_damaged_manifest_is_no_input_and_stops_nothing(run):
    with_manifest(run)
    (run.path / "manifest.jsonl.gz").write_bytes(b"{}")
    assert tracking.catch_up(run) == 5
    assert recorded(run)[0].inputs.dataset_inputs == []


def long_run(run, steps: int) -> dict[int, float]:
    """Steps straight into the file, with a peak every 9,973 of them; the peaks."""
    peaks = {step: 100.0 + step for step in range(4321, steps, 9973)}
    with open(run.path / "events.jsonl", "a") as f:
        for step in range(4, steps + 1):
            f.write(json.dumps({**_step(step), "loss": peaks.get(step, 2 + step % 7 / 10), "time": 1.8e9 + step}) + "\n")
    return peaks


@pytest.mark.slow
def test_a_hundred_thousand_steps_are_some_thousands_of_points(run):
    peaks = long_run(run, 100_000)
    before = hashlib.sha256((run.path / "events.jsonl").read_bytes()).hexdigest()
    assert tracking.catch_up(run) == 100_000 + 2
    _, losses, client = recorded(run)
    assert len(peaks) > 5 and peaks.items() <= dict(losses).items(), "no peak is lost"
    assert 2000 < len(losses) < 5000
    assert hashlib.sha256((run.path / "events.jsonl").read_bytes()).hexdigest() == before
    assert tracking.catch_up(run) == 0 and recorded(run)[1] == losses
    (run.path / "tracking.json").unlink()  # once more from the start
    assert tracking.catch_up(run) == 100_000 + 2 and recorded(run)[1] == losses
    assert recorded(run)[0].data.tags["speechlab.step"] == "100000"


@pytest.mark.slow
def test_a_long_run_that_is_followed_looks_alive_and_ends_whole(run):
    """In pieces, under a driver's lock, and with a tracker that loses its place: what is in MLflow grows, and is the same as in one go."""
    with run.lock():
        for step in range(4, 1201):
            run.append(_step(step))
            if step % 100 == 0:
                tracking.catch_up(run)
                found, losses, _ = recorded(run)
                assert found.data.tags["speechlab.step"] == str(step)
                assert losses[-1][0] >= bucket(step)[0] - 1, "all buckets but the one at hand are there"
    tracking.catch_up(run)  # the driver was killed: the rest goes along
    _, losses, _ = recorded(run)
    assert losses[-1][0] == 1200 and losses == sorted(losses)
    (run.path / "tracking.json").unlink()
    tracking.catch_up(run)
    assert recorded(run)[1] == losses
    run.append({"kind": "start", "steps": 1300, "resumed_from": 1150})
    for step in range(1151, 1301):
        run.append(_step(step))
    run.append({"kind": "end", "step": 1300, "seconds": 2.0, "best": None})
    tracking.catch_up(run)
    found, after, _ = recorded(run)
    assert set(losses) <= set(after) and after[-1][0] == 1300 and found.info.status == "FINISHED"


def test_what_an_earlier_version_noted_is_sent_again_to_the_same_run(run):
    tracking.catch_up(run)
    found, losses, _ = recorded(run)
    note = {"mlflow_run": found.info.run_id, "events": 5, "evaluations": [], "status": "RUNNING"}
    (run.path / "tracking.json").write_text(json.dumps(note))
    assert tracking.catch_up(run) == 5
    again, same, _ = recorded(run)
    assert (again.info.run_id, same) == (found.info.run_id, losses)


def test_another_tracker_gets_all(run, store, tmp_path):
    tracking.catch_up(run)
    shutil.copy(store, tmp_path / "other.db")
    run.change([f"tracking.uri=sqlite:///{tmp_path / 'other.db'}", f"tracking.artifacts={tmp_path / 'files'}"])
    assert tracking.catch_up(run) == 5 and len(recorded(run)[1]) == 3
    assert list((tmp_path / "files").rglob("config.yaml")), "where tracking.artifacts says"


def test_a_password_goes_into_no_record(run):
    with pytest.raises(InputError, match="got a URI with a password") as e:
        run.change(["tracking.uri=postgresql://me:hunter2@127.0.0.1/db"])
    with pytest.raises(InputError, match="holds a password(.|\n)*PGPASSWORD") as other:
        versions.connect("http://me:hunter2@127.0.0.1:9")
    assert "hunter2" not in str(e.value) + str(other.value)
    tracking.catch_up(run)
    held = [path.read_bytes() for path in run.path.parent.rglob("*") if path.is_file()]
    assert len(held) > 3 and not any(b"hunter2" in data for data in held)


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
    with tracking.Follower(run, period=0.2, patience=2.0):
        for step in range(4, 30):
            run.append(_step(step))  # training does not wait for the tracker, which is locked until below
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
    monkeypatch.setattr(tracking._Sent, "read", lambda *of: (read(*of), time.sleep(0.3))[0])  # between knowing and sending
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
