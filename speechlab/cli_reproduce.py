"""The command line's part for the question whether a number comes out again, here or elsewhere.

``reproduce`` ends with 0 for bit-exact or statistically equal, 1 for different, 3 where only code and data are known to be the same; 2
is for input that cannot be used, here as everywhere.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from speechlab import runs
from speechlab.cli_corpus import out

if TYPE_CHECKING:
    from speechlab.bundle import Bundle

app = typer.Typer()
EXITS = {"bit-exact": 0, "statistically equal": 0, "different": 1, "same code and data": 3}


@app.command()
def reproduce(run_id: Annotated[str, typer.Option("--run-id", help="of a finished run: id, path, or latest")]) -> None:
    """Train a run again from its record, with the code of its commit, and say whether the same came out; the page is the last line."""
    from speechlab import reproduce as reproducing
    from speechlab import tracking

    run = runs.find(run_id)
    again, found = reproducing.reproduce(run, lambda line: out.print(line, markup=False))
    for change in found.changes:
        out.print(f"  {change.what}: {change.original} in the original, {change.again} in the rerun", markup=False)
    out.print(found.text, markup=False)
    page = reproducing.page(run, again, found)
    if noted := tracking.reproduced(run, again, found.level):
        out.print(noted, markup=False)
    out.print(str(page), markup=False)
    raise SystemExit(EXITS[found.level])


@app.command()
def bundle(
    run: Annotated[str, typer.Argument(help="a finished run: id, path, or latest")],
    to: Annotated[Path | None, typer.Option("--out", help="the file; none is RUN.zip beside the run")] = None,
) -> None:
    """Pack a run into one file for another site, without its clips; its path is the last line."""
    from speechlab import bundle as bundles

    found = runs.find(run)
    file = to or found.path.with_name(f"{found.id}.zip")
    _say(bundles.pack(found, file))
    out.print(str(file), markup=False)


@app.command()
def unbundle(
    file: Annotated[Path, typer.Argument(help="what speechlab bundle wrote")],
    to: Annotated[Path | None, typer.Option("--out", help="folder that gets the run; none is reports")] = None,
    check: Annotated[bool, typer.Option("--check", help="verify it, and write nothing")] = False,
) -> None:
    """Verify a bundle and unpack it; the run's path is the last line. To reproduce it runs its code: do so if you trust who sent it."""
    from speechlab import bundle as bundles
    from speechlab import config as configs

    if check:
        _say(bundles.check(file))
    else:
        out.print(str(bundles.unpack(file, to or configs.reports()).path), markup=False)


def _say(made: Bundle) -> None:
    from speechlab.upkeep import size

    out.print(f"run {made.run}: {len(made.files)} files, {size(made.size)}, each what was packed", markup=False)
    out.print(f"sha256 {made.sha256}", markup=False)
