"""The command line's part for corpora: look at every clip, ingest large ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from speechlab import config as configs

if TYPE_CHECKING:
    from speechlab.corpora.check import Splitter

app = typer.Typer(no_args_is_help=True, help="Look at corpora: check every clip, ingest large ones.")
out = Console(highlight=False, soft_wrap=True)

ConfigOption = Annotated[Path, typer.Option("--config", help="YAML file of the experiment")]
QUICKSTART = Path("configs/quickstart.yaml")
RootArgument = Annotated[str | None, typer.Argument(help="folder or table of your own speech; none takes --config's corpus")]
ModelOption = Annotated[str, typer.Option(help="Whisper weights that tell where the words are, for check.long=split")]
CorpusSetOption = Annotated[list[str] | None, typer.Option("--set", help="field=value of the corpus, such as check.min_snr=15; repeatable")]


@app.command("check")
def check(
    root: RootArgument = None,
    name: Annotated[str | None, typer.Option(help="a corpus by name, such as commonvoice")] = None,
    language: Annotated[str | None, typer.Option(help="BCP-47")] = None,
    config: ConfigOption = QUICKSTART,
    set_: CorpusSetOption = None,
    to: Annotated[Path | None, typer.Option("--out", help="file for the findings; none is reports/corpora/NAME.jsonl")] = None,
    model: ModelOption = "base",
) -> None:
    """Look at every clip: accepted, repaired or set aside; the list of findings is a file, its path the last line."""
    from speechlab import corpora
    from speechlab.corpora import build
    from speechlab.corpora.check import counts

    settings = configs.corpus_for(config, set_ or [], root=root, name=name, language=language)
    entries, licence, attribution = corpora.entries(settings)
    path = to or configs.reports() / "corpora" / f"{build.title(settings)}.jsonl"
    splitter = _splitter(settings, model)
    rows = [finding.row() for _, finding in build.examine(entries, settings, splitter=splitter() if splitter else None)]
    build.write_findings(path, rows)
    total = counts(rows)
    _show_counts(total)
    if licence:
        out.print(f"{licence}; {attribution}", markup=False)
    out.print(str(path), markup=False)
    raise SystemExit(int(not total["verdict"]["accepted"] + total["verdict"]["repaired"]))


@app.command("ingest")
def ingest(
    to: Annotated[Path, typer.Option("--out", help="folder for the shards; on a cluster, one that all nodes see")],
    root: RootArgument = None,
    name: Annotated[str | None, typer.Option(help="a corpus by name, such as commonvoice")] = None,
    language: Annotated[str | None, typer.Option(help="BCP-47")] = None,
    config: ConfigOption = QUICKSTART,
    set_: CorpusSetOption = None,
    address: Annotated[str | None, typer.Option(help="a running Ray cluster; none uses this machine's cores")] = None,
    model: ModelOption = "base",
) -> None:
    """Decode, check and hash a large corpus into shards; called again, it goes on where it stopped."""
    from speechlab import corpora
    from speechlab import ingest as shards

    settings = configs.corpus_for(config, set_ or [], root=root, name=name, language=language)
    entries, licence, attribution = corpora.entries(settings)
    known = {"licence": licence, "attribution": attribution}
    total = shards.ingest(settings, entries, to, address=address, splitter=_splitter(settings, model), **known)  # type: ignore[arg-type]
    _show_counts(total)
    out.print(f"train on it with corpus: {{name: shards, root: {to}}}", markup=False)


def _splitter(settings: configs.CorpusConfig, model: str) -> Callable[[], Splitter] | None:
    from speechlab import segments

    return segments.splitter(model, settings.language) if settings.check.long == "split" else None


def _show_counts(total: dict[str, dict[str, int]]) -> None:
    from speechlab.corpora.check import listed

    rows = sum(total["verdict"].values())
    shown = Table("", "clips", "share")
    for kind, name, count in listed(total):
        share = f"{100 * count / max(rows, 1):.1f} %"
        shown.add_row(
            Text(name if kind in {"verdict", "remark"} else f"  {name}"), str(count), share, style="bold" if kind == "verdict" else ""
        )
    out.print(shown)
