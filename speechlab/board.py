"""The live board of a run: a layout of :mod:`speechlab.plots` over its events.

The same object shows in a notebook cell, under ``panel serve`` and, as :meth:`Board.static`, in a
report. Displays read the run directory, so training goes on in another process, the kernel stays free,
and one board can be shown many times: its events are read once (:class:`speechlab.history.Feed`), and one
table behind all curves of a display is what its updates go into. Live text is held by StaticText
widgets: unlike panes of HTML or Markdown, their updates fetch nothing from the network in
JupyterLab. Curves are streamed into, never redrawn, and kept under :data:`~speechlab.history.MOST_POINTS` points.

Not covered: a login (serve on loopback, or put one in front); several runs on one board.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import holoviews as hv
import pandas as pd
import panel as pn
from bokeh.models import ColumnDataSource, DataRange1d, GlyphRenderer, Range1d

from speechlab import door, plots, pulse, text
from speechlab.errors import InputError
from speechlab.history import MOST_POINTS, SILENCE, Feed, History, number
from speechlab.markup import CSS, Html, samples_html, time_html
from speechlab.plots.style import describe
from speechlab.runs import Event, Run
from speechlab.units import Seconds, clock

TEMPLATES = Path(__file__).parent / "templates"
PAGE = (TEMPLATES / "page.html.j2").read_text("utf-8")
SCRIPTS = {name: (TEMPLATES / f"{name}.js").read_text("utf-8") for name in ("zone", "away")}

BOARD_CSS = (
    CSS
    + """
