"""What a system's numbers depend on: its confidence, its time, and the clips' properties.

Tables are those of :mod:`speechlab.calibration`, :mod:`speechlab.latency` and :mod:`speechlab.strata`.
"""

from __future__ import annotations

from typing import Any

import holoviews as hv
import numpy as np
import numpy.typing as npt
import pandas as pd

from speechlab.latency import PERCENTS, percentile
from speechlab.plots.style import COLOURS, GREY, MARKERS, finish, need
from speechlab.strata import SMALL

DASHES = ("solid", "dashed", "dotdash", "dotted")
MOST_STEPS = 1000  # of a distribution: what a screen can show
LONGEST = 20  # characters of a stratum's name beside its axis


def reliability(table: pd.DataFrame) -> hv.Overlay:
    """Share of right words over confidence, with the diagonal on which a calibrated system lies; the larger a dot, the more words.

    Args:
        table: From :func:`speechlab.calibration.reliability`.

    Raises:
        InputError: if a column is missing.
    """
    need(table, ["bin", "confidence", "right", "low", "high", "words"], "a reliability diagram")
    rows = table.assign(**{c: 100 * table[c].astype(float) for c in ("confidence", "right", "low", "high")}, x=100 * table.confidence)
    rows["size"] = 5 + 7 * np.sqrt(rows.words / max(rows.words.max(), 1)) if len(rows) else 0.0
    least = 10 * np.floor(rows[["confidence", "low"]].min().min() / 10) if len(rows) else 0.0
    x, y = hv.Dimension("confidence", unit="%"), hv.Dimension("right", label="right words", unit="%")
    tips = [("confidence", "@confidence{0.0} %, from @bin"), ("right", "@right{0.0} %"), ("95 % interval", "@low{0.0} to @high{0.0} %"),
            ("words", "@words{0,0}")]  # fmt: skip
    ideal = hv.Curve([(least, least), (100, 100)], x, y, label="calibrated").opts(color=GREY, line_dash="dashed", line_width=1.5)
    whiskers = hv.Segments(rows, ["confidence", "low", "x", "high"]).opts(color=COLOURS[0], line_width=2)
    dots = hv.Points(rows, [x, y], ["bin", "low", "high", "words", "size"], label="bins of words")
    dots = dots.opts(color=COLOURS[0], size="size", tools=["hover"], hover_tooltips=tips)
    pad = 0.03 * (100 - least)
    overlay = hv.Overlay([ideal, whiskers, dots]).opts(xlim=(least - pad, 100 + pad), ylim=(least - pad, 100 + pad))
    overlay = overlay.opts(xlabel="confidence (%)", ylabel="right words (%), 95 % interval")
    return finish(overlay, "Confidence and truth", height=300)


def rejection(table: pd.DataFrame) -> hv.Overlay:
    """WER of what is kept over the share that is rejected: by confidence, by an oracle, and at random.

    Args:
        table: Of :func:`speechlab.calibration.rejection`.

    Raises:
        InputError: if a column is missing.
    """
    need(table, ["rejected", "utterances", "words", "wer", "oracle"], "a rejection curve")
    rows = table.assign(**{c: 100 * table[c].astype(float) for c in ("rejected", "wer", "oracle")})
    rows["plain"] = rows.wer.iloc[0] if len(rows) else np.nan
    x, y = (
        hv.Dimension("rejected", label="least sure utterances rejected", unit="%"),
        hv.Dimension("wer", label="WER of the rest", unit="%"),
    )
    tips = [("rejected", "@rejected{0} %"), ("kept", "@utterances{0,0} utterances, @words{0,0} words"), ("WER", "@wer{0.00} %"),
            ("oracle", "@oracle{0.00} %")]  # fmt: skip
    layers = [
        hv.Curve(rows, x, ["plain", "utterances"], label="at random").opts(color=GREY, line_dash="dotted", line_width=2),
        hv.Curve(rows, x, [y, "oracle", "utterances", "words"], label="by confidence").opts(
            color=COLOURS[0], line_width=2.5, tools=["hover"], hover_tooltips=tips, hover_mode="vline"
        ),
        hv.Curve(rows, x, ["oracle", "utterances"], label="oracle").opts(color=COLOURS[2], line_dash="dashed", line_width=2),
    ]
    overlay = hv.Overlay(layers).opts(xlabel="least sure utterances rejected (%)", ylabel="WER of the rest (%)", xlim=(0, 100))
    return finish(overlay.opts(legend_cols=2), "Rejecting the least sure", floor=True)


