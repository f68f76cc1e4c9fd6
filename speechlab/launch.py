"""The page that a training is launched from: a config, changed in a form, what it will be, and the queue that it joins.

Notable: nothing is chosen by a path: configs are those of the project or of a run in the folder, Ray clusters those that the server was
given. The command that does the same from a shell stands under the form. Who may not change anything sees the form and the queue.

Not covered: configs that are not in ``configs/``; the order of the queue by hand.
"""

from __future__ import annotations

import asyncio
import shlex
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

import panel as pn

from speechlab import config as configs
from speechlab import door, fields, forecast, rayjobs
from speechlab.catalogue import Catalogue
from speechlab.errors import InputError
from speechlab.form import FORM_CSS, Form
from speechlab.jobs import Queue
from speechlab.markup import Html, definitions_html, framed, status
from speechlab.runs import Run
from speechlab.scheduling import Job, Room, order, wish
from speechlab.shelf import ago, live

PERIOD = 1000  # ms between looks at the queue
ASKED = 5  # looks between two questions to a Ray cluster
ENDED = 8  # jobs that are over and still shown
HERE = "this machine"
EMPTY = "It is empty. What is launched stands here, starts when there is room for it, and goes on without this page."
LAUNCH_CSS = """
pre { white-space: pre-wrap; overflow-wrap: anywhere; margin: .2em 0; padding: .5em .7em; background: #8882; border-radius: .3em; }
h2 { border-top: 1px solid #8884; padding-top: .6em; }
"""
LOOKS: dict[str, Any] = {"stylesheets": [FORM_CSS], "margin": (2, 12, 2, 0)}


def _need_role() -> None:
    if not door.may_change():
        raise InputError("You may look, and change nothing.", expected="a role that may launch", do="ask whoever runs this server")


