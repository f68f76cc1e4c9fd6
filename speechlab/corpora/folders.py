"""A folder of audio with its transcripts beside it: ``x.wav`` with ``x.txt`` or ``x.lab``, or one ``*.trans.txt`` a folder.

Notable: every name is accounted for: audio without a transcript and a transcript without audio are entries with a
problem. A ``trans.txt`` holds a line ``id text`` for every recording of its folder, as LibriSpeech has it; ids are
paths under the root, so that equal names in two folders stay apart.

Not covered: speakers (the layout does not tell them), transcripts of several lines with times. The names of one folder
are held in memory together, to pair them.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from speechlab.corpora.base import Entry
from speechlab.corpora.fields import located, split_of, walk
from speechlab.corpora.rows import lines
from speechlab.formats import SUFFIXES

BESIDE = (".txt", ".lab")
LONGEST_TEXT = 100  # lines of a transcript


def is_listing(name: str) -> bool:
    """Whether a file lists the transcripts of its folder: ``trans.txt`` or ``*.trans.txt``."""
    return name == "trans.txt" or name.endswith(".trans.txt")


def has_pairs(root: Path) -> bool:
    """Whether any folder holds audio and a transcript."""
    for _, files in walk(root):
        if any(map(is_listing, files)):
            return True
        stems = {Path(name).stem for name in files if Path(name).suffix.lower() in SUFFIXES}
        if any(Path(name).stem in stems for name in files if Path(name).suffix.lower() in BESIDE):
            return True
    return False


def read(root: Path, language: str) -> Iterator[Entry]:
    """An entry for every recording and for every transcript without one, folder by folder.

    Args:
        root: The folder.
        language: BCP-47.
    """
    for folder, names in walk(root):
        parts = [word for word in (split_of(part) for part in folder.relative_to(root).parts) if word]
        yield from _folder(folder, names, root, language, parts[-1] if parts else "")


def _folder(folder: Path, names: list[str], root: Path, language: str, split: str) -> Iterator[Entry]:
    sounds: dict[str, str] = {}
    texts: dict[str, str] = {}
    spare: list[tuple[str, str]] = []
    for name in names:
        stem, suffix = Path(name).stem, Path(name).suffix.lower()
        if suffix in SUFFIXES:
            if stem in sounds:
                spare.append((name, f"another recording of that name stands beside it: {sounds[stem]}"))
            sounds.setdefault(stem, name)
    listings = [name for name in names if is_listing(name)]
    for name in names:
        stem, suffix = Path(name).stem, Path(name).suffix.lower()
        # beside audio, a text of another name belongs to a recording that is gone; in a folder without, it is a readme
        if suffix in BESIDE and name not in listings and (stem in sounds or (sounds and not listings)):
            if stem in texts:
                spare.append((name, f"another transcript of that name stands beside it: {texts[stem]}"))
            texts.setdefault(stem, name)
    prefix = folder.relative_to(root)

    def found(stem: str, text: str, *problems: str) -> Entry:
        if stem in sounds:
            audio, problem = located(str(prefix / sounds[stem]), root)
        else:
            audio, problem = None, "a transcript without audio"
        return Entry(str(prefix / stem), audio, text, "", language, split, problem="; ".join(filter(None, [*problems, problem])))

    for stem in sorted(texts):
        yield found(stem, *_text(folder / texts[stem]))
    listed = set(texts)
    for name in listings:
        for line in lines(folder / name):
            stem, _, text = line.text.strip().partition(" ")
            if line.problem:
                yield Entry(str(prefix / f"{name}:{line.number}"), None, "", "", language, split, problem=line.problem)
            elif stem:
                listed.add(stem)
                yield found(stem, text.strip(), "" if text.strip() else "the text is empty")
    for stem in sorted(set(sounds) - listed):
        yield found(stem, "", "audio without a transcript")
    for name, problem in spare:
        yield Entry(str(prefix / name), folder / name, "", "", language, split, problem=problem)


def _text(path: Path) -> tuple[str, str]:
    """A transcript, its lines joined, and what is wrong with it."""
    if not path.is_file():
        return "", "the transcript is no regular file"
    said: list[str] = []
    for line in lines(path):
        if line.problem:
            return " ".join(said), f"line {line.number} of the transcript: {line.problem}"
        if line.number > LONGEST_TEXT:
            return " ".join(said), f"the transcript has over {LONGEST_TEXT} lines; expected the text of one recording"
        said.append(line.text.strip())
    text = " ".join(filter(None, said))
    return text, "" if text else "the text is empty"