def latencies(latency_U: npt.ArrayLike) -> hv.Overlay:
    """Share of the clips that took no longer than so many milliseconds, with the percentiles that are quoted.

    Args:
        latency_U: Seconds of each clip.

    Raises:
        InputError: as for :func:`speechlab.latency.percentile`.
    """
    marks = [(percent, 1000 * percentile(latency_U, percent)) for percent in PERCENTS]
    ordered = 1000 * np.sort(np.asarray(latency_U, float))
    share = 100 * np.arange(len(ordered) + 1) / len(ordered)
    steps = pd.DataFrame({"latency": np.r_[ordered[:1], ordered], "share": share})
    if len(steps) > MOST_STEPS:  # of a step function any rows will do
        steps = steps.iloc[np.unique(np.linspace(0, len(steps) - 1, MOST_STEPS).astype(int))]
    x, y = hv.Dimension("latency", unit="ms"), hv.Dimension("share", label="clips", unit="%")
    tips = [("latency", "@latency{0.0} ms"), ("clips", "@share{0.0} %")]
    line = hv.Curve(steps, x, y).opts(color=COLOURS[0], line_width=2.5, interpolation="steps-post", tools=["hover"], hover_tooltips=tips)
    layers: list[Any] = [line]
    for i, (percent, at) in enumerate(marks, 1):
        drop = hv.Segments([(at, 0, at, percent)]).opts(color=COLOURS[i], line_width=1.5, line_dash="dashed")
        dot = hv.Points([(at, percent)], [x, y], label=f"p{percent} {at:,.0f} ms")
        layers += [drop, dot.opts(color=COLOURS[i], marker=MARKERS[i], size=11)]
    return finish(
        hv.Overlay(layers).opts(
            xlabel="latency (ms)", ylabel="clips (%)", xlim=(0, 1.03 * ordered[-1] or 1), ylim=(0, 103), xticks=5, legend_cols=2
        ),
        f"Latency of {len(ordered):,} clips",
    )


def deadlines(table: pd.DataFrame) -> hv.Overlay:
    """Coverage, WER of the clips that met a budget (where they are enough to tell), and deadline-WER, over budgets.

    Args:
        table: From :func:`speechlab.latency.deadline_curve`.

    Raises:
        InputError: if a column is missing.
    """
    lines = {
        "coverage": ("coverage", "coverage_low", "coverage_high"),
        "WER of those in time": ("met_wer", "met_low", "met_high"),
        "deadline-WER": ("wer", "low", "high"),
    }
    need(table, ["budget", "utterances", "met", *(c for names in lines.values() for c in names)], "a deadline curve")
    shares = {c: 100 * table[c].astype(float) for names in lines.values() for c in names}
    rows = table.assign(**shares, budget=1000 * table.budget.astype(float))
    rows = rows[np.isfinite(rows.budget) & (rows.budget > 0)]  # what a logarithmic axis can show
    x = hv.Dimension("budget", unit="ms")
    tips = [("budget", "@budget{0,0.[0]} ms"), ("in time", "@met{0,0} of @utterances{0,0}: @coverage{0.0} %"),
            ("their WER", "@met_wer{0.00} % (@met_low{0.0} to @met_high{0.0})"),
            ("deadline-WER", "@wer{0.00} % (@low{0.0} to @high{0.0})")]  # fmt: skip
    layers: list[Any] = []
    for i, (label, names) in enumerate(lines.items()):
        enough = rows[rows.met >= SMALL] if names[0] == "met_wer" else rows
        layers += [_band(enough, x, names[1], names[2], i), _line(enough, x, names[0], i, label)]
    every = ["wer", "low", "high", "met_wer", "met_low", "met_high", "coverage", "met", "utterances"]
    layers.append(hv.Scatter(rows, x, every).opts(color=COLOURS[2], size=5, tools=["hover"], hover_tooltips=tips))
    reach = (0.95 * rows.budget.min(), 1.05 * rows.budget.max()) if len(rows) else (1.0, 10.0)
    ends = {"xticks": ticks(rows.budget) or 5, "xlim": reach, "xlabel": "time budget (ms)", "ylabel": "coverage and WER (%)"}
    overlay = hv.Overlay(layers).opts(logx=True, legend_cols=2, **ends)
    return finish(overlay, "What a deadline costs, 95 % intervals", height=300, floor=True)


