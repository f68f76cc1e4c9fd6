"""Voice activity: silero's own answer, what surrounds speech, and what must not change."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch

from speechlab import corpora, vad
from speechlab.errors import InputError

RATE = 16_000


@pytest.fixture(scope="module")
def waves(prompts) -> list[np.ndarray]:
    return [corpora.load_audio(c) for c in list(prompts.cuts["test"])[:30]]


def test_the_spans_are_those_of_the_streaming_model(waves):
    from silero_vad import get_speech_timestamps, load_silero_vad

    model = load_silero_vad()
    for wave in waves[:12]:
        theirs = [(s["start"] / RATE, s["end"] / RATE) for s in get_speech_timestamps(torch.from_numpy(wave), model)]
        assert vad.speech(wave) == theirs


def test_silence_around_speech_is_found_and_trimmed(waves):
    for wave in (w for w in waves if len(w) > RATE):
        quiet = (1e-4 * np.random.default_rng(0).standard_normal(2 * RATE)).astype(np.float32)
        long = np.concatenate([quiet, wave, quiet])
        first, last = vad.trimmed(long, 0.1)
        inner = vad.trimmed(wave, 0.0)
        assert abs(first - (2 * RATE + inner[0] - 1600)) < 0.15 * RATE
        assert abs(last - (2 * RATE + inner[1] + 1600)) < 0.15 * RATE
        between = vad.pauses(vad.speech(long), len(long) / RATE)
        assert between[0][0] == 0
        assert between[-1][1] == len(long) / RATE


def test_where_nothing_is_speech():
    silence = np.zeros(RATE, np.float32)
    assert vad.speech(silence) == []
    assert vad.trimmed(silence, 0.1) == (0, RATE)
    assert vad.pauses([], 1.0) == [(0.0, 1.0)]
    assert vad.speech(np.full(100, 0.1, np.float32)) == []  # shorter than its window
    with pytest.raises(InputError, match="NaN"):
        vad.speech(np.full(RATE, np.nan))


def test_torch_keeps_its_threads():
    code = """
import numpy as np, torch
torch.set_num_threads(3)
from speechlab import vad
vad.speech(np.zeros(16000, np.float32))
print(torch.get_num_threads())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.split()[-1] == "3"  # silero's import sets one
