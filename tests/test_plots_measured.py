"""Figures of confidence, time and strata: the numbers of their tables, in their units, and no text that becomes markup."""

from __future__ import annotations

import math

import holoviews as hv
import numpy as np
import pandas as pd
import pytest
from browser import EVIL_TEXT
from bs4 import BeautifulSoup
from counts import RAW, fuzz, some_scores
from hypothesis import given
from hypothesis import strategies as st

from speechlab import calibration, latency, strata
from speechlab.comparison import SMALL
from speechlab.errors import InputError
from speechlab.plots import measured, style


@pytest.fixture(scope="module")
def tables() -> dict[str, pd.DataFrame]:
    refs, hyps = fuzz(120, 0.3, 3)
    rng = np.random.default_rng(1)
    judged = calibration.judged(refs, hyps, [list(rng.beta(4, 1, len(h.split()))) for h in hyps], RAW)
    seconds = rng.lognormal(-1, 0.5, 120)
    return {
        "reliability": calibration.reliability(judged),
        "rejection": calibration.rejection(judged).table,
        "deadlines": latency.deadline_curve(judged.scores, seconds, [0.01, 0.2, 0.4, 1.0, math.inf], resamples=50),
        "wer_by": strata.by(judged.scores, ["a"] * 100 + ["b"] * 15 + [EVIL_TEXT] * 5, resamples=50),
        "wer_over": strata.over(judged.scores, seconds, unit="s"),
        "wer_over_snr": levels(),
    }


def levels(system: str = "tuned") -> pd.DataFrame:
    rows = [(name, snr, w, 0.8 * w, 1.2 * w) for name in ("base", system) for snr, w in ((5, 0.3), (math.inf, 0.05), (20, 0.1), (0, 0.6))]
    return pd.DataFrame(rows, columns=["system", "snr", "wer", "low", "high"])


MAKERS = {
    "reliability": measured.reliability,
    "rejection": measured.rejection,
    "deadlines": measured.deadlines,
    "wer_by": measured.wer_by,
    "wer_over": lambda table: measured.wer_over(table, "duration", "s"),
    "wer_over_snr": measured.wer_over_snr,
}
AXES = {
    "reliability": ("confidence (%)", "right words (%), 95 % interval"),
    "rejection": ("least sure utterances rejected (%)", "WER of the rest (%)"),
    "deadlines": ("time budget (ms)", "coverage and WER (%)"),
    "wer_by": ("WER (%), 95 % interval", ""),
    "wer_over": ("duration (s)", "WER (%), 95 % interval"),
    "wer_over_snr": ("SNR (dB), noisier to the right", "WER (%)"),
}


def drawn(figure) -> dict[str, np.ndarray]:
    """The columns that a figure's hover tells of, of whichever renderer has one."""
    plot = hv.render(figure, backend="bokeh")
    tools = [t for t in plot.tools if type(t).__name__ == "HoverTool" and t.tooltips]
    return tools[-1].renderers[0].data_source.data


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("rows", [0, 1, 100])
def test_every_figure_draws_with_units_and_tooltips(name, rows, tables):
    figure = hv.render(MAKERS[name](tables[name].iloc[:rows]), backend="bokeh")
    assert (figure.xaxis[0].axis_label, figure.yaxis[0].axis_label) == AXES[name]
    assert figure.background_fill_alpha == 0 and figure.title.text_color == style.GREY
    assert rows == 0 or any(tool.tooltips for tool in figure.tools if type(tool).__name__ == "HoverTool")


@pytest.mark.parametrize("name", MAKERS)
def test_a_table_without_its_columns_is_an_input_error(name):
    with pytest.raises(InputError, match=r"got: .*wrong[\s\S]*expected: "):
        MAKERS[name](pd.DataFrame({"wrong": [1]}))


def test_reliability_puts_each_bin_at_its_share(tables):
    table, data = tables["reliability"], drawn(measured.reliability(tables["reliability"]))
    np.testing.assert_allclose(data["confidence"], 100 * table.confidence)
    np.testing.assert_allclose(data["right"], 100 * table.right)
    uneven = table.assign(words=[1, *[100] * (len(table) - 1)])
    size = drawn(measured.reliability(uneven))["size"]
    assert size[0] < size[1] / 1.5 and len(set(size[1:])) == 1


def test_rejection_starts_at_the_plain_wer(tables):
    table, data = tables["rejection"], drawn(measured.rejection(tables["rejection"]))
    np.testing.assert_allclose(data["wer"], 100 * table.wer)
    figure = hv.render(measured.rejection(table), backend="bokeh")
    assert [item.label["value"] for item in figure.legend[0].items] == ["at random", "by confidence", "oracle"]
    flat = next(r.data_source.data["plain"] for r in figure.renderers if "plain" in r.data_source.data)
    np.testing.assert_allclose(flat, 100 * table.wer[0])


