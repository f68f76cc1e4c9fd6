"""The front end against transformers' own extractor."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import WhisperFeatureExtractor
from transformers.audio_utils import mel_filter_bank

from speechlab import corpora
from speechlab.batches import collate
from speechlab.features import FULL_CONTEXT, MIN_SAMPLES, LogMel

TOLERANCE = 1e-5


def reference(waves: list[np.ndarray], n_mels: int) -> torch.Tensor:
    extractor = WhisperFeatureExtractor(feature_size=n_mels)
    return extractor(waves, sampling_rate=16_000, return_tensors="pt").input_features


@pytest.fixture(scope="module")
def waves(prompts) -> list[np.ndarray]:
    """Real clips, short to long, and what is no speech."""
    cuts = sorted(prompts.cuts["test"], key=lambda c: c.duration)
    rng = np.random.default_rng(0)
    noise = rng.standard_normal(40_000).astype(np.float32) / 10
    return [corpora.load_audio(c) for c in cuts[:: len(cuts) // 6]] + [
        noise,
        np.zeros(16_000, np.float32),
        np.eye(1, 8000, 4000, np.float32)[0],
    ]


def padded(waves: list[np.ndarray]) -> torch.Tensor:
    return collate([("", "", w) for w in waves]).wave_BN


@pytest.mark.parametrize("n_mels", [80, 128])
def test_at_30_s_it_equals_transformers(waves, n_mels):
    ours, theirs = LogMel(n_mels)(padded(waves), FULL_CONTEXT), reference(waves, n_mels)
    assert ours.shape == theirs.shape == (len(waves), n_mels, 3000)
    assert (ours - theirs).abs().max() < TOLERANCE
    assert theirs.flatten(1).std(dim=1)[:-2].min() > 1000 * TOLERANCE  # a tolerance far below the values' spread


def test_other_windows_and_filters_are_told_apart(waves):
    theirs = reference(waves, 80)
    for name, value in {
        "window": torch.hamming_window(400),
        "filters": torch.tensor(mel_filter_bank(201, 80, 0.0, 8000.0, 16_000, norm="slaney", mel_scale="htk").T, dtype=torch.float32),
    }.items():
        front_end = LogMel()
        setattr(front_end, name, value)
        assert (front_end(padded(waves), FULL_CONTEXT) - theirs).abs().max() > 1000 * TOLERANCE, name


def test_a_short_window_is_the_beginning_of_the_long_one(waves):
    clip = [waves[0]]
    short, full = (LogMel()(padded(clip), s) for s in (len(waves[0]) / 16_000 + 0.5, FULL_CONTEXT))
    frames = short.shape[2] - 2  # the last two reach over the edge of the short window
    assert frames > 60
    assert (short[..., :frames] - full[..., :frames]).abs().max() < TOLERANCE


@pytest.mark.parametrize("seconds", [0.1, 0.58, 1.0, 29.9, 30.0])
def test_any_window_is_finite_and_has_a_frame_every_10_ms(waves, seconds):
    mel_BMT = LogMel()(padded(waves), seconds)
    assert mel_BMT.shape == (len(waves), 80, round(seconds * 100))
    assert mel_BMT.isfinite().all()
    assert round(0.1 * 16_000) >= MIN_SAMPLES  # the shortest context of all


def test_a_clip_sounds_the_same_alone_and_in_a_batch(waves):
    batch = LogMel()(padded(waves), FULL_CONTEXT)
    for i, wave in enumerate(waves):
        assert (LogMel()(padded([wave]), FULL_CONTEXT)[0] - batch[i]).abs().max() < TOLERANCE


def test_autocast_does_not_touch_it(waves):
    with torch.autocast("cpu", torch.bfloat16):
        mixed = LogMel()(padded(waves), 5.0)
    assert mixed.dtype == torch.float32
    assert torch.equal(mixed, LogMel()(padded(waves), 5.0))
    assert not list(LogMel().state_dict())  # buffers are no part of a checkpoint
