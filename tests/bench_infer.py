"""What workers gain over one process, and whether the driver's memory grows with the number of clips.

    python tests/bench_infer.py [--clips 2000] [--many 100000] [--only speed|memory]

Speed: Whisper tiny.en over the real prompts, repeated under other ids; one process with one thread and with a thread for each
core, and as many workers of one thread, in bf16; seconds of audio a second, of workers with and without the start of Ray and
the loading of the model. Memory: a tenth and the whole of many clips, each read and checked, through a family that answers at
once; the driver's peak and that of all processes (proportional, shared pages once).
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from bench_ingest import Meter
from torch import nn

from speechlab import corpora, decoding, infer, models, pool
from speechlab.config import EvaluationConfig
from speechlab.models import Hypothesis, weights


class Fake(nn.Module):
    """Answers at once."""

    contexts = ("clip",)

    def __init__(self, folder: str | Path, language: str = "en", config: Any = None) -> None:
        super().__init__()

    def transcribe(self, batch: Any, *, context: str | None = None, fallback: bool = True) -> list[Hypothesis]:
        return [Hypothesis(f"{id} of {n:.2f} s", True, n) for id, n in zip(batch.ids, batch.seconds, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clips", type=int, default=2000)
    parser.add_argument("--many", type=int, default=100_000)
    parser.add_argument("--only", choices=("speed", "memory"))
    asked = parser.parse_args()
    cuts = [cut for split in corpora.prepare("prompts").cuts.values() for cut in split]
    with tempfile.TemporaryDirectory() as folder:
        if asked.only != "memory":
            speed(Path(folder) / "speed", cuts, asked.clips)
        if asked.only != "speed":
            grown(Path(folder) / "memory", cuts, asked.many)


def repeated(cuts: list[Any], count: int) -> Iterator[Any]:
    """So many clips, one after another, under ids of their own."""
    for n, cut in zip(range(count), itertools.cycle(cuts)):
        yield cut.with_id(f"{cut.id}-{n // len(cuts)}")


def speed(folder: Path, cuts: list[Any], count: int) -> None:
    found = weights.resolve("whisper", "tiny.en")
    system = infer.System("tiny.en", "whisper", str(found.path), found.sha256, "en")
    seconds = sum(cut.duration for cut in repeated(cuts, count))
    print(f"{count} clips, {seconds:.0f} s", flush=True)
    model, answers = system.load(None, "cpu", ()), {}
    for threads in (1, pool.cores()):
        torch.set_num_threads(threads)
        for _ in decoding.decode(model, cuts[:4]):
            pass
        began = time.perf_counter()
        answers = {a.id: a.hypothesis for part in decoding.decode(model, list(repeated(cuts, count))) for a in part}
        print(f"this process, {threads} threads: {seconds / (time.perf_counter() - began):.1f} s a second", flush=True)
    began = time.perf_counter()
    with infer.Workers(pool.cores(), folder) as workers:
        for name in ("first", "second"):  # the second finds Ray started and the model loaded
            parts = list(workers.decode(system, repeated(cuts, count), name, "0" * 64, EvaluationConfig(), context="silence"))
            took = time.perf_counter() - began
            heard = {a.id: a.hypothesis for part in parts for a in part.answers}
            own = sum(a.duration for part in parts for a in part.answers) / sum(a.seconds for part in parts for a in part.answers)
            others = sum(heard[id] != answers[id] for id in answers)
            print(f"{pool.cores()} workers of a thread, {name} time: {seconds / took:.1f} s a second ({took:.0f} s, {len(parts)} blocks)")
            print(f"  {own:.1f} of one worker; {others} other texts (bf16)", flush=True)
            began = time.perf_counter()


def grown(folder: Path, cuts: list[Any], many: int) -> None:
    models.FAMILIES["fake"] = "bench_infer:Fake"
    (folder / "weights").mkdir(parents=True)
    system = infer.System("fake", "fake", str(folder / "weights"), "0" * 64, "en")
    with infer.Workers(pool.cores(), folder) as workers:
        for count in (1000, many // 10, many):  # the first pays for Ray
            meter, clips, blocks = Meter(), 0, 0
            began = time.perf_counter()
            meter.start()
            for part in workers.decode(system, repeated(cuts, count), str(count), "0" * 64, EvaluationConfig(), context="clip"):
                clips, blocks = clips + len(part.answers), blocks + 1
            meter.over.set()
            meter.join()
            assert clips == count
            took, peak = time.perf_counter() - began, f"{meter.driver / 1e6:.0f} MB, {meter.peak / 1e9:.2f} GB in all"
            print(f"{count} clips, {blocks} blocks: {took:.0f} s; peak memory of the driver {peak}", flush=True)


if __name__ == "__main__":
    main()
