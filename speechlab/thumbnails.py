"""A clip as two small pictures for pages that list many: the waveform as SVG, the log-mel as PNG.

Notable: both are of one colour over transparency, so that they read on a light and on a dark page, and take about 8 kB. Nothing of
them can be measured; figures for that are in :mod:`speechlab.plots`.

Not covered: axes.
"""

from __future__ import annotations

import io
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from speechlab.audio import Wave
from speechlab.plots.sound import RANGE
from speechlab.plots.style import COLOURS

COLUMNS = 240
SHADES = 16  # of the log-mel, 5 dB each: fewer compress better, and no eye counts more


def wave_svg(wave_N: Wave) -> str:
    """A waveform as a small picture: the lowest and the highest sample of each stretch, over its peak.

    Args:
        wave_N: 16 kHz samples.
    """
    starts = np.unique(np.linspace(0, len(wave_N), min(COLUMNS, len(wave_N)), endpoint=False).astype(int))
    scaled_N = wave_N / max(float(np.abs(wave_N).max()), 1e-9)
    tops, bottoms = np.maximum.reduceat(scaled_N, starts), np.minimum.reduceat(scaled_N, starts)
    there = " ".join(f"{x},{-y:.2f}" for x, y in enumerate(tops))
    back = " ".join(f"{x},{-y + 0.02:.2f}" for x, y in reversed(list(enumerate(bottoms))))
    size = f'width="{2 * COLUMNS}" height="36" viewBox="0 -1 {max(len(starts) - 1, 1)} 2" preserveAspectRatio="none"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size}><polygon fill="{COLOURS[0]}" points="{there} {back}"/></svg>'


def mel_png(mel_MT: npt.NDArray[np.floating[Any]]) -> bytes:
    """A log-mel spectrogram as a small picture, low bands below: the louder, the less transparent, the loudest in a second colour.

    Args:
        mel_MT: Whisper's log-mel, as for :func:`speechlab.plots.spectrogram`.
    """
    starts = np.unique(np.linspace(0, mel_MT.shape[1], min(COLUMNS, mel_MT.shape[1]), endpoint=False).astype(int))
    level_MT = 40 * np.maximum.reduceat(mel_MT, starts, axis=1)
    share_MT = np.clip(1 + (level_MT - level_MT.max()) / RANGE, 0, 1) * (level_MT.max() > level_MT.min())  # of silence nothing
    picture = Image.fromarray(np.rint((SHADES - 1) * share_MT[::-1]).astype(np.uint8), "P")
    picture.putpalette(_palette(), "RGBA")
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


@lru_cache(maxsize=1)
def _palette() -> bytes:
    """From nothing over blue to full vermilion, which is the last quarter."""
    blue, red = (np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) for colour in COLOURS[:2])
    share = np.linspace(0, 1, SHADES)
    towards, alpha = np.clip(4 * share - 3, 0, 1)[:, None], share[:, None] ** 1.5
    return bytes(np.rint(np.hstack([blue + towards * (red - blue), 255 * alpha])).astype(np.uint8))
