"""Figures and HTML builders: units on axes, peaks kept, and no text that becomes markup."""

from __future__ import annotations

import holoviews as hv
import numpy as np
import pandas as pd
import pytest
from browser import EVIL, EVIL_TEXT, mp3, step_event
from bs4 import BeautifulSoup
from hypothesis import given
from hypothesis import strategies as st

from speechlab import plots, text
from speechlab.errors import InputError
from speechlab.markup import Html


def live_markup(page: str) -> list[str]:
    """Elements and attributes of a page that could run script, beyond what our builders write."""
    soup = BeautifulSoup(page, "html.parser")
    tags = [e.name for e in soup.find_all(["script", "img", "svg", "iframe", "object", "embed", "link"])]
    attributes = [a for e in soup.find_all(True) for a in e.attrs if a.lower().startswith("on")]
    return tags + attributes


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    return plots.curves(pd.DataFrame([step_event(step) for step in range(1, 61)]))


def test_curves_derives_shares_and_rates():
    row = plots.curves(
        pd.DataFrame([step_event(1, audio_seconds=45.0, padded_seconds=60.0, step_seconds=2.0, wait_seconds=0.5, memory_bytes=2e9)])
    ).iloc[0]
    assert (row.speed, row.padding, row.wait, row.memory) == (22.5, 25.0, 25.0, 2.0)


def test_curves_smoothing_continues_across_tables():
    rows = pd.DataFrame([step_event(step) for step in range(1, 41)])
    whole = plots.curves(rows)
    first = plots.curves(rows.iloc[:17])
    second = plots.curves(rows.iloc[17:], float(first.smoothed.iloc[-1]))
    np.testing.assert_allclose([*first.smoothed, *second.smoothed], whole.smoothed, rtol=1e-12)


def test_curves_takes_nonsense_as_missing():
    rows = plots.curves(
        pd.DataFrame([step_event(1, loss=None, step_seconds=0.0), step_event(2, loss="<b>"), {**step_event(3), "step": "x"}])
    )
    assert list(rows.step) == [1, 2]
    assert rows.loss.isna().all()
    assert np.isnan(rows.speed[0])


@given(
    st.lists(st.floats(-1e6, 1e6) | st.just(float("nan")), min_size=1, max_size=400),
    st.integers(8, 60),
)
def test_decimate_keeps_ends_and_peaks(values, limit):
    table = pd.DataFrame({"step": np.arange(len(values), dtype=float), "a": values, "b": values[::-1]})
    thin = plots.decimate(table, limit)
    assert len(thin) <= max(limit, 1)
    assert thin.step.is_monotonic_increasing
    assert thin.step.is_unique
    assert thin.step.iloc[0] == table.step.iloc[0]
    assert thin.step.iloc[-1] == table.step.iloc[-1]
    for column in "ab":
        np.testing.assert_equal(thin[column].min(), table[column].min())
        np.testing.assert_equal(thin[column].max(), table[column].max())
    assert (table.set_index("step").loc[thin.step].reset_index()).equals(thin)  # rows are never made up


def test_taking_every_nth_row_would_lose_a_peak():
    """Negative control of the property above."""
    values = np.zeros(400)
    values[201] = 1.0
    table = pd.DataFrame({"step": np.arange(400.0), "a": values})
    assert table.iloc[::10].a.max() == 0
    assert plots.decimate(table, 40).a.max() == 1


@pytest.mark.parametrize("make", plots.CURVES, ids=lambda f: f.__name__)
@pytest.mark.parametrize("rows", [0, 1, 60])
def test_every_curve_draws_with_units(make, rows, table):
    figure = hv.render(make(table.iloc[:rows]), backend="bokeh")
    units = {"loss": "(nats per token)", "learning_rate": "learning rate", "gradient_norm": "norm before clipping"}
    units |= {"speed": "(s per s)", "waste": "(%)", "memory": "(GB)"}
    assert figure.xaxis[0].axis_label == "optimizer step"
    assert units[make.__name__] in figure.yaxis[0].axis_label
    assert any(tool.tooltips for tool in figure.tools if type(tool).__name__ == "HoverTool")


def test_word_error_rate_is_in_percent():
    figure = hv.render(plots.word_error_rate(pd.DataFrame([{"step": 20, "wer": 0.07, "cer": 0.03}])), backend="bokeh")
    assert figure.yaxis[0].axis_label == "WER (%)"
    assert list(figure.renderers[0].data_source.data["wer"]) == [pytest.approx(7.0)]


def systems(evil: str = "") -> pd.DataFrame:
    rows = [
        (evil or system, evil or condition, context, w, w * 0.7, w * 1.3)
        for system, w in (("pretrained", 0.07), ("finetuned", 0.027))
        for condition in ("clean", "noise-10db")
        for context in ("short", "full")
    ]
    return pd.DataFrame(rows, columns=["system", "condition", "context", "wer", "low", "high"])


