"""Figures of what was misheard: every count drawn where its label is, selectable, and text that stays text."""

from __future__ import annotations

import holoviews as hv
import numpy as np
import pandas as pd
import pytest
from browser import EVIL, EVIL_TEXT, chromium, pwned, watch
from counts import RAW

from speechlab import confusions, phones
from speechlab.errors import InputError
from speechlab.plots import errors
from speechlab.scoring import score

REFS = ["their three cats sat", "three thin men", "a b c d e f", "no", "park"]
HYPS = ["there free cats", "free fin men", "a x c d e f f f f f f", "no", "bark"]
FORMULA = (r"$$x$$", r"\(x\)", r"\[x\]")
POSITIONS = {"low": [0.0, 0.5], "high": [0.5, 1.0], "words": [10, 0], "substitutions": [2, 0], "deletions": [1, 0], "insertions": [4, 0]}


@pytest.fixture(scope="module")
def words() -> pd.DataFrame:
    return confusions.words(score(REFS, HYPS, RAW), list("uvwxy"))


def shown(figure):
    return hv.render(figure, backend="bokeh")


def subs(pairs: list[tuple[str, str]]) -> pd.DataFrame:
    rows = [(a, b, len(pairs) - i, 1, 20, 0.1) for i, (a, b) in enumerate(pairs)]
    return pd.DataFrame(rows, columns=["said", "heard", "count", "utterances", "occurrences", "share"])


# --- phones ---


def test_every_confusion_of_phones_is_in_its_cell(words):
    found = phones.confusions(words)
    figure = errors.phone_confusions(found.table())
    data = shown(figure).renderers[0].data_source.data
    labels = {int(at): label for at, label in shown(figure).xaxis[0].major_label_overrides.items()}
    drawn = {(labels[int(y)], labels[int(x)]): n for x, y, n in zip(data["x"], data["y"], data["zvalues"], strict=True) if n}
    assert drawn == {(a, b): n for a, b, n in found.table()[["said", "heard", "count"]].itertuples(index=False)}
    assert drawn["TH", "F"] == 3 and ("IY", "IY") not in drawn
    assert len(data["x"]) == 40 * 40


def test_the_number_of_a_selected_cell_is_that_of_its_row(words):
    figure = errors.phone_confusions(phones.confusions(words).table())
    data = shown(figure).renderers[0].data_source.data
    for column in ("said", "heard", "seen"):
        assert list(data[column]) == figure.data[column].tolist()
    np.testing.assert_array_equal(data["zvalues"], figure.data["count"])
    assert {"TapTool", "HoverTool"} <= {type(tool).__name__ for tool in shown(figure).tools}


def test_a_cell_tells_phones_count_share_and_words(words):
    figure = errors.phone_confusions(phones.confusions(words).table())
    row = figure.data[(figure.data.said == "TH") & (figure.data.heard == "F")].iloc[0]
    assert (row.seen, row.examples) == ("3 of 3 (100 %)", "three → free, thin → fin")
    assert figure.data[(figure.data.said == "TH") & (figure.data.heard == "S")].seen.item() == "0"
    hover = next(tool for tool in shown(figure).tools if type(tool).__name__ == "HoverTool")
    assert dict(hover.tooltips) == {"said": "@{said}", "heard": "@{heard}", "times": "@{seen}", "words": "@{examples}"}


def test_cells_without_a_confusion_are_clear_and_the_others_seen(words):
    mapper = shown(errors.phone_confusions(phones.confusions(words).table())).renderers[0].glyph.fill_color["transform"]
    assert mapper.low == 1 and mapper.high == 3
    assert mapper.low_color in ("#00000000", "rgba(0, 0, 0, 0)")
    assert all(int(colour[7:], 16) > 100 for colour in mapper.palette)


def test_the_figure_says_that_no_sound_was_measured(words):
    figure = shown(errors.phone_confusions(phones.confusions(words).table()))
    assert "by dictionary, not by sound" in figure.title.text
    assert (figure.xaxis[0].axis_label, figure.yaxis[0].axis_label) == ("phone heard (– it is missing)", "phone said (– one is added)")
    assert type(figure.xaxis[0].major_label_policy).__name__ == "NoOverlap"


def test_no_confusion_draws_an_empty_figure():
    nothing = phones.confusions(confusions.words(score(["a"], ["a"], RAW), ["u"])).table()
    assert len(nothing) == 0
    assert not np.any(shown(errors.phone_confusions(nothing)).renderers[0].data_source.data["zvalues"])


# --- words ---


def test_bars_are_as_long_as_their_counts_and_labelled(words):
    table = confusions.substitutions(words)
    figure = shown(errors.substitutions(table, most=3))
    data = figure.renderers[0].data_source.data
    assert list(data["right"]) == table["count"].tolist()[:3]
    assert list(figure.yaxis[0].major_label_overrides.values()) == ["three → free", "b → x", "park → bark"]
    assert figure.xaxis[0].axis_label == "times"
    assert figure.y_range.start > figure.y_range.end  # the commonest on top
    assert "TapTool" in {type(tool).__name__ for tool in figure.tools}


