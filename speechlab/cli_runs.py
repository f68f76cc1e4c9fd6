"""The command line's part for runs: what there is, what differs, what it cost, and what may go.

What deletes says what it frees and asks first, unless ``--yes``.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Column, Table
from rich.text import Text

from speechlab.cli_corpus import out
from speechlab.text import shown
from speechlab.units import clock

if TYPE_CHECKING:
    import pandas as pd

app = typer.Typer()

YesOption = Annotated[bool, typer.Option("--yes", help="do not ask")]
NameArgument = Annotated[str, typer.Argument(help="run id, path, or latest")]


@app.command("runs")
def runs_(
    names: Annotated[list[str] | None, typer.Argument(help="ids or names, as shell patterns, or latest; none are all")] = None,
    where: Annotated[
        list[str] | None, typer.Option(help="key=value: tag, state, family, weights, or a key of the config such as optim.lr; repeatable")
    ] = None,
    diff: Annotated[bool, typer.Option("--diff", help="show the keys of their configs that differ")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON, with the configs")] = False,
) -> None:
    """List runs: what they are, what they can do, what they cost and take; the newest last."""
    from speechlab import experiments

    rows = experiments.select(experiments.table(), names or [], where or [])
    if diff:
        different = experiments.differences(rows)
        if as_json:
            out.print(json.dumps(different.set_index("key").to_dict("index"), indent=1), markup=False)
        else:
            out.print(_sides(different))
    elif as_json:
        out.print(json.dumps([_plain(row) for row in rows.to_dict("records")], indent=1), markup=False)
    elif not len(rows):
        out.print("no run")
    else:
        out.print(_list(rows))
        for row in rows.to_dict("records"):
            if row["note"]:
                out.print(_shown(f"{row['id']}: {row['note']}"))
        others = rows[rows.wer.notna()].drop(experiments.comparable(rows).index)
        if len(others):
            out.print(_shown(f"WER of other test clips or another normaliser, and not to be compared: {', '.join(others.id)}"))


@app.command("reports")
def reports_() -> None:
    """Write the page that links and compares what was reported, reports/index.html; its path is the last line."""
    from speechlab import overview

    out.print(str(overview.write()), markup=False)


@app.command()
def tag(
    run: NameArgument,
    tags: Annotated[list[str] | None, typer.Argument(help="to add; none shows what there is")] = None,
    remove: Annotated[list[str] | None, typer.Option(help="to take off; repeatable")] = None,
) -> None:
    """Give a run tags, by which the list of runs and its page find it again."""
    from speechlab import runs
    from speechlab import tags as labels

    found = runs.find(run)
    gone = {word.casefold() for word in labels.parsed(remove or [])}
    kept = labels.parsed([*(word for word in labels.read(found.path) if word.casefold() not in gone), *(tags or [])])
    if tags or remove:
        labels.write(found, kept)
    out.print(_shown(f"{found.id}: {', '.join(kept) or 'no tag'}"))


@app.command()
def prune(
    run: NameArgument,
    keep: Annotated[int, typer.Option(min=1, help="of the newest checkpoints")] = 1,
    yes: YesOption = False,
) -> None:
    """Delete a run's old checkpoints; the newest, the best and what other runs refer to stay."""
    from speechlab import upkeep

    found = upkeep.named(run)
    rows = upkeep.aged(found, keep)
    shown = Table("checkpoint", "dev WER %", "size", "stays", box=SIMPLE_HEAD, title=_shown(found.id), title_justify="left")
    for row in rows.to_dict("records"):
        rate = "–" if row["wer"] != row["wer"] else f"{100 * row['wer']:.2f}"
        shown.add_row(row["checkpoint"], rate, upkeep.size(row["bytes"]), _shown(row["stays"] or "goes"))
    out.print(shown)
    gone = rows[rows.stays == ""]
    if not len(gone):
        out.print("nothing to delete")
        return
    if not yes:
        typer.confirm(f"Delete {len(gone)} checkpoints, {upkeep.size(int(gone.bytes.sum()))}?", abort=True)
    out.print(f"{upkeep.size(upkeep.prune(found, keep))} freed")


@app.command()
def delete(run: NameArgument, yes: YesOption = False) -> None:
    """Delete a run's directory, unless it is being trained or another run refers to it."""
    from speechlab import upkeep

    found = upkeep.named(run)
    kinds = {kind: amount for kind, amount in upkeep.disk(found.path).items() if amount}
    parts = ", ".join(f"{kind} {upkeep.size(amount)}" for kind, amount in kinds.items())
    out.print(_shown(f"{found.path}: {parts}"))
    if not yes:
        typer.confirm(f"Delete this run, {upkeep.size(sum(kinds.values()))}?", abort=True)
    out.print(f"{upkeep.size(upkeep.delete(found))} freed")


def _list(rows: pd.DataFrame) -> Table:
    """Two lines a run; narrow enough for a terminal of 80 columns."""
    from speechlab.experiments import day
    from speechlab.upkeep import size

    run, *others = ("run\nfamily, weights, disk", "state\nstarted", "WER %\n95 %", "dev %\nRTFx", "training\nclips")
    shown = Table(Column(run, overflow="fold"), *others, box=SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False, pad_edge=False)
    for row in rows.to_dict("records"):
        about = ", ".join(filter(None, (row["family"], row["weights"], size(row["disk"]), row["tags"] and f"#{row['tags']}")))
        ends = "–" if row["low"] != row["low"] else f"{100 * row['low']:.2f}–{100 * row['high']:.2f}"
        shown.add_row(
            _shown(f"{row['id']}\n{about}"),
            f"{row['state']}\n{day(row['started'])}",
            f"{_number(100 * row['wer'], 2)}\n{ends}",
            f"{_number(100 * row['dev'], 2)}\n{_number(row['rtfx'], 1)}",
            f"{'–' if row['seconds'] != row['seconds'] else clock(row['seconds'])}\n{row['clips']:,}",
        )
    return shown


def _sides(different: pd.DataFrame) -> Table:
    heads = [Column(_shown(str(name)), overflow="fold", no_wrap=name == "key") for name in different]
    shown = Table(*heads, box=SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False, pad_edge=False)
    for row in different.itertuples(index=False, name=None):
        shown.add_row(*map(_shown, row))
    return shown


def _number(value: float, digits: int) -> str:
    return "–" if value != value else f"{value:.{digits}f}"


def _shown(text: str) -> Text:
    """Text that is no markup, and whose control characters a terminal does not obey."""
    return Text(shown(text))


def _plain(row: dict[Any, Any]) -> dict[str, Any]:
    """A row as JSON holds it."""
    values = row | {"path": str(row["path"]), "started": None if row["started"] != row["started"] else row["started"].isoformat()}
    return {("config" if key == "leaves" else key): None if value != value else value for key, value in values.items()}
