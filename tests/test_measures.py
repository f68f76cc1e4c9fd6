"""Measures against what was put into the sound: noise at a known SNR, a known band, known clipping, a known level."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.signal
import soxr

from speechlab import audio, corpora, vad
from speechlab.errors import InputError
from speechlab.measures import bandwidth, clipped_share, measure, snr

RATE = 16_000


@pytest.fixture(scope="module")
def waves(prompts) -> list[np.ndarray]:
    return [corpora.load_audio(c) for c in list(prompts.cuts["train"]) if c.duration > 2][:40]


@pytest.mark.parametrize("wanted", [0, 10, 20, 30])
@pytest.mark.parametrize("looked", [True, False])
def test_snr_is_the_one_put_in(waves, wanted, looked):
    off = [snr(audio.add_noise(w, wanted, i), vad.speech(w) if looked else None) - wanted for i, w in enumerate(waves)]
    assert abs(np.median(off)) < (1.5 if looked else 2.5)
    if looked:
        assert np.quantile(np.abs(off), 0.8) < 4


def test_snr_of_clean_speech_is_high_and_of_noise_alone_low(waves):
    assert np.median([snr(w, vad.speech(w)) for w in waves]) > 30
    noise = np.random.default_rng(0).standard_normal(3 * RATE).astype(np.float32) * 0.1
    assert snr(noise) < 3
    assert snr(np.concatenate([waves[0], np.zeros(RATE, np.float32)]), [(0.0, len(waves[0]) / RATE)]) == 100
    assert math.isnan(snr(waves[0][:2000]))


@pytest.mark.parametrize(("band", "low", "high"), [(3400, 3100, 4000), (4000, 3600, 4300), (8000, 5500, 8000)])
def test_bandwidth_is_where_the_speech_ends(waves, band, low, high):
    found = []
    for wave in waves:
        if band == 3400:
            wave = scipy.signal.sosfiltfilt(scipy.signal.butter(8, [300, 3400], "bandpass", fs=RATE, output="sos"), wave).astype(np.float32)
        elif band == 4000:
            wave = soxr.resample(soxr.resample(wave, RATE, 8000), 8000, RATE)
        found.append(bandwidth(wave))
    assert np.mean([low <= f <= high for f in found]) >= 0.95, sorted(found)


@pytest.mark.parametrize("level", [1.0, 0.6])
def test_clipping_is_flat_tops_wherever_they_lie(waves, level):
    for wave in waves[:10]:
        assert clipped_share(level * wave / np.abs(wave).max()) == 0  # one sample at the peak is none
        loud = np.clip(wave / np.abs(wave).max() * 3, -1, 1)
        wanted = np.mean(np.abs(loud) == 1)
        assert clipped_share((level * loud).astype(np.float32)) == pytest.approx(wanted, rel=0.1)


def test_levels_and_dc_are_those_put_in(waves):
    for wave in waves[:10]:
        a, b = measure(wave), measure(wave * 0.1)
        assert b.level == pytest.approx(a.level - 20, abs=0.01)
        assert measure(wave + np.float32(0.02)).dc == pytest.approx(0.02 + a.dc, abs=1e-5)
        assert a.peak == np.abs(wave).max()
        assert a.seconds == len(wave) / RATE
        assert math.isnan(a.speech)
    assert measure(waves[0], [(0.5, 1.5), (1.6, 2.0)]).speech == pytest.approx(1.4)


def test_silence_and_what_is_no_wave():
    silent = measure(np.zeros(RATE))
    assert silent.silent
    assert silent.level == -120
    with pytest.raises(InputError, match="NaN"):
        measure(np.full(RATE, np.nan))
    with pytest.raises(InputError, match="shape"):
        measure(np.zeros((2, RATE)))
    assert not measure(np.random.default_rng(0).standard_normal(300) * 0.1).silent  # shorter than any window
