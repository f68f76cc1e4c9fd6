"""The command line's part for releases: register a run's model, export it, gate it, promote it, go back.

``gate`` ends with 0 for OK, 1 for REGRESSED, 3 for INCONCLUSIVE; 2 is for input that cannot be used, here as everywhere.
"""

from __future__ import annotations

from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from speechlab.cli_corpus import QUICKSTART, ConfigOption, out
from speechlab.cli_score import EXITS, SetOption

if TYPE_CHECKING:
    from speechlab.registry import Version

app = typer.Typer()

RunArgument = Annotated[str, typer.Argument(help="run id, path, or latest")]
ModelArgument = Annotated[str, typer.Argument(help="name of a registered model")]
UriOption = Annotated[str | None, typer.Option(help="tracking URI of the registry; none is SQLite beside the runs")]


@app.command()
def register(run: RunArgument, name: Annotated[str, typer.Option(help="of the registered model")]) -> None:
    """Make a finished run's best checkpoint the candidate of a registered model, in the run's tracker."""
    from speechlab import registry, runs, tracking, versions

    found = runs.find(run)
    made = registry.register(found, name)
    _show([made])
    if not made.rates:
        out.print(f"measure it, and register it again for its rates: speechlab evaluate {found.id}", markup=False)
    uri = tracking.uri_for(found)
    known = {alias for v in registry.versions(name, uri) for alias in v.aliases}
    elsewhere = uri != versions.beside()  # the next commands must be told
    gate = (
        f"speechlab gate --candidate models:/{name}@candidate --baseline models:/{name}@champion" + elsewhere * f" --set tracking.uri={uri}"
    )
    promote = f"speechlab promote {name}" + elsewhere * f" --uri {uri}"
    out.print(f"gate it: {gate}" if "champion" in known else f"there is no champion yet: {promote}", markup=False)


@app.command()
def promote(
    name: ModelArgument,
    version: Annotated[int | None, typer.Option(min=1, help="none is the candidate")] = None,
    uri: UriOption = None,
) -> None:
    """Make a version the champion; the former one becomes previous."""
    from speechlab import registry

    _show([registry.promote(name, version, uri)])


@app.command()
def rollback(name: ModelArgument, uri: UriOption = None) -> None:
    """Make the previous champion the champion again."""
    from speechlab import registry

    _show([registry.rollback(name, uri)])


@app.command("models")
def models_(
    name: Annotated[str | None, typer.Argument(help="name of a registered model; none lists all")] = None, uri: UriOption = None
) -> None:
    """List registered models with their aliases and word error rates."""
    from speechlab import registry

    found = registry.versions(name, uri)
    if found:
        _show(found)
    else:
        out.print("no model is registered; register one: speechlab register RUN --name NAME", markup=False)


@app.command()
def export(
    model: Annotated[str, typer.Argument(help="a run, whose best checkpoint is meant, or models:/name@alias")],
    folder: Annotated[Path, typer.Argument(help="new or empty")],
    uri: UriOption = None,
) -> None:
    """Write a model as a folder that transformers loads, with its model card as README.md."""
    from speechlab import card, runs, versions

    made = card.export_registered(model, folder, uri) if versions.is_name(model) else card.export(runs.find(model), folder)
    out.print(str(made), markup=False)


@app.command()
def gate(
    candidate: Annotated[str, typer.Option(help="a run, models:/name@candidate, weights, or a file of hypotheses")],
    baseline: Annotated[str, typer.Option(help="what is in use, likewise: models:/name@champion")],
    margin: Annotated[float, typer.Option(help="points of WER that the candidate may be worse")] = 0.5,
    config: ConfigOption = QUICKSTART,
    set_: SetOption = None,
    conditions: Annotated[str, typer.Option(help="such as clean,white-10db; the worst decides")] = "clean",
    frozen: Annotated[str | None, typer.Option(help="hash of what is to be heard, or its first 12 digits: refuse any other clips")] = None,
    to: Annotated[Path | None, typer.Option("--out", help="folder of gate.html, junit.xml and tables; none is reports/gate")] = None,
) -> None:
    """May the candidate take the baseline's place? OK (exit 0), REGRESSED (1) or INCONCLUSIVE (3), on the config's test clips."""
    from speechlab import config as configs
    from speechlab import gate as gates

    asked = [name.strip() for name in conditions.split(",") if name.strip()]
    found = gates.run(candidate, baseline, config, set_ or (), asked or ("clean",), margin=margin, frozen=frozen, out=to)
    for j in found.judged:
        out.print(f"{j.condition}: {100 * j.baseline.wer:.2f} % in use, {100 * j.candidate.wer:.2f} % the candidate", markup=False)
    out.print(f"heard: {found.heard_sha256}", markup=False)
    out.print(str((to or configs.reports() / "gate") / "gate.html"), markup=False)
    out.print(found.text, markup=False)
    raise SystemExit(EXITS[found.kind])


def _show(versions: list[Version]) -> None:
    """A table a model; narrow enough for a terminal of 80 columns, and a run's id whole, to be copied."""
    for name, rows in groupby(versions, lambda v: v.name):
        heads = ("version", "aliases", "run", "WER %, 95 % of these speakers")
        table = Table(*heads, box=SIMPLE_HEAD, padding=(0, 1, 0, 0), title=Text(name), title_justify="left")
        for column in table.columns[2:]:
            column.overflow = "fold"
        for v in rows:
            rates = "\n".join(f"{condition} {rate}" for condition, rate in v.rates.items()) or "not measured"
            table.add_row(*(Text(text) for text in (str(v.version), "\n".join(v.aliases), v.run or "–", rates)))
        out.print(table)
