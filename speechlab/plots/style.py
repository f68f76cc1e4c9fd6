"""The looks that all figures share, and what a notebook loads before it shows one.

Axes carry units, colours are from Okabe & Ito's palette (distinguishable without red-green vision, and
each at least 3:1 against white and against near-black), backgrounds are transparent and lines of
text mid-grey, so a figure reads on a light and on a dark page. Each says in words what it shows
(:func:`told`), for those who do not see it, and is printed on one page.
"""

from __future__ import annotations

from typing import Any

import holoviews as hv
import holoviews.plotting.bokeh
import numpy as np
import pandas as pd

from speechlab.errors import InputError

PLACES = {"Line": ("x", "y"), "Scatter": ("x", "y"), "VBar": ("x", "top"), "HBar": ("right", "y"), "Quad": ("left", "top")}  # of glyphs
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")  # blue, vermilion, green, purple
MARKERS = ("circle", "diamond", "square", "triangle")
GREY = "#7b7f87"  # 4.1:1 on white, 4.4:1 on near-black
LISTED = 8  # values that a figure's text names one by one; of more it tells the range
MOST = 600  # characters of that text


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
    # the page that panel serve makes of a notebook would fetch a font from elsewhere
    pn.template.EditableTemplate._resources = {**pn.template.EditableTemplate._resources, "css": {}}


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
    firsts = np.flatnonzero(np.diff(stretch, prepend=-1))
    values = table[columns].to_numpy(float)
    missing = np.isnan(values)
    # NaN neither wins nor hides a peak: a stretch of nothing but NaN keeps its first row
    lows, highs = np.where(missing, np.inf, values), np.where(missing, -np.inf, values)
    keep = [np.array([0, len(table) - 1])]
    for first, end in zip(firsts, [*firsts[1:], len(table)], strict=True):
        keep += [first + lows[first:end].argmin(0), first + highs[first:end].argmax(0)]
    return table.iloc[np.unique(np.concatenate(keep))].reset_index(drop=True)


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
    figure.styles = {**figure.styles, "break-inside": "avoid"}
    describe(figure)


def describe(figure: Any) -> None:
    """Give a Bokeh figure the text that a screen reader says in its place; again, once its data are others."""
    figure.html_attributes = {"role": "img", "aria-label": told(figure)}


def told(figure: Any) -> str:
    """What a Bokeh figure shows, in words: title, axes, and of each series its values, or their range.

    >>> import holoviews as hv
    >>> told(hv.render(finish(hv.Curve([(1, 2.0), (2, 1.5)], "step", "loss"), "Loss"), backend="bokeh"))
    'Loss; loss over step; 1: 2, 2: 1.5'
    """
    across, up = figure.xaxis[0], figure.yaxis[0]
    names = {renderer.id: item.label.value for legend in figure.legend for item in legend.items for renderer in item.renderers}
    said: dict[str, None] = {}  # in order, each once: a curve may lie over its own dots
    for renderer in figure.renderers:
        glyph = getattr(renderer, "glyph", None)
        pair = PLACES.get(type(glyph).__name__)
        if pair is None:
            continue
        x, y = (_column(renderer.data_source.data, getattr(glyph, name)) for name in pair)
        low, high = (renderer.data_source.data.get(end, [np.nan] * len(x)) for end in ("low", "high"))
        known = [row for row in zip(x, y, low, high, strict=False) if row[0] == row[0] and row[1] == row[1]]
        if not known:
            continue
        if len(known) <= LISTED:  # what is named stands first, be it across or up
            named = bool(up.major_label_overrides) or isinstance(known[0][1], str)
            values = ", ".join(_value(*((b, up, a, across) if named else (a, across, b, up)), *ends) for a, b, *ends in known)
        else:
            ups = [b for _, b, *_ in known if not isinstance(b, str)]
            ends = f", from {ups[0]:.4g} to {ups[-1]:.4g}, lowest {min(ups):.4g}, highest {max(ups):.4g}" if ups else ""
            values = f"{len(known)} values{ends}"
        name = names.get(renderer.id)
        said[f"{name}: {values}" if name else values] = None
    axes = " over ".join(label for label in ((up.axis_label or "").strip(), (across.axis_label or "").strip()) if label)
    whole = "; ".join(part for part in (figure.title.text, axes, *said) if part)
    return whole if len(whole) <= MOST else f"{whole[: MOST - 2]} …"


def _column(data: Any, spec: Any) -> Any:
    """The values behind a glyph's property: a column of its source, or nothing."""
    field = getattr(spec, "field", spec)
    return data[field] if isinstance(field, str) and field in data else ()


def _value(at: Any, axis: Any, value: Any, other: Any, low: Any, high: Any) -> str:
    """What it is of, the value, and its interval where it has one."""
    interval = f" [{low:.4g}, {high:.4g}]" if low == low and not isinstance(low, str) else ""
    return f"{_name(at, axis)}: {_name(value, other)}{interval}"


def _name(value: Any, axis: Any) -> str:
    """A value as its axis writes it; systems stand side by side around a tick."""
    if isinstance(value, str):
        return value
    return axis.major_label_overrides.get(round(float(value))) or f"{float(value):.4g}"


def need(table: pd.DataFrame, columns: list[str], what: str) -> None:
    """Refuse a table that lacks a column.

    Raises:
        InputError: with those that it has.
    """
    missing = [c for c in columns if c not in table.columns]
    if missing:
        raise InputError(f"The table for {what} lacks columns.", got=", ".join(map(str, table.columns)), expected=", ".join(columns))
