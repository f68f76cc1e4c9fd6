"""CORAAL, the Corpus of Regional African American Language (Kendall & Farrington), from the user's own copy.

Notable: the text is what is said: overlaps lose their brackets, a transcriber's guess its slashes; pauses, laughs and
other sounds, passages that could not be understood and names that were made unheard are left out, and which of these a row
had is its column ``marks`` (conventions of the CORAAL User Guide). A row without words, most often a pause, is an entry
with a problem. Each speaker keeps a role (interviewee, interviewer, other), and interviewees what the metadata say.
Transcripts are the tab-separated ones, or Praat TextGrids where only those are there.

Not covered: the packed archives, joining rows to longer clips, splits: the corpus has none.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from speechlab.corpora.base import Entry
from speechlab.corpora.fields import located, number, told_apart, walk
from speechlab.corpora.rows import Row, lines, records, shown
from speechlab.errors import InputError
from speechlab.formats import SUFFIXES

LICENCE = "CC BY-NC-SA 4.0 (https://creativecommons.org/licenses/by-nc-sa/4.0/)"
ATTRIBUTION = "The Corpus of Regional African American Language, T. Kendall and C. Farrington, 2023 (oraal.uoregon.edu/coraal)"
HEADER = ("Line", "Spkr", "StTime", "Content", "EnTime")
LARGEST = 20_000_000  # bytes of a TextGrid, which is read whole; those of an hour are below one million
MARKS = {
    "unintelligible": re.compile(r"/\s*(?:unintelligible|inaudible|\?+|)\s*/", re.IGNORECASE),
    "redacted": re.compile(r"/RD[^/]*/"),
    "sound": re.compile(r"<[^<>]*>"),
    "remark": re.compile(r"\([^()]*\)|\{[^{}]*\}"),
    "guess": re.compile("/"),
    "overlap": re.compile(r"[\[\]]"),
}


def entries(root: Path, language: str) -> Iterator[Entry]:
    """An entry for every row of every transcript, and for every recording without one.

    Args:
        root: A folder anywhere below which transcripts, audio and metadata lie.
        language: ``en``.

    Raises:
        InputError: if the language is another, or there is no transcript.
    """
    if language.partition("-")[0] != "en":
        raise InputError(f'CORAAL is not there in "{language}".', got=language, expected="en", do='set the language to "en"')
    sounds, tables, grids, people = _found(root)
    if not tables and not grids:
        raise InputError("CORAAL is not there.", got=str(root), expected=f"transcripts with the columns {', '.join(HEADER)}, or TextGrids",
                         do="unpack the archives of a component there, and set the root to the folder")  # fmt: skip
    return told_apart(_rows(root, language, sounds, tables, grids, _people(people)))


def _found(root: Path) -> tuple[dict[str, Path], dict[str, Path], dict[str, Path], list[Path]]:
    """Recordings, tables and TextGrids by name, and the files of metadata; a few hundred in all of CORAAL."""
    sounds: dict[str, Path] = {}
    tables: dict[str, Path] = {}
    grids: dict[str, Path] = {}
    people = []
    for folder, names in walk(root):
        for path in (folder / name for name in names):
            kind = path.suffix.lower()
            if kind in SUFFIXES:
                sounds.setdefault(path.stem, path)
            elif kind == ".textgrid":
                grids.setdefault(path.stem, path)
            elif kind == ".txt" and path.is_file():
                first = next(lines(path), None)
                header = {name.strip() for name in (first.text if first else "").split("\t")}
                if header >= set(HEADER):
                    tables.setdefault(path.stem, path)
                elif "CORAAL.File" in header:
                    people.append(path)
    return sounds, tables, grids, people


def _people(paths: list[Path]) -> dict[tuple[str, str], dict[str, str]]:
    """What the metadata say, by file and speaker."""
    said = {}
    for path in paths:
        for row in records(path, "\t", quoted=False, needed=("CORAAL.File", "CORAAL.Spkr")):
            if row.problem:
                raise InputError("CORAAL's metadata cannot be read.", got=f"{row.place}: {row.problem}", expected="the table as published",
                                 do="fetch it again")  # fmt: skip
            said[row.values["CORAAL.File"], row.values["CORAAL.Spkr"]] = {name: value for name, value in row.values.items() if value}
    return said


def _rows(root: Path, language: str, sounds: dict[str, Path], tables: dict[str, Path], grids: dict[str, Path],
          people: dict[tuple[str, str], dict[str, str]]) -> Iterator[Entry]:  # fmt: skip
    for stem in sorted(tables | grids):
        if stem in sounds:
            audio, problem = located(str(sounds[stem].relative_to(root)), root)
        else:
            audio, problem = None, f"no recording {shown(stem)}"
        rows = records(tables[stem], "\t", quoted=False, needed=HEADER) if stem in tables else _grid(grids[stem])
        for row in rows:
            yield _entry(row, stem, audio, problem, language, people)
    for stem in sorted(set(sounds) - set(tables) - set(grids)):
        yield Entry(stem, sounds[stem], "", "", language, problem="audio without a transcript")


def _entry(row: Row, stem: str, audio: Path | None, missing: str, language: str, people: dict[tuple[str, str], dict[str, str]]) -> Entry:
    speaker, content = row.values.get("Spkr", "").strip(), row.values.get("Content", "").strip()
    if row.problem:
        return Entry(row.place, audio, "", speaker, language, problem="; ".join(filter(None, [row.problem, missing])))
    start, wrong = number(row.values["StTime"], "StTime")
    end, after = number(row.values["EnTime"], "EnTime", 0.0 if start is None else start + 1e-6)
    text, marks = spoken(content)
    none = "" if text else f"no words: {shown(content)}" if content else "the text is empty"
    role = "interviewee" if speaker and speaker in stem else "interviewer" if "_int_" in speaker else "other"
    columns = {**people.get((stem, speaker), {}), "role": role} | ({"marks": ",".join(marks)} if marks else {})
    return Entry(f"{stem}-{row.values['Line'].strip()}", audio, text, speaker, language, "",
                 None if start is None or end is None else round(end - start, 6), start,
                 problem="; ".join(filter(None, [none, wrong, after, missing])), columns=columns)  # fmt: skip


def _grid(path: Path) -> Iterator[Row]:
    """Every labelled interval of a TextGrid, a tier being a speaker, as a row of the table would say it; a file that is none is one row."""
    from praatio.utilities.textgrid_io import parseTextgridStr

    try:
        if not path.is_file() or path.stat().st_size > LARGEST:
            raise ValueError(f"no file of at most {LARGEST:,} bytes")
        data = path.read_bytes()
        text = data.decode("utf-16" if data[:2] in {b"\xff\xfe", b"\xfe\xff"} else "utf-8-sig")
        tiers = [(tier["name"], list(tier["entries"])) for tier in parseTextgridStr(text)["tiers"] if tier["class"] == "IntervalTier"]
        rows = [(str(name), str(begin), str(until), str(said)) for name, intervals in tiers for begin, until, said in intervals]
    except Exception as e:  # whatever praatio stumbles over
        yield Row(path.name, {}, f"not a TextGrid that can be read: {type(e).__name__}: {shown(str(e))}")
        return
    for number_, (name, begin, until, said) in enumerate(rows, 1):
        values = {"Line": f"{name}-{number_}", "Spkr": name, "StTime": begin, "Content": " ".join(said.split()), "EnTime": until}
        yield Row(f"{path.name}:{name}:{number_}", values)


def spoken(content: str) -> tuple[str, list[str]]:
    """The words of a row as they are heard, and which marks were taken out.

    >>> spoken("[Yeah] <laugh> /unintelligible/ he was /tryna/ go (pause 0.5)")
    ('Yeah he was tryna go', ['unintelligible', 'sound', 'remark', 'guess', 'overlap'])
    """
    marks, content = [], " ".join(content.split())
    for mark, pattern in MARKS.items():
        # what stands for sound leaves a gap; a bracket or slash within a word leaves none
        content, count = pattern.subn("" if mark in {"guess", "overlap"} else " ", content)
        marks += [mark] * bool(count)
    text = " ".join(content.split())
    return (text, marks) if any(map(str.isalnum, text)) else ("", marks)
