"""Scoring against jiwer, NIST sclite, scipy, brute force and simulated truth."""

from __future__ import annotations

import dataclasses
import itertools
import math
import os
import random
import re
import shutil
import subprocess

import jiwer
import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from speechlab import scoring
from speechlab.errors import InputError
from speechlab.scoring import Scores, align, compare, score
from speechlab.text import NORMALISERS, normaliser

RAW = normaliser("raw")
SENTENCE = st.lists(st.sampled_from(["a", "b", "c", "aa", "Ä"]), max_size=8).map(" ".join)
PAIRS = st.lists(st.tuples(SENTENCE, SENTENCE), min_size=1, max_size=12)


def corrupt(words: list[str], vocabulary: list[str], rng: random.Random, rate: float) -> list[str]:
    """Substitute, drop and insert words, each at about a third of ``rate``."""
    out = []
    for word in words:
        draw = rng.random() / rate * 3
        out += [] if draw < 1 else [rng.choice(vocabulary)] if draw < 2 else [word, rng.choice(vocabulary)] if draw < 3 else [word]
    return out


def fuzz(utterances: int, rate: float, seed: int) -> tuple[list[str], list[str]]:
    rng = random.Random(seed)
    vocabulary = [f"w{i}" for i in range(40)]  # few words, so that chance matches make alignment hard
    refs = [rng.choices(vocabulary, k=rng.randint(1, 25)) for _ in range(utterances)]
    return [" ".join(r) for r in refs], [" ".join(corrupt(r, vocabulary, rng, rate)) for r in refs]


def made(words: np.ndarray, errors: np.ndarray, speakers: np.ndarray | None = None) -> Scores:
    """Scores with given counts, all errors substitutions, for simulations."""
    size = len(words)
    base = score([""] * size, [""] * size, RAW, None if speakers is None else [str(s) for s in speakers])
    return dataclasses.replace(base, words_U=words, hits_U=words - errors, substitutions_U=errors)


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


def sclite(refs: list[str], hyps: list[str], folder) -> dict[str, int]:
    """Sums that NIST sclite prints; an empty hypothesis keeps its line, for a missing one would be dropped silently."""
    if not shutil.which("sctk"):
        if os.environ.get("CI"):
            pytest.fail("sctk is missing: CI installs the Debian package sctk")
        pytest.skip("sctk is missing: apt-get install sctk")
    for name, texts in (("ref", refs), ("hyp", hyps)):
        (folder / name).write_text("".join(f"{text} (s{i % 5}-u{i:05d})\n" for i, text in enumerate(texts)))
    command = ["sctk", "sclite", "-r", "ref", "trn", "-h", "hyp", "trn", "-i", "spu_id", "-s", "-o", "rsum", "stdout"]
    out = subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout
    row = re.search(r"\| Sum +\|([^|]*)\|([^|]*)\|", out)
    assert row, out
    keys = ["utterances", "words", "hits", "substitutions", "deletions", "insertions", "errors"]
    return dict(zip(keys, map(int, (row[1] + row[2]).split()), strict=False))


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


def assert_complete(e) -> None:
    for part in ("got:", "expected:", "do:"):
        assert part in str(e.value), str(e.value)


# --- intervals ---


def some_scores(utterances: int = 60, speakers: int = 25, seed: int = 5) -> Scores:
    refs, hyps = fuzz(utterances, 0.2, seed)
    return score(refs, hyps, RAW, [f"s{i % speakers}" for i in range(utterances)])


def test_bootstrap_equals_a_literal_one():
    scores = some_scores()
    draws = np.random.default_rng(3).integers(0, 60, (200, 60))
    rates = []
    for draw in draws:
        errors = words = 0
        for i in draw:
            errors += int(scores.errors_U[i])
            words += int(scores.words_U[i])
        rates.append(errors / words)
    low, high = np.quantile(rates, [0.05, 0.95])
    interval = scores.interval(resamples=200, seed=3, level=0.9)
    assert (interval.low, interval.high) == (pytest.approx(low, abs=1e-12), pytest.approx(high, abs=1e-12))
    assert low < scores.wer < high


