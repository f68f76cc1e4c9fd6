"""The batch contract, and what feeds batches to a model.

Notable: a plan's micro-batches (:mod:`speechlab.plan`) are the keys, batches the values; what a batch holds depends on
neither the number of loader workers nor on what was fed before.

Not covered: batches made on the device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from speechlab import corpora
from speechlab.augment import Augmenter, Masks
from speechlab.config import Experiment
from speechlab.features import HOP
from speechlab.plan import Micro, context_for
from speechlab.units import SAMPLE_RATE, Seconds

PREFETCH = 4  # micro-batches that a loader worker prepares ahead: rooms and codecs make some slow


@dataclass(frozen=True)
class Batch:
    """What a model gets: the batch contract.

    Attributes:
        ids: B clip ids.
        texts: B transcripts as written; empty strings where only decoding is wanted.
        wave_BN: float32 waveforms in [-1, 1] at 16 kHz, zero-padded on the right to the longest clip.
        seconds: B durations before padding.
        context: Seconds that the encoder hears, at least the longest clip.
        masks: B masks for the spectrogram (SpecAugment), None for a clip that has none; None if no clip has.
    """

    ids: tuple[str, ...]
    texts: tuple[str, ...]
    wave_BN: Tensor
    seconds: tuple[Seconds, ...]
    context: Seconds
    masks: tuple[Masks | None, ...] | None = None

    @property
    def samples_B(self) -> Tensor:
        """Samples of each clip before padding, on the waveforms' device."""
        return torch.tensor([round(s * SAMPLE_RATE) for s in self.seconds], device=self.wave_BN.device)

    def to(self, device: torch.device) -> Batch:
        """The same batch on another device."""
        return replace(self, wave_BN=self.wave_BN.to(device, non_blocking=True))

    def at(self, context: Seconds) -> Batch:
        """The same clips, heard in another context."""
        return replace(self, context=context)

    def rows(self, keep: Sequence[int]) -> Batch:
        """Some of the clips, in the order named."""
        ids, texts, seconds = (tuple(column[i] for i in keep) for column in (self.ids, self.texts, self.seconds))
        masks = tuple(self.masks[i] for i in keep) if self.masks else None
        return Batch(ids, texts, self.wave_BN[list(keep)], seconds, self.context, masks)  # type: ignore[arg-type]


class Clip(NamedTuple):
    """What a loader gives: id, transcript, 16 kHz float32 waveform (N,), and the masks of its spectrogram, if any."""

    id: str
    text: str
    wave_N: Any
    masks: Masks | None = None


def collate(clips: Sequence[Clip | tuple[str, str, Any]], context: Seconds | None = None, margin: Seconds = 0.5) -> Batch:
    """Make a batch.

    Args:
        clips: One row each.
        context: What the encoder hears; none is the longest clip and the margin.
        margin: Used where no context is given.
    """
    rows = [Clip(*clip) for clip in clips]
    waves = [torch.from_numpy(np.ascontiguousarray(row.wave_N, dtype=np.float32)) for row in rows]
    wave_BN = torch.nn.utils.rnn.pad_sequence(waves, batch_first=True)
    seconds = tuple(len(w) / SAMPLE_RATE for w in waves)
    return Batch(
        tuple(row.id for row in rows),
        tuple(row.text for row in rows),
        wave_BN,
        seconds,
        context if context is not None else context_for(max(seconds), margin),
        tuple(row.masks for row in rows) if any(row.masks for row in rows) else None,
    )


@dataclass(frozen=True)
class Clips:
    """The training clips by index and epoch: what :func:`feed` loads from.

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


class _Clips(Dataset[Batch]):
    """The plan's micro-batches are the keys, batches the values: nothing to look up, nothing to keep."""

    def __init__(self, load: Callable[[int, int], Clip]) -> None:
        self.load = load

    def __getitem__(self, micro: Micro) -> Batch:
        return collate([self.load(i, micro.epoch) for i in micro.clips], micro.context)


def feed(load: Callable[[int, int], Clip], micros: Iterable[Micro], loader_workers: int = 0) -> Iterator[Batch]:
    """Micro-batches of a plan as batches, in order.

    Args:
        load: Gives a clip by index and epoch; must be picklable for loader workers.
        micros: What to feed; taken lazily.
        loader_workers: Processes that prepare input; 0 loads in this one. Batches do not depend on it.
    """
    return iter(
        DataLoader(
            _Clips(load),
            batch_size=None,
            sampler=micros,  # type: ignore[arg-type]
            num_workers=loader_workers,
            prefetch_factor=PREFETCH if loader_workers else None,
            # a forked child of a Ray worker would inherit its threads' locks
            multiprocessing_context="forkserver" if loader_workers else None,
        )
    )
