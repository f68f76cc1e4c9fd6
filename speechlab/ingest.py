"""Large corpora into shards: decoded, checked, hashed and cut at pauses on all cores of a machine or a cluster.

Notable: a Ray Data pipeline over blocks of entries. A block's shard and findings appear when they are whole, so a run
that was stopped, or whose node died, goes on with the blocks that are missing. A clip that kills its worker twice is
set aside. What has to be known of the whole corpus (duplicates, texts across splits) is judged at the end from the
findings, in memory of some hundred bytes a clip; all else is bounded by a block.

Not covered: sources that only one node can read, reshuffling between shards.
"""

from __future__ import annotations

import base64
import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from functools import lru_cache, partial
from itertools import islice
from pathlib import Path
from typing import Any

from speechlab import head, pool
from speechlab.config import CorpusConfig
from speechlab.corpora import shards
from speechlab.corpora.base import Entry
from speechlab.corpora.build import Census, Entries, cuts_of, write_findings
from speechlab.corpora.check import RULES, SET_ASIDE, Finding, Judge, Splitter, counts, inspect
from speechlab.errors import InputError
from speechlab.progress import bar
from speechlab.runs import write_atomic

BLOCK = 500  # entries of a shard: some tens of MB of FLAC
DEATHS = 2  # of a worker over the same entry, after which the entry is to blame


