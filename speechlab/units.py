"""Units in signatures and the legend of shapes.

Legend, used as suffixes of tensor and array names (``wave_BN``, ``mel_BMT``):

====  ==============================================================
B     clips in a batch
N     samples of a waveform (16 kHz, float32 in [-1, 1])
T     frames of the front end (Whisper: 10 ms)
M     mel bands
F     frames of the encoder (Whisper: 20 ms)
D     model width
L     label tokens
V     vocabulary
U     utterances in a scored table
R     bootstrap resamples
====  ==============================================================
"""

from __future__ import annotations

from datetime import datetime
from typing import TypeAlias

Seconds: TypeAlias = float
Hertz: TypeAlias = int
Decibels: TypeAlias = float
Samples: TypeAlias = int
Bytes: TypeAlias = int

SAMPLE_RATE: Hertz = 16_000  # what every model of the lab hears
FULL_CONTEXT: Seconds = 30.0  # what Whisper was trained on
TOKENS_PER_SECOND = 12  # of text, above any speaking rate


def exact_div(x: int, y: int) -> int:
    """Integer division that refuses a remainder, for constants derived from one another.

    Raises:
        AssertionError: if y does not divide x (an invariant of the code, not user input).
    """
    assert x % y == 0, f"{y} does not divide {x}"
    return x // y


def clock(seconds: Seconds) -> str:
    """A duration as people read it: ``0.8 s``, ``42 s``, ``3 min 05 s``, ``2 h 07 min``."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def moment(when: Seconds) -> str:
    """A time in seconds since 1970 with its offset from UTC, for pages that are read in whatever zone: ``2026-11-28 00:47 UTC+01:00``."""
    here = datetime.fromtimestamp(when).astimezone()
    offset = f"{here:%z}"
    return f"{here:%Y-%m-%d %H:%M} UTC{offset[:3]}:{offset[3:5]}"
