"""What was misheard, from the tables of :mod:`speechlab.confusions` and :mod:`speechlab.phones`.

Cells and bars can be selected by a tap: the row of ``figure.data`` that ``holoviews.streams.Selection1D`` gives the number of
says which words or phones they are. Reference and hypothesis are untrusted text and reach the page as data of a figure only.
"""

from __future__ import annotations

import html
import itertools
import re
from typing import Any

import holoviews as hv
import pandas as pd
from bokeh.models import FixedTicker, NoOverlap

from speechlab.phones import NOTHING, PHONES
from speechlab.plots.style import COLOURS, GREY, finish, need
from speechlab.text import escape

LONGEST = 13  # letters of a word on an axis; the whole word is in the tooltip
KINDS = {"insertion": 1, "deletion": 0, "substitution": 3}  # from the axis up, in the colours of the alignments in markup
CLEAR = "#00000000"


def phone_confusions(table: pd.DataFrame) -> hv.HeatMap:
    """Phones said against phones heard, without those that agree; the stronger a cell, the more often.

    A confusion of pronunciations in a dictionary, not of sounds that were measured: see :mod:`speechlab.phones`.

    Args:
        table: From :meth:`speechlab.phones.Confusions.table`.

    Returns:
        All pairs of the 39 phones and of none; the columns said and heard of its ``data`` are the phones.

    Raises:
        InputError: if a column is missing.
    """
    need(table, ["said", "heard", "count", "occurrences", "share", "examples"], "phone_confusions")
    every = [*PHONES, NOTHING]
    # all cells, in the order in which HoloViews draws them, so that a selection's number is a row's
    cells = pd.DataFrame([(x, y, said, heard) for x, heard in enumerate(every) for y, said in enumerate(every)])
    cells.columns = pd.Index(["x", "y", "said", "heard"])
    cells = cells.merge(table, "left", ["said", "heard"]).fillna({"count": 0, "examples": ""})
    cells["seen"] = [_times(*row) for row in zip(cells["count"], cells.occurrences, cells.share, strict=True)]
    texts = ["said", "heard", "seen", "examples"]
    cells[texts] = cells[texts].astype(object)  # HoloViews lays them out in two dimensions, which Arrow's strings cannot be
    x = hv.Dimension("x", label=f"phone heard ({NOTHING} it is missing)")
    y = hv.Dimension("y", label=f"phone said ({NOTHING} one is added)")
    bar: dict[str, Any] = {"title_text_color": GREY, "title_text_font_style": "normal", "major_label_text_color": GREY}
    bar |= {"major_tick_line_color": GREY, "bar_line_alpha": 0, "background_fill_alpha": 0, "height": 8}
    bar["ticker"] = FixedTicker(ticks=[digit * 10**power for power in range(6) for digit in (1, 2, 5)])
    figure = hv.HeatMap(cells, [x, y], [hv.Dimension("count", label="times"), *texts]).opts(
        cmap=_palette(),
        clim=(1, max(2, cells["count"].max())),
        logz=True,
        clipping_colors={"min": CLEAR, "NaN": CLEAR},
        colorbar=True,
        colorbar_position="top",
        colorbar_opts=bar,
        tools=["hover", "tap"],
        nonselection_alpha=0.4,
        hover_tooltips=[("said", "@said"), ("heard", "@heard"), ("times", "@seen"), ("words", "@examples")],
        xticks=list(enumerate(every)),
        yticks=list(enumerate(every)),
        invert_yaxis=True,
    )
    return _fitted(finish(figure, "Phones by dictionary, not by sound", height=760))


def _palette() -> list[str]:
    """From a faint blue to a full vermilion: what is rare and what is common both stand out from a light and from a dark page."""
    ends = [[int(colour[i : i + 2], 16) for i in (1, 3, 5)] + [alpha] for colour, alpha in ((COLOURS[0], 110), (COLOURS[1], 255))]
    return ["#" + "".join(f"{round(a + (b - a) * i / 255):02x}" for a, b in zip(*ends, strict=True)) for i in range(256)]


def _fitted(figure: Any) -> Any:
    """Room for the figure alone: labels that would overlap are left out, and no neighbour's labels widen its margin."""
    hooks = hv.Store.lookup_options("bokeh", figure, "plot").kwargs["hooks"]
    return figure.opts(hooks=[*hooks, _alone])


def _alone(plot: Any, element: Any) -> None:
    plot.state.frame_align = False
    for axis in plot.state.xaxis:
        axis.major_label_policy = NoOverlap(min_distance=1)


def _times(count: float, occurrences: float, share: float) -> str:
    """``43 of 160 (26.9 %)``; ``16`` where it is a share of nothing."""
    return f"{count:.0f} of {occurrences:.0f} ({100 * share:.3g} %)" if share == share else f"{count:.0f}"


