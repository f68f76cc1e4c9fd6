"""A clip to look at: waveform and log-mel spectrogram."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import holoviews as hv
import numpy as np
import numpy.typing as npt
import pandas as pd

from speechlab.errors import InputError
from speechlab.plots.style import COLOURS, finish
from speechlab.units import SAMPLE_RATE, Seconds

MOST_COLUMNS = 1000  # of a waveform or a spectrogram: what a screen can show
RANGE = 80  # dB below its loudest point that a spectrogram shows, as Whisper's log-mel does


def waveform(wave_N: npt.NDArray[np.floating[Any]], spans: Sequence[tuple[Seconds, Seconds]] = (), title: str = "Waveform") -> hv.Overlay:
    """A waveform as the lowest and highest sample of each stretch, so that no peak is lost, over the spans of speech.

    Args:
        wave_N: 16 kHz samples.
        spans: From and to, in seconds.
        title: Above the figure.

    Raises:
        InputError: if there are no samples.
    """
    if not len(wave_N):
        raise InputError("There is no waveform to draw.", got="0 samples", expected="one or more")
    starts = np.unique(np.linspace(0, len(wave_N), min(MOST_COLUMNS, len(wave_N)), endpoint=False).astype(int))
    table = pd.DataFrame(
        {"time": starts / SAMPLE_RATE, "low": np.minimum.reduceat(wave_N, starts), "high": np.maximum.reduceat(wave_N, starts)}
    ).astype(np.float32)
    time, low, high = hv.Dimension("time", unit="s"), hv.Dimension("low", label="full scale"), hv.Dimension("high")
    tips = [("time", "@time{0.00} s"), ("from", "@low{0.000}"), ("to", "@high{0.000}")]
    speech = hv.VSpans(list(spans), kdims=["from", "to"], label="speech").opts(color=COLOURS[2], alpha=0.25, line_alpha=0)
    area = hv.Area(table, time, [low, high], label="samples").opts(color=COLOURS[0], line_color=COLOURS[0], line_width=1)
    hover = hv.Curve(table, time, [high, low]).opts(alpha=0, tools=["hover"], hover_tooltips=tips, hover_mode="vline")
    ends = {"xlim": (0, len(wave_N) / SAMPLE_RATE), "ylim": (-1, 1), "yticks": [-1, 0, 1], "xlabel": "time (s)", "ylabel": "full scale"}
    return finish((speech * area * hover).opts(**ends), title, height=190)


def spectrogram(mel_MT: npt.NDArray[np.floating[Any]], seconds: Seconds, title: str = "Log-mel") -> hv.Image:
    """A log-mel spectrogram in decibels below its loudest point, in steps of one, which keeps a page small.

    Args:
        mel_MT: Whisper's log-mel, ``(log10(power) + 4) / 4``, bands by frames; of more frames than a screen has columns,
            each stretch's loudest are shown.
        seconds: How long it is.
        title: Above the figure.

    Raises:
        InputError: if it is empty, not finite, or has no duration.
    """
    if mel_MT.ndim != 2 or not mel_MT.size or not np.isfinite(mel_MT).all() or not seconds > 0:
        raise InputError(
            "There is no spectrogram to draw.", got=f"shape {mel_MT.shape}, {seconds} s", expected="finite values, bands by frames"
        )
    starts = np.unique(np.linspace(0, mel_MT.shape[1], min(MOST_COLUMNS, mel_MT.shape[1]), endpoint=False).astype(int))
    level_MT = 40 * np.maximum.reduceat(mel_MT, starts, axis=1)
    shown_MT = np.clip(np.rint(level_MT - level_MT.max()), -RANGE, 0).astype(np.int8)
    time, band, level = (
        hv.Dimension("time", unit="s"),
        hv.Dimension("band", label="frequency", unit="kHz"),
        hv.Dimension("level", unit="dB"),
    )
    image = hv.Image(shown_MT[::-1], [time, band], level, bounds=(0, 0, seconds, len(mel_MT)), rtol=1)
    ticks = [(_band(1000 * kilohertz, len(mel_MT)), f"{kilohertz:g}") for kilohertz in (0.5, 1, 2, 4)]
    return finish(image.opts(cmap="viridis", clim=(-RANGE, 0), yticks=ticks, colorbar=False), title, height=190)


def _band(hertz: float, bands: int) -> float:
    """Where a frequency lies among mel bands from 0 to 8 kHz, on Slaney's scale: linear up to 1 kHz, logarithmic above."""
    mel = [3 * f / 200 if f < 1000 else 15 + 27 * np.log(f / 1000) / np.log(6.4) for f in (hertz, SAMPLE_RATE / 2)]
    return float((bands + 1) * mel[0] / mel[1] - 0.5)
