"""What can be measured on a clip without knowing what is said in it.

Notable: levels belong to active speech; the SNR is an estimate from the distribution of frame powers, good to a few
decibels between 0 and 30 dB where a clip has pauses; the bandwidth finds telephone speech in a 16 kHz file.

Not covered: perceived quality, reverberation, several speakers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import scipy.signal  # type: ignore[import-untyped]

from speechlab import audio
from speechlab.audio import Wave, check
from speechlab.units import SAMPLE_RATE, Decibels, Hertz, Seconds, exact_div
from speechlab.vad import Span

FULL_SCALE = 0.999  # of 1; 16-bit files clip at 32767 / 32768
FRAME = exact_div(SAMPLE_RATE, 100)  # 10 ms
WINDOW = 512  # samples of the spectrum behind the bandwidth: 31 Hz a bin
SILENCE: Decibels = -80.0  # dBFS; an active level below it is digital silence with dither at most
FLOOR: Decibels = -120.0  # given for the level of nothing
DYNAMICS: Decibels = 45.0  # below the strongest band at which a band holds no speech but noise of the coder


@dataclass(frozen=True)
class Measures:
    """A clip in numbers.

    Attributes:
        seconds: Duration at 16 kHz.
        peak: Largest magnitude, full scale 1.
        dc: Mean of the samples, full scale 1.
        clipped: Share of samples at full scale that stand beside another one.
        level: Active level in dBFS (ITU-T P.56 as in :func:`speechlab.audio.active_power`).
        snr: Estimate in dB; NaN where the clip has no pause to hear the noise in.
        bandwidth: Hz below which the speech's power lies.
        speech: Seconds of speech by VAD; NaN if nobody looked.
    """

    seconds: Seconds
    peak: float
    dc: float
    clipped: float
    level: Decibels
    snr: Decibels
    bandwidth: Hertz
    speech: Seconds

    @property
    def silent(self) -> bool:
        """Whether nothing can be heard."""
        return self.level < SILENCE


def measure(wave_N: npt.ArrayLike, spans: list[Span] | None = None) -> Measures:
    """Everything at once.

    Args:
        wave_N: 16 kHz samples, full scale 1.
        spans: Speech by :func:`speechlab.vad.speech`; None if nobody looked.

    Raises:
        InputError: as for :func:`speechlab.audio.check`.
    """
    wave = check(wave_N)
    heard = math.nan if spans is None else sum(end - start for start, end in spans)
    level = FLOOR
    if wave.any():
        level = max(FLOOR, 10 * math.log10(max(audio.active_power(wave), 1e-300)))
    silent = level < SILENCE
    return Measures(
        seconds=wave.size / SAMPLE_RATE,
        peak=float(np.abs(wave).max()),
        dc=float(wave.mean(dtype=np.float64)),
        clipped=clipped_share(wave),
        level=level,
        snr=math.nan if silent else snr(wave, spans),
        bandwidth=0 if silent else bandwidth(wave),
        speech=heard,
    )


def clipped_share(wave_N: Wave) -> float:
    """Share of the samples that stand at the file's own ceiling next to another one.

    The ceiling is the largest magnitude of either sign, wherever it lies from half of full scale: speech that was
    clipped and turned down afterwards keeps its flat tops. One sample at the peak is no clipping.
    """
    flat = 0
    for side in (wave_N, -wave_N):
        top = float(side.max())
        if top < 0.5 and top < FULL_SCALE:
            continue
        at = side >= top * (1 - 1e-4) if top < FULL_SCALE else side >= FULL_SCALE
        flat += int((at & (np.roll(at, 1) | np.roll(at, -1))).sum()) if at.sum() > 1 else 0
    return flat / wave_N.size


def snr(wave_N: Wave, spans: list[Span] | None = None) -> Decibels:
    """Power of active speech over the power between, estimated in dB.

    With spans: what lies outside them, 50 ms away from their edges, is noise; the lower quartile of its frame powers is
    taken, so that clicks, breaths and a word that the VAD missed do not count. Without, or with under 100 ms left, the
    quietest tenth of the frames is. The noise is subtracted from the speech's power. A clip of digital silence between
    words has no noise, and gives 100 dB.

    Returns:
        At most 100; NaN where a clip is shorter than 0.2 s or has no speech to be found.
    """
    whole = wave_N[: wave_N.size // FRAME * FRAME].astype(np.float64)
    power_T = (whole.reshape(-1, FRAME) ** 2).mean(axis=1)
    if power_T.size < 20:
        return math.nan
    if spans is not None and not spans:
        return math.nan
    between = np.ones(power_T.size, dtype=bool)
    for start, end in spans or []:
        between[max(0, int((start - 0.05) * 100)) : math.ceil((end + 0.05) * 100)] = False
    noise = float(np.sort(power_T)[: max(2, power_T.size // 10)].mean())
    if spans is not None and between.sum() >= 10:
        outside = float(np.quantile(power_T[between], 0.25))
        noise = outside if outside < 4 * noise else noise  # 6 dB above the quietest tenth lies speech that the VAD missed
    if noise < 1e-12:
        return 100.0
    signal = audio.active_power(wave_N) - noise
    return -20.0 if signal <= noise / 100 else min(100.0, 10 * math.log10(signal / noise))


def bandwidth(wave_N: Wave) -> Hertz:
    """The frequency above which nothing of the speech is left, in Hz.

    The highest bin of the long-term spectrum over the loud frames that lies within :data:`DYNAMICS` of the strongest. A
    telephone band ends near 3.4 to 4 kHz whatever the file's rate; speech with any sibilant in it reaches 7 kHz.
    """
    if wave_N.size < WINDOW:
        return SAMPLE_RATE // 2
    _, _, spectrum_FT = scipy.signal.stft(wave_N, SAMPLE_RATE, nperseg=WINDOW, noverlap=WINDOW // 2, boundary=None)
    power_FT = np.abs(spectrum_FT) ** 2
    # the loudest moments of each band: a sibilant lasts a tenth of a second and would vanish in a mean
    strong_F = np.quantile(power_FT, 0.98, axis=1)
    if not strong_F.any():
        return 0
    heard = np.flatnonzero(strong_F >= strong_F.max() * 10 ** (-DYNAMICS / 10))
    return int(heard[-1] * SAMPLE_RATE // WINDOW)
