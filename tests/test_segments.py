"""Cutting long recordings: real prompts joined with pauses, whose words are known on both sides of every cut."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from speechlab import corpora, models, segments, vad
from speechlab.config import corpus_section
from speechlab.corpora.base import Entry
from speechlab.corpora.check import REPAIRED, SET_ASIDE, inspect
from speechlab.errors import InputError
from speechlab.text import normaliser

RATE = 16_000
RULES = normaliser("basic")


@pytest.fixture(scope="module")
def joined(prompts) -> tuple[np.ndarray, list[tuple[float, float, str]]]:
    """About forty seconds of prompts, 0.7 s of faint noise between them, and where each one lies."""
    waves, lies, at = [], [], 0
    quiet = (1e-4 * np.random.default_rng(0).standard_normal(round(0.7 * RATE))).astype(np.float32)
    for cut in [c for c in prompts.cuts["train"] if 3.5 < c.duration < 7][:9]:
        wave = corpora.load_audio(cut)
        lies.append((at / RATE, (at + len(wave)) / RATE, cut.supervisions[0].text))
        waves += [wave, quiet]
        at += len(wave) + len(quiet)
    return np.concatenate(waves[:-1]), lies


@pytest.mark.slow
def test_every_word_stays_with_its_sound(joined, tiny_en):
    wave_N, lies = joined
    text = " ".join(said for _, _, said in lies)
    model = models.load("whisper", tiny_en, "en").eval()
    parts = segments.split(model, wave_N, text, "en", vad.speech(wave_N), 20.0)
    assert len(parts) >= 2
    assert max(end - start for start, end, _ in parts) <= 20
    assert " ".join(said for _, _, said in parts) == " ".join(text.split())
    for start, end, said in parts:
        inside = [t for a, b, t in lies if a < end - 0.3 and b > start + 0.3]
        assert RULES(said) in RULES(" ".join(inside))
    whole = [t for a, b, t in lies if any(s <= a + 0.1 and b - 0.1 <= e for s, e, _ in parts)]
    assert len(whole) >= len(lies) - len(parts) + 1  # cuts fall between prompts, or within few


@pytest.mark.slow
def test_the_check_repairs_a_long_clip_and_refuses_one_with_other_words(joined, tiny_en, tmp_path):
    import soundfile

    wave_N, lies = joined
    soundfile.write(tmp_path / "long.flac", wave_N, RATE)
    text = " ".join(said for _, _, said in lies)
    cut = segments.splitter(str(tiny_en), "en")()
    finding, kept = inspect(Entry("long", tmp_path / "long.flac", text), corpus_section(), cut)
    assert finding.verdict == REPAIRED
    assert finding.repairs == (f"cut at pauses into {len(finding.parts)} parts",)
    assert len(kept) == len(wave_N)
    other = " ".join(reversed(text.split()))
    refused, none = inspect(Entry("other", tmp_path / "long.flac", other), corpus_section(), cut)
    assert (refused.verdict, none) == (SET_ASIDE, None)
    assert "heard" in refused.why


def test_cuts_fall_into_the_longest_pauses():
    spans = [(0.5, 9.0), (9.3, 14.0), (15.0, 21.0), (21.4, 29.0)]
    assert segments.cuts(spans, 30.0, 20.0) == [0.0, 14.5, 30.0]
    assert segments.cuts(spans, 30.0, 40.0) == [0.0, 30.0]
    with pytest.raises(InputError, match="no pause to cut at"):
        segments.cuts([(0.0, 30.0)], 30.0, 20.0)


def test_words_are_dealt_where_they_were_heard():
    heard = ["Hello there my old fiend", "how are you today"]  # one word misheard
    text = "Hello there, my old friend: how are you today?"
    assert segments.deal(text, heard, RULES) == ["Hello there, my old friend:", "how are you today?"]


@pytest.mark.parametrize(
    ("text", "heard", "says"),
    [
        ("one two three four", ["five six", "seven"], "none of the words"),
        ("one two three four five six", ["one two", "five six"], "words at a cut"),
        ("a b c d e f g h", ["a x y z v w", "e f g h"], "words at a cut|not what was heard"),
        ("one two three four", ["one two three four", ""], "not what was heard"),
    ],
)
def test_what_was_not_heard_is_refused(text, heard, says):
    with pytest.raises(InputError, match=says):
        segments.deal(text, heard, RULES)


@given(
    st.lists(
        st.lists(st.sampled_from(["alpha", "bravo", "charlie", "delta", "echo", "foxtrot", "golf"]), min_size=1, max_size=6),
        min_size=1,
        max_size=4,
    )
)
def test_words_that_were_heard_right_are_dealt_without_loss(parts):
    text = " ".join(word for part in parts for word in part)
    dealt = segments.deal(text, [" ".join(part) for part in parts], normaliser("raw"))
    assert [part.split() for part in dealt] == parts
