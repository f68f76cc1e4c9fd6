"""Kaldi data directories: ``wav.scp``, ``text``, ``utt2spk`` and ``segments``.

Notable: a line of ``wav.scp`` that is a command is never run, it is noted. The files are joined in a temporary database,
so that they may be of any order and size. Audio without text and text without audio are entries with a problem.

Not covered: archives (``.ark``), channels, features.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from speechlab.corpora.base import Entry
from speechlab.corpora.fields import Lookup, located, number, split_of
from speechlab.corpora.rows import lines, shown

FILES = ("wav.scp", "text", "utt2spk", "segments")


def read(folder: Path, root: Path, language: str) -> Iterator[Entry]:
    """An entry for every utterance, by id, and for every line that fits none.

    Args:
        folder: With ``wav.scp``.
        root: Relative paths are relative to the folder, else to this, and stay under it.
        language: BCP-47.

    Raises:
        InputError: if one of the files cannot be read.
    """
    split = split_of(folder.name)
    kept = Lookup()
    for name in FILES:
        for line in lines(folder / name) if (folder / name).exists() else ():
            key, value = re.fullmatch(r"[ \t]*([^ \t]*)[ \t]*(.*)", line.text, re.DOTALL).groups()  # type: ignore[union-attr]
            if key and kept.put(name, key, value.rstrip()):
                if line.problem:
                    kept.put("problem", key, f"{name}: {line.problem}")
            elif key or line.problem:
                problem = line.problem or f"{shown(key)} stands before in {name}; expected each once"
                yield Entry(f"{folder.relative_to(root) / name}:{line.number}", None, "", "", language, split, problem=problem)
    segmented = (folder / "segments").exists()
    for id, value in kept.items("segments" if segmented else "wav.scp"):
        start = duration = None
        recording, sound = id, value
        problems = [noted] if (noted := kept.get("problem", id)) else []
        if segmented:
            recording, start, duration, problem = _segment(value)
            problems += [problem] if problem else []
            problems += [noted] if (noted := kept.get("problem", recording)) and recording != id else []
            kept.put("used", recording, "")
            sound = kept.get("wav.scp", recording) or ""
        if segmented and not sound:
            audio, problem = None, f"no recording {shown(recording)} in wav.scp"
        else:
            audio, problem = located(sound, root, (folder,))
        problems += [problem] if problem else []
        text = kept.get("text", id)
        if not text:
            problems.append("audio without a transcript: no line in text" if text is None else "the text is empty")
        yield Entry(id, audio, text or "", kept.get("utt2spk", id) or "", language, split, duration, start, problem="; ".join(problems))
    for id, text in kept.items("text"):
        if kept.get("segments" if segmented else "wav.scp", id) is None:
            problem = f"a transcript without audio: no line in {'segments' if segmented else 'wav.scp'}"
            yield Entry(id, None, text, kept.get("utt2spk", id) or "", language, split, problem=problem)
    for id, sound in kept.items("wav.scp") if segmented else ():
        if kept.get("used", id) is None:
            audio, problem = located(sound, root, (folder,))
            yield Entry(id, audio, "", "", language, split, problem="; ".join(filter(None, ["a recording without segments", problem])))


def _segment(value: str) -> tuple[str, float | None, float | None, str]:
    """Recording, start and duration in seconds of a line of ``segments``, and what is wrong with it."""
    cells = value.split()
    if len(cells) != 3:
        return cells[0] if cells else "", None, None, f"{len(cells) + 1} cells in segments; expected id, recording, start, end"
    start, problem = number(cells[1], "start")
    end, after = number(cells[2], "end", 0.0 if start is None else start + 1e-6)
    if start is None or end is None:
        return cells[0], start, None, problem or after
    return cells[0], start, round(end - start, 6), ""