def wer_by(table: pd.DataFrame, title: str = "WER by stratum") -> hv.Overlay:
    """Dot and whisker of each stratum; those with too few utterances keep their line, without a dot.

    Args:
        table: From :func:`speechlab.strata.by`.
        title: Above the figure.

    Raises:
        InputError: if a column is missing.
    """
    need(table, ["stratum", "utterances", "speakers", "wer", "low", "high", "scope", "warning"], "WER by stratum")
    rows = table.assign(**{c: 100 * table[c].astype(float) for c in ("wer", "low", "high")}, at=np.arange(len(table), dtype=float))
    rows["at_high"] = rows["at"]
    names = [f"{_short(str(r.stratum))}\nn = {r.utterances:,}" for r in rows.itertuples()]
    rated, few = rows[rows.wer.notna()], rows[rows.wer.isna()]
    x, y = hv.Dimension("wer", label="WER", unit="%"), hv.Dimension("at", label=" ")
    tips = [("stratum", "@stratum"), ("WER", "@wer{0.00} %"), ("95 % interval", "@low{0.00} to @high{0.00} %, @scope"),
            ("utterances", "@utterances{0,0}, speakers: @speakers"), ("note", "@warning")]  # fmt: skip
    whiskers = hv.Segments(rated, ["low", "at", "high", "at_high"]).opts(color=COLOURS[0], line_width=2.5)
    dots = hv.Points(rated, [x, y], ["stratum", "low", "high", "scope", "utterances", "speakers", "warning"])
    dots = dots.opts(color=COLOURS[0], size=11, tools=["hover"], hover_tooltips=tips)
    notes = hv.Labels({"x": np.zeros(len(few)), "y": few["at"], "text": ["  too few"] * len(few)}, ["x", "y"], "text")
    notes = notes.opts(text_color=GREY, text_font_size="12px", text_font_style="italic", text_align="left")
    most = np.nanmax([*rated.high, *rated.wer, 1.0])
    ends = {"yticks": list(enumerate(names)) or 1, "invert_yaxis": True, "ylim": (-0.6, len(names) - 0.4), "xlim": (0, 1.05 * most)}
    overlay = hv.Overlay([whiskers, dots, notes]).opts(**ends, xlabel="WER (%), 95 % interval", ylabel="")
    return finish(overlay, title, height=90 + 38 * max(len(names), 2))


def wer_over(table: pd.DataFrame, label: str, unit: str = "") -> hv.Overlay:
    """WER over a number: a line through bands of equally many utterances, in its interval.

    Args:
        table: From :func:`speechlab.strata.over`.
        label: What the number is.
        unit: Of the number.

    Raises:
        InputError: if a column is missing.
    """
    need(table, ["middle", "stratum", "utterances", "wer", "low", "high", "scope"], "WER over a number")
    rows = table.assign(**{c: 100 * table[c].astype(float) for c in ("wer", "low", "high")})
    rows = rows[rows.middle.notna() & rows.wer.notna()]
    x = hv.Dimension("middle", label=label, unit=unit or None)
    tips = [(label, "@stratum, median @middle{0.00}"), ("WER", "@wer{0.00} %"), ("95 % interval", "@low{0.00} to @high{0.00} %, @scope"),
            ("utterances", "@utterances{0,0}")]  # fmt: skip
    dots = hv.Scatter(rows, x, ["wer", "stratum", "low", "high", "scope", "utterances"])
    dots = dots.opts(color=COLOURS[0], size=8, tools=["hover"], hover_tooltips=tips)
    overlay = hv.Overlay([_band(rows, x, "low", "high", 0), _line(rows, x, "wer", 0), dots])
    overlay = overlay.opts(ylabel="WER (%), 95 % interval", xlabel=f"{label} ({unit})" if unit else label, xlim=_padded(rows.middle))
    return finish(overlay, f"WER over {label}", floor=True)


