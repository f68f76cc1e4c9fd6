"""The plan: which clips make which micro-batch of which step.

Every batch of every step is a pure function of (durations, tokens, seed, epoch): no sampler state. So resume
is O(1) at any step and stays exact when the number of workers changes, all ranks have equal steps,
and padding is known before training starts.

How a plan is made. Clips are sorted by duration and cut into buckets whose longest clip is at most ``BUCKET_RATIO``
times the shortest. Micro-batches are packed in that order up to an equal share of ``batch_seconds`` and of
``batch_tokens``, each clip counted as its bucket's longest plus the mean margin, and up to ``PADDING``, or a few long
clips of unlike durations would stand together. Where a step is a number of clips (``batch_clips``) and not of seconds,
that number counts and padding is taken as it comes. That packing depends on the durations alone, so every epoch has the
same number of steps. An epoch then permutes clips within their buckets, shuffles the micro-batches and deals
``micro_batches`` of them to a step. Speed perturbation gives each epoch durations of its own: then each epoch is packed
anew and may have a few steps more or less.

Not covered: weights for some clips over others, curricula.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from speechlab.config import ContextConfig
from speechlab.errors import InputError
from speechlab.units import FULL_CONTEXT, Seconds

BUCKET_RATIO = 1.04  # longest over shortest clip of a bucket
PADDING = 0.06  # most that a micro-batch may be padded by reaching into the next bucket, where long clips are few
CONTEXT_GRID: Seconds = 0.1  # contexts are rounded up to this, so that few shapes occur


@dataclass(frozen=True)
class Micro:
    """A micro-batch: indices into the clips, the context they are heard in, and the epoch that augmentation is drawn for."""

    clips: tuple[int, ...]
    context: Seconds
    epoch: int = 0

    @property
    def heard(self) -> Seconds:
        """What the encoder hears of it."""
        return len(self.clips) * self.context

    def pieces(self, limit: Seconds) -> tuple[Micro, ...]:
        """The same clips in passes that each hear at most ``limit`` seconds, to bound memory; one clip at least."""
        size = max(1, int(limit // self.context))
        return tuple(Micro(self.clips[i : i + size], self.context, self.epoch) for i in range(0, len(self.clips), size))


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
        """The share of one worker, as many micro-batches as any other's; the union over ranks is the step, whatever the world's size.

        All workers wait for the one with the most to hear. So the longest goes first, always to whoever has least (Graham, 1969).
        """
        most = -(-len(self.micros) // world)
        shares: list[list[int]] = [[] for _ in range(world)]
        for i in sorted(range(len(self.micros)), key=lambda i: -self.micros[i].heard):
            room = (share for share in shares if len(share) < most)
            min(room, key=lambda share: sum(self.micros[j].heard for j in share)).append(i)
        return tuple(self.micros[i] for i in sorted(shares[rank]))


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


@dataclass(frozen=True)
class _Layout:
    """One epoch's packing: clips by duration, the buckets they move in, and the micro-batches as slices of that order."""

    seconds: Any
    order: Any
    buckets: list[tuple[int, int]]
    slots: list[tuple[int, int]]


@dataclass(frozen=True)
class _Deal:
    """One epoch's draw: which clips and slots come where. Of a million clips this takes 0.2 s, their steps as objects 0.6 s more."""

    seconds: Any
    order: Any
    slots: list[tuple[int, int]]
    rows: Any
    full: Any
    margins: Any


