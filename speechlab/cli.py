"""The command line: the same names as from Python and in the notebooks.

An error that is the user's to mend is printed without a traceback, with exit status 2; training that
failed gives 1, Ctrl-C 130. Everything heavy is imported inside the command that needs it.
"""

from __future__ import annotations

import getpass
import json
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from speechlab import cli_corpus, cli_registry, cli_reproduce, cli_runs, cli_score, cli_serve, cli_transcribe, cli_users, runs
from speechlab import config as configs
from speechlab.cli_corpus import QUICKSTART, ConfigOption, out
from speechlab.cli_score import SetOption
from speechlab.cli_users import UsersOption
from speechlab.errors import InputError
from speechlab.units import clock

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Train, evaluate, compare and explain speech recognition.",
)
app.add_typer(cli_corpus.app, name="corpus")
app.add_typer(cli_score.app)
app.add_typer(cli_reproduce.app)
app.add_typer(cli_runs.app)
app.add_typer(cli_registry.app)
app.add_typer(cli_transcribe.app)
app.add_typer(cli_users.app)
app.add_typer(cli_serve.app)
err = Console(stderr=True, highlight=False, soft_wrap=True)

RunArgument = Annotated[str, typer.Argument(help="run id, path, or latest")]


def main() -> None:
    """Run the command line and turn errors into exit statuses."""
    try:
        app()
    except InputError as e:
        err.print(str(e), markup=False, style="red")
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        err.print("stopped")
        raise SystemExit(130) from None
    except RuntimeError as e:
        if type(e).__name__ not in {"TrainingFailed", "NotebookError"}:
            raise
        err.print(str(e), markup=False, style="red")
        raise SystemExit(1) from None


@app.command()
def train(
    config: ConfigOption = QUICKSTART,
    set_: SetOption = None,
    resume: Annotated[
        str | None, typer.Option(help="go on with this run (id, path, or URI of its copy) instead of making a new one")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="validate, show plan, padding, steps and estimated time, and stop")] = False,
    queue: Annotated[bool, typer.Option("--queue", help="leave it to this machine's queue, which speechlab dashboard serves")] = False,
    progress: Annotated[bool, typer.Option(help="show a progress bar")] = True,
) -> None:
    """Train on a config; the run directory is printed at the end. Ctrl-C saves and stops, twice ends at once.

    A run that goes on keeps its config; with --set, where it runs (cluster.*, tracking.*) can change.
    """
    from speechlab import cluster, forecast, jobs, tracking

    resumed = _found(resume) if resume is not None else None
    experiment = resumed.changed(set_ or []) if resumed else configs.load(config, set_ or [])
    if dry_run:
        with out.status("") as status:
            for name, text in forecast.lines(experiment, status.update):
                out.print(f"{name:<15} {text}", markup=False)
        return
    run = resumed or _created(experiment)
    if resumed and set_:
        run.change(set_)
    if queue:
        job = jobs.Queue(run.path.parent).submit(run, getpass.getuser(), start=False)
        out.print(f"waits for {job.room}: {run.path}", markup=False)
        return
    with tracking.Follower(run), _Progress(run, progress):
        state = cluster.drive(run)
    out.print(f"{state}: {run.path}", markup=False)
    if state == "stopped":
        out.print(f"go on with: speechlab train --resume {run.id}", markup=False)
        raise SystemExit(130)


@app.command()
def report(
    config: ConfigOption = QUICKSTART,
    set_: SetOption = None,
    run: Annotated[str | None, typer.Option(help="report on this run; an unfinished one goes on first")] = None,
) -> None:
    """Train, evaluate and write one self-contained HTML file; its path is the last line."""
    from speechlab import report as reports

    began = time.monotonic()
    found = runs.find(run) if run else _created(configs.load(config, set_ or []))
    with _Meter() as meter:
        path = reports.make(found)
        _index(found.path.parent)
    for line in reports.costs(found):
        out.print(line, markup=False)
    out.print(f"in all          {clock(time.monotonic() - began)}, peak memory {meter.peak / 1e9:.1f} GB over all processes", markup=False)
    out.print(str(path), markup=False)


