"""Backends by configuration alone, each a real server with a password: PostgreSQL, an S3-compatible store, MLflow's with basic auth."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest
from browser import make_run, step_event
from released import finished, with_manifest
from servers import KINDS, PASSWORD, Server

from speechlab import fetch, registry, systems, tracking, versions
from speechlab.runs import Run

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=KINDS)
def server(request) -> Iterator[Server]:
    found = KINDS[request.param]()
    yield found
    found.end()


@pytest.fixture(autouse=True)
def environment(server, monkeypatch) -> None:
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")


def through(server: Server, run: Run) -> Run:
    """The run, followed through a server."""
    run.change(list(server.settings))
    return run


def plain(run: Run) -> tuple[mlflow.MlflowClient, mlflow.entities.Run]:
    """What somebody with MLflow's own client finds."""
    client = mlflow.MlflowClient(tracking_uri=run.config.tracking.uri)
    experiment = client.get_experiment_by_name(run.config.tracking.experiment)
    (found,) = client.search_runs([experiment.experiment_id], filter_string=f"tags.`speechlab.run` = '{run.id}'")
    return client, found


def losses(run: Run) -> list[tuple[int, float]]:
    client, found = plain(run)
    return [(m.step, m.value) for m in client.get_metric_history(found.info.run_id, "train/loss")]


def written(run: Run) -> list[tuple[int, float]]:
    return [(e["step"], e["loss"]) for e in run.events() if e["kind"] == "step"]


def test_a_run_goes_there_whole(server, tmp_path):
    run = through(server, make_run(tmp_path))
    digest = with_manifest(run)
    run.append(step_event(61, machine={"cpu_utilization_percentage": 50.0}))
    assert tracking.catch_up(run) == len(run.events()) and tracking.catch_up(run) == 0
    client, found = plain(run)
    assert len(written(run)) == 61 and losses(run) == [(step, pytest.approx(loss)) for step, loss in written(run)]
    assert found.data.metrics["system/cpu_utilization_percentage"] == 50.0 and found.data.metrics["dev/wer"] == pytest.approx(0.03)
    assert found.data.params == {key: str(value) for key, value in tracking.flatten(run.config).items()}
    assert found.data.tags["speechlab.signature"] == run.config.signature and found.data.tags["speechlab.step"] == "61"
    assert {a.path for a in client.list_artifacts(found.info.run_id)} == {"config.yaml", "manifest.jsonl.gz", "provenance.json"}
    kept = mlflow.artifacts.download_artifacts(
        run_id=found.info.run_id, artifact_path="config.yaml", dst_path=str(tmp_path), tracking_uri=run.config.tracking.uri
    )
    assert Path(kept).read_bytes() == (run.path / "config.yaml").read_bytes()
    assert [i.tags[0].value for i in found.inputs.dataset_inputs] == ["train", "test"]
    source = json.loads(found.inputs.dataset_inputs[0].dataset.source)["uri"]
    manifest = mlflow.artifacts.download_artifacts(source, dst_path=str(tmp_path), tracking_uri=run.config.tracking.uri)
    assert hashlib.sha256(gzip.decompress(Path(manifest).read_bytes())).hexdigest() == digest


