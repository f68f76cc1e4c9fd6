"""The served app: all runs, one run live, its errors, two runs compared, the machine; each page has an address of its own.

Notable: what a page shows is said by its address alone (``/run?run=ID``), so every view can be linked, reloaded and gone back to; choices
are plain forms. Names of runs come from addresses and are looked up in the folder of runs, never joined to a path. Who comes in is
:mod:`speechlab.door`'s.

Not covered: pages of others (they can be added to :meth:`App.pages`).
"""

from __future__ import annotations

import asyncio
import logging
import threading
import webbrowser
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import panel as pn

from speechlab import board, cases, contrast, door, evaluation, likeness, login, playground, strata
from speechlab.catalogue import Catalogue, Entry
from speechlab.contrast import Contrast, Side
from speechlab.door import HERE, Terms
from speechlab.errors import InputError
from speechlab.explorer import Explorer
from speechlab.helm import Helm
from speechlab.jobs import Queue
from speechlab.launch import Launch
from speechlab.machine import Machine
from speechlab.markup import Html
from speechlab.playground import Playground
from speechlab.runs import Run
from speechlab.shelf import Shelf, live

KEPT = 2  # explorers, each some MB
NAV_CSS = """
nav { max-width: 1240px; margin: 0 auto; padding: .6rem 1rem 0; box-sizing: border-box; font: 15px/1.4 system-ui, sans-serif;
  display: flex; flex-wrap: wrap; gap: .2rem .3rem; align-items: baseline; }
nav b { margin-right: .8rem; } nav a { color: inherit; text-decoration: none; padding: .25rem .6rem; border-radius: .4rem; }
nav a:hover { background: #8882; } nav a[aria-current] { background: #0072b230; font-weight: 600; }
nav :focus-visible { outline: 2px solid; outline-offset: 1px; }
"""
FORM_CSS = """
form { display: flex; flex-wrap: wrap; gap: .5em 1em; align-items: end; margin: .5em 0; }
form label { display: grid; grid-template-columns: minmax(0, auto); gap: .15em; font-size: .9em; max-width: 100%; }
select, form button { font: inherit; color: inherit; background: Field; color: FieldText; border: 1px solid #8888; border-radius: .3em;
  padding: .35em .5em; max-width: 100%; }
form button { cursor: pointer; background: #0072b2; color: white; border-color: #0072b2; padding: .4em 1.1em; }
:host { color-scheme: light dark; }
"""
KEEPS = ("/launch", "/playground")  # hold what no address says
TITLES = {"/": "Runs", **{f"/{t.lower()}": t for t in ("Run", "Launch", "Errors", "Compare", "Playground", "System")}}

log = logging.getLogger(__name__)


