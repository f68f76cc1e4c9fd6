"""What a row claims, made into an entry: paths, numbers, texts and ids, each checked, every problem noted.

Notable: a manifest may name an absolute path, as those of NeMo and Kaldi do; a relative one stays under the root:
``..``, and links that lead out of it, are refused, and only regular files count, so that a named pipe cannot block the
reader. Ids are told apart by 8 bytes of their hash, about 70 bytes of memory each (two of a million collide with a
probability of 3e-8, and one clip is then set aside); what must be joined lies in a temporary database on disk.

Not covered: decoding audio; guessing of units, encodings or languages.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sqlite3
import stat
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from speechlab.corpora.base import SPLITS, Entry
from speechlab.corpora.rows import Row, kind, shown
from speechlab.errors import InputError
from speechlab.units import Seconds

DAY: Seconds = 86_400.0  # no recording, and no place in one, lies beyond it
LONGEST_ID = 1_000
SPLIT_NAMES = {"train": "train", "training": "train", "dev": "dev", "devel": "dev", "valid": "dev", "validation": "dev", "val": "dev",
               "test": "test", "testing": "test", "eval": "test", "evaluation": "test"}  # fmt: skip
# what tables call their columns; the first that is there counts
PATH = ("audio_filepath", "file_name", "audio", "path", "audio_path", "audio_file", "file", "filename", "wav")
TEXT = ("text", "sentence", "transcript", "transcription")
SPEAKER = ("speaker", "speaker_id", "client_id")
ID = ("id", "utt_id", "utterance_id")
START = ("start", "offset")
SPLIT = ("split",)
DURATION = ("duration",)


def located(named: Any, root: Path, folders: Iterable[Path] = ()) -> tuple[Path | None, str]:
    """The file that a row names.

    Args:
        named: What the row has for a path.
        root: Relative paths stay under it.
        folders: What relative paths are relative to, by preference; last of all the root.

    Returns:
        The file, or the place where it should be, or None; and the problem with it.
    """
    if not isinstance(named, str) or not named.strip():
        return None, f"the path is {kind(named) if not isinstance(named, str) else 'empty'}; expected an audio file"
    if re.search("[\x00-\x1f\x7f\ud800-\udfff]", named):
        return None, f"the path holds control characters: {shown(repr(named))}; expected a path"
    if named.rstrip().endswith("|") or named.lstrip().startswith("|"):
        return None, f"a command, which is not run: {shown(named)}; expected a file: run it once and name what it wrote"
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", named):
        return None, f"an address, which is not fetched: {shown(named)}; expected a file: download it and name that"
    path = Path(named)
    if ".." in path.parts:
        return None, f'the path has "..": {shown(named)}; expected one under the root'
    if path.is_absolute():
        return path, _unusable(path, named)
    top, first = _real(os.path.abspath(root)), ""
    places = [Path(os.path.abspath(folder), path) for folder in dict.fromkeys((*folders, root))]
    for place in places:
        # a name that is no link is under the root if its folder is
        real = os.path.realpath(place) if os.path.islink(place) else os.path.join(_real(str(place.parent)), place.name)
        if real != top and not real.startswith(top.rstrip("/") + "/"):
            return None, f"the path leads out of the root by a link: {shown(named)}; expected a file under it"
        if not (problem := _unusable(place, named)):
            return place, ""
        first = first or problem
    return places[0], first


@lru_cache(1024)  # a table names few folders, many times
def _real(folder: str) -> str:
    return os.path.realpath(folder)


def _unusable(path: Path, named: str) -> str:
    try:
        state = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return f"there is no audio file {shown(named)}"
    except OSError as e:  # loops of links, names that are too long, folders without permission
        return f"the audio file cannot be reached: {shown(named)}: {e.strerror}"
    if not stat.S_ISREG(state.st_mode):
        return f"{shown(named)} is no regular file; expected audio"
    return "" if state.st_size else f"the audio file is empty: {shown(named)}: 0 bytes"


def number(value: Any, name: str, low: float = 0.0, high: float = DAY) -> tuple[float | None, str]:
    """A number within bounds, or None and the problem.

    Args:
        value: A number, or its text where the row has only text.
        name: What to call it, with its unit.
        low: Smallest that is accepted.
        high: Largest that is accepted.
    """
    given = value
    if isinstance(value, str):
        try:
            value = float(value.replace("_", "?"))  # float would take 1_000
        except ValueError:
            return None, f'the {name} is "{shown(given)}"; expected a number'
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None, f"the {name} is {kind(value)}; expected a number"
    if not low <= value <= high:  # NaN is not either
        return None, f"the {name} is {shown(str(given), 30)}; expected {low:g} to {high:g}"
    return float(value), ""


def entry(row: Row, root: Path, folders: tuple[Path, ...], language: str, split: str, typed: bool) -> Entry:
    """What a row of a table or manifest says, under whichever of the known names its columns have.

    Args:
        row: As it was read.
        root: Relative paths stay under it.
        folders: As for :func:`located`.
        language: BCP-47.
        split: Of the table, for rows that name none.
        typed: Whether a number is a number: JSON and Parquet; in CSV all is text.
    """
    names = {name.lower(): name for name in reversed(row.values)}
    used: set[str] = set()
    problems = [row.problem] if row.problem else []

    def take(known: tuple[str, ...]) -> Any:
        for name in known:
            if name in names and row.values[names[name]] is not None and (typed or row.values[names[name]] != ""):
                used.add(names[name])
                return row.values[names[name]]
        return None

    def measured(known: tuple[str, ...], low: float) -> float | None:
        if (value := take(known)) is None or row.problem:
            return None
        if typed and isinstance(value, str):
            problems.append(f"the {known[0]} is text; expected a number")
            return None
        found, problem = number(value, known[0], low)
        problems.extend([problem] if problem else [])
        return found

    sound, named = take(PATH), ""
    audio: Path | bytes | None = None
    if isinstance(sound, dict):  # the struct that Hugging Face's datasets keep audio in
        path, data = sound.get("path"), sound.get("bytes")
        named = path if isinstance(path, str) else ""
        sound = data if isinstance(data, bytes) and (data or not named) else path
    if isinstance(sound, bytes):
        audio = sound
        problems += [] if sound else ["the audio has 0 bytes"]
    elif not row.problem or sound is not None:
        audio, problem = located(sound, root, folders)
        named = sound if isinstance(sound, str) else ""
        problems += [problem] if problem else []
    text = take(TEXT)
    if not row.problem:
        problems += text_problem(text)
    duration, start = measured(DURATION, 1e-6), measured(START, 0.0)
    if start and duration is None:
        problems.append("a start without a duration; expected both")
    given, of_row = take(ID), take(SPLIT)
    if given is not None and (isinstance(given, bool) or not isinstance(given, str | int)):
        problems.append(f"the id is {kind(given)}; expected text")
        given = None
    if of_row is not None and (not isinstance(of_row, str) or of_row.strip().lower() not in SPLIT_NAMES):
        problems.append(f"the split is {shown(str(of_row))}; expected {', '.join(SPLITS)}")
    elif of_row is not None:
        split = SPLIT_NAMES[of_row.strip().lower()]
    speaker = take(SPEAKER)
    id = str(given) if given is not None else _id(audio, named, root, start) or _placed(row, root, folders)
    columns = {name: _told(value) for name, value in row.values.items() if name not in used and value is not None and value != ""}
    return Entry(id, audio, text.strip() if isinstance(text, str) else "", "" if speaker is None else str(speaker), language, split,
                 duration, start, problem="; ".join(problems), columns=columns)  # fmt: skip


def _told(value: Any) -> str:
    if isinstance(value, str):
        return value
    return f"{len(value)} bytes" if isinstance(value, bytes) else json.dumps(value, ensure_ascii=False, default=str)


def walk(root: Path, depth: int | None = None) -> Iterator[tuple[Path, list[str]]]:
    """Every folder under a root, itself first, with the names of its files; hidden ones left out.

    Args:
        root: Where to begin.
        depth: How many levels below it to look; none is all.

    Raises:
        InputError: if a folder cannot be read, or is a link: what lies behind either would be missed.
    """

    def fail(e: OSError) -> None:
        got = f"{e.filename}: {e.strerror}"
        raise InputError("A folder cannot be read.", got=got, expected="readable folders", do="check its permissions") from None

    for top, below, names in os.walk(root, onerror=fail):
        folder = Path(top)
        yield folder, sorted(name for name in names if not name.startswith("."))
        deep = depth is not None and len(folder.relative_to(root).parts) >= depth
        below[:] = [] if deep else sorted(name for name in below if not name.startswith("."))
        if links := [name for name in below if (folder / name).is_symlink()]:
            raise InputError("A folder is a link, which is not followed.", got=str(folder / links[0]), expected="folders",
                             do="move it there, or set the root to where it leads")  # fmt: skip


def text_problem(text: Any) -> list[str]:
    """What is wrong with a text, if anything."""
    if not isinstance(text, str):
        return [f"there is no text; expected a column {' or '.join(TEXT)}" if text is None else f"the text is {kind(text)}; expected text"]
    return [] if text.strip() else ["the text is empty"]


def _id(audio: Path | bytes | None, named: str, root: Path, start: Seconds | None) -> str:
    """An id from the file: its path under the root without suffix, and where in it the clip begins."""
    if not named:
        return ""
    path = audio if isinstance(audio, Path) else Path(named)
    name = str(path.relative_to(root) if path.is_relative_to(root) else path).lstrip("/")
    return name.removesuffix(path.suffix) + (f"@{start:g}" if start is not None else "")


def _placed(row: Row, root: Path, folders: tuple[Path, ...]) -> str:
    """An id from where the row stands, for those that name no file."""
    return str(folders[0].relative_to(root) / row.place) if folders and folders[0].is_relative_to(root) else row.place


def split_of(name: str) -> str:
    """The split that a file's or folder's name tells, or empty.

    >>> split_of("validation-00000-of-00001.parquet"), split_of("contest.csv")
    ('dev', '')
    """
    found = {SPLIT_NAMES[word] for word in re.split(r"[^a-z]+", name.lower()) if word in SPLIT_NAMES}
    return found.pop() if len(found) == 1 else ""


def told_apart(entries: Iterable[Entry]) -> Iterator[Entry]:
    """The same entries: every id but the first of its kind noted, texts that are no Unicode made so and noted."""
    seen: set[int] = set()
    for found in entries:
        problems = [found.problem] if found.problem else []
        texts = (found.id, found.text, found.speaker, *found.columns, *found.columns.values())
        if any(map(_broken, texts)):
            columns = {_mended(name): _mended(value) for name, value in found.columns.items()}
            found = replace(found, id=_mended(found.id), text=_mended(found.text), speaker=_mended(found.speaker), columns=columns)
            problems.append("half a UTF-16 pair; expected Unicode text")
        if len(found.id) > LONGEST_ID:
            problems.append(f"an id of {len(found.id):,} characters; expected at most {LONGEST_ID:,}")
            found = replace(found, id=found.id[:LONGEST_ID])
        key = int.from_bytes(hashlib.blake2b(found.id.encode(), digest_size=8).digest(), "big")
        if key in seen:
            problems.append("the id stands before; expected each once")
        seen.add(key)
        problem = _mended("; ".join(problems))
        yield found if problem == found.problem else replace(found, problem=problem)


def _broken(text: str) -> bool:
    return not text.isascii() and re.search("[\ud800-\udfff]", text) is not None


def _mended(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


class Lookup:
    """Values by key in a temporary database, which is on disk once it outgrows a small cache: to join files of any order."""

    def __init__(self) -> None:
        self.db = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        self.db.execute("CREATE TABLE kept (place TEXT, key TEXT, value TEXT, PRIMARY KEY (place, key)) WITHOUT ROWID")
        self.db.execute("BEGIN")

    def put(self, place: str, key: str, value: str) -> bool:
        """Keep a value; False if the place has the key already, whose first value stays."""
        pair = (place, _mended(key), _mended(value))
        return self.db.execute("INSERT OR IGNORE INTO kept VALUES (?, ?, ?)", pair).rowcount == 1

    def get(self, place: str, key: str) -> str | None:
        """The value, or None."""
        found = self.db.execute("SELECT value FROM kept WHERE place = ? AND key = ?", (place, _mended(key))).fetchone()
        return None if found is None else str(found[0])

    def items(self, place: str) -> Iterator[tuple[str, str]]:
        """Keys and values of a place, by key."""
        yield from self.db.execute("SELECT key, value FROM kept WHERE place = ? ORDER BY key", (place,))
