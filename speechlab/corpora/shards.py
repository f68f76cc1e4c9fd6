"""Corpora as lhotse Shar: FLAC in tar files beside their cuts, for speech that is too much for one file a clip.

Notable: plain lhotse reads the folder ``shards`` from front to back; the lab's plan wants any clip at any time, so
``corpus.jsonl.gz`` above it says where in its tar each clip that passed the check begins. Member names are made from
ids that come from outside: whatever is more than letters, digits and single slashes is replaced.

Not covered: shards behind addresses (``pipe:``, S3), compressed tars.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import re
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from speechlab import audio
from speechlab.audio import Wave
from speechlab.config import CorpusConfig
from speechlab.corpora.base import Corpus, SetAside, assemble
from speechlab.errors import InputError

LISTING = "corpus.jsonl.gz"
STATE = "ingest.json"
SHARDS = "shards"  # a folder of their own: lhotse takes every table in it for a field of the cuts
SAFE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.#-]*(/[A-Za-z0-9_][A-Za-z0-9_.#-]*)*")


class Writer:
    """One shard: its tar and its cuts, which appear under their names when both are whole.

    Args:
        folder: Of all shards.
        number: Of this one.
    """

    def __init__(self, folder: Path, number: int) -> None:
        from lhotse.shar.writers.tar import TarWriter  # type: ignore[import-untyped]

        (folder / SHARDS).mkdir(parents=True, exist_ok=True)
        self._tar = folder / SHARDS / f"recording.{number:06d}.tar"
        self._cuts = folder / SHARDS / f"cuts.{number:06d}.jsonl.gz"
        self._part = self._tar.with_name(self._tar.name + ".part")
        self._writer = TarWriter(str(self._part), shard_size=None)
        self._rows: list[Any] = []

    def __enter__(self) -> Writer:
        self._writer.__enter__()
        return self

    def write(self, cut: Any, wave_N: Wave) -> None:
        """Add a clip.

        Args:
            cut: With the id of :func:`member`, over a whole recording.
            wave_N: Its 16 kHz samples.
        """
        from lhotse.shar.utils import to_shar_placeholder  # type: ignore[import-untyped]
        from lhotse.utils import fastcopy

        sound = io.BytesIO()
        audio.save_flac(sound, wave_N)
        recording = to_shar_placeholder(cut.recording)
        self._writer.write(f"{cut.id}.flac", sound)
        self._writer.write(f"{cut.id}.json", io.BytesIO(json.dumps(recording.to_dict()).encode()), count=False)
        self._rows.append(fastcopy(cut, recording=recording))

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._writer.close()
        if kind is not None:
            return
        if not self._rows:  # a tar writer that was given nothing writes no file
            with tarfile.open(self._part, "w"):
                pass
        with gzip.open(self._cuts.with_name(self._cuts.name + ".part"), "wt", encoding="utf-8") as f:
            f.writelines(json.dumps(cut.to_dict(), ensure_ascii=False) + "\n" for cut in self._rows)
        self._part.replace(self._tar)
        self._cuts.with_name(self._cuts.name + ".part").replace(self._cuts)


def member(id: str) -> str:
    """A clip's name in a tar: its id where that is harmless, else what is left of it and a hash.

    >>> member("en/letters/a")
    'en/letters/a'
    >>> member("../x")
    'x-d6b96a97'
    """
    if SAFE.fullmatch(id) and len(id) <= 200:
        return id
    kept = "-".join(re.findall(r"[A-Za-z0-9_]+", id))[:100]
    return f"{kept or 'clip'}-{hashlib.sha256(id.encode('utf-8', 'surrogatepass')).hexdigest()[:8]}"


def places(tar: Path) -> dict[str, tuple[int, int]]:
    """Where each clip's FLAC lies in a shard: first byte and number of bytes."""
    with tarfile.open(tar, "r:") as archive:
        return {m.name.removesuffix(".flac"): (m.offset_data, m.size) for m in archive if m.name.endswith(".flac")}


def list_clips(folder: Path, number: int, keep: dict[str, dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The rows of the listing for one shard.

    Args:
        folder: Of the shards.
        number: Of the shard.
        keep: By name in the tar, the fields of ``custom`` that are known only now, such as the split.
    """
    tar = folder / SHARDS / f"recording.{number:06d}.tar"
    where = places(tar)
    with gzip.open(folder / SHARDS / f"cuts.{number:06d}.jsonl.gz", "rt", encoding="utf-8") as f:
        for row in map(json.loads, f):
            if row["id"] in keep:
                row["recording"]["sources"] = [{"type": "file", "channels": [0], "source": tar.name}]
                row["custom"] = {**row["custom"], **keep[row["id"]], "member": where[row["id"]]}
                yield row


def write_listing(folder: Path, rows: Iterable[dict[str, Any]]) -> int:
    """Write the listing; gives how many clips it holds."""
    count, part = 0, folder / (LISTING + ".part")
    with gzip.open(part, "wt", encoding="utf-8", compresslevel=4) as f:
        for row in rows:
            f.write(json.dumps(row, ensure_ascii=False) + "\n")
            count += 1
    part.replace(folder / LISTING)
    return count


def prepare(config: CorpusConfig) -> Corpus:
    """A corpus from shards that ``speechlab corpus ingest`` wrote.

    Args:
        config: Its root is the folder of the shards.

    Raises:
        InputError: if the folder holds no finished ingestion, or a split is empty.
    """
    from lhotse import MonoCut

    folder = Path(config.root or "").expanduser().resolve()
    try:
        state = json.loads((folder / STATE).read_text("utf-8"))
        with gzip.open(folder / LISTING, "rt", encoding="utf-8") as f:
            rows = [json.loads(line) for line in f]
        with (folder / "findings.jsonl").open(encoding="utf-8") as f:
            aside = [SetAside(row["id"], row["why"]) for row in map(json.loads, f) if row["why"]]
    except (OSError, ValueError) as e:
        raise InputError("A folder of shards cannot be read.", got=f"{config.root}: {e}",
                         expected="what speechlab corpus ingest wrote, to its end",
                         do="set corpus.root to it, or run the ingestion again: it goes on where it stopped") from None  # fmt: skip
    for row in rows:
        name = row["recording"]["sources"][0]["source"]
        if Path(name).name != name:
            raise InputError(
                "A listing of shards names a file outside its folder.", got=name, expected="a file in the folder of the shards"
            )
        row["recording"]["sources"][0]["source"] = str(folder / SHARDS / name)
    cuts = [MonoCut.from_dict(row) for row in rows]
    return assemble(config.name, state["language"], state["licence"], state["attribution"], (cuts, aside, state["notes"]),
                    config.max_seconds, config.limit)  # fmt: skip
