"""TED-LIUM 3 (Hernandez et al., 2018) from the user's own copy: talks as NIST SPHERE with STM transcripts.

Notable: the transcripts are read here, since lhotse's recipe drops the passages that are not scored, opens every
recording first, and refuses a split that lacks one. Those passages are entries with a problem. The text is the words:
noises in braces go, pronunciation marks such as ``the(2)`` go, and an apostrophe joins the word it was split from. A word
that the transcript does not know (``<unk>``) is left out of the text, and their number is a column.

Not covered: the ``speaker-adaptation`` distribution, the dictionary and the language model's texts.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from speechlab.corpora.base import SPLITS, Entry
from speechlab.corpora.fields import located, number, told_apart
from speechlab.corpora.rows import Line, lines
from speechlab.errors import InputError

LICENCE = "CC BY-NC-ND 3.0 (https://creativecommons.org/licenses/by-nc-nd/3.0/)"
ATTRIBUTION = "TED-LIUM 3, F. Hernandez, V. Nguyen, S. Ghannay, N. Tomashenko and Y. Estève, 2018; talks by TED Conferences LLC"
IGNORED = "ignore_time_segment_in_scoring"
STM = re.compile(r"\s*(\S+)\s+(\S+)\s+(\S+)\s+(\S+)\s+(\S+)\s*(<[^>]*>)?\s*(.*)")  # talk, channel, speaker, start, end, labels, words


def entries(root: Path, language: str) -> Iterator[Entry]:
    """An entry for every segment, and for every talk without a transcript.

    Args:
        root: The folder ``TEDLIUM_release-3``, or the one that holds it.
        language: ``en``.

    Raises:
        InputError: if the language is another, or no split lies there.
    """
    if language.partition("-")[0] != "en":
        raise InputError(f'TED-LIUM is not there in "{language}".', got=language, expected="en", do='set the language to "en"')
    tops = [root / "TEDLIUM_release-3" / "legacy", root / "legacy", root]
    top = next((top for top in tops if any((top / split / "stm").is_dir() for split in SPLITS)), None)
    if top is None:
        raise InputError("TED-LIUM is not there.", got=str(root), expected="legacy/train, dev and test, each with sph and stm",
                         do="unpack it from openslr.org/51 and set the root to TEDLIUM_release-3")  # fmt: skip
    return told_apart(entry for split in SPLITS for entry in _split(top / split, root, language, split))


def _split(folder: Path, root: Path, language: str, split: str) -> Iterator[Entry]:
    talks = sorted(path.stem for path in (folder / "stm").glob("*.stm"))
    for talk in talks:
        for line in lines(folder / "stm" / f"{talk}.stm"):
            if line.problem or (line.text.strip() and not line.text.startswith(";;")):  # NIST's comments
                yield _segment(line, talk, folder, root, language, split)
    for path in sorted((folder / "sph").glob("*.sph")):
        if path.stem not in set(talks):
            yield Entry(path.stem, path, "", "", language, split, problem="audio without a transcript")


def _segment(line: Line, talk: str, folder: Path, root: Path, language: str, split: str) -> Entry:
    id, cells = f"{talk}-{line.number - 1}", STM.fullmatch(line.text)  # lines count from 0, as in lhotse
    if line.problem or cells is None:
        problem = line.problem or "no line of STM; expected talk, channel, speaker, start, end, labels and words"
        return Entry(id, None, "", "", language, split, problem=problem)
    named, _, speaker, begin, until, labels, words = cells.groups()
    audio, problem = located(str((folder / "sph").relative_to(root) / f"{named}.sph"), root)
    start, wrong = number(begin, "start")
    end, after = number(until, "end", 0.0 if start is None else start + 1e-6)
    text = spoken(words)
    ignored = words.strip().lower() == IGNORED
    empty = f"no words: {words[:80]}" if words.strip() else "the text is empty"
    problems = [problem, wrong, after, "a passage that is not transcribed: " + IGNORED if ignored else "" if text else empty]
    unknown = len(re.findall(r"<unk>", words))
    columns = ({"labels": labels} if labels else {}) | ({"unknown_words": str(unknown)} if unknown else {})
    duration = None if start is None or end is None else round(end - start, 8)
    return Entry(id, audio, "" if ignored else text, speaker, language, split, duration, start,
                 problem="; ".join(filter(None, problems)), columns=columns)  # fmt: skip


def spoken(words: str) -> str:
    """The words of a transcript as they are heard.

    >>> spoken("so it 's the(2) {NOISE} <unk> best")
    "so it's the best"
    """
    words = re.sub(r"\{[^{}]*\}|\[[^\[\]]*\]|<[^<>]*>|(?<=\w)\(\d+\)", " ", words)
    words = " ".join(words.split())
    return re.sub(r"(?<=\w) (?='\w)", "", words)
