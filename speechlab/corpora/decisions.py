"""What people decided about transcripts: accept, fix or drop, a line of JSON each, in a file of theirs.

Notable: a decision remembers the transcript it was made about and is not applied to another; nothing is overwritten, the
last line about a clip counts.

Not covered: merging the files of several people (put one behind the other).
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from speechlab import fetch
from speechlab.corpora.base import SPLITS, Corpus, SetAside, changed
from speechlab.errors import InputError, did_you_mean

VERDICTS = {
    "accept": "the transcript is right",
    "fix": "the text given is what is said",
    "drop": "the clip is of no use",
}
FIELDS = ("id", "verdict", "text", "reference")


@dataclass(frozen=True)
class Decision:
    """What a person found when listening to a clip.

    Attributes:
        id: Of the clip.
        verdict: One of :data:`VERDICTS`.
        text: What is said, for a fix; empty otherwise.
        reference: The transcript it was made about; empty applies to any.

    Raises:
        InputError: if a verdict is unknown, a fix says nothing or another verdict says something, or a text holds
            control characters.
    """

    id: str
    verdict: str
    text: str = ""
    reference: str = ""

    def __post_init__(self) -> None:
        if self.verdict not in VERDICTS:
            raise InputError("A verdict is not known.", got=f"{self.verdict!r} for {self.id!r}", do=did_you_mean(self.verdict, VERDICTS))
        if (self.verdict == "fix") != bool(self.text.strip()):
            expected = "the words that are said" if self.verdict == "fix" else "no text: only a fix has one"
            raise InputError(f'A decision to "{self.verdict}" has the wrong text.', got=f"{self.text!r} for {self.id!r}", expected=expected)
        for value in (self.id, self.text, self.reference):
            if bad := next((c for c in value if unicodedata.category(c) in {"Cc", "Cs"}), ""):
                raise InputError(
                    "A decision holds a control character.", got=f"U+{ord(bad):04X} in {value!r}", expected="plain text on one line"
                )
        if not self.id:
            raise InputError("A decision names no clip.", got=repr(self.id), expected="the id of a clip")


def read(path: Path) -> dict[str, Decision]:
    """The decisions of a file by clip, of several about one clip the last.

    Args:
        path: Lines of JSON with ``id``, ``verdict`` and where they are wanted ``text`` and ``reference``; a file that is not
            there holds none.

    Raises:
        InputError: naming the line, if one is no such decision.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return {}
    except OSError as e:
        raise InputError("The decisions cannot be read.", got=f"{path}: {e.strerror}", expected="a readable file") from None
    found = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line.decode("utf-8"))
            if not isinstance(row, dict) or not all(isinstance(value, str) for value in row.values()) or not {"id", "verdict"} <= set(row):
                raise InputError("It is no object of texts with id and verdict.", got=line.decode("utf-8")[:200])
            if unknown := set(row) - set(FIELDS):
                raise InputError("It has unknown fields.", got=", ".join(sorted(unknown)), expected=", ".join(FIELDS))
            decision = Decision(**row)
        except (ValueError, RecursionError) as e:  # JSON, UTF-8, or InputError
            raise InputError(f"Line {number} of {path.name} is no decision: {e}", do="mend or delete the line") from None
        found[decision.id] = decision
    return found


def decide(path: Path, decision: Decision) -> None:
    """Add a decision to a file; an earlier one about the same clip no longer counts, and stays on record.

    Args:
        path: As for :func:`read`; made if it is not there.
        decision: What was found.

    Raises:
        InputError: if the file holds anything else, or cannot be written.
    """
    line = json.dumps({name: value for name, value in asdict(decision).items() if value}, ensure_ascii=False).encode() + b"\n"
    with fetch.locked(path):
        read(path)
        before = path.read_bytes() if path.exists() else b""
        part = path.with_name(path.name + ".part")
        part.write_bytes(before + (b"\n" if before and not before.endswith(b"\n") else b"") + line)
        part.replace(path)


@dataclass(frozen=True)
class Applied:
    """Cuts after decisions, and what became of those.

    Attributes:
        cuts: In order, with fixed texts, without those dropped.
        set_aside: The dropped ones.
        fixed: Ids whose text was replaced. The split stays, so the overlap with the test texts is to be counted anew.
        stale: Ids whose transcript is no longer the one that was decided about; they are left as they are.
        unknown: Ids that no cut has.
    """

    cuts: list[Any]
    set_aside: list[SetAside]
    fixed: list[str]
    stale: list[str]
    unknown: list[str]


def apply(cuts: Sequence[Any], decisions: dict[str, Decision]) -> Applied:
    """Carry out decisions; the cuts given are not changed.

    Args:
        cuts: lhotse cuts with one supervision each.
        decisions: From :func:`read`.
    """
    kept, set_aside, fixed, stale = [], [], [], []
    for cut in cuts:
        decision = decisions.get(cut.id)
        (said,) = cut.supervisions
        if decision and decision.reference and decision.reference != said.text:
            stale.append(cut.id)
        elif decision and decision.verdict == "drop":
            set_aside.append(SetAside(cut.id, "dropped by a decision about its transcript"))
            continue
        elif decision and decision.verdict == "fix":
            fixed.append(cut.id)
            cut = replace(cut, supervisions=[replace(said, text=decision.text)])
        kept.append(cut)
    return Applied(kept, set_aside, fixed, stale, sorted(set(decisions) - {cut.id for cut in cuts}))


def decided(corpus: Corpus, path: Path) -> Corpus:
    """A corpus with the decisions of a file carried out: texts fixed, clips dropped, the manifest hashed anew.

    Raises:
        InputError: if the file is not there, a line is no decision, or a split is left empty.
    """
    if not path.is_file():
        raise InputError("The file of decisions is not there.", got=str(path), expected="what a review wrote",
                         do="set corpus.decisions, or leave it out")  # fmt: skip
    made, cuts, dropped, fixed, stale = read(path), {}, [], 0, 0
    known = {cut.id for split in SPLITS for cut in corpus.cuts[split]}
    for split in SPLITS:
        applied = apply(list(corpus.cuts[split]), {id: decision for id, decision in made.items() if id in known})
        cuts[split] = applied.cuts
        dropped += applied.set_aside
        fixed += len(applied.fixed)
        stale += len(applied.stale)
    counted = {"fixed": fixed, "dropped": len(dropped), "stale": stale, "unknown": len(set(made) - known)}
    return changed(corpus, cuts, dropped, {"decisions": counted})