class Launch(pn.viewable.Viewer):  # type: ignore[misc]  # panel has no types
    """The page.

    Args:
        catalogue: Of the folder of runs.
        queue: Of the same folder.
        run: Whose config is begun with.
        config: Name of a file in ``configs`` to begin with; empty is the quickstart.

    Raises:
        InputError: if there is no such config.
    """

    def __init__(self, catalogue: Catalogue, queue: Queue, run: Run | None = None, config: str = "", **params: Any) -> None:
        super().__init__(**params)
        self._catalogue, self._queue = catalogue, queue
        self._paths = {path.name: path for path in sorted((configs.home() / "configs").glob("*.yaml"))}
        if run is not None:
            self._paths = {f"run {run.id}": run.path / "config.yaml", **self._paths}
        usual = "quickstart.yaml" if "quickstart.yaml" in self._paths else next(iter(self._paths), "")
        first = config or (f"run {run.id}" if run else usual)
        self._path = self._found(first)
        self.config = pn.widgets.Select(label="Config", options=list(self._paths), value=first, **LOOKS)
        self.place = pn.widgets.Select(label="Launch on", options=[HERE, *queue.clusters], visible=bool(queue.clusters), **LOOKS)
        self.cpus = pn.widgets.TextInput(label=f"CPUs, of {queue.room.cpus}", width=110, **LOOKS)
        self.gpus = pn.widgets.TextInput(label=f"GPUs, of {queue.room.gpus}", width=110, visible=queue.room.gpus > 0, **LOOKS)
        self.dry = pn.widgets.Button(label="Dry run", variant="outline", margin=(2, 8, 2, 0))
        self.cancel = pn.widgets.Button(label="Cancel the dry run", variant="outline", margin=(2, 8, 2, 0), visible=False)
        self.go = pn.widgets.Button(label="Launch", color="primary", margin=(2, 8, 2, 0))
        self.said, self.told, self._command = (live(Html(""), LAUNCH_CSS) for _ in range(3))
        self._form, self._place = self._made(), pn.Column(sizing_mode="stretch_width", margin=0)
        self._place.objects = [self._form.layout]
        self._apart: forecast.Apart | None = None
        self._suggested: Room | None = None  # what it takes, as nobody has said otherwise
        self.config.param.watch(lambda _: self._chosen(), "value")
        self.place.param.watch(lambda _: self._rooms(), "value")
        self.dry.on_click(self._dried)
        self.cancel.on_click(lambda _: self._end())
        self.go.on_click(self._launched)
        self._follow()

    def __panel__(self) -> pn.viewable.Viewable:
        """The layout."""
        row = {"sizing_mode": "stretch_width", "align_items": "end", "margin": (4, 0)}
        waiting = _Waiting(self._catalogue, self._queue)
        pn.state.on_session_destroyed(lambda _: self._end())
        return pn.Column(
            live(Html("<h1>Launch</h1>")),
            self.config,
            self._place,
            self._command,
            pn.FlexBox(self.place, self.cpus, self.gpus, self.dry, self.cancel, self.go, **row),
            self.said,
            self.told,
            waiting.layout,
            sizing_mode="stretch_width",
            name="launch",
        )

    # -- a config --------------------------------------------------------------------------------------

    def _found(self, name: str) -> Path:
        """A config by its name: what a page sends back is not taken for one of those it was given."""
        if name not in self._paths:
            raise InputError(
                "There is no such config.", got=str(name)[:200] or "none", expected=", ".join(self._paths) or "a file in configs"
            )
        return self._paths[name]

    def _made(self) -> Form:
        form = Form(self._path)
        form.param.watch(lambda *_: self._follow(), ["experiment", "overrides", "problems"])
        return form

    def _chosen(self) -> None:
        try:
            self._path = self._found(self.config.value)
            self._form = self._made()
        except InputError as e:
            self._place.objects = []
            self.dry.disabled = self.go.disabled = True
            self._tell(str(e))
            return
        self._place.objects = [self._form.layout]
        self._tell("")
        self._follow()

    def _follow(self) -> None:
        """After a change: the command that does the same, what is wrong, what it takes."""
        form, path = self._form, self._path
        shown = path.relative_to(configs.home()) if path.is_relative_to(configs.home()) else path
        command = f"speechlab train --config {shlex.quote(str(shown))} {fields.listed(form.overrides)}".strip()
        wrong = Html("")
        if form.problems:
            names = ", ".join(name or why for name, why in form.problems.items())
            count = f"{len(form.problems)} value{'s' * (len(form.problems) != 1)} cannot be used"
            wrong = Html('<p role="alert">⚠ {}: {}</p>').format(count, names)
        self._command.value = framed(Html('<p class="faint">The same from a shell:</p><pre>{}</pre>{}').format(command, wrong))
        if form.experiment is not None:
            self._rooms()
        self.dry.disabled = self.go.disabled = form.experiment is None

    def _rooms(self) -> None:
        """What it takes, until somebody says otherwise."""
        here = self.place.value == HERE
        self.cpus.visible, self.gpus.visible = here, here and self._queue.room.gpus > 0
        asked = wish(self._form.experiment.cluster, self._queue.room) if self._form.experiment else None
        before = self._suggested
        if asked and (before is None or (self.cpus.value, self.gpus.value) == (str(before.cpus), str(before.gpus))):
            self.cpus.value, self.gpus.value, self._suggested = str(asked.cpus), str(asked.gpus), asked

    def _asked(self) -> Room:
        try:
            return Room(int(self.cpus.value), int(self.gpus.value))
        except ValueError:
            got = f"{self.cpus.value[:50]} CPUs, {self.gpus.value[:50]} GPUs"
            raise InputError("These are no numbers of CPUs and GPUs.", got=got, expected=f"at most {self._queue.room}") from None

    # -- a dry run -------------------------------------------------------------------------------------

    async def _dried(self, _: Any) -> None:
        form = self._form
        if form.experiment is None or self._apart is not None or self.dry.disabled:
            return
        try:
            _need_role()
        except InputError as e:
            self._tell(str(e))
            return
        self._apart = apart = forecast.Apart(self._path, form.overrides)
        self.dry.visible, self.cancel.visible = False, True
        known: dict[str, str] = {}
        self._tell("Dry run: starting …")
        try:
            async for name, told in apart.lines():
                if name == forecast.DOING:
                    self._tell(f"Dry run: {told} …")
                else:
                    known[name] = told
                    self.told.value = framed(Html("<h2>Dry run</h2>{}").format(definitions_html(known)))
            self._tell("The dry run was cancelled." if apart.ended else "")
        except InputError as e:
            self._tell(str(e))
        finally:
            self._apart = None
            self.dry.visible, self.cancel.visible = True, False

    def _end(self) -> None:
        if self._apart is not None:
            self._apart.end()

    # -- a launch --------------------------------------------------------------------------------------

    async def _launched(self, _: Any) -> None:
        experiment = self._form.experiment
        if experiment is None or self.go.disabled:
            return
        self.go.disabled = True
        try:
            _need_role()
            by, place = door.who(), self.place.value
            self._tell("Launching …")
            path, items = self._path, list(self._form.overrides)
            asked = self._asked() if place == HERE else Room(0)
            run = await asyncio.to_thread(self._submitted, path, items, by, place, asked)
            link = Html('<p role="status">Launched: <a href="run?run={}">{}</a></p>').format(quote(run.id, safe=""), run.id)
            self.said.value = framed(link)
        except (InputError, OSError) as e:
            self._tell(str(e))
        finally:
            self.go.disabled = self._form.experiment is None

    def _submitted(self, path: Path, items: list[str], by: str, place: str, asked: Room) -> Run:
        """The run, made and left to the queue or a cluster; one that neither takes is taken back."""
        if place == HERE:
            self._queue.need_room(asked)
        elif place not in self._queue.clusters:
            raise InputError("There is no such Ray cluster.", got=place[:200], expected=", ".join((HERE, *self._queue.clusters)))
        run = Run.create(configs.load(path, items if place == HERE else [*items, rayjobs.OVERRIDE]), self._catalogue.root)
        try:
            if place == HERE:
                self._queue.submit(run, by, asked)
            else:
                self._queue.note(run, by, place, rayjobs.submit(run, place, by))
        except InputError:
            shutil.rmtree(run.path, ignore_errors=True)
            raise
        return run

    def _tell(self, words: str) -> None:
        self.said.value = status(words)


