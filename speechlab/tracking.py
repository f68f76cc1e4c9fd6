"""MLflow as a follower of the run directory: it reads what is there and never stands in training's way.

:func:`catch_up` sends what the tracker has not yet; what it has sent is noted in ``tracking.json``, and sending
an event twice changes nothing. :class:`Follower` calls it once a second from a thread. A tracker that
is locked, slow or gone costs a message in the run; ``speechlab track RUN`` catches up at any time.

The metrics of steps are thinned on the way (:mod:`speechlab.decimation`); how far a run is says its tag ``speechlab.step``. Which
backend and which store of artifacts is the config's; passwords are the environment's, as MLflow, PostgreSQL and S3 name them.

Not covered: moving what is in one tracker to another; a run sent to another one goes there whole, by ``speechlab track``.
"""

from __future__ import annotations

import fcntl
import json
import threading
import time
from collections import Counter
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from speechlab import config as configs
from speechlab import provenance
from speechlab import tags as labels
from speechlab.config import Experiment
from speechlab.decimation import Curves, Point
from speechlab.errors import InputError
from speechlab.runs import Event, Run, State, ended, is_uri, write_atomic
from speechlab.units import Seconds
from speechlab.versions import connect

BATCH = 1000  # metrics MLflow takes in one call
PARAMS = 50  # for one call; MLflow takes at most 100
STEP_METRICS = ("loss", "lr", "grad_norm", "clips", "audio_seconds", "padded_seconds", "step_seconds", "wait_seconds", "memory_bytes")
VALIDATION_METRICS = ("wer", "cer")
MANIFEST = "manifest.jsonl.gz"
DIGEST = 36  # characters of one, at most
DESCRIBING = ("config.yaml", "provenance.json", "code.patch", MANIFEST, "packages.txt")  # files of a run, where it has them
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
    found = _Sent.read(run, uri_for(run)).mlflow_run
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
    from mlflow.entities import Metric, RunTag

    sent = _Sent.read(run, uri_for(run))
    if sent.mlflow_run is None:
        sent = replace(sent, mlflow_run=_create(client, run))
        sent.write(run)
    mlflow_run = sent.mlflow_run
    assert mlflow_run is not None
    tail, curves = run.tail(sent.offset), Curves(sent.curves)
    new = tail.read()
    points = [point for e in new for point in _points(curves, e)]
    stands = ended(new, sent.state)
    state: State = "running" if run.locked() else stands
    if state != "running" and (new or sent.status == "RUNNING"):  # the bucket at hand is sent as it is, and stays open: it may go on
        points += curves.rest
    metrics = [Metric(name, value, time, step) for name, value, time, step in points]
    for start in range(0, len(metrics), BATCH):
        client.log_batch(mlflow_run, metrics=metrics[start : start + BATCH])
    if steps := [e["step"] for e in new if e["kind"] == "step"]:
        client.log_batch(mlflow_run, tags=[RunTag("speechlab.step", str(steps[-1]))])
    if started := any(e["kind"] == "start" for e in new):
        _describe(client, run, mlflow_run)
    sent = replace(sent, offset=tail.offset, curves=curves.held, state=stands)
    sent.write(run)
    for path in sorted((run.path / "evaluations").glob("*.json")):
        stamp = f"{path.name}:{path.stat().st_mtime_ns}"
        if stamp not in sent.evaluations:
            _evaluation(client, mlflow_run, path)
            sent = replace(sent, evaluations=[*sent.evaluations, stamp])
            sent.write(run)
    # a driver on another machine holds no lock that is seen here: what it has just begun is running
    status = "RUNNING" if state in ("new", "running") or (started and state == "interrupted") else STATUS[state]
    if status != sent.status:
        if status == "RUNNING":
            client.update_run(mlflow_run, status="RUNNING")
        else:
            client.set_terminated(mlflow_run, status=status)
        replace(sent, status=status).write(run)
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


@dataclass(frozen=True)
class _Sent:
    """What a tracker has: the one piece of state, replaced whole."""

    uri: str  # of the tracker: another one has nothing yet
    mlflow_run: str | None = None
    offset: int = 0  # in events.jsonl
    curves: dict[str, Any] = field(default_factory=dict)  # the bucket at hand
    state: State = "new"  # after those events
    evaluations: list[str] = field(default_factory=list)
    status: str = ""

    @classmethod
    def read(cls, run: Run, uri: str) -> _Sent:
        path = run.path / "tracking.json"
        kept = json.loads(path.read_text()) if path.exists() else {}
        kept = {key: value for key, value in kept.items() if key in {f.name for f in fields(cls)}}
        return cls(**kept) if kept.get("uri") == uri else cls(uri)  # kept by an earlier version: all is sent again, to the same run

    def write(self, run: Run) -> None:
        write_atomic(run.path / "tracking.json", json.dumps(asdict(self)).encode())


