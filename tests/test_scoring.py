"""Counts against jiwer, NIST sclite and brute force."""

from __future__ import annotations

import dataclasses
import math
import re

import jiwer
import pytest
from counts import RAW, assert_complete, fuzz, sclite
from hypothesis import given, settings
from hypothesis import strategies as st

from speechlab.errors import InputError
from speechlab.scoring import align, score, worded
from speechlab.text import NORMALISERS, normaliser

SENTENCE = st.lists(st.sampled_from(["a", "b", "c", "aa", "Ä"]), max_size=8).map(" ".join)
PAIRS = st.lists(st.tuples(SENTENCE, SENTENCE), min_size=1, max_size=12)


# --- counts ---


def test_align_shows_every_kind_of_error():
    assert align(["the", "cat", "sat", "on"], ["the", "bat", "sat", "down", "on"]) == [
        ("hit", "the", "the"),
        ("sub", "cat", "bat"),
        ("hit", "sat", "sat"),
        ("ins", "", "down"),
        ("hit", "on", "on"),
    ]
    assert align(["a"], []) == [("del", "a", "")]
    assert align([], []) == []


@settings(deadline=None)
@given(SENTENCE.map(str.split), SENTENCE.map(str.split))
def test_align_gives_both_sequences_back(reference, hypothesis):
    steps = align(reference, hypothesis)
    assert [r for op, r, _ in steps if op != "ins"] == reference
    assert [h for op, _, h in steps if op != "del"] == hypothesis
    assert all((r == h) == (op == "hit") for op, r, h in steps)


@settings(deadline=None)
@given(PAIRS)
def test_counts_equal_jiwer(pairs):
    refs, hyps = map(list, zip(*pairs, strict=True))
    scores = score(refs, hyps, RAW)
    words, chars = jiwer.process_words(refs, hyps), jiwer.process_characters(refs, hyps)
    assert scores.errors == words.substitutions + words.deletions + words.insertions
    assert scores.errors_U.tolist() == [round(jiwer.process_words(r, h).wer * max(1, len(r.split()))) for r, h in pairs]
    assert scores.words == int(scores.hits_U.sum()) + scores.substitutions + scores.deletions == sum(len(r.split()) for r in refs)
    assert int(scores.char_errors_U.sum()) == chars.substitutions + chars.deletions + chars.insertions
    if scores.words:
        assert scores.wer == pytest.approx(words.wer, abs=1e-12)
        assert scores.cer == pytest.approx(chars.cer, abs=1e-12)


@settings(deadline=None)
@given(st.lists(st.tuples(st.text(max_size=12), st.text(max_size=12)), min_size=1, max_size=5), st.sampled_from(NORMALISERS))
def test_any_text_can_be_scored_as_jiwer_scores_it(pairs, name):
    refs, hyps = map(list, zip(*pairs, strict=True))
    scores = score(refs, hyps, normaliser(name))
    chars = jiwer.process_characters(list(scores.references), list(scores.hypotheses))
    assert int(scores.char_errors_U.sum()) == chars.substitutions + chars.deletions + chars.insertions


def test_corpus_rate_is_not_the_mean_of_rates():
    scores = score(["a", "a b c d e f g h i"], ["x", "a b c d e f g h i"], RAW)
    assert scores.wer == pytest.approx(1 / 10)  # the mean of the two would be 1/2
    assert str(scores).startswith("WER 10.00 % (1 S, 0 D, 0 I; 10 words), CER 5.56 %, raw 1 (")


def test_raw_and_normalised_are_two_calls():
    refs, hyps = ["Mr. Smith didn't go."], ["mister smith did not go"]
    raw, english = (score(refs, hyps, normaliser(name)) for name in ("raw", "english"))
    assert raw.wer > 0.5
    assert english.wer == english.cer == 0
    assert english.normaliser == normaliser("english").identity


def test_empty_texts():
    scores = score(["", "a b", ""], ["x y", "", ""], RAW)
    assert (scores.insertions, scores.deletions, scores.words) == (2, 2, 2)
    assert scores.wer == 2.0
    assert len(scores) == 3


def test_no_reference_word_has_no_rate_but_counts():
    scores = score(["", ""], ["x y", ""], RAW, ["s", "t"])
    assert math.isnan(scores.wer) and math.isnan(scores.cer)
    assert scores.insertions == 2
    for interval in (scores.interval(), scores.interval(by="speaker")):
        assert math.isnan(interval.low) and math.isnan(interval.high)
        assert "no reference word" in interval.warning


