"""Figures of several runs: units on axes, the front joined, names that become no markup."""

from __future__ import annotations

import math

import holoviews as hv
import numpy as np
import pandas as pd
import pytest
from browser import EVIL_TEXT
from bs4 import BeautifulSoup

from speechlab import plots
from speechlab.errors import InputError
from speechlab.plots import style


def some_runs(names: str = "abcde") -> pd.DataFrame:
    """The first three stand, the fourth is dominated, the last was not evaluated."""
    wers = [0.3, 0.2, 0.1, 0.25, math.nan]
    return pd.DataFrame(
        {
            "id": [f"{name}-1" for name in names],
            "label": list(names),
            "wer": wers,
            "low": [wer - 0.02 for wer in wers],
            "high": [wer + 0.03 for wer in wers],
            "rtfx": [200.0, 100.0, 10.0, 50.0, 20.0],
            "seconds": [100.0, 200.0, 4000.0, 300.0, 1.0],
            "clips": [10, 20, 400, 30, 1],
            "leaves": [{"seed": 1}] * 5,
        }
    )


def curves(names: str = "ab") -> pd.DataFrame:
    return pd.DataFrame([{"label": name, "step": step, "wer": 1 / step} for name in names for step in (10, 100)])


FIGURES = {"rtf": plots.wer_over_rtf, "seconds": plots.wer_over_cost}
LABELS = {"rtf": "RTF (s per s of audio), log", "seconds": "training steps (s), log"}


@pytest.mark.parametrize("x", FIGURES)
@pytest.mark.parametrize("rows", [0, 1, 4, 5])
def test_wer_over_what_it_costs_draws_with_units(x, rows):
    figure = hv.render(FIGURES[x](some_runs()[:rows]), backend="bokeh")
    assert figure.xaxis[0].axis_label == LABELS[x] and figure.yaxis[0].axis_label == "WER (%), 95 % interval"
    assert type(figure.x_scale).__name__ == "LogScale" and figure.y_range.start == 0
    assert bool(rows) == any(getattr(tool, "tooltips", None) for tool in figure.tools if type(tool).__name__ == "HoverTool")


@pytest.mark.parametrize("x", FIGURES)
def test_those_that_stand_are_joined_and_all_have_whiskers(x):
    figure = hv.render(FIGURES[x](some_runs()), backend="bokeh")
    data = [r.data_source.data for r in figure.renderers]
    (line,) = [d for d in data if set(d) == {x, "wer"}]
    values = some_runs().assign(rtf=lambda t: 1 / t.rtfx)
    np.testing.assert_allclose(sorted(set(line["wer"])), [10, 20, 30])  # a step has its corners
    np.testing.assert_allclose(sorted(set(line[x])), sorted(values[x][:3]))
    dots = [d for d in data if "id" in d]
    assert sorted(name for d in dots for name in d["id"]) == ["a-1", "b-1", "c-1", "d-1"]
    assert [list(d["id"]) for d in dots if len(d["id"]) == 1] == [["d-1"]]
    whiskers = [d for d in data if "high" in d and "id" not in d]
    ends = sorted((low, high) for d in whiskers for low, high in zip(d["low"], d["high"], strict=True))
    np.testing.assert_allclose(ends, [(8, 13), (18, 23), (23, 28), (28, 33)])
    markers = {r.glyph.marker for r in figure.renderers if getattr(r.glyph, "marker", None)}
    assert len(markers) == 2  # told apart without colour


def test_names_that_would_overlap_are_left_to_hover():
    rows = pd.concat([some_runs()[:1].assign(label=f"run {i}", seconds=100 + i, wer=0.3 - i / 1000) for i in range(20)])
    figure = hv.render(plots.wer_over_cost(rows), backend="bokeh")
    texts = [t for r in figure.renderers if "text" in r.data_source.data for t in r.data_source.data["text"]]
    assert 1 <= len(texts) <= 2
    apart = hv.render(plots.wer_over_cost(some_runs()), backend="bokeh")
    assert sorted(t.strip() for r in apart.renderers if "text" in r.data_source.data for t in r.data_source.data["text"]) == ["a", "b", "c"]


@pytest.mark.parametrize("names", ["", "a", "ab", "abcdefghi"])
def test_curves_of_several_runs_draw_with_units(names):
    table = curves(names) if names else pd.DataFrame(columns=["label", "step", "wer"])
    figure = hv.render(plots.dev_wer(table), backend="bokeh")
    assert figure.xaxis[0].axis_label == "optimizer step, log" and figure.yaxis[0].axis_label == "validation WER (%)"
    dots = [r.data_source.data for r in figure.renderers if "label" in r.data_source.data and hasattr(r.glyph, "marker")]
    assert [str(d["label"][0]) for d in dots] == list(names)
    assert all(list(d["percent"]) == pytest.approx([10, 1]) for d in dots)
    assert bool(figure.legend and figure.legend[0].visible and figure.legend[0].items) == (1 <= len(names) <= 8)


def test_a_table_that_lacks_a_column_is_refused():
    for figure, table in ((plots.wer_over_rtf, some_runs()), (plots.wer_over_cost, some_runs()), (plots.dev_wer, curves())):
        with pytest.raises(InputError, match="lacks columns"):
            figure(table.drop(columns="wer"))


def test_text_in_a_figure_cannot_become_markup():
    from bokeh.document import Document
    from panel.io import notebook

    style.extension()
    evil = some_runs().assign(label=EVIL_TEXT, id=EVIL_TEXT)
    for figure in (plots.wer_over_rtf(evil), plots.dev_wer(curves().assign(label=EVIL_TEXT))):
        plot = hv.render(figure, backend="bokeh")
        Document().add_root(plot)
        soup = BeautifulSoup(notebook.render_model(plot)[0]["text/html"], "html.parser")
        assert len(soup.find_all("script")) == 1 and not soup.find_all(["img", "svg"])
