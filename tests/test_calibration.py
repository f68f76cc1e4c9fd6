"""Confidences against definitions, NIST sclite, scipy, brute force and simulated truth."""

from __future__ import annotations

import itertools
import math
import re
import subprocess

import numpy as np
import pytest
import scipy.stats
from counts import RAW, assert_complete, fuzz, need_sctk
from hypothesis import given, settings
from hypothesis import strategies as st

from speechlab import calibration
from speechlab.calibration import Judged, auroc, handed_on, judged, normalised_cross_entropy, rejection, reliability
from speechlab.errors import InputError
from speechlab.scoring import align, score
from speechlab.text import normaliser

ENGLISH = normaliser("english")
PROBABILITY = st.floats(0, 1)


def made(confidence, right) -> Judged:
    """Words of given confidence, right or wrong, an utterance each."""
    right = np.asarray(right, bool)
    scores = score(["a"] * len(right), ["a" if r else "b" for r in right], RAW)
    values = np.asarray(confidence, float)
    return Judged(scores, values, right, values, np.zeros(len(right), bool))


def simulated(words: int, seed: int, truth=lambda p: p) -> Judged:
    """Words that are right with ``truth(confidence)``."""
    rng = np.random.default_rng(seed)
    confidence = rng.beta(4, 1, words)
    right = rng.random(words) < truth(confidence)
    return Judged(score(["a"], ["a"], RAW), confidence, right, confidence[:1], np.zeros(1, bool))


# --- whose confidence it is ---


def test_words_hand_their_confidence_on():
    assert handed_on("Hello, World!", [0.9, 0.4], ENGLISH) == ([0.9, 0.4], True)
    assert handed_on("we won't um go", [0.9, 0.4, 0.1, 0.8], ENGLISH) == ([0.9, 0.4, 0.4, 0.8], True)  # won't: two words, um: none
    assert handed_on("it was twenty one", [0.9, 0.8, 0.6, 0.1], ENGLISH) == ([pytest.approx(0.6)] * 3, False)  # twenty one: one word
    assert handed_on("", [], ENGLISH) == ([], True)
    assert handed_on("um", [0.3], ENGLISH) == ([], True)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.text(min_size=1, max_size=6).filter(lambda w: len(w.split()) == 1), PROBABILITY), max_size=6))
def test_every_normalised_word_has_a_confidence_of_its_utterance(pairs):
    text, confidences = " ".join(w for w, _ in pairs), [p for word, p in pairs]
    for name in ("raw", "basic", "english"):
        words = normaliser(name).words(text)
        if len(text.split()) == len(confidences):
            found, exact = handed_on(text, confidences, normaliser(name))
            assert len(found) == len(words)
            assert set(found) <= set(confidences) if exact else len(set(found)) <= 1
            assert name != "raw" or (found == confidences or words != text.split())


def test_right_is_what_the_alignment_calls_a_hit():
    refs, hyps = fuzz(40, 0.3, 2)
    ours = judged(refs, hyps, [[0.5] * len(h.split()) for h in hyps], RAW)
    steps = [op for r, h in zip(refs, hyps, strict=True) for op, _, _ in align(r.split(), h.split())]
    assert list(ours.right_W) == [op == "hit" for op in steps if op != "del"]
    assert ours.right_W.sum() == ours.scores.hits_U.sum() and 0 < ours.right_W.mean() < 1


def test_an_utterance_is_as_sure_as_the_geometric_mean_of_what_was_written():
    ours = judged(["a b", "c", "", "d"], ["a x", "", "", "d"], [[0.9, 0.4], [], [], [0.0]], RAW)
    assert list(ours.confidence_U[[0, 3]]) == [pytest.approx(0.6), 0] and np.isnan(ours.confidence_U[[1, 2]]).all()
    two = judged(["twenty one um", "twenty one"], ["twenty one um", "21"], [[0.9, 0.4, 0.1], [0.6]], ENGLISH)
    assert list(two.averaged_U) == [True, False] and list(two.confidence_W) == [pytest.approx(1.4 / 3), 0.6]
    assert two.confidence_U[0] == pytest.approx((0.9 * 0.4 * 0.1) ** (1 / 3))  # not moved by how it was normalised
    assert calibration.calibration(two).averaged == 0.5