def test_frozen():
    scores = score(["a"], ["a"], RAW)
    with pytest.raises(dataclasses.FrozenInstanceError):
        scores.normaliser = "other"
    with pytest.raises(ValueError, match="read-only"):
        scores.hits_U[0] = 7


@pytest.mark.parametrize("rate", [0.02, 0.1, 0.25])
def test_wer_within_a_twentieth_point_of_sclite(rate, tmp_path):
    refs, hyps = fuzz(600, rate, seed=int(rate * 1000))
    hyps[3] = ""
    scores, nist = score(refs, hyps, RAW), sclite(refs, hyps, tmp_path)
    assert (nist["utterances"], nist["words"]) == (600, scores.words)
    assert 100 * scores.wer == pytest.approx(100 * nist["errors"] / nist["words"], abs=0.05)
    assert nist["errors"] > 10  # the comparison is not of zeros


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((["a"], ["a", "b"]), "1 references, 2 hypotheses"),
        ((["a"], ["a"], RAW, ["s", "t"]), "2 speakers"),
        (([], []), "0 utterances"),
        (("a", ["a"]), "The references are one text"),
        ((["a", "b"], ["a", None]), "Item 1 of the hypotheses"),
        ((["a", math.nan], ["a", "b"]), "Item 1 of the references"),
        ((["a"], ["b"], RAW, [None]), "Item 0 of the speakers"),
    ],
)
def test_bad_input_is_refused_with_a_remedy(arguments, said):
    with pytest.raises(InputError, match=re.escape(said)) as e:
        score(*arguments) if len(arguments) > 2 else score(*arguments, RAW)
    assert_complete(e)


@pytest.mark.parametrize(
    "arguments", [{"by": "speaker"}, {"by": "word"}, {"resamples": 0}, {"level": 0.0}, {"level": 1.0}, {"level": 95}], ids=str
)
def test_bad_interval_is_refused_with_a_remedy(arguments):
    with pytest.raises(InputError) as e:
        score(["a", "b"], ["a", "c"], RAW).interval(**arguments)
    assert_complete(e)


def test_empty_word_to_align_is_refused():
    with pytest.raises(InputError) as e:
        align(["a", ""], ["a"])
    assert_complete(e)


@settings(deadline=None)
@given(PAIRS)
def test_mer_and_wil_equal_jiwer(pairs):
    refs, hyps = (list(column) for column in zip(*pairs, strict=True))
    scores = score(refs, hyps, RAW)
    if not all(refs) or not any(hyps):  # jiwer refuses empty references
        return
    theirs = jiwer.process_words(refs, hyps)
    assert scores.errors == theirs.substitutions + theirs.deletions + theirs.insertions
    if int(scores.hits_U.sum()) == theirs.hits:  # of alignments that cost the same they may choose another
        assert scores.mer == pytest.approx(theirs.mer)
        assert scores.wil == pytest.approx(theirs.wil)


def test_mer_and_wil_of_one_example():
    scores = score(["a b c d"], ["a x c d e"], RAW)  # 3 right, 1 replaced, 1 added
    assert (scores.mer, scores.wil) == (pytest.approx(2 / 5), pytest.approx(1 - 3 / 4 * 3 / 5))
    assert math.isnan(score([""], [""], RAW).mer) and math.isnan(score(["a"], [""], RAW).wil)


def test_an_alignment_in_words():
    scores = score(["the cat sat", "", "a b"], ["the bat sat down", "x", ""], RAW)
    assert scores.operations == ("CSCI", "I", "DD")
    table = scores.table()
    assert list(table.alignment) == ["the [cat > bat] sat [ > down]", "[ > x]", "[a > ] [b > ]"]
    assert worded("a b", "a", "CD") == "a [b > ]"
    assert table.wer[0] == pytest.approx(2 / 3) and math.isnan(table.wer[1])
    assert table.substitutions.sum() + table.deletions.sum() + table.insertions.sum() == scores.errors


def test_some_of_the_utterances():
    refs, hyps = fuzz(30, 0.3, 3)
    names = [f"s{i % 3}" for i in range(30)]
    whole, chosen = score(refs, hyps, RAW, names), [4, 7, 20]
    part, again = whole.only(chosen), score(*([column[i] for i in chosen] for column in (refs, hyps)), RAW, [names[i] for i in chosen])
    assert str(part) == str(again) and part.operations == again.operations and part.speakers == again.speakers
    assert score(refs, hyps, RAW).only([1]).speakers is None
