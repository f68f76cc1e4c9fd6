"""Rows of files that nobody vouches for: lines, CSV, TSV and JSON lines, one by one, what is wrong with each noted.

Notable: a row that cannot be read is still a row, with its problem beside it; memory stays flat however long the file,
its lines or its quoted cells are. Blank lines are no rows; a UTF-8 byte order mark and CRLF are accepted, other
encodings are noted and never guessed.

Not covered: tables without a header, tab-separated cells that hold newlines, JSON that is one value over many lines.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import json
import zlib
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from speechlab.errors import InputError
from speechlab.units import Bytes

LONGEST: Bytes = 1_000_000  # of a line; a transcript is a few hundred
MOST_LINES = 100  # of a quoted CSV cell; beyond, a quote was left open


@dataclass(frozen=True)
class Line:
    """A line of a file: its number from 1, its text, and why it cannot be trusted."""

    number: int
    text: str
    problem: str = ""


@dataclass(frozen=True)
class Row:
    """A row of a table or manifest.

    Attributes:
        place: File and line, as a person would look it up.
        values: By column; text in CSV, anything that JSON knows in JSON lines.
        problem: Why the row cannot be read; empty if it can.
    """

    place: str
    values: dict[str, Any] = field(default_factory=dict)
    problem: str = ""


def lines(path: Path) -> Iterator[Line]:
    """Every line of a text file, gzipped if its name ends in ``.gz``.

    Args:
        path: The file.

    Raises:
        InputError: if it is no regular file, cannot be read, is UTF-16, or is damaged gzip.
    """
    if not path.is_file():  # a named pipe would block
        raise InputError("A table cannot be read.", got=str(path), expected="a regular file", do="check the path")
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as f:
            number = 0
            while data := f.readline(LONGEST + 1):
                number += 1
                if number == 1:
                    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
                        raise InputError("A table is not UTF-8.", got=f"{path}: UTF-16", expected="UTF-8 text", do="save it as UTF-8")
                    data = data.removeprefix(codecs.BOM_UTF8)
                size = len(data)
                while not data.endswith(b"\n") and size > LONGEST and (more := f.readline(LONGEST)):
                    size += len(more)
                    data = more
                if size > LONGEST + 1:
                    yield Line(number, "", f"a line of {size:,} bytes; expected at most {LONGEST:,}")
                else:
                    yield _line(number, data.rstrip(b"\r\n"))
    except (OSError, EOFError, zlib.error) as e:  # gzip.BadGzipFile is an OSError
        raise InputError("A table cannot be read.", got=f"{path}: {e}", expected="a whole, readable file", do="fetch it again") from None


def _line(number: int, data: bytes) -> Line:
    try:
        text, problem = data.decode("utf-8"), ""
    except UnicodeDecodeError as e:
        text = data.decode("utf-8", "backslashreplace")
        problem = f"byte 0x{data[e.start]:02x} at column {e.start + 1} is not UTF-8; expected UTF-8 text"
    if "\0" in text:
        text, problem = text.replace("\0", "\\x00"), problem or "a NUL byte; expected text"
    return Line(number, text, problem)


class _Lines:
    """Lines for csv.reader, which can be put back when the row that took them turns out to be none."""

    def __init__(self, source: Iterator[Line]) -> None:
        self.source, self.waiting, self.taken = source, deque[Line](), list[Line]()

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        if len(self.taken) >= MOST_LINES or sum(len(line.text) for line in self.taken) > LONGEST:
            raise csv.Error("a quote that is not closed")
        self.taken.append(self.waiting.popleft() if self.waiting else next(self.source))
        return self.taken[-1].text + "\n"


def table(path: Path, separator: str, quoted: bool) -> Iterator[tuple[list[str], Line]]:
    """The cells of every row of a table, the header among them.

    Args:
        path: The file.
        separator: One character.
        quoted: Whether cells are quoted as RFC 4180 has it; then a cell may hold newlines. Otherwise a line is a row,
            and only a cell that is quoted from end to end loses its quotes.

    Yields:
        Cells, and the line that the row begins on with whatever is wrong with it. A quote that is never closed costs
        its own line, not those after it.

    Raises:
        InputError: as for :func:`lines`.
    """
    if not quoted:
        for line in lines(path):
            if line.text.strip() or line.problem:
                yield [_unquoted(cell) for cell in line.text.split(separator)], line
        return
    source = _Lines(lines(path))
    reader = csv.reader(source, delimiter=separator, strict=True)
    while True:
        source.taken = []
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as e:
            first, *rest = source.taken
            source.waiting.extendleft(reversed(rest))
            yield [], replace(first, problem=first.problem or f"not CSV: {e}")
            continue
        first = source.taken[0]
        problem = next((line.problem for line in source.taken if line.problem), "")
        if "".join(cells).strip() or len(cells) > 1 or problem:
            yield cells, replace(first, problem=problem)


def _unquoted(cell: str) -> str:
    whole = len(cell) > 1 and cell[0] == cell[-1] == '"' and '"' not in cell[1:-1].replace('""', "")
    return cell[1:-1].replace('""', '"') if whole else cell


def records(path: Path, separator: str, quoted: bool, needed: Iterable[str] = ()) -> Iterator[Row]:
    """Every row of a table with a header, by column.

    Args:
        path: The file.
        separator: One character.
        quoted: As for :func:`table`.
        needed: Columns without which the table is another one.

    Raises:
        InputError: if there is no header, or it names a column twice or lacks a needed one; as for :func:`lines`.
    """
    rows = table(path, separator, quoted)
    header, first = next(rows, ([], Line(0, "", "an empty file")))
    names = [name.strip() for name in header]
    missing = [name for name in needed if name not in names]
    if first.problem or missing or not all(names) or len(set(names)) < len(names):
        expected = "one with " + ", ".join(needed) if missing else "a name over every column, each once"
        raise InputError(f"{path.name} has no header that can be used.", got=first.problem or shown(", ".join(names)),
                         expected=expected, do=f"mend the first line of {path}")  # fmt: skip
    for cells, line in rows:
        count = "" if len(cells) == len(names) else f"{len(cells)} cells; expected {len(names)}, as in the header"
        yield Row(f"{path.name}:{line.number}", dict(zip(names, cells, strict=False)), line.problem or count)


def json_lines(path: Path) -> Iterator[Row]:
    """Every row of a file with a JSON object a line.

    Args:
        path: The file.

    Raises:
        InputError: if the file is one JSON value spread over lines; as for :func:`lines`.
    """
    for line in lines(path):
        if not line.text.strip() and not line.problem:
            continue
        if line.number == 1 and line.text.strip() in {"[", "{"}:
            raise InputError(f"{path.name} is not JSON lines.", got=f'the first line "{line.text.strip()}"',
                             expected="a JSON object a line", do="write each object on a line of its own")  # fmt: skip
        values, problem = parse_object(line.text) if not line.problem else ({}, line.problem)
        yield Row(f"{path.name}:{line.number}", values, problem)


def parse_object(text: str) -> tuple[dict[str, Any], str]:
    """A JSON object and no problem, or nothing and the problem."""
    try:
        value = _DECODER.decode(text)
    except (ValueError, RecursionError) as e:
        return {}, f"not JSON: {shown(str(e))}; expected an object"
    return (value, "") if isinstance(value, dict) else ({}, f"JSON, but {kind(value)}; expected an object")


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):  # json keeps the last, silently
        raise ValueError("a key stands twice")
    return values


_DECODER = json.JSONDecoder(object_pairs_hook=_each_once)


def kind(value: Any) -> str:
    """What a value is, in words."""
    names = {bool: "true or false", int: "a number", float: "a number", str: "text", list: "a list", dict: "an object", bytes: "bytes"}
    return "nothing" if value is None else names.get(type(value), f"a {type(value).__name__}")


def shown(text: str, most: int = 100) -> str:
    """A text on one line, cut to fit into a message."""
    text = " ".join(text.split())
    return text if len(text) <= most else text[:most] + "..."
