"""What more workers bring, what Ray, events and the tracker cost, and how long finding one's place takes.

    python tests/bench_scaling.py [--steps 6] [--parts 4] [--only workers ray resume]

*workers*: weak scaling of a Conformer-CTC of size S from one to two workers of a thread each, over gloo: two take steps twice
as large. A worker's part of a step are four micro-batches, as in the recipe for LibriSpeech with two workers; with ``--parts 1``
it is one, and nothing evens out that one is larger than the other. Beside them run two workers that know nothing of each other:
what these lose is the machine's (caches, memory, whatever else runs), so both quotients are printed. The three take turns, step
by step; the first step is left out.
*ray*: the quickstart for an epoch by one Ray worker with the tracker on SQLite, and in one process with neither, as
``speechlab train`` would; seconds of the same steps compared, those between start and first step apart. Taken in turns.
*resume*: a plan of a million clips, and a late step of it, asked for first.

About 15 minutes on two cores, which should be quiet: every figure is seconds on the clock.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.distributed as dist
from bench_train import joined, lengths
from turns import Turn, in_turns

from speechlab import cluster, config, corpora, training
from speechlab.batches import Clips
from speechlab.plan import Plan
from speechlab.runs import Run
from speechlab.world import World

SHARE = 60.0  # most seconds of audio in a micro-batch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=6, help="of each worker")
    parser.add_argument("--parts", type=int, default=4, help="micro-batches of each worker in a step")
    parser.add_argument("--repeats", type=int, default=2, help="trainings with and without Ray")
    parser.add_argument("--only", nargs="+", choices=("workers", "ray", "resume"), default=["workers", "ray", "resume"])
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as top:
        if "workers" in asked.only:
            workers(asked.steps, asked.parts, Path(top))
        if "ray" in asked.only:
            ray(asked.repeats, Path(top))
        if "resume" in asked.only:
            resume()


# --- weak scaling --------------------------------------------------------------------------------------------------


def workers(steps: int, parts: int, top: Path) -> None:
    prompts = corpora.prepare("prompts")
    corpus = joined(prompts, 600, top)  # of few clips many micro-batches are small, and one worker waits for the other
    sides = {}
    for name, size, groups in (("one alone", 1, 1), ("two, each for itself", 1, 2), ("two together", 2, 1)):
        folder = top / name.replace(" ", "-")
        folder.mkdir()
        sides[name] = [(worker, index, size, steps, parts, corpus, folder) for index in range(size * groups)]
    rates = {}
    for name, tables in in_turns(sides).items():
        mine = tables[:1] if name == "two together" else tables  # the events of a run speak of all its workers
        rates[name] = sum(t.audio_seconds[1:].sum() / t.step_seconds[1:].sum() for t in mine)
        seconds = np.mean([t.step_seconds[1:].mean() for t in mine])
        print(f"{name}: {rates[name]:.1f} s of audio a second, steps of {seconds:.2f} s", flush=True)
    one, apart, together = rates.values()
    print(f"weak scaling from one to two workers: {together / (2 * one):.1%}, goal at least 92 %; "
          f"the machine itself {apart / (2 * one):.1%}, so working together costs {1 - together / apart:.1%}", flush=True)  # fmt: skip


def worker(turn: Turn, index: int, size: int, steps: int, parts: int, corpus: corpora.Corpus, folder: Path) -> pd.DataFrame:
    """The steps of one of ``size`` workers."""
    torch.set_num_threads(1)
    values = {
        "name": f"worker{index}",
        "question": "How fast?",
        "model": {"family": "conformer", "weights": None, "shape": {"size": "S"}},
        "training": {"epochs": 1, "batch_seconds": size * parts * SHARE, "micro_batches": size * parts},
        "cluster": {"device_seconds": 2 * SHARE},
    }
    made = config.validate(values, "bench")
    start = training.begin(made, Clips.of(corpus))
    world = World()
    if size > 1:
        dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=index, world_size=size)
        world = World(index, size)
        dist.barrier()
    path = folder / f"{index if size == 1 else 0}"
    run = Run.create(made, path) if world.rank == 0 else None
    found = [run.path if run else None]
    if size > 1:
        dist.broadcast_object_list(found)
    events = []
    for event in training.train(made, corpus, str(start.path), Run(found[0]), world):  # type: ignore[arg-type]
        if event["kind"] == "step":
            events.append({name: event[name] for name in ("step", "audio_seconds", "step_seconds")})
        if len(events) == steps:
            break
        if event["kind"] in ("start", "step"):
            turn()
    if size > 1:
        dist.destroy_process_group()
    return pd.DataFrame(events)


# --- Ray, events, tracker ------------------------------------------------------------------------------------------


def ray(repeats: int, top: Path) -> None:
    sides: dict[str, dict[str, Any]] = {
        "in one process": {"cluster": {"workers": 0}, "tracking": {"enabled": False}},
        "Ray and tracker": {"cluster": {"workers": 1}, "tracking": {"enabled": True}},
    }
    base = config.load("configs/quickstart.yaml", ["training.epochs=1"]).model_dump()
    seconds: dict[str, list[Any]] = {name: [] for name in sides}
    for _ in range(repeats):
        for name, values in sides.items():
            made = config.validate({**base, **{section: {**base[section], **fields} for section, fields in values.items()}}, "bench")
            run = Run.create(made, top / "runs")
            began = time.time()
            process = cluster.launch(run)
            assert process is not None
            try:
                if process.wait() != 0:
                    raise RuntimeError((run.path / "driver.log").read_text()[-2000:])
            finally:
                process.terminate()  # it would outlive this one
            table = run.steps()
            first = next(e["time"] for e in run.events() if e["kind"] == "start") - began
            seconds[name].append(table.step_seconds.to_numpy())
            print(f"{name}: {len(table)} steps {table.step_seconds.sum():.1f} s, until the start of training {first:.1f} s, "
                  f"in all {time.time() - began:.1f} s", flush=True)  # fmt: skip
    alone, with_ray = (np.min(rows, axis=0) for rows in seconds.values())  # of each step the quietest
    print(f"Ray, events and tracker over the bare loop: {with_ray.sum() / alone.sum() - 1:+.1%} of the steps' time "
          f"(median of the steps {np.median(with_ray / alone) - 1:+.1%}); goal at most 3 %", flush=True)  # fmt: skip


# --- the place in the plan -----------------------------------------------------------------------------------------


def resume(clips: int = 1_000_000) -> None:
    seconds = lengths(np.random.default_rng(1), clips)
    how: dict[str, Any] = {"seed": 1, "batch_seconds": 960.0, "micro_batches": 8, "context": config.ContextConfig(),
                           "tokens": (4 * seconds).astype(int), "batch_tokens": 11_520}  # fmt: skip
    made, placed = [], []
    for _ in range(3):
        began = time.perf_counter()
        plan = Plan(seconds, **how)
        made.append(time.perf_counter() - began)
        late = plan.steps(100) - 1
        began = time.perf_counter()
        epoch, _step = plan.step(late)
        placed.append(time.perf_counter() - began)
    print(f"{clips:,} clips: plan made in {min(made):.2f} s; its step {late + 1:,}, of epoch {epoch + 1}, "
          f"found in {min(placed):.2f} s; goal under 1 s", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
