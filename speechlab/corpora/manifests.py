"""Lhotse's manifests: cuts, recordings with supervisions, and Shar directories.

Notable: a supervision is an entry, so a cut with three of them is three. The JSON is read here and not by lhotse, which
stops at the first row it cannot use, and whose recordings may name shell commands and addresses: neither is run or
fetched, both are noted. Audio of a Shar comes out of the archive as bytes, and each cut is matched to it by its id.

Not covered: mixed and padded cuts, transforms that are still to be applied, arrays and features; shards as pipes or
addresses.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from speechlab.corpora.base import Entry
from speechlab.corpora.fields import DAY, Lookup, located, number, split_of, text_problem
from speechlab.corpora.rows import Row, json_lines, kind, shown
from speechlab.errors import InputError
from speechlab.units import Bytes

LARGEST: Bytes = 1 << 30  # of a recording in an archive
SLACK = 0.01  # seconds by which a supervision may differ from its recording and still be all of it


def cuts(path: Path, root: Path, language: str) -> Iterator[Entry]:
    """An entry for every supervision of every cut, and for every cut without any.

    Args:
        path: ``cuts.jsonl`` or ``cuts.jsonl.gz``.
        root: Relative paths stay under it.
        language: BCP-47.

    Raises:
        InputError: if the file cannot be read.
    """
    for row in json_lines(path):
        yield from _cut(row, root, path.parent, language, split_of(path.name) or split_of(path.parent.name))


def supervised(recordings: Path, supervisions: Path, root: Path, language: str) -> Iterator[Entry]:
    """An entry for every supervision, and for every recording without any.

    Args:
        recordings: ``*recordings*.jsonl`` or ``.jsonl.gz``.
        supervisions: The file that belongs to it.
        root: Relative paths stay under it.
        language: BCP-47.

    Raises:
        InputError: if a file cannot be read.
    """
    split = split_of(supervisions.name) or split_of(supervisions.parent.name)
    kept = Lookup()
    for row in json_lines(recordings):
        id, problem = row.values.get("id"), row.problem
        if not problem and not isinstance(id, str):
            problem = f"the recording's id is {kind(id)}; expected text"
        if not problem and not kept.put("recording", str(id), json.dumps(row.values)):
            problem = f"the recording {shown(str(id))} stands before; expected each once"
        if problem:
            yield Entry(row.place, None, "", "", language, split, problem=problem)
    for row in json_lines(supervisions):
        id = row.values.get("recording_id")
        found = kept.get("recording", id) if isinstance(id, str) else None
        if row.problem or found is None:
            problem = row.problem or f"no recording {shown(str(id))} in {recordings.name}"
            text, name = row.values.get("text"), row.values.get("id")
            yield Entry(name if isinstance(name, str) else row.place, None, text if isinstance(text, str) else "", "", language, split,
                        problem=problem)  # fmt: skip
            continue
        kept.put("used", str(id), "")
        yield _supervision(row.values, row.place, json.loads(found), 0.0, root, recordings.parent, language, split, None)
    for id, value in kept.items("recording"):
        if kept.get("used", id) is None:
            audio, problem = _source(json.loads(value), None, root, recordings.parent)[:2]
            yield Entry(id, audio, "", "", language, split, problem="; ".join(filter(None, ["audio without a transcript", problem])))


def shar(folder: Path, root: Path, language: str) -> Iterator[Entry]:
    """An entry for every supervision of every cut of a Shar directory.

    Args:
        folder: With ``cuts.000000.jsonl.gz``, ``recording.000000.tar`` and so on.
        root: As for :func:`cuts`.
        language: BCP-47.

    Raises:
        InputError: if a shard cannot be read.
    """
    for path in sorted(folder.glob("cuts.*.jsonl*")):
        number = path.name.split(".")[1]
        archives = sorted(folder.glob(f"recording.{number}.tar*"))
        sounds = _archive(archives[0]) if archives else iter(())
        for row in json_lines(path):
            name, data, problem = next(sounds, ("", b"", f"no more recordings in shard {number}"))
            if not problem and name != row.values.get("id"):
                problem = f"the archive has {shown(name)} where the cut's audio is due"
            yield from _cut(row, root, folder, language, split_of(folder.name), (data, problem))
        for name, _, _ in sounds:
            yield Entry(f"{path.name}:{name}", None, "", "", language, split_of(folder.name), problem="audio without a cut")


def _archive(path: Path) -> Iterator[tuple[str, bytes, str]]:
    """Name, bytes and problem of every recording of a Shar archive; its descriptions, which follow each, are passed over."""
    try:
        with tarfile.open(path, "r|*") as archive:
            for member in archive:
                name, suffix = member.name.removesuffix(Path(member.name).suffix), Path(member.name).suffix
                if suffix in {".json", ".nometa"}:
                    continue
                if suffix == ".nodata":
                    yield name, b"", "the archive holds no audio for this cut"
                elif not member.isreg() or member.size > LARGEST:
                    yield name, b"", f"no file of at most {LARGEST:,} bytes in the archive: {member.size:,} bytes"
                else:
                    opened = archive.extractfile(member)
                    data = opened.read() if opened else b""
                    yield name, data, "" if data else "the audio has 0 bytes"
    except (tarfile.TarError, OSError, EOFError) as e:
        raise InputError("A Shar archive cannot be read.", got=f"{path}: {e}", expected="a whole tar file", do="fetch it again") from None


def _cut(row: Row, root: Path, folder: Path, language: str, split: str, sound: tuple[bytes, str] | None = None) -> Iterator[Entry]:
    cut, problem = row.values, row.problem
    id = cut.get("id")
    recording, said = cut.get("recording"), cut.get("supervisions") or []
    start, wrong = (0.0, "") if problem else number(cut.get("start"), "start of the cut")
    if not problem and str(cut.get("type", "MonoCut")) not in {"MonoCut", "MultiCut"}:
        problem = f"a cut of type {shown(str(cut.get('type')))}; expected MonoCut or MultiCut: save it to a file of its own first"
    elif not problem and not isinstance(recording, dict):
        problem = "a cut without a recording"
    elif not problem and (not isinstance(said, list) or not all(isinstance(one, dict) for one in said)):
        problem = f"the supervisions are {kind(said)}; expected a list of objects"
    problem = problem or wrong or ("" if said else "audio without a transcript: the cut has no supervision")
    if problem:
        yield Entry(id if isinstance(id, str) else row.place, None, "", "", language, split, problem=problem)
        return
    assert isinstance(recording, dict) and start is not None  # told apart above
    for one in said:
        yield _supervision(one, row.place, recording, start, root, folder, language, split, sound)


def _supervision(said: dict[str, Any], place: str, recording: dict[str, Any], origin: float, root: Path, folder: Path, language: str,
                 split: str, sound: tuple[bytes, str] | None) -> Entry:  # fmt: skip
    """One supervision of a recording, whose times count from ``origin`` seconds."""
    id, text, speaker, channel = said.get("id"), said.get("text"), said.get("speaker"), said.get("channel")
    audio: Path | bytes | None
    audio, problem, within = _source(recording, channel, root, folder)
    if sound is not None:  # what the description says of the file does not hold for what lies in the archive
        audio, problem = sound
    problems = [problem] if problem else []
    problems += [] if isinstance(id, str) else [f"the id is {kind(id)}; expected text"]
    problems += text_problem(text)
    offset, wrong = number(said.get("start"), "start", -DAY)
    duration, wrong_too = number(said.get("duration"), "duration", 1e-6)
    problems += [p for p in (wrong, wrong_too) if p]
    start = None if offset is None else round(origin + offset, 6)
    whole, _ = number(recording.get("duration"), "duration")
    if start is not None and start < 0:
        problems.append(f"the start is {start:g} s; expected 0 or later")
    if start is not None and duration is not None and whole is not None and start < SLACK and abs(duration - whole) < SLACK:
        start = None  # all of the file, whose length can then be checked
    custom = said.get("custom") if isinstance(said.get("custom"), dict) else {}
    columns = {name: str(value) for name, value in {**(custom or {}), "gender": said.get("gender")}.items() if value is not None}
    return Entry(id if isinstance(id, str) else place, audio, text.strip() if isinstance(text, str) else "",
                 "" if speaker is None else str(speaker), language, split, duration, start, within,
                 problem="; ".join(problems), columns=columns)  # fmt: skip


def _source(recording: dict[str, Any], channel: Any, root: Path, folder: Path) -> tuple[Path | None, str, int | None]:
    """File, problem and channel within the file, for a channel of a recording; None is all of them."""
    sources = recording.get("sources")
    if recording.get("transforms"):
        return None, "the recording has transforms to be applied; expected plain audio: save it to a file first", None
    if not isinstance(sources, list) or not sources or not all(isinstance(one, dict) for one in sources):
        return None, "the recording has no sources", None
    one = isinstance(channel, int) and not isinstance(channel, bool)
    fit = [s for s in sources if one and isinstance(s.get("channels"), list) and channel in s["channels"]] or sources
    if len(fit) > 1:
        return None, f"a recording of {len(fit)} files; expected one, or a supervision of one channel", None
    (source,) = fit
    channels = source.get("channels")
    within = channels.index(channel) if one and isinstance(channels, list) and len(channels) > 1 and channel in channels else None
    of = source.get("type")
    if of != "file":
        known = {"command": "a command, which is not run", "url": "an address, which is not fetched", "shar": "audio of a Shar archive"}
        what = known.get(of, f"audio of type {shown(str(of))}") if isinstance(of, str) else "audio of no type"
        return None, f"{what}: {shown(str(source.get('source')))}; expected a file", within
    return *located(source.get("source"), root, (folder,)), within