def test_latencies_mark_their_percentiles():
    seconds = np.random.default_rng(0).lognormal(-1, 0.5, 5000)
    figure = hv.render(measured.latencies(seconds), backend="bokeh")
    labels = [item.label["value"] for item in figure.legend[0].items]
    assert labels == [f"p{p} {1000 * latency.percentile(seconds, p):,.0f} ms" for p in (50, 95, 99)]
    steps = max((r.data_source.data for r in figure.renderers), key=lambda d: max(map(len, d.values())))
    assert len(steps["share"]) == 2 * measured.MOST_STEPS - 1 and (steps["share"][0], steps["share"][-1]) == (0, 100)
    assert steps["latency"][-1] == pytest.approx(1000 * seconds.max())
    at = np.searchsorted(steps["share"], 50)
    assert steps["latency"][at] == pytest.approx(1000 * np.median(seconds), rel=0.01)
    assert (figure.xaxis[0].axis_label, figure.yaxis[0].axis_label) == ("latency (ms)", "clips (%)")
    with pytest.raises(InputError):
        measured.latencies([])


def test_deadlines_are_drawn_in_milliseconds_and_without_end_left_out(tables):
    table, data = tables["deadlines"], drawn(measured.deadlines(tables["deadlines"]))
    np.testing.assert_allclose(data["budget"], [10, 200, 400, 1000])
    np.testing.assert_allclose(data["wer"], 100 * table.wer[:4])
    np.testing.assert_allclose(data["met_wer"], 100 * table.met_wer[:4])
    assert math.isnan(data["met_wer"][0]) and data["wer"][0] == 100  # nobody in time
    figure = hv.render(measured.deadlines(table), backend="bokeh")
    assert type(figure.x_scale).__name__ == "LogScale"
    line = next(d for r in figure.renderers if set(d := r.data_source.data) == {"budget", "met_wer"})
    assert list(line["budget"]) == [400, 1000] and 0 < table.met[1] < SMALL <= table.met[2]  # a rate of few is not drawn


@given(st.floats(1e-3, 1e5), st.floats(1.5, 1e6))
def test_ticks_of_a_logarithmic_axis_lie_on_it(least, times):
    ticks = measured.ticks(pd.Series([least, least * times]))
    assert ticks == sorted(ticks) and all(0.99 * least <= tick <= 1.01 * least * times for tick in ticks)
    assert len(ticks) <= 9 and (times < 10 or ticks)


def test_a_stratum_of_few_keeps_its_line_without_a_dot(tables):
    figure = hv.render(measured.wer_by(tables["wer_by"]), backend="bokeh")
    names = list(figure.yaxis[0].major_label_overrides.values())
    assert names[1:] == ["a\nn = 100", "b\nn = 15"] and names[0].endswith("…\nn = 5") and len(names[0]) < 30
    notes = next(r.data_source.data["text"] for r in figure.renderers if "text" in r.data_source.data)
    assert list(notes) == ["  too few"] * 2
    data = drawn(measured.wer_by(tables["wer_by"]))
    assert list(data["stratum"]) == ["a"] and data["wer"][0] == pytest.approx(100 * tables["wer_by"].wer[1])


def test_a_line_over_a_number_leaves_out_what_is_not_known():
    values = np.r_[np.full(5, math.nan), np.linspace(1, 9, 55)]
    table = strata.over(some_scores(), values, unit="s")
    data = drawn(measured.wer_over(table, "duration", "s"))
    assert len(data["middle"]) == len(table) - 1 == 2 and list(data["utterances"]) == list(table.utterances[:2])
    np.testing.assert_allclose(data["wer"], 100 * table.wer[:2])


def test_noise_grows_to_the_right_and_clean_stands_beyond_the_highest():
    figure = hv.render(measured.wer_over_snr(levels()), backend="bokeh")
    assert figure.x_range.start > figure.x_range.end
    assert figure.xaxis[0].major_label_overrides == {0.0: "0", 5.0: "5", 20.0: "20", 35.0: "clean"}
    data = drawn(measured.wer_over_snr(levels()))
    assert list(data["snr"]) == [35, 20, 5, 0] and list(data["where"]) == ["clean", "20 dB", "5 dB", "0 dB"]
    markers = {r.glyph.marker for r in figure.renderers if hasattr(r.glyph, "marker")}
    assert len(markers) == 2  # told apart without colour


def test_text_in_a_figure_cannot_become_markup(tables):
    from bokeh.document import Document
    from panel.io import notebook

    style.extension()
    for figure in (
        measured.wer_by(tables["wer_by"]),
        measured.wer_over_snr(levels(EVIL_TEXT)),
        measured.wer_over(tables["wer_over"], EVIL_TEXT),
    ):
        plot = hv.render(figure, backend="bokeh")
        Document().add_root(plot)
        soup = BeautifulSoup(notebook.render_model(plot)[0]["text/html"], "html.parser")
        assert len(soup.find_all("script")) == 1 and not soup.find_all(["img", "svg"])
