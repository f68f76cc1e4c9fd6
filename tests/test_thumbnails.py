"""Small pictures: read back by Pillow and an XML parser, against the sound they are of."""

from __future__ import annotations

import io
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from speechlab import corpora
from speechlab.listen import log_mel
from speechlab.thumbnails import COLUMNS, SHADES, mel_png, wave_svg

TONE = (0.3 * np.sin(2 * np.pi * 400 * np.arange(16_000) / 16_000)).astype(np.float32)


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGBA")).astype(int)


def points(svg: str) -> np.ndarray:
    polygon = ElementTree.fromstring(svg)[0]  # our own
    return np.array([list(map(float, pair.split(","))) for pair in polygon.get("points").split()])


def test_a_tone_stands_where_its_frequency_is():
    rgba = pixels(mel_png(log_mel(TONE)))
    assert rgba.shape == (80, 100, 4)
    row = int(rgba[..., 3].mean(1).argmax())
    assert 65 < row < 75, "400 Hz is mel band 9 or so, and low bands are below"
    assert rgba[row, 50, 0] > rgba[row, 50, 2], "the loudest is red rather than blue"
    assert rgba[:40, 50, 3].max() < 128


def test_silence_is_an_empty_picture():
    assert not pixels(mel_png(log_mel(np.zeros(8000))))[..., 3].any()
    assert not points(wave_svg(np.zeros(8000, np.float32)))[:COLUMNS, 1].any()


def test_a_waveform_keeps_its_peaks():
    wave = np.zeros(48_000, np.float32)
    wave[20_001], wave[30_001] = 0.5, -0.25
    found = points(wave_svg(wave))
    assert found[:, 1].min() == -1, "up is negative in SVG, and the peak fills the picture"
    assert found[:, 1].max() == pytest.approx(0.52)
    assert found[found[:, 1].argmin(), 0] == pytest.approx(COLUMNS * 20_001 / 48_000, abs=1)


@pytest.mark.parametrize("samples", [1, 2, 100, 161, 16_000 * 31])
def test_clips_of_any_length_have_pictures(samples):
    wave = np.random.default_rng(1).standard_normal(samples).astype(np.float32)
    assert len(points(wave_svg(wave))) == 2 * min(samples, COLUMNS)
    assert pixels(mel_png(log_mel(wave))).shape[1] <= COLUMNS


def test_pictures_of_real_clips_are_small(prompts):
    for cut in sorted(prompts.cuts["test"], key=lambda c: c.duration)[::20]:
        wave = corpora.load_audio(cut)
        png = mel_png(log_mel(wave))
        assert len(png) + len(wave_svg(wave)) < 12_000
        assert len(np.unique(pixels(png).reshape(-1, 4), axis=0)) <= SHADES