def test_speaker_bootstrap_equals_a_literal_one():
    scores = some_scores()
    names = sorted(set(scores.speakers))
    rates = []
    for draw in np.random.default_rng(3).integers(0, 25, (200, 25)):
        chosen = [i for s in draw for i in range(60) if scores.speakers[i] == names[s]]
        rates.append(sum(scores.errors_U[i] for i in chosen) / sum(scores.words_U[i] for i in chosen))
    low, high = np.quantile(rates, [0.025, 0.975])
    interval = scores.interval(resamples=200, seed=3, by="speaker")
    assert (interval.low, interval.high) == (pytest.approx(low, abs=1e-12), pytest.approx(high, abs=1e-12))


def test_bootstrap_agrees_with_scipy():
    scores = some_scores()

    def ratio(errors, words, axis):
        return errors.sum(axis) / words.sum(axis)

    data = (scores.errors_U, scores.words_U)
    options = {"paired": True, "vectorized": True, "n_resamples": 20_000, "method": "percentile", "rng": 1}
    theirs = scipy.stats.bootstrap(data, ratio, **options).confidence_interval
    ours = scores.interval(resamples=20_000, seed=2)
    width = theirs.high - theirs.low
    assert ours.low == pytest.approx(theirs.low, abs=0.03 * width)
    assert ours.high == pytest.approx(theirs.high, abs=0.03 * width)


def test_memory_blocks_do_not_change_the_interval(monkeypatch):
    whole = some_scores().interval()
    monkeypatch.setattr(scoring, "BLOCK", 60 * 7)
    assert some_scores().interval() == whole


def test_interval_follows_its_seed():
    scores = some_scores()
    assert scores.interval(seed=1) == scores.interval(seed=1)
    assert scores.interval(seed=1) != scores.interval(seed=2)


def test_interval_says_what_it_speaks_of():
    scores = some_scores()
    assert (scores.interval().scope, scores.interval(by="speaker").scope) == ("these speakers", "new speakers")
    assert (scores.interval().units, scores.interval(by="speaker").units) == (60, 25)
    assert scores.interval().warning == scores.interval(by="speaker").warning == ""
    few = some_scores(speakers=7).interval(by="speaker")
    assert "only 7 speakers" in few.warning and few.low < few.high


def test_one_speaker_gives_no_interval_for_new_ones():
    interval = some_scores(speakers=1).interval(by="speaker")
    assert math.isnan(interval.low) and math.isnan(interval.high)
    assert "one speaker" in interval.warning and "cannot be had" in interval.warning
    assert some_scores(speakers=1).interval().low > 0  # these speakers: no problem


def test_one_utterance_gives_no_interval():
    interval = score(["a b"], ["a c"], RAW).interval()
    assert math.isnan(interval.low) and "one utterance" in interval.warning


def test_resamples_without_a_reference_word_are_left_out():
    scores = score(["", "", "a b c"], ["x", "", "a b"], RAW)
    interval = scores.interval(resamples=500)
    assert 0 < interval.low <= interval.high < math.inf


# --- comparison ---


def two_systems(speakers: int = 25, seed: int = 1) -> tuple[Scores, Scores]:
    """b makes most of a's errors, and some fewer."""
    refs, hyps = fuzz(120, 0.3, seed)
    rng = random.Random(seed)
    better = [r if rng.random() < 0.3 else h for r, h in zip(refs, hyps, strict=True)]
    names = [f"s{i % speakers}" for i in range(120)]
    return score(refs, hyps, RAW, names), score(refs, better, RAW, names)


