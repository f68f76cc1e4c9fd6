"""From a model and cuts to hypotheses: batches by duration, every clip answered, order kept.

Used by validation and by evaluation alike. Not covered yet: beam search, language models, word times.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from speechlab import batches, corpora
from speechlab.errors import InputError
from speechlab.units import FULL_CONTEXT, Seconds

MARGIN: Seconds = 0.5  # silence heard behind the longest clip of a batch, in short context


@dataclass(frozen=True)
class Decoded:
    """One clip's answer.

    Attributes:
        id: Of the clip.
        speaker: Of the clip.
        duration: Seconds of audio.
        reference: Transcript as written.
        hypothesis: What the model heard.
        ended: Whether decoding came to its end.
        context: Seconds the encoder heard.
        seconds: Wall-clock time of its batch, shared among the batch by duration.
    """

    id: str
    speaker: str
    duration: Seconds
    reference: str
    hypothesis: str
    ended: bool
    context: Seconds
    seconds: Seconds


def decode(
    model: Any,
    cuts: Sequence[Any],
    *,
    context: str = "short",
    batch_size: int = 16,
    precision: str = "bf16",
    device: str = "cpu",
    alter: Callable[[str, Any], Any] | None = None,
) -> Iterator[list[Decoded]]:
    """Decode cuts in batches of like durations.

    Args:
        model: A :class:`speechlab.models.Model`.
        cuts: lhotse cuts.
        context: ``short`` (longest clip of the batch and a margin) or ``full`` (30 s).
        batch_size: Clips decoded together.
        precision: ``fp32``, or ``bf16`` or ``fp16`` autocast.
        device: Where the model is.
        alter: What happens to a waveform before the model hears it: (clip id, wave) to wave.

    Yields:
        The answers of one batch at a time, so that a caller can show progress.
    """
    ordered = sorted(cuts, key=lambda c: (c.duration, c.id))
    training = model.training
    model.eval()
    try:
        for start in range(0, len(ordered), batch_size):
            yield _batch(model, ordered[start : start + batch_size], context, precision, device, alter)
    finally:
        model.train(training)


def _batch(model: Any, cuts: list[Any], context: str, precision: str, device: str, alter: Any) -> list[Decoded]:
    clips = [(c.id, c.supervisions[0].text, corpora.load_audio(c)) for c in cuts]
    if alter is not None:
        clips = [(i, text, alter(i, wave)) for i, text, wave in clips]
    batch = batches.collate(clips, FULL_CONTEXT if context == "full" else None, MARGIN).to(torch.device(device))
    began = time.perf_counter()
    with autocast(device, precision):
        hypotheses = model.transcribe(batch)
    seconds = time.perf_counter() - began  # transcribe returns texts, so the device is done
    share = seconds / sum(batch.seconds)
    return [
        Decoded(c.id, c.supervisions[0].speaker or "", d, c.supervisions[0].text, h.text, h.ended, h.context, d * share)
        for c, d, h in zip(cuts, batch.seconds, hypotheses, strict=True)
    ]


def autocast(device: str, precision: str) -> torch.autocast:
    """The mixed-precision region of a device: bf16 needs no loss scaling, fp16 does."""
    dtype = torch.float16 if precision == "fp16" else torch.bfloat16
    return torch.autocast(torch.device(device).type, dtype, enabled=precision != "fp32")


def resolve_device(wanted: str, cuda: bool) -> str:
    """``auto`` is CUDA where there is one.

    Raises:
        InputError: if CUDA is asked for and absent.
    """
    if wanted == "cuda" and not cuda:
        raise InputError(
            "No CUDA device was found.", got="cluster.device: cuda", expected="a machine with a GPU", do="set cluster.device to auto or cpu"
        )
    return "cuda" if cuda and wanted != "cpu" else "cpu"
