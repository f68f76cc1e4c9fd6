"""A version of a registered model by its name, ``models:/name@alias`` or ``models:/name/version``: which it is, and its folder of weights.

Notable: an alias moves, so what is kept of a name is the version with the SHA-256 of its file (:func:`pinned`). The folder is in the
cache under that hash: what is there costs no call to the registry, and is what was registered or is refused.

Not covered: who may be what, see :mod:`speechlab.registry`; sharded weights.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import shutil
import tempfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from speechlab import config as configs
from speechlab import fetch
from speechlab.config import Experiment
from speechlab.errors import InputError

SCHEME = "models:/"  # how MLflow names a registered model
NAMED = re.compile(r"models:/([^@/:]+)(?:@([^@/:]+)|/([0-9]+))")
RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")  # leads nowhere else
SHA256 = re.compile(r"[0-9a-f]{64}")
FILE_TAG = "speechlab.file"  # of a registered version: SHA-256 of its model.safetensors
RUN_TAG = "speechlab.run"  # id of the run that made it
RETRIES = 3  # of a database that does not answer; MLflow's own ten take a minute and a half
WEIGHTS_TAG = "speechlab.weights"  # digest of its tensors: speechlab.checkpoints.weights_digest


@dataclass(frozen=True)
class Named:
    """What a name stands for now.

    Attributes:
        name: ``models:/name/version``, whatever alias was asked for.
        sha256: Of its model.safetensors; this and all that follows is empty of what the lab has not registered.
        run: Id of the run that made it.
        digest: Of its weights.
        source: Where the registry keeps it.
    """

    name: str
    sha256: str
    run: str
    digest: str
    source: str


def is_name(name: object) -> bool:
    """Whether a text names a registered model rather than weights or a run."""
    return str(name).startswith(SCHEME)


def named(name: str, uri: str | None = None) -> Named:
    """Ask the registry what a name stands for.

    Args:
        name: ``models:/name@alias`` or ``models:/name/version``.
        uri: Tracking URI of its registry; None is SQLite beside the runs.

    Raises:
        InputError: if it is no such name, there is no registry, or it has no such model; the ones it has are listed.
    """
    title, alias, version = _parts(name)
    need_registry(name, uri)
    try:
        client = connect(uri)  # to a database it connects at once
    except InputError:
        raise
    except Exception as e:
        do = "start it, or name another registry"
        raise InputError("The registry does not answer.", got=_reason(e), expected=uri or "SQLite beside the runs", do=do) from None
    try:
        about = client.get_model_version_by_alias(title, alias) if alias else client.get_model_version(title, version)
        source = client.get_model_version_download_uri(title, about.version)
    except Exception as e:  # MLflow raises several kinds
        raise InputError(
            "The registered model cannot be had.",
            got=f"{name}: {_reason(e)}",
            expected=_offered(client, title),
            do=f"speechlab models, or look at {client.tracking_uri}",
        ) from None
    sha256, run, digest = (str(about.tags.get(tag, "")) for tag in (FILE_TAG, RUN_TAG, WEIGHTS_TAG))
    return Named(f"{SCHEME}{title}/{about.version}", sha256, run, digest, source)


def beside() -> str:
    """The tracking URI of the registry beside the runs."""
    return f"sqlite:///{configs.reports() / 'mlflow.db'}"


def is_there(uri: str | None = None) -> bool:
    """Whether there can be a registry: where there is no SQLite file, MLflow would make an empty one when asked."""
    place = uri or beside()
    return not place.startswith("sqlite:///") or Path(place.removeprefix("sqlite:///")).is_file()


def need_registry(name: str, uri: str | None = None) -> None:
    """Refuse to ask a registry for a model where there is none.

    Raises:
        InputError: unless :func:`is_there`.
    """
    if not is_there(uri):
        do = "register one: speechlab register RUN --name NAME; or say where the registry is: --uri, or tracking.uri of a config"
        raise InputError("There is no registry of models yet.", got=f"{name}, and no {uri or beside()}", expected="a registry", do=do)


def maker(name: str, reports: Path) -> Path:
    """The directory of the run that made a registered model.

    Args:
        name: As for :func:`named`.
        reports: Folder of runs, with the registry beside them.

    Raises:
        InputError: as for :func:`named`, or if the run is not there.
    """
    run = named(name, f"sqlite:///{reports / 'mlflow.db'}").run
    if not RUN_ID.fullmatch(run) or not (reports / run / "config.yaml").is_file():
        got, expected = f"{name} of {run or 'no run of the lab'}", f"its run in {reports}"
        raise InputError("The run that made the registered model is not here.", got=got, expected=expected)
    return reports / run


def folder(name: str, uri: str | None = None, sha256: str | None = None) -> Path:
    """A registered model's folder of weights, downloaded into the cache where it is not on this machine.

    Args:
        name: As for :func:`named`.
        uri: Likewise.
        sha256: That its file must have, as :func:`pinned` gives it; None is what was registered.

    Raises:
        InputError: as for :func:`named`, or if the model holds no weights that can be loaded, or other ones than were registered.
    """
    _parts(name)
    if sha256 is not None and not SHA256.fullmatch(sha256):
        expected = "the SHA-256 of its model.safetensors, 64 hex digits, or null"
        raise InputError("A registered model has no such revision.", got=f"{name} at {sha256}", expected=expected)
    if sha256 is not None and (kept := _cached(sha256)):
        return kept
    found = named(name, uri)
    if sha256 is not None and found.sha256 and sha256 != found.sha256:
        raise _other(name, found.sha256, sha256)
    wanted = sha256 or found.sha256
    return (_cached(wanted) if wanted else None) or _download(found, wanted, uri)


def pinned(weights: str, revision: str | None, uri: str | None = None) -> tuple[str, str]:
    """What to keep of a name so that it means the same weights tomorrow.

    Args:
        weights: As for :func:`named`.
        revision: SHA-256 that is asked for, if any.
        uri: As for :func:`named`.

    Returns:
        ``models:/name/version`` and the SHA-256 of its file, which is on this machine then.

    Raises:
        InputError: as for :func:`folder`.
    """
    if revision is not None and not _parts(weights)[1]:
        return weights, sha256_of(folder(weights, uri, revision))  # pinned before: where the file is here, no registry is needed
    found = named(weights, uri)
    return found.name, sha256_of(folder(found.name, uri, revision))


def pin(experiment: Experiment) -> Experiment:
    """An experiment that names the version and the hash of the registered model that it starts from; any other as it is.

    Raises:
        InputError: as for :func:`folder`.
    """
    model = experiment.model
    if not is_name(model.weights):
        return experiment
    weights, revision = pinned(str(model.weights), model.revision, experiment.tracking.uri)
    return experiment.model_copy(update={"model": model.model_copy(update={"weights": weights, "revision": revision})})


def sha256_of(folder: Path) -> str:
    """SHA-256 of a folder's model.safetensors."""
    path = folder / "model.safetensors"
    stat = path.stat()
    return _sha256(path, stat.st_size, stat.st_mtime_ns)