def test_compare_is_antisymmetric():
    a, b = two_systems()
    forth, back = compare(a, b), compare(b, a)
    assert forth.points == pytest.approx(-back.points) and forth.points < 0
    assert (forth.low, forth.high) == (pytest.approx(-back.high), pytest.approx(-back.low))
    assert forth.p == back.p
    assert forth.points == pytest.approx(100 * (b.wer - a.wer))
    assert re.fullmatch(r"-\d+\.\d\d points \[-.*, -.*\] \(these speakers\), p = \S+ by speaker", str(forth))


def test_identical_systems_do_not_differ():
    a, _ = two_systems()
    same = compare(a, a)
    assert (same.points, same.low, same.high, same.p) == (0, 0, 0, 1)
    assert (same.speaker_interval.low, same.speaker_interval.high) == (0, 0)


def test_paired_is_narrower_than_unpaired_on_correlated_errors():
    a, b = two_systems()
    paired = compare(a, b)
    widths = [100 * (i.high - i.low) for i in (a.interval(), b.interval())]
    assert paired.high - paired.low < 0.8 * math.hypot(*widths)


def test_unpaired_would_show_if_resamples_were_not_shared():
    """Negative control: with the pairing broken the interval is as wide as two independent ones."""
    a, b = two_systems()
    order = np.random.default_rng(0).permutation(120)
    broken = dataclasses.replace(b, substitutions_U=b.errors_U[order], deletions_U=0 * b.words_U, insertions_U=0 * b.words_U)
    paired, unpaired = compare(a, b), compare(a, broken)
    assert unpaired.high - unpaired.low > 1.2 * (paired.high - paired.low)


def brute_force_p(differences: list[int]) -> float:
    patterns = itertools.product((-1, 1), repeat=len(differences))
    sums = [abs(sum(s * d for s, d in zip(signs, differences, strict=True))) for signs in patterns]
    return sum(s >= abs(sum(differences)) for s in sums) / len(sums)


@settings(deadline=None)
@given(st.lists(st.integers(-6, 6), min_size=2, max_size=9))
def test_sign_flip_equals_brute_force(differences):
    words, zero = np.full(len(differences), 20), np.zeros(len(differences), int)
    a, b = (made(words, zero + 8, np.arange(len(words))), made(words, 8 + np.array(differences), np.arange(len(words))))
    result = compare(a, b, resamples=2)
    assert result.p_exact and result.p_by == "speaker"
    assert result.p == pytest.approx(brute_force_p(differences), abs=1e-12)


@pytest.mark.parametrize(
    "differences",
    [[3, -2, 4, 1, -1, 5, -3, 2, 1, -2, 4, 1], [1, -1, 2, -3, 2, -4, 1, 1, 0, 3, -2, 1], [3, -4, 5, 6, -1, 2, 1, 4, 2, 0]],
)
def test_drawn_signs_agree_with_all_of_them(differences, monkeypatch):
    size = len(differences)
    a, b = (made(np.full(size, 20), 8 + np.array(d), np.arange(size)) for d in ([0] * size, differences))
    monkeypatch.setattr(scoring, "EXACT", 0)
    drawn = compare(a, b, seed=4)
    assert not drawn.p_exact
    assert drawn.p == pytest.approx(brute_force_p(differences), abs=0.02)  # 10,000 patterns: a standard error of 0.005 at most
    assert drawn.p > 0.02  # where 0 and p could not be told apart, the line above would prove nothing
    assert drawn.p == compare(a, b, seed=4).p