@app.command()
def tune(
    config: ConfigOption = QUICKSTART,
    set_: SetOption = None,
    space: Annotated[
        list[str] | None, typer.Option(help="section.key=kind(values): choice, uniform, loguniform, randint; repeatable")
    ] = None,
    trials: Annotated[int, typer.Option(min=1, max=10_000, help="how many are drawn")] = 8,
    concurrent: Annotated[int | None, typer.Option(min=1, help="trials at once")] = None,
    resume: Annotated[str | None, typer.Option(help="go on with this sweep instead of making a new one")] = None,
) -> None:
    """Search over values of a config with ASHA; the path of the best config is the last line."""
    from speechlab import sweeps
    from speechlab import tune as tuning

    if resume is not None:
        path = Path(resume)
        sweep = sweeps.Sweep(path if path.is_absolute() or path.exists() else configs.reports() / resume)
    else:
        sweep = sweeps.Sweep.create(configs.load(config, set_ or []), sweeps.space(space or []), trials)
    out.print(f"sweep of {len(sweep.runs)} trials: {sweep.path}", markup=False)
    best = tuning.drive(sweep, concurrent=concurrent)
    for row in sweep.table().sort_values("best").to_dict("records"):
        values = ", ".join(f"{d.key}={row[d.key]}" for d in sweep.dimensions)
        out.print(f"{row['trial']}  {row['state']:<12} {row['epochs']:>3} epochs  WER {100 * row['best']:6.2f} %  {values}", markup=False)
    out.print(str(best) if best else "no trial was validated", markup=False)


@app.command()
def notebook(
    path: Annotated[Path, typer.Argument(help="an .ipynb file, such as notebooks/01_corpus.ipynb")],
    parameter: Annotated[list[str] | None, typer.Option("-p", "--parameter", help="name=value of its parameters cell; repeatable")] = None,
) -> None:
    """Run a notebook headless and write one self-contained HTML file; its path is the last line."""
    from speechlab import report as reports

    if bad := [item for item in parameter or [] if "=" not in item]:
        raise InputError("A parameter cannot be read.", got=bad[0], expected="name=value", do="for example -p language=it")
    values = dict(item.split("=", 1) for item in parameter or [])
    folder = configs.reports() / "notebooks" / f"{time.strftime('%Y%m%d-%H%M%S')}-{path.stem}"
    executed = reports.execute(path, folder / path.name, {name: _plain(value) for name, value in values.items()})
    made = reports.html([executed], folder / f"{path.stem}.html", path.stem)
    _index(configs.reports())
    out.print(str(made), markup=False)


def _created(experiment: configs.Experiment) -> runs.Run:
    """A new run, and what is better known before it trains for long."""
    from speechlab import forecast

    if forecast.emulated(experiment):
        precision = f"{experiment.training.precision}, which this processor emulates: faster here with {forecast.FASTER}"
        err.print(f"precision       {precision}", markup=False)
    return runs.Run.create(experiment)


def _index(folder: Path) -> None:
    """The page of all reports, anew; the report that was asked for is there without it."""
    from speechlab import overview

    try:
        out.print(f"all reports     {overview.write(folder)}", markup=False)
    except (InputError, OSError) as e:
        err.print(f"The page of all reports could not be written: {e}", markup=False, style="red")


def _plain(text: str) -> object:
    """A parameter's value: a number or truth value where it reads as one, else the text."""
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return value if isinstance(value, bool | int | float) else text


@app.command()
def fetch(config: ConfigOption = QUICKSTART, set_: SetOption = None) -> None:
    """Fetch an experiment's corpus and weights into the cache; nothing is fetched twice."""
    from speechlab import forecast

    corpus, start = forecast.inputs(configs.load(config, set_ or []))
    clips = ", ".join(f"{split} {len(cuts)}" for split, cuts in corpus.cuts.items())
    out.print(f"corpus  {corpus.name} ({corpus.language}): {clips} clips; {len(corpus.set_aside)} set aside", markup=False)
    out.print(f"        {corpus.licence}; {corpus.attribution}", markup=False)
    out.print(f"weights {start.name} from {start.source}: {start.licence}", markup=False)


@app.command()
def dashboard(
    run: Annotated[str | None, typer.Argument(help="run id, path, or latest: the page to begin with; none is the list of runs")] = None,
    port: Annotated[int, typer.Option(min=1, max=65535)] = 5006,
    address: Annotated[str, typer.Option(help="to listen on; any but a loopback address asks for a login and TLS")] = "127.0.0.1",
    show: Annotated[bool, typer.Option(help="open a browser")] = False,
    cpus: Annotated[int | None, typer.Option(help="that the queue of trainings hands out; none is all of this machine's")] = None,
    gpus: Annotated[int | None, typer.Option(help="likewise, the first so many")] = None,
    ray: Annotated[list[str] | None, typer.Option(help="dashboard of a Ray cluster that runs can be sent to; repeatable")] = None,
    users: UsersOption = None,
    oauth: Annotated[str, typer.Option(help="log in by this service (github, google, azure, generic, …) in place of passwords")] = "",
    origin: Annotated[list[str] | None, typer.Option(help="as people open it: https://lab.example.org; repeatable")] = None,
    tls_cert: Annotated[Path | None, typer.Option(help="certificate, PEM")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="its private key, PEM")] = None,
    behind_proxy: Annotated[bool, typer.Option("--behind-proxy", help="a server in front ends TLS")] = False,
) -> None:
    """Serve all runs on a page, live: each run's board, its errors, two runs compared, the machine; and launch more."""
    from speechlab import jobs
    from speechlab.door import Terms

    found = runs.find(run) if run is not None else None
    folder = found.path.parent if found else configs.reports()
    queue = jobs.Queue(folder, None if cpus is None and gpus is None else jobs.room(cpus, gpus), ray or ())
    from speechlab import app as served

    terms = Terms(users, oauth, tuple(origin or ()), tls_cert, tls_key, behind_proxy)
    url = served.address_of(found, address, port, terms)
    out.print(f"{found.id if found else 'runs'} on {url} (Ctrl-C ends it)", markup=False)
    served.serve(folder, port=port, address=address, show=url if show else "", terms=terms, queue=queue)