def test_a_model_goes_there_and_comes_back(server, tmp_path, small_whisper, monkeypatch):
    run = through(server, finished(tmp_path, small_whisper))
    with_manifest(run)
    registry.register(run, "prompts-en")
    uri = run.config.tracking.uri
    made = registry.promote("prompts-en", uri=uri)
    monkeypatch.setenv("SPEECHLAB_CACHE", str(tmp_path / "another machine's"))
    assert fetch.cache() == tmp_path / "another machine's"
    for name in ("models:/prompts-en@champion", f"models:/prompts-en/{made.version}"):
        there, here = systems.resolve(name, "en", uri), systems.resolve(str(run.path), "en")
        assert Path(there.folder).is_relative_to(fetch.cache()) and there.sha256 == versions.sha256_of(Path(here.folder))
    client, found = plain(run)
    about = client.get_model_version_by_alias("prompts-en", "champion")
    lineage = {key: about.tags[f"speechlab.{key}"] for key in ("run", "signature", "manifest", "weights")}
    assert lineage == {"run": run.id, "signature": run.config.signature, "weights": here.sha256,
                       "manifest": run.provenance["data"]["manifest_sha256"]}  # fmt: skip
    assert about.run_id == found.info.run_id and found.data.tags["speechlab.manifest"] == lineage["manifest"]
    assert lineage["manifest"].startswith(found.inputs.dataset_inputs[0].dataset.digest)
    names = [a.path for a in client.list_artifacts(about.run_id, f"model/{here.sha256[:12]}")]
    assert names and not [name for name in names if name.endswith((".pkl", ".pt", ".bin", ".pth"))], "no pickle"


def test_a_server_that_is_killed_loses_nothing(server, tmp_path, small_whisper, monkeypatch):
    registry.register(through(server, finished(tmp_path, small_whisper)), "kept")
    run = through(server, make_run(tmp_path, end=False, steps=30))
    tracking.catch_up(run)
    before = losses(run)
    server.kill()
    for step in range(31, 61):
        run.append(step_event(step))
    evaluation = {"system": "finetuned", "condition": "clean", "context": "short", "wer": 0.03, "cer": 0.01, "rtf": 0.02}
    (run.path / "evaluations" / "finetuned--clean--short.json").write_text(json.dumps(evaluation))
    with pytest.raises(Exception, match="(?i)connect|refused|closed"):
        tracking.catch_up(run)
    with tracking.Follower(run, period=0.5, patience=1.0):
        pass
    assert any("MLflow" in e.get("text", "") for e in run.events()), "the run says so"
    server.start()
    for _ in range(3):  # a connection that was open before is found to be closed, once
        try:
            tracking.catch_up(run)
            break
        except Exception:
            continue
    assert len(before) == 30 and losses(run)[:30] == before
    assert losses(run) == [(step, pytest.approx(loss)) for step, loss in written(run)] and len(losses(run)) == 60
    client, found = plain(run)
    assert [a.path for a in client.list_artifacts(found.info.run_id, "evaluations")] == ["evaluations/finetuned--clean--short.json"]
    monkeypatch.setenv("SPEECHLAB_CACHE", str(tmp_path / "cache"))
    assert systems.resolve("models:/kept@candidate", "en", run.config.tracking.uri).family == "whisper", "nor the registered model"


def test_without_its_password_nothing_gets_in(server, tmp_path):
    run = through(server, make_run(tmp_path))
    with_manifest(run)

    def shell(*arguments: str, **more: str) -> tuple[int, str]:
        """A command in a process of its own: a connection that this one holds open would not ask again."""
        done = subprocess.run(
            [sys.executable, "-m", "speechlab", *arguments], env={**os.environ, **more}, capture_output=True, text=True, timeout=300
        )
        return done.returncode, done.stdout + done.stderr

    asked = [("track", str(run.path))] + [("models", "--uri", run.config.tracking.uri)] * (server.secret != KINDS["s3"].secret)
    for arguments in asked:  # S3 keeps no registry
        code, said = shell(*arguments, **{server.secret: "hunter2"})
        assert code == 2 and "Traceback" not in said, said
        assert "hunter2" not in said
        assert any(word in said for word in ("authenticat", "Unauthorized", "401", "SignatureDoesNotMatch")), said
    code, said = shell("track", str(run.path))
    assert code == 0 and f"{len(run.events())} events sent" in said and PASSWORD not in said
    assert len(losses(run)) == 60
    held = [path.read_bytes() for path in run.path.rglob("*") if path.is_file()]
    assert not any(PASSWORD.encode() in data or b"hunter2" in data for data in held), "it stands in no record"