class Plan:
    """All batches of all epochs; ``plan[epoch, step]`` is one of them.

    Args:
        durations: Seconds of each clip, in the manifest's order.
        seed: Of the experiment.
        batch_seconds: Audio of one optimizer step, padding and mean margin included: a hard limit
            in short context, except for a single clip that is longer. None does not limit it.
        batch_clips: Clips of one optimizer step; None does not limit them.
        micro_batches: Equal parts of a step; a multiple of every number of workers to be used.
        context: Margins and share of full-context steps.
        tokens: Label tokens of each clip; None limits seconds alone.
        batch_tokens: Label tokens of one step, padding included: a hard limit likewise.
        stretched: Gives the durations of an epoch, where augmentation changes them; None leaves them.

    Raises:
        InputError: if there are fewer clips than micro-batches in a step, a duration is not
            above 0 and at most 30 s, or each clip fills a micro-batch and these cannot be dealt evenly.
    """

    def __init__(
        self,
        durations: Sequence[Seconds],
        *,
        seed: int,
        batch_seconds: Seconds | None = None,
        batch_clips: int | None = None,
        micro_batches: int,
        context: ContextConfig,
        tokens: Sequence[int] | None = None,
        batch_tokens: int | None = None,
        stretched: Callable[[int], Sequence[Seconds]] | None = None,
    ) -> None:
        self._seconds = np.asarray(durations, dtype=np.float64)
        if len(self._seconds) < micro_batches:
            raise InputError(
                "There are too few clips for one training step.",
                got=f"{len(self._seconds)} clips",
                expected=f"at least training.micro_batches = {micro_batches}",
            )
        assert batch_seconds or batch_clips, "something limits a step"
        if batch_clips and batch_clips < micro_batches:
            raise InputError(
                "A training step has fewer clips than parts.",
                got=f"training.batch_clips {batch_clips} for training.micro_batches {micro_batches}",
                expected="at least one clip in each part",
                do="lower training.micro_batches or raise training.batch_clips",
            )
        self._tokens = None if tokens is None or batch_tokens is None else np.asarray(tokens, dtype=np.int64)
        assert self._tokens is None or len(self._tokens) == len(self._seconds), "tokens are counted for every clip"
        self._seed, self._micro_batches, self._context = seed, micro_batches, context
        self._budget = batch_seconds / micro_batches if batch_seconds else math.inf
        self._token_budget, self._most = (batch_tokens or 0) / micro_batches, (batch_clips // micro_batches if batch_clips else None)
        self._stretched = stretched
        self._layouts: dict[int, _Layout] = {}
        self._deals: dict[int, _Deal] = {}
        self._counts: dict[int, int] = {}
        self._layout(0)

    def steps_in(self, epoch: int) -> int:
        """Steps of an epoch: the same in every one, unless durations are stretched."""
        key = epoch if self._stretched else 0
        if key not in self._counts:
            self._counts[key] = len(self._layout(epoch).slots) // self._micro_batches
        return self._counts[key]

    def steps(self, epochs: int) -> int:
        """Steps of so many epochs."""
        return sum(map(self.steps_in, range(epochs))) if self._stretched else epochs * self.steps_in(0)

    def locate(self, step: int) -> tuple[int, int]:
        """Epoch and place in it of a global step, both from 0."""
        if not self._stretched:
            return divmod(step, self.steps_in(0))
        epoch = 0
        while step >= self.steps_in(epoch):
            step -= self.steps_in(epoch)
            epoch += 1
        return epoch, step

    def __getitem__(self, place: tuple[int, int]) -> Step:
        """A step by its epoch and its place in it, without walking there."""
        epoch, step = place
        deal = self._deal(epoch)
        full = bool(deal.full[step])

        def micro(slot: int, margin: Seconds) -> Micro:
            clips = deal.order[slice(*deal.slots[slot])]
            context = FULL_CONTEXT if full else context_for(float(deal.seconds[clips].max()), margin)
            return Micro(tuple(clips.tolist()), context, epoch)

        return Step(tuple(map(micro, deal.rows[step], deal.margins[step])), full)

    def epoch(self, epoch: int) -> tuple[Step, ...]:
        """All steps of an epoch, in order."""
        return tuple(self[epoch, step] for step in range(self.steps_in(epoch)))

    def step(self, step: int) -> tuple[int, Step]:
        """Epoch and plan of a global step (from 0)."""
        epoch, within = self.locate(step)
        return epoch, self[epoch, within]

    def summary(self, epoch: int = 0) -> PlanSummary:
        """Padding and contexts of one epoch."""
        steps, seconds = self.epoch(epoch), self._layout(epoch).seconds
        micros = [m for s in steps for m in s.micros]
        return PlanSummary(
            steps=len(steps),
            audio=float(seconds.sum()),
            padded=float(sum(len(m.clips) * seconds[list(m.clips)].max() for m in micros)),
            heard=float(sum(m.heard for m in micros)),
            full_steps=sum(s.full_context for s in steps),
        )

    def _deal(self, epoch: int) -> _Deal:
        if epoch not in self._deals:
            while len(self._deals) > 1:  # this one and its predecessor, which a prefetching loader may still be at
                del self._deals[min(self._deals)]
            layout = self._layout(epoch)
            rng = np.random.default_rng([self._seed, epoch])
            order = layout.order.copy()
            for low, high in layout.buckets:
                order[low:high] = rng.permutation(order[low:high])
            rows = rng.permutation(len(layout.slots)).reshape(-1, self._micro_batches)
            # a count, not a chance, so that an epoch's cost is known; at least one where any are wanted
            wanted = max(round(self._context.full_fraction * len(rows)), int(self._context.full_fraction > 0))
            full = np.zeros(len(rows), dtype=bool)
            full[rng.permutation(len(rows))[:wanted]] = True
            margins = rng.uniform(self._context.margin_min, self._context.margin_max, rows.shape)
            self._deals[epoch] = _Deal(layout.seconds, order, layout.slots, rows, full, margins)
        return self._deals[epoch]

    def _layout(self, epoch: int) -> _Layout:
        key = epoch if self._stretched else 0
        if key not in self._layouts:
            while len(self._layouts) > 1:
                del self._layouts[min(self._layouts)]
            seconds = np.asarray(self._stretched(epoch), dtype=np.float64) if self._stretched else self._seconds
            bad = ~((seconds > 0) & (seconds <= FULL_CONTEXT))
            if bad.any():
                raise InputError(
                    "A clip's duration cannot be planned.",
                    got=f"{seconds[bad][0]:.2f} s",
                    expected="above 0 and at most 30 s",
                    do="set it aside with corpus.max_seconds",
                )
            order = np.argsort(seconds, kind="stable")
            buckets = _buckets(seconds[order])
            self._layouts[key] = _Layout(seconds, order, buckets, self._pack(seconds[order], order, buckets))
        return self._layouts[key]

    def _pack(self, ascending: Any, order: Any, buckets: list[tuple[int, int]]) -> list[tuple[int, int]]:
        margin = (self._context.margin_min + self._context.margin_max) / 2
        cost, labels = np.empty(len(ascending)), np.zeros(len(ascending), dtype=np.int64)
        for low, high in buckets:
            cost[low:high] = ascending[high - 1] + margin
            if self._tokens is not None:
                labels[low:high] = self._tokens[order[low:high]].max()  # whichever of its clips come to stand here
        for padding in (PADDING, 1.0) if self._budget < math.inf else (1.0,):  # where clips are few, rather pad than not deal evenly
            slots = self._slots(ascending, cost, labels, margin, padding)
            if self._even(slots):
                return slots
        raise InputError(
            "The clips cannot be dealt evenly to training steps: each fills a micro-batch of its own.",
            got=f"{len(cost)} clips for training.micro_batches = {self._micro_batches}, {self._budget:g} s each",
            expected="room for two clips in a micro-batch",
            do="raise training.batch_seconds (or batch_clips), or lower training.micro_batches",
        )

    def _slots(self, ascending: Any, cost: Any, labels: Any, margin: Seconds, padding: float) -> list[tuple[int, int]]:
        """As many clips to each micro-batch, in ascending order, as the limits allow."""
        costs, most, speech = cost.tolist(), labels.tolist(), np.concatenate([[0.0], np.cumsum(ascending)]).tolist()
        slots, start = [], 0
        while start < len(costs):
            # costs do not decrease: count * costs[end - 1] is the padded size of clips start..end
            end, widest = start + 1, most[start]
            while end < len(costs):
                count, widest = end - start + 1, max(widest, most[end])
                if self._most and count > self._most:
                    break
                if count * costs[end] > self._budget or (self._tokens is not None and count * widest > self._token_budget):
                    break
                if costs[end] > costs[start] and speech[end + 1] - speech[start] < (1 - padding) * count * (costs[end] - margin):
                    break
                end += 1
            slots.append((start, end))
            start = end
        return slots

    def _even(self, slots: list[tuple[int, int]]) -> bool:
        """Split the fullest until a step can be dealt evenly; False if there is nothing left to split."""
        while len(slots) % self._micro_batches:
            widest = max(range(len(slots)), key=lambda i: slots[i][1] - slots[i][0])
            low, high = slots[widest]
            if high - low == 1:
                return False
            middle = (low + high) // 2
            slots[widest : widest + 1] = [(low, middle), (middle, high)]
        return True


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
