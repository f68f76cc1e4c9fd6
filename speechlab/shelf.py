"""The page of all runs: state, error rates, cost and two small curves each, live ones on top; two of them ticked are compared;
operators tag and delete them.

Notable: a run has a place of its own in the page, which is written only when the run has changed, so ticks, the filter and the
keyboard's focus stay where they are while others train. It reads nothing itself: :mod:`speechlab.catalogue` does.

Not covered: several runs deleted at once.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any
from urllib.parse import quote

import panel as pn
import param

from speechlab import door, pulse, tags, upkeep
from speechlab.board import BOARD_CSS
from speechlab.catalogue import Catalogue, Entry, Points
from speechlab.errors import InputError
from speechlab.markup import FIELD_CSS, Html, framed, status, time_html
from speechlab.runs import Run
from speechlab.units import Seconds, clock

MOST = 60  # runs shown at a time
WIDTH, HEIGHT = 120, 30  # of a small curve, in its own units

LINKS_CSS = """
h1 { font-size: 1.4em; margin: .3em 0; } h2 { font-size: 1.15em; margin: 1em 0 .3em; }
a { color: #0060a0; text-underline-offset: 2px; }
a:focus-visible { outline: 2px solid; outline-offset: 2px; }
@media (prefers-color-scheme: dark) { a { color: #7db9f5; } }
.speechlab p { margin: .3em 0; }
"""
ROW_FIELD_CSS = FIELD_CSS + "label { color: inherit; } label:has(input:disabled) { opacity: .4; }"
TICK_CSS = """
label span { font-size: 0; } label span::before { content: "compare "; font-size: 14px; }
"""  # the run's name is there for who does not see which row it is in; so below
OPEN_CSS = """
.bk-btn { font-size: 0; padding: 1px 7px; } .bk-btn::before { content: "Tag or delete "; font-size: 12px; }
"""
ROW_CSS = "@media (max-width: 640px) { :host { display: block !important; } }"
RUN_CSS = (
    BOARD_CSS
    + LINKS_CSS
    + """
.run { display: grid; grid-template-columns: minmax(0, 5fr) 110px 110px minmax(0, 7fr); gap: .4em 1.2em; align-items: center; }
.run .name { font-weight: 600; overflow-wrap: anywhere; }
.run svg { width: 100%; height: 30px; display: block; overflow: visible; }
.run figure { margin: 0; } .run figcaption { font-size: .85em; opacity: .8; white-space: nowrap; }
.run .sums { display: grid; grid-template-columns: repeat(auto-fit, minmax(7em, 1fr)); gap: .2em .8em; align-items: start; }
.run .sums b { font-weight: 600; font-variant-numeric: tabular-nums; }
.run .sums span { opacity: .8; font-size: .85em; display: block; }
.run .tag { border: 1px solid #8888; border-radius: 1em; padding: 0 .6em; margin: .2em .3em 0 0; display: inline-block; font-size: .85em; }
.badge.broken { background: #d55e0050; } .note { overflow-wrap: anywhere; font-size: .9em; }
@media (max-width: 860px) { .run { grid-template-columns: 1fr 1fr; } .run .what, .run .sums { grid-column: 1 / -1; } }
"""
)
EMPTY = Html(
    "<p><b>There is no run yet.</b></p><p>Make one: <code>make report</code> trains the quickstart and reports on it in some six "
    "minutes, <code>speechlab train --config configs/quickstart.yaml</code> trains alone. It shows up here by itself.</p>"
)


class Shelf(pn.viewable.Viewer):  # type: ignore[misc]  # panel has no types
    """All runs of a folder, live.

    Args:
        catalogue: Of the folder.

    Attributes:
        words: Only runs that hold all of these are shown.
    """

    words = param.String(default="", label="Filter by name, state, model, #tag or question")

    def __init__(self, catalogue: Catalogue, **params: Any) -> None:
        super().__init__(**params)
        self.catalogue = catalogue

    def __panel__(self) -> pn.viewable.Viewable:
        view = _View(self)
        view.tick()
        echo = pulse.Echo()
        pulse.follow(view.tick, view.sign, echo)
        view.layout.append(echo.place)
        return view.layout


class _View:
    """One display: its places, by run."""

    def __init__(self, shelf: Shelf) -> None:
        self._shelf = shelf
        self._places: dict[str, _Place] = {}
        self._shown: list[str] = []
        self._seen: Any = None
        words = pn.widgets.TextInput(
            label=shelf.param.words.label, placeholder="all runs", stylesheets=[ROW_FIELD_CSS], sizing_mode="stretch_width", margin=(2, 0)
        )

        def told() -> None:
            # not what the reader just typed: sent back, it would undo what was typed since
            if words.value_input != shelf.words:
                words.param.update(value=shelf.words, value_input=shelf.words)

        told()
        words.param.watch(lambda event: shelf.param.update(words=event.new), "value_input")  # as it is typed
        shelf.param.watch(lambda _: told(), "words")
        shelf.param.watch(lambda _: self.tick(), "words")
        self._head, self._tray, self._foot = (live(Html("")) for _ in range(3))
        self._tray.styles = {"position": "sticky", "top": "0", "z-index": "2", "background": "var(--page, transparent)"}
        self._list = pn.Column(sizing_mode="stretch_width", margin=0)
        self.layout = pn.Column(self._head, words, self._tray, self._list, self._foot, sizing_mode="stretch_width", name="shelf")

    def sign(self) -> tuple[tuple[Entry, ...], str, float]:
        """What tells whether there is something to write; texts say how many minutes ago something was."""
        return tuple(self._shelf.catalogue.look()), self._shelf.words, time.time() // 60

    def tick(self) -> None:
        """Look at the runs and write what has changed."""
        seen = self.sign()
        if seen == self._seen:
            return
        self._seen, entries = seen, seen[0]
        found = [e for e in entries if e.holds(self._shelf.words)]
        shown = found[:MOST]
        placed = {*self._places, *(e.id for e in shown)}  # those that were shown keep their ticks
        made = self._shelf.catalogue, self._tell
        self._places = {e.id: self._places.get(e.id) or _Place(e.id, *made) for e in entries if e.id in placed}
        for entry in shown:
            self._places[entry.id].show(entry)
        if [e.id for e in shown] != self._shown:
            self._shown = [e.id for e in shown]
            self._list.objects = [self._places[id].layout for id in self._shown]
        counts = {state: sum(e.state == state for e in entries) for state in dict.fromkeys(e.state for e in entries)}
        told = ", ".join(f"{count} {state}" for state, count in counts.items())
        runs = f"{len(entries)} run{'' if len(entries) == 1 else 's'}"
        self._head.value = framed(Html("<h1>Runs</h1><p>{}</p>").format(f"{runs}: {told}" if told else "No run"))
        self._foot.value = framed(self._rest(len(entries), len(found)))
        self._tell()

    def _rest(self, all_: int, found: int) -> Html:
        if not all_:
            return EMPTY
        if not found:
            return Html("<p>No run holds “{}”. Empty the filter to see all {}.</p>").format(self._shelf.words, all_)
        return Html("<p>{} more: filter to find them.</p>").format(found - MOST) if found > MOST else Html("")

    def _tell(self) -> None:
        """Say what can be done with the ticked runs."""
        ticked = [id for id, place in self._places.items() if place.tick.value]
        if len(ticked) == 2:
            # the older is compared against, the newer in question: the catalogue has the newest first
            b, a = ticked
            said = Html('<p><a href="compare?a={}&amp;b={}">Compare {} with {}</a></p>').format(quote(a), quote(b), b, a)
        elif len(self._places) < 2:
            said = Html("")
        elif len(ticked) == 1:
            said = Html("<p>{} is ticked: tick a second run to compare them.</p>").format(ticked[0])
        else:
            many = f"{len(ticked)} are ticked: " if ticked else ""
            said = Html("<p>{}Tick two runs to compare them.</p>").format(many)
        self._tray.value = framed(said)


class _Place:
    """A run's place in the page."""

    def __init__(self, id: str, catalogue: Catalogue, told: Any) -> None:
        self._entry: tuple[Entry, str] | None = None
        # a single Checkbox has no label that a screen reader would read (Panel 1.9)
        self.tick = pn.widgets.CheckBoxGroup(options=[id], margin=(8, 10, 0, 0), width=90, stylesheets=[ROW_FIELD_CSS, TICK_CSS])
        self.tick.param.watch(lambda _: told(), "value")
        self._text = pn.widgets.StaticText(value="", stylesheets=[RUN_CSS], sizing_mode="stretch_width", margin=0)
        line = {"border-top": "1px solid #8884", "padding": "8px 0"}
        looks: dict[str, Any] = {"styles": line, "stylesheets": [ROW_CSS], "sizing_mode": "stretch_width", "margin": 0}
        self._hand = _Hand(id, catalogue) if door.may_change() else None
        parts = [self.tick, self._text, *([self._hand.open] if self._hand else [])]
        row = pn.Row(*parts, sizing_mode="stretch_width", margin=0, stylesheets=[ROW_CSS])
        self.layout = pn.Column(row, name=f"run {id}", **looks)
        if self._hand:
            self._hand.place = self.layout

    def show(self, entry: Entry) -> None:
        """Write the run, if it has changed or time has."""
        state = (entry, ago(entry.started))
        if state != self._entry:
            self._entry = state
            self._text.value = str(run_html(entry))
            self.tick.disabled = entry.wer != entry.wer  # nothing to compare
            if self._hand:
                self._hand.show(entry)


class _Hand:
    """What an operator can do about a run, tag it and delete it: ``open`` is a button that puts ``inside`` under the run in its place."""

    place: pn.Column

    def __init__(self, id: str, catalogue: Catalogue) -> None:
        self._id, self._catalogue, self._tags = id, catalogue, ""
        self.open = _button(id, lambda _: self._turn(True), stylesheets=[OPEN_CSS], width=104)
        self.inside = pn.FlexBox(align_items="end", sizing_mode="stretch_width", margin=0)

    def show(self, entry: Entry) -> None:
        """Take the tags over."""
        self._tags = ", ".join(entry.tags)

    def _turn(self, open: bool) -> None:
        self.open.visible = not open
        self.inside.objects = self._parts() if open else []  # not before it is opened: runs are many
        self.place.objects = [self.place[0], *([self.inside] if open else [])]

    def _parts(self) -> list[pn.viewable.Viewable]:
        words = {"label": f"Tags of {self._id}, with commas between", "value": self._tags, "max_length": 500}
        self._words = pn.widgets.TextInput(**words, stylesheets=[ROW_FIELD_CSS], margin=(2, 8, 2, 0))
        self._ask, self._yes = _button("Delete the run", self._confirm), _button("Yes, delete it", self._delete, color="danger")
        self._yes.visible, self._said = False, live(Html(""))
        save, close = _button("Save", self._save), _button("Close", lambda _: self._turn(False))
        return [self._words, save, self._ask, self._yes, close, self._said]

    def _tell(self, words: str) -> None:
        self._said.value = status(words)

    def _save(self, _: Any) -> None:
        try:
            tags.write(self._mine(), tags.parsed([self._words.value]))
        except (InputError, OSError) as e:
            self._tell(str(e))
        else:
            self._tags = self._words.value
            self._turn(False)

    async def _confirm(self, _: Any) -> None:
        try:
            run = self._mine()
        except InputError as e:
            self._tell(str(e))
            return
        size = upkeep.size(sum((await asyncio.to_thread(upkeep.disk, run.path)).values()))
        self._ask.visible, self._yes.visible = False, True
        self._tell(f"Delete {self._id} with all that is in its directory, {size}? It cannot be brought back.")

    async def _delete(self, _: Any) -> None:
        self._yes.visible = False
        try:
            run = self._mine()
            self._tell("Deleting …")
            await asyncio.to_thread(upkeep.delete, run, self._catalogue.root)
        except (InputError, OSError) as e:
            self._ask.visible = True
            self._tell(str(e))

    def _mine(self) -> Run:
        """The run, for who may change it.

        Raises:
            InputError: for anybody else, or if it is gone or a link.
        """
        if not door.may_change():
            raise InputError(door.OPERATORS)
        run = self._catalogue.run(self._id)
        if (self._catalogue.root / self._id).is_symlink():
            raise InputError("Nothing is changed through a link.", got=self._id, expected=f"the run itself: {run.path.name}")
        return run


def _button(label: str, deed: Any, **looks: Any) -> pn.widgets.Button:
    made = pn.widgets.Button(label=label, margin=(2, 6, 2, 0), **{"variant": "outline", **looks})
    made.on_click(deed)
    return made


def run_html(entry: Entry) -> Html:
    """A run in a few lines: name, state and model; how it learns; what it can do and what it cost."""
    more = entry.remaining == entry.remaining and entry.live
    tested, trained = entry.wer == entry.wer, entry.seconds == entry.seconds
    sums = {
        f"test WER [{100 * entry.low:.2f}, {100 * entry.high:.2f}]" if tested else "test WER": _percent(entry.wer),
        "lowest validation WER": _percent(entry.dev),
        f"training, {entry.clips:,} clips" if trained else "training": clock(entry.seconds) if trained else "–",
        Html("time left") if more else Html("started {}").format(time_html(entry.started)): clock(entry.remaining)
        if more
        else ago(entry.started),
    }
    steps = "" if entry.steps != entry.steps else f"step {entry.step:,.0f} of {entry.steps:,.0f}"
    chips = Html("").join(Html('<span class="tag">#{}</span>').format(tag) for tag in entry.tags)
    link = Html('<a class="name" href="run?run={}">{}</a>').format(quote(entry.id, safe=""), entry.id)
    errors = Html(' · <a href="errors?run={}">errors</a>').format(quote(entry.id, safe="")) if entry.wer == entry.wer else ""
    return Html(
        '<div class="speechlab"><div class="run"><div class="what"><span class="badge {0}">{0}</span>{1}'
        '<div class="faint">{2}{3}</div><div class="faint">{4}</div>{5}{9}</div>{6}{7}<div class="sums">{8}</div></div></div>'
    ).format(
        entry.state,
        link,
        " · ".join(filter(None, (entry.model, steps))),
        errors,
        entry.question,
        Html('<div class="note">⚠ {}</div>').format(entry.note) if entry.note else "",
        spark_html(entry.losses, "loss", "#0072b2", "{:.3g}"),
        spark_html(tuple((x, 100 * y) for x, y in entry.wers), "dev WER", "#d55e00", "{:.1f} %"),
        Html("").join(Html("<div><b>{}</b><span>{}</span></div>").format(value, name) for name, value in sums.items()),
        Html("<div>{}</div>").format(chips) if chips else "",
    )


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %" if share == share else "–"


def spark_html(points: Points, name: str, colour: str, pattern: str) -> Html:
    """A curve as small as a word, with its first and last value in words.

    Args:
        points: Places and values, of which those that are no numbers are left out.
        name: Of the values.
        colour: Of the line.
        pattern: How a value is written.
    """
    known = [(x, y) for x, y in points if x == x and y == y]
    if not known:
        return Html("<figure><figcaption>{}: –</figcaption></figure>").format(name)
    (x0, y0), (x1, y1) = known[0], known[-1]
    low, high = min(y for _, y in known), max(y for _, y in known)
    across, up = WIDTH / ((x1 - x0) or 1), (HEIGHT - 4) / ((high - low) or 1)
    places = [(across * (x - x0), HEIGHT - 2 - up * (y - low)) for x, y in known]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    told = f"{name} from {pattern.format(y0)} to {pattern.format(y1)}"
    return Html(
        '<figure><figcaption>{5} {6}</figcaption><svg viewBox="0 0 {1} {2}" preserveAspectRatio="none" role="img" aria-label="{0}">'
        '<polyline points="{3}" fill="none" stroke="{4}" stroke-width="2" vector-effect="non-scaling-stroke"/></svg></figure>'
    ).format(told, WIDTH, HEIGHT, line if len(known) > 1 else f"0,{HEIGHT / 2} {WIDTH},{HEIGHT / 2}", colour, name, pattern.format(y1))


def ago(when: Seconds, now: Seconds | None = None) -> str:
    """How long ago something was, in whatever zone: ``now``, ``5 min ago``, ``3 h ago``, ``12 days ago``."""
    if when != when:
        return "–"
    gone = (time.time() if now is None else now) - when
    for unit, seconds in (("days", 86_400.0), ("h", 3600.0), ("min", 60.0)):
        if gone >= (2 if unit == "days" else 1) * seconds:
            return f"{gone // seconds:.0f} {unit} ago"
    return "now"


def live(body: Html, *sheets: str) -> pn.widgets.StaticText:
    """A text of a page that can be written anew, by :func:`speechlab.markup.framed`.

    Args:
        body: What it holds first.
        sheets: Style sheets beside :data:`RUN_CSS`.
    """
    return pn.widgets.StaticText(value=framed(body), stylesheets=[RUN_CSS, *sheets], sizing_mode="stretch_width", margin=(2, 0))
