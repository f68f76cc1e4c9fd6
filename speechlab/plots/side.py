"""Runs side by side: what their error rates cost, and how they were come by."""

from __future__ import annotations

from typing import Any

import holoviews as hv
import numpy as np
import pandas as pd

from speechlab.plots.measured import DASHES, ticks
from speechlab.plots.style import COLOURS, GREY, MARKERS, finish, need

MOST_NAMES = 8  # runs that a legend names; more are named on hover alone
LONGEST = 24  # characters of a name in a figure


def wer_over_rtf(runs: pd.DataFrame) -> hv.Overlay:
    """WER on test clips over the real-time factor: seconds of decoding per second of audio.

    Args:
        runs: From :func:`speechlab.experiments.table`; those that were measured on the same clips.

    Raises:
        InputError: if a column is missing.
    """
    need(runs, ["label", "id", "wer", "low", "high", "rtfx", "seconds", "clips"], "WER over speed")
    rows = runs.assign(rtf=1 / runs.rtfx.astype(float))
    return _front(rows, hv.Dimension("rtf", label="RTF", unit="s per s of audio"), "WER over decoding time")


def wer_over_cost(runs: pd.DataFrame) -> hv.Overlay:
    """WER on test clips over the seconds of all training steps.

    Args:
        runs: As for :func:`wer_over_rtf`.

    Raises:
        InputError: if a column is missing.
    """
    need(runs, ["label", "id", "wer", "low", "high", "rtfx", "seconds", "clips"], "WER over cost")
    return _front(runs, hv.Dimension("seconds", label="training steps", unit="s"), "WER over training cost")


def _front(runs: pd.DataFrame, x: hv.Dimension, title: str) -> hv.Overlay:
    """Runs over a logarithmic axis; those that no other dominates are joined by the steps that bound what was reached."""
    from speechlab.experiments import pareto  # which loads torch, and a page of figures need not

    rows = runs[runs.wer.notna() & (runs[x.name] > 0)]
    rows = rows.assign(**{c: 100 * rows[c].astype(float) for c in ("wer", "low", "high")}, x=rows[x.name])
    best = pareto(rows, x.name, "wer")
    front, rest = rows[best].sort_values([x.name, "wer"]), rows[~best]
    y = hv.Dimension("wer", label="WER", unit="%")
    tips = [("run", "@id"), ("WER", "@wer{0.00} %, @low{0.00} to @high{0.00}"), ("RTFx", "@rtfx{0.0}"),
            ("training", "@seconds{0,0} s, @clips{0,0} clips")]  # fmt: skip
    about = ["id", "low", "high", "rtfx", "clips"] + [c for c in ("seconds",) if c != x.name]
    ends = [x.name, "low", "x", "high"]
    layers: list[Any] = [hv.Curve(front[[x.name, "wer"]], x, y).opts(color=COLOURS[0], line_width=2, interpolation="steps-post")]
    for part, label, colour, marker in ((rest, "dominated", GREY, MARKERS[0]), (front, "not dominated", COLOURS[0], MARKERS[1])):
        if len(part):
            layers.append(hv.Segments(part[ends], ends).opts(color=colour, line_width=2, alpha=0.6))
            dots = hv.Points(part, [x, y], about, label=label)
            layers.append(dots.opts(color=colour, marker=marker, size=12, tools=["hover"], hover_tooltips=tips))
    reach = _reach(rows.x)
    for side, part in _named(front, reach, 1.05 * max(rows.high.max(), 1.0) if len(rows) else 1.0).groupby("side"):
        names = [f"  {name[:LONGEST]}  " for name in part.label.astype(str)]
        text = hv.Labels({"x": part.x, "y": part.wer, "text": names}, ["x", "y"], "text")
        layers.append(text.opts(text_color=GREY, text_font_size="12px", text_align=side, text_baseline="bottom"))
    looks = {
        "xlim": reach,
        "xticks": _marks(reach),
        "xlabel": f"{x.label} ({x.unit}), log",
        "ylabel": "WER (%), 95 % interval",
    }
    return finish(hv.Overlay(layers).opts(logx=True, **looks), title, height=320, floor=True)


def _named(front: pd.DataFrame, reach: tuple[float, float], top: float) -> pd.DataFrame:
    """Runs whose names have room beside their dots, and on which side; the others are named on hover."""
    at = np.log(front.x.astype(float) / reach[0]) / np.log(reach[1] / reach[0])
    free: list[int] = []
    for i in range(len(front)):
        if all(abs(at.iloc[i] - at.iloc[k]) > 0.65 or abs(front.wer.iloc[i] - front.wer.iloc[k]) > 0.08 * top for k in free):
            free.append(i)
    return front.assign(side=np.where(at > 0.5, "right", "left")).iloc[free]


def _reach(x: pd.Series) -> tuple[float, float]:
    """Ends of a logarithmic axis on which no marker is cut in half."""
    least, most = (float(x.min()), float(x.max())) if len(x) else (1.0, 10.0)
    pad = max(1.2, (most / least) ** 0.08) if most > 2 * least else 2.5
    return least / pad, most * pad


def _marks(reach: tuple[float, float]) -> list[tuple[float, str]]:
    return [(tick, f"{tick:,.10g}") for tick in ticks(pd.Series(reach))]


def dev_wer(curves: pd.DataFrame) -> hv.Overlay:
    """Validation WER of runs over their steps, on a logarithmic axis: runs differ in length by far.

    Args:
        curves: From :func:`speechlab.experiments.curves`.

    Raises:
        InputError: if a column is missing.
    """
    need(curves, ["label", "step", "wer"], "validation curves")
    table = curves.assign(percent=100 * curves.wer.astype(float), step=curves.step.astype(float))
    x, y = hv.Dimension("step", label="optimizer step"), hv.Dimension("percent", label="validation WER", unit="%")
    tips = [("run", "@label"), ("step", "@step{0,0}"), ("WER", "@percent{0.00} %")]
    names = list(dict.fromkeys(table.label))
    layers: list[Any] = []
    for i, name in enumerate(names):
        part = table[table.label == name]
        called = str(name)[:LONGEST]
        curve = hv.Curve(part, x, y, label=called).opts(color=COLOURS[i % 4], line_dash=DASHES[i // 4 % 4], line_width=2)
        dots = hv.Scatter(part, x, [y, "label"], label=called)
        layers += [curve, dots.opts(color=COLOURS[i % 4], marker=MARKERS[i % 4], size=8, tools=["hover"], hover_tooltips=tips)]
    reach = _reach(table.step)
    looks = {"xlim": reach, "xticks": _marks(reach), "xlabel": "optimizer step, log", "ylabel": "validation WER (%)"}
    overlay = hv.Overlay(layers or [hv.Curve(table, x, y)]).opts(logx=True, legend_cols=2, show_legend=len(names) <= MOST_NAMES, **looks)
    return finish(overlay, "Validation WER of each run", height=250 + 28 * -(-min(len(names), MOST_NAMES) // 2), floor=True)
