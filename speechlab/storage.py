"""A copy of a run at a URI, made while it trains: S3, Google Cloud, HDFS, whatever Arrow or (``fsspec+…``) fsspec opens.

Training reads and writes the run directory alone. A thread of the driver copies it after each checkpoint and at the end,
so a slow or absent store costs a message and no step. A checkpoint's ``files.json`` is copied last: with half a copy
there is none, and with any byte wrong its digests say so.

Not covered: workers that do not share the run directory, what is evaluated after training, two drivers of one copy.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from speechlab import runs
from speechlab.errors import InputError
from speechlab.runs import Run
from speechlab.units import Seconds

LOOK: Seconds = 1.0  # between two looks for a checkpoint
PATIENCE: Seconds = 120.0  # for the last copy, when training is over
HERE_ONLY = {
    "ray",
    "driver.lock",
    "tracking.lock",
    "driver.log",
    "job.json",
    "stop",
    "checkpoints",
}  # no use elsewhere; checkpoints go by themselves
CHECKPOINT = re.compile(r"step-\d+|average")


def push(folder: Path, uri: str) -> None:
    """Copy what is new of a run directory to ``uri``/its name; checkpoints that are gone here go there too.

    Raises:
        Exception: whatever the store raises; call again, nothing is copied twice.
    """
    there = _There(f"{uri.rstrip('/')}/{folder.name}")
    mine = {p.name: p for p in folder.glob("checkpoints/*") if CHECKPOINT.fullmatch(p.name) and (p / "files.json").is_file()}
    for name, path in mine.items():
        sums = (path / "files.json").read_bytes()
        if there.read(f"checkpoints/{name}/files.json") == sums:
            continue
        there.remove(f"checkpoints/{name}")
        for file in sorted(path.iterdir(), key=lambda p: p.name == "files.json"):
            there.write(f"checkpoints/{name}/{file.name}", file)
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and p.relative_to(folder).parts[0] not in HERE_ONLY):
        name = path.relative_to(folder).as_posix()
        if not path.name.startswith(".") and there.size(name) != path.stat().st_size:
            there.write(name, path)
    for name in there.folders("checkpoints"):
        if name not in mine and CHECKPOINT.fullmatch(name):
            there.remove(f"checkpoints/{name}")


def pull(uri: str, root: Path) -> Run:
    """The run that is copied at a URI, fetched to ``root`` unless it is there already.

    Raises:
        InputError: if there is none.
    """
    there, target = _There(uri.rstrip("/")), root / uri.rstrip("/").rpartition("/")[2]
    if not (target / "config.yaml").exists():
        try:
            found = there.size("config.yaml")
        except Exception as e:
            raise InputError("The store cannot be reached.", got=f"{type(e).__name__}: {e}", expected=f"a run at {uri}") from None
        if found is None:
            raise InputError("There is no run at this URI.", got=uri, expected="cluster.storage/run id, of a run that was copied there")
        partial = root / f".{target.name}.partial"
        there.fetch(partial)
        (partial / "checkpoints").mkdir(exist_ok=True)
        partial.rename(target)
    return Run(target)


@contextmanager
def mirrored(run: Run) -> Iterator[None]:
    """Keep the copy of a run up with it, if its ``cluster.storage`` is a URI."""
    uri = run.config.cluster.storage
    if not runs.is_uri(uri):
        yield
        return
    over = threading.Event()
    thread = threading.Thread(target=_follow, args=(run, uri, over), name="storage", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(PATIENCE)
        if thread.is_alive():
            run.warn(f"the copy at {uri} is behind")


def _follow(run: Run, uri: str, over: threading.Event) -> None:
    news, complained, last = run.tail(), False, False
    while not last:
        last = over.wait(LOOK)
        if not last and not any(event["kind"] == "checkpoint" for event in news.read()):
            continue
        try:
            push(run.path, uri)
        except Exception as e:
            pruned = isinstance(e, FileNotFoundError) and not last  # under our hands: the next one is on its way
            if not complained and not pruned:
                complained = True
                run.warn(f"no copy at {uri}: {type(e).__name__}: {str(e)[:200]}; training goes on, the copy is tried again")


class _There:
    """Files below a URI."""

    def __init__(self, uri: str) -> None:
        from pyarrow import fs

        self._fs = fs
        try:
            self._system, self._root = fs.FileSystem.from_uri(uri)
        except Exception as e:  # an unknown scheme, a name that is none
            raise InputError("This is no URI of a store.", got=uri, expected=f"such as s3://bucket/runs ({e})") from None

    def _info(self, name: str) -> Any:
        return self._system.get_file_info(f"{self._root}/{name}")

    def size(self, name: str) -> int | None:
        info = self._info(name)
        return info.size if info.type == self._fs.FileType.File else None

    def read(self, name: str) -> bytes | None:
        if self.size(name) is None:
            return None
        with self._system.open_input_stream(f"{self._root}/{name}") as f:
            return bytes(f.read())

    def write(self, name: str, source: Path) -> None:
        self._system.create_dir(f"{self._root}/{name}".rpartition("/")[0], recursive=True)
        self._fs.copy_files(
            str(source), f"{self._root}/{name}", source_filesystem=self._fs.LocalFileSystem(), destination_filesystem=self._system
        )

    def folders(self, name: str) -> list[str]:
        selector = self._fs.FileSelector(f"{self._root}/{name}", allow_not_found=True)
        return [info.base_name for info in self._system.get_file_info(selector) if info.type == self._fs.FileType.Directory]

    def remove(self, name: str) -> None:
        if self._info(name).type == self._fs.FileType.Directory:
            self._system.delete_dir(f"{self._root}/{name}")

    def fetch(self, target: Path) -> None:
        self._fs.copy_files(self._root, str(target), source_filesystem=self._system, destination_filesystem=self._fs.LocalFileSystem())
