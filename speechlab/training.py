"""The one loop: a generator of events that runs with or without Ray.

Each step is the plan's (:mod:`speechlab.plan`), its loss weighted by tokens over all its micro-batches,
so neither accumulation nor the number of workers changes the objective. The loop finds its place
in the run directory by itself: called again after any interruption it goes on from the newest intact
checkpoint, with as many workers as there are now, and what it does next depends on nothing but (config, clips, step).

Not covered: sharded weights (FSDP), torch.compile (it does not pay on a CPU: reports/LOG.md), resuming under another config.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import psutil
import torch
from safetensors.torch import save_file
from torch.amp.grad_scaler import GradScaler
from torch.nn.parallel import DistributedDataParallel

from speechlab import budget, checkpoints, corpora, decoding, models, optim, usage
from speechlab.batches import Batch, Clips, feed
from speechlab.config import Experiment
from speechlab.errors import InputError
from speechlab.models.weights import Weights
from speechlab.plan import Micro, Plan, Step
from speechlab.runs import Event, Run, message
from speechlab.validation import validate
from speechlab.world import World

CLIPS = 128  # of a step, where the config names neither clips nor seconds
DIGEST_STEPS = 10  # between two digests of the weights, and …
DIGEST_PARAMETERS = 1_000_000  # … a step more for each so many: of tiny.en every 37 steps, which takes 0.1 s
MOST_SKIPPED = 20  # fp16 steps in a row whose gradients overflow, before that counts as a failure


def begin(experiment: Experiment, clips: Clips) -> Weights:
    """The weights that an experiment starts from: see :func:`speechlab.models.begin`."""
    return models.begin(experiment.model, experiment.corpus.language, clips.texts, experiment.seed, experiment.tracking.uri)


def plan_for(experiment: Experiment, clips: Clips, tokens: Sequence[int] | None = None) -> Plan:
    """The plan of an experiment over its training clips.

    Args:
        experiment: The config.
        clips: The training clips.
        tokens: Label tokens of each; None has the model that the config names count them.
    """
    t = experiment.training
    rate = models.family_class(experiment.model.family).label_rate
    if tokens is None:
        tokens = models.count_tokens(experiment.model.family, begin(experiment, clips).path, clips.texts)
    return Plan(
        clips.durations,
        seed=experiment.seed,
        batch_seconds=t.batch_seconds,
        batch_clips=t.batch_clips or (None if t.batch_seconds else CLIPS),
        micro_batches=t.micro_batches,
        context=experiment.context,
        tokens=tokens,
        batch_tokens=t.batch_tokens or (round(rate * t.batch_seconds) if rate and t.batch_seconds else None),
        stretched=clips.stretched if experiment.augment.speed else None,
    )


def train(experiment: Experiment, corpus: corpora.Corpus, start: str, run: Run, world: World | None = None) -> Iterator[Event]:
    """Train, from wherever the run directory says.

    Args:
        experiment: The config.
        corpus: Its ``train`` and ``dev`` splits are used.
        start: Folder of the initial weights, as :func:`begin` gives it.
        run: Checkpoints are written to it and taken from it. Events are yielded, not written.
        world: This worker; none is a single one on the CPU.

    Yields:
        Events as :data:`speechlab.runs.EVENT_KINDS` lists them, the same on every rank.

    Raises:
        InputError: if the plan cannot be made, there are more workers than parts of a step, not one clip fits into
            memory, the disk is full, or the loss is not a number; the step and its clips are named, and the batch is kept.
    """
    world = world or World()
    t, began = experiment.training, time.perf_counter()
    if world.size > t.micro_batches:
        raise InputError(
            "There are more workers than parts of a step.",
            got=f"{world.size} workers for training.micro_batches {t.micro_batches}",
            expected="a part for every worker",
            do="raise training.micro_batches in a new run, or use fewer workers",
        )
    folder = run.path / "checkpoints"
    resumed, passed_over = checkpoints.newest(folder)
    for line in passed_over:
        yield message(f"{line}; going on from the one before", "warning")

    learner = _Learner(experiment, Clips.of(corpus, experiment), start, run, world, resumed)
    first, total = resumed.step if resumed else 0, learner.total
    yield {
        "kind": "start",
        "steps": total,
        "epochs": t.epochs,
        "workers": world.size,
        "device": world.device,
        "precision": t.precision,
        "resumed_from": first if resumed else None,
        "corpus": {"name": corpus.name, "language": corpus.language, "clips": corpus.clips, "seconds": corpus.seconds},
        "parameters": models.parameters(learner.model)[1],
        "device_seconds": learner.limit,
    }

    done = first
    history = checkpoints.History(**resumed.history) if resumed and resumed.history else checkpoints.History()
    while done < total and not (t.patience and history.since >= t.patience):
        event = learner.step(done)
        yield event
        if event["infeasible"] and event["epoch"] == 0:  # the step events go on counting them
            yield _left_out(event)
        done, epoch, stop = done + 1, event["epoch"], learner.stopping
        epoch_ends = learner.plan.locate(done)[1] == 0
        wer = None
        if epoch_ends and experiment.transcribes and ((epoch + 1) % t.validate_epochs == 0 or done == total):
            with learner.published():
                validation = validate(experiment, learner.model, corpus, run, world, done, epoch)
            wer = validation["wer"]
            history = history.after(wer)
            yield validation
        if epoch_ends or stop or (t.checkpoint_steps and done % t.checkpoint_steps == 0):
            yield _checkpoint(learner, run, world, done, epoch, wer, history)
        if stop and done < total:
            yield {"kind": "stopped", "step": done}
            return

    if done < total:
        yield message(f"stopped early after step {done} of {total}: no better WER in {history.since} validations")
    if t.average:
        yield from _averaged(experiment, corpus, run, world, done, learner.plan.locate(done)[0] - 1)
    best = checkpoints.best(checkpoints.candidates(folder))
    yield {
        "kind": "end",
        "step": done,
        "seconds": time.perf_counter() - began,
        "best": {"step": best.step, "wer": best.wer, "path": best.path.relative_to(run.path).as_posix()} if best else None,
    }


class _Learner:
    """Model, optimizer and plan of one worker, and the step that they take together."""

    def __init__(
        self, experiment: Experiment, clips: Clips, start: str, run: Run, world: World, resumed: checkpoints.Checkpoint | None
    ) -> None:
        t = experiment.training
        self.experiment, self.clips, self.run, self.world = experiment, clips, run, world
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(experiment.seed)  # adapters are drawn
            # a checkpoint may hold an average, or adapters merged in: then training goes on from the start and what is kept beside
            folder = resumed.path if resumed and not resumed.apart else start
            self.model = models.load(experiment.model.family, folder, experiment.corpus.language, experiment.model)
        self.model.to(world.device).train()
        if t.gradient_checkpointing:
            self.model.recompute()
        self.average = optim.Average(self.model, t.ema) if t.ema else None
        self.optimizer = optim.adamw(self.model, experiment.optim)
        self.scaler = GradScaler(torch.device(world.device).type, enabled=t.precision == "fp16")
        if resumed:
            checkpoints.load(resumed, self.model, self.optimizer, self.average, self.scaler)
        self.tokens = self.model.count_tokens(clips.texts)
        self.plan = plan_for(experiment, clips, self.tokens)
        self.total = self.plan.steps(t.epochs)
        self.stopping = False
        self._process = psutil.Process()
        self._digest_steps = max(DIGEST_STEPS, sum(p.numel() for p in self.model.parameters()) // DIGEST_PARAMETERS)
        self.limit = self._limit()
        self._skipped = 0
        first = resumed.step if resumed else 0
        ahead = (piece for step in range(first, self.total) for piece in self._passes(self.plan.step(step)[1]))
        self._supply = feed(clips, ahead, experiment.cluster.loader_workers)
        self._parallel = DistributedDataParallel(self.model) if world.size > 1 else self.model

    def published(self) -> Any:
        """The model as it is validated, for as long as this lasts."""
        return self.average.applied() if self.average else nullcontext()

    def step(self, step: int) -> Event:
        """Take a step, counted from 0; the same event on every rank, but for ``machine``."""
        experiment, world, began = self.experiment, self.world, time.perf_counter()
        epoch, planned = self.plan.step(step)
        expected = max(sum(self.tokens[i] for micro in planned.micros for i in micro.clips), 1)
        rate = optim.learning_rate(step, self.total, experiment.optim)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        waited, tokens = 0.0, 0.0
        losses: list[float] = []
        seen: list[Batch] = []
        infeasible: list[str] = []
        mine = self._passes(planned)
        with decoding.autocast(world.device, experiment.training.precision):  # around all passes: weights are cast once
            for piece in mine:
                asked = time.perf_counter()
                batch = next(self._supply)
                seen.append(batch)
                batch = batch.to(torch.device(world.device))
                waited += time.perf_counter() - asked
                loss = self._backward(batch, _seed(experiment.seed, step, piece.clips[0]), world.size / expected, piece is mine[-1])
                losses.append(loss.total.item())
                tokens += loss.tokens
                infeasible += [batch.ids[i] for i in loss.infeasible]
        loss_sum, tokens, waited, memory, left_out, stop = world.sum(
            sum(losses), tokens, waited, self._process.memory_info().rss, len(infeasible), float(self._asked_to_stop())
        )
        self.stopping = bool(stop)
        norm, skipped = self._update(step, expected / tokens if tokens else 0.0)
        if not math.isfinite(loss_sum) or (not math.isfinite(norm) and not skipped) or self._skipped > MOST_SKIPPED:
            raise self._fault(step, planned, seen, losses, loss_sum, norm)
        # as heard: speed perturbation gives each epoch durations of its own
        heard = [[self.clips.seconds(i, epoch) for i in micro.clips] for micro in planned.micros]
        return {
            "kind": "step",
            "step": step + 1,
            "epoch": epoch,
            "loss": loss_sum / max(tokens, 1),
            "lr": rate,
            "grad_norm": norm,
            "clips": sum(len(micro.clips) for micro in planned.micros),
            "tokens": int(tokens),
            "infeasible": world.gather(infeasible) if left_out else [],
            "skipped": skipped,
            "audio_seconds": sum(map(sum, heard)),
            "padded_seconds": sum(len(row) * max(row) for row in heard),
            "heard_seconds": planned.heard,
            "full_context": planned.full_context,
            "step_seconds": time.perf_counter() - began,
            "wait_seconds": waited / world.size,
            "memory_bytes": int(memory),
            "digest": self._digest() if (step + 1) % self._digest_steps == 0 else None,
            "machine": usage.now(world.device),
        }

    def _backward(self, batch: Batch, seed: int, weight: float, last: bool) -> models.Loss:
        # seeded by the place in the plan, not by the worker: dropout is the same at any world size
        torch.manual_seed(seed)
        with self._parallel.no_sync() if self.world.size > 1 and not last else nullcontext():
            loss: models.Loss = self._parallel(batch)
            with decoding.autocast(self.world.device, "fp32"):  # gradients have the types that the forward pass chose
                # DDP averages over workers; the objective is the mean over the step's tokens
                self.scaler.scale(loss.total * weight).backward()  # type: ignore[no-untyped-call]
        return loss

    def _update(self, step: int, correction: float) -> tuple[float, bool]:
        """Clip and apply the gradients; the norm, and whether fp16 overflowed so that they were not applied."""
        if correction != 1.0:  # the plan counted tokens that were not in the loss: clips left out, frames not masked
            for p in self.model.parameters():
                if p.grad is not None:
                    p.grad.mul_(correction)
        self.scaler.unscale_(self.optimizer)
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.experiment.optim.clip).item()
        finite = math.isfinite(norm)
        if finite or self.scaler.is_enabled():
            self.scaler.step(self.optimizer)
            self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        if finite and self.average:
            self.average.update(step)
        skipped = not finite and self.scaler.is_enabled()
        self._skipped = self._skipped + 1 if skipped else 0
        return norm, skipped

    def _passes(self, planned: Step) -> list[Micro]:
        return [piece for micro in planned.of_rank(self.world.rank, self.world.size) for piece in micro.pieces(self.limit)]

    def _limit(self) -> float:
        here = self.world
        found = budget.of_run(self.run, self.model, self.clips, self.plan, here.device, here.size)
        # the smallest device decides for all: a step is cut up alike wherever it is done
        least = min(self.world.gather([found]), key=lambda b: b.seconds)
        if here.rank == 0:
            budget.keep(self.run, least)
        return float(least.seconds)

    def _digest(self) -> str:
        with self.published():  # as in a checkpoint after the same step
            return checkpoints.weights_digest(self.model)

    def _asked_to_stop(self) -> bool:
        return self.world.rank == 0 and self.run.stop_file.exists()

    def _fault(self, step: int, planned: Step, seen: list[Batch], losses: list[float], loss: float, norm: float) -> InputError:
        """Keep what this worker heard in the step, and say where."""
        folder = self.run.path / "failures"
        stem = f"step-{step + 1:06d}-worker-{self.world.rank}"
        folder.mkdir(exist_ok=True)
        save_file({f"wave_{i}": batch.wave_BN.contiguous() for i, batch in enumerate(seen)}, folder / f"{stem}.safetensors")
        about = [
            {"wave": f"wave_{i}", "loss": str(value), "context": b.context, "ids": b.ids, "texts": b.texts, "seconds": b.seconds}
            for i, (b, value) in enumerate(zip(seen, losses, strict=True))
        ]
        (folder / f"{stem}.json").write_text(json.dumps(about, ensure_ascii=False, indent=1), "utf-8")
        bad = [i for b, value in zip(seen, losses, strict=True) if not math.isfinite(value) for i in b.ids]
        bad = self.world.gather(bad) or [self.clips.cuts[i].id for micro in planned.micros for i in micro.clips]
        return InputError(
            f"The loss of step {step + 1} is not a number."
            if not math.isfinite(loss)
            else f"The gradient of step {step + 1} is not a number.",
            got=f"loss {loss}, gradient norm {norm}",
            expected="finite values",
            do=f"look at its clips, kept in {folder / stem}.*: " + ", ".join(bad),
        )


def _left_out(event: Event) -> Event:
    ids = event["infeasible"]
    text = f"step {event['step']}: {len(ids)} clips have longer texts than CTC can align with their frames: {', '.join(ids[:5])}"
    return message(text + (" …" if len(ids) > 5 else ""), "warning")


def _checkpoint(learner: _Learner, run: Run, world: World, step: int, epoch: int, wer: float | None, history: checkpoints.History) -> Event:
    began = time.perf_counter()
    folder = run.path / "checkpoints"
    event: Event = {"kind": "checkpoint", "step": step}
    if world.rank == 0:
        state = {"step": step, "epoch": epoch, "wer": wer, "history": vars(history)}
        apart = learner.experiment.model.lora is not None
        saved = checkpoints.save(
            folder, learner.model, learner.optimizer, state, apart=apart, average=learner.average, scaler=learner.scaler
        )
        checkpoints.prune(folder, learner.experiment.training.keep_last)
        best = checkpoints.best(checkpoints.candidates(folder))
        event |= {
            "path": saved.path.relative_to(run.path).as_posix(),
            "digest": saved.digest,
            "bytes": sum(p.stat().st_size for p in saved.path.iterdir()),
            "seconds": time.perf_counter() - began,
            "best": best is not None and best.path == saved.path,
        }
    world.sum(0.0)  # nobody looks for checkpoints while they are written and pruned
    return event


def _averaged(experiment: Experiment, corpus: corpora.Corpus, run: Run, world: World, step: int, epoch: int) -> Iterator[Event]:
    """Validate the mean of the last checkpoints; if it is the best, evaluation takes it."""
    folder = run.path / "checkpoints"
    if checkpoints.averaged(folder):
        return
    parts = checkpoints.existing(folder)[-(experiment.training.average or 0) :]
    if len(parts) < 2:
        return
    if world.rank == 0:
        checkpoints.average(parts, folder)
    world.sum(0.0)
    target = folder / checkpoints.AVERAGE
    model = models.load(experiment.model.family, target, experiment.corpus.language).to(world.device)
    event = validate(experiment, model, corpus, run, world, step, epoch)
    if world.rank == 0:
        checkpoints.finish_average(folder, step=step, epoch=epoch, wer=event["wer"], model=model)
    world.sum(0.0)
    steps = ", ".join(str(c.step) for c in parts)
    yield message(f"the mean of the checkpoints at steps {steps} has a WER of {100 * event['wer']:.2f} %")


def _seed(*place: int) -> int:
    return int(np.random.SeedSequence(place).generate_state(1)[0])
