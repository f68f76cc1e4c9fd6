"""A run's page: its board, and above it what can be done about the run: stop it, go on with it.

Notable: a deed is asked about first, and whether the visitor may do it is asked when it is done. A run that is gone says so.

Not covered: tags and deletion, which are :mod:`speechlab.shelf`'s.
"""

from __future__ import annotations

import subprocess
from typing import Any
from urllib.parse import urlencode

import panel as pn

from speechlab import cluster, contrast, detached, door, pulse
from speechlab.board import Board
from speechlab.catalogue import Catalogue
from speechlab.errors import InputError
from speechlab.markup import Html, framed
from speechlab.runs import Run
from speechlab.shelf import live

STOPPED = 130  # exit status of a driver that was asked to stop
DEEDS = {  # what can be done about a run, and what is asked first
    "stop": "Stop after the step at hand? A checkpoint is kept, and the run can be resumed.",
    "resume": "Go on from the last checkpoint, on this machine?",
    "start": "Train it on this machine?",
}


class Helm(pn.viewable.Viewer):  # type: ignore[misc]  # panel has no types
    """A run's board, with what can be done about the run above it, for one visitor.

    Args:
        catalogue: Of the run's folder.
        run: The run.
    """

    def __init__(self, catalogue: Catalogue, run: Run, **params: Any) -> None:
        super().__init__(**params)
        self._catalogue, self._run = catalogue, run
        self._launched: subprocess.Popen[bytes] | None = None
        self._asked, self._deed, self._waiting, self._may = False, "", "", door.may_change()
        self._links, self._said = live(Html("")), live(Html(""))
        self._ask, self._yes, self._no = (_button("Stop"), _button("Yes"), _button("No"))
        self._ask.on_click(lambda _: self._confirm(True))
        self._no.on_click(lambda _: self._confirm(False))
        self._yes.on_click(lambda _: self._act())
        self._bar = pn.FlexBox(self._ask, self._said, self._yes, self._no, align_items="center", sizing_mode="stretch_width")
        self._board = pn.Column(Board(run).panel(on=True), sizing_mode="stretch_width")
        known = contrast.systems(run)
        links = [Html('<a href="./">all runs</a>'), Html('<a href="launch?{}">launch one like it</a>').format(urlencode({"run": run.id}))]
        if known:
            links.append(Html('<a href="errors?{}">its errors</a>').format(urlencode({"run": run.id})))
        if len(known) > 1 and "pretrained" in known:
            both = urlencode({"a": f"{run.id}:pretrained", "b": run.id})
            links.append(Html('<a href="compare?{}">before and after training</a>').format(both))
        self._links.value = framed(Html("<p>{}</p>").format(Html(" · ").join(links)))
        self.tick()

    def __panel__(self) -> pn.viewable.Viewable:
        pulse.follow(self.tick, self._sign)
        return pn.Column(self._links, self._bar, self._board, sizing_mode="stretch_width")

    def _sign(self) -> tuple[str | None, bool, int | None]:
        """What decides on what is said and can be done: the run's state, its stop file, its driver."""
        state = next((e.state for e in self._catalogue.look() if e.id == self._run.id), None)
        return state, self._run.stop_file.exists(), None if self._launched is None else self._launched.poll()

    def tick(self) -> None:
        """See where the run stands, and what can be done."""
        state, stopping, status = self._sign()
        if state is None:
            gone = Html("<p><b>Run {} is gone:</b> its directory was deleted or moved.</p>").format(self._run.id)
            self._bar.visible = self._board.visible = False
            self._links.value = framed(Html('{}<p><a href="./">all runs</a></p>').format(gone))
            return
        # a run of another machine, whose lock is not seen, is not resumed here while its events come
        deed = {"running": "stop", "new": "start", "finished": "", "broken": ""}.get(state, "resume")
        if deed != self._deed:
            self._deed, self._waiting = deed, "" if self._may or not deed else door.OPERATORS
            self._confirm(False)
        if deed == "stop" and stopping:
            self._waiting = "It stops after the step at hand, with a checkpoint."
        elif self._launched is not None and deed in ("resume", "start"):
            said = f"Its driver ended: {detached.said(self._run.path)[-500:]}"
            self._waiting = "Starting …" if status is None else "" if status in (0, STOPPED) else said
        if not self._asked:
            self._tell(self._waiting)
        self._ask.visible = bool(deed) and not self._asked
        self._ask.disabled = not self._may or self._waiting.startswith(("It stops", "Starting"))
        self._ask.label = deed.capitalize()

    def _confirm(self, asked: bool) -> None:
        self._asked = asked
        self._yes.visible = self._no.visible = asked
        self._ask.visible = bool(self._deed) and not asked
        self._tell(DEEDS[self._deed] if asked else "")

    def _act(self) -> None:
        deed = self._deed
        self._confirm(False)
        try:
            if not door.may_change():
                self._waiting = door.OPERATORS
            elif deed == "stop":
                self._run.stop()
            elif deed:
                self._launched = cluster.launch(self._run)
        except (InputError, OSError) as e:
            self._waiting = str(e)
        self.tick()

    def _tell(self, words: str) -> None:
        self._said.value = framed(Html('<span role="status">{}</span>').format(words))


def _button(label: str) -> pn.widgets.Button:
    return pn.widgets.Button(label=label, variant="outline", margin=(2, 4), visible=label == "Stop")
