"""Paired differences, verdicts and strata, against brute force and simulated truth."""

from __future__ import annotations

import dataclasses
import itertools
import math
import re

import numpy as np
import pytest
from counts import RAW, assert_complete, made, simulated, two_systems
from hypothesis import given, settings
from hypothesis import strategies as st

from speechlab import statistics
from speechlab.comparison import compare, families, judge, sides, strata
from speechlab.errors import InputError
from speechlab.scoring import Scores, score
from speechlab.text import normaliser


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
    monkeypatch.setattr(statistics, "EXACT", 0)
    drawn = compare(a, b, seed=4)
    assert not drawn.p_exact
    assert drawn.p == pytest.approx(brute_force_p(differences), abs=0.02)  # 10,000 patterns: a standard error of 0.005 at most
    assert drawn.p > 0.02  # where 0 and p could not be told apart, the line above would prove nothing
    assert drawn.p == compare(a, b, seed=4).p


def test_drawn_p_value_is_never_zero():
    words = np.full(40, 20)
    assert compare(made(words, words // 2, np.arange(40)), made(words, words // 4, np.arange(40))).p == 1 / (1 + statistics.FLIPS)


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


# --- verdicts ---


def systems(points: float, speakers: int | None, utterances: int = 400, spread: float = 0.0, seed: int = 0):
    """Counts of two systems; b makes about so many points more errors, by a speaker more or less."""
    rng = np.random.default_rng(seed)
    words = np.full(utterances, 20)
    who = np.arange(utterances) % (speakers or 1)
    shift = rng.normal(0, spread, who.max() + 1)[who]
    base = rng.binomial(words, 0.1)
    more = rng.binomial(words, np.clip(abs(points) / 100 + shift, 0, 1))
    other = base + more if points >= 0 else np.maximum(base - more, 0)
    names = who if speakers else None
    return made(words, base, names), made(words, np.minimum(other, words), names)


@pytest.mark.parametrize(
    ("points", "speakers", "margin", "kind"),
    [
        (0.0, 40, 0.5, "OK"),
        (-2.0, 40, 0.5, "OK"),
        (4.0, 40, 0.5, "REGRESSED"),
        (4.0, None, 0.5, "REGRESSED"),
        (4.0, 40, 10.0, "OK"),  # within what is allowed
        (0.5, 40, 0.5, "INCONCLUSIVE"),
    ],
)
def test_a_verdict_follows_from_interval_and_margin(points, speakers, margin, kind):
    d = compare(*systems(points, speakers))
    verdict = judge(d, margin)
    assert verdict.kind == kind, verdict.text
    assert verdict.text.startswith(kind)
    assert verdict.interval is (d.speaker_interval if speakers else d.interval)
    assert (verdict.needed is not None) == (kind == "INCONCLUSIVE")


def test_what_it_would_take_is_what_it_takes():
    """With as many utterances as it says the interval reaches to the margin and no further."""
    a, b = systems(0.35, None, utterances=300, seed=3)
    first = judge(compare(a, b))
    assert first.kind == "INCONCLUSIVE" and first.needed > 300
    times = math.ceil(first.needed / 300) + 1
    many = [s.only(list(range(300)) * times) for s in (a, b)]
    assert judge(compare(*many)).kind == "OK"
    fewer = [s.only(list(range(300)) * (times // 3)) for s in (a, b)]
    assert judge(compare(*fewer)).kind == "INCONCLUSIVE"
    assert f"{first.needed:,} utterances" in first.text


def test_one_speaker_decides_nothing_about_new_ones():
    d = compare(*systems(4.0, 1))
    assert judge(d).kind == "REGRESSED"  # of this speaker
    asked = judge(d, by="speaker")
    assert asked.kind == "INCONCLUSIVE" and asked.needed is None and "one speaker" in asked.text
    for margin in (-1.0, math.nan, math.inf):
        with pytest.raises(InputError) as e:
            judge(d, margin)
        assert_complete(e)


@pytest.mark.slow
def test_verdicts_keep_their_false_alarms():
    """Worse by just the margin: sure of a regression in at most 2.5 % of trials; a rule without an interval in about half."""
    alarms, naive, trials = 0, 0, 400
    for trial in range(trials):
        a, b = systems(0.5, 40, utterances=200, spread=0.004, seed=trial)
        d = compare(a, b, resamples=300, seed=trial)
        alarms += judge(d).kind == "REGRESSED"
        naive += d.points > 0.5
    assert alarms / trials <= 0.05
    assert naive / trials > 0.3


# --- strata ---


def test_strata_are_compared_each_and_adjusted_together():
    a, b = two_systems(speakers=25, utterances=300)
    labels = ["short" if i % 3 else "long" for i in range(290)] + ["rare"] * 10
    table = strata(a, b, labels).set_index("stratum")
    assert list(table.index) == ["long", "rare", "short"]
    assert table.utterances.sum() == 300 and table.words.sum() == a.words
    assert math.isnan(table.p["rare"]) and "10 utterances are too few" in table.warning["rare"]
    chosen = [i for i, label in enumerate(labels) if label == "long"]
    alone = compare(a.only(chosen), b.only(chosen))
    assert (table.points["long"], table.p["long"]) == (alone.points, alone.p)
    known = table.p.dropna()
    assert sorted(table.p_holm.dropna()) == pytest.approx(sorted(statistics.holm(list(known))))


@pytest.mark.slow
def test_holm_keeps_false_alarms_over_strata():
    alarms = {"p": 0, "p_holm": 0}
    trials = 150
    for trial in range(trials):
        rng = np.random.default_rng(trial)
        words = np.full(600, 20)
        a, b = (made(words, rng.binomial(words, 0.1), np.arange(600) % 100) for _ in range(2))
        table = strata(a, b, [f"{i % 6}" for i in range(600)], resamples=2, seed=trial)
        for name in alarms:
            alarms[name] += table[name].min() <= 0.05
    assert alarms["p_holm"] / trials <= 0.10
    assert alarms["p"] / trials > 0.15  # negative control


# --- simulated truth ---


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


# --- families ---


def trained(scores: Scores, seed: int, changed: int) -> Scores:
    """Another training of the same system: some utterances come out otherwise."""
    rng = np.random.default_rng(seed)
    words = [h.split() for h in scores.hypotheses]
    for i in rng.integers(0, len(words), changed):
        words[i] = words[i][:-1]
    return score(list(scores.references), [" ".join(w) for w in words], RAW, list(scores.speakers or ()) or None)


def test_families_are_compared_by_their_means():
    worse, better = two_systems(speakers=25, utterances=200)
    a, b = [trained(worse, i, 8) for i in range(3)], [trained(better, 10 + i, 8) for i in range(4)]
    found = families(a, b)
    assert found.rates_a == tuple(s.wer for s in a) and len(found.rates_b) == 4
    assert found.points == pytest.approx(100 * (np.mean(found.rates_b) - np.mean(found.rates_a)))
    for interval in (found.interval, found.speaker_interval, found.trainings):
        assert interval.low < found.points < interval.high
    assert found.trainings.by == "training" and found.trainings.units == 3
    # the whole numbers behind the paired interval are the means' differences
    mean_U = np.mean([s.errors_U for s in b], axis=0) - np.mean([s.errors_U for s in a], axis=0)
    assert found.points == pytest.approx(100 * mean_U.sum() / a[0].words)
    assert judge(found, 0.5).kind == "OK"
    assert judge(families(b, a), 0.5).kind == "REGRESSED"


def test_the_verdict_of_families_is_the_more_cautious():
    worse, better = two_systems(speakers=25, utterances=200)
    one = families([worse], [better])
    assert judge(compare(worse, better), 0.5).kind == "OK"
    assert judge(one, 0.5).kind == "INCONCLUSIVE" and "one training" in judge(one, 0.5).text
    wild = [trained(better, i, changed) for i, changed in enumerate((0, 0, 450))]  # one of three trainings went wrong
    unsure = families([worse] * 3, wild)
    assert unsure.interval.high < 0 < unsure.trainings.high  # on average better on these utterances, of these trainings
    verdict = judge(unsure, 0.5)
    assert verdict.kind == "INCONCLUSIVE" and "new trainings" in verdict.text and "trainings of each" in verdict.text
    with pytest.raises(InputError, match="no training"):
        families([], [worse])


def test_sides_are_where_two_systems_part():
    a = score(["a b", "c d", "e f"], ["a b", "c", "x y"], RAW)
    b = score(["a b", "c d", "e f"], ["a", "c d", "x y"], RAW)
    table = sides(a, b, ["u", "v", "w"])
    assert list(table.id) == ["u", "v"] and list(table.change) == [1, -1]
    assert list(table.a) == ["a b", "c"] and list(table.b) == ["a", "c d"]
