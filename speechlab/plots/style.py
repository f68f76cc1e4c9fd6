"""The looks that all figures share, and what a notebook loads before it shows one.

Axes carry units, colours are from Okabe & Ito's palette (distinguishable without red-green vision, and
each at least 3:1 against white and against near-black), backgrounds are transparent and lines of
text mid-grey, so a figure reads on a light and on a dark page.
"""

from __future__ import annotations

from typing import Any

import holoviews as hv
import holoviews.plotting.bokeh
import numpy as np
import pandas as pd

from speechlab.errors import InputError

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")  # blue, vermilion, green, purple
MARKERS = ("circle", "diamond", "square", "triangle")
GREY = "#7b7f87"  # 4.1:1 on white, 4.4:1 on near-black


def extension() -> None:
    """Load the figures' JavaScript into the notebook, inline, so that its report works offline.

    The order matters (the other way round the page carries most of it twice), and so does saying
    ``inline`` twice: each extension alone would still link to its CDN.
    """
    import panel as pn
    from bokeh.core.json_encoder import serialize_json
    from panel.io import notebook

    # Panel writes what a figure or a table holds as bare JSON into the page's script, where a transcript
    # with "</script>" in it would end the script and begin its own; in JSON, "<" may be written so:
    notebook.serialize_json = lambda *args, **kw: serialize_json(*args, **kw).replace("<", "\\u003c")
    hv.extension("bokeh", inline=True, logo=False)
    pn.extension("tabulator", inline=True)


def decimate(table: pd.DataFrame, limit: int = 2000, x: str = "step") -> pd.DataFrame:
    """At most ``limit`` rows that keep the first, the last and every stretch's lowest and highest values.

    Args:
        table: Numeric columns, ordered by ``x``.
        limit: The most rows to return.
        x: The column whose range is cut into equal stretches.

    Returns:
        Rows of the table, in order; a table within the limit comes back as it is.
    """
    if len(table) <= limit:
        return table
    columns = [c for c in table.columns if c != x]
    assert limit >= 2 * len(columns) + 2, f"{limit} rows cannot keep the peaks of {len(columns)} columns"
    bins = (limit - 2) // (2 * len(columns))
    at = table[x].to_numpy(float)
    stretch = np.minimum((bins * (at - at[0]) / max(at[-1] - at[0], 1e-12)).astype(int), bins - 1)
    numbered = table.reset_index(drop=True)
    groups = numbered[columns].groupby(stretch)
    # NaN neither wins nor hides a peak: a stretch of nothing but NaN keeps its first row
    lows = numbered[columns].fillna(np.inf).groupby(stretch).idxmin()
    highs = numbered[columns].fillna(-np.inf).groupby(stretch).idxmax()
    assert len(groups) <= bins
    keep = np.unique(np.concatenate([[0, len(table) - 1], lows.to_numpy().ravel(), highs.to_numpy().ravel()]))
    return numbered.iloc[keep].reset_index(drop=True)


def grid(*figures: Any) -> Any:
    """Figures side by side, two in a row where there is room, each with axes of its own.

    Args:
        figures: HoloViews elements.
    """
    import panel as pn

    panes = [pn.pane.HoloViews(figure, linked_axes=False, sizing_mode="stretch_width") for figure in figures]
    columns = "repeat(auto-fit, minmax(min(max(300px, 40%), 100%), 1fr))"
    return pn.Column(*panes, sizing_mode="stretch_width", styles={"display": "grid", "grid-template-columns": columns})


def finish(element: Any, title: str, height: int = 250, floor: bool = False) -> Any:
    """The looks that all figures share; with ``floor`` the axis starts at zero, as a share or an amount should."""
    looks = {
        **({"ylim": (0, None)} if floor else {}),
        "title": title,
        "height": height,
        "responsive": True,
        "show_grid": True,
        "hooks": [_style],
        "default_tools": ["pan", "box_zoom", "wheel_zoom", "reset", "save"],
    }
    if isinstance(element, hv.Overlay):
        return element.opts(**looks, legend_position="top")
    return element.opts(**looks)


def _style(plot: Any, element: Any) -> None:
    figure = plot.state
    figure.background_fill_alpha = figure.border_fill_alpha = 0
    figure.outline_line_color = None
    figure.title.text_color = GREY
    figure.title.text_font_size = "14px"
    figure.min_border_right = 12
    figure.min_width = 250  # painted narrower at first, Bokeh leaves a stripe of it on a transparent ground
    for axis in figure.axis:
        axis.axis_label_text_color = axis.major_label_text_color = GREY
        axis.axis_line_color = axis.major_tick_line_color = GREY
        axis.minor_tick_line_color = None
        axis.axis_label_text_font_style = "normal"
        axis.axis_label_text_font_size = axis.major_label_text_font_size = "12px"
    for grid in figure.grid:
        grid.grid_line_color = GREY
        grid.grid_line_alpha = 0.2
    for legend in figure.legend:
        legend.background_fill_alpha = 0
        legend.border_line_alpha = 0
        legend.label_text_color = GREY
        legend.margin = legend.padding = 0
        legend.spacing = 12
        legend.click_policy = "mute"
    # a page scrolls past a figure; zoom and pan are a click on the toolbar away
    figure.toolbar.active_drag = figure.toolbar.active_scroll = None
    figure.toolbar.autohide = True
    figure.toolbar.logo = None


def need(table: pd.DataFrame, columns: list[str], what: str) -> None:
    """Refuse a table that lacks a column.

    Raises:
        InputError: with those that it has.
    """
    missing = [c for c in columns if c not in table.columns]
    if missing:
        raise InputError(f"The table for {what} lacks columns.", got=", ".join(map(str, table.columns)), expected=", ".join(columns))
