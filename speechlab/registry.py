"""Registered models: what of which run is a candidate, what is in use, and what was before.

A version of a registered model is the best checkpoint of a finished run, logged to the run's tracker as safetensors with the model
card, never pickled, and its tags lead back: run, config signature, manifest, weights, WER by condition. Three aliases say where a
version stands::

    candidate   registered last, by :func:`register`
    champion    in use, by :func:`promote`
    previous    in use before, to which :func:`rollback` goes back

``models:/name@champion`` then names its weights wherever a model can be named: see :mod:`speechlab.versions`.

Not covered: deleting versions (MLflow's own page does); several people who promote in the same second.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from speechlab import card, tracking
from speechlab.errors import InputError
from speechlab.runs import Run
from speechlab.versions import FILE_TAG, RUN_TAG, WEIGHTS_TAG, connect, is_there, need_registry, sha256_of

CANDIDATE, CHAMPION, PREVIOUS = "candidate", "champion", "previous"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}")  # as it stands in models:/name@alias
RATE = "speechlab.wer."  # before a condition, of the tags that hold rates


@dataclass(frozen=True)
class Version:
    """A version of a registered model.

    Attributes:
        name: Of the model.
        version: Counted from 1.
        aliases: Such as ``champion``.
        run: Id of the run that made it; as all that follows, empty for what the lab has not registered.
        signature: Of the run's config.
        manifest_sha256: Of the corpus that it was trained on.
        digest: Of its weights: :func:`speechlab.checkpoints.weights_digest`.
        rates: Condition to WER in percent with its interval over utterances, as text.
    """

    name: str
    version: int
    aliases: tuple[str, ...]
    run: str
    signature: str
    manifest_sha256: str
    digest: str
    rates: dict[str, str]


def register(run: Run, name: str) -> Version:
    """Make the best checkpoint of a finished run the candidate of a registered model.

    The same weights of the same run are one version: called again, its tags are brought up to date.

    Args:
        run: Finished.
        name: Of the model.

    Returns:
        The version.

    Raises:
        InputError: if the name cannot be used, the run is not finished, has no undamaged checkpoint, or the tracker cannot be reached.
    """
    _check(name)
    run.need_finished()
    made = card.model(run)
    uri = tracking.uri_for(run)
    with _asked(uri) as client:
        known = [v for v in _versions(client, f"name='{name}'") if (v.run, v.digest) == (run.id, made.checkpoint.digest)]
        version = known[0].version if known else _add(client, run, name, made)
        for key, value in _lineage(made).items() if known else ():
            client.set_model_version_tag(name, str(version), key, value)
        client.set_registered_model_alias(name, CANDIDATE, str(version))
        return _version(client, name, version)


def promote(name: str, version: int | None = None, uri: str | None = None) -> Version:
    """Make a version the champion; the former one is kept as ``previous``.

    Args:
        name: Of the model.
        version: None is the candidate.
        uri: Tracking URI of the registry; None is SQLite beside the runs.

    Raises:
        InputError: if there is no such version, or the tracker cannot be reached.
    """
    with _asked(uri, name) as client:
        here = {v.version: v for v in _known(client, name)}
        version = version if version is not None else _holder(here.values(), CANDIDATE)
        if version not in here:
            held = ", ".join(str(v) for v in sorted(here))
            raise InputError(
                f"{name} has no such version.", got=str(version or "no candidate"), expected=held, do="speechlab models " + name
            )
        champion = _holder(here.values(), CHAMPION)
        if champion != version:
            if champion is not None:
                client.set_registered_model_alias(name, PREVIOUS, str(champion))
            client.set_registered_model_alias(name, CHAMPION, str(version))
        return _version(client, name, version)


def rollback(name: str, uri: str | None = None) -> Version:
    """Make the previous champion the champion again; what it was before that is not known, so ``previous`` is then nobody.

    Args:
        name: Of the model.
        uri: As for :func:`promote`.

    Raises:
        InputError: if there is no previous champion, or the tracker cannot be reached.
    """
    with _asked(uri, name) as client:
        version = _holder(_known(client, name), PREVIOUS)
        if version is None:
            do = f"speechlab promote {name} --version N"
            raise InputError(f"{name} has no previous champion to go back to.", got="no version with the alias previous", do=do)
        client.set_registered_model_alias(name, CHAMPION, str(version))
        client.delete_registered_model_alias(name, PREVIOUS)
        return _version(client, name, version)


def versions(name: str | None = None, uri: str | None = None) -> list[Version]:
    """All versions, by name, the newest first.

    Args:
        name: Of a model; None is all of them.
        uri: As for :func:`promote`.

    Raises:
        InputError: if there is no model of that name, or the tracker cannot be reached.
    """
    if name is None and not is_there(uri):
        return []
    with _asked(uri, name or "") as client:
        return _versions(client) if name is None else _known(client, name)


# --- inside ----------------------------------------------------------------------------------------------------


@contextmanager
def _asked(uri: str | None, name: str = "") -> Iterator[Any]:
    """A client whose errors, of which MLflow has several kinds, become one; to ask for a model there must be a registry."""
    if name:
        need_registry(name, uri)
    try:
        yield connect(uri)  # to a database it connects at once
    except InputError:
        raise
    except Exception as e:
        got, do = f"{type(e).__name__}: {str(e)[:300]}", "start it, or name another registry"
        raise InputError("The registry does not answer.", got=got, expected=uri or "SQLite beside the runs", do=do) from None


def _check(name: str) -> None:
    if not NAME.fullmatch(name):
        raise InputError("A registered model cannot have this name.", got=name, expected="letters, digits, dots, dashes and underscores")


def _known(client: Any, name: str) -> list[Version]:
    _check(name)
    if found := _versions(client, f"name='{name}'"):
        return found
    names = ", ".join(sorted(model.name for model in client.search_registered_models(max_results=1000)))
    raise InputError("There is no registered model of this name.", got=name, expected=names or "none is registered yet",
                     do=f"speechlab register RUN --name {name}")  # fmt: skip


def _versions(client: Any, which: str = "") -> list[Version]:
    found = client.search_model_versions(which, max_results=1000)
    return [_version(client, name, v) for name, v in sorted(((m.name, int(m.version)) for m in found), key=lambda m: (m[0], -m[1]))]


def _version(client: Any, name: str, version: int) -> Version:
    about = client.get_model_version(name, str(version))  # a search leaves the aliases out
    tags = about.tags
    run, signature, manifest, digest = (tags.get(f"speechlab.{key}", "") for key in ("run", "signature", "manifest", "weights"))
    rates = {key.removeprefix(RATE): tags[key] for key in sorted(tags, key=lambda k: (k != f"{RATE}clean", k)) if key.startswith(RATE)}
    return Version(name, version, tuple(sorted(about.aliases)), run, signature, manifest, digest, rates)


def _holder(known: Any, alias: str) -> int | None:
    return next((v.version for v in known if alias in v.aliases), None)


def _add(client: Any, run: Run, name: str, made: card.Model) -> int:
    mlflow_run = tracking.recorded(run)
    place = f"model/{made.checkpoint.digest[:12]}"  # a run that trains on may have another best one later
    with tempfile.TemporaryDirectory() as scratch:
        client.log_artifacts(mlflow_run, str(card.export(run, Path(scratch) / "model")), place)
    if not client.search_registered_models(f"name='{name}'"):
        client.create_registered_model(name)
    source = f"{client.get_run(mlflow_run).info.artifact_uri}/{place}"
    return int(client.create_model_version(name, source=source, run_id=mlflow_run, tags=_lineage(made)).version)


def _lineage(made: card.Model) -> dict[str, str]:
    record = made.run.provenance
    return {
        RUN_TAG: made.run.id,
        "speechlab.signature": made.run.config.signature,
        "speechlab.manifest": record.get("data", {}).get("manifest_sha256", ""),
        WEIGHTS_TAG: made.checkpoint.digest,
        "speechlab.normaliser": made.normaliser,
        FILE_TAG: sha256_of(made.checkpoint.path),
        **{f"{RATE}{row['condition']}": _rate(row) for row in made.table.to_dict("records") if row["words"]},
    }


def _rate(row: dict[Any, Any]) -> str:
    return f"{100 * row['wer']:.2f} [{100 * row['low']:.2f}, {100 * row['high']:.2f}]"