class App:
    """The pages over a folder of runs.

    Args:
        root: The folder; none is ``reports``.
        queue: Of the same folder; none is all of this machine.

    Attributes:
        catalogue: Of the folder, which all pages share.
        queue: Likewise.
    """

    def __init__(self, root: str | Path | None = None, queue: Queue | None = None) -> None:
        self.catalogue = Catalogue(root)
        self.queue = queue or Queue(self.catalogue.root)
        self._explorers: OrderedDict[tuple[Any, ...], Explorer] = OrderedDict()
        self._opening = threading.Lock()

    def pages(self) -> dict[str, Callable[[], pn.Template]]:
        """Address to what makes the page, anew for every visitor."""
        # Panel calls functions and methods alone
        return {address: _Page(address, getattr(self, f"_{title.lower()}")).show for address, title in TITLES.items()}

    # -- pages --------------------------------------------------------------------------------------

    def _runs(self, _: Mapping[str, str]) -> pn.viewable.Viewable:
        shelf = Shelf(self.catalogue)
        pn.state.location.sync(shelf, {"words": "filter"})  # which can be linked, and is there when the page comes back
        return pn.panel(shelf)

    def _run(self, asked: Mapping[str, str]) -> pn.viewable.Viewable:
        if not asked.get("run"):
            return self._choose("run", "Which run?", lambda _: True)
        return pn.panel(Helm(self.catalogue, self.queue, self.catalogue.run(asked["run"])))

    def _launch(self, asked: Mapping[str, str]) -> pn.viewable.Viewable:
        run = self.catalogue.run(asked["run"]) if asked.get("run") else None
        return pn.panel(Launch(self.catalogue, self.queue, run, asked.get("config", "")))

    def _errors(self, asked: Mapping[str, str]) -> pn.viewable.Viewable:
        if not asked.get("run"):
            return self._choose("errors", "Whose errors?", _evaluated, "speechlab evaluate RUN")
        run = self.catalogue.run(asked["run"])
        names = sorted(path.stem for path in (run.path / "evaluations").glob("*--*--*.json"))
        if not names:
            raise InputError(f"Run {run.id} has not been evaluated.", do=f"speechlab evaluate {run.id}")
        name = asked.get("evaluation") or evaluation.kept(str(run.path)).stem
        fields = _select("run", "Run", self._ids(_evaluated), run.id)
        fields += _select("evaluation", "Evaluation: system, condition, context", {n: ", ".join(n.split("--")) for n in names}, name)
        head = Html('<h1>Errors</h1><form action="errors">{}<button>Open</button></form>').format(fields)
        if name in names:
            place = _later(lambda: self._explored(run, name), "Reading the clips …")
        else:  # as when the form names another run, which was heard under other conditions
            lost = InputError(f"Run {run.id} holds no such evaluation.", got=name[:200], expected=", ".join(names), do="choose one above")
            place = _text(_problem("", lost))
        return pn.Column(_text(head), place, sizing_mode="stretch_width")

    def _explored(self, run: Run, name: str) -> Explorer:
        """The explorer of an evaluation, of which the latest are kept."""
        table = run.path / "evaluations" / f"{name}.parquet"
        key = (run.path, name, table.stat().st_mtime_ns if table.exists() else 0)
        with self._opening:
            if key not in self._explorers:
                found = cases.opened(run.path, name)
                # without the system: to ask it how the clips sound takes minutes, which the notebook's readers have
                index = likeness.prepare(found.evaluation, found.cuts, found.folder, progress=False)
                settings, seed = found.experiment.evaluation, found.experiment.seed
                known = strata.table(found.cuts)
                self._explorers[key] = Explorer(found.evaluation, found.cuts, index, known, settings.resamples, seed)
            self._explorers.move_to_end(key)
            while len(self._explorers) > KEPT:
                self._explorers.popitem(last=False)
            return self._explorers[key]

    def _compare(self, asked: Mapping[str, str]) -> pn.viewable.Viewable:
        choices = self._sides()
        if not choices:
            return _text(Html("<h1>Compare</h1>{}").format(_none("No run has been evaluated.", "speechlab evaluate RUN")))
        a, b = asked.get("a", ""), asked.get("b", "")
        fields = _select("a", "a: in use", choices, a) + _select("b", "b: new", choices, b)
        about = Html("<p>Two runs, or one before and after its training.</p>") if not (a and b) else ""
        head = _text(Html('<h1>Compare</h1>{}<form action="compare">{}<button>Compare</button></form>').format(about, fields))
        if not (a and b):
            return pn.Column(head, sizing_mode="stretch_width")
        try:
            sides = self._side(a), self._side(b)
        except InputError as e:
            place = _text(_problem("", e))
        else:
            place = _later(lambda: self._contrast(*sides), "Resampling …")
        return pn.Column(head, place, sizing_mode="stretch_width")

    def _side(self, name: str) -> tuple[Run, Side]:
        """``RUN`` or ``RUN:system``; a colon may be in a run's name too."""
        id, colon, system = name.rpartition(":")
        if not colon or name in self.catalogue.names():
            id, system = name, ""
        run = self.catalogue.run(id)
        return run, contrast.side(run, system)

    def _contrast(self, a: tuple[Run, Side], b: tuple[Run, Side]) -> Contrast:
        settings = b[0].config.evaluation
        return Contrast(a[1], b[1], settings.normaliser, resamples=settings.resamples, seed=b[0].config.seed)

    def _playground(self, _: Mapping[str, str]) -> pn.viewable.Viewable:
        """With the weights that the set-up fetches, and every run that has a checkpoint."""
        trained = [e.id for e in self.catalogue.look() if e.state != "broken" and next((e.path / "checkpoints").glob("step-*"), None)]
        bench = Playground([*playground.USUAL, *trained], keep=self.catalogue.root / "playground")
        return pn.Column(_text(Html("<h1>Playground</h1>")), bench, sizing_mode="stretch_width")

    def _system(self, _: Mapping[str, str]) -> pn.viewable.Viewable:
        entries = self.catalogue.look()
        return pn.panel(Machine(self.catalogue.root, {e.tracker for e in entries}, {e.head for e in entries}))

    # -- choices ------------------------------------------------------------------------------------

    def _ids(self, wanted: Callable[[Entry], bool]) -> dict[str, str]:
        return {e.id: f"{e.id} ({e.state})" for e in self.catalogue.look() if wanted(e)}

    def _sides(self) -> dict[str, str]:
        found = {}
        for entry in self.catalogue.look():
            if _evaluated(entry):
                for i, system in enumerate(contrast.systems(Run(entry.path))):
                    name = f"{entry.id}:{system}" if i else entry.id
                    found[name] = f"{entry.id}, {'before training' if system == 'pretrained' else system}"
        return found

    def _choose(self, page: str, question: str, wanted: Callable[[Entry], bool], do: str = "make report") -> pn.viewable.Viewable:
        known = self._ids(wanted)
        if not known:
            return _text(Html("<h1>{}</h1>{}").format(question, _none("There is none yet.", do)))
        form = Html('<h1>{}</h1><form action="{}">{}<button>Open</button></form>').format(question, page, _select("run", "Run", known, ""))
        return _text(form)