def wer_over_snr(table: pd.DataFrame) -> hv.Overlay:
    """WER of systems over the SNR, from clean on the left to the most noise on the right, as Radford et al. (2022) draw it.

    Args:
        table: Columns system, snr (dB; ``inf`` is clean, drawn as far from the highest as the next is), wer, low, high (fractions);
            the order of systems is that of the rows.

    Raises:
        InputError: if a column is missing.
    """
    need(table, ["system", "snr", "wer", "low", "high"], "WER over SNR")
    shares = {c: 100 * table[c].astype(float) for c in ("wer", "low", "high")}
    rows = table.assign(**shares, system=table.system.astype(str), where=[_decibels(snr) for snr in table.snr])
    levels = sorted(set(table.snr[np.isfinite(table.snr)].astype(float)))
    clean = (levels[-1] if levels else 0.0) + (levels[-1] - levels[-2] if len(levels) > 1 else 10.0)
    rows["snr"] = rows.snr.astype(float).where(np.isfinite(rows.snr), clean)
    rows = rows.sort_values("snr", ascending=False, kind="stable")
    ticks = [(level, f"{level:g}") for level in levels] + ([(clean, "clean")] if np.isinf(table.snr).any() else [])
    x = hv.Dimension("snr", label="SNR", unit="dB")
    tips = [("system", "@system"), ("SNR", "@where"), ("WER", "@wer{0.00} %"), ("95 % interval", "@low{0.00} to @high{0.00} %")]
    layers: list[Any] = []
    for i, system in enumerate(dict.fromkeys(table.system.astype(str))):
        part = rows[rows.system == system]
        dots = hv.Scatter(part, x, ["wer", "system", "where", "low", "high"], label=system)
        dots = dots.opts(color=COLOURS[i % 4], marker=MARKERS[i % 4], size=10, tools=["hover"], hover_tooltips=tips)
        layers += [_band(part, x, "low", "high", i), _line(part, x, "wer", i), dots]
    overlay = hv.Overlay(layers or [hv.Curve(rows, x, "wer")])
    ends = {"xticks": ticks or 5, "xlim": _padded(rows.snr), "xlabel": "SNR (dB), noisier to the right", "ylabel": "WER (%)"}
    overlay = overlay.opts(invert_xaxis=True, legend_cols=2, **ends)
    return finish(overlay, "WER over noise, 95 % interval", height=300, floor=True)


def _line(rows: pd.DataFrame, x: hv.Dimension, column: str, colour: int, label: str = "") -> hv.Curve:
    return hv.Curve(rows, x, column, label=label).opts(color=COLOURS[colour % 4], line_width=2.5, line_dash=DASHES[colour % 4])


def _band(rows: pd.DataFrame, x: hv.Dimension, low: str, high: str, colour: int) -> hv.Area:
    """Where both ends are known: an area through a missing one would close across it."""
    known = rows[rows[low].notna() & rows[high].notna()]
    return hv.Area(known, x, [low, high]).opts(color=COLOURS[colour % 4], alpha=0.18, line_alpha=0)


def _padded(x: pd.Series) -> tuple[float, float]:
    """Ends of an axis on which no marker is cut in half."""
    least, most = (float(x.min()), float(x.max())) if len(x) else (0.0, 1.0)
    pad = 0.03 * (most - least) or 1.0
    return least - pad, most + pad


def ticks(x: pd.Series) -> list[float]:
    """1, 2, 5, 10 and so on within a logarithmic axis; of more than two decades the powers of ten alone."""
    if not len(x):
        return []
    least, most = float(x.min()), float(x.max())
    steps = (1, 2, 5) if most / least <= 100 else (1,)
    powers = range(int(np.floor(np.log10(least))), int(np.ceil(np.log10(most))) + 1)
    return [step * 10.0**power for power in powers for step in steps if 0.999 * least <= step * 10.0**power <= 1.001 * most]


def _decibels(snr: float) -> str:
    return f"{snr:g} dB" if np.isfinite(snr) else "clean"


def _short(name: str) -> str:
    return name if len(name) <= LONGEST else name[: LONGEST - 1] + "…"
