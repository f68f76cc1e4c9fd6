"""Decoding what somebody sent: clips, what is none, and decoders that run away."""

from __future__ import annotations

import io

import numpy as np
import pytest
import soundfile

from speechlab import uploads
from speechlab.errors import InputError
from speechlab.units import SAMPLE_RATE


def flac(wave_N: np.ndarray) -> bytes:
    out = io.BytesIO()
    soundfile.write(out, wave_N, SAMPLE_RATE, format="FLAC")
    return out.getvalue()


def test_what_is_sent_is_decoded():
    wave_N = (0.1 * np.sin(np.arange(SAMPLE_RATE) / 7)).astype(np.float32)
    np.testing.assert_allclose(uploads.decoded(flac(wave_N)), wave_N, atol=1e-4)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "empty"),
        (b"<script>alert(1)</script>", "cannot be decoded"),
        (flac(np.random.default_rng(0).normal(0, 0.1, SAMPLE_RATE))[:-9000], "cannot be decoded|damaged|cut off|duration|ends"),
        (b"x" * (uploads.LARGEST + 1), "too large"),
        (flac(np.zeros(SAMPLE_RATE * 1000, np.int16)), "too long|longer"),  # 16 minutes of silence in 100 kB
    ],
    ids=["empty", "markup", "cut off", "large", "long"],
)
def test_what_is_no_clip_is_refused_by_name(data, said):
    with pytest.raises(InputError, match=f"(?is){said}"):
        uploads.decoded(data, "evil.flac")


def starve(_: bytes) -> None:
    uploads._within_limits(b"")
    np.ones(uploads.MEMORY, np.uint8)


def spin(_: bytes) -> None:
    import resource

    uploads._within_limits(b"")
    resource.setrlimit(resource.RLIMIT_CPU, (1, 1))
    while True:
        pass


@pytest.mark.slow
def test_a_decoder_that_runs_away_ends_alone(monkeypatch):
    for runaway, expected in ((starve, MemoryError), (spin, InputError)):
        monkeypatch.setattr(uploads, "_within_limits", runaway)
        with pytest.raises(expected):
            uploads.decoded(b"x")
        monkeypatch.undo()
