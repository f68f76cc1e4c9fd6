"""The error explorer: an evaluation's errors as figures that lead to the utterances behind them, to be read and heard.

Notable: a click on a bar, a cell or a dot lists its utterances; the search lists those that hold a word; from each of them *like
this* leads on to others. Ten are on a page, and only their sound is encoded, so that ten thousand stay light. Live text is held
by StaticText, in places that are there from the start: nothing is fetched from a network. :meth:`Explorer.static` shows
the same, a section or all of them, in a file.

Not covered: several evaluations at once; playing a part of a clip.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import holoviews as hv
import pandas as pd
import panel as pn

from speechlab import conditions, strata
from speechlab.board import BOARD_CSS
from speechlab.cases import CASES_CSS, Cases
from speechlab.errors import InputError
from speechlab.evaluation import Evaluation
from speechlab.findings import SECTIONS, Finding, Findings, Pick
from speechlab.likeness import SPACES, Index
from speechlab.markup import FIELD_CSS, LEGEND, Html, framed

PAGE = 10  # utterances listed at a time
EXPLORER_CSS = BOARD_CSS + CASES_CSS
GRID = {
    "display": "grid",
    "grid-template-columns": "repeat(auto-fit, minmax(min(440px, 100%), 1fr))",
    "gap": "12px",
    "align-items": "start",
}
WIDE = {"grid-column": "1 / -1"}
GROUP_CSS = ".bk-btn-group { flex-wrap: wrap; } .bk-btn-group .bk-btn { flex-grow: 0; }"
LIST_CSS = """
:host { max-height: 1100px; overflow-y: auto; }
@media (max-width: 960px) { :host { max-height: none; overflow-y: visible; } }
"""


class Explorer(pn.viewable.Viewer):  # type: ignore[misc]  # panel has no types
    """An evaluation's errors: as a cell's last line to click through, ``.static()`` for a page.

    Args:
        evaluation: What is explored.
        cuts: The clips as they were heard: :attr:`speechlab.conditions.Heard.cuts`.
        index: From :func:`speechlab.likeness.prepare`; without it there is no search.
        columns: From :func:`speechlab.strata.table` of the clips; without it they are not listened to, and levels and SNRs are missing.
        resamples: Of the intervals.
        seed: Of the intervals.

    Raises:
        InputError: if a clip of the evaluation is missing.
    """

    def __init__(
        self,
        evaluation: Evaluation,
        cuts: Sequence[Any],
        index: Index | None = None,
        columns: pd.DataFrame | None = None,
        resamples: int = 1000,
        seed: int = 0,
        **params: Any,
    ) -> None:
        super().__init__(**params)
        self.cases, self.index = Cases(evaluation, cuts), index
        known = strata.table(self.cases.cuts, measured=False) if columns is None else columns
        in_order = known.set_index("id").loc[self.cases.ids].reset_index()
        self.findings = Findings(self.cases, in_order, resamples, seed)

    def __panel__(self) -> pn.viewable.Viewable:
        return self.panel()

    def panel(self) -> pn.Column:
        """All sections, the search, and the list of utterances that every click fills."""
        return _Desk(self).layout

    def static(self, *names: str) -> pn.Column:
        """Sections without clicks: what a headless notebook shows.

        Args:
            names: Of :data:`speechlab.findings.SECTIONS`; none are all.

        Raises:
            InputError: if there is no such section.
        """
        found = [_shown(finding) for name in names or SECTIONS for finding in self.findings.section(name)]
        return pn.Column(*found, sizing_mode="stretch_width", styles=GRID)

    @property
    def head(self) -> Html:
        """What is explored, in two lines."""
        e, scores = self.cases.evaluation, self.cases.scores
        told = f"{len(e.rows)} utterances in which nothing was said, and {scores.insertions} words heard"
        if scores.words:
            told = f"{len(e.rows)} utterances: {scores}"
            interval = scores.interval(self.findings.resamples, self.findings.seed)
            told += f"; 95 % interval {100 * interval.low:.2f} to {100 * interval.high:.2f} %, {interval.scope}"
        about = conditions.condition(e.condition).about
        return Html('<p class="headline"><b>{}</b> · {}</p><p>{}</p>').format(e.label, about, told)


class _Desk:
    """One display of an explorer: what is listed, and what clicks do."""

    def __init__(self, explorer: Explorer) -> None:
        self.cases, self.index = explorer.cases, explorer.index
        self._ids: list[str] = []
        self._notes: dict[str, str] = {}
        self._heading, self._at = "", 0
        self.streams: list[Any] = []
        self.search = pn.widgets.TextInput(
            placeholder="a word, several, or said > heard",
            disabled=self.index is None,
            sizing_mode="stretch_width",
            margin=(2, 4),
            stylesheets=[FIELD_CSS],
        )
        self.search.param.watch(lambda event: self.find(event.new), "value")
        bar = pn.FlexBox(self.search, _button("hardest first", lambda _: self.hardest()), flex_wrap="nowrap", sizing_mode="stretch_width")
        self.sections = {title: self._section(explorer.findings.section(name)) for name, title in SECTIONS.items()}
        # not tabs: hidden ones keep their height, and those made at a click fetch style sheets
        self.choice = pn.widgets.RadioButtonGroup(
            options=list(self.sections), variant="outline", sizing_mode="stretch_width", margin=(2, 4), stylesheets=[GROUP_CSS]
        )
        self.choice.param.watch(lambda event: self.open(event.new), "value")
        self.title = _text(Html(""))
        self.back, self.on = _button("◀", lambda _: self.turn(-PAGE)), _button("▶", lambda _: self.turn(PAGE))
        self.slots = [_Slot(self) for _ in range(PAGE)]
        listed = [self.title, pn.Row(self.back, self.on), _text(LEGEND), *(slot.layout for slot in self.slots)]
        body = pn.Column(
            pn.Column(self.choice, *self.sections.values(), sizing_mode="stretch_width"),
            pn.Column(*listed, sizing_mode="stretch_width", stylesheets=[LIST_CSS]),
            sizing_mode="stretch_width",
            styles=GRID,
        )
        self.layout = pn.Column(_text(explorer.head), bar, body, sizing_mode="stretch_width", name="explorer")
        self.open(self.choice.value)
        self.hardest()

    def _section(self, findings: list[Finding]) -> pn.Column:
        shown = []
        for finding in findings:
            for layer, pick in finding.picks:
                stream = hv.streams.Selection1D(source=layer)
                stream.add_subscriber(partial(self._picked, pick))
                self.streams.append(stream)
            shown.append(_shown(finding))
            if finding.leads:
                title, ids = finding.leads
                shown.append(_button(f"list: {title}", partial(self._asked, title, ids)))
        return pn.Column(*shown, sizing_mode="stretch_width")

    def _picked(self, pick: Pick, index: list[int]) -> None:
        if index:  # a click beside all of them chooses nothing
            self.show(*pick(index[0]))

    def _asked(self, title: str, ids: Sequence[str], _: Any) -> None:
        self.show(title, ids)

    def open(self, title: str) -> None:
        """Show a section instead of the one that is shown."""
        for other, section in self.sections.items():
            section.visible = other == title

    def hardest(self) -> None:
        """List the utterances with errors, most first."""
        self.show("Most errors first", self.cases.hardest(len(self.cases.ids)))

    def find(self, text: str) -> None:
        """List what the search finds; what it cannot look for is said in its place."""
        assert self.index is not None
        try:
            found = self.index.search(text)
        except InputError as e:
            self.show(str(e), [])
            return
        self.show(f"“{text}”", list(found.id), dict(zip(found.id, found.found, strict=True)))

    def like(self, id: str, by: str) -> None:
        """List an utterance and those most like it."""
        assert self.index is not None
        found = self.index.like(id, by)
        notes = {id: "this one", **{other: f"likeness {cosine:.2f}" for other, cosine in zip(found.id, found.likeness, strict=True)}}
        self.show(f"Like {id}, by {by}", [id, *found.id], notes)

    def show(self, title: str, ids: Sequence[str], notes: dict[str, str] | None = None) -> None:
        """List utterances, the first page of them."""
        self._heading, self._ids, self._notes, self._at = title, list(ids), notes or {}, 0
        self.turn(0)

    def turn(self, by: int) -> None:
        """Go some utterances on."""
        self._at += by
        page = self._ids[self._at : self._at + PAGE]
        for i, slot in enumerate(self.slots):
            id = page[i] if i < len(page) else ""
            slot.show(id, self._notes.get(id, ""))
        self.back.disabled, self.on.disabled = self._at == 0, self._at + PAGE >= len(self._ids)
        count = f"{self._at + 1} to {self._at + len(page)} of {len(self._ids)}" if page else "no utterance"
        self.title.value = framed(Html("<h3>{}</h3><p>{}</p>").format(self._heading, count))


class _Slot:
    """A place in the list, there from the start; utterances come and go."""

    def __init__(self, desk: _Desk) -> None:
        self._desk, self.id = desk, ""
        self.view = _text(Html(""))
        spaces = [by for by in SPACES if desk.index is not None and by in desk.index.spaces]
        self.buttons = [_button(f"like this by {by}", partial(self._like, by)) for by in spaces]
        self.layout = pn.Column(self.view, pn.FlexBox(*self.buttons), sizing_mode="stretch_width", visible=False)

    def show(self, id: str, note: str) -> None:
        """Put an utterance here; an empty id leaves the place empty."""
        self.id = id
        self.view.value = framed(self._desk.cases.card(id, note)) if id else ""
        self.layout.visible = bool(id)

    def _like(self, by: str, _: Any) -> None:
        self._desk.like(self.id, by)


def _shown(finding: Finding) -> pn.viewable.Viewable:
    if isinstance(finding.shown, Html):
        text = _text(finding.shown)
        text.styles = WIDE
        return text
    return pn.pane.HoloViews(finding.shown, linked_axes=False, sizing_mode="stretch_width", styles=WIDE if finding.wide else {})


def _text(body: Html) -> pn.widgets.StaticText:
    return pn.widgets.StaticText(value=framed(body), stylesheets=[EXPLORER_CSS], sizing_mode="stretch_width", margin=(2, 0))


def _button(name: str, do: Callable[[Any], None]) -> pn.widgets.Button:
    button = pn.widgets.Button(label=name, variant="outline", margin=(2, 4))
    button.on_click(do)
    return button
