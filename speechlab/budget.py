"""What a step of training costs, found before it starts: seconds on the clock, and how much audio the memory holds.

A forward and backward pass takes memory that grows with the seconds heard in it, so two small probes of the worst kind
of pass, the longest context with the longest text, tell how many clips fit. What was found is kept for each device,
model and precision in the cache; a run keeps its own number (``budget.json``), because the cut into passes changes
float sums, and a resumed run must not.

Not covered: fragmentation beyond the reserve, several runs that share a device.
"""

from __future__ import annotations

import hashlib
import json
import platform
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from speechlab import decoding, fetch, memory, models
from speechlab.batches import Batch, Clips, feed
from speechlab.config import Experiment
from speechlab.errors import InputError
from speechlab.plan import Plan, Step
from speechlab.runs import Run, write_atomic
from speechlab.units import SAMPLE_RATE, Seconds

PROBE = 2  # raise it when probing changes: what was found before is then found anew
RESERVE = 0.15  # of the free memory, left for allocators and whatever else runs
MOST_ON_CPU: Seconds = 240.0  # passes that hear more are no faster there
MOMENTS = 8  # bytes that AdamW keeps for each trainable weight


@dataclass(frozen=True)
class Budget:
    """What a device holds.

    Attributes:
        seconds: Most audio heard in one pass.
        fixed: Bytes that do not grow with the pass: weights, gradients, moments.
        per_second: Bytes for each second heard.
        free: Bytes that were to be had.
    """

    seconds: Seconds
    fixed: float
    per_second: float
    free: float


def of_run(run: Run, model: Any, clips: Clips, plan: Plan, device: str, workers: int = 1) -> Budget:
    """The budget that a run keeps: as its config says, as it kept it, or as it is found now.

    Args:
        run: Its ``cluster.device_seconds`` decides, if given.
        model: On its device.
        clips: The training clips.
        plan: Their plan.
        device: Torch device.
        workers: That share this machine's memory, on a CPU.

    Raises:
        InputError: if not even one clip fits.
    """
    given = run.config.cluster.device_seconds
    if given is not None:
        return Budget(given, 0.0, 0.0, 0.0)
    path = run.path / "budget.json"
    if path.exists():
        return Budget(**json.loads(path.read_text("utf-8")))
    return find(run.config, model, clips, plan, device, workers)


def keep(run: Run, budget: Budget) -> None:
    """Write it into the run, for those that resume it."""
    if run.config.cluster.device_seconds is None and not (run.path / "budget.json").exists():
        write_atomic(run.path / "budget.json", json.dumps(vars(budget)).encode())


def find(experiment: Experiment, model: Any, clips: Clips, plan: Plan, device: str, workers: int = 1) -> Budget:
    """Probe the worst kind of pass, or take what the cache knows of this device, model and precision.

    Raises:
        InputError: if not even one clip fits.
    """
    context = max(micro.context for step in plan.epoch(0) for micro in step.micros)
    trainable = models.parameters(model)[1]
    key = _key(experiment, model, context, device)
    store = fetch.cache() / "budgets.json"
    known = _known(store).get(key)
    free = memory.free(device) / (workers if device == "cpu" else 1)
    if known is None:
        batch = _worst(clips, context)
        # the first pass pays for what is set up once
        _, one, three = (_peak(model, batch.rows([0] * count), experiment.training.precision, device) for count in (1, 1, 3))
        known = {"fixed": max(1.5 * one - 0.5 * three, 0.0) + MOMENTS * trainable, "per_second": max(three - one, 1.0) / 2 / context}
        fetch.cache().mkdir(parents=True, exist_ok=True)
        write_atomic(store, json.dumps(_known(store) | {key: known}, indent=1).encode())
    fixed, per_second = known["fixed"], known["per_second"]
    seconds = ((1 - RESERVE) * free - fixed) / per_second
    if seconds < context:
        raise InputError(
            "The memory does not hold one clip of this training.",
            got=f"{free / 1e9:.1f} GB free on {device}",
            expected=f"{(fixed + context * per_second) / (1 - RESERVE) / 1e9:.1f} GB for a clip heard in {context:g} s",
            do="free memory, set training.gradient_checkpointing: true, freeze weights, or choose a smaller model",
        )
    return Budget(min(seconds, MOST_ON_CPU) if device == "cpu" else seconds, fixed, per_second, free)


