"""The plan and the batch contract.

Every batch of every step is a pure function of (durations, seed, epoch): no sampler state. So resume
is O(1) at any step and stays exact when the number of workers changes, all ranks have equal steps,
and padding is known before training starts.

How a plan is made. Clips are sorted by duration and cut into buckets whose longest clip is at most
``BUCKET_RATIO`` times the shortest. Micro-batches are packed in that order up to an equal share of
``batch_seconds``, each clip counted as its bucket's longest plus the mean margin; that packing depends on
the durations alone, so every epoch has the same number of steps. An epoch then permutes clips within
their buckets, shuffles the micro-batches and deals ``micro_batches`` of them to a step.

Not covered yet: a limit on tokens, augmentation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from speechlab.config import ContextConfig
from speechlab.errors import InputError
from speechlab.features import FULL_CONTEXT
from speechlab.units import Seconds

BUCKET_RATIO = 1.1  # longest over shortest clip of a bucket: bounds the padding by a tenth
CONTEXT_GRID: Seconds = 0.1  # contexts are rounded up to this, so that few shapes occur


@dataclass(frozen=True)
class Batch:
    """What a model gets: the batch contract.

    Attributes:
        ids: B clip ids.
        texts: B transcripts as written; empty strings where only decoding is wanted.
        wave_BN: float32 waveforms in [-1, 1] at 16 kHz, zero-padded on the right to the longest clip.
        seconds: B durations before padding.
        context: Seconds that the encoder hears, at least the longest clip.
    """

    ids: tuple[str, ...]
    texts: tuple[str, ...]
    wave_BN: Tensor
    seconds: tuple[Seconds, ...]
    context: Seconds

    def to(self, device: torch.device) -> Batch:
        """The same batch on another device."""
        return Batch(self.ids, self.texts, self.wave_BN.to(device, non_blocking=True), self.seconds, self.context)

    def at(self, context: Seconds) -> Batch:
        """The same clips, heard in another context."""
        return Batch(self.ids, self.texts, self.wave_BN, self.seconds, context)

    def rows(self, keep: Sequence[int]) -> Batch:
        """Some of the clips, in the order named."""
        ids, texts, seconds = (tuple(column[i] for i in keep) for column in (self.ids, self.texts, self.seconds))
        return Batch(ids, texts, self.wave_BN[list(keep)], seconds, self.context)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Micro:
    """A micro-batch of the plan: indices into the clips, and the context they are heard in."""

    clips: tuple[int, ...]
    context: Seconds

    @property
    def heard(self) -> Seconds:
        """What the encoder hears of it."""
        return len(self.clips) * self.context

    def pieces(self, limit: Seconds) -> tuple[Micro, ...]:
        """The same clips in passes that each hear at most ``limit`` seconds, to bound memory; one clip at least."""
        size = max(1, int(limit // self.context))
        return tuple(Micro(self.clips[i : i + size], self.context) for i in range(0, len(self.clips), size))


@dataclass(frozen=True)
class Step:
    """One optimizer step: equal numbers of micro-batches for every rank."""

    micros: tuple[Micro, ...]
    full_context: bool

    @property
    def heard(self) -> Seconds:
        """What the encoder hears of it."""
        return sum(micro.heard for micro in self.micros)

    def of_rank(self, rank: int, world: int) -> tuple[Micro, ...]:
        """The share of one worker; the union over ranks is the step, whatever the world's size."""
        return self.micros[rank::world]


@dataclass(frozen=True)
class PlanSummary:
    """What is known before training starts; times are seconds over one epoch.

    Attributes:
        steps: Optimizer steps an epoch.
        audio: Speech.
        padded: Speech plus padding to the longest clip of each micro-batch.
        heard: What the encoder hears: with margins, and 30 s where the context is full.
        full_steps: Steps whose context is 30 s.
    """

    steps: int
    audio: Seconds
    padded: Seconds
    heard: Seconds
    full_steps: int

    @property
    def padding(self) -> float:
        """Share of padding in the batches, before any margin."""
        return 1 - self.audio / self.padded


