"""The page of all reports: what stands side by side and what does not, what is read again, and that texts stay texts."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from urllib.parse import unquote

import pytest
from browser import EVIL_TEXT, on_a_telephone
from bs4 import BeautifulSoup
from evaluated import PERFECT
from reported import filled, pageof, rows, run
from typer.testing import CliRunner

from speechlab import cli, evaluation, ledger, overview
from speechlab import report as reports
from speechlab.comparison import compare, judge


@pytest.fixture
def folder(tmp_path) -> Path:
    return filled(tmp_path)


def test_runs_stand_by_their_test_sets_with_rates_links_and_a_forest_plot(folder):
    page = pageof(folder)
    assert [h.text for h in page.find_all("h2")] == [
        f"Test set {'7' * 12}",
        f"Test set {'1' * 12}",
        "Runs without a word error rate",
        "Other pages",
    ]
    assert "5 runs: 4 finished, 1 broken" in page.text and "are not to be compared" in page.text
    other, second, first, *rest = rows(page, "runs")
    assert (other[0].split()[0], second[0].split()[0], first[0].split()[0]) == ("other", "second", "first")
    assert sorted(row[0].split()[0] for row in rest) == ["broken", "plain"]
    assert "finished 2023-11-14 22:13 UTC" in re.sub(r"UTC.*", "UTC", second[1]) and "training 40.0 s" not in second[1]
    assert re.match(r"30\.00 \[.*\] → 0\.00 \[0\.00, 0\.00\] -30\.00 \[.*\] points, (OK|INCONCLUSIVE)$", second[3])
    assert second[4].endswith("points, OK") and "white-10db" in second[4]
    plots = page.select("table.runs tbody svg")
    assert len(plots) == 3 and all(p["role"] == "img" for p in plots)
    assert plots[1]["aria-label"].startswith("second: WER in %, before training 30.00 [") and len(plots[1].find_all("circle")) == 2
    links = [unquote(a["href"]) for a in page.find_all("a")]
    assert all((folder / link).is_file() for link in links) and "second/report.html" in links
    assert page.select_one('a[href="gate/gate.html"]').text == "Gate: OK & more (gate)"
    assert "notebooks/20261101-01_corpus/01_corpus.html" in links
    broken = next(row[0] for row in rest if row[0].startswith("broken"))
    assert "YAML" in broken and "report" in broken, "it says why, and its report is still linked"
    assert not page.find_all(["script", "iframe", "form"]) and "script-src 'none'" in str(page.find("meta", {"http-equiv": True}))


def test_a_report_begins_with_its_rates_and_their_difference(folder):
    lead = BeautifulSoup(overview.short(ledger.read(folder / "second")), "html.parser")
    clean, noisy = rows(lead, "short")
    assert clean[0] == "clean" and noisy[0] == "white-10db"
    assert clean[2] == rows(pageof(folder), "runs")[1][3], "as on the page of all reports"
    assert re.match(r"\d+\.\d\d \[.*\] → 0\.00 \[0\.00, 0\.00\] -\S+ \[.*\] points, OK$", noisy[2])
    assert [len(svg.find_all("circle")) for svg in lead.select("tbody svg")] == [2, 2]
    assert overview.short(ledger.read(folder / "plain")) == "" == overview.short(ledger.read(folder / "broken"))


def test_the_paired_difference_is_that_of_compare(folder):
    found = rows(pageof(folder), "pairs")
    assert [(row[0], row[1], row[2]) for row in found] == [("first", "second", "clean"), ("first", "second", "white-10db")], (
        "and other is left out"
    )
    a, b = (
        next(e for e in evaluation.load(folder / n / "evaluations") if e.name == "finetuned--clean--silence") for n in ("first", "second")
    )
    expected = compare(a.scores("english"), b.scores("english"))
    verdict = judge(expected)
    assert found[0][3] == f"{expected.points:+.2f} [{verdict.interval.low:+.2f}, {verdict.interval.high:+.2f}]"
    assert found[0][4] == verdict.kind


def test_of_many_runs_each_is_set_against_the_best(tmp_path):
    for i in range(6):
        run(tmp_path, f"run-{i}", PERFECT if i == 3 else ["please press one", *["x"] * i, *PERFECT[1 + i :]][:4], started=float(i))
    found = rows(pageof(tmp_path), "pairs")
    clean = [(a, b) for a, b, heard, *_ in found if heard == "clean"]
    assert len(clean) == 5 and all("run-3" in pair for pair in clean), "not fifteen"
    assert all(a < b for a, b in clean), "the older first"
    assert "flattered" in pageof(tmp_path).select_one("table.pairs caption").text


def test_a_run_whose_evaluations_are_damaged_hides_no_other(folder):
    (folder / "second" / "evaluations" / "finetuned--white-10db--silence.parquet").write_bytes(b"PAR1")
    page = pageof(folder)
    damaged = next(row for row in rows(page, "runs") if row[0].startswith("second"))
    assert "cannot be read" in damaged[0] and damaged[1].startswith("broken") and len(rows(page, "runs")) == 5


def test_an_empty_folder_says_what_to_do(tmp_path):
    assert "There is no run yet. Make one: make report" in pageof(tmp_path / "none").text


def test_no_text_becomes_markup_and_no_link_leads_out(tmp_path):
    name = "<img src=x onerror=window.pwned=1>"
    found = run(tmp_path, name, [EVIL_TEXT] * 4)
    config = (found.path / "config.yaml").read_text()
    (found.path / "config.yaml").write_text(config.replace("Which?", json.dumps(EVIL_TEXT)))
    (tmp_path / "gate").mkdir()
    (tmp_path / "gate" / "gate.html").write_text("<title>" + EVIL_TEXT.replace("<", "&lt;") + "</title>")
    outside = tmp_path.parent / f"{tmp_path.name}-outside.html"
    outside.write_text("<title>secret</title>")
    (tmp_path / "notebooks" / "n").mkdir(parents=True)
    (tmp_path / "notebooks" / "n" / "n.html").symlink_to(outside)
    os.symlink(tmp_path.parent, tmp_path / "up")
    page = pageof(tmp_path)
    assert not page.find_all(["script", "img"]) and EVIL_TEXT in page.text and name in page.text
    assert not any("n.html" in a["href"] or a["href"].startswith("up") for a in page.find_all("a"))
    assert all((tmp_path / unquote(a["href"])).is_file() for a in page.find_all("a"))


@pytest.mark.slow
def test_it_opens_from_the_disk_and_its_links_lead_to_the_reports(folder):
    (folder / "second" / "report.html").write_text("<title>of it</title><h1>the report</h1>")
    for tab in on_a_telephone(overview.write(folder)):
        tab.get_by_role("link", name="report", exact=True).nth(1).click()
        tab.get_by_role("heading", name="the report").wait_for()


# -- the command line ---------------------------------------------------------------------------------


def test_the_command_writes_it_and_so_does_a_report(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(cli.configs, "reports", lambda: folder)
    said = CliRunner().invoke(cli.app, ["reports"])
    assert said.exit_code == 0 and said.output.splitlines()[-1] == str(folder / "index.html")
    (folder / "index.html").unlink()
    monkeypatch.setattr(reports, "make", lambda run: run.path / "report.html")
    said = CliRunner().invoke(cli.app, ["report", "--run", str(folder / "second")])
    assert said.output.splitlines()[-1] == str(folder / "second" / "report.html"), "whatever reads the last line finds the report"
    assert (folder / "index.html").is_file()

    def full(_):
        raise OSError("no space left")

    monkeypatch.setattr(overview, "write", full)
    said = CliRunner().invoke(cli.app, ["report", "--run", str(folder / "second")])
    assert said.exit_code == 0 and said.output.splitlines()[-1] == str(folder / "second" / "report.html") and "no space left" in said.output