:host, .bk-clearfix { display: block; width: 100%; }
.bar { height: 8px; border-radius: 4px; background: #8883; overflow: hidden; margin: .5em 0; }
.bar div { height: 100%; background: #0072b2; border-radius: 4px; }
.tiles { display: grid; grid-template-columns: repeat(auto-fill, minmax(8em, 1fr)); gap: .5em; }
.tiles div { padding: .45em .7em; border-radius: .4em; background: #8881; }
.tiles b { display: block; font-size: 1.25em; font-weight: 600; font-variant-numeric: tabular-nums; white-space: nowrap; }
.tiles span { opacity: .8; font-size: .85em; }
.badge { padding: .1em .6em; border-radius: 1em; white-space: nowrap; background: #0072b230; margin-right: .5em; }
.badge.failed, .badge.interrupted { background: #d55e0050; } .badge.finished { background: #009e7340; }
.headline { font-size: 1.15em; overflow-wrap: anywhere; }
h3 { margin: .6em 0 .2em; font-size: 1.05em; }
.log { max-height: 14em; overflow: auto; margin: 0; padding: 0; list-style: none; }
.log li { padding: .15em 0; white-space: pre-wrap; overflow-wrap: anywhere; }
.log .warning::before { content: "⚠ "; } .log .failure { border-left: 4px solid #d55e00; padding-left: .6em; }
"""
)

GRID = {"display": "grid", "grid-template-columns": "repeat(auto-fit, minmax(min(250px, 100%), 1fr))", "gap": "12px"}


class Board(pn.viewable.Viewer):  # type: ignore[misc]  # panel has no types
    """A run's board: ``Board(run)`` as a cell's last line shows it live, ``.static()`` as it stands.

    Args:
        run: A run, or the path of its directory.
    """

    def __init__(self, run: Run | str | Path, **params: Any) -> None:
        super().__init__(**params)
        self.run = run if isinstance(run, Run) else Run(run)

    def __panel__(self) -> pn.viewable.Viewable:
        return self.panel()

    def panel(self, on: bool = False) -> pn.Column:
        """A live view; it follows the events until the run has ended and all is read.

        Args:
            on: Whether it looks on after that, as a served page does: a run can be resumed.
        """
        view = _View(self.run)
        view.tick()
        view.follow(on)
        return view.layout

    def static(self) -> pn.Column:
        """The board from all events so far, without updates: what a headless notebook ends with."""
        view = _View(self.run)
        before = -1
        while (now := view.tick()) != before:
            before = now
        for figure in view.figures:
            describe(figure)
        return view.layout


class Pane(pn.pane.Bokeh):  # type: ignore[misc]  # panel has no types
    """A figure's place, also where a template has a design, as ``panel serve`` gives notebooks: Panel 1.9 would hand it to the figure."""

    priority = 0  # none but the boards' own are made of it

    def _track_overrides(self, *events: Any) -> None:
        super()._track_overrides(*(event for event in events if event.name != "design"))


class _View:
    """One display of a board: its figures and texts, and how much of the feed they show."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._feed = Feed.of(run)
        self._version = 0
        try:
            self._normaliser = text.normaliser(run.config.evaluation.normaliser)
        except InputError:  # a config of another version: the board still shows the run
            self._normaliser = text.normaliser("raw")
        self._header, self._samples, self._log = (
            pn.widgets.StaticText(value="", stylesheets=[BOARD_CSS], sizing_mode="stretch_width", margin=(4, 0)) for _ in range(3)
        )
        try:
            self._scored = run.config.transcribes
        except InputError:
            self._scored = True
        figures = [_figure(make(self._history.curves)) for make in plots.CURVES]
        wer = _figure(plots.word_error_rate(pd.DataFrame()))
        self._source = _shared(figures, self._history.curves)
        self._wer_sources = list(wer.select({"type": ColumnDataSource}))
        self.figures = [figures[0], *([wer] if self._scored else []), *figures[1:]]
        panes = [Pane(figure, sizing_mode="stretch_width", margin=0) for figure in self.figures]
        grid = pn.Column(*panes, sizing_mode="stretch_width", styles=GRID)
        self.layout = pn.Column(self._header, grid, self._samples, self._log, sizing_mode="stretch_width", name="board")
        self._callback: Any = None
        self._on = False
        self._seen: Any = None
        self._validated: Event | None = None
        self._logged: Event | None = None

    @property
    def _history(self) -> History:
        return self._feed.history

    def follow(self, on: bool = False) -> None:
        """Look for new events from now on, to the end or beyond it."""
        self._on = on
        if on or not self._history.ended:
            echo = pulse.Echo()
            self.layout.append(echo.place)
            self._callback = pulse.follow(self.tick, self._sign, echo)

    def _sign(self) -> tuple[int, str, float]:
        """What tells whether there is something to show: news, and where the run stands without any."""
        return self._feed.look(), self._history.standing(self._run), self._history.quiet // 60

    def tick(self) -> int:
        """Read what is new, not too much of it at once, and show it.

        Returns:
            How often there was something new.
        """
        seen, before = self._sign(), self._version
        if seen[0] != before:
            self._version = seen[0]
            self._draw(self._feed.since(before))
            self._write()
        elif self._history.ended and self._callback is not None and not self._on:
            self._callback.stop()
            self._callback = None
        if seen != self._seen:
            self._seen = seen
            self._header.value = self._feed.once("head", seen, self._head)
        return self._version

    def _draw(self, rows: dict[str, list[float]] | None) -> None:
        columns = list(self._source.data)
        if rows is None:
            self._source.data = {c: self._history.curves[c].to_numpy() for c in columns}
        elif rows["step"]:
            # lists go in one message; each array would be two of its own
            self._source.stream({c: rows[c] for c in columns}, rollover=2 * MOST_POINTS)

    def _write(self) -> None:
        history = self._history
        latest = history.validations[-1] if history.validations else None
        if latest is not self._validated:
            self._validated = latest
            table = plots.in_percent(pd.DataFrame(history.validations))
            for source in self._wer_sources:
                source.data = {c: table[c].to_numpy() for c in source.data}
            self._samples.value = self._feed.once("clips", latest and (latest.get("step"), latest.get("time")), self._clips)
        if history.log and history.log[-1] is not self._logged:
            self._logged = history.log[-1]
            self._log.value = str(_log_html(history.log))

    def _head(self) -> str:
        history, run = self._history, self._run
        state, quiet = history.standing(run), history.quiet
        done, steps = history.step, number(history.start.get("steps"))
        row = history.curves.iloc[-20:].mean(numeric_only=True).to_dict() if len(history.curves) else {}
        wers = [100 * number(v.get("wer")) for v in history.validations]
        epochs = number(history.start.get("epochs"))
        tiles = {
            "step": f"{done:.0f} / {_show(steps, '.0f')}",
            "epoch": f"{_show(row and history.curves.epoch.iloc[-1] + 1, '.0f')} / {_show(epochs, '.0f')}",
            "time left": "none" if history.ended else _clock(history.remaining),
            "loss, smoothed": _show(row and history.curves.smoothed.iloc[-1], ".3f"),
            "validation WER": "none" if not self._scored else f"{_show(wers[-1], '.2f')} %" if wers else "–",
            "audio-seconds per second": _show(row.get("speed"), ".1f"),
            "waiting for input": _show(row.get("wait"), ".1f", " %"),
            "padding": _show(row.get("padding"), ".1f", " %"),
            "memory": _show(row.get("memory"), ".2f", " GB"),
        }
        share = 100 * min(done / steps, 1) if steps > 0 else 0
        return str(
            Html(
                '<div class="speechlab"><div class="headline"><span class="badge {}" role="status">{}</span>{}{}</div>'
                '<div class="bar" role="progressbar" aria-label="progress" aria-valuenow="{:.0f}" aria-valuemin="0" aria-valuemax="100">'
                '<div style="width:{:.1f}%"></div></div>'
                '<div class="tiles">{}</div></div>'
            ).format(
                state,
                state,
                run.id,
                f" · no event for {clock(60 * (quiet // 60))}" if quiet > SILENCE and not history.ended else "",
                share,
                share,
                Html("").join(Html("<div><b>{}</b><span>{}</span></div>").format(value, name) for name, value in tiles.items()),
            )
        )

    def _clips(self) -> str:
        if not self._history.validations or not self._scored:
            return ""
        latest = self._history.validations[-1]
        rows = [
            {
                "id": s.get("id", ""),
                "reference": s.get("reference", ""),
                "hypothesis": s.get("hypothesis", ""),
                "audio": _sound(self._run, s.get("audio")),
            }
            for s in latest.get("samples") or []
        ]
        body = samples_html(rows, self._normaliser)
        return str(Html('<div class="speechlab"><h3>Validation clips at step {}</h3>{}</div>').format(latest.get("step", "–"), body))


def _figure(element: Any) -> Any:
    """A figure whose ranges follow the data that is streamed into it."""
    figure = hv.render(element, backend="bokeh")
    if isinstance(figure.x_range, Range1d):
        figure.x_range = DataRange1d(range_padding=0.05)
    floor = {"start": 0} if figure.y_range.start == 0 else {}
    figure.y_range = DataRange1d(range_padding=0.08, **floor)
    return figure


def _shared(figures: list[Any], table: pd.DataFrame) -> ColumnDataSource:
    """One table behind all glyphs of the figures: an update is one message, not one for each glyph."""
    renderers = [r for figure in figures for r in figure.select({"type": GlyphRenderer})]
    columns = dict.fromkeys(c for r in renderers for c in r.data_source.data)
    shared = ColumnDataSource({c: table[c].to_numpy() for c in columns})
    for renderer in renderers:
        renderer.data_source = shared
    return shared


def _sound(run: Run, name: Any) -> bytes | None:
    """A clip of the run's own samples folder, or None: an event cannot name a file outside it."""
    folder = run.path / "samples"
    path = (run.path / str(name)).resolve()
    if not (path.is_relative_to(folder.resolve()) and path.suffix == ".mp3" and path.is_file()):
        return None
    return path.read_bytes()


def _log_html(log: list[Event]) -> Html:
    lines = Html("").join(
        Html('<li class="{}">{} {}</li>').format(
            "failure" if event["kind"] == "failure" else event.get("level", "info"),
            Html('<span class="faint">{}</span>').format(time_html(number(event.get("time")))),
            event.get("error") if event["kind"] == "failure" else event.get("text"),
        )
        for event in reversed(log)
    )
    page = '<div class="speechlab"><h3>Messages, newest first</h3><div role="log" aria-label="messages">{}</div></div>'
    return Html(page).format(Html('<ul class="log" tabindex="0">{}</ul>').format(lines))


def _show(value: Any, pattern: str, unit: str = "") -> str:
    x = number(value)
    return "–" if x != x else f"{x:{pattern}}{unit}"


def _clock(seconds: Seconds) -> str:
    return "–" if seconds != seconds else clock(seconds)


# -- a page of its own ---------------------------------------------------------------------------


def page(shown: pn.viewable.Viewable, nav: Html | str = "", keeps: bool = False) -> pn.Template:
    """A web page that is light or dark as its reader's system is, has times in their zone, and comes back when its server does.

    Args:
        shown: What is on it.
        nav: Above that.
        keeps: Whether something may be entered on it that its address does not hold.
    """
    template = pn.Template(PAGE, location=True)
    for name, value in {"nav": nav, "keeps": keeps, **SCRIPTS}.items():
        template.add_variable(name, value)
    template.add_panel("board", shown)
    return template


def serve(run: Run | str | Path, port: int = 5006, address: str = "127.0.0.1", show: bool = False, threaded: bool = False) -> Any:
    """Serve a run's board on this machine.

    Args:
        run: A run, or the path of its directory.
        port: TCP port.
        address: A loopback address; the board has no login.
        show: Whether to open a browser.
        threaded: Return at once and serve from a thread, whose ``stop()`` ends it; else block.

    Raises:
        InputError: if the port is taken or the address is not this machine's own.
    """
    run = run if isinstance(run, Run) else Run(run)
    about = {"show": show, "threaded": threaded, "verbose": False, "title": f"{run.id}: board"}
    return pn.serve(lambda: page(Board(run).panel()), **about, **door.guarded(address, port))
