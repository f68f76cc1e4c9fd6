"""From a model and cuts to hypotheses: batches by seconds, every clip answered, none that spoils the rest.

Used by validation and by evaluation alike. What a model hears of a clip does not depend on the batch that it is in, so
neither do the answers; batches are for speed. A clip that cannot be read is answered with the reason.

Not covered: word times; sets too large for one process (:mod:`speechlab.infer`).
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch

from speechlab import batches, corpora
from speechlab.errors import InputError
from speechlab.units import Seconds

BATCH: Seconds = 240.0  # audio that is decoded together, padding included
MOST = 128  # clips, where they are short


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
        seconds: Wall-clock time of its batch, from samples to text, shared among the batch by duration.
        confidences: How sure each word of the hypothesis is; empty if the model does not say.
        problem: Why there is no answer; empty if there is one.
    """

    id: str
    speaker: str
    duration: Seconds
    reference: str
    hypothesis: str
    ended: bool = True
    context: Seconds = 0.0
    seconds: Seconds = 0.0
    confidences: tuple[float, ...] = ()
    problem: str = ""


def decode(
    model: Any, cuts: Sequence[Any], *, context: str | None = None, seconds: Seconds = BATCH, precision: str = "bf16", device: str = "cpu"
) -> Iterator[list[Decoded]]:
    """Decode cuts in batches of like durations, from short to long.

    Args:
        model: A :class:`speechlab.models.Model`.
        cuts: lhotse cuts.
        context: One of the model's ``contexts``; None is the first of them.
        seconds: Most audio of a batch, padding included; 0 decodes clips one by one.
        precision: ``fp32``, or ``bf16`` or ``fp16`` autocast.
        device: Where the model is.

    Yields:
        The answers of one batch at a time, so that a caller can show progress.
    """
    planned = plan(cuts, seconds)
    if not planned:
        return
    training = model.training
    model.eval()
    try:
        with ThreadPoolExecutor(1) as ahead:  # the next batch is read while this one is decoded
            coming = ahead.submit(_read, planned[0])
            for following in [*planned[1:], []]:
                clips, broken = coming.result()
                coming = ahead.submit(_read, following)
                yield broken + (_batch(model, clips, context, precision, device) if clips else [])
    finally:
        model.train(training)


def plan(cuts: Sequence[Any], seconds: Seconds = BATCH) -> list[list[Any]]:
    """Cuts in batches of like durations, from short to long: :data:`MOST` clips and so many seconds at most, one clip at least."""
    planned: list[list[Any]] = []
    for cut in sorted(cuts, key=lambda c: (c.duration, c.id)):
        if planned and len(planned[-1]) < MOST and (len(planned[-1]) + 1) * cut.duration <= seconds:
            planned[-1].append(cut)
        else:
            planned.append([cut])
    return planned


def _read(cuts: list[Any]) -> tuple[list[tuple[Any, Any]], list[Decoded]]:
    """Cuts with their samples, and answers for those that have none."""
    clips, broken = [], []
    for cut in cuts:
        try:
            clips.append((cut, corpora.load_audio(cut)))
        except InputError as e:
            broken.append(Decoded(*_about(cut), cut.duration, cut.supervisions[0].text, "", ended=False, problem=str(e)))
    return clips, broken


def _batch(model: Any, clips: list[tuple[Any, Any]], context: str | None, precision: str, device: str) -> list[Decoded]:
    batch = batches.collate([(cut.id, "", wave_N) for cut, wave_N in clips])
    began = time.perf_counter()
    with autocast(device, precision):
        hypotheses = model.transcribe(batch.to(torch.device(device)), context=context)
    share = (time.perf_counter() - began) / sum(batch.seconds)  # transcribe returns texts, so the device is done
    return [
        Decoded(*_about(cut), d, cut.supervisions[0].text, h.text, h.ended, h.context, d * share, h.confidences)
        for (cut, _), d, h in zip(clips, batch.seconds, hypotheses, strict=True)
    ]


def _about(cut: Any) -> tuple[str, str]:
    return cut.id, cut.supervisions[0].speaker or ""


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