class _Page:
    """What makes a page: an error of the visitor's becomes a page that says so, one of ours too, and is logged."""

    def __init__(self, address: str, make: Callable[[Mapping[str, str]], pn.viewable.Viewable]) -> None:
        self.address, self._make = address, make

    def show(self) -> pn.Template:
        """The page that the visitor's address asks for."""
        asked = {name: values[0].decode("utf-8", "replace") for name, values in pn.state.session_args.items() if values}
        try:
            shown = self._make(asked)
        except Exception as e:
            shown = _text(_problem(TITLES[self.address], e))
        return board.page(shown, nav_html(self.address, login.badge_html(login.visitor())), keeps=self.address in KEEPS)


def nav_html(here: str, who: Html | str = "") -> Html:
    """The bar of pages; the one that is shown is marked.

    Args:
        here: Its address.
        who: What is said of who looks.
    """
    links = Html("").join(
        Html('<a href="{}"{}>{}</a>').format(
            "./" if address == "/" else address[1:], Html(' aria-current="page"') if address == here else "", t
        )
        for address, t in TITLES.items()
    )
    return Html('<style>{}</style><nav aria-label="pages"><b>SpeechLab</b>{}{}</nav>').format(Html(NAV_CSS), links, who)


def _later(make: Callable[[], pn.viewable.Viewer], waiting: str) -> pn.Column:
    """A place that is filled once its page is up, by work in a thread that leaves the server free for others."""
    text = _text(Html('<p role="status">{}</p>').format(waiting))
    place = pn.Column(text, sizing_mode="stretch_width")

    async def fill() -> None:
        try:
            place.objects = [await asyncio.to_thread(lambda: pn.panel(make()))]
        except Exception as e:
            place.objects = [_text(_problem("", e))]

    pn.state.onload(fill)
    return place


def _problem(title: str, error: Exception) -> Html:
    """What went wrong, for the visitor; an error that is not theirs to mend is logged with its trace."""
    if not isinstance(error, InputError):
        log.error("a page could not be made", exc_info=error)
    told = str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}"
    first, *rest = told.splitlines() or [""]
    body = Html("<br>").join(rest)
    heading = Html("<h1>{}</h1>").format(title) if title else ""
    page = '{}<p role="alert"><b>{}</b></p><p class="faint">{}</p><p><a href="./">all runs</a></p>'
    return Html(page).format(heading, first, body)


def _none(what: str, do: str) -> Html:
    return Html("<p><b>{}</b></p><p>Make one: <code>{}</code></p>").format(what, do)


def _select(name: str, label: str, options: Mapping[str, str], chosen: str) -> Html:
    choices = Html("").join(
        Html('<option value="{}"{}>{}</option>').format(value, Html(" selected") if value == chosen else "", text)
        for value, text in options.items()
    )
    return Html('<label>{}<select name="{}">{}</select></label>').format(label, name, choices)


def _evaluated(entry: Entry) -> bool:
    """Whether there is something to be shown of it; a link that leads out is not looked into."""
    own = entry.path.resolve().parent == entry.path.parent.resolve() and (entry.path / "config.yaml").is_file()
    return own and next((entry.path / "evaluations").glob("*--*--*.json"), None) is not None


def _text(body: Html) -> pn.widgets.StaticText:
    return live(body, FORM_CSS)


# -- served ------------------------------------------------------------------------------------------


def address_of(run: Run | None, address: str = "127.0.0.1", port: int = 5006, terms: Terms = HERE) -> str:
    """Where the app is, or a run in it; raises as :func:`speechlab.door.origins_of` does."""
    return f"{door.origins_of(address, port, terms)[0]}/" + (f"run?run={quote(run.id, safe='')}" if run else "")


def serve(
    root: str | Path | None = None,
    port: int = 5006,
    address: str = "127.0.0.1",
    show: str = "",
    threaded: bool = False,
    queue: Queue | None = None,
    terms: Terms = HERE,
) -> Any:
    """Serve the app.

    Args:
        root: The folder of runs; none is ``reports``.
        port: TCP port.
        address: To listen on; without a login and TLS, a loopback address.
        show: Of a page that a browser opens with; none opens nothing.
        threaded: Return at once and serve from a thread, whose ``stop()`` ends it; else block.
        queue: As for :class:`App`.
        terms: On which people come in.

    Raises:
        InputError: as for :func:`speechlab.door.guarded`.
    """
    guarded = door.guarded(address, port, terms)
    if show:
        threading.Timer(1.0, webbrowser.open, [show]).start()
    titles = {page: f"{title} · SpeechLab" for page, title in TITLES.items()}
    app, up = App(root, queue), threading.Event()
    app.queue.keep(lambda: not up.is_set() or server.is_alive())
    server = pn.serve(app.pages(), show=False, threaded=threaded, verbose=False, title=titles, **guarded)
    up.set()
    return server
