"""Clips of the real corpus as rows, bands of any numbers, and rates by stratum against scoring by hand."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pandas as pd
import pytest
from counts import RAW, assert_complete, fuzz, some_scores
from hypothesis import given, settings
from hypothesis import strategies as st

from speechlab import audio, corpora, strata, vad
from speechlab.comparison import SMALL
from speechlab.corpora.base import clip
from speechlab.errors import InputError
from speechlab.measures import measure
from speechlab.scoring import Scores, score
from speechlab.strata import UNKNOWN, bands, by, over, split

NUMBERS = st.lists(st.floats(-1e6, 1e6) | st.integers(0, 3).map(float) | st.just(math.nan), max_size=60)


# --- what is known of a clip ---


def test_real_clips_are_measured(prompts):
    cuts = list(prompts.cuts["test"])[:12]
    table = strata.table(cuts)
    assert list(table.columns) == ["id", "speaker", "language", "duration", "words", "rate", "speech", "level", "snr"]
    for row, cut in zip(table.itertuples(), cuts, strict=True):
        wave = corpora.load_audio(cut)
        heard = measure(wave, vad.speech(wave))
        assert (row.id, row.speaker, row.language, row.duration) == (cut.id, "allison", "en", cut.duration)
        assert (row.level, row.speech) == (heard.level, heard.speech) and row.words == len(cut.supervisions[0].text.split())
        assert row.rate == row.words / row.speech > row.words / row.duration
    assert table.snr.median() > 30


def test_noise_shows_in_the_bands_of_snr(prompts, tmp_path):
    """A corpus of which every other clip is noisy: the lower band of two is the noisy clips."""
    cuts = []
    for i, cut in enumerate([c for c in prompts.cuts["train"] if c.duration > 2][:12]):
        wave = audio.add_noise(corpora.load_audio(cut), 5.0, i) if i % 2 else corpora.load_audio(cut)
        audio.save_flac(tmp_path / f"{i}.flac", wave)
        kind = {"noise": "yes" if i % 2 else "no"}
        cuts.append(clip(f"c{i}", str(tmp_path / f"{i}.flac"), len(wave), "some words", "s", "en", "test", "x:", kind))
    table = strata.table(cuts)
    labels = bands(table.snr, 2, "dB")
    assert [name for name, _ in split(labels)] == list(labels.cat.categories)
    assert list(labels == labels.cat.categories[0]) == [n == "yes" for n in table.noise]


def test_without_listening_nothing_is_measured():
    told = {"accent": "scottish", "level": "B2"}
    cuts = [
        clip("a", "nowhere.flac", 32_000, "one – two, three", "s", "en", "test", "x:", told),
        clip("b", "nowhere.flac", 16_000, "x", "", "en", "test", "x:"),
    ]
    table = strata.table(cuts, measured=False)
    assert list(table.columns[:5]) == ["id", "speaker", "language", "accent", "level (corpus)"]
    assert list(table.words) == [3, 1] and list(table.rate) == [1.5, 1.0]  # over the clip; a dash is not spoken
    assert table.speech.isna().all() and table.snr.isna().all() and table.level.isna().all()
    assert table.accent[0] == "scottish" and pd.isna(table.accent[1]) and table["level (corpus)"][0] == "B2"
    assert [name for name, _ in split(table.accent)] == ["scottish", UNKNOWN]
    with pytest.raises(InputError):
        strata.table(cuts)  # negative control: listening would need the file


# --- bands ---


def test_bands_read_well():
    values = [2.13, 3.38, 0.62, 11.9, 4.44, 5.0]
    assert list(bands(values, 3, "s").cat.categories) == ["0.6 to 2.1 s", "3.4 to 4.4 s", "5.0 to 11.9 s"]
    assert list(bands(values, [2, 5], "s")) == ["2 to 5 s", "2 to 5 s", "up to 2 s", "over 5 s", "2 to 5 s", "2 to 5 s"]
    assert list(bands([-21.32, -18.9, -15.5, -12.2], 2, "dBFS").cat.categories) == ["-21.3 to -18.9 dBFS", "-15.5 to -12.2 dBFS"]
    assert list(bands([3, 3, 3], 4, "s")) == ["3.0 s"] * 3
    assert list(bands([100.0, 250, 900, 1200], 2).cat.categories) == ["100 to 250", "900 to 1200"]
    assert list(bands([1.0101, 1.0102, 5.0], 3).cat.categories) == ["1.0101", "1.0102", "5.0000"]  # decimals until they differ
    assert list(bands([math.nan, 1.0, math.inf])) == [UNKNOWN, "1.0", UNKNOWN] and list(bands([])) == []


@settings(deadline=None)
@given(NUMBERS, st.integers(1, 6))
def test_bands_part_any_numbers_in_order(values, n):
    labels = bands(values, n)
    numbers = np.array(values, float)
    known = ~np.isnan(numbers)
    assert list(labels == UNKNOWN) == list(~known)
    parts = [numbers[(labels == name).to_numpy()] for name in labels.cat.categories if name != UNKNOWN]
    assert all(len(part) for part in parts) and sum(map(len, parts)) == known.sum() and len(parts) <= n
    assert all(a.max() < b.min() for a, b in itertools.pairwise(parts))  # equal values stay together
    if len(set(numbers[known])) == known.sum() >= n and len(parts) == n:
        assert max(map(len, parts)) - min(map(len, parts)) <= 1


@given(NUMBERS, st.lists(st.integers(-5, 5), min_size=1, max_size=4, unique=True).map(sorted))
def test_bands_between_given_edges(values, edges):
    for value, label in zip(values, bands(values, edges), strict=True):
        if math.isnan(value):
            assert label == UNKNOWN
        elif value <= edges[0]:
            assert label == f"up to {edges[0]}"
        elif value > edges[-1]:
            assert label == f"over {edges[-1]}"
        else:
            low, high = label.split(" to ")
            assert float(low) < value <= float(high)


@pytest.mark.parametrize("n", [0, [], [2, 1], [1, 1], [1, math.nan]], ids=str)
def test_bad_bands_are_refused_with_a_remedy(n):
    with pytest.raises(InputError) as e:
        bands([1.0, 2.0], n)
    assert_complete(e)


# --- rates ---


def test_each_stratum_is_scored_as_if_alone():
    scores = some_scores(utterances=120, speakers=30)
    labels = ["x" if i < 60 else "y" if i < 115 else None for i in range(120)]
    table = by(scores, labels).set_index("stratum")
    assert list(table.index) == ["x", "y", UNKNOWN] and table.utterances.sum() == 120 and table.words.sum() == scores.words
    alone = scores.only(range(60))
    assert (table.wer["x"], table.low["x"], table.high["x"]) == (alone.wer, alone.interval().low, alone.interval().high)
    assert table.speakers["x"] == 30 and table.scope["x"] == "these speakers" and table.warning["x"] == ""
    assert table.loc[UNKNOWN, ["wer", "low", "high"]].isna().all() and "5 utterances are too few" in table.warning[UNKNOWN]
    new = by(scores, labels, units="speaker").set_index("stratum")
    assert new.scope["x"] == "new speakers" and new.low["x"] == alone.interval(by="speaker").low


def test_a_stratum_of_one_speaker_says_so():
    refs, hyps = fuzz(80, 0.2, 1)
    scores = score(refs, hyps, RAW, ["one"] * 40 + [f"s{i}" for i in range(40)])
    table = by(scores, ["a"] * 40 + ["b"] * 40, units="speaker").set_index("stratum")
    assert "cannot be told from the speaker" in table.warning["a"] and table.speakers["a"] == 1 and math.isnan(table.low["a"])
    assert table.warning["b"] == "" and table.low["b"] < table.wer["b"] < table.high["b"]
    assert by(score(refs, hyps, RAW), ["a"] * 80).speakers[0] == 0  # not known


def test_a_rate_takes_as_many_utterances_as_comparison_asks():
    scores = some_scores(utterances=60)
    labels = ["enough"] * SMALL + ["few"] * (SMALL - 1) + ["rest"] * (60 - 2 * SMALL + 1)
    table = by(scores, labels).set_index("stratum")
    assert table.wer["enough"] > 0 and math.isnan(table.wer["few"]) and table.utterances["few"] == SMALL - 1


def test_bands_come_in_their_order():
    scores, seconds = some_scores(utterances=120), np.linspace(1, 30, 120)
    assert list(by(scores, bands(seconds, 4, "s")).stratum) == ["1.0 to 8.1 s", "8.3 to 15.4 s", "15.6 to 22.7 s", "22.9 to 30.0 s"]
    assert [name for name, _ in split(["b", "", None, "a", math.nan])] == ["a", "b", UNKNOWN]


def harder(utterances: int) -> tuple[Scores, np.ndarray]:
    """Clips that are got wrong the more, the larger their number is."""
    rng = np.random.default_rng(3)
    number = rng.permutation(np.linspace(0, 1, utterances))
    hyps = [" ".join("x" if rng.random() < n / 2 else "a" for _ in range(10)) for n in number]
    return score([" ".join("a" * 10)] * utterances, hyps, RAW), number


def test_a_trend_shows_over_its_number_and_not_over_another():
    scores, number = harder(800)
    table = over(scores, number)
    assert len(table) == 8 and set(table.utterances) == {100} and table.wer.is_monotonic_increasing and table.middle.is_monotonic_increasing
    inside = (table.low <= table.middle / 2) & (table.middle / 2 <= table.high)  # the truth it was made with
    assert inside.mean() >= 0.75
    other = over(scores, np.random.default_rng(9).random(800))  # negative control
    assert other.wer.max() - other.wer.min() < 0.1 < table.wer.max() - table.wer.min()


def test_a_line_has_no_more_points_than_it_can_stand_on():
    scores, number = harder(70)
    number[:5] = math.nan
    table = over(scores, number, unit="dB")
    assert len(table) == 65 // SMALL + 1 and table.wer[:-1].notna().all()
    assert table.stratum.iloc[-1] == UNKNOWN and math.isnan(table.middle.iloc[-1]) and table.utterances.iloc[-1] == 5
    assert table.stratum[0].endswith(" dB")
    few = over(*(harder(10)))
    assert len(few) == 1 and few.wer.isna().all() and few.utterances[0] == 10


def test_labels_that_do_not_fit_are_refused_with_a_remedy():
    with pytest.raises(InputError, match="3 labels, 60 utterances") as e:
        by(some_scores(), ["a", "b", "c"])
    assert_complete(e)
