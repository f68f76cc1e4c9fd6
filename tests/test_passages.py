"""Passages: bounds by property, subtitles by their rules, and a real recording of minutes through the command line."""

from __future__ import annotations

import json
import re
from html import unescape
from itertools import pairwise

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from speechlab import cli, corpora, passages, vad
from speechlab.errors import InputError
from speechlab.passages import AROUND, CUE, LINE, LONGEST, Passage, Word
from speechlab.scoring import score
from speechlab.text import normaliser
from speechlab.units import SAMPLE_RATE

EVIL = "<script>alert(1)</script> --> &amp;"
CLOCK = r"(\d\d):([0-5]\d):([0-5]\d)[,.](\d{3})"


@st.composite
def recordings(draw):
    """Spans of speech, and how long the recording is."""
    lengths = draw(st.lists(st.tuples(st.floats(0.05, 3.0), st.floats(0.2, 50.0)), max_size=8))
    spans, at = [], 0.0
    for pause, speech in lengths:
        spans.append((at + pause, at + pause + speech))
        at += pause + speech
    return spans, at + draw(st.floats(0.0, 3.0)) + 0.1


@given(recordings())
@settings(deadline=None, max_examples=60)
def test_every_span_of_speech_is_in_passages_that_are_short_enough(made):
    spans, seconds = made
    wave_N = np.random.default_rng(0).normal(size=round(seconds * SAMPLE_RATE)).astype(np.float32)
    found = passages.bounds(spans, wave_N)
    assert all(0 <= a < b <= len(wave_N) / SAMPLE_RATE + 1e-4 for a, b in found)
    assert all(b - a <= LONGEST + 2 * AROUND + 1e-6 for a, b in found)
    assert all(left[1] <= right[0] + 1e-6 for left, right in pairwise(found))
    covered = lambda t: any(a - 1e-6 <= t <= b + 1e-6 for a, b in found)  # noqa: E731
    assert all(covered(t) for a, b in spans for t in np.linspace(a, b, 20))
    long_pauses = [(a, b) for a, b in vad.pauses(spans, seconds) if b - a > 2 * AROUND + passages.PAUSE]
    assert not any(covered((a + b) / 2) for a, b in long_pauses), "silence is not given to the model"


def test_speech_without_a_pause_is_cut_where_it_is_quiet():
    wave_N = np.ones(40 * SAMPLE_RATE, np.float32)
    wave_N[round(13.0 * SAMPLE_RATE) : round(13.2 * SAMPLE_RATE)] = 0.01
    (first, second, *_) = passages.bounds([(0.0, 40.0)], wave_N)
    assert 13.0 < first[1] == second[0] < 13.2


def said(*words: tuple[str, float, float]) -> Passage:
    return Passage(words[0][1], words[-1][2], tuple(Word(text, a, b, 0.5) for text, a, b in words))


@given(st.lists(st.tuples(st.text("abc.?<&>-", min_size=1, max_size=60), st.floats(0.05, 3.0)), min_size=1, max_size=40), st.floats(0, 9e4))
@settings(deadline=None, max_examples=60)
def test_subtitles_hold_every_word_in_cues_that_can_be_read(spoken, at):
    words = []
    for text, length in spoken:
        words.append((text, at, at + length))
        at += length
    passage = said(*words)
    found = passages.cues([passage])
    assert " ".join(text for _, _, text in found).split() == [text for text, _, _ in words]
    for begin, end, text in found:
        lines = text.split("\n")
        assert len(lines) <= 2 and all(len(line) <= LINE or " " not in line for line in lines)
        assert end - begin <= CUE + 1e-9 or len(text.split()) == 1
    for written, unwritten in (
        (passages.srt([passage]), lambda s: s.replace("‹", "<").replace("›", ">")),
        (passages.vtt([passage]), unescape),
    ):
        blocks = [block.split("\n") for block in written.strip().split("\n\n")]
        blocks = blocks[1:] if blocks[0] == ["WEBVTT"] else [block[1:] for block in blocks]
        assert all(re.fullmatch(f"{CLOCK} --> {CLOCK}", block[0]) for block in blocks)
        assert [unwritten("\n".join(block[1:])) for block in blocks] == [text for _, _, text in found]
        assert "<" not in written and written.count("-->") == len(found)