@pytest.mark.parametrize(
    ("confidences", "said"),
    [
        ([[0.5]], "hypotheses, confidences of 1"),
        ([[0.5], [0.5]], "1 for 2 words"),
        ([[0.5, 0.5], [1.01]], "1.01 for 'c'"),
        ([[0.5, math.nan], [1.0]], "nan for 'b'"),
        ([[-0.1, 0.5], [1.0]], "-0.1 for 'a'"),
    ],
)
def test_confidences_that_are_none_are_refused_with_a_remedy(confidences, said):
    with pytest.raises(InputError, match=re.escape(said)) as e:
        judged(["a b", "c"], ["a b", "c"], confidences, RAW)
    assert_complete(e)


@pytest.mark.parametrize("call", [lambda j: calibration.calibration(j, 0), lambda j: reliability(j, 0), lambda j: reliability(j, 5, "x")])
def test_bins_that_are_none_are_refused_with_a_remedy(call):
    with pytest.raises(InputError) as e:
        call(simulated(10, 0))
    assert_complete(e)


# --- calibration, by definition ---


def literal_ece(confidence, right, groups) -> tuple[float, float]:
    """ECE and MCE over given groups of words."""
    gaps = [(len(g), abs(sum(right[i] for i in g) / len(g) - sum(confidence[i] for i in g) / len(g))) for g in groups if g]
    return sum(n * gap for n, gap in gaps) / len(confidence), max(gap for _, gap in gaps)


def test_ece_by_its_definition():
    ours = simulated(1000, 3, lambda p: p**2)
    confidence, right = list(ours.confidence_W), list(ours.right_W)
    order = sorted(range(1000), key=lambda i: confidence[i])
    ece, mce = literal_ece(confidence, right, [order[k : k + 100] for k in range(0, 1000, 100)])
    width, _ = literal_ece(confidence, right, [[i for i in order if k / 10 < confidence[i] <= (k + 1) / 10] for k in range(10)])
    found = calibration.calibration(ours)
    assert (found.ece, found.mce, found.ece_width) == (pytest.approx(ece), pytest.approx(mce), pytest.approx(width))
    assert found.brier == pytest.approx(sum((c - r) ** 2 for c, r in zip(confidence, right, strict=True)) / 1000)
    assert (found.words, found.right, found.confidence) == (1000, sum(right), pytest.approx(sum(confidence) / 1000))
    assert found.confidence > found.right / found.words  # too sure of itself, as it was made


def test_perfect_confidence_has_no_error_but_chance():
    found = calibration.calibration(simulated(200_000, 1))
    assert found.ece < 0.005 and found.ece_width < 0.005 and found.mce < 0.02
    assert found.brier == pytest.approx(4 / 5 - 4 / 6, abs=0.002)  # mean of p(1-p) for beta(4, 1)
    assert found.nce > 0.1


def test_miscalibrated_confidence_has_the_error_that_was_put_in():
    """Negative control: the error of p against p² is the mean of p - p²."""
    found = calibration.calibration(simulated(200_000, 1, lambda p: p**2))
    assert found.ece == pytest.approx(4 / 5 - 4 / 6, abs=0.005) and found.ece_width == pytest.approx(4 / 5 - 4 / 6, abs=0.005)
    assert found.ece > 20 * found.ece_chance
    ranked = calibration.calibration(simulated(200_000, 1, lambda p: (p > 0.8) * 1.0))
    assert ranked.auroc == 1 and ranked.ece > 0.2  # a perfect order is not calibrated


def test_chance_alone_is_what_perfect_confidences_show():
    found = [calibration.calibration(simulated(400, seed)) for seed in range(120)]
    assert np.mean([f.ece for f in found]) == pytest.approx(np.mean([f.ece_chance for f in found]), rel=0.08)
    assert np.mean([f.ece_chance for f in found]) > 0.03  # far from 0, with so few words


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(st.sampled_from([0.1, 0.5, 0.9, 1.0]) | PROBABILITY, st.booleans()), min_size=1, max_size=40), st.randoms())
def test_the_order_of_words_changes_nothing(pairs, random):
    shuffled = random.sample(pairs, len(pairs))
    a, b = (calibration.calibration(made(*zip(*p, strict=True)), 5) for p in (pairs, shuffled))
    for name in ("ece", "ece_width", "mce", "brier", "nce", "auroc"):
        assert getattr(a, name) == pytest.approx(getattr(b, name), nan_ok=True)
    assert a.ece <= a.mce + 1e-12 and 0 <= a.ece <= 1 and a.words == len(pairs)


