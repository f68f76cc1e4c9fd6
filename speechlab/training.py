"""The one loop: a generator of events that runs with or without Ray.

Each step is the plan's (:mod:`speechlab.plan`), its loss weighted by tokens over all its micro-batches,
so neither accumulation nor the number of workers changes the objective. The loop finds its place
in the run directory by itself: called again after any interruption it goes on from the newest intact
checkpoint, and what it does next depends on nothing but (config, clips, step).

Not covered yet: fp16 with a scaler, gradient checkpointing, EMA, early stopping, memory probing.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import psutil
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from speechlab import audio, checkpoints, corpora, decoding, models, optim, scoring
from speechlab.augment import Augmenter
from speechlab.batches import Clip, feed
from speechlab.config import Experiment
from speechlab.errors import InputError
from speechlab.features import HOP
from speechlab.models import weights
from speechlab.plan import Micro, Plan, Step
from speechlab.runs import Event, Run, write_atomic
from speechlab.text import normaliser
from speechlab.units import SAMPLE_RATE, TOKENS_PER_SECOND

SAMPLES = 6  # validation clips that the board shows and plays


@dataclass(frozen=True)
class World:
    """This worker among the workers.

    Attributes:
        rank: From 0; rank 0 writes checkpoints and events.
        size: All workers.
        device: Torch device of this one.
    """

    rank: int = 0
    size: int = 1
    device: str = "cpu"

    def sum(self, *values: float) -> list[float]:
        """Each value summed over workers: one collective, and a barrier."""
        if self.size == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(total)
        return total.tolist()

    def gather(self, rows: list[Any]) -> list[Any]:
        """The rows of all workers, on every worker."""
        if self.size == 1:
            return rows
        parts: list[Any] = [None] * self.size
        dist.all_gather_object(parts, rows)
        return [row for part in parts for row in part]


@dataclass(frozen=True)
class Clips:
    """The training clips by index and epoch: what :func:`speechlab.batches.feed` loads from.

    Attributes:
        cuts: In the plan's order.
        augmenter: What happens to them on the way; None leaves them as they are.
    """

    cuts: tuple[Any, ...]
    augmenter: Augmenter | None = None

    @classmethod
    def of(cls, corpus: corpora.Corpus, experiment: Experiment | None = None) -> Clips:
        """The train split in the order of its ids, which is the plan's, with an experiment's augmentation."""
        asked = experiment is not None and any(value is not None for value in vars(experiment.augment).values())
        augmenter = Augmenter(experiment.augment, experiment.seed) if asked and experiment else None
        return cls(tuple(sorted(corpus.cuts["train"], key=lambda c: c.id)), augmenter)

    def __call__(self, index: int, epoch: int = 0) -> Clip:
        """A clip as an epoch hears it."""
        cut = self.cuts[index]
        wave_N = corpora.load_audio(cut)
        if self.augmenter is None:
            return Clip(cut.id, cut.supervisions[0].text, wave_N)
        wave_N = self.augmenter(wave_N, cut.id, epoch)
        masks = self.augmenter.masks(cut.id, epoch, len(wave_N) // HOP)
        return Clip(cut.id, cut.supervisions[0].text, wave_N, masks)

    @property
    def durations(self) -> list[float]:
        """Seconds of each as recorded."""
        return [cut.duration for cut in self.cuts]

    def seconds(self, index: int, epoch: int) -> float:
        """Seconds of a clip as an epoch hears it."""
        cut = self.cuts[index]
        if self.augmenter is None:
            return float(cut.duration)
        return self.augmenter.samples(round(cut.duration * SAMPLE_RATE), cut.id, epoch) / SAMPLE_RATE

    def stretched(self, epoch: int) -> list[float]:
        """Seconds of each as an epoch hears them."""
        return [self.seconds(i, epoch) for i in range(len(self.cuts))]

    @property
    def texts(self) -> list[str]:
        """Transcript of each."""
        return [cut.supervisions[0].text for cut in self.cuts]


def plan_for(experiment: Experiment, clips: Clips, tokens: Sequence[int] | None = None) -> Plan:
    """The plan of an experiment over its training clips.

    Args:
        experiment: The config.
        clips: The training clips.
        tokens: Label tokens of each; None has the model that the config names count them.
    """
    t = experiment.training
    return Plan(
        clips.durations,
        seed=experiment.seed,
        batch_seconds=t.batch_seconds,
        micro_batches=t.micro_batches,
        context=experiment.context,
        tokens=_count_tokens(experiment, clips.texts) if tokens is None else tokens,
        batch_tokens=t.batch_tokens or round(TOKENS_PER_SECOND * t.batch_seconds),
        stretched=clips.stretched if experiment.augment.speed else None,
    )


def _count_tokens(experiment: Experiment, texts: list[str]) -> list[int]:
    config = experiment.model
    return models.count_tokens(config.family, weights.resolve(config.family, config.weights, config.revision).path, texts)


def train(experiment: Experiment, corpus: corpora.Corpus, start: str, run: Run, world: World | None = None) -> Iterator[Event]:
    """Train, from wherever the run directory says.

    Args:
        experiment: The config.
        corpus: Its ``train`` and ``dev`` splits are used.
        start: Folder of the initial weights.
        run: Checkpoints are written to it and taken from it. Events are yielded, not written.
        world: This worker; none is a single one on the CPU.

    Yields:
        Events as :data:`speechlab.runs.EVENT_KINDS` lists them, the same on every rank.

    Raises:
        InputError: if the plan cannot be made, the disk is full, or the loss is not a number; the
            step and its clips are named.
    """
    world = world or World()
    began = time.perf_counter()
    folder = run.path / "checkpoints"
    resumed, passed_over = checkpoints.newest(folder)
    for line in passed_over:
        yield {"kind": "message", "level": "warning", "text": f"{line}; going on from the one before"}

    clips = Clips.of(corpus, experiment)
    first = resumed.step if resumed else 0
    model = models.load(experiment.model.family, resumed.path if resumed else start, experiment.corpus.language)
    model.to(world.device).train()
    optimizer = optim.adamw(model, experiment.optim)
    if resumed:
        checkpoints.load(resumed, model, optimizer)
    tokens = model.count_tokens(clips.texts)
    plan = plan_for(experiment, clips, tokens)
    total = plan.steps(experiment.training.epochs)
    parallel = DistributedDataParallel(model) if world.size > 1 else model
    yield {
        "kind": "start",
        "steps": total,
        "epochs": experiment.training.epochs,
        "workers": world.size,
        "device": world.device,
        "precision": experiment.training.precision,
        "resumed_from": first if resumed else None,
        "corpus": {"name": corpus.name, "language": corpus.language, "clips": corpus.clips, "seconds": corpus.seconds},
        "parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
    }

    def passes(planned: Step) -> list[Micro]:
        limit = experiment.cluster.device_seconds
        return [piece for micro in planned.of_rank(world.rank, world.size) for piece in micro.pieces(limit)]

    ahead = (piece for step in range(first, total) for piece in passes(plan.step(step)[1]))
    supply = feed(clips, ahead, experiment.cluster.loader_workers)
    process = psutil.Process()
    for step in range(first, total):
        epoch, planned = plan.step(step)
        mine = passes(planned)
        step_tokens = sum(tokens[i] for micro in planned.micros for i in micro.clips)
        rate = optim.learning_rate(step, total, experiment.optim)
        for group in optimizer.param_groups:
            group["lr"] = rate

        step_began, waited, loss_sum = time.perf_counter(), 0.0, 0.0
        for piece in mine:
            wait_began = time.perf_counter()
            batch = next(supply).to(torch.device(world.device))
            waited += time.perf_counter() - wait_began
            # seeded by the place in the plan, not by the worker: dropout is the same at any world size
            torch.manual_seed(_seed(experiment.seed, step, piece.clips[0]))
            with parallel.no_sync() if world.size > 1 and piece is not mine[-1] else nullcontext():
                with decoding.autocast(world.device, experiment.training.precision):
                    loss = parallel(batch)
                # DDP averages over workers; the objective is the mean over the step's tokens
                (loss.total * (world.size / step_tokens)).backward()
            loss_sum += loss.total.item()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), experiment.optim.clip).item()
        loss_sum, waited, memory, stop = world.sum(
            loss_sum, waited, process.memory_info().rss, float(world.rank == 0 and run.stop_file.exists())
        )
        if not (math.isfinite(loss_sum) and math.isfinite(norm)):
            ids = [clips.cuts[i].id for micro in planned.micros for i in micro.clips]
            raise InputError(
                f"The loss of step {step + 1} is not a number.",
                got=f"loss {loss_sum}, gradient norm {norm}",
                expected="finite values",
                do="look at its clips: " + ", ".join(ids),
            )
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        # as heard: speed perturbation gives each epoch durations of its own
        heard = [[clips.seconds(i, epoch) for i in micro.clips] for micro in planned.micros]
        yield {
            "kind": "step",
            "step": step + 1,
            "epoch": epoch,
            "loss": loss_sum / step_tokens,
            "lr": rate,
            "grad_norm": norm,
            "clips": sum(len(micro.clips) for micro in planned.micros),
            "audio_seconds": sum(map(sum, heard)),
            "padded_seconds": sum(len(row) * max(row) for row in heard),
            "heard_seconds": planned.heard,
            "full_context": planned.full_context,
            "step_seconds": time.perf_counter() - step_began,
            "wait_seconds": waited / world.size,
            "memory_bytes": int(memory),
        }

        done = step + 1
        epoch_ends = plan.locate(done)[1] == 0
        wer = None
        if epoch_ends:
            event = _validate(experiment, model, corpus, run, world, done, epoch)
            wer = event["wer"]
            yield event
        every = experiment.training.checkpoint_steps
        if epoch_ends or stop or (every and done % every == 0):
            yield _checkpoint(experiment, model, optimizer, run, world, done, epoch, wer)
        if stop and done < total:
            yield {"kind": "stopped", "step": done}
            return

    best = checkpoints.best(checkpoints.existing(folder))
    yield {
        "kind": "end",
        "step": total,
        "seconds": time.perf_counter() - began,
        "best": {"step": best.step, "wer": best.wer} if best else None,
    }


def _validate(experiment: Experiment, model: Any, corpus: corpora.Corpus, run: Run, world: World, step: int, epoch: int) -> Event:
    began = time.perf_counter()
    cuts = sorted(corpus.cuts["dev"], key=lambda c: (c.duration, c.id))
    answers = decoding.decode(
        model,
        cuts[world.rank :: world.size],
        batch_size=experiment.evaluation.batch_size,
        precision=experiment.training.precision,
        device=world.device,
    )
    rows = sorted(world.gather([row for batch in answers for row in batch]), key=lambda r: r.id)
    scores = scoring.score([r.reference for r in rows], [r.hypothesis for r in rows], normaliser(experiment.evaluation.normaliser))
    shown = sorted(cuts, key=lambda c: hashlib.sha256(c.id.encode()).digest())[:SAMPLES]
    heard = {r.id: r.hypothesis for r in rows}
    return {
        "kind": "validation",
        "step": step,
        "epoch": epoch,
        "wer": scores.wer,
        "cer": scores.cer,
        "clips": len(rows),
        "seconds": time.perf_counter() - began,
        "samples": [
            {"id": c.id, "reference": c.supervisions[0].text, "hypothesis": heard[c.id], "audio": _sample(run, c, world.rank == 0)}
            for c in shown
        ],
    }


def _sample(run: Run, cut: Any, write: bool) -> str:
    # clip ids are untrusted: the file name is their hash
    name = f"samples/{hashlib.sha256(cut.id.encode()).hexdigest()[:16]}.mp3"
    if write and not (run.path / name).exists():
        write_atomic(run.path / name, audio.encode_mp3(corpora.load_audio(cut)))
    return name


def _checkpoint(
    experiment: Experiment, model: Any, optimizer: torch.optim.Optimizer, run: Run, world: World, step: int, epoch: int, wer: float | None
) -> Event:
    began = time.perf_counter()
    folder = run.path / "checkpoints"
    event: Event = {"kind": "checkpoint", "step": step}
    if world.rank == 0:
        saved = checkpoints.save(folder, model, optimizer, step=step, epoch=epoch, wer=wer)
        checkpoints.prune(folder, experiment.training.keep_last)
        best = checkpoints.best(checkpoints.existing(folder))
        event |= {
            "path": saved.path.relative_to(run.path).as_posix(),
            "digest": saved.digest,
            "bytes": sum(p.stat().st_size for p in saved.path.iterdir()),
            "seconds": time.perf_counter() - began,
            "best": best is not None and best.path == saved.path,
        }
    world.sum(0.0)  # nobody looks for checkpoints while they are written and pruned
    return event


def _seed(*place: int) -> int:
    return int(np.random.SeedSequence(place).generate_state(1)[0])


def estimate(experiment: Experiment, clips: Clips, plan: Plan, start: str) -> float:
    """Seconds that the plan's steps will take in this process, from two timed short steps and one at 30 s.

    Args:
        experiment: The config.
        clips: The training clips.
        plan: Their plan.
        start: Folder of the initial weights.
    """
    model = models.load(experiment.model.family, start, experiment.corpus.language).train()
    short = [s for s in plan.epoch(0) if not s.full_context]
    full = [s for s in plan.epoch(0) if s.full_context]
    seconds = {"short": 0.0, "full": 0.0}
    _timed(experiment, model, clips, (short or full)[0])  # warm-up
    for kind, steps in (("short", short[:2]), ("full", full[:1])):
        if steps:
            heard = sum(s.heard for s in steps)
            rate = sum(_timed(experiment, model, clips, s) for s in steps) / heard
            seconds[kind] = rate * sum(s.heard for s in (short if kind == "short" else full))
    return sum(seconds.values()) * experiment.training.epochs


def _timed(experiment: Experiment, model: Any, clips: Clips, step: Step) -> float:
    began = time.perf_counter()
    passes = [piece for micro in step.micros for piece in micro.pieces(experiment.cluster.device_seconds)]
    for batch in feed(clips, passes):
        with decoding.autocast("cpu", experiment.training.precision):
            loss = model.loss(batch)
        (loss.total / loss.tokens).backward()
    return time.perf_counter() - began
