"""A run's page: its board, and above it what can be done about the run: stop it, go on with it.

Notable: a run that is started or resumed is left to the queue, like one that is launched. A deed is asked about first, and whether the
visitor may do it is asked when it is done. A run that is gone says so.

Not covered: tags and deletion, which are :mod:`speechlab.shelf`'s.
"""

from __future__ import annotations

import asyncio
from typing import Any
from urllib.parse import urlencode

import panel as pn

from speechlab import contrast, door, pulse
from speechlab.board import Board
from speechlab.catalogue import Catalogue
from speechlab.errors import InputError
from speechlab.jobs import Queue
from speechlab.markup import Html, framed
from speechlab.runs import Run
from speechlab.scheduling import Job
from speechlab.shelf import live

LABELS = {"stop": "Stop", "resume": "Resume", "start": "Start", "cancel": "Take out"}
DEEDS = {  # what can be done about a run, and what is asked first
    "stop": "Stop after the step at hand? A checkpoint is kept, and the run can be resumed.",
    "resume": "Go on from the last checkpoint, on this machine, as soon as there is room?",
    "start": "Train it on this machine, as soon as there is room?",
    "cancel": "Take it out of the queue?",
}


class Helm(pn.viewable.Viewer):  # type: ignore[misc]  # panel has no types
    """A run's board, with what can be done about the run above it, for one visitor.

    Args:
        catalogue: Of the run's folder.
        queue: Of the same folder.
        run: The run.
    """

    def __init__(self, catalogue: Catalogue, queue: Queue, run: Run, **params: Any) -> None:
        super().__init__(**params)
        self._catalogue, self._queue, self._run = catalogue, queue, run
        self._asked, self._deed, self._refused, self._may = False, "", "", door.may_change()
        self._links, self._said = live(Html("")), live(Html(""))
        self._ask, self._yes, self._no = (_button("Stop"), _button("Yes"), _button("No"))
        self._ask.on_click(lambda _: self._confirm(True))
        self._no.on_click(lambda _: self._confirm(False))
        self._yes.on_click(self._act)
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

    def _sign(self) -> tuple[str | None, bool, Job | None]:
        """What decides on what is said and can be done: the run's state, its stop file, its job."""
        state = next((e.state for e in self._catalogue.look() if e.id == self._run.id), None)
        return state, self._run.stop_file.exists(), self._queue.job(self._run.id)

    def tick(self) -> None:
        """See where the run stands, and what can be done."""
        state, stopping, job = self._sign()
        if state is None:
            gone = Html("<p><b>Run {} is gone:</b> its directory was deleted or moved.</p>").format(self._run.id)
            self._bar.visible = self._board.visible = False
            self._links.value = framed(Html('{}<p><a href="./">all runs</a></p>').format(gone))
            return
        # a run of another machine, whose lock is not seen, is not resumed here while its events come
        deed = {"running": "stop", "new": "start", "finished": "", "broken": ""}.get(state, "resume")
        told, busy = Html(""), False
        if deed == "stop" and stopping:
            told, busy = Html("It stops after the step at hand, with a checkpoint."), True
        elif deed in ("resume", "start") and job is not None:
            if job.state == "waiting":
                deed, told = "cancel", Html('Waits in the <a href="launch">queue</a> for {}.').format(job.room)
            elif self._queue.begins(job) or (job.state == "running" and state == "new"):  # the catalogue may be a second behind
                told, busy = Html("Starting …"), True
            elif job.state == "elsewhere" and state == "new":
                deed, told = "", Html("It was sent to {}.").format(job.ray or job.host)
            elif said := self._queue.complaint(job):
                told = Html("Its driver ended: {}").format(said)
        if deed != self._deed:
            self._deed, self._refused = deed, ""
            self._confirm(False)
        if not self._asked:
            denied = "" if self._may or not deed else door.OPERATORS
            self._tell(self._refused or told or denied)
        self._ask.visible = bool(deed) and not self._asked
        self._ask.disabled = not self._may or busy
        self._ask.label = LABELS.get(deed, "")

    def _confirm(self, asked: bool) -> None:
        self._asked = asked
        self._yes.visible = self._no.visible = asked
        self._ask.visible = bool(self._deed) and not asked
        self._tell(DEEDS[self._deed] if asked else "")

    async def _act(self, _: Any) -> None:
        deed = self._deed
        self._confirm(False)
        try:
            if not door.may_change():
                raise InputError(door.OPERATORS)
            if deed in ("start", "resume"):
                await asyncio.to_thread(self._queue.submit, self._run, door.who())
            elif deed == "cancel":
                await asyncio.to_thread(self._queue.cancel, self._run.id)
            elif deed:
                self._run.stop()
            self._refused = ""
        except (InputError, OSError) as e:
            self._refused = str(e)
        self.tick()

    def _tell(self, words: str) -> None:
        self._said.value = framed(Html('<span role="status">{}</span>').format(words))


def _button(label: str) -> pn.widgets.Button:
    return pn.widgets.Button(label=label, variant="outline", margin=(2, 4), visible=label == "Stop")
