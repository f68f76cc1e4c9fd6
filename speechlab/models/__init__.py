"""Model families behind two methods, ``loss(batch)`` and ``transcribe(batch)``.

A family is one module and one line in :data:`FAMILIES`. What the loop needs of a model is written in
:class:`Model`; nothing else in the lab knows how a family works inside.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from speechlab.errors import InputError, did_you_mean
from speechlab.units import Seconds

if TYPE_CHECKING:
    from torch import Tensor

    from speechlab.batches import Batch

FAMILIES = {"whisper": "speechlab.models.whisper:Whisper"}


@dataclass(frozen=True)
class Loss:
    """A summed loss and what it is summed over, so that steps can be weighted by tokens.

    Attributes:
        total: Scalar, nats.
        tokens: Label tokens in the sum.
    """

    total: Tensor
    tokens: int


@dataclass(frozen=True)
class Hypothesis:
    """What a model heard.

    Attributes:
        text: The transcript.
        ended: Whether decoding came to its end token; if not, the text was cut.
        context: Seconds the encoder heard: 30 after a fallback.
    """

    text: str
    ended: bool
    context: Seconds


class Model(Protocol):
    """What the loop and the decoder need of a family, beside being a ``torch.nn.Module``."""

    def loss(self, batch: Batch) -> Loss:
        """The summed training loss of a batch."""

    def transcribe(self, batch: Batch, *, fallback: bool = True) -> list[Hypothesis]:
        """One hypothesis a clip, in order."""

    def count_tokens(self, texts: list[str]) -> list[int]:
        """Label tokens of each transcript: the weight of a clip in a step."""

    def save(self, folder: Path) -> None:
        """Write a folder that transformers' ``from_pretrained`` loads."""


def load(family: str, folder: str | Path, language: str) -> Any:
    """Build a model from a folder of weights.

    Args:
        family: A key of :data:`FAMILIES`.
        folder: As :func:`speechlab.models.weights.resolve` or a checkpoint gives it.
        language: Of the speech.

    Returns:
        A :class:`Model` that is a ``torch.nn.Module``, float32, on the CPU.

    Raises:
        InputError: if the family is not known or the folder does not suit it.
    """
    check_family(family)
    module, name = FAMILIES[family].split(":")
    return getattr(importlib.import_module(module), name)(folder, language)


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
