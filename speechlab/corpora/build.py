"""From entries to a corpus: each clip inspected on its own, all judged together, and what is kept written down.

Notable: clips are looked at by as many processes as there are cores, and one that brings its process down is set aside
like any other. The findings, a line of JSON for every entry, are kept beside the corpus. Clips that lie as whole
16 kHz mono files are left where they are; of the rest, 16-bit FLAC is written into the cache.

Not covered: corpora of more than some hundred thousand clips, which :mod:`speechlab.ingest` writes as shards.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from speechlab import audio, fetch, pool
from speechlab.config import CorpusConfig
from speechlab.corpora.base import PCM, Built, Corpus, Entry, SetAside, assemble, clip, overlap, prepared
from speechlab.corpora.check import RULES, SET_ASIDE, Finding, Judge, Splitter, counts, inspect
from speechlab.errors import InputError
from speechlab.progress import track
from speechlab.text import normaliser
from speechlab.units import SAMPLE_RATE

SPEAKERS = 10  # from so many on, a corpus without splits is split by speaker
SHARE = 0.1  # of test, and of dev, in such a split
FEW_ROWS, LARGER_SHARE = 200, 0.2  # below so many rows a tenth might be nothing
LOSSLESS = ("WAV", "FLAC", "AIFF", "NIST")  # what is read where it lies

Entries = Callable[[], Iterable[Entry]]  # may be asked more than once
Spoken = TypeVar("Spoken", Entry, Finding)


@dataclass
class Census:
    """What one pass over the entries tells before any audio is read.

    Attributes:
        rows: How many entries there are.
        splits: Which splits the corpus itself names, and how often.
        speakers: Who speaks.
        unnamed: Entries without a speaker.
        digest: Over every entry and the size and time of its file: the name of what is kept.
    """

    rows: int = 0
    splits: dict[str, int] = field(default_factory=dict)
    speakers: set[str] = field(default_factory=set)
    unnamed: int = 0
    digest: str = ""

    @classmethod
    def of(cls, entries: Iterable[Entry]) -> Census:
        """Count and hash."""
        census, digest = cls(), hashlib.sha256()
        for entry in entries:
            census.rows += 1
            census.splits[entry.split] = census.splits.get(entry.split, 0) + 1
            census.unnamed += not entry.speaker
            census.speakers.add(entry.speaker)
            sound = hashlib.sha256(entry.audio).hexdigest() if isinstance(entry.audio, bytes) else _stamp(entry.audio)
            digest.update(repr((replace(entry, audio=None), str(sound))).encode("utf-8", "surrogatepass"))
        census.digest = digest.hexdigest()
        return census

    @property
    def rule(self) -> str:
        """How splits come about, in words."""
        named = {split for split in self.splits if split}
        if {"train", "dev", "test"} <= named:
            return "the corpus's own" + (", rows that name none are train" if "" in self.splits else "")
        by = "speaker" if self._by_speaker else "normalised text"
        shares = f"SHA-256 of the {by}: " + ", ".join(f"{split} {self._share:.0%}" for split in ("test", "dev") if split not in named)
        return shares + (f"; {', '.join(sorted(named))} are the corpus's own" if named else "")

    @property
    def _share(self) -> float:
        return SHARE if self.rows >= FEW_ROWS else LARGER_SHARE

    @property
    def _by_speaker(self) -> bool:
        return not self.unnamed and len(self.speakers) >= SPEAKERS

    def split(self, entry: Spoken) -> Spoken:
        """The entry, or finding, with a split: its own, or one that follows from a hash, so that clips never move when others come."""
        missing = [split for split in ("test", "dev") if split not in self.splits]
        if entry.split in {"dev", "test"} or not missing:
            return replace(entry, split=entry.split or "train")
        key = entry.speaker if self._by_speaker else normaliser("basic")(entry.text)
        # salted: what was chosen from another corpus by the hash of its text would all fall to one side
        place = int.from_bytes(hashlib.sha256(f"own split:{key}".encode("utf-8", "surrogatepass")).digest()[:8], "big") / 2**64
        chosen = dict(enumerate(missing)).get(int(place // self._share), "train")
        return replace(entry, split=chosen)


def examine(
    entries: Entries, config: CorpusConfig, *, folder: Path | None = None, splitter: Splitter | None = None, census: Census | None = None
) -> Iterator[tuple[Entry, Finding]]:
    """Inspect and judge every entry.

    Args:
        entries: Gives them, twice where no census is given.
        config: With the limits.
        folder: Gets ``audio/`` with what must be written; None writes nothing.
        splitter: Cuts long clips; it runs in this process, as models do.
        census: Of the entries, if it was taken already.

    Yields:
        Each entry, without the bytes of its audio, and its final finding, in order.
    """
    census = census or Census.of(entries())
    judge, found = Judge(config), []
    work = partial(_work, config=config, folder=folder, splitter=splitter)
    workers = 0 if splitter is not None else pool.workers_for(census.rows)
    rows = pool.over(work, map(census.split, entries()), workers)
    for entry, finding in track(rows, "checking clips", census.rows):
        if isinstance(finding, pool.Crashed):
            finding = Finding.crashed(entry)
        judge.show(finding)
        found.append((replace(entry, audio=None) if isinstance(entry.audio, bytes) else entry, finding))
    for entry, finding in found:
        final = judge.verdict(finding)
        if folder is not None and final.verdict == SET_ASIDE != finding.verdict:
            stored(folder, entry).unlink(missing_ok=True)
        yield entry, final


def prepare(config: CorpusConfig, entries: Entries, licence: str, attribution: str) -> Corpus:
    """A corpus from entries, kept in the cache until an entry, a file's size or time, or a limit changes.

    Args:
        config: Name, language, limits.
        entries: Gives them.
        licence: Of the recordings.
        attribution: Whom to name.

    Raises:
        InputError: if a split is left empty; the findings say why.
    """
    if config.check.long == "split":
        raise InputError("Long clips are cut when a corpus is ingested, not when it is read.",
                         got="corpus.check.long: split", expected="drop",
                         do="run speechlab corpus ingest with --set check.long=split, and train on its shards")  # fmt: skip
    census = Census.of(entries())
    limits = config.model_dump(include={"language", "max_seconds", "check"})
    key = hashlib.sha256(f"{RULES}\n{census.digest}\n{json.dumps(limits, sort_keys=True)}".encode()).hexdigest()[:12]

    def make(folder: Path) -> Built:
        cuts, aside, rows = [], [], []
        for entry, finding in examine(entries, config, folder=folder, census=census):
            rows.append(finding.row())
            if finding.verdict == SET_ASIDE:
                aside.append(SetAside(entry.id, finding.why))
            else:
                path = stored(folder, entry)
                ((cut, _),) = cuts_of(entry, finding, str(path.relative_to(folder)) if path.exists() else str(entry.audio))
                cuts.append(cut)
        write_findings(folder / "findings.jsonl", rows)
        notes = {
            "rows": census.rows,
            "split_rule": census.rule,
            "shared_with_test_text": len(overlap(cuts, normaliser("basic"))),
            "checked": counts(rows),
        }
        return cuts, aside, notes

    kept = fetch.cache() / "corpora" / config.name / key
    return assemble(config.name, config.language, licence, attribution, prepared(kept, make), config.max_seconds, config.limit)


def cuts_of(
    entry: Entry, finding: Finding, where: str = "", wave_N: audio.Wave | None = None, named: Callable[[str], str] = str
) -> Iterator[tuple[Any, Any]]:
    """The clips that an accepted entry became: one, or its parts, each with its samples.

    Args:
        entry: As found.
        finding: Not set aside.
        where: The file of a clip that is whole.
        wave_N: What :func:`speechlab.corpora.check.inspect` gave; parts cannot be described without it.
        named: What the clips' ids become.
    """
    for id, first, stop, text in finding.pieces:
        part_N = None if wave_N is None else wave_N[first:stop]
        digest = PCM + audio.pcm_sha256(part_N) if finding.parts and part_N is not None else finding.digest
        cut = clip(named(id), where, stop - first, text, finding.speaker, finding.language, finding.split, digest, entry.columns)
        if isinstance(entry.audio, Path) and where != str(entry.audio):
            cut.custom["source"] = {"path": str(entry.audio), "rate": finding.rate, "start": (entry.start or 0.0) + first / SAMPLE_RATE}
        yield cut, part_N


def stored(folder: Path, entry: Entry) -> Path:
    """Where the audio of an entry is written: ids are from outside, so the name is their hash."""
    name = hashlib.sha256(entry.id.encode("utf-8", "surrogatepass")).hexdigest()[:24]
    return folder / "audio" / name[:2] / f"{name}.flac"


def title(config: CorpusConfig) -> str:
    """A file name for a corpus: its name, language, voice and band, and for the user's own the folder's name."""
    parts = [config.name, config.language, config.voice or "", config.band if config.band != "wide" else "", Path(config.root or "").name]
    return "-".join(re.sub(r"[^\w.]+", "_", part) for part in parts if part)


def write_findings(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """One line of JSON for every entry, to be filtered with whatever reads that."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    with part.open("w", encoding="utf-8") as f:
        f.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    part.replace(path)


def _work(entry: Entry, config: CorpusConfig, folder: Path | None, splitter: Splitter | None) -> Finding:
    """Inspect an entry and write its audio, where it cannot be read as it lies."""
    finding, wave_N = inspect(entry, config, splitter)
    if folder is not None and wave_N is not None and not _as_it_lies(entry, finding):
        path = stored(folder, entry)
        path.parent.mkdir(parents=True, exist_ok=True)
        audio.save_flac(path, wave_N)
    return finding


def _as_it_lies(entry: Entry, finding: Finding) -> bool:
    native = isinstance(entry.audio, Path) and entry.start is None and (finding.rate, finding.channels) == (SAMPLE_RATE, 1)
    return native and finding.container in LOSSLESS and all("text" in repair for repair in finding.repairs)


def _stamp(path: Path | None) -> str:
    try:
        state = path.stat() if path is not None else None
    except (OSError, ValueError):
        state = None
    return "" if state is None else f"{path} {state.st_size} {state.st_mtime_ns}"