def test_equal_confidences_stay_in_one_bin():
    table = reliability(made([0.2] * 3 + [1.0] * 17, [True] * 20), 10)
    assert list(table.words) == [3, 17] and list(table.bin) == ["0.200 to 0.200", "1.000 to 1.000"]


def test_reliability_is_counts_with_wilsons_interval():
    ours = simulated(500, 5)
    table = reliability(ours, 10, "width")
    assert table.words.sum() == 500 and table.bin.iloc[-1] == "0.900 to 1.000" and len(table) < 10  # none near 0
    assert (table.words * table.right).sum() == pytest.approx(ours.right_W.sum())
    z = scipy.stats.norm.ppf(0.975)
    for row in table.itertuples():
        p, n = row.right, row.words
        middle = (p + z**2 / 2 / n) / (1 + z**2 / n)
        half = z / (1 + z**2 / n) * math.sqrt(p * (1 - p) / n + z**2 / 4 / n**2)
        assert (row.low, row.high) == (pytest.approx(middle - half), pytest.approx(middle + half))
    assert set(reliability(ours).words) == {50}


def test_nothing_recognised_has_no_measure():
    found = calibration.calibration(judged(["a"], [""], [[]], RAW))
    assert found.words == 0 and all(math.isnan(getattr(found, n)) for n in ("confidence", "ece", "mce", "brier", "nce", "auroc"))
    assert len(reliability(judged(["a"], [""], [[]], RAW))) == 0


# --- cross entropy ---


def test_nce_equals_sclite(tmp_path):
    """Substitutions alone, by words that stand nowhere else, so that there is one alignment."""
    need_sctk()
    rng = np.random.default_rng(4)
    stm, ctm, refs, hyps, conf = [], [], [], [], []
    for u in range(40):
        ref = [f"w{i}" for i in range(12)]
        hyp = [f"x{i}" if rng.random() < 0.3 else w for i, w in enumerate(ref)]
        values = [round(float(v), 4) for v in rng.beta(3, 1, 12)]
        values[0], values[1] = 1.0, 0.0  # where log 0 must be kept away
        stm.append(f"f{u} 1 spk 0.0 100.0 {' '.join(ref)}\n")
        ctm += [f"f{u} 1 {i + 0.1} 0.5 {w} {v}\n" for i, (w, v) in enumerate(zip(hyp, values, strict=True))]
        refs, hyps, conf = [*refs, " ".join(ref)], [*hyps, " ".join(hyp)], [*conf, values]
    (tmp_path / "ref").write_text("".join(stm))
    (tmp_path / "hyp").write_text("".join(ctm))
    command = ["sctk", "sclite", "-r", "ref", "stm", "-h", "hyp", "ctm", "-s", "-o", "sum", "stdout"]
    out = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True).stdout
    theirs = float(re.search(r"\| Sum/Avg.*\| +(\S+) \|", out)[1])
    ours = calibration.calibration(judged(refs, hyps, conf, RAW)).nce
    assert ours == pytest.approx(theirs, abs=6e-4) and abs(theirs) > 0.1  # it prints three places


def test_nce_of_the_base_rate_is_nothing():
    right = np.array([True] * 7 + [False] * 3)
    assert normalised_cross_entropy(np.full(10, 0.7), right) == pytest.approx(0)
    assert normalised_cross_entropy(right * 1.0, right) == pytest.approx(1, abs=1e-5)
    assert normalised_cross_entropy(1.0 - right, right) < -10
    assert math.isnan(normalised_cross_entropy(np.full(3, 0.7), np.ones(3, bool)))


# --- order ---


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from([0.1, 0.5, 0.9]) | PROBABILITY, st.booleans()), min_size=2, max_size=60))
def test_auroc_equals_mann_whitney(pairs):
    confidence, right = np.array([c for c, _ in pairs]), np.array([r for _, r in pairs])
    if right.all() or not right.any():
        assert math.isnan(auroc(confidence, right))
        return
    u = scipy.stats.mannwhitneyu(confidence[right], confidence[~right]).statistic
    assert auroc(confidence, right) == pytest.approx(u / right.sum() / (~right).sum())


