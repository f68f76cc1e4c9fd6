"""The word error rate over the weights of a language model."""

from __future__ import annotations

from typing import Any

import holoviews as hv
import pandas as pd

from speechlab.plots.style import COLOURS, GREY, MARKERS, finish, need

DASHES = ("solid", "dashed", "dotted")  # once the colours are used up


def weights(table: pd.DataFrame, greedy: float | None = None) -> hv.Overlay:
    """Word error rate over the language model's weight, a line for each word score; the best is ringed.

    Args:
        table: Of :func:`speechlab.fusion.sweep`: lm_weight, word_score, and wer, low, high as fractions.
        greedy: The rate without search and language model, drawn as a line; a fraction.

    Raises:
        InputError: if a column is missing.
    """
    from speechlab.fusion import best  # which knows models, and figures are wanted without them

    need(table, ["lm_weight", "word_score", "wer", "low", "high"], "weights")
    rows = table.assign(percent=100 * table.wer, from_percent=100 * table.low, to_percent=100 * table.high)
    x, y = hv.Dimension("lm_weight", label="weight of the language model"), hv.Dimension("percent", label="WER", unit="%")
    tips = [("LM weight", "@lm_weight"), ("word score", "@word_score"), ("WER", "@percent{0.00} %"),
            ("95 % interval", "@from_percent{0.00} to @to_percent{0.00} %")]  # fmt: skip
    layers: list[Any] = []
    for i, (word_score, part) in enumerate(rows.sort_values("lm_weight").groupby("word_score")):
        looks = {"color": COLOURS[i % 4], "line_width": 2, "line_dash": DASHES[i // 4 % 3]}
        layers.append(hv.Curve(part, x, [y]).opts(**looks))
        label = f"word score {word_score:g}" if i == 0 else f"{word_score:g}"
        dots = hv.Scatter(part, x, [y, "word_score", "from_percent", "to_percent"], label=label)
        layers.append(dots.opts(color=COLOURS[i % 4], marker=MARKERS[i % 4], size=8, tools=["hover"], hover_tooltips=tips))
    if greedy is not None:
        layers.append(hv.HLine(100 * greedy).opts(color=GREY, line_dash="dashed", line_width=2))
        at = (float(rows.lm_weight.max()), 100 * greedy, "greedy, without a language model")
        layers.append(
            hv.Labels([at], [x, y], "text").opts(text_color=GREY, text_font_size="12px", text_align="right", text_baseline="bottom")
        )
    found = best(rows)
    ring = hv.Scatter([(found.lm_weight, found.percent)], x, [y])
    layers.append(ring.opts(color=GREY, fill_alpha=0, line_color=GREY, line_width=2.5, size=18))
    title = f"Lowest: {found.percent:.1f} % at weight {found.lm_weight:g}, word score {found.word_score:g}"
    return finish(hv.Overlay(layers).opts(padding=(0.04, 0.12)), title, height=320)