def ingest(
    config: CorpusConfig,
    entries: Entries,
    out: Path,
    *,
    licence: str = "",
    attribution: str = "",
    address: str | None = None,
    block: int = BLOCK,
    splitter: Callable[[], Splitter] | None = None,
) -> dict[str, dict[str, int]]:
    """Write a corpus as shards, going on where an earlier call stopped.

    Args:
        config: Language and limits.
        entries: Gives every row of the corpus.
        out: The folder of the shards; on a cluster, one that all nodes see.
        licence: Of the recordings.
        attribution: Whom to name.
        address: Of a Ray cluster; None uses the cores of this machine.
        block: Entries of a shard.
        splitter: Makes what cuts long clips, once in each worker.

    Returns:
        Counts as by :func:`speechlab.corpora.check.counts`.

    Raises:
        InputError: if the folder holds another corpus' shards, or this one's under other limits.
    """
    out.mkdir(parents=True, exist_ok=True)
    limits = config.model_dump(mode="json", include={"language", "max_seconds", "check"})
    state = {"rules": RULES, "block": block, "limits": limits, "language": config.language, "licence": licence, "attribution": attribution}
    census = _spool(entries, out, state, block)
    blocks = range(-(-census.rows // block))
    pending = [number for number in blocks if not _findings(out, number).exists()]
    with bar("ingesting clips", census.rows) as advance:
        done = census.rows - sum(min(block, census.rows - number * block) for number in pending)
        advance(done, census.rows)
        for rows in _run(pending, partial(_shard, out=str(out), config=config, splitter=splitter), address):
            done += rows
            advance(done, census.rows)
    return _finish(out, config, census, state, blocks)


def _run(pending: list[int], work: Callable[[dict[str, Any]], dict[str, Any]], address: str | None) -> Iterator[int]:
    """Do every pending block; yields how many entries each had, as they are done."""
    if not pending:
        return
    head.start(address, cores=pool.cores())
    import ray
    import ray.data  # configures its own logging, to the terminal

    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.enable_operator_progress_bars = False
    try:
        blocks = ray.data.from_items([{"block": number} for number in pending], override_num_blocks=len(pending))
        # a worker that a clip brings down is started again without end, and finds in the block's journal whom to leave out
        for row in blocks.map(work, num_cpus=1).iter_rows():
            yield int(row["rows"])
    finally:
        ray.shutdown()


def _shard(row: dict[str, Any], out: str, config: CorpusConfig, splitter: Callable[[], Splitter] | None) -> dict[str, Any]:
    """Inspect the entries of one block and write its shard."""
    folder, number = Path(out), int(row["block"])
    journal = folder / "entries" / f"{number:06d}.at"
    try:
        deaths = json.loads(journal.read_text())
    except (OSError, ValueError):
        deaths = {}
    rows = []
    with shards.Writer(folder, number) as shard:
        for index, entry in enumerate(_entries(folder, number)):
            key = str(index)
            if deaths.get(key, 0) >= DEATHS:
                finding, wave_N = Finding.crashed(entry), None
            else:
                journal.write_text(json.dumps(deaths | {key: deaths.get(key, 0) + 1}))
                finding, wave_N = inspect(entry, config, _made(splitter) if splitter else None)
            rows.append(finding.row())
            if wave_N is not None:
                for cut, part_N in cuts_of(entry, finding, wave_N=wave_N, named=shards.member):
                    shard.write(cut, part_N)
    write_findings(_findings(folder, number), rows)
    journal.unlink(missing_ok=True)
    return {"rows": len(rows)}


def _finish(out: Path, config: CorpusConfig, census: Census, state: dict[str, Any], blocks: range) -> dict[str, dict[str, int]]:
    """Judge all findings, then list the clips that stay."""

    def read(number: int) -> Iterator[Finding]:
        with _findings(out, number).open(encoding="utf-8") as f:
            yield from (census.split(Finding.of(json.loads(line))) for line in f)

    judge, names = Judge(config), set[str]()
    for number in blocks:
        for finding in read(number):
            judge.show(finding)

    def judged(number: int) -> Iterator[Finding]:
        for finding in map(judge.verdict, read(number)):
            name = shards.member(finding.id)
            if finding.verdict != SET_ASIDE and name in names:
                finding = replace(finding, verdict=SET_ASIDE, why="the id of another clip, which is kept", parts=())
            names.add(name)
            yield finding

    def listed() -> Iterator[dict[str, Any]]:
        with part.open("w", encoding="utf-8") as f:
            for number in blocks:
                keep: dict[str, dict[str, Any]] = {}
                for finding in judged(number):
                    f.write(json.dumps(finding.row(), ensure_ascii=False) + "\n")
                    if finding.verdict != SET_ASIDE:
                        keep |= {shards.member(id): {"split": finding.split} for id, *_ in finding.pieces}
                yield from shards.list_clips(out, number, keep)

    part = out / "findings.jsonl.part"
    clips = shards.write_listing(out, listed())
    part.replace(out / "findings.jsonl")
    with (out / "findings.jsonl").open(encoding="utf-8") as f:
        total = counts(map(json.loads, f))
    notes = {"rows": census.rows, "split_rule": census.rule, "checked": total, "clips": clips}
    write_atomic(out / shards.STATE, json.dumps({**state, "digest": census.digest, "notes": notes}, indent=1, ensure_ascii=False).encode())
    return total


def _spool(entries: Entries, out: Path, state: dict[str, Any], block: int) -> Census:
    """Write the entries down block by block, so that a worker reads its own and nothing else."""
    census, kept = Census.of(entries()), out / "entries" / "state.json"
    now = json.loads(json.dumps({**state, "digest": census.digest}))
    if kept.exists():
        if (before := json.loads(kept.read_text("utf-8"))) != now:
            differs = ", ".join(sorted(key for key in now if before.get(key) != now[key]))
            raise InputError("The folder holds other shards.", got=f"{out}: another {differs}",
                             expected="an empty folder, or the same corpus",
                             do="name another folder, or delete this one to start over")  # fmt: skip
        return census
    kept.parent.mkdir(exist_ok=True)
    rows = iter(entries())
    for number in range(-(-census.rows // block)):
        lines = "".join(json.dumps(_plain(entry), ensure_ascii=True) + "\n" for entry in islice(rows, block))
        write_atomic(kept.parent / f"{number:06d}.jsonl", lines.encode())
    write_atomic(kept, json.dumps(now, indent=1).encode())
    return census


def _plain(entry: Entry) -> dict[str, Any]:
    sound: dict[str, str] = {}
    if isinstance(entry.audio, bytes):
        sound["bytes"] = base64.b64encode(entry.audio).decode()
    elif entry.audio is not None:
        sound["path"] = str(entry.audio)
    return {**asdict(replace(entry, audio=None)), "audio": sound}


def _entries(folder: Path, number: int) -> Iterator[Entry]:
    with (folder / "entries" / f"{number:06d}.jsonl").open(encoding="utf-8") as f:
        for row in map(json.loads, f):
            sound = row.pop("audio")
            path = Path(sound["path"]) if "path" in sound else None
            yield Entry(**row, audio=base64.b64decode(sound["bytes"]) if "bytes" in sound else path)


def _findings(folder: Path, number: int) -> Path:
    return folder / "entries" / f"{number:06d}.findings.jsonl"


@lru_cache(maxsize=1)
def _made(splitter: Callable[[], Splitter]) -> Splitter:
    return splitter()
