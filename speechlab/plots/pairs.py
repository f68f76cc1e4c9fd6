"""Two systems side by side: the difference with its intervals and the margin, and the trainings behind it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import holoviews as hv
import numpy as np
import pandas as pd

from speechlab.plots.style import COLOURS, GREY, MARKERS, finish

if TYPE_CHECKING:
    from speechlab.comparison import Difference, Families


def difference(found: Difference | Families, margin: float) -> hv.Overlay:
    """The difference in points of WER with each interval that can be had, beside zero and the margin.

    Args:
        found: From :func:`speechlab.comparison.compare` or :func:`speechlab.comparison.families`.
        margin: Points of WER that the new system may be worse.
    """
    intervals = [found.interval, found.speaker_interval, *filter(None, [getattr(found, "trainings", None)])]
    spans = [(i.scope, i.low, i.high, f"{i.units} {i.by}s") for i in intervals if i.low == i.low]
    rows = pd.DataFrame(spans or [("no interval", found.points, found.points, "")], columns=["of", "low", "high", "units"])
    rows = rows.assign(points=found.points, at=np.arange(len(rows), dtype=float))
    rows["at_high"] = rows["at"]
    x, y = hv.Dimension("points", label="b minus a (points of WER)"), hv.Dimension("at", label=" ")
    tips = [("points", "@points{+0.00}"), ("95 % interval", "@low{+0.00} to @high{+0.00}"), ("of", "@of"), ("over", "@units")]
    layers = [
        hv.VLine(0.0).opts(color=GREY, line_width=1),
        hv.VLine(margin).opts(color=COLOURS[1], line_dash="dashed", line_width=2),
        hv.Segments(rows, ["low", "at", "high", "at_high"]).opts(color=COLOURS[0], line_width=3),
        hv.Points(rows, [x, y], ["low", "high", "of", "units"]).opts(color=COLOURS[0], size=12, tools=["hover"], hover_tooltips=tips),
    ]
    lowest, highest = min(0.0, rows.low.min()), max(margin, rows.high.max())  # zero and the margin are always in sight
    reach = (lowest - 0.05 * (highest - lowest) - 0.1, highest + 0.05 * (highest - lowest) + 0.1)
    looks = {"yticks": list(enumerate(rows["of"])), "ylim": (-0.6, len(rows) - 0.4), "invert_yaxis": True, "ylabel": "", "xlim": reach}
    overlay = hv.Overlay(layers).opts(**looks, xlabel="b − a (points); dashed: margin")
    return finish(overlay, "Left is better, 95 % intervals", height=130 + 40 * len(rows))


def trainings(families: dict[str, tuple[float, ...]]) -> hv.Overlay:
    """The WER of every training, a column of dots a family, with its mean.

    Args:
        families: Name to the rates of its trainings, fractions.
    """
    x, y = hv.Dimension("at", label=" "), hv.Dimension("percent", label="WER", unit="%")
    layers: list[Any] = []
    for i, (name, rates) in enumerate(families.items()):
        spread = 0.12 * (np.arange(len(rates)) - (len(rates) - 1) / 2) / max(1, len(rates) - 1)
        rows = pd.DataFrame({"at": i + spread, "percent": 100 * np.array(rates), "family": name, "training": range(1, len(rates) + 1)})
        tips = [("family", "@family"), ("training", "@training"), ("WER", "@percent{0.00} %")]
        dots = hv.Scatter(rows, x, [y, "family", "training"], label=name)
        looks = {"color": COLOURS[i % 4], "marker": MARKERS[i % 4], "size": 11, "tools": ["hover"], "hover_tooltips": tips}
        mean = 100 * float(np.mean(rates))
        layers += [hv.Segments([(i - 0.25, mean, i + 0.25, mean)]).opts(color=COLOURS[i % 4], line_width=2), dots.opts(**looks)]
    looks = {
        "xticks": list(enumerate(families)),
        "xlim": (-0.6, len(families) - 0.4),
        "xlabel": "",
        "ylabel": "WER (%)",
        "show_legend": False,
    }
    return finish(hv.Overlay(layers).opts(**looks), "WER of each training, and the mean")
