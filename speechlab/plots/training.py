"""Curves over training, and the trials of a sweep."""

from __future__ import annotations

from typing import Any

import holoviews as hv
import numpy as np
import numpy.typing as npt
import pandas as pd

from speechlab.plots.style import COLOURS, GREY, finish, need

SMOOTHING = 0.1  # weight of the newest step in the smoothed loss
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
    raw = {name: _numbers(steps, name) for name in STEP_COLUMNS}
    there = ~np.isnan(raw["step"])
    raw = {name: values[there] for name, values in raw.items()}
    seconds, padded = (np.where(raw[name] > 0, raw[name], np.nan) for name in ("step_seconds", "padded_seconds"))
    before = [] if smoothed is None else [smoothed]
    average = pd.Series([*before, *raw["loss"]], dtype=float).ewm(alpha=SMOOTHING, adjust=False, ignore_na=True).mean()
    return pd.DataFrame(
        {
            "step": raw["step"],
            "epoch": raw["epoch"],
            "loss": raw["loss"],
            "smoothed": average.to_numpy()[len(before) :],
            "lr": raw["lr"],
            "grad_norm": raw["grad_norm"],
            "speed": raw["audio_seconds"] / seconds,
            "padding": 100 * (1 - raw["audio_seconds"] / padded),
            "wait": 100 * raw["wait_seconds"] / seconds,
            "memory": raw["memory_bytes"] / 1e9,
        }
    )


def _numbers(steps: pd.DataFrame, name: str) -> npt.NDArray[np.float64]:
    """A column as numbers, in arrays as a live board has a step at a time, for which frames would take ten times as long."""
    if name not in steps:
        return np.full(len(steps), np.nan)
    values: npt.NDArray[np.float64] = pd.to_numeric(steps[name], errors="coerce").to_numpy(float)
    return values


def loss(table: pd.DataFrame) -> hv.Overlay:
    """Training loss in nats per token: each step faintly, the moving average on top."""
    tips = [("step", "@step{0,0}"), ("loss", "@loss{0.0000}"), ("smoothed", "@smoothed{0.0000}")]
    each = _curve(table, ["loss", "smoothed"], "loss", "nats per token", 0, tips, label="each step").opts(line_alpha=0.5, line_width=1)
    smooth = _curve(table, ["smoothed"], "loss", "nats per token", 0, None, label="smoothed")
    return finish(each * smooth, "Loss")


def learning_rate(table: pd.DataFrame) -> hv.Curve:
    """Learning rate of each step."""
    curve = _curve(table, ["lr"], "learning rate", "", 2, [("step", "@step{0,0}"), ("learning rate", "@lr")])
    return finish(curve.opts(yformatter="%.1e"), "Learning rate")


def gradient_norm(table: pd.DataFrame) -> hv.Curve:
    """Norm of the gradient of each step, before clipping."""
    tips = [("step", "@step{0,0}"), ("norm", "@grad_norm{0.000}")]
    return finish(_curve(table, ["grad_norm"], "norm before clipping", "", 3, tips), "Gradient norm")


def speed(table: pd.DataFrame) -> hv.Curve:
    """Throughput: seconds of audio trained on per second of wall clock."""
    tips = [("step", "@step{0,0}"), ("speed", "@speed{0.0} s/s")]
    return finish(_curve(table, ["speed"], "audio", "s per s", 2, tips), "Throughput", floor=True)


def waste(table: pd.DataFrame) -> hv.Overlay:
    """What a step gives away: padding as share of its audio, waiting for input as share of its time."""
    tips = [("step", "@step{0,0}"), ("padding", "@padding{0.0} % of the audio"), ("wait", "@wait{0.0} % of the time")]
    padding = _curve(table, ["padding", "wait"], "share of the step", "%", 1, tips, label="padding")
    wait = _curve(table, ["wait"], "share of the step", "%", 0, None, label="waiting for input").opts(line_dash="dashed")
    return finish(padding * wait, "Padding and input wait", floor=True)


def memory(table: pd.DataFrame) -> hv.Curve:
    """Resident memory of the training process."""
    return finish(
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
    return finish(line * dots, "Validation word error rate", floor=True)


def trials(curves: pd.DataFrame) -> hv.Overlay:
    """Validation WER over epochs of every trial of a sweep; the best so far stands out.

    Args:
        curves: Columns trial, epoch and wer (a fraction), one row a validation.
    """
    need(curves, ["trial", "epoch", "wer"], "trials")
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
    return finish(hv.Overlay(layers).opts(show_legend=False), "Validation word error rate of each trial", floor=True)


def dimension(table: pd.DataFrame, key: str, logarithmic: bool = False) -> hv.Scatter:
    """Best WER of each trial over one value that was varied.

    Args:
        table: Columns trial, best (a fraction), epochs and the key, one row a trial.
        key: The value's column.
        logarithmic: Whether its axis is.
    """
    need(table, ["trial", "best", "epochs", key], "a dimension")
    rows = table.assign(percent=100 * table.best.astype(float), value=table[key])
    if not pd.api.types.is_numeric_dtype(rows.value):
        rows["value"] = rows.value.astype(str)
    x, y = hv.Dimension("value", label=key), hv.Dimension("percent", label="best WER", unit="%")
    tips = [("trial", "@trial"), (key, "@value"), ("best WER", "@percent{0.00} %"), ("epochs", "@epochs")]
    dots = hv.Scatter(rows, x, [y, "trial", "epochs"]).opts(color=COLOURS[0], size=9, tools=["hover"], hover_tooltips=tips)
    looks = {"logx": True, "xformatter": "%.0e", "xticks": 4} if logarithmic else {"xticks": 4}
    return finish(dots.opts(**looks), f"WER over {key}")


def _curve(table: pd.DataFrame, columns: list[str], axis: str, unit: str, colour: int, tips: Any, **kw: Any) -> hv.Curve:
    step = hv.Dimension("step", label="optimizer step")
    first = hv.Dimension(columns[0], label=axis, unit=unit or None)
    curve = hv.Curve(table, step, [first, *columns[1:]], **kw).opts(color=COLOURS[colour], line_width=2)
    return curve.opts(tools=["hover"], hover_tooltips=tips, hover_mode="vline") if tips else curve
