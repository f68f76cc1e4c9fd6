"""A run as one file for another site, which verifies itself there.

A zip archive of the config, the record and what it names, the lock, the events, the best checkpoint, the tables of the evaluations
and the report, in a folder named for the run; last comes ``bundle.json`` with the SHA-256 of each. Notable: nothing in it is
compressed. Weights do not shrink, the same run gives the same bytes under any zlib, and no more can come out than lies in the file.

Not covered: the clips, which the manifest names by the digests of their samples; what a checkpoint needs to train on; signatures:
who wants to know that a bundle is the one that was sent compares the SHA-256 of the file.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import re
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from speechlab import archives, checkpoints, commit, provenance
from speechlab.errors import InputError
from speechlab.runs import Run
from speechlab.units import Bytes

INDEX = "bundle.json"
RECORD = "record.json"  # whole, for readers without the lab: see speechlab.provenance.record
LOCK = "requirements.lock"
FORMAT = 1
# of a run, where it has them; the settings beside the config are where it ran
FILES = ("config.yaml", "overrides.txt", "budget.json", "threads.json", "provenance.json", "manifest.jsonl.gz", "code.patch",
         "packages.txt", "events.jsonl", "report.html")  # fmt: skip
TRAINING = ("optimizer.safetensors", "trained.safetensors")  # of a checkpoint: only of use to train on
NEEDED = {"config.yaml", "provenance.json", "events.jsonl", RECORD}
MEMBER = re.compile(r"([^./\\:\0-\x1f][^/\\:\0-\x1f]*/){1,3}[^./\\:\0-\x1f][^/\\:\0-\x1f]*")  # one that leads nowhere else
PASSWORD = re.compile(rb"://[^/\s:@]*:([^/\s@]+)@")  # in a URI, such as that of a tracker
INDEX_LIMIT: Bytes = 64 * 2**20
MANIFEST_LIMIT: Bytes = 2**32  # unpacked: some ten million clips
CHUNK: Bytes = 2**20


@dataclass(frozen=True)
class Bundle:
    """What is in a bundle.

    Attributes:
        run: Id of the run.
        files: Name in the run's directory to SHA-256.
        size: Of all of them, in bytes.
        sha256: Of the bundle.
    """

    run: str
    files: dict[str, str]
    size: Bytes
    sha256: str


def pack(run: Run, out: Path) -> Bundle:
    """Write a run's bundle.

    Args:
        run: Finished.
        out: The file; one that is there is replaced when the new one is whole.

    Raises:
        InputError: if the run is not finished, its files are not those of its record, it has no undamaged checkpoint, the lock that it
            was made with cannot be had, it holds a password, or the file cannot be written.
    """
    run.need_finished()
    members = _members(run)
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(temporary, "w") as z:
            sums = {name: _add(z, f"{run.id}/{name}", members[name]) for name in sorted(members)}
            index = {"format": FORMAT, "run": run.id, "files": sums}
            _add(z, f"{run.id}/{INDEX}", (json.dumps(index, indent=1, ensure_ascii=False) + "\n").encode())
        made = check(temporary)
        temporary.replace(out)
    except OSError as e:
        raise InputError("The bundle cannot be written.", got=str(e), expected=f"room at {out.parent}") from None
    finally:
        with suppress(OSError):  # where the folder could not be made there is none
            temporary.unlink()
    return made


def _members(run: Run) -> dict[str, Path | bytes]:
    """What goes into the bundle: name to a file or bytes."""
    found: dict[str, Path | bytes] = {name: run.path / name for name in FILES if (run.path / name).is_file()}
    for name in ("config.yaml", "overrides.txt", "events.jsonl"):
        if name in found and PASSWORD.search((run.path / name).read_bytes()):
            raise InputError(
                f"Run {run.id} holds a password, which would go along.",
                got=f"a URI with one in {name}",
                expected="passwords in the environment, such as MLFLOW_TRACKING_PASSWORD or PGPASSWORD",
                do="change that password; take it out of a copy of the run and of the report in it, and pack that",
            )
    tables = (path for path in run.path.glob("evaluations/[!.]*--*--*.*") if path.is_file())
    found |= {f"evaluations/{path.name}": path for path in tables}
    best = checkpoints.need_chosen(run)
    sums = json.loads((best.path / "files.json").read_text("utf-8"))
    place = f"checkpoints/{best.path.name}"
    kept = {name: value for name, value in sums.items() if name not in TRAINING}
    found |= {f"{place}/{name}": best.path / name for name in kept}
    found[f"{place}/files.json"] = json.dumps(kept, indent=1).encode()
    found[RECORD] = provenance.to_json(provenance.record(run))
    if lock := _lock(run):
        found[LOCK] = lock
    return found


def _lock(run: Run) -> bytes | None:
    """The lock that a run was made with: this checkout's, or that of the run's commit with its patch."""
    wanted = run.provenance.get("dependencies", {}).get("lock_sha256")
    if wanted is None:
        return None
    here = Path(__file__).parents[1]
    own, code = here / LOCK, run.provenance.get("code", {})
    if own.is_file() and _sha256(own.read_bytes()) == wanted:
        return own.read_bytes()
    if code.get("git_sha"):
        kept = run.path / (code.get("patch") or "code.patch")
        patch = kept.read_bytes() if kept.is_file() else b""
        with commit.checkout(here, code["git_sha"], patch) as tree:
            lock = (tree / LOCK).read_bytes() if (tree / LOCK).is_file() else b""
        if _sha256(lock) == wanted:
            return lock
    raise InputError("The lock that the run was made with cannot be had.", got=run.id, expected=f"{LOCK} {wanted[:12]}")


def _add(z: zipfile.ZipFile, name: str, source: Path | bytes) -> str:
    """Store a member as it would be on any machine and at any time.

    Returns:
        Its SHA-256.
    """
    info = zipfile.ZipInfo(name)  # of 1980
    info.create_system, info.external_attr = 3, 0o644 << 16
    digest = hashlib.sha256()
    if isinstance(source, bytes):
        z.writestr(info, source)
        return _sha256(source)
    info.file_size = source.stat().st_size  # says whether the member needs the header for large ones
    with source.open("rb") as f, z.open(info, "w") as member:
        while part := f.read(CHUNK):
            digest.update(part)
            member.write(part)
    return digest.hexdigest()


# -- elsewhere ----------------------------------------------------------------------------------


def check(file: Path) -> Bundle:
    """Verify a bundle; nothing is written.

    Raises:
        InputError: if it cannot be read, is not in the form that :func:`pack` gives it, a member is missing, too many or not what was
            packed, or the files are not those of the record. All of the last kinds are listed.
    """
    try:
        with zipfile.ZipFile(file) as z:
            index, names = _index(z, file)
            wrong = [f"{name}: missing" for name in index["files"] if name not in names]
            wrong += [f"{name}: not in the index" for name in names if name not in index["files"] and name != INDEX]
            for name, wanted in index["files"].items():
                if name in names and _stored(z, names[name]) != wanted:
                    wrong.append(f"{name}: not what was packed")
            amiss = [] if wrong else list(_amiss(zipfile.Path(z, f"{index['run']}/"), index["files"]))
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, EOFError, OSError) as e:
        raise InputError("The bundle cannot be read.", got=f"{file}: {e}", expected="a file that speechlab bundle wrote") from None
    if wrong:
        raise InputError(
            "The bundle is not what was packed.", got="; ".join(wrong), expected="all of its index and no more", do="have it sent again"
        )
    if amiss:
        raise InputError("The run's files are not those of its record.", got="; ".join(amiss), expected="what provenance.json says")
    with file.open("rb") as f:
        return Bundle(index["run"], index["files"], sum(i.file_size for i in names.values()), hashlib.file_digest(f, "sha256").hexdigest())


def unpack(file: Path, folder: Path) -> Run:
    """Verify a bundle and make its run in a folder.

    Args:
        file: The bundle.
        folder: That gets the run's directory.

    Raises:
        InputError: if the folder has a run of that name, or as for :func:`check`.
    """
    made = check(file)
    target = folder / made.run
    if target.exists():
        raise InputError("The run is here already.", got=str(target), expected="a folder without it", do="name another with --out")
    folder.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=".bundle-", dir=folder))
    try:
        archives.extract(file, partial, file.stat().st_size)
        for name in ("checkpoints", "evaluations", "samples"):
            (partial / made.run / name).mkdir(exist_ok=True)
        (partial / made.run / "job.json").unlink(missing_ok=True)  # nobody joins this machine's queue from elsewhere
        (partial / made.run).rename(target)
    finally:
        shutil.rmtree(partial)
    return Run(target)


def _index(z: zipfile.ZipFile, file: Path) -> tuple[dict[str, Any], dict[str, zipfile.ZipInfo]]:
    """The index, and the members by their names in the run; before anything else is read of them."""
    infos = z.infolist()
    run = infos[-1].filename.rpartition("/")[0] if infos else ""
    names = {info.filename.removeprefix(f"{run}/"): info for info in infos}

    def refuse(got: str) -> InputError:
        return InputError("This is no bundle of a run.", got=got, expected="a file that speechlab bundle wrote")

    for info in infos:
        if not MEMBER.fullmatch(info.filename) or not info.filename.startswith(f"{run}/") or "/" in run:
            raise refuse(f"a member called {info.filename!r}")
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1 or info.compress_size != info.file_size:
            raise refuse(f"{info.filename} is compressed or encrypted")
    if len(names) < len(infos):
        raise refuse("two members of one name")
    if sum(info.file_size for info in infos) > file.stat().st_size:
        raise refuse("members that overlap")
    if INDEX not in names or names[INDEX].file_size > INDEX_LIMIT:
        raise refuse(f"no {INDEX} as its last member")
    try:
        index = json.loads(z.read(names[INDEX]))
        sums = index["files"]
        sound = index["format"] == FORMAT and index["run"] == run and sums.keys() >= NEEDED and INDEX not in sums
        sound = sound and all(isinstance(value, str) for value in sums.values())
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        sound = False
    if not sound:
        raise refuse(f"{INDEX} says nothing that can be used")
    return index, names


def _stored(z: zipfile.ZipFile, info: zipfile.ZipInfo) -> str:
    """SHA-256 of a member; empty if its own check sum is wrong already."""
    try:
        with z.open(info) as f:
            return _digest(f)
    except zipfile.BadZipFile:
        return ""


def _amiss(root: zipfile.Path, sums: dict[str, str]) -> Iterator[str]:
    """What of the files is not as the record says."""
    try:
        record = json.loads((root / "provenance.json").read_bytes())
        named = {
            "code.patch": record.get("code", {}).get("patch_sha256"),
            "packages.txt": record.get("dependencies", {}).get("packages_sha256"),
            LOCK: record.get("dependencies", {}).get("lock_sha256"),
        }
        manifest = record.get("data", {}).get("manifest_sha256")
    except (ValueError, AttributeError, RecursionError):
        yield "provenance.json: not a record"
        return
    for name, wanted in named.items():
        if wanted is not None and sums.get(name) != wanted:
            yield f"{name}: not the one of the record" if name in sums else f"{name}: missing, of which the record speaks"
    if "manifest.jsonl.gz" in sums:
        try:
            with (root / "manifest.jsonl.gz").open("rb") as f, gzip.open(f) as lines:
                if _digest(lines, MANIFEST_LIMIT) != manifest:
                    yield "manifest.jsonl.gz: not the one of the record"
        except (OSError, EOFError, zlib.error) as e:
            yield f"manifest.jsonl.gz: {e}"


def _digest(f: IO[bytes] | gzip.GzipFile, limit: Bytes | None = None) -> str:
    """SHA-256 of what a stream gives; empty if that is more than the limit."""
    digest, read = hashlib.sha256(), 0
    while part := f.read(CHUNK):
        digest.update(part)
        read += len(part)
        if limit is not None and read > limit:
            return ""
    return digest.hexdigest()


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