def test_what_is_written():
    heard = [said(("One.", 0.5, 1.0), ("Two", 1.2, 3661.9996)), Passage(4000.0, 4001.0, ())]
    assert passages.txt(heard) == "One. Two\n"
    assert passages.srt(heard) == "1\n00:00:00,500 --> 00:00:01,000\nOne.\n\n2\n00:00:01,200 --> 01:01:02,000\nTwo\n"
    assert passages.vtt(heard) == "WEBVTT\n\n00:00:00.500 --> 00:00:01.000\nOne.\n\n00:00:01.200 --> 01:01:02.000\nTwo\n"
    kept = json.loads(passages.to_json(heard))
    assert kept[0]["words"][0] == {"text": "One.", "begin": 0.5, "end": 1.0, "confidence": 0.5} and kept[1]["text"] == ""
    evil = [said((EVIL, 0.0, 1.0))]
    assert "<script" not in passages.srt(evil) + passages.vtt(evil)


@pytest.mark.slow
def test_a_recording_of_minutes_and_a_broken_one(prompts, tmp_path):
    cuts = sorted(prompts.cuts["test"], key=lambda cut: cut.id)[:24]
    rng = np.random.default_rng(0)
    parts, places, at = [np.zeros(12 * SAMPLE_RATE)], [], 12.0
    for cut in cuts:
        wave_N = corpora.load_audio(cut)
        places.append((at, at + len(wave_N) / SAMPLE_RATE, cut.supervisions[0].text))
        parts += [wave_N, np.zeros(round(SAMPLE_RATE * rng.uniform(0.3, 2.0)))]
        at += (len(parts[-2]) + len(parts[-1])) / SAMPLE_RATE
    whole_N = np.concatenate(parts)
    soundfile.write(tmp_path / "long.flac", whole_N + 1e-4 * rng.standard_normal(len(whole_N)), SAMPLE_RATE)
    soundfile.write(tmp_path / "still.wav", 1e-4 * rng.standard_normal(5 * SAMPLE_RATE), SAMPLE_RATE)
    (tmp_path / "broken.mp3").write_bytes(b"no sound")
    files = [str(tmp_path / name) for name in ("broken.mp3", "still.wav", "long.flac")]
    done = CliRunner().invoke(cli.app, ["transcribe", *files, "--format", "txt,srt,vtt,json", "--out", str(tmp_path / "out")])
    assert isinstance(done.exception, InputError) and "1 of 3" in str(done.exception)
    assert "still.wav: nobody speaks in it" in done.output and "broken.mp3" in done.output
    assert {path.name for path in (tmp_path / "out").iterdir()} == {f"{n}.{k}" for n in ("still", "long") for k in passages.FORMATS}
    heard = json.loads((tmp_path / "out" / "long.json").read_text("utf-8"))
    reference = " ".join(text for _, _, text in places)
    rules = normaliser("english")
    assert score([reference], [" ".join(p["text"] for p in heard)], rules).wer < 0.2
    assert score([reference], [" ".join(p["text"] for p in reversed(heard))], rules).wer > 0.5  # negative control
    middles = [(word["begin"] + word["end"]) / 2 for passage in heard for word in passage["words"]]
    assert middles == sorted(middles) and min(middles) > 12.0, "nothing is heard in the silence before"
    inside = [any(a <= t <= b for a, b, _ in places) for t in middles]
    assert np.mean(inside) > 0.97
    assert all(0 < word["confidence"] <= 1 for passage in heard for word in passage["words"])
    assert (tmp_path / "out" / "long.txt").read_text("utf-8").split() == [w["text"] for p in heard for w in p["words"]]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["a.wav", "--format", "doc"], "There is no such format"),
        (["a.wav", "--format", "srt,vtt"], "Several formats cannot be printed"),
        (["a.wav", "b/a.mp3", "--out", "x"], "Two recordings would be written"),
    ],
)
def test_what_cannot_be_asked_for(words, said):
    done = CliRunner().invoke(cli.app, ["transcribe", *words])
    assert isinstance(done.exception, InputError) and said in str(done.exception)
