"""Pure functions from a table to an interactive figure; the board and the report are layouts of them.

Axes carry units, colours are from Okabe & Ito's palette (distinguishable without red-green vision, and
each at least 3:1 against white and against near-black), backgrounds are transparent and lines of
text mid-grey, so a figure reads on a light and on a dark page. The HTML builders live in
:mod:`speechlab.markup` and are re-exported here, so that a notebook needs one import.

Not covered: live updates (:mod:`speechlab.board` streams into these same figures).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import holoviews as hv
import holoviews.plotting.bokeh
import numpy as np
import numpy.typing as npt
import pandas as pd

from speechlab.errors import InputError
from speechlab.markup import Html, alignment_html, definitions_html, player_html, samples_html, table_html
from speechlab.units import SAMPLE_RATE, Seconds

__all__ = [
    "COLOURS", "CURVES", "Html", "alignment_html", "curves", "decimate", "definitions_html", "dimension", "durations", "error_rates",
    "extension", "gradient_norm", "learning_rate", "loss", "memory", "player_html", "samples_html", "spectrogram", "speed", "table_html",
    "trials", "waste", "waveform", "word_error_rate",
]  # fmt: skip

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")  # blue, vermilion, green, purple
MARKERS = ("circle", "diamond", "square", "triangle")
GREY = "#7b7f87"  # 4.1:1 on white, 4.4:1 on near-black
SMOOTHING = 0.1  # weight of the newest step in the smoothed loss
MOST_COLUMNS = 1000  # of a waveform or a spectrogram: what a screen can show
RANGE = 80  # dB below its loudest point that a spectrogram shows, as Whisper's log-mel does
STEP_COLUMNS = (
    "step",
    "epoch",
    "loss",
    "lr",
    "grad_norm",
    "audio_seconds",
    "padded_seconds",
    "step_seconds",
    "wait_seconds",
    "memory_bytes",
)


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


def curves(steps: pd.DataFrame, smoothed: float | None = None) -> pd.DataFrame:
    """The columns that the curves draw, from raw step events.

    Args:
        steps: Step events, one a row, as :meth:`speechlab.runs.Run.steps` gives them; values that are
            no numbers become NaN, rows without a step number are dropped.
        smoothed: The smoothed loss before the first row, to go on from where an earlier table ended.

    Returns:
        step, epoch, loss and smoothed (nats per token), lr, grad_norm, speed (seconds of audio per
        second), padding (% of what the encoder was fed that is not speech), wait (% of the step's time
        spent waiting for input), memory (GB).
    """
    raw = steps.reindex(columns=list(STEP_COLUMNS)).apply(pd.to_numeric, errors="coerce").astype(float).dropna(subset=["step"])
    seconds = raw.step_seconds.where(raw.step_seconds > 0)
    padded = raw.padded_seconds.where(raw.padded_seconds > 0)
    before = pd.Series([] if smoothed is None else [smoothed], dtype=float)
    average = pd.concat([before, raw.loss]).ewm(alpha=SMOOTHING, adjust=False, ignore_na=True).mean()
    return pd.DataFrame(
        {
            "step": raw.step,
            "epoch": raw.epoch,
            "loss": raw.loss,
            "smoothed": average.iloc[len(before) :],
            "lr": raw.lr,
            "grad_norm": raw.grad_norm,
            "speed": raw.audio_seconds / seconds,
            "padding": 100 * (1 - raw.audio_seconds / padded),
            "wait": 100 * raw.wait_seconds / seconds,
            "memory": raw.memory_bytes / 1e9,
        }
    ).reset_index(drop=True)


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


# -- curves over training ------------------------------------------------------------------------


def loss(table: pd.DataFrame) -> hv.Overlay:
    """Training loss in nats per token: each step faintly, the moving average on top."""
    tips = [("step", "@step{0,0}"), ("loss", "@loss{0.0000}"), ("smoothed", "@smoothed{0.0000}")]
    each = _curve(table, ["loss", "smoothed"], "loss", "nats per token", 0, tips, label="each step").opts(line_alpha=0.5, line_width=1)
    smooth = _curve(table, ["smoothed"], "loss", "nats per token", 0, None, label="smoothed")
    return _finish(each * smooth, "Loss")


def learning_rate(table: pd.DataFrame) -> hv.Curve:
    """Learning rate of each step."""
    curve = _curve(table, ["lr"], "learning rate", "", 2, [("step", "@step{0,0}"), ("learning rate", "@lr")])
    return _finish(curve.opts(yformatter="%.1e"), "Learning rate")


def gradient_norm(table: pd.DataFrame) -> hv.Curve:
    """Norm of the gradient of each step, before clipping."""
    tips = [("step", "@step{0,0}"), ("norm", "@grad_norm{0.000}")]
    return _finish(_curve(table, ["grad_norm"], "norm before clipping", "", 3, tips), "Gradient norm")


def speed(table: pd.DataFrame) -> hv.Curve:
    """Throughput: seconds of audio trained on per second of wall clock."""
    tips = [("step", "@step{0,0}"), ("speed", "@speed{0.0} s/s")]
    return _finish(_curve(table, ["speed"], "audio", "s per s", 2, tips), "Throughput", floor=True)


def waste(table: pd.DataFrame) -> hv.Overlay:
    """What a step gives away: padding as share of its audio, waiting for input as share of its time."""
    tips = [("step", "@step{0,0}"), ("padding", "@padding{0.0} % of the audio"), ("wait", "@wait{0.0} % of the time")]
    padding = _curve(table, ["padding", "wait"], "share of the step", "%", 1, tips, label="padding")
    wait = _curve(table, ["wait"], "share of the step", "%", 0, None, label="waiting for input").opts(line_dash="dashed")
    return _finish(padding * wait, "Padding and input wait", floor=True)


def memory(table: pd.DataFrame) -> hv.Curve:
    """Resident memory of the training process."""
    return _finish(
        _curve(table, ["memory"], "memory", "GB", 0, [("step", "@step{0,0}"), ("memory", "@memory{0.00} GB")]), "Memory", floor=True
    )


CURVES = (loss, learning_rate, gradient_norm, speed, waste, memory)


def in_percent(validations: pd.DataFrame) -> pd.DataFrame:
    """Step, epoch, and WER and CER in percent, from raw validation events; what is no number becomes NaN."""
    raw: pd.DataFrame = validations.reindex(columns=["step", "epoch", "wer", "cer"]).apply(pd.to_numeric, errors="coerce").astype(float)
    return raw.assign(wer=100 * raw.wer, cer=100 * raw.cer).dropna(subset=["step"])


def word_error_rate(validations: pd.DataFrame) -> hv.Overlay:
    """Word error rate on the validation clips over training.

    Args:
        validations: Validation events, one a row: step, wer and cer as fractions.
    """
    table = in_percent(validations)
    tips = [("step", "@step{0,0}"), ("WER", "@wer{0.00} %"), ("CER", "@cer{0.00} %")]
    line = _curve(table, ["wer", "cer"], "WER", "%", 1, None)
    dots = hv.Scatter(table, line.kdims, line.vdims).opts(color=COLOURS[1], size=8, hover_tooltips=tips, tools=["hover"])
    return _finish(line * dots, "Validation word error rate", floor=True)


def trials(curves: pd.DataFrame) -> hv.Overlay:
    """Validation WER over epochs of every trial of a sweep; the best so far stands out.

    Args:
        curves: Columns trial, epoch and wer (a fraction), one row a validation.
    """
    _need(curves, ["trial", "epoch", "wer"], "trials")
    table = curves.assign(percent=100 * curves.wer.astype(float))
    best = table.trial.iloc[int(np.nanargmin(table.percent))] if table.percent.notna().any() else None
    x, y = hv.Dimension("epoch", label="epochs"), hv.Dimension("percent", label="WER", unit="%")
    tips = [("trial", "@trial"), ("epoch", "@epoch"), ("WER", "@percent{0.00} %")]
    layers: list[Any] = []
    for name, part in sorted(table.groupby("trial"), key=lambda named: named[0] == best):
        looks = {"color": COLOURS[1], "line_width": 3} if name == best else {"color": GREY, "line_width": 1, "alpha": 0.7}
        curve = hv.Curve(part, x, [y, "trial"]).opts(**looks)
        dots = hv.Scatter(part, x, [y, "trial"]).opts(color=looks["color"], size=6, tools=["hover"], hover_tooltips=tips)
        layers += [curve, dots]
    layers = layers or [hv.Curve(table, x, [y, "trial"])]
    return _finish(hv.Overlay(layers).opts(show_legend=False), "Validation word error rate of each trial", floor=True)


def dimension(table: pd.DataFrame, key: str, logarithmic: bool = False) -> hv.Scatter:
    """Best WER of each trial over one value that was varied.

    Args:
        table: Columns trial, best (a fraction), epochs and the key, one row a trial.
        key: The value's column.
        logarithmic: Whether its axis is.
    """
    _need(table, ["trial", "best", "epochs", key], "a dimension")
    rows = table.assign(percent=100 * table.best.astype(float), value=table[key])
    if not pd.api.types.is_numeric_dtype(rows.value):
        rows["value"] = rows.value.astype(str)
    x, y = hv.Dimension("value", label=key), hv.Dimension("percent", label="best WER", unit="%")
    tips = [("trial", "@trial"), (key, "@value"), ("best WER", "@percent{0.00} %"), ("epochs", "@epochs")]
    dots = hv.Scatter(rows, x, [y, "trial", "epochs"]).opts(color=COLOURS[0], size=9, tools=["hover"], hover_tooltips=tips)
    looks = {"logx": True, "xformatter": "%.0e", "xticks": 4} if logarithmic else {"xticks": 4}
    return _finish(dots.opts(**looks), f"WER over {key}")


# -- corpus and evaluation -----------------------------------------------------------------------


def durations(clips: pd.DataFrame, bins: int = 40) -> hv.Overlay:
    """Histogram of clip durations, one for each split.

    Args:
        clips: Columns split and seconds, one row a clip.
        bins: How many bars over the whole range.

    Raises:
        InputError: if a column is missing.
    """
    _need(clips, ["split", "seconds"], "durations")
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
    return _finish(overlay, "Clip durations")


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
    return _finish(hv.Overlay(layers), label[:1].upper() + label[1:], height=220, floor=True)


def grid(*figures: Any) -> Any:
    """Figures side by side, two in a row where there is room, each with axes of its own.

    Args:
        figures: HoloViews elements.
    """
    import panel as pn

    panes = [pn.pane.HoloViews(figure, linked_axes=False, sizing_mode="stretch_width") for figure in figures]
    columns = "repeat(auto-fit, minmax(min(max(300px, 40%), 100%), 1fr))"
    return pn.Column(*panes, sizing_mode="stretch_width", styles={"display": "grid", "grid-template-columns": columns})


def error_rates(table: pd.DataFrame) -> hv.Overlay:
    """Dot plot of word error rates with whiskers for their intervals, systems side by side.

    Args:
        table: Columns system, condition, context, and wer, low, high as fractions; the order of
            systems and of conditions is that of the rows.

    Raises:
        InputError: if a column is missing.
    """
    _need(table, ["system", "condition", "context", "wer", "low", "high"], "error_rates")
    rows = table.assign(place=table.condition.astype(str) + ", " + table.context.astype(str))
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
    return _finish(overlay, "WER, 95 % interval", height=max(200, 110 + 60 * len(places)))


# -- signal --------------------------------------------------------------------------------------


def waveform(wave_N: npt.NDArray[np.floating[Any]], spans: Sequence[tuple[Seconds, Seconds]] = (), title: str = "Waveform") -> hv.Overlay:
    """A waveform as the lowest and highest sample of each stretch, so that no peak is lost, over the spans of speech.

    Args:
        wave_N: 16 kHz samples.
        spans: From and to, in seconds.
        title: Above the figure.

    Raises:
        InputError: if there are no samples.
    """
    if not len(wave_N):
        raise InputError("There is no waveform to draw.", got="0 samples", expected="one or more")
    starts = np.unique(np.linspace(0, len(wave_N), min(MOST_COLUMNS, len(wave_N)), endpoint=False).astype(int))
    table = pd.DataFrame(
        {"time": starts / SAMPLE_RATE, "low": np.minimum.reduceat(wave_N, starts), "high": np.maximum.reduceat(wave_N, starts)}
    ).astype(np.float32)
    time, low, high = hv.Dimension("time", unit="s"), hv.Dimension("low", label="full scale"), hv.Dimension("high")
    tips = [("time", "@time{0.00} s"), ("from", "@low{0.000}"), ("to", "@high{0.000}")]
    speech = hv.VSpans(list(spans), kdims=["from", "to"], label="speech").opts(color=COLOURS[2], alpha=0.25, line_alpha=0)
    area = hv.Area(table, time, [low, high], label="samples").opts(color=COLOURS[0], line_color=COLOURS[0], line_width=1)
    hover = hv.Curve(table, time, [high, low]).opts(alpha=0, tools=["hover"], hover_tooltips=tips, hover_mode="vline")
    ends = {"xlim": (0, len(wave_N) / SAMPLE_RATE), "ylim": (-1, 1), "yticks": [-1, 0, 1], "xlabel": "time (s)", "ylabel": "full scale"}
    return _finish((speech * area * hover).opts(**ends), title, height=190)


def spectrogram(mel_MT: npt.NDArray[np.floating[Any]], seconds: Seconds, title: str = "Log-mel") -> hv.Image:
    """A log-mel spectrogram in decibels below its loudest point, in steps of one, which keeps a page small.

    Args:
        mel_MT: Whisper's log-mel, ``(log10(power) + 4) / 4``, bands by frames; of more frames than a screen has columns,
            each stretch's loudest are shown.
        seconds: How long it is.
        title: Above the figure.

    Raises:
        InputError: if it is empty, not finite, or has no duration.
    """
    if mel_MT.ndim != 2 or not mel_MT.size or not np.isfinite(mel_MT).all() or not seconds > 0:
        raise InputError(
            "There is no spectrogram to draw.", got=f"shape {mel_MT.shape}, {seconds} s", expected="finite values, bands by frames"
        )
    starts = np.unique(np.linspace(0, mel_MT.shape[1], min(MOST_COLUMNS, mel_MT.shape[1]), endpoint=False).astype(int))
    level_MT = 40 * np.maximum.reduceat(mel_MT, starts, axis=1)
    shown_MT = np.clip(np.rint(level_MT - level_MT.max()), -RANGE, 0).astype(np.int8)
    time, band, level = (
        hv.Dimension("time", unit="s"),
        hv.Dimension("band", label="frequency", unit="kHz"),
        hv.Dimension("level", unit="dB"),
    )
    image = hv.Image(shown_MT[::-1], [time, band], level, bounds=(0, 0, seconds, len(mel_MT)), rtol=1)
    ticks = [(_band(1000 * kilohertz, len(mel_MT)), f"{kilohertz:g}") for kilohertz in (0.5, 1, 2, 4)]
    return _finish(image.opts(cmap="viridis", clim=(-RANGE, 0), yticks=ticks, colorbar=False), title, height=190)


def _band(hertz: float, bands: int) -> float:
    """Where a frequency lies among mel bands from 0 to 8 kHz, on Slaney's scale: linear up to 1 kHz, logarithmic above."""
    mel = [3 * f / 200 if f < 1000 else 15 + 27 * np.log(f / 1000) / np.log(6.4) for f in (hertz, SAMPLE_RATE / 2)]
    return float((bands + 1) * mel[0] / mel[1] - 0.5)


# -- shared looks --------------------------------------------------------------------------------


def _curve(table: pd.DataFrame, columns: list[str], axis: str, unit: str, colour: int, tips: Any, **kw: Any) -> hv.Curve:
    step = hv.Dimension("step", label="optimizer step")
    first = hv.Dimension(columns[0], label=axis, unit=unit or None)
    curve = hv.Curve(table, step, [first, *columns[1:]], **kw).opts(color=COLOURS[colour], line_width=2)
    return curve.opts(tools=["hover"], hover_tooltips=tips, hover_mode="vline") if tips else curve


def _finish(element: Any, title: str, height: int = 250, floor: bool = False) -> Any:
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


def _need(table: pd.DataFrame, columns: list[str], what: str) -> None:
    missing = [c for c in columns if c not in table.columns]
    if missing:
        raise InputError(f"The table for {what} lacks columns.", got=", ".join(map(str, table.columns)), expected=", ".join(columns))
