"""MLflow as a follower of the run directory: it reads what is there and never stands in training's way.

:func:`catch_up` sends what the tracker has not yet; what it has sent is noted in ``tracking.json``, and sending
an event twice changes nothing. :class:`Follower` calls it once a second from a thread. A tracker that
is locked, slow or gone costs a message in the run; ``speechlab track RUN`` catches up at any time.

Not covered yet: system metrics, dataset inputs, decimation for MLflow's own page.
"""

from __future__ import annotations

import fcntl
import json
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from speechlab import config as configs
from speechlab.config import Experiment
from speechlab.runs import Event, Run, write_atomic
from speechlab.units import Seconds
from speechlab.versions import connect

BATCH = 1000  # metrics MLflow takes in one call
PARAMS = 50  # for one call; MLflow takes at most 100
STEP_METRICS = ("loss", "lr", "grad_norm", "clips", "audio_seconds", "padded_seconds", "step_seconds", "wait_seconds", "memory_bytes")
VALIDATION_METRICS = ("wer", "cer")
DESCRIBING = ("config.yaml", "provenance.json", "code.patch", "manifest.jsonl.gz", "packages.txt")  # files of a run, where it has them
STATUS = {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED", "interrupted": "FAILED"}


def uri_for(run: Run) -> str:
    """The tracking URI of a run: the config's, or SQLite beside the runs."""
    return run.config.tracking.uri or f"sqlite:///{run.path.parent / 'mlflow.db'}"


def recorded(run: Run) -> str:
    """The id of a run in MLflow, which gets what it does not have of it yet.

    Raises:
        Exception: as for :func:`catch_up`.
    """
    catch_up(run)
    found = _Sent.read(run).mlflow_run
    assert found is not None
    return found


def reproduced(original: Run, again: Run, level: str) -> str:
    """Note in MLflow, on a run, that it was made again; a tracker that is away costs no more than a message.

    Args:
        original: Of it MLflow gets the tags ``speechlab.reproduced``, ``….at`` (UTC) and ``….by``, which speak of the last rerun, and
            the verdict's files of each.
        again: The rerun, whose directory holds the verdict.
        level: Of the verdict.

    Returns:
        What to say: where it was noted, or why it was not; empty if the original is not tracked.
    """
    if not original.config.tracking.enabled:
        return ""
    tags = {"speechlab.reproduced": level, "speechlab.reproduced.by": again.id}
    tags["speechlab.reproduced.at"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    try:
        mlflow_run = recorded(original)
        client = connect(uri_for(original))
        for name in ("reproduction.json", "reproduction.html"):
            client.log_artifact(mlflow_run, str(again.path / name), f"reproductions/{again.id}")
        for key, value in tags.items():
            client.set_tag(mlflow_run, key, value)
    except Exception as e:  # MLflow raises several kinds
        return f"MLflow: {type(e).__name__}: {str(e)[:300]}; the verdict stands, and is in {again.path}"
    return f"noted in MLflow, on run {mlflow_run}"


def catch_up(run: Run) -> int:
    """Send MLflow everything of the run that it does not have yet, one sender at a time: the same metrics twice at once it refuses.

    Returns:
        The number of events sent.

    Raises:
        Exception: whatever MLflow raises when it cannot be reached; nothing is lost, call again.
    """
    with open(run.path / "tracking.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return _send(run)


def _send(run: Run) -> int:
    client = connect(uri_for(run))
    sent = _Sent.read(run)
    if sent.mlflow_run is None:
        sent = sent.replace(mlflow_run=_create(client, run))
        sent.write(run)
    mlflow_run = sent.mlflow_run
    assert mlflow_run is not None
    events = run.events()
    new = events[sent.events :]
    metrics = [m for e in new for m in _metrics(e)]
    for start in range(0, len(metrics), BATCH):
        client.log_batch(mlflow_run, metrics=metrics[start : start + BATCH])
    if any(e["kind"] == "start" for e in new):
        _describe(client, run, mlflow_run)
    sent = sent.replace(events=len(events))
    sent.write(run)
    for path in sorted((run.path / "evaluations").glob("*.json")):
        stamp = f"{path.name}:{path.stat().st_mtime_ns}"
        if stamp not in sent.evaluations:
            _evaluation(client, mlflow_run, path)
            sent = sent.replace(evaluations=(*sent.evaluations, stamp))
            sent.write(run)
    state = run.state
    status = "RUNNING" if any(e["kind"] == "start" for e in new) or state in ("new", "running") else STATUS[state]
    if status != sent.status:
        if status == "RUNNING":
            client.update_run(mlflow_run, status="RUNNING")
        else:
            client.set_terminated(mlflow_run, status=status)
        sent.replace(status=status).write(run)
    return len(new)


class Follower:
    """Keeps MLflow up with a run while it trains: a context manager around the driver's work.

    Args:
        run: The run.
        period: Between two looks at the directory.
        patience: For the last catch-up, when training is over.
    """

    def __init__(self, run: Run, period: Seconds = 1.0, patience: Seconds = 20.0) -> None:
        self._run, self._period, self._patience = run, period, patience
        self._over, self._done = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._follow, name="tracking", daemon=True)
        self._complained = False

    def __enter__(self) -> Follower:
        """Start following, if the config wants it."""
        if self._run.config.tracking.enabled:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Catch up once more; say so in the run if that does not succeed in time."""
        if not self._thread.is_alive():
            return
        self._over.set()
        if not self._done.wait(self._patience):
            self._complain(f"it is behind; catch up with: speechlab track {self._run.id}")

    def _follow(self) -> None:
        over = False
        while True:
            over = self._over.is_set()
            try:
                catch_up(self._run)
                if over:
                    self._done.set()
                    return
            except Exception as e:
                if not self._complained:
                    self._complained = True
                    self._complain(f"{type(e).__name__}: {str(e).splitlines()[0] if str(e) else ''}; training goes on, tracking catches up")
            self._over.wait(self._period) if not over else self._done.wait(self._period)

    def _complain(self, text: str) -> None:
        self._run.warn(f"MLflow: {text}")


class _Sent:
    """What the tracker has: the one piece of state, replaced whole."""

    def __init__(self, mlflow_run: str | None = None, events: int = 0, evaluations: Iterable[str] = (), status: str = "RUNNING") -> None:
        self.mlflow_run, self.events, self.evaluations, self.status = mlflow_run, events, tuple(evaluations), status

    def replace(self, **changes: Any) -> _Sent:
        return _Sent(**{**vars(self), **changes})

    @classmethod
    def read(cls, run: Run) -> _Sent:
        path = run.path / "tracking.json"
        return cls(**json.loads(path.read_text())) if path.exists() else cls()

    def write(self, run: Run) -> None:
        write_atomic(run.path / "tracking.json", json.dumps(vars(self)).encode())


def _create(client: Any, run: Run) -> str:
    wanted = run.config.tracking.experiment
    found = client.get_experiment_by_name(wanted)
    if found is not None:
        experiment = found.experiment_id
    elif run.config.tracking.uri is None:
        experiment = client.create_experiment(wanted, artifact_location=(run.path.parent / "mlflow-artifacts").as_uri())
    else:
        experiment = client.create_experiment(wanted)
    # another process may have got here first, or an answer was lost on the way
    for known in client.search_runs([experiment], filter_string=f"tags.`speechlab.run` = '{run.id}'", max_results=1):
        return str(known.info.run_id)
    return str(client.create_run(experiment, run_name=run.id, tags={"speechlab.run": run.id}).info.run_id)


def _describe(client: Any, run: Run, mlflow_run: str) -> None:
    from mlflow.entities import Param, RunTag

    params = [Param(key, str(value)[:500]) for key, value in flatten(run.config).items()]
    record = run.provenance
    tags = {
        "speechlab.signature": run.config.signature,
        "speechlab.git": record.get("code", {}).get("git_sha"),
        "speechlab.manifest": record.get("data", {}).get("manifest_sha256"),
        "speechlab.weights": record.get("weights", {}).get("sha256"),
    }
    for start in range(0, len(params), PARAMS):
        client.log_batch(mlflow_run, params=params[start : start + PARAMS])
    client.log_batch(mlflow_run, tags=[RunTag(k, str(v)) for k, v in tags.items() if v])
    for name in DESCRIBING:
        if (run.path / name).exists():
            client.log_artifact(mlflow_run, str(run.path / name))


def flatten(experiment: Experiment) -> dict[str, Any]:
    """The config as ``section.key`` names, for trackers and tables."""
    return dict(configs.leaves(experiment.model_dump()))


def _metrics(event: Event) -> list[Any]:
    from mlflow.entities import Metric

    when = int(event["time"] * 1000)
    if event["kind"] == "step":
        named = {f"train/{k}": event[k] for k in STEP_METRICS}
    elif event["kind"] == "validation":
        named = {f"dev/{k}": event[k] for k in VALIDATION_METRICS}
    else:
        return []
    return [Metric(k, float(v), when, event["step"]) for k, v in named.items() if v is not None]


def _evaluation(client: Any, mlflow_run: str, path: Path) -> None:
    meta = json.loads(path.read_text())
    for key in ("wer", "cer", "rtf"):
        if meta.get(key) is not None:
            client.log_metric(mlflow_run, f"test/{path.stem.replace('--', '/')}/{key}", meta[key])
    client.log_artifact(mlflow_run, str(path), "evaluations")
    if path.with_suffix(".parquet").exists():
        client.log_artifact(mlflow_run, str(path.with_suffix(".parquet")), "evaluations")