def test_drawn_p_value_is_never_zero():
    words = np.full(40, 20)
    assert compare(made(words, words // 2, np.arange(40)), made(words, words // 4, np.arange(40))).p == 1 / (1 + scoring.FLIPS)


def test_one_speaker_falls_back_to_utterances_and_says_so():
    result = compare(*two_systems(speakers=1))
    assert result.p_by == "utterance" and "one speaker" in result.p_warning and "cannot be had" in result.p_warning
    assert math.isnan(result.speaker_interval.low) and "one speaker" in result.speaker_interval.warning
    assert result.high < 0 and result.p < 0.01


def test_unknown_speakers_fall_back_to_utterances_and_say_so():
    a, b = (dataclasses.replace(s, speakers=None) for s in two_systems())
    result = compare(a, b)
    assert result.p_by == "utterance" and "not known" in result.p_warning
    assert math.isnan(result.speaker_interval.low) and "not known" in result.speaker_interval.warning


def test_few_speakers_bound_the_p_value():
    assert "p cannot fall below 0.125" in compare(*two_systems(speakers=4)).p_warning
    assert compare(*two_systems(speakers=12)).p_warning == ""


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (lambda refs: score(["a", "x", "c"], refs, RAW), "the reference of utterance 1 differs"),
        (lambda refs: score(refs[:2], refs[:2], RAW), "the reference of utterance 2 differs"),
        (lambda refs: score(refs, refs, RAW, ["s"] * 3), "the speaker of utterance 0 differs"),
        (lambda refs: score(refs, refs, normaliser("basic")), "Two normalisers cannot be compared"),
    ],
)
def test_what_is_not_the_same_set_cannot_be_compared(other, said):
    refs = ["a", "b", "c"]
    with pytest.raises(InputError, match=said) as e:
        compare(score(refs, refs, RAW), other(refs))
    assert_complete(e)


# --- simulated truth ---


def simulated(rng: np.random.Generator, speakers: int, each: int, spread: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Words, errors and speakers; a speaker's rate is beta with mean 0.1 and standard deviation ``spread`` (0: all alike)."""
    size = 0.1 * 0.9 / spread**2 - 1 if spread else 0
    rates = rng.beta(0.1 * size, 0.9 * size, speakers) if spread else np.full(speakers, 0.1)
    who = np.repeat(np.arange(speakers), each)
    words = rng.integers(4, 30, len(who))
    return words, rng.binomial(words, rates[who]), who


def coverage(trials: int, speakers: int, each: int, spread: float, by: scoring.By) -> float:
    rng = np.random.default_rng(7)
    covered = 0
    for trial in range(trials):
        interval = made(*simulated(rng, speakers, each, spread)).interval(seed=trial, by=by)
        covered += interval.low <= 0.1 <= interval.high
    return 100 * covered / trials


@pytest.mark.slow
def test_intervals_cover_what_they_claim():
    """Of 4,000 trials 94.4 % (100 speakers) and 93.1 % (40); 1,500 trials have a standard error of 0.6 points."""
    assert 93 <= coverage(1500, 150, 1, 0.0, "utterance") <= 97
    assert 93 <= coverage(1500, 100, 8, 0.05, "speaker") <= 97


@pytest.mark.slow
def test_utterance_intervals_do_not_cover_new_speakers():
    """Negative control: the proof above can fail, and this is why there are two intervals."""
    assert coverage(300, 100, 8, 0.05, "utterance") < 85


@pytest.mark.slow
def test_sign_flip_over_speakers_keeps_its_false_alarms():
    rng = np.random.default_rng(3)
    alarms = {"speaker": 0, "utterance": 0}
    trials = 300
    for trial in range(trials):
        words, _, who = simulated(rng, 12, 20, 0.05)
        gain = rng.normal(0, 0.03, 12)[who]  # b suits some speakers better, others worse, none on average
        better = rng.binomial(words, np.clip(0.1 + gain, 0, 1))
        base = rng.binomial(words, 0.1)
        for by, speakers in (("speaker", who), ("utterance", None)):
            alarms[by] += compare(made(words, base, speakers), made(words, better, speakers), resamples=2, seed=trial).p <= 0.05
    assert 2 <= 100 * alarms["speaker"] / trials <= 8
    assert 100 * alarms["utterance"] / trials > 15  # negative control: utterances of a speaker are not independent