def test_error_rates_places_a_dot_between_its_whiskers():
    figure = hv.render(plots.error_rates(systems()), backend="bokeh")
    data = [r.data_source.data for r in figure.renderers]
    whiskers = [d for d in data if "low_x" in d]
    assert figure.xaxis[0].axis_label == "WER (%)"
    assert len(whiskers) == 2
    np.testing.assert_allclose(whiskers[0]["low_x"], 4.9)
    np.testing.assert_allclose(whiskers[0]["high"], 9.1)


def test_durations_counts_every_clip():
    clips = pd.DataFrame({"split": ["train"] * 90 + ["test"] * 10, "seconds": np.linspace(0.5, 20, 100)})
    figure = hv.render(plots.durations(clips), backend="bokeh")
    assert figure.xaxis[0].axis_label == "duration (s)"
    assert [int(sum(r.data_source.data["top"])) for r in figure.renderers] == [90, 10]


@pytest.mark.parametrize("make", [plots.durations, plots.error_rates])
def test_a_table_without_its_columns_is_an_input_error(make):
    with pytest.raises(InputError, match=r"got: .*wrong[\s\S]*expected: "):
        make(pd.DataFrame({"wrong": [1]}))


# -- HTML --------------------------------------------------------------------------------------------


def test_alignment_marks_each_kind_of_error_in_words_too():
    shown = plots.alignment_html("a b c d", "a x c d e")
    soup = BeautifulSoup(shown, "html.parser")
    assert soup.select_one(".sub")["title"] == "substituted: said b, heard x"
    assert soup.select_one("u.ins").text == "e"
    assert BeautifulSoup(plots.alignment_html("a b", "a"), "html.parser").select_one("s.del").text == "b"


def test_alignment_under_a_normaliser_ignores_what_the_wer_ignores():
    assert "class" not in plots.alignment_html("Hello, world.", "hello world", text.normaliser("basic"))
    assert "class" in plots.alignment_html("Hello, world.", "hello world")


@pytest.mark.parametrize(("ref", "hyp"), [("", ""), ("a", ""), ("", "a")])
def test_alignment_of_nothing(ref, hyp):
    assert plots.alignment_html(ref, hyp)


def test_table_formats_and_shows_missing_values():
    page = plots.table_html(pd.DataFrame({"a": [0.5, np.nan], "b": ["x", None]}), {"a": "{:.0%}"}, caption="c")
    assert "50%" in page
    assert page.count("–") == 2
    assert "<caption>c</caption>" in page


def test_definitions_flatten_nested_values():
    page = plots.definitions_html({"a": {"b": None, "c": [1, 2]}, "d": True})
    assert page == "<dl><dt>a.b</dt><dd>–</dd><dt>a.c</dt><dd>1, 2</dd><dt>d</dt><dd>True</dd></dl>"
    folded = plots.definitions_html({"d": True}, {"a": {"b": None, "c": 1}}, "<others>")
    assert folded.startswith("<dl><dt>d</dt><dd>True</dd></dl><details><summary>2 &lt;others&gt;</summary><dl><dt>a.b</dt>")
    assert plots.definitions_html({"d": True}, {}) == plots.definitions_html({"d": True})


BUILDERS = {
    "alignment": lambda e: plots.alignment_html(e, e + " y"),
    "alignment, deleted": lambda e: plots.alignment_html(e, ""),
    "alignment, inserted": lambda e: plots.alignment_html("", e),
    "samples": lambda e: plots.samples_html([{"id": e, "reference": e, "hypothesis": e, "audio": mp3(0.1)}]),
    "table": lambda e: plots.table_html(pd.DataFrame({e: [e], "n": [1.0]}), caption=e),
    "definitions": lambda e: plots.definitions_html({e: {e: [e, e]}, "x": e}),
    "format": lambda e: Html('<a title="{}">{}</a>').format(e, e),
    "repr": lambda e: plots.definitions_html({e: e})._repr_html_(),
}


@pytest.mark.parametrize("build", BUILDERS.values(), ids=BUILDERS)
@pytest.mark.parametrize("evil", [*EVIL, EVIL_TEXT])
def test_no_builder_lets_text_become_markup(build, evil):
    assert live_markup(build(evil)) == []


@pytest.mark.parametrize("evil", EVIL)
def test_an_unescaped_insert_would_be_caught(evil):
    """Negative control of the test above."""
    assert live_markup(f'<a title="{evil}">{evil}</a>')


def test_bidirectional_overrides_are_shown():
    assert "[U+202E]" in plots.samples_html([{"id": "a\u202eb", "reference": "x", "hypothesis": "x", "audio": None}])


def test_a_figure_in_a_notebook_cannot_end_the_script_it_is_written_in(monkeypatch):
    from bokeh.core.json_encoder import serialize_json
    from bokeh.document import Document
    from panel.io import notebook

    def shown() -> str:
        figure = hv.render(plots.error_rates(systems(EVIL_TEXT)), backend="bokeh")
        Document().add_root(figure)
        return notebook.render_model(figure)[0]["text/html"]

    monkeypatch.setattr(notebook, "serialize_json", serialize_json)
    assert len(live_markup(shown())) > 1, "negative control: as Panel has it"
    plots.extension()
    page = shown()
    assert page.count("</script>") == 1
    assert live_markup(page) == ["script"]