@app.command()
def stop(run: RunArgument = "latest") -> None:
    """Ask a training run to save and stop after the step at hand."""
    found = runs.find(run)
    if found.state != "running":
        raise InputError(f"Run {found.id} is not training.", got=found.state, expected="running")
    found.stop()
    out.print(f"{found.id} stops after this step; go on with: speechlab train --resume {found.id}", markup=False)


@app.command()
def track(run: RunArgument = "latest") -> None:
    """Send MLflow what it does not have of a run yet."""
    from speechlab import tracking

    found = runs.find(run)
    try:
        sent = tracking.catch_up(found)
    except Exception as e:
        raise InputError(
            "MLflow cannot be reached.",
            got=f"{type(e).__name__}: {str(e)[:300]}",
            expected=tracking.uri_for(found),
            do="start it, or mend tracking.uri",
        ) from None
    out.print(f"{sent} events sent to {tracking.uri_for(found)}", markup=False)


@app.command()
def doctor() -> None:
    """Say what is installed, reachable and cached, with a remedy for each line that is not well."""
    from speechlab import doctor as checks

    worst = 0
    for check in checks.examine():
        mark = {"ok": "[green]ok  [/]", "note": "[yellow]note[/]", "bad": "[red]bad [/]"}[check.state]
        out.print(mark, end=" ")
        out.print(f"{check.what:<22} {check.found}" + (f"\n     {'':<22} do: {check.remedy}" if check.remedy else ""), markup=False)
        worst = max(worst, check.state == "bad")
    raise SystemExit(int(worst))


def _found(name: str) -> runs.Run:
    from speechlab import storage

    return storage.pull(name, configs.reports()) if runs.is_uri(name) else runs.find(name)


class _Progress:
    """A progress bar over a run's events, from a thread that reads them."""

    def __init__(self, run: runs.Run, shown: bool) -> None:
        self._run, self._shown = run, shown

    def __enter__(self) -> _Progress:
        import threading

        self._over = threading.Event()
        self._thread = threading.Thread(target=self._show, daemon=True)
        if self._shown:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        if self._shown:
            self._thread.join()

    def _show(self) -> None:
        from tqdm.std import tqdm

        tail, bar = self._run.tail(), None
        tail.read()  # what an earlier driver wrote is not news
        out.print(f"run {self._run.path}\nstarting workers …", markup=False)
        while not self._over.wait(0.3):
            for event in tail.read():
                if event["kind"] == "start":
                    if bar is not None:  # after a lost worker, perhaps with fewer of them
                        bar.close()
                    tqdm.write(f"{event['workers']} worker{'' if event['workers'] == 1 else 's'} on {event['device']}")
                    bar = tqdm(total=event["steps"], initial=event["resumed_from"] or 0, unit="step")
                elif event["kind"] == "step" and bar is not None:
                    bar.update(event["step"] - bar.n)
                    bar.set_postfix_str(f"loss {event['loss']:.3f}" if event["loss"] is not None else "")
                elif event["kind"] == "validation" and bar is not None:
                    bar.write(f"epoch {event['epoch'] + 1}: validation WER {100 * event['wer']:.2f} %")
                elif event["kind"] == "message":
                    tqdm.write(f"{event['level']}: {event['text']}")
        if bar is not None:
            bar.close()


class _Meter:
    """Peak memory of this process and all below it, looked at twice a second.

    Proportional set size where the system gives it: shared libraries count once.
    """

    peak = 0.0

    def __enter__(self) -> _Meter:
        import threading

        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        import psutil

        me = psutil.Process()
        while not self._over.wait(2.0):
            self.peak = max(self.peak, sum(_memory(p) for p in [me, *me.children(recursive=True)]))


def _memory(process: Any) -> float:
    import psutil

    try:
        try:
            return (
                float(
                    next(
                        line.split()[1]
                        for line in Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines()
                        if line.startswith("Pss:")
                    )
                )
                * 1024
            )
        except (OSError, StopIteration):
            return float(process.memory_info().rss)
    except psutil.Error:
        return 0.0
