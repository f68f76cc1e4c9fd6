"""Model families behind two methods, ``loss(batch)`` and ``transcribe(batch)``.

A family is one module and one line in :data:`FAMILIES`. What the loop needs of a model is written in
:class:`Model`; nothing else in the lab knows how a family works inside.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from speechlab.errors import InputError, did_you_mean
from speechlab.units import Seconds

if TYPE_CHECKING:
    from torch import Tensor

    from speechlab.batches import Batch
    from speechlab.config import ModelConfig
    from speechlab.models.weights import Weights

FAMILIES = {
    "whisper": "speechlab.models.whisper:Whisper",
    "wav2vec2": "speechlab.models.wav2vec2:Wav2Vec2",
    "conformer": "speechlab.models.conformer:Conformer",
}
CONTEXTS = {"silence": "silence behind it", "short": "short context", "full": "30 s"}  # how they are called beside a system


@dataclass(frozen=True)
class Loss:
    """A summed loss and what it is summed over, so that steps can be weighted by tokens.

    Attributes:
        total: Scalar, nats.
        tokens: Label tokens in the sum; of pretraining, masked frames.
        infeasible: Places in the batch of clips that are left out of the sum, because CTC cannot align so long a text
            with so few frames.
    """

    total: Tensor
    tokens: int
    infeasible: tuple[int, ...] = ()


@dataclass(frozen=True)
class Hypothesis:
    """What a model heard.

    Attributes:
        text: The transcript.
        ended: Whether decoding came to its end token; if not, the text was cut.
        context: Seconds the encoder heard: 30 after a fallback.
        confidences: How sure each word of ``text.split()`` is, as a probability; empty if the family does not say.
    """

    text: str
    ended: bool
    context: Seconds
    confidences: tuple[float, ...] = field(default=(), compare=False)


class Model(Protocol):
    """What the loop and the decoder need of a family, beside being a ``torch.nn.Module`` whose ``forward`` is ``loss``.

    Its class is called with (folder, language, config): config is the experiment's model section while training, which
    freezes weights or adds adapters, and None where it is only to transcribe. A family that can start without weights,
    or from weights that bring no vocabulary, also has a class method ``create(config, start, language, texts, folder)``
    that writes the initial weights into an empty folder, and ``complete(folder, config)`` that says whether a folder needs
    that. Its module has a function ``count_tokens(folder, texts)``, which loads no weights.

    Attributes:
        contexts: In which clips can be transcribed, the usual one first: ``("silence", "short", "full")`` where the encoder has a
            window, ``("clip",)`` where it hears the clip and no more.
        label_rate: Most label tokens a second of a step's audio, where labels cost time and memory of their own; None: any.
    """

    contexts: tuple[str, ...]
    label_rate: float | None

    def recompute(self) -> None:
        """From now on compute activations twice rather than keep them (gradient checkpointing)."""

    def loss(self, batch: Batch) -> Loss:
        """The summed training loss of a batch."""

    def transcribe(self, batch: Batch, *, context: str | None = None, fallback: bool = True) -> list[Hypothesis]:
        """One hypothesis a clip, in order; what else is in the batch does not matter. None is the first of ``contexts``."""

    def times(self, batch: Batch, texts: Sequence[str]) -> list[list[tuple[Seconds, Seconds]]]:
        """Begin and end of each word of each text, in seconds of its clip."""

    def count_tokens(self, texts: list[str]) -> list[int]:
        """Label tokens of each transcript: the weight of a clip in a step."""

    def save(self, folder: Path) -> None:
        """Write a folder that :func:`load` reads, and transformers' ``from_pretrained`` where it knows the architecture."""


def load(family: str, folder: str | Path, language: str, config: ModelConfig | None = None) -> Any:
    """Build a model from a folder of weights.

    Args:
        family: A key of :data:`FAMILIES`.
        folder: As :func:`begin`, :func:`speechlab.models.weights.resolve` or a checkpoint gives it.
        language: Of the speech.
        config: To train: says what is frozen and whether adapters are added. None is for transcribing.

    Returns:
        A :class:`Model` that is a ``torch.nn.Module``, float32, on the CPU.

    Raises:
        InputError: if the family is not known or the folder does not suit it.
    """
    return family_class(family)(folder, language, config)


def parameters(model: Any) -> tuple[int, int]:
    """The number of a model's parameters, and of those that learn."""
    return sum(p.numel() for p in model.parameters()), sum(p.numel() for p in model.parameters() if p.requires_grad)


def begin(config: ModelConfig, language: str, texts: Sequence[str], seed: int, registry: str | None = None) -> Weights:
    """The initial weights of an experiment: found by name, or made in the cache where they must be.

    Args:
        config: The model section.
        language: Of the speech.
        texts: Training transcripts, from which a CTC model's vocabulary is made.
        seed: Of what is drawn.
        registry: As for :func:`speechlab.models.weights.resolve`.

    Returns:
        The folder to :func:`load`, its digest and origin; equal arguments give equal bits.

    Raises:
        InputError: if the family is not known, or cannot start as the config says.
        speechlab.fetch.FetchError: if weights are named and not found.
    """
    import torch

    from speechlab.models import weights

    kind = family_class(config.family)
    start = weights.resolve(config.family, config.weights, config.revision, registry) if config.weights is not None else None
    if not hasattr(kind, "create"):
        if start is None:
            raise InputError(
                f"{config.family} does not start from scratch.",
                got="model.weights: null",
                expected="weights",
                do="name them, see README.md",
            )
        return start
    if start is not None and kind.complete(start.path, config):
        return start

    def write(folder: Path) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            kind.create(config, start.path if start else None, language, list(texts), folder)

    made_of = {"model": config.model_dump(), "start": start.sha256 if start else None, "language": language, "seed": seed}
    return weights.made(config.weights or "from scratch", {**made_of, "texts": sorted(set(texts))}, write, start)


def family_class(family: str) -> Any:
    """The class behind a family's name.

    Raises:
        InputError: if it is not known, with the known ones.
    """
    check_family(family)
    module, name = FAMILIES[family].split(":")
    return getattr(importlib.import_module(module), name)


def count_tokens(family: str, folder: str | Path, texts: Sequence[str]) -> list[int]:
    """Label tokens of each transcript, by the family's ``count_tokens``, which loads no weights.

    Args:
        family: A key of :data:`FAMILIES`.
        folder: As for :func:`load`.
        texts: Transcripts.

    Raises:
        InputError: if the family is not known.
    """
    check_family(family)
    counts: list[int] = importlib.import_module(FAMILIES[family].split(":")[0]).count_tokens(folder, texts)
    return counts


def check_family(family: str) -> None:
    """Refuse an unknown family.

    Raises:
        InputError: with the known ones.
    """
    if family not in FAMILIES:
        raise InputError(f'Unknown model family "{family}".', got=family, do=did_you_mean(family, FAMILIES))