def _create(client: Any, run: Run) -> str:
    wanted, artifacts = run.config.tracking.experiment, run.config.tracking.artifacts
    if artifacts is None and not uri_for(run).startswith(("http://", "https://")):  # a database has no place of its own for files
        artifacts = str(run.path.parent / "mlflow-artifacts")
    if artifacts is not None and not is_uri(artifacts):
        artifacts = Path(artifacts).absolute().as_uri()
    found = client.get_experiment_by_name(wanted)
    experiment = found.experiment_id if found is not None else client.create_experiment(wanted, artifact_location=artifacts)
    # another process may have got here first, or an answer was lost on the way
    for known in client.search_runs([experiment], filter_string=f"tags.`speechlab.run` = '{run.id}'", max_results=1):
        return str(known.info.run_id)
    return str(client.create_run(experiment, run_name=run.id, tags={"speechlab.run": run.id}).info.run_id)


def _describe(client: Any, run: Run, mlflow_run: str) -> None:
    from mlflow.entities import Param, RunTag

    known = client.get_run(mlflow_run)
    values = {key: str(value)[:500] for key, value in flatten(run.config).items()}
    params = [Param(key, value) for key, value in values.items() if key not in known.data.params]
    # a run may go on with other workers, but MLflow changes no parameter: those stay as at first
    now = {f"speechlab.now.{key}": value for key, value in values.items() if known.data.params.get(key, value) != value}
    record = run.provenance
    tags = {
        "speechlab.signature": run.config.signature,
        "speechlab.git": record.get("code", {}).get("git_sha"),
        "speechlab.manifest": record.get("data", {}).get("manifest_sha256"),
        "speechlab.weights": record.get("weights", {}).get("sha256"),
        "speechlab.tags": ", ".join(labels.read(run.path)),
        **now,
    }
    for start in range(0, len(params), PARAMS):
        client.log_batch(mlflow_run, params=params[start : start + PARAMS])
    client.log_batch(mlflow_run, tags=[RunTag(k, str(v)) for k, v in tags.items() if v])
    for name in DESCRIBING:
        if (run.path / name).exists():
            client.log_artifact(mlflow_run, str(run.path / name))
    if inputs := _inputs(run, known.info.artifact_uri):
        client.log_inputs(mlflow_run, inputs)


def flatten(experiment: Experiment) -> dict[str, Any]:
    """The config as ``section.key`` names, for trackers and tables."""
    return dict(configs.leaves(experiment.model_dump()))


def _points(curves: Curves, event: Event) -> list[Point]:
    when = int(event["time"] * 1000)
    if event["kind"] == "step":
        named = {f"train/{k}": event[k] for k in STEP_METRICS} | {f"system/{k}": v for k, v in event.get("machine", {}).items()}
        return curves.add(event["step"], when, {k: float(v) for k, v in named.items() if v is not None})
    if event["kind"] == "validation":
        return [(f"dev/{k}", float(event[k]), when, event["step"]) for k in VALIDATION_METRICS if event[k] is not None]
    return curves.close() if event["kind"] == "start" else []


def _inputs(run: Run, artifacts: str) -> list[Any]:
    """Each split of the corpus as a dataset of MLflow: its source is the manifest among the run's artifacts, its digest the manifest's."""
    try:
        clips = [json.loads(line) for line in provenance.clips(run) or ()]
    except InputError:  # damaged: `reproduce` will say so; the rest of the record goes along
        return []
    if not clips:
        return []
    from mlflow.entities import Dataset, DatasetInput, InputTag

    about, store = run.config.corpus, artifacts.partition(":")[0]  # MLflow names a source by its store, and its own disk "local"
    digest = run.provenance["data"]["manifest_sha256"]
    count, seconds = Counter(clip["split"] for clip in clips), Counter[str]()
    for clip in clips:
        seconds[clip["split"]] += clip["duration"]
    return [
        DatasetInput(
            Dataset(
                name=f"{about.name}/{about.language}/{split}",
                digest=digest[:DIGEST],
                source_type="local" if store == "file" else store,
                source=json.dumps({"uri": f"{artifacts}/{MANIFEST}"}),
                profile=json.dumps({"clips": count[split], "seconds": round(seconds[split], 3), "manifest_sha256": digest}),
            ),
            tags=[InputTag("mlflow.data.context", split)],
        )
        for split in count
    ]


def _evaluation(client: Any, mlflow_run: str, path: Path) -> None:
    meta = json.loads(path.read_text())
    for key in ("wer", "cer", "rtf"):
        if meta.get(key) is not None:
            client.log_metric(mlflow_run, f"test/{path.stem.replace('--', '/')}/{key}", meta[key])
    client.log_artifact(mlflow_run, str(path), "evaluations")
    if path.with_suffix(".parquet").exists():
        client.log_artifact(mlflow_run, str(path.with_suffix(".parquet")), "evaluations")