def seconds_of_steps(experiment: Experiment, clips: Clips, plan: Plan, model: Any, limit: Seconds) -> Seconds:
    """How long the plan's steps will take in this process, from two timed short steps and one at 30 s.

    Args:
        experiment: The config.
        clips: The training clips.
        plan: Their plan.
        model: As it will be trained, on the CPU.
        limit: Most audio of a pass.
    """
    epoch = plan.epoch(0)
    short = [s for s in epoch if not s.full_context]
    full = [s for s in epoch if s.full_context]
    seconds = {"short": 0.0, "full": 0.0}
    _timed(experiment, model, clips, (short or full)[0], limit)  # warm-up
    for kind, steps in (("short", short[:2]), ("full", full[:1])):
        if steps:
            heard = sum(s.heard for s in steps)
            rate = sum(_timed(experiment, model, clips, s, limit) for s in steps) / heard
            seconds[kind] = rate * sum(s.heard for s in (short if kind == "short" else full))
    return sum(seconds.values()) * experiment.training.epochs


def _timed(experiment: Experiment, model: Any, clips: Clips, step: Step, limit: Seconds) -> float:
    began = time.perf_counter()
    for batch in feed(clips, [piece for micro in step.micros for piece in micro.pieces(limit)]):
        _pass(model, batch, experiment.training.precision, "cpu")
    return time.perf_counter() - began


def _pass(model: Any, batch: Batch, precision: str, device: str) -> None:
    with decoding.autocast(device, precision):
        loss = model(batch)
    (loss.total / max(loss.tokens, 1)).backward()


def _worst(clips: Clips, context: Seconds) -> Batch:
    """One clip as long as any, with the longest text."""
    cut = max(range(len(clips.cuts)), key=lambda i: clips.cuts[i].duration)
    text = max(clips.texts, key=len)
    wave_N = clips(cut).wave_N[: round(context * SAMPLE_RATE)]
    return Batch(("probe",), (text,), torch.from_numpy(wave_N)[None], (len(wave_N) / SAMPLE_RATE,), context)


def _peak(model: Any, batch: Batch, precision: str, device: str) -> float:
    """Bytes in use at the height of a pass; the model's gradients and the generators are left as they were."""
    cuda = torch.device(device).type == "cuda"
    with torch.random.fork_rng(devices=[torch.device(device)] if cuda else []):
        memory.trim()
        before = 0.0 if cuda else memory.used(device)
        memory.forget_peak(device)
        _pass(model, batch.to(torch.device(device)), precision, device)
        used = max(memory.peak(device) - before, 0.0)
        if not cuda:  # its weights were there before
            used += sum(p.numel() * p.element_size() for p in model.parameters())
    model.zero_grad(set_to_none=True)
    return used


def _key(experiment: Experiment, model: Any, context: Seconds, device: str) -> str:
    cuda = torch.device(device).type == "cuda"
    what = {
        "probe": PROBE,
        "device": torch.cuda.get_device_name(device) if cuda else platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "model": experiment.model.model_dump(exclude={"revision"}),
        "parameters": models.parameters(model),
        "precision": experiment.training.precision,
        "gradient_checkpointing": experiment.training.gradient_checkpointing,
        "context": context,
    }
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:16]


def _known(store: Path) -> dict[str, dict[str, float]]:
    try:
        found = json.loads(store.read_text("utf-8"))
        return found if isinstance(found, dict) else {}
    except (OSError, ValueError):
        return {}
