"""Tables from hand-made evaluations whose counts are known."""

from __future__ import annotations

import dataclasses
import math

import pandas as pd
import pytest
from evaluated import AFTER, BEFORE, PERFECT, experiment, made

from speechlab import comparison, markup, results

SETTINGS = experiment().evaluation
NOISY = made("pretrained", "full", ["please", "thank you", "Goodbye", "the number is 21"], condition="white-10db")
INVENTED = made("pretrained", "full", ["Thank you", "", "", "Bye"], condition="silence")


def test_a_summary_counts_what_was_made():
    table = results.summary([BEFORE, AFTER], SETTINGS)
    before, after = table.to_dict("records")
    # normalised: please press one | thank you | goodbye | the number is 21
    assert (before["words"], after["words"]) == (10, 10)
    assert (before["substitutions"], before["deletions"], before["insertions"]) == (1, 1, 1)
    assert (after["substitutions"], after["deletions"], after["insertions"]) == (0, 1, 0)
    assert (before["wer"], after["wer"]) == (0.3, 0.1)
    # raw, of 11 words: two. | - | Goodbye now. | 21. - and then please one | thank you | - | 21. -
    assert (before["wer_raw"], after["wer_raw"]) == (6 / 11, 7 / 11)
    for row in (before, after):
        assert row["low"] <= row["wer"] <= row["high"]
        assert (row["clips"], row["rtfx"], row["fallbacks"], row["broken"]) == (4, 5.0, 0, 0)
        assert (row["p50"], row["p95"], row["p99"]) == (0.1, 0.3, 0.3)
        assert row["snr"] == math.inf and math.isnan(row["invented"])
        assert row["warning"]  # two speakers are too few to speak of others
    assert (before["label"], after["label"]) == (BEFORE.label, AFTER.label)
    pd.testing.assert_frame_equal(table, results.summary([BEFORE, AFTER], SETTINGS))  # the interval has its seed
    assert not results.summary([BEFORE], SETTINGS, seed=1)[["low", "high"]].isna().any().any()


def test_what_is_invented_is_counted_a_minute():
    (row,) = results.summary([INVENTED], SETTINGS).to_dict("records")
    assert math.isnan(row["wer"]) and math.isnan(row["low"])
    assert row["invented"] == pytest.approx(60 * 3 / 5.0)  # three words in five seconds
    shown = results.rates(results.summary([INVENTED, BEFORE], SETTINGS))
    assert list(shown) == list(results.HEADS.values()) and set(results.FORMATS) >= {"WER", "invented words a minute"}
    assert "36.0" in markup.table_html(shown, results.FORMATS)


def test_conditions_by_systems():
    table = results.by_condition(results.summary([BEFORE, NOISY, INVENTED, AFTER], SETTINGS))
    assert list(table.condition) == ["clean", "white-10db", "silence"]
    assert list(table)[2:] == ["pretrained", "finetuned"]
    assert table.pretrained[0].startswith("30.00 [") and table.finetuned[0].startswith("10.00 [")
    assert table.pretrained[2] == "36.0 words a minute" and list(table.finetuned[1:]) == ["–", "–"]
    again = results.by_condition(results.summary([BEFORE, dataclasses.replace(BEFORE, context="short", wer=9.0)], SETTINGS))
    assert len(again) == 1  # the usual context is the first


def test_curves_over_snr_end_in_clean_speech():
    curve = results.over_snr(results.summary([BEFORE, NOISY, AFTER, INVENTED], SETTINGS))
    assert list(curve.system) == ["pretrained"] * 2 and list(curve.snr) == [math.inf, 10.0]
    assert list(curve.wer) == [0.3, 0.2]
    babble = dataclasses.replace(NOISY, condition="babble-5db")
    assert set(results.over_snr(results.summary([BEFORE, NOISY, babble], SETTINGS)).system) == {"pretrained, white", "pretrained, babble"}
    assert results.over_snr(results.summary([BEFORE], SETTINGS)).empty


