"""The live board of a sweep: its trials in a table, their word error rates as they come.

As :mod:`speechlab.board`, one object shows live in a cell and, as :meth:`Trials.static`, in a report.
"""

from __future__ import annotations

from typing import Any

import holoviews as hv
import pandas as pd
import panel as pn

from speechlab import plots
from speechlab.board import BOARD_CSS, GRID, Pane
from speechlab.markup import Html, table_html
from speechlab.sweeps import Sweep
from speechlab.units import clock

PERIOD = 1000  # ms between looks at the runs
ENDED = {"finished", "stopped", "failed"}


class Trials(pn.viewable.Viewer):  # type: ignore[misc]  # panel has no types
    """A sweep's board: ``Trials(sweep)`` as a cell's last line shows it live, ``.static()`` as it stands.

    Args:
        sweep: The sweep.
    """

    def __init__(self, sweep: Sweep, **params: Any) -> None:
        super().__init__(**params)
        self.sweep = sweep

    def __panel__(self) -> pn.viewable.Viewable:
        view = _View(self.sweep)
        view.tick()
        view.follow()
        return view.layout

    def static(self) -> pn.Column:
        """The board as it stands, without updates."""
        view = _View(self.sweep)
        view.tick()
        return view.layout


class _View:
    """One display of a sweep."""

    def __init__(self, sweep: Sweep) -> None:
        self._sweep = sweep
        self._seen: Any = None
        self._callback: Any = None
        self._text = pn.widgets.StaticText(value="", stylesheets=[BOARD_CSS], sizing_mode="stretch_width", margin=(4, 0))
        self._panes = [Pane(None, sizing_mode="stretch_width", margin=0) for _ in (None, *sweep.dimensions)]
        grid = pn.Column(*self._panes, sizing_mode="stretch_width", styles=GRID)
        self.layout = pn.Column(self._text, grid, sizing_mode="stretch_width", name="trials")

    def follow(self) -> None:
        """Look for news from now on, until every trial has ended."""
        self._callback = pn.state.add_periodic_callback(self.tick, period=PERIOD)

    def tick(self) -> None:
        """Read the runs; figures are drawn anew only where a validation came."""
        table, curves = self._sweep.table(), self._sweep.curves()
        self._text.value = str(summary_html(self._sweep, table))
        if (seen := len(curves)) != self._seen:
            self._seen = seen
            figures = [plots.trials(curves)]
            figures += [plots.dimension(table, d.key, d.kind == "loguniform") for d in self._sweep.dimensions]
            for pane, figure in zip(self._panes, figures, strict=True):
                pane.object = hv.render(figure, backend="bokeh")
        if self._callback is not None and table.state.isin(ENDED).all():
            self._callback.stop()
            self._callback = None


def summary_html(sweep: Sweep, table: pd.DataFrame) -> Html:
    """Where a sweep stands: counts by state, and its trials, the best first.

    Args:
        sweep: The sweep.
        table: From :meth:`speechlab.sweeps.Sweep.table`.
    """
    counts = ", ".join(f"{count} {state}" for state, count in table.state.value_counts().items())
    rows = table.sort_values(["best", "trial"])
    shown = rows.assign(wer=rows.wer.map(_percent), best=rows.best.map(_percent), seconds=rows.seconds.map(clock))
    body = table_html(shown.rename(columns={"wer": "WER", "best": "best WER", "seconds": "time"}), {}, caption="Trials, best first")
    line = Html('<div class="headline">{}: {} trials, {}</div>').format(sweep.id, len(table), counts)
    return Html('<div class="speechlab">{}{}</div>').format(line, body)


def _percent(value: float) -> str:
    return "–" if value != value else f"{100 * value:.2f} %"
