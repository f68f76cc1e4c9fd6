"""The command line's part for serving models."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from speechlab.cli_corpus import out

app = typer.Typer()


@app.command()
def serve(
    config: Annotated[Path, typer.Argument(help="a YAML file such as configs/serving/canary.yaml: routes, models, weights")],
) -> None:
    """Serve models over HTTP by Ray Serve, split by weights, until Ctrl-C; where weights change in the file, they change here."""
    from speechlab import routes, serving

    def started(url: str) -> None:
        for route in routes.load(config).routes:
            names = ", ".join(f"{offer.name} ({offer.weight:g})" for offer in route.models)
            out.print(f"POST {url}{route.path}  {names}", markup=False, soft_wrap=True)
        out.print(f"GET  {url}/health, {url}/stats; Ctrl-C ends it", markup=False, soft_wrap=True)

    serving.run(config, started)