def test_long_words_are_cut_on_the_axis_and_whole_in_the_tooltip():
    long = "internationalisation"
    figure = shown(errors.substitutions(subs([(long, long + "s"), (long, long)])))
    labels = list(figure.yaxis[0].major_label_overrides.values())
    assert labels == ["internationa… → internationa…"] * 2  # equal labels stay two bars
    assert list(figure.renderers[0].data_source.data["heard"]) == [long + "s", long]
    assert max(map(len, labels)) <= 2 * errors.LONGEST + 3


@pytest.mark.parametrize("top", [1, 2, 4, 5, 6, 23, 99, 100, 101, 12_345])
def test_ticks_are_few_whole_numbers_up_to_the_longest_bar(top):
    ticks = errors._whole(top)
    assert 2 <= len(ticks) <= 7 and ticks[-1] >= top and ticks[0] == 0


def test_an_axis_label_reorders_nothing_and_is_no_formula():
    labels = list(shown(errors.substitutions(subs([("a\u202eb", "c"), FORMULA[:2]]))).yaxis[0].major_label_overrides.values())
    assert labels[0] == "a[U+202E]b → c"
    assert not any(sign in labels[1] for sign in ("$$", r"\("))


# --- place and length ---


@pytest.mark.parametrize("make", [errors.errors_by_position, errors.errors_by_length])
def test_stacks_are_the_rates_in_percent(make):
    figure = shown(make(pd.DataFrame(POSITIONS)))
    data = [renderer.data_source.data for renderer in figure.renderers]
    assert [d["kind"][0] for d in data] == ["insertion", "deletion", "substitution"]
    assert [list(d["bottom"]) for d in data] == [[0, 0], [40, 0], [50, 0]]
    assert [list(d["top"]) for d in data] == [[40, 0], [50, 0], [70, 0]]
    assert figure.yaxis[0].axis_label == "errors (% of reference words)"
    assert [item.label.value for item in figure.legend[0].items] == ["insertions", "deletions", "substitutions"]


def test_the_whole_stack_is_the_error_rate(words):
    table = confusions.by_length(words)
    data = shown(errors.errors_by_length(table)).renderers[-1].data_source.data
    wrong = table.substitutions + table.deletions + table.insertions
    np.testing.assert_allclose(data["top"], 100 * wrong / table.words)
    assert list(data["where"]) == ["1 words", "3–4 words", "5–8 words"]
    assert errors.errors_by_position(confusions.by_position(words))


@pytest.mark.parametrize("make", [errors.errors_by_position, errors.errors_by_length, errors.substitutions])
def test_nothing_draws_too(make, words):
    source = {errors.errors_by_position: confusions.by_position, errors.errors_by_length: confusions.by_length}
    table = source.get(make, confusions.substitutions)(words.iloc[:0])
    assert shown(make(table)).title.text


@pytest.mark.parametrize("make", [errors.phone_confusions, errors.substitutions, errors.errors_by_position, errors.errors_by_length])
def test_a_table_without_its_columns_is_an_input_error(make):
    with pytest.raises(InputError, match=r"got: .*wrong[\s\S]*expected: "):
        make(pd.DataFrame({"wrong": [1]}))


@pytest.mark.slow
def test_words_run_nothing_and_fetch_nothing_in_a_narrow_browser(tmp_path, words):
    from bokeh.embed import file_html
    from bokeh.resources import INLINE

    evil = subs([*((text, text) for text in (*EVIL, EVIL_TEXT)), FORMULA[:2], FORMULA[2:] * 2])
    figures = {"bars": errors.substitutions(evil), "phones": errors.phone_confusions(phones.confusions(words).table())}
    with chromium() as browser:
        for name, figure in figures.items():
            (tmp_path / f"{name}.html").write_text(file_html(shown(figure), INLINE))
            page = browser.new_page(viewport={"width": 390, "height": 900})
            log = watch(page)
            page.goto(f"file://{tmp_path}/{name}.html")
            page.wait_for_function("window.Bokeh && Bokeh.documents.length && Bokeh.documents[0].is_idle")
            page.wait_for_timeout(500)
            canvas = page.locator("canvas").first.bounding_box()
            page.mouse.move(canvas["x"] + canvas["width"] * 0.62, canvas["y"] + canvas["height"] * 0.45)  # a tooltip shows the words whole
            page.locator(".bk-Tooltip").first.wait_for(state="attached")
            assert not pwned(page)
            assert page.evaluate("document.documentElement.scrollWidth") <= 390
            assert log.external == []
            assert not any(url.endswith("/x") for url in log.requests)  # as <img src=x> would
