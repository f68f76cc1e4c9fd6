"""Intervals and tests against scipy, NIST's sc_stats, brute force and simulated truth."""

from __future__ import annotations

import math
import random
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
from counts import RAW, corrupt, fuzz, made, need_sctk, simulated, some_scores, two_systems
from hypothesis import given
from hypothesis import strategies as st

from speechlab import statistics
from speechlab.errors import InputError
from speechlab.scoring import score
from speechlab.statistics import welch


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
    scores = some_scores(utterances=240, speakers=120)
    names = sorted(set(scores.speakers))
    rates = []
    for draw in np.random.default_rng(3).integers(0, 120, (200, 120)):
        chosen = [i for s in draw for i in range(240) if scores.speakers[i] == names[s]]
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
    monkeypatch.setattr(statistics, "BLOCK", 60 * 7)
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
    scores = score([""] * 39 + ["a b c"], ["x"] * 20 + [""] * 19 + ["a b"], RAW)  # of 1,000 draws about 370 lack the last
    interval = scores.interval(resamples=500)
    assert 0 < interval.low <= interval.high < math.inf


def test_few_units_take_students_t():
    scores = some_scores(utterances=60, speakers=7)
    errors, words = scores.units(scores.errors_U, "speaker"), scores.units(scores.words_U, "speaker")
    ratio = errors.sum() / words.sum()
    residuals = [e - ratio * w for e, w in zip(errors, words, strict=True)]
    error = math.sqrt(7 / 6 * sum(r**2 for r in residuals)) / words.sum()
    half = scipy.stats.t(6).ppf(0.975) * error
    interval = scores.interval(by="speaker")
    assert (interval.method, interval.units) == ("cluster-t", 7)
    assert (interval.low, interval.high) == (pytest.approx(max(0, ratio - half)), pytest.approx(ratio + half))
    assert scores.interval().method == "bootstrap"
    assert scores.interval(by="speaker", level=0.5).high < interval.high


def test_of_equal_sized_units_it_is_the_t_interval_of_their_mean():
    rng = np.random.default_rng(2)
    errors, words = rng.integers(0, 9, 12), np.full(12, 10)
    ours = statistics.ratio_interval(errors, words, by="speaker")
    theirs = scipy.stats.t.interval(0.95, 11, loc=errors.mean() / 10, scale=scipy.stats.sem(errors / 10))
    assert (ours.low, ours.high) == (pytest.approx(theirs[0]), pytest.approx(theirs[1]))


def test_a_rate_is_not_below_nothing():
    scores = score(["a b c d"] * 5, ["a b c d"] * 4 + ["a b c x"], RAW)
    assert scores.interval().low == 0


# --- tests of the literature ---


def sgml_operations(text: str) -> dict[str, str]:
    """Alignments that sclite wrote, by utterance."""
    paths = re.finditer(r'<PATH id="\(([^"]*)\)"[^>]*>\n(.*?)\n?</PATH>', text, re.S)
    return {m[1]: "".join(part[0] for part in m[2].strip().split(":") if part) for m in paths}


def sc_stats(refs: list[str], systems: dict[str, list[str]], folder: Path) -> tuple[list[list[str]], dict[str, float]]:
    """Alignments of sclite, and what sc_stats makes of them."""
    need_sctk()
    for name, texts in {"ref": refs, **systems}.items():
        (folder / name).write_text("".join(f"{text} (s{i % 5}-u{i:04d})\n" for i, text in enumerate(texts)))
    sgml = []
    for name in systems:
        command = ["sctk", "sclite", "-r", "ref", "trn", "-h", name, "trn", "-i", "spu_id", "-s", "-o", "sgml", "stdout", "-f", "0"]
        sgml.append(subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout)
    command = ["sctk", "sc_stats", "-p", "-t", "mapsswe", "-v", "-n", "out"]
    subprocess.run(command, cwd=folder, input="".join(sgml), capture_output=True, text=True, check=True)
    said = (folder / "out.stats.mapsswe").read_text(errors="replace")
    result = re.search(r"# segs: (\d+)\).*mean: (\S+)\) \(std dev: (\S+)\) \(Z Stat: (\S+)\)", said)
    totals = re.search(r"Totals +\d+ +(\d+) +(\d+)", said)
    names = ("segments", "mean", "deviation", "z", "errors_a", "errors_b")
    numbers = dict(zip(names, map(float, (*result.groups(), *totals.groups())), strict=True))
    aligned = [sgml_operations(one) for one in sgml]
    return [[one[key] for key in sorted(one)] for one in aligned], numbers