class _Waiting:
    """The queue: what runs, what waits, what is over."""

    def __init__(self, catalogue: Catalogue, queue: Queue) -> None:
        self._catalogue, self._queue = catalogue, queue
        self._rows: dict[str, _Row] = {}
        self._shown: list[str] = []
        self._states: dict[str, str] = {}  # of jobs that were sent to Ray clusters, by run
        self._looks = 0
        self._head, self._list = live(Html(""), LAUNCH_CSS), pn.Column(sizing_mode="stretch_width", margin=0)
        self.layout = pn.Column(self._head, self._list, sizing_mode="stretch_width", margin=0, name="queue")
        self.tick(self._queue.jobs())
        pn.state.add_periodic_callback(self._look, period=PERIOD)

    async def _look(self) -> None:
        known = await asyncio.to_thread(self._queue.jobs)
        # those that the server was given, and no other that a job file names
        sent = [j for j in known if j.ray in self._queue.clusters and self._states.get(j.id) not in rayjobs.OVER]
        if sent and self._looks % ASKED == 0:
            for job in sent[-ENDED:]:
                with suppress(InputError):  # a cluster that is away for a while says nothing new
                    self._states[job.id] = await asyncio.to_thread(rayjobs.state, job.ray, job.submission)
        self._looks += 1
        self.tick(known)

    def tick(self, known: Sequence[Job]) -> None:
        """Write what has changed."""
        running = [j for j in known if j.state == "running" or (j.ray and self._states.get(j.id, "PENDING") not in rayjobs.OVER)]
        waiting = order(known)
        over = [j for j in reversed(known) if j not in running and j not in waiting and (j.ray or j.state != "elsewhere")][:ENDED]
        states = {e.id: e for e in self._catalogue.look()}
        shown: list[str] = []
        for job in [*running, *waiting, *over]:
            row = self._rows.setdefault(job.id, _Row(self._queue, job.id))
            place = waiting.index(job) + 1 if job in waiting else 0
            row.show(job, states.get(job.id), place, self._states.get(job.id, ""), job in running)
            shown.append(job.id)
        if shown != self._shown:
            self._shown = shown
            self._list.objects = [self._rows[id].layout for id in shown]
        free = self._queue.room
        for job in running:
            free = free - job.room
        counts = f"{len(running)} running, {len(waiting)} waiting; {free} free of {self._queue.room}"
        head = framed(Html("<h2>Queue</h2><p>{}</p>").format(counts if known else EMPTY))
        if self._head.value != head:
            self._head.value = head


class _Row:
    """A job's place in the page."""

    def __init__(self, queue: Queue, id: str) -> None:
        self._queue, self._id = queue, id
        self._job: Job | None = None
        self._text, self._said = live(Html("")), ""
        self._button = pn.widgets.Button(label="Cancel", variant="outline", visible=False, margin=(4, 0))
        self._button.on_click(self._cancelled)
        self.layout = pn.Row(self._text, self._button, sizing_mode="stretch_width", margin=0, name=f"job {id}")

    def show(self, job: Job, entry: Any, place: int, state: str, running: bool) -> None:
        """Write the job, if something of it has changed."""
        self._job = job
        if place:
            told = f"waiting, {_nth(place)} in line: needs {job.room}"
            told += "" if self._queue.room.holds(job.room) else f", and there is only {self._queue.room}"
        elif job.ray:
            told = f"{(state or 'sent').lower()} on {job.ray}"
        else:
            told = entry.state if entry and job.state == "ended" and entry.state != "new" else job.state
            told += f" on {job.room}" if running else ""
        if running and entry and entry.steps == entry.steps:
            told += f", step {entry.step:,.0f} of {entry.steps:,.0f}"
        badge = "finished" if told.startswith("finished") else "failed" if told.startswith(("failed", "interrupted")) else ""
        said = self._queue.complaint(job)
        body = Html('<span class="badge {}">{}</span><a href="run?run={}">{}</a> <span class="faint">by {}, submitted {}</span>{}').format(
            badge, told, quote(job.id, safe=""), job.id, job.by, ago(job.at), Html("<pre>{}</pre>").format(said) if said else ""
        )
        alert = Html('<p role="alert">{}</p>').format(self._said) if self._said else ""
        if self._text.value != (page := framed(Html("<p>{}</p>{}").format(body, alert))):
            self._text.value = page
        self._button.label = "Stop" if running else "Cancel"
        self._button.visible = running or bool(place)

    async def _cancelled(self, _: Any) -> None:
        job = self._job
        try:
            _need_role()
            if job is not None and job.ray in self._queue.clusters:
                await asyncio.to_thread(rayjobs.stop, job.ray, job.submission)
            else:
                await asyncio.to_thread(self._queue.cancel, self._id)
            self._said = "" if job is None or job.state == "waiting" else "It stops after the step at hand, with a checkpoint."
        except (InputError, OSError) as e:
            self._said = " ".join(str(e).split())


def _nth(number: int) -> str:
    ending = "th" if number % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{ending}"
