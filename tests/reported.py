"""A folder of runs with their reports, and what the page of all of them says."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from bs4 import BeautifulSoup
from evaluated import AFTER, BEFORE, PERFECT, made
from sidelong import trained

from speechlab import evaluation, overview
from speechlab.runs import Run

NOISY = {"condition": "white-10db", "heard_sha256": "2" * 64}


def run(root: Path, name: str, hypotheses: list[str] | None = None, started: float = 0.0, **more: object) -> Run:
    """A finished run, evaluated before and after, clean and in noise, with a report."""
    found = trained(root, "made")
    lines = (found.path / "events.jsonl").read_text().splitlines()
    first = json.loads(lines[0]) | {"time": 1.7e9 + started}
    (found.path / "events.jsonl").write_text("\n".join([json.dumps(first), *lines[1:]]) + "\n")
    after = replace(AFTER, context="silence", **more) if hypotheses is None else made("finetuned", "silence", hypotheses, **more)
    for e in (
        replace(BEFORE, **more),
        after,
        made("pretrained", "silence", ["a"] * 4, **NOISY),
        made("finetuned", "silence", PERFECT, **NOISY),
    ):
        evaluation.save(found.path / "evaluations", e)
    (found.path / "report.html").write_text("<title>of it</title>")
    return Run(found.path.rename(root / name))


def filled(tmp_path: Path) -> Path:
    """Two runs of one test set, one of another, a broken one, one that was not evaluated, pages of gates and notebooks."""
    run(tmp_path, "first", started=1.0)
    run(tmp_path, "second", PERFECT, started=2.0)
    run(tmp_path, "other", started=3.0, heard_sha256="7" * 64)
    (run(tmp_path, "broken").path / "config.yaml").write_text("name: [")
    trained(tmp_path, "plain").path.rename(tmp_path / "plain")
    (tmp_path / "gate").mkdir()
    (tmp_path / "gate" / "gate.html").write_text("<title>Gate: OK &amp; more</title>")
    (tmp_path / "notebooks" / "20261101-01_corpus").mkdir(parents=True)
    (tmp_path / "notebooks" / "20261101-01_corpus" / "01_corpus.html").write_text("<title>x</title>")
    return tmp_path


def pageof(root: Path) -> BeautifulSoup:
    return BeautifulSoup(overview.write(root).read_text("utf-8"), "html.parser")


def rows(page: BeautifulSoup, table: str) -> list[list[str]]:
    """The texts of a table's cells, a list for each row of each table of the kind."""
    return [[" ".join(td.get_text(" ").split()) for td in tr.find_all("td")] for tr in page.select(f"table.{table} tbody tr")]
