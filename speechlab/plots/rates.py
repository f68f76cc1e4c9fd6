"""Clips of a corpus by what was measured on them, and error rates of systems with their intervals."""

from __future__ import annotations

import holoviews as hv
import numpy as np
import pandas as pd

from speechlab.models import CONTEXTS
from speechlab.plots.style import COLOURS, MARKERS, finish, need


def durations(clips: pd.DataFrame, bins: int = 40) -> hv.Overlay:
    """Histogram of clip durations, one for each split.

    Args:
        clips: Columns split and seconds, one row a clip.
        bins: How many bars over the whole range.

    Raises:
        InputError: if a column is missing.
    """
    need(clips, ["split", "seconds"], "durations")
    edges = np.histogram_bin_edges(clips.seconds, bins) if len(clips) else np.array([0.0, 1.0])
    x, y = hv.Dimension("seconds", label="duration", unit="s"), hv.Dimension("clips", label="clips")
    overlay = hv.Overlay(
        [
            hv.Histogram((edges, np.histogram(part.seconds, edges)[0]), kdims=[x], vdims=[y], label=str(split)).opts(
                color=COLOURS[i % 4], alpha=0.55, line_color=COLOURS[i % 4], tools=["hover"], muted_alpha=0.05
            )
            for i, (split, part) in enumerate(clips.groupby("split", sort=False))
        ]
    )
    return finish(overlay, "Clip durations")


def histogram(values: pd.Series, label: str, unit: str = "", limit: float | None = None, bins: int = 40) -> hv.Overlay:
    """Histogram of a measure over clips, with the limit that is held against it.

    Args:
        values: One a clip; missing ones are left out.
        label: Of the axis.
        unit: Of the axis.
        limit: Where a line is drawn.
        bins: How many bars over the whole range.
    """
    known = values.dropna().to_numpy(dtype=float)
    counts, edges = np.histogram(known, bins) if len(known) else (np.zeros(1), np.array([0.0, 1.0]))
    x, y = (
        hv.Dimension("value", label=label, unit=unit or None),
        hv.Dimension(f"clips by {label}", label="clips"),
    )  # axes of equal name would be linked
    layers = [hv.Histogram((edges, counts), kdims=[x], vdims=[y]).opts(color=COLOURS[0], line_color=COLOURS[0], alpha=0.7, tools=["hover"])]
    if limit is not None:
        layers.append(hv.VLine(limit).opts(color=COLOURS[1], line_dash="dashed", line_width=2))
    return finish(hv.Overlay(layers), label[:1].upper() + label[1:], height=220, floor=True)


def error_rates(table: pd.DataFrame) -> hv.Overlay:
    """Dot plot of word error rates with whiskers for their intervals, systems side by side.

    Args:
        table: Columns system, condition, context, and wer, low, high as fractions; the order of
            systems and of conditions is that of the rows. Rows without a rate are left out.

    Raises:
        InputError: if a column is missing.
    """
    need(table, ["system", "condition", "context", "wer", "low", "high"], "error_rates")
    rows = table[table.wer.notna()]
    rows = rows.assign(place=[", ".join(filter(None, (c, CONTEXTS.get(x, x)))) for c, x in zip(rows.condition, rows.context, strict=True)])
    places, systems = list(dict.fromkeys(rows.place)), list(dict.fromkeys(rows.system.astype(str)))
    x, y = hv.Dimension("wer", label="WER", unit="%"), hv.Dimension("at", label=" ")
    tips = [("system", "@system"), ("where", "@place"), ("WER", "@wer{0.00} %"), ("95 % interval", "@low{0.00} to @high{0.00} %")]
    layers: list[hv.Element] = []
    for i, system in enumerate(systems):
        part = rows[rows.system.astype(str) == system]
        at = part.place.map(places.index) + 0.3 * ((i + 0.5) / len(systems) - 0.5) * 2
        part = part.assign(at=at, wer=100 * part.wer, low=100 * part.low, high=100 * part.high)
        part["at_high"] = part["at"]
        part["low_x"] = part["low"]
        layers.append(hv.Segments(part, ["low_x", "at", "high", "at_high"]).opts(color=COLOURS[i % 4], line_width=2.5))
        dots = hv.Points(part, [x, y], ["system", "place", "low", "high"], label=system)
        layers.append(dots.opts(color=COLOURS[i % 4], marker=MARKERS[i % 4], size=11, tools=["hover"], hover_tooltips=tips))
    overlay = hv.Overlay(layers).opts(
        yticks=list(enumerate(places)), invert_yaxis=True, ylim=(-0.6, len(places) - 0.4), xlim=(0, None), ylabel="", xlabel="WER (%)"
    )
    return finish(overlay, "WER, 95 % interval", height=max(200, 110 + 60 * len(places)))
