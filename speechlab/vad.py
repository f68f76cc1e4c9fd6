"""Where speech is in a clip: silero-vad, a whole clip at a time.

Notable: its sequence model gives the same spans as the frame-by-frame one in a seventh of the time (7 s of one core
for an hour of audio), and its import, which sets torch to a single thread, is undone. What it would take in silence is
refused by :func:`speechlab.audio.check`: NaN would give no speech, 44.1 kHz would raise.

Not covered: streaming, who speaks.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy.typing as npt

from speechlab.audio import check
from speechlab.units import SAMPLE_RATE, Samples, Seconds

THRESHOLD = 0.5  # probability of speech from which a span begins; silero's own
MIN_PAUSE: Seconds = 0.1  # shorter pauses do not end a span
Span = tuple[Seconds, Seconds]


def speech(wave_N: npt.ArrayLike, pad: Seconds = 0.03) -> list[Span]:
    """Begin and end of each stretch of speech.

    Args:
        wave_N: 16 kHz samples, full scale 1.
        pad: Kept around each span, in seconds.

    Returns:
        Spans in seconds, ascending, within the clip; none where nothing is speech.

    Raises:
        InputError: as for :func:`speechlab.audio.check`.
    """
    wave = check(wave_N)
    model, spans_of = _model()
    found = spans_of(wave, model, threshold=THRESHOLD, min_silence_duration_ms=round(1000 * MIN_PAUSE), speech_pad_ms=round(1000 * pad))
    return [(span["start"] / SAMPLE_RATE, span["end"] / SAMPLE_RATE) for span in found]


def trimmed(wave_N: npt.ArrayLike, margin: Seconds) -> tuple[Samples, Samples]:
    """First sample and the one after the last of what speech and a margin on both sides cover.

    Args:
        wave_N: 16 kHz samples.
        margin: Kept before the first and after the last speech.

    Returns:
        The whole clip where nothing is speech: what that means is the corpus check's to say.

    Raises:
        InputError: as for :func:`speech`.
    """
    wave = check(wave_N)
    spans = speech(wave, pad=0.0)
    if not spans:
        return 0, wave.size
    first, last = spans[0][0] - margin, spans[-1][1] + margin
    return max(0, round(first * SAMPLE_RATE)), min(wave.size, round(last * SAMPLE_RATE))


def pauses(spans: list[Span], seconds: Seconds) -> list[Span]:
    """What lies between the spans of speech, edges included."""
    edges = [0.0, *(edge for span in spans for edge in span), seconds]
    return [(a, b) for a, b in zip(edges[::2], edges[1::2], strict=True) if b > a]


@lru_cache(maxsize=1)
def _model() -> tuple[Any, Any]:
    import torch

    threads = torch.get_num_threads()
    from silero_vad import load_silero_vad
    from silero_vad.sequence_vad import get_speech_timestamps_sequence

    torch.set_num_threads(threads)
    return load_silero_vad(sequence=True), get_speech_timestamps_sequence