def connect(uri: str | None = None) -> Any:
    """An ``MlflowClient`` that says little and does not wait long.

    Args:
        uri: Tracking URI; None is SQLite beside the runs.

    Raises:
        InputError: if it holds a password.
    """
    if uri and configs.PASSWORD.search(uri):
        raise InputError("The tracking URI holds a password, which is not shown here.", expected="a URI without one",
                         do=f"give it in the environment: {configs.PASSWORDS}")  # fmt: skip
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "ERROR")  # that it makes the tables of a new store is no news
    # a tracker that is away must not hold the last catch-up for minutes
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    os.environ.setdefault("PGCONNECT_TIMEOUT", "10")
    import mlflow
    from mlflow.store.db import utils

    logging.getLogger("alembic").setLevel(logging.ERROR)
    logging.getLogger("mlflow").setLevel(logging.ERROR)
    utils.MAX_RETRY_COUNT = RETRIES
    return mlflow.MlflowClient(tracking_uri=uri or beside())


# --- inside ----------------------------------------------------------------------------------------------------


def _parts(name: str) -> tuple[str, str | None, str | None]:
    found = NAMED.fullmatch(name)
    if not found:
        raise InputError("A registered model is not named like this.", got=name, expected="models:/name@alias or models:/name/version")
    title, alias, version = found.groups()
    return title, alias, version


def _offered(client: Any, title: str) -> str:
    """What the registry has, as names that can be used."""
    try:
        if known := [m for m in client.search_registered_models(max_results=1000) if m.name == title]:
            versions = client.search_model_versions(f"name='{title}'", max_results=1000)
            names = [f"{SCHEME}{title}@{alias}" for alias in sorted(known[0].aliases)]
            return ", ".join([*names, *(f"{SCHEME}{title}/{n}" for n in sorted(int(v.version) for v in versions))])
        names = sorted(m.name for m in client.search_registered_models(max_results=1000))
    except Exception:  # it does not answer, which the error says already
        return "a model of the registry"
    return f"one of the models {', '.join(names)}" if names else "a registered model, but none is registered yet"


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def _place(key: str) -> Path:
    return fetch.cache() / "registered" / key[:12]


def _cached(sha256: str) -> Path | None:
    """The folder of weights with this hash, if it is here and is still what it was."""
    held = sorted(path.parent for path in _place(sha256).rglob("model.safetensors"))
    return held[0] if held and sha256_of(held[0]) == sha256 else None


def _download(found: Named, sha256: str, uri: str | None) -> Path:
    """Fetch a version, and keep it under its hash."""
    import mlflow

    (fetch.cache() / "registered").mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=fetch.cache() / "registered", prefix=".model-") as scratch:
        try:
            where = mlflow.artifacts.download_artifacts(found.source, dst_path=scratch, tracking_uri=connect(uri).tracking_uri)
        except Exception as e:  # MLflow raises several kinds
            got = f"{found.name}: {_reason(e)}"
            expected = f"its files at {found.source}"
            raise InputError("The registered model's files cannot be had.", got=got, expected=expected, do="restore them") from None
        held = sorted(path.parent for path in Path(where).rglob("model.safetensors"))
        if not held:
            expected = "a folder with model.safetensors"
            raise InputError("The registered model holds no weights that can be loaded.", got=found.name, expected=expected)
        if sha256 not in ("", actual := sha256_of(held[0])):
            raise _other(found.name, actual, sha256)
        place = _place(actual)
        with fetch.locked(place):  # another worker may have been quicker
            if _cached(actual) is None:
                shutil.rmtree(place, ignore_errors=True)
                held[0].rename(place)
    return place


def _other(name: str, got: str, expected: str) -> InputError:
    return InputError("The registered model's weights are not those that were registered.", got=f"{name}: {got}", expected=expected)


@lru_cache(maxsize=32)
def _sha256(path: Path, size: int, mtime_ns: int) -> str:
    """Hash a file once a process, as long as its size and time stay."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
