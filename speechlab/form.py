"""A form for a config: every field with its help, its bounds and, where it is wrong, what is wrong with it.

Notable: the fields that people change first are open, the rest is folded and only made when it is opened. What was entered is checked as
the shell would check it, all of it at once. A field that nobody has touched follows: a model of another family brings its own default of
the context. Whatever is entered is text, and stays text on the page.

Not covered: comments and order of the file; configs are not written back.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import panel as pn
import param

from speechlab import config as configs
from speechlab import fields
from speechlab.errors import InputError
from speechlab.fields import Field, Group
from speechlab.markup import FIELD_CSS, Html, framed

FIRST = (
    "name", "question", "corpus.name", "corpus.language", "corpus.root", "corpus.limit", "model.family", "model.weights", "training.epochs",
    "training.batch_clips", "training.batch_seconds", "optim.lr", "optim.warmup_steps", "cluster.workers",
)  # fmt: skip
LONGEST = 4000  # characters of a value
CELLS = {"display": "grid", "grid-template-columns": "repeat(auto-fill, minmax(min(230px, 100%), 1fr))", "gap": "2px 18px"}
FORM_CSS = (
    FIELD_CSS
    + """
:host { color-scheme: light dark; } label { color: inherit; overflow-wrap: anywhere; }
.bk-input-group > label { font-weight: 600; } .bk-input::placeholder { color: inherit; opacity: .7; }
"""
)
HELP_CSS = """
.speechlab { font: 12.5px/1.35 system-ui, sans-serif; overflow-wrap: anywhere; } .speechlab p { margin: 0 0 .25em; opacity: .8; }
.speechlab p[role=alert] { opacity: 1; border-left: 3px solid #d55e00; padding-left: .5em; }
h3 { font-size: 1.05rem; margin: .9em 0 .1em; }
"""
CARD_CSS = """
:host(.card) { box-shadow: none; outline: 1px solid #8884; background: transparent; }
.card-header { background: transparent !important; color: inherit !important; } .card-title { font-size: 1em; }
.card-header:focus-visible { outline: 2px solid; }
"""


class Form(pn.viewable.Viewer):  # type: ignore[misc]  # panel has no types
    """A config's values, to be changed.

    Args:
        path: Of the config.

    Attributes:
        experiment: As entered; None while something of it cannot be used.
        overrides: What differs from the file, as for :func:`speechlab.config.load`.
        problems: What is wrong, by dotted name; empty names are of all of it.

    Raises:
        InputError: if the config itself cannot be used.
    """

    experiment = param.Parameter(default=None)
    overrides = param.List(default=[])
    problems = param.Dict(default={})

    def __init__(self, path: Path, **params: Any) -> None:
        super().__init__(**params)
        self._path = path
        experiment = configs.load(path)
        self._base = fields.values(experiment)
        self._now = dict(self._base)  # with what follows
        self._changes: dict[str, Any] = {}
        self._refused: dict[str, str] = {}  # not even looked at
        self._widgets: dict[str, Any] = {}
        self._notes: dict[str, pn.widgets.StaticText] = {}
        self._parts: dict[str, pn.Column] = {}  # of sections that can be left out
        self._cards: dict[str, pn.Card] = {}
        self._writing = False
        known = fields.known()
        first = pn.Column(*(self._cell(known[name]) for name in FIRST), styles=CELLS, sizing_mode="stretch_width", margin=0)
        tops = dict.fromkeys(group.name.partition(".")[0] for group in fields.groups() if group.name)
        self.layout = pn.Column(first, *(self._card(name) for name in ("", *tops)), sizing_mode="stretch_width", margin=0)
        self.experiment = experiment

    def __panel__(self) -> pn.viewable.Viewable:
        return self.layout

    # -- what is entered ------------------------------------------------------------------------------

    def enter(self, name: str, entered: Any) -> None:
        """Take what was entered in a field, or of a section that can be left out whether it is there.

        Args:
            name: Dotted.
            entered: As for :meth:`speechlab.fields.Field.read`.
        """
        field = fields.known().get(name)
        without = {key: value for key, value in self._changes.items() if key != name}
        self._refused.pop(name, None)
        if isinstance(entered, str) and len(entered) > LONGEST:
            self._refused[name] = f"got {len(entered):,} characters, expected at most {LONGEST:,}"
            self._changes = without
        else:
            value = field.read(entered) if field else bool(entered)
            self._changes = without if value == self._would(without)[name] else {**without, name: value}
        self._check()

    def _would(self, changes: dict[str, Any]) -> dict[str, Any]:
        """All values under some changes."""
        try:
            return fields.values(configs.load(self._path, fields.overrides(self._base, changes)))
        except InputError:
            return {**self._base, **changes}

    def _check(self) -> None:
        overrides, problems, experiment = fields.overrides(self._base, self._changes), dict(self._refused), None
        try:
            experiment = configs.load(self._path, overrides)
            self._now = fields.values(experiment)
        except InputError as e:
            problems |= e.problems or {"": str(e)}
        self._write()
        found: dict[str, str] = {}
        for name, why in problems.items():
            found.setdefault(fields.nearest(name), why)
        for name, note in self._notes.items():
            note.value = self._note(name, found.get(name, ""))
        for top, card in self._cards.items():
            card.title = self._title(top)
            if any(self._within(name, top) for name in found):
                card.collapsed = False
        experiment = None if problems else experiment
        self.param.update(experiment=experiment, overrides=overrides, problems=found)

    def _write(self) -> None:
        """Show what follows in the fields that nobody has touched."""
        self._writing = True
        try:
            for name, widget in self._widgets.items():
                if name not in self._changes and name not in self._refused:
                    self._put(name, widget)
            for name, part in self._parts.items():
                part.visible = self._value(name)
        finally:
            self._writing = False

    def _value(self, name: str) -> Any:
        return self._changes.get(name, self._now[name])

    def _put(self, name: str, widget: Any) -> None:
        field = fields.known().get(name)
        shown = field.shown(self._value(name)) if field else bool(self._value(name))
        if field is None or field.kind == "switch":
            shown = [name] if shown else []
        if widget.value != shown:
            widget.value = shown

    # -- how it looks ---------------------------------------------------------------------------------

    def _card(self, top: str) -> pn.Card:
        card = pn.Card(title=self._title(top), collapsed=True, stylesheets=[CARD_CSS], sizing_mode="stretch_width", margin=(4, 0))
        card.param.watch(lambda _: self._fill(top), "collapsed")
        self._cards[top] = card
        return card

    def _title(self, top: str) -> str:
        count = sum(self._within(name, top) for name in self._changes if name not in FIRST)
        return (top or "seed") + (f" · {count} changed" if count else "")

    def _within(self, name: str, top: str) -> bool:
        """Whether a field or section is shown in a card, and not among the first fields."""
        return name not in FIRST and (name.partition(".")[0] == top if top else bool(name) and "." not in name and name in fields.known())

    def _fill(self, top: str) -> None:
        """Make a section's widgets, once."""
        card = self._cards[top]
        if card.collapsed or len(card):
            return
        for group in fields.groups():
            if group.name.partition(".")[0] == top:
                card.extend(self._section(group))
        self._check()

    def _section(self, group: Group) -> list[Any]:
        cells = [self._cell(field) for field in group.fields if field.name not in FIRST]
        grid = pn.Column(*cells, styles=CELLS, sizing_mode="stretch_width", margin=(0, 8))
        if not group.optional:
            return [self._noted(group.name, 8), *([grid] if cells else [])]
        # within another: what is laid out as a grid shows itself whether it is visible or not
        self._parts[group.name] = part = pn.Column(grid, sizing_mode="stretch_width", margin=0, visible=self._value(group.name))
        switch = pn.widgets.CheckBoxGroup(options=[group.name], margin=(8, 8, 0, 8), stylesheets=[FORM_CSS])
        return [self._watched(group.name, switch), self._noted(group.name, 8), part]

    def _cell(self, field: Field) -> pn.Column:
        looks: dict[str, Any] = {"stylesheets": [FORM_CSS], "sizing_mode": "stretch_width", "margin": 0}
        if field.kind == "switch":
            widget = pn.widgets.CheckBoxGroup(options=[field.name], **looks)
        elif field.kind == "choices":
            widget = pn.widgets.CheckBoxGroup(options=list(field.choices), inline=True, **looks)
        elif field.kind == "choice":
            widget = pn.widgets.Select(label=field.name, options=list(field.choices), **looks)
        else:
            widget = pn.widgets.TextInput(label=field.name, placeholder="none" if field.optional else "", max_length=LONGEST, **looks)
        both = [self._watched(field.name, widget), self._noted(field.name)]
        return pn.Column(*(reversed(both) if field.kind == "choices" else both), sizing_mode="stretch_width", margin=(4, 0))

    def _watched(self, name: str, widget: Any) -> Any:
        self._widgets[name] = widget
        self._writing = True
        self._put(name, widget)
        self._writing = False

        def entered(event: Any) -> None:
            if not self._writing:
                boxed = isinstance(widget, pn.widgets.CheckBoxGroup) and widget.options == [name]
                self.enter(name, bool(event.new) if boxed else event.new)

        widget.param.watch(entered, "value")
        return widget

    def _noted(self, name: str, aside: int = 0) -> pn.widgets.StaticText:
        looks: dict[str, Any] = {"stylesheets": [HELP_CSS], "sizing_mode": "stretch_width", "margin": (0, aside, 2, aside)}
        text = pn.widgets.StaticText(value=self._note(name, ""), **looks)
        self._notes[name] = text
        return text

    def _note(self, name: str, why: str) -> str:
        """Help, bounds, and what is wrong."""
        field = fields.known().get(name)
        if field:
            help = "; ".join(filter(None, (field.help, field.bounds)))
            heading = Html("<b>{}</b><br>").format(name) if field.kind == "choices" else ""
        else:
            group = next(group for group in fields.groups() if group.name == name)
            help, heading = group.help, "" if group.optional or "." not in name else Html("<b>{}</b><br>").format(name)
        said = Html('<p role="alert">⚠ {}</p>').format(why) if why else ""
        return framed(Html("{}<p>{}{}</p>").format(said, heading, help) if help or heading else Html("{}").format(said))