def test_differences_are_paired_and_in_points():
    noisy = [dataclasses.replace(e, condition="white-10db") for e in (BEFORE, AFTER)]
    table = results.differences([BEFORE, noisy[0], AFTER, made("finetuned", "full", PERFECT), noisy[1]], SETTINGS)
    assert list(zip(table.condition, table.context, strict=True)) == [("clean", "short"), ("clean", "full"), ("white-10db", "short")]
    assert table.points.tolist() == pytest.approx([-20.0, -30.0, -20.0])
    assert (table.low <= table.points).all()
    assert (table.points <= table.high).all()
    assert table.p.between(0, 1).all()
    assert results.differences([AFTER], SETTINGS).empty  # nothing to compare with
    assert results.differences([INVENTED, dataclasses.replace(INVENTED, system="x")], SETTINGS).empty  # no words to be wrong in


def test_side_by_side_shows_the_wrong_ones_worst_first():
    table, named = results.side_by_side([BEFORE, AFTER], "english")
    assert named == {"pretrained": BEFORE.label, "finetuned": AFTER.label}
    columns = ["id", "duration", "reference", "pretrained", "finetuned", "errors pretrained", "errors finetuned"]
    assert list(table[columns].itertuples(index=False, name=None)) == [
        ("c", 0.6, "goodbye", "goodbye now", "", 1, 1),
        ("a", 1.5, "please press one", "please press 2", "please press one", 1, 0),
        ("b", 0.8, "thank you", "thank", "thank you", 1, 0),
    ]
    assert results.side_by_side([made("pretrained", "full", PERFECT)], "english")[0].empty
    assert results.side_by_side([BEFORE], "english", "gsm")[0].empty


def test_a_deadline_counts_what_was_late_as_missed():
    table = results.deadlines(AFTER, SETTINGS).set_index("budget")
    # 0.1, 0.05, 0.3, 0.2 s; a deletion of one word in the third
    assert table.met[0.03] == 0 and table.wer[0.03] == 1.0
    assert table.met[0.2] == 3 and table.wer[0.2] == pytest.approx(0.1) and table.met_wer[0.2] == 0
    assert table.wer[0.5] == AFTER.wer and table.coverage[0.5] == 1
    late = dataclasses.replace(AFTER, rows=AFTER.rows.assign(latency=[None, 0.05, 0.3, 0.2]))
    assert results.deadlines(late, SETTINGS).utterances.iloc[0] == 3
    assert list(results.waiting(results.deadlines(AFTER, SETTINGS))["budget ms"]) == pytest.approx([50, 100, 200, 500, 1000])


def test_speeds_are_of_clean_speech():
    table = results.speeds(results.summary([BEFORE, NOISY, AFTER], SETTINGS))
    assert list(table.system) == [BEFORE.label, AFTER.label]
    assert list(table["p50 ms"]) == pytest.approx([100, 100]) and list(table["memory GB"]) == [1.0, 1.0]


def test_tests_say_what_limits_them():
    a, b = (e.scores("english") for e in (BEFORE, AFTER))
    table = results.tests(comparison.compare(a, b))
    assert list(table.what)[-3:] == ["sign-flip over speakers", "MAPSSWE", "paired t-test"]
    assert table.p.notna().sum() == 3 and "-20.00" in table.value[0]
    families = results.tests(comparison.families([a, a], [b, b, b]))
    assert list(families.what)[3:] == ["95 %, new trainings", "sign-flip over speakers", "Welch's test over trainings"]


def test_few_utterances_have_no_rate():
    a, b = (e.scores("english") for e in (BEFORE, AFTER))
    shown = results.readable_strata(comparison.strata(a, b, list("ppqq")))
    assert list(shown["WER a"]) == ["–", "–"] and list(shown.utterances) == [2, 2]
