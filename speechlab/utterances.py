"""Texts by utterance from anybody's files, joined by id before they are scored.

Read are NIST's trn (``words (speaker-utterance)``), CSV and TSV with a header, JSON lines (as NeMo's manifests), and
Parquet as :mod:`speechlab.evaluation` writes it. Which utterances take part is policy, and never silent: by default a
hypothesis must be there for every reference and for nothing else, where NIST's sclite drops a missing one without a word.

Not covered: trn's alternations and optional words, times of words (ctm, stm).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import pandas as pd

from speechlab.errors import InputError

What = Literal["reference", "hypothesis", "stratum"]

IDS = ("id", "utterance", "utt_id", "utterance_id", "audio_filepath", "path", "file", "file_name", "audio")
TEXTS = {
    "stratum": ("stratum", "group", "condition", "text"),
    "reference": ("reference", "ref", "transcript", "transcription", "sentence", "text"),
    "hypothesis": ("hypothesis", "hyp", "pred_text", "prediction", "recognised", "recognized", "transcript", "text"),
}
SPEAKERS = ("speaker", "speaker_id", "spk", "client_id")
LINE = re.compile(r"(?P<text>.*?)\s*\((?P<id>[^()\s]+)\)\s*")
SYNTAX = re.compile(r"[{}()]|(?<!\S)@(?!\S)")  # of trn: alternations, optional words, nothing said
SHOWN = 5  # ids in a message


@dataclass(frozen=True)
class Texts:
    """What a file says of each utterance.

    Attributes:
        source: The file.
        texts: Text by id, in the file's order.
        speakers: Speaker by id, or None if the file does not say.
    """

    source: str
    texts: dict[str, str]
    speakers: dict[str, str] | None


@dataclass(frozen=True)
class Joined:
    """References and hypotheses of the same utterances, in the references' order.

    Attributes:
        ids: Of the utterances (U).
        references: What was said (U).
        hypotheses: What was recognised (U); empty where it was missing and counts as deleted.
        speakers: Who spoke (U), or None if it is not known.
        missing: References without a hypothesis.
        extra: Hypotheses without a reference, which were left out.
    """

    ids: tuple[str, ...]
    references: tuple[str, ...]
    hypotheses: tuple[str, ...]
    speakers: tuple[str, ...] | None
    missing: tuple[str, ...] = ()
    extra: tuple[str, ...] = ()


def read(path: str | Path, what: What) -> Texts:
    """Read a file by the ending of its name: .trn (and .txt), .csv, .tsv, .jsonl (and .json), .parquet.

    Args:
        path: The file.
        what: Which text is meant, where a table has several; a stratum is a text like any other.

    Raises:
        InputError: if it cannot be read, an id stands twice or is missing, or a table has no column for id or text.
    """
    path = Path(path)
    kind = path.suffix.lower()
    try:
        if kind in (".trn", ".txt"):
            return _trn(path, path.read_text("utf-8-sig").splitlines())
        if kind in (".csv", ".tsv"):
            table = pd.read_csv(path, sep="," if kind == ".csv" else "\t", dtype=str, keep_default_na=False, encoding="utf-8-sig")
        elif kind in (".jsonl", ".json"):
            rows = [json.loads(line) for line in path.read_text("utf-8-sig").splitlines() if line.strip()]
            table = pd.DataFrame(rows)
        elif kind == ".parquet":
            table = pd.read_parquet(path)
        else:
            raise InputError("A file of texts has an unknown ending.", got=path.name, expected=".trn, .csv, .tsv, .jsonl or .parquet")
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError("A file of texts is not there.", got=str(path), expected="a file") from None
    except (OSError, ValueError, RecursionError) as e:  # of decoding, JSON, CSV and Parquet alike
        raise InputError(f"{path.name} cannot be read.", got=str(e).splitlines()[0], expected=f"UTF-8 {kind}") from None
    return _table(path, table, what)


def _trn(path: Path, lines: list[str]) -> Texts:
    rows: list[tuple[str, str]] = []
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith(";;"):
            continue
        match = LINE.fullmatch(line)
        if not match:
            raise InputError(f"Line {number} of {path.name} is no trn.", got=line[:80], expected="words (speaker-utterance)")
        if SYNTAX.search(match["text"]):
            raise InputError(
                f"Line {number} of {path.name} holds alternations or optional words, which are not scored here.",
                got=line[:80],
                expected="plain words",
                do="choose one wording, or score with sclite",
            )
        rows.append((match["id"], match["text"]))
    speakers = {key: re.split("[-_]", key, maxsplit=1)[0] for key, _ in rows} if all(re.search("[-_]", key) for key, _ in rows) else None
    return Texts(str(path), _once(path, rows), speakers)


def _table(path: Path, table: pd.DataFrame, what: What) -> Texts:
    def column(wanted: Iterable[str], about: str) -> str:
        by_name = {str(c).strip().lower(): str(c) for c in table.columns}
        for name in wanted:
            if name in by_name:
                return by_name[name]
        got = ", ".join(map(str, table.columns)) or "no columns"
        raise InputError(f"{path.name} has no column for the {about}.", got=got, expected="one of " + ", ".join(wanted))

    ids, texts = table[column(IDS, "utterance's id")], table[column(TEXTS[what], what)]
    for name, values in (("id", ids), ("text", texts)):
        bad = next((i for i, value in enumerate(values) if not isinstance(value, str)), None)
        if bad is not None:
            raise InputError(f"Row {bad + 1} of {path.name} has no {name}.", got=str(values.iloc[bad]), expected="text")
    found = _once(path, list(zip(ids, texts, strict=True)))
    named = [c for c in table.columns if str(c).strip().lower() in SPEAKERS]
    return Texts(str(path), found, dict(zip(ids, map(str, table[named[0]]), strict=True)) if named else None)


def _once(path: Path, rows: list[tuple[str, str]]) -> dict[str, str]:
    found: dict[str, str] = {}
    for key, text in rows:
        if key in found:
            raise InputError(f"An utterance stands twice in {path.name}.", got=key, expected="each id once")
        found[key] = text
    if not found:
        raise InputError(f"{path.name} holds no utterance.", got="0 rows", expected="at least one")
    return found


def join(reference: Texts, hypothesis: Texts, missing: str = "refuse", extra: str = "refuse") -> Joined:
    """Put hypotheses beside their references.

    Args:
        reference: What was said; its order and its speakers count.
        hypothesis: What was recognised.
        missing: Of references without a hypothesis: ``refuse``; ``deleted`` counts all their words as missed, which is what
            a system that gave no answer deserves; ``leave`` leaves them out.
        extra: Of hypotheses without a reference: ``refuse`` or ``leave`` them out.

    Raises:
        InputError: if some are missing or too many and that is refused, no utterance is left, or a policy is not known.
    """
    if missing not in ("refuse", "deleted", "leave") or extra not in ("refuse", "leave"):
        got = f"--missing {missing} --extra {extra}"
        raise InputError("Unknown policy.", got=got, expected="--missing refuse, deleted or leave; --extra refuse or leave")
    absent = tuple(key for key in reference.texts if key not in hypothesis.texts)
    beyond = tuple(key for key in hypothesis.texts if key not in reference.texts)
    if absent and missing == "refuse":
        raise InputError(
            f"{len(absent)} of {len(reference.texts)} utterances have no hypothesis.",
            got=some(absent),
            expected=f"an answer in {hypothesis.source} for each in {reference.source}",
            do="--missing deleted counts their words as missed, --missing leave leaves them out",
        )
    if beyond and extra == "refuse":
        raise InputError(
            f"{len(beyond)} hypotheses have no reference.",
            got=some(beyond),
            expected=f"ids of {reference.source}",
            do="--extra leave leaves them out",
        )
    ids = tuple(key for key in reference.texts if missing == "deleted" or key in hypothesis.texts)
    if not ids:
        raise InputError("The two files share no utterance.", got=some(absent), expected=f"ids as in {hypothesis.source}: {some(beyond)}")
    return Joined(
        ids,
        tuple(reference.texts[key] for key in ids),
        tuple(hypothesis.texts.get(key, "") for key in ids),
        tuple(reference.speakers[key] for key in ids) if reference.speakers else None,
        absent,
        beyond,
    )


def ordered(joined: Joined, ids: Sequence[str]) -> Joined:
    """The same utterances in the order of ``ids``."""
    at = {key: i for i, key in enumerate(joined.ids)}
    chosen = [at[key] for key in ids]
    columns = {name: tuple(getattr(joined, name)[i] for i in chosen) for name in ("references", "hypotheses")}
    return replace(joined, ids=tuple(ids), speakers=tuple(joined.speakers[i] for i in chosen) if joined.speakers else None, **columns)


def some(ids: Sequence[str]) -> str:
    """The first few, for a message."""
    return ", ".join(ids[:SHOWN]) + (" …" if len(ids) > SHOWN else "")


def trn(ids: Sequence[str], texts: Sequence[str], speakers: Sequence[str] | None = None) -> str:
    """Texts as NIST's trn, for those who use sclite.

    Args:
        ids: Of the utterances; what trn cannot hold in an id becomes ``_``.
        texts: Their words; brackets and lone ``@``, which are syntax there, are left out.
        speakers: Set before the id, so that ``-i spu_id`` finds them; None leaves the id alone.
    """
    lines = []
    for i, (key, text) in enumerate(zip(ids, texts, strict=True)):
        words = [word for word in SYNTAX.sub("", text).split() if word != "@"]  # which a bracket beside it had kept from being alone
        lines.append(" ".join([*words, f"({trn_id(key, speakers[i] if speakers else None)})"]) + "\n")
    return "".join(lines)


def trn_id(key: str, speaker: str | None) -> str:
    """An utterance's id as :func:`trn` writes it."""
    name = re.sub(r"[\s()]", "_", key)
    return name if speaker is None else re.sub(r"[\s()_-]", ".", speaker) + "-" + name
