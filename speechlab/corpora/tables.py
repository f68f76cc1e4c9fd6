"""The user's tables: CSV, TSV, JSON lines as NeMo writes them, Parquet, and Hugging Face's audiofolder.

Notable: columns are found under the names that the field uses (see :mod:`speechlab.corpora.fields`); the separator is
the one that gives the header a column for the audio and one for the text. Audio is looked for beside the table, then
under the root. Parquet is read in small batches, and audio that it holds is handed on as bytes; what is held at a time
is a page, which some writers make as large as a row group. In an audiofolder every file is accounted for: audio that
no metadata names is an entry with a problem.

Not covered: CSV without a header; Parquet whose audio is arrays of samples; columns ``lang`` and the like, which are
kept but decide nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from speechlab.corpora.base import Entry
from speechlab.corpora.fields import PATH, TEXT, Lookup, entry, split_of, walk
from speechlab.corpora.rows import Row, json_lines, lines, records, shown
from speechlab.errors import InputError
from speechlab.formats import SUFFIXES

KINDS = {".csv": "csv", ".tsv": "tsv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl", ".parquet": "parquet"}
BATCH = 16  # rows of Parquet, each of which may hold a recording


def kind_of(path: Path) -> str:
    """Which table a file is by its name (``csv``, ``tsv``, ``jsonl``, ``parquet``), or empty."""
    return KINDS.get(Path(path.name.removesuffix(".gz")).suffix.lower(), "")


def read(path: Path, root: Path, language: str) -> Iterator[Entry]:
    """An entry for every row of one table.

    Args:
        path: The table.
        root: Relative paths stay under it.
        language: BCP-47.

    Raises:
        InputError: if the file cannot be read as what its name says.
    """
    kind = kind_of(path)
    split = split_of(path.name.partition(".")[0]) or split_of(path.parent.name if path.parent != root else "")
    if kind == "parquet":
        rows = parquet(path)
    elif kind == "jsonl":
        rows = json_lines(path)
    else:
        separator = separator_of(path, "\t" if kind == "tsv" else ",;\t|")
        rows = records(path, separator, quoted=separator != "\t")
    for row in rows:
        yield entry(row, root, (path.parent,), language, split, typed=kind not in {"csv", "tsv"})


def separator_of(path: Path, candidates: str = ",;\t|") -> str:
    """The separator of a table: the first of the candidates under which its header has audio and text.

    Raises:
        InputError: if there is none.
    """
    first = next(lines(path), None)
    header = first.text if first else ""
    for separator in candidates:
        names = {name.strip().strip('"').lower() for name in header.split(separator)}
        if names & set(PATH) and names & set(TEXT):
            return separator
    raise _no_columns(path, header)


def _no_columns(path: Path, header: str) -> InputError:
    return InputError(f"{path.name} lacks a column.", got=f"the first line: {shown(header) or 'nothing'}",
                      expected=f"a header with one of {', '.join(PATH)} and one of {', '.join(TEXT)}",
                      do=f"name the columns in the first line of {path}")  # fmt: skip


def parquet(path: Path) -> Iterator[Row]:
    """Every row of a Parquet file.

    Raises:
        InputError: if it is damaged or has no column for audio and text.
    """
    import pyarrow
    from pyarrow.parquet import ParquetFile

    try:
        with ParquetFile(path, buffer_size=1 << 20, pre_buffer=False) as table:  # buffered: a row group need not fit into memory
            names = {name.lower() for name in table.schema_arrow.names}
            if len(names) < len(table.schema_arrow.names) or not (names & set(PATH) and names & set(TEXT)):
                raise _no_columns(path, ", ".join(table.schema_arrow.names))
            number = 0
            for batch in table.iter_batches(batch_size=BATCH, use_threads=False):
                for values in batch.to_pylist():
                    number += 1
                    yield Row(f"{path.name}:{number}", values)
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as e:
        raise InputError("A Parquet file cannot be read.", got=f"{path}: {shown(str(e), 300)}", expected="a whole Parquet file",
                         do="fetch or write it again") from None  # fmt: skip


def audiofolder(metadata: list[Path], root: Path, language: str) -> Iterator[Entry]:
    """Every row of the metadata, then every audio file that no row names.

    Args:
        metadata: The files ``metadata.csv``, ``metadata.jsonl`` or ``metadata.parquet``.
        root: The folder above them all.
        language: BCP-47.

    Raises:
        InputError: as for :func:`read`.
    """
    named = Lookup()
    for path in metadata:
        for found in read(path, root, language):
            if isinstance(found.audio, Path):
                named.put("audio", os.path.realpath(found.audio), "")
            yield found
    for path in audio_under(root):
        if named.get("audio", os.path.realpath(path)) is None:
            id = str(path.relative_to(root).with_suffix(""))
            yield Entry(id, path, "", language=language, split=split_of(path.parent.name), problem="audio without a transcript")


def audio_under(root: Path) -> Iterator[Path]:
    """Every audio file under a folder, by name."""
    for folder, names in walk(root):
        yield from (folder / name for name in names if Path(name).suffix.lower() in SUFFIXES)