@pytest.mark.parametrize(("rate_a", "rate_b", "seed"), [(0.05, 0.06, 1), (0.15, 0.25, 2), (0.3, 0.2, 3), (0.5, 0.5, 4), (0.02, 0.4, 5)])
def test_mapsswe_equals_nist(rate_a, rate_b, seed, tmp_path):
    refs, a = fuzz(150, rate_a, seed)
    rng = random.Random(seed + 100)
    b = [" ".join(corrupt(r.split(), [f"w{i}" for i in range(40)], rng, rate_b)) for r in refs]
    (ops_a, ops_b), nist = sc_stats(refs, {"a": a, "b": b}, tmp_path)
    ours = statistics.mapsswe(ops_a, ops_b)
    assert (ours.segments, ours.errors_a, ours.errors_b) == (nist["segments"], nist["errors_a"], nist["errors_b"])
    for name in ("mean", "deviation", "z"):
        assert getattr(ours, name) == pytest.approx(nist[name], abs=6e-4), name  # it prints three places
    assert ours.segments > 40 and ours.z != 0
    own = statistics.mapsswe(score(refs, a, RAW).operations, score(refs, b, RAW).operations)  # with our alignments instead
    assert own.z == pytest.approx(ours.z, rel=0.05, abs=0.25)


@pytest.mark.parametrize(
    ("a", "b", "pairs"),
    [
        ("CCC", "CCC", []),
        ("CSC", "CCC", [(1, 0)]),
        ("SCCS", "CCCC", [(1, 0), (1, 0)]),
        ("SCS", "CCC", [(2, 0)]),  # one word right in between does not part them
        ("SCC", "CCD", [(1, 1)]),  # right in a only
        ("ICCI", "CC", [(1, 0), (1, 0)]),
        ("SCICC", "CCCC", [(2, 0)]),  # an added word breaks the run of right ones
        ("", "II", [(0, 2)]),
    ],
)
def test_segments_end_where_two_words_are_right_in_both(a, b, pairs):
    assert statistics._segments(a, b) == pairs


def test_mapsswe_of_equal_systems():
    a, _ = two_systems()
    same = statistics.mapsswe(a.operations, a.operations)
    assert (same.mean, same.z, same.p) == (0, 0, 1)
    with pytest.raises(InputError, match="not of the same reference"):
        statistics.mapsswe(["CC"], ["CCC"])


@pytest.mark.filterwarnings("error")
def test_the_familiar_t_test():
    a, b = (s.errors_U / s.words_U for s in two_systems())
    assert statistics.paired_t(a, b) == pytest.approx(scipy.stats.ttest_rel(a, b).pvalue)
    assert statistics.paired_t(a, a) == 1 and statistics.paired_t(a[:1], b[:1]) == 1
    assert statistics.paired_t(a, a + 0.1) == 0


def test_holm_by_hand():
    assert statistics.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert statistics.holm([0.5, 0.9]) == [1.0, 1.0]
    with_gap = statistics.holm([0.01, math.nan, 0.02])
    assert with_gap[0] == 0.02 and math.isnan(with_gap[1]) and with_gap[2] == 0.02


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_lies_between_p_and_bonferroni_and_keeps_the_order(p):
    adjusted = statistics.holm(p)
    assert all(x <= y <= min(1, len(p) * x) + 1e-12 for x, y in zip(p, adjusted, strict=True))
    assert min(adjusted) == pytest.approx(min(1, len(p) * min(p)))
    ordered = [adjusted[i] for i in np.argsort(p, kind="stable")]
    assert ordered == sorted(ordered)


# --- simulated truth ---


def coverage(trials: int, speakers: int, each: int, spread: float, by: statistics.By) -> float:
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


# --- trainings ---


def test_welch_is_scipys_and_knows_its_limits():
    a, b = [0.051, 0.049, 0.052, 0.050], [0.045, 0.047, 0.046]
    interval, p = welch(a, b)
    theirs = scipy.stats.ttest_ind(b, a, equal_var=False)
    ends = theirs.confidence_interval(0.95)
    assert (interval.low, interval.high, p) == pytest.approx((ends.low, ends.high, theirs.pvalue))
    assert interval.low < np.mean(b) - np.mean(a) < interval.high < 0 and interval.scope == "new trainings" and not interval.warning
    assert welch(a[:2], b)[0].warning and welch(b, a)[1] == pytest.approx(p)
    alone, nothing = welch([0.05], b)
    assert math.isnan(alone.low) and math.isnan(nothing) and "one training" in alone.warning
    assert welch([0.05] * 3, [0.05] * 3)[1] == 1 and welch([0.05] * 3, [0.04] * 3)[1] == 0


def test_seed_noise_alone_raises_few_alarms():
    """Two families of the same system, three trainings each: 95 % intervals hold zero in about 95 %."""
    rng = np.random.default_rng(1)
    missed = [not (i.low <= 0 <= i.high) for i, _ in (welch(*(rng.normal(0.05, 0.001, 3) for _ in "ab")) for _ in range(1000))]
    assert np.mean(missed) < 0.06
    certain = [i.high < 0 for i, _ in (welch(rng.normal(0.05, 0.001, 3), rng.normal(0.04, 0.001, 3)) for _ in range(200))]
    assert np.mean(certain) > 0.9  # negative control: a real difference is seen