class Plan:
    """All batches of all epochs.

    Args:
        durations: Seconds of each clip, in the manifest's order.
        seed: Of the experiment.
        batch_seconds: Audio of one optimizer step, padding and mean margin included: a hard limit
            in short context, except for a single clip that is longer.
        micro_batches: Equal parts of a step; a multiple of every number of workers to be used.
        context: Margins and share of full-context steps.

    Raises:
        InputError: if there are fewer clips than micro-batches in a step, a duration is not
            above 0 and at most 30 s, or each clip fills a micro-batch and these cannot be dealt evenly.
    """

    def __init__(
        self, durations: Sequence[Seconds], *, seed: int, batch_seconds: Seconds, micro_batches: int, context: ContextConfig
    ) -> None:
        self._seconds = np.asarray(durations, dtype=np.float64)
        if len(self._seconds) < micro_batches:
            raise InputError(
                "There are too few clips for one training step.",
                got=f"{len(self._seconds)} clips",
                expected=f"at least training.micro_batches = {micro_batches}",
            )
        bad = ~((self._seconds > 0) & (self._seconds <= FULL_CONTEXT))
        if bad.any():
            raise InputError(
                "A clip's duration cannot be planned.",
                got=f"{self._seconds[bad][0]:.2f} s",
                expected="above 0 and at most 30 s",
                do="set it aside with corpus.max_seconds",
            )
        self._seed, self._micro_batches, self._context = seed, micro_batches, context
        self._order = np.argsort(self._seconds, kind="stable")
        self._buckets = _buckets(self._seconds[self._order])
        self._slots = self._pack(batch_seconds / micro_batches)

    @property
    def steps_per_epoch(self) -> int:
        """The same in every epoch."""
        return len(self._slots) // self._micro_batches

    @property
    def _full_steps(self) -> int:
        """A count, not a chance, so that an epoch's cost is known; at least one where any are wanted."""
        return max(round(self._context.full_fraction * self.steps_per_epoch), int(self._context.full_fraction > 0))

    @lru_cache(maxsize=2)  # noqa: B019 - two epochs of one plan, freed with it at process end
    def epoch(self, epoch: int) -> tuple[Step, ...]:
        """All steps of an epoch, in order."""
        rng = np.random.default_rng([self._seed, epoch])
        order = self._order.copy()
        for low, high in self._buckets:
            order[low:high] = rng.permutation(order[low:high])
        shuffled = rng.permutation(len(self._slots)).reshape(-1, self._micro_batches)
        full = np.zeros(len(shuffled), dtype=bool)
        full[rng.permutation(len(shuffled))[: self._full_steps]] = True
        margins = rng.uniform(self._context.margin_min, self._context.margin_max, shuffled.shape)
        return tuple(
            Step(
                tuple(
                    self._micro(order[slice(*self._slots[slot])], margin, bool(full[s]))
                    for slot, margin in zip(row, margins[s], strict=True)
                ),
                bool(full[s]),
            )
            for s, row in enumerate(shuffled)
        )

    def step(self, step: int) -> tuple[int, Step]:
        """Epoch and plan of a global step (from 0), without walking there."""
        epoch, within = divmod(step, self.steps_per_epoch)
        return epoch, self.epoch(epoch)[within]

    def summary(self, epoch: int = 0) -> PlanSummary:
        """Padding and contexts of one epoch."""
        steps = self.epoch(epoch)
        micros = [m for s in steps for m in s.micros]
        return PlanSummary(
            steps=len(steps),
            audio=float(self._seconds.sum()),
            padded=float(sum(len(m.clips) * self._seconds[list(m.clips)].max() for m in micros)),
            heard=float(sum(m.heard for m in micros)),
            full_steps=sum(s.full_context for s in steps),
        )

    def _micro(self, clips: Any, margin: Seconds, full: bool) -> Micro:
        context = FULL_CONTEXT if full else context_for(float(self._seconds[clips].max()), margin)
        return Micro(tuple(int(i) for i in clips), context)

    def _pack(self, budget: Seconds) -> list[tuple[int, int]]:
        margin = (self._context.margin_min + self._context.margin_max) / 2
        seconds = self._seconds[self._order]
        cost = np.empty(len(seconds))
        for low, high in self._buckets:
            cost[low:high] = seconds[high - 1] + margin
        slots, start = [], 0
        while start < len(cost):
            # cost is not decreasing: count * cost[end - 1] is the padded size of clips start..end
            end = start + 1
            while end < len(cost) and (end - start + 1) * cost[end] <= budget:
                end += 1
            slots.append((start, end))
            start = end
        while len(slots) % self._micro_batches:  # split the fullest until a step can be dealt evenly
            widest = max(range(len(slots)), key=lambda i: slots[i][1] - slots[i][0])
            low, high = slots.pop(widest)
            if high - low == 1:
                raise InputError(
                    "The clips cannot be dealt evenly to training steps: each fills a micro-batch of its own.",
                    got=f"{len(cost)} clips for training.micro_batches = {self._micro_batches}, {budget:g} s each",
                    expected="room for two clips in a micro-batch",
                    do="raise training.batch_seconds or lower training.micro_batches",
                )
            middle = (low + high) // 2
            slots[widest:widest] = [(low, middle), (middle, high)]
        return slots