def literal_rejection(ours: Judged) -> list[float]:
    """WER of the k surest, from all of them down, for confidences that all differ."""
    order = sorted(range(len(ours.scores)), key=lambda i: ours.confidence_U[i])
    return [ours.scores.only(order[k:]).wer for k in range(len(order))]


def test_rejection_by_its_definition():
    refs, hyps = fuzz(60, 0.3, 8)
    rng = np.random.default_rng(1)
    ours = judged(refs, hyps, [list(rng.random(len(h.split()))) for h in hyps], RAW)
    found = rejection(ours)
    assert list(found.table.wer) == [pytest.approx(w) for w in literal_rejection(ours)]
    assert list(found.table.utterances) == list(range(60, 0, -1)) and found.table.words.iloc[0] == ours.scores.words
    assert found.table.rejected.iloc[0] == 0 and found.table.rejected.iloc[-1] == pytest.approx(59 / 60)
    assert found.table.wer.iloc[0] == found.table.oracle.iloc[0] == ours.scores.wer
    x, y = found.table.rejected, found.table.wer
    assert found.aurc == pytest.approx(sum((y[i] + y[i + 1]) / 2 * (x[i + 1] - x[i]) for i in range(59)) / x[59])
    assert found.excess == pytest.approx(found.aurc - found.oracle) and found.excess > 0.05


UTTERANCES = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4), st.sampled_from([0.2, 0.5, 0.9])), min_size=1, max_size=8)


@settings(deadline=None)
@given(UTTERANCES, st.randoms())
def test_no_choice_beats_the_oracle(utterances, random):
    def curve(rows) -> calibration.Rejection:
        scores = score([" ".join(["a"] * w) for w, _, _ in rows], [" ".join(["b"] * e) for _, e, _ in rows], RAW)
        confidence = np.array([c for _, _, c in rows])
        return rejection(Judged(scores, np.zeros(0), np.zeros(0, bool), confidence, np.zeros(len(rows), bool)))

    found = curve(utterances)
    errors, words = [max(w, e) for w, e, _ in utterances], [w for w, _, _ in utterances]
    for row in found.table.itertuples():
        rates = [sum(errors[i] for i in c) / n for c in itertools.combinations(range(len(errors)), row.utterances)
                 if (n := sum(words[i] for i in c))]  # fmt: skip
        assert row.oracle == pytest.approx(min(rates, default=math.nan), nan_ok=True)
        assert math.isnan(row.wer) or row.oracle <= row.wer + 1e-9
    again = curve(random.sample(utterances, len(utterances)))
    assert list(again.table.wer) == pytest.approx(list(found.table.wer), nan_ok=True)  # equal confidences leave together


def test_a_perfect_order_and_the_worst_one():
    scores = score(["a b"] * 50, ["a b"] * 25 + ["x y"] * 25, RAW)

    def area(confidence) -> float:
        return rejection(Judged(scores, np.zeros(0), np.zeros(0, bool), confidence, np.zeros(50, bool))).excess

    sure = np.linspace(1, 0, 50)
    assert area(sure) == pytest.approx(0, abs=1e-12) and area(sure[::-1]) > 0.5 and 0 < area(np.full(50, 0.5)) < area(sure[::-1])
    flat = rejection(Judged(scores, np.zeros(0), np.zeros(0, bool), np.full(50, 0.5), np.zeros(50, bool)))
    assert flat.aurc == pytest.approx(0.5) == scores.wer  # knows nothing: as if at random
    sure[:25], sure[25:] = 0.5, math.nan
    assert area(sure) == pytest.approx(0, abs=1e-12)  # no answer is rejected first


def test_a_curve_of_many_is_short_and_of_one_has_no_area():
    refs, hyps = fuzz(1000, 0.3, 8)
    many = rejection(judged(refs, hyps, [[0.5] * len(h.split()) for h in hyps], RAW))
    assert len(many.table) == calibration.POINTS and many.table.utterances.iloc[-1] == 1
    one = rejection(judged(["a"], ["b"], [[0.5]], RAW))
    assert len(one.table) == 1 and math.isnan(one.aurc) and math.isnan(one.excess)
