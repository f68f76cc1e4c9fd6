"""The user's own data in whichever of the usual layouts it lies, told by the names of its files.

Notable: nothing need be said about a folder but where it is; if two layouts fit, the error names the files to choose
from. Splits are taken from a column, else from the names of files and folders (``train``, ``dev`` or ``validation``,
``test``); where none tells, a rule decides later. Ids are told apart over all the tables of the root.

Not covered: archives that are still packed, transcripts in a folder apart from the audio, names of splits beyond those.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path

from speechlab.corpora import folders, kaldi, manifests, tables
from speechlab.corpora.base import Entry
from speechlab.corpora.fields import PATH, told_apart, walk
from speechlab.corpora.rows import lines, parse_object
from speechlab.errors import InputError

DEPTH = 2  # folders below the root in which tables are looked for
LAYOUTS = {
    "shar": "lhotse Shar: cuts.000000.jsonl.gz with recording.000000.tar",
    "kaldi": "a Kaldi data directory: wav.scp, text, utt2spk, segments",
    "cuts": "lhotse cuts: cuts*.jsonl, or .jsonl.gz",
    "recordings": "lhotse recordings with supervisions: *recordings*.jsonl and *supervisions*.jsonl, or .jsonl.gz",
    "audiofolder": "Hugging Face's audiofolder: metadata.csv, metadata.jsonl or metadata.parquet beside the audio",
    "parquet": "Parquet with columns for audio and text",
    "jsonl": "JSON lines as NeMo writes them: audio_filepath, duration, text",
    "table": "CSV or TSV with columns for audio and text",
    "folder": "audio with transcripts beside it: x.wav with x.txt or x.lab, or a trans.txt in each folder",
}


def layout(root: Path) -> str:
    """Which of :data:`LAYOUTS` a folder, or a single table, has.

    Args:
        root: The folder or the table.

    Raises:
        InputError: if there is none, or tables of several kinds lie side by side.
    """
    return _found(root)[0]


def entries(root: Path, language: str) -> Iterator[Entry]:
    """An entry for every row, whatever the layout.

    Args:
        root: A folder, or a single table; relative paths stay under it, or under the table's folder.
        language: BCP-47.

    Raises:
        InputError: as for :func:`layout`; while reading, if a file cannot be read as its layout.
    """
    name, files = _found(root)
    top = root if root.is_dir() else root.parent
    reader: dict[str, Callable[[Path], Iterable[Entry]]] = {
        "shar": lambda path: manifests.shar(path.parent, top, language),
        "kaldi": lambda path: kaldi.read(path.parent, top, language),
        "cuts": lambda path: manifests.cuts(path, top, language),
        "recordings": lambda path: manifests.supervised(path, _supervisions(path), top, language),
        "folder": lambda path: folders.read(path, language),
    }
    if name == "audiofolder":
        return told_apart(tables.audiofolder(files, top, language))
    read = reader.get(name, lambda path: tables.read(path, top, language))
    return told_apart(chain.from_iterable(map(read, files)))


def _found(root: Path) -> tuple[str, list[Path]]:
    """The layout, and the files that tell it; of a Shar, the first shard of each folder."""
    if root.is_file():
        if name := _of_file(root):
            return name, [root]
        raise _unknown(root, "a file, but no table")
    if not root.is_dir():
        raise InputError("The root of your data does not exist.", got=str(root), expected="a folder or a table", do="check the path")
    by_layout: dict[str, list[Path]] = {}
    for path in _tables(root):
        if name := _of_file(path):
            by_layout.setdefault(name, []).append(path)
    for name in ("shar", "kaldi", "recordings", "cuts", "audiofolder"):  # names that are nobody else's
        if name in by_layout:
            return name, by_layout[name]
    if len(by_layout) > 1:
        some = ", ".join(str(paths[0].relative_to(root)) for paths in by_layout.values())
        raise InputError("Your data has tables of several kinds.", got=some, expected="one kind", do="set the root to one of these files")
    if by_layout:
        return next(iter(by_layout.items()))
    if folders.has_pairs(root):
        return "folder", [root]
    raise _unknown(root, "no table, and no audio with a transcript beside it")


def _tables(root: Path) -> Iterator[Path]:
    """Files that may tell the layout: in the root and two levels below it, such as ``data/train``."""
    for folder, names in walk(root, DEPTH):
        yield from (folder / name for name in names if name == "wav.scp" or tables.kind_of(Path(name)))


def _of_file(path: Path) -> str:
    """The layout that a file tells, or empty."""
    kind = tables.kind_of(path)
    if path.name == "wav.scp":
        return "kaldi"
    if re.fullmatch(r"cuts\.\d+\.jsonl(\.gz)?", path.name):
        return "shar" if min(path.parent.glob("cuts.*.jsonl*")) == path else ""  # its further shards are read with it
    if path.name in {"metadata.csv", "metadata.jsonl", "metadata.parquet"}:
        return "audiofolder"
    if kind == "jsonl":
        if "recordings" in path.name and _supervisions(path).is_file():
            return "recordings"
        if "supervisions" in path.name and path.with_name(path.name.replace("supervisions", "recordings")).is_file():
            return ""
        if re.search(r"(^|[^a-z])cuts([^a-z]|$)", path.name):
            return "cuts"
        if ".json" in path.suffixes and not _lists_audio(path):
            return ""  # one of the many other things that are kept as JSON
    return {"csv": "table", "tsv": "table"}.get(kind, kind)


def _lists_audio(path: Path) -> bool:
    first = next(lines(path), None)
    return first is not None and not set(PATH).isdisjoint(parse_object(first.text)[0])


def _supervisions(recordings: Path) -> Path:
    return recordings.with_name(recordings.name.replace("recordings", "supervisions"))


def _unknown(root: Path, got: str) -> InputError:
    known = "".join(f"\n    - {text}" for text in LAYOUTS.values())
    return InputError("Your data has no layout that is known.", got=f"{root}: {got}", expected=f"one of{known}",
                      do="write a CSV file with the columns path and text")  # fmt: skip