def substitutions(table: pd.DataFrame, most: int = 20) -> hv.Rectangles:
    """Bars of the most common substitutions, said → heard.

    Args:
        table: From :func:`speechlab.confusions.substitutions`.
        most: How many rows of it are shown, from the first on.

    Raises:
        InputError: if a column is missing.
    """
    need(table, ["said", "heard", "count", "utterances", "occurrences"], "substitutions")
    rows = table.head(most).reset_index(drop=True)
    rows = rows.assign(x0=0, x1=rows["count"], y0=rows.index - 0.38, y1=rows.index + 0.38)
    labels = [f"{_short(said)} → {_short(heard)}" for said, heard in zip(rows.said, rows.heard, strict=True)]
    tips = [("said", "@said"), ("heard", "@heard"), ("times", "@count of @occurrences"), ("utterances", "@utterances")]
    bars = hv.Rectangles(rows, ["x0", "y0", "x1", "y1"], ["said", "heard", "count", "occurrences", "utterances"]).opts(
        color=COLOURS[3],
        line_alpha=0,
        tools=["hover", "tap"],
        nonselection_alpha=0.4,
        hover_tooltips=tips,
        yticks=list(enumerate(labels)) or None,
        xticks=_whole(int(table["count"].max()) if len(table) else 1),
        xlabel="times",
        ylabel="",
        invert_yaxis=True,
        xlim=(0, None),
        ylim=(-0.6, max(1, len(rows)) - 0.4),
    )
    return _fitted(finish(bars, "Said → heard", height=110 + 24 * max(1, len(rows))))


def _short(word: str) -> str:
    """A word for an axis: cut to length, what would reorder its letters shown, what Bokeh would set as a formula broken up."""
    shown = html.unescape(escape(word))
    cut = shown if len(shown) <= LONGEST else shown[: LONGEST - 1] + "…"
    return re.sub(r"[$\\]", "\\g<0>\u200b", cut)


def _whole(top: int) -> list[int]:
    """About five ticks at round whole numbers."""
    step = next(size for size in (digit * 10**power for power in itertools.count() for digit in (1, 2, 5)) if top <= 5 * size)
    return list(range(0, top + step, step))


def errors_by_position(table: pd.DataFrame) -> hv.Overlay:
    """Stacked bars of substitutions, deletions and insertions over the place in the utterance.

    Args:
        table: From :func:`speechlab.confusions.by_position`.

    Raises:
        InputError: if a column is missing.
    """
    need(table, ["low", "high", "words", "substitutions", "deletions", "insertions"], "errors_by_position")
    rows = table.assign(x0=100 * table.low + 0.5, x1=100 * table.high - 0.5)
    rows["where"] = [f"{100 * low:.0f} to {100 * high:.0f} %" for low, high in zip(rows.low, rows.high, strict=True)]
    return _stacked(rows, "Errors by place in the utterance", "place, from first word to last (%)", list(range(0, 101, 20)), (0, 100))


def errors_by_length(table: pd.DataFrame) -> hv.Overlay:
    """Stacked bars of substitutions, deletions and insertions over the length of the utterance.

    Args:
        table: From :func:`speechlab.confusions.by_length`.

    Raises:
        InputError: if a column is missing.
    """
    need(table, ["low", "high", "words", "substitutions", "deletions", "insertions"], "errors_by_length")
    rows = table.reset_index(drop=True)
    names = [str(low) if low == high else f"{low}–{high}" for low, high in zip(rows.low, rows.high, strict=True)]
    rows = rows.assign(x0=rows.index - 0.45, x1=rows.index + 0.45, where=[f"{name} words" for name in names])
    return _stacked(
        rows, "Errors by length of the utterance", "words of the utterance", list(enumerate(names)), (-0.55, max(1, len(rows)) - 0.45)
    )


def _stacked(rows: pd.DataFrame, title: str, axis: str, ticks: list[Any], ends: tuple[float, float]) -> hv.Overlay:
    """Rates over reference words in percent, a bar a row from x0 to x1."""
    base = pd.Series(0.0, rows.index)
    layers = []
    tips = [("where", "@where"), ("kind", "@kind"), ("rate", "@rate{0.0} % of the words"), ("errors", "@errors of @words words")]
    for kind, colour in KINDS.items():
        rate = (100 * rows[f"{kind}s"] / rows.words.where(rows.words > 0)).fillna(0)
        part = rows.assign(y0=base, y1=base + rate, rate=rate, kind=kind, errors=rows[f"{kind}s"])
        bars = hv.Rectangles(part, ["x0", "y0", "x1", "y1"], ["where", "kind", "rate", "errors", "words"], label=f"{kind}s")
        layers.append(bars.opts(color=COLOURS[colour], line_alpha=0, tools=["hover"], hover_tooltips=tips))
        base = base + rate
    looks = {"xlabel": axis, "ylabel": "errors (% of reference words)", "xticks": ticks or None, "xlim": ends}
    overlay = hv.Overlay(layers).opts(**looks)
    return _fitted(finish(overlay, title, floor=True))