def context_for(longest: Seconds, margin: Seconds) -> Seconds:
    """The context for a batch: its longest clip and a margin, on the grid, at most 30 s."""
    return min(FULL_CONTEXT, round(math.ceil(round((longest + margin) / CONTEXT_GRID, 6)) * CONTEXT_GRID, 6))


def _buckets(ascending: Any) -> list[tuple[int, int]]:
    buckets, low = [], 0
    while low < len(ascending):
        high = int(np.searchsorted(ascending, ascending[low] * BUCKET_RATIO, side="right"))
        buckets.append((low, high))
        low = high
    return buckets


def collate(clips: Sequence[tuple[str, str, Any]], context: Seconds | None = None, margin: Seconds = 0.5) -> Batch:
    """Make a batch.

    Args:
        clips: (id, transcript, float32 waveform at 16 kHz) of each clip.
        context: What the encoder hears; none is the longest clip and the margin.
        margin: Used where no context is given.
    """
    waves = [torch.from_numpy(np.ascontiguousarray(wave, dtype=np.float32)) for _, _, wave in clips]
    wave_BN = torch.nn.utils.rnn.pad_sequence(waves, batch_first=True)
    seconds = tuple(len(w) / 16_000 for w in waves)
    return Batch(
        tuple(i for i, _, _ in clips),
        tuple(t for _, t, _ in clips),
        wave_BN,
        seconds,
        context if context is not None else context_for(max(seconds), margin),
    )


class _Clips(Dataset[Batch]):
    """The plan's micro-batches are the keys, batches the values: nothing to look up, nothing to keep."""

    def __init__(self, load: Callable[[int], tuple[str, str, Any]]) -> None:
        self.load = load

    def __getitem__(self, micro: Micro) -> Batch:
        return collate([self.load(i) for i in micro.clips], micro.context)


def feed(load: Callable[[int], tuple[str, str, Any]], micros: Iterable[Micro], loader_workers: int = 0) -> Iterator[Batch]:
    """Micro-batches of a plan as batches, in order.

    Args:
        load: Gives (id, transcript, waveform) of a clip by index; must be picklable for loader workers.
        micros: What to feed; taken lazily.
        loader_workers: Processes that prepare input; 0 loads in this one. Batches do not depend on it.
    """
    return iter(
        DataLoader(
            _Clips(load),
            batch_size=None,
            sampler=micros,  # type: ignore[arg-type]
            num_workers=loader_workers,
            # a forked child of a Ray worker would inherit its threads' locks
            multiprocessing_context="forkserver" if loader_workers else None,
        )
    )
