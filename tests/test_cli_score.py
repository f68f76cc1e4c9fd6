"""The commands that score and compare, as a shell calls them."""

from __future__ import annotations

import json

import pandas as pd
import pytest
from counts import fuzz, two_systems
from typer.testing import CliRunner

from speechlab import cli, cli_score, utterances


def run(*arguments) -> tuple[int, str]:
    result = CliRunner().invoke(cli.app, [str(a) for a in arguments])
    said = result.output + (str(result.exception) if result.exception and not isinstance(result.exception, SystemExit) else "")
    return result.exit_code, said


@pytest.fixture(autouse=True)
def wide(monkeypatch):
    """A terminal of 160 columns: in narrower ones tables wrap."""
    monkeypatch.setattr(cli_score.out, "_width", 160)


@pytest.fixture
def files(tmp_path):
    """References, a system, a better one, and one hardly worse."""
    worse, better = two_systems(speakers=25, utterances=200)
    names = [f"u{i:03d}" for i in range(200)]
    slightly = list(worse.hypotheses)
    slightly[0] += " extra"
    for name, texts in {"ref": worse.references, "a": worse.hypotheses, "b": better.hypotheses, "c": slightly}.items():
        (tmp_path / f"{name}.trn").write_text(utterances.trn(names, texts, worse.speakers))
    return tmp_path


def test_a_score_is_shown_and_kept(files):
    code, said = run("score", files / "ref.trn", files / "a.trn", "--normaliser", "raw", "--out", files / "out")
    assert code == 0 and said.splitlines()[-1] == str(files / "out")
    kept = json.loads((files / "out" / "scores.json").read_text())
    assert f"{100 * kept['wer']:.2f}" in said and "raw 1" in said and "new speakers" in said
    table = pd.read_parquet(files / "out" / "utterances.parquet")
    errors = table.substitutions.sum() + table.deletions.sum() + table.insertions.sum()
    assert errors / table.words.sum() == pytest.approx(kept["wer"]) and len(table) == 200
    for name in ("ref", "hyp"):
        assert len(utterances.read(files / "out" / f"{name}.trn", "hypothesis").texts) == 200
    again = run("score", files / "out" / "utterances.parquet", files / "out" / "utterances.parquet", "--normaliser", "raw")[1]
    assert f"{100 * kept['wer']:.2f}" in again


@pytest.mark.parametrize(
    ("a", "b", "more", "code", "word"),
    [
        ("a", "b", [], 0, "OK"),
        ("b", "a", [], 1, "REGRESSED"),
        ("b", "a", ["--by", "utterance"], 1, "REGRESSED"),
        ("b", "a", ["--margin", "50"], 0, "OK"),
        ("a", "c", ["--margin", "0"], 3, "INCONCLUSIVE"),
    ],
)
def test_a_verdict_is_an_exit_status(files, a, b, more, code, word):
    found, said = run("compare", files / f"{a}.trn", files / f"{b}.trn", "--reference", files / "ref.trn", "--normaliser", "raw", *more)
    assert found == code, said
    assert said.splitlines()[-1].startswith(word)
    assert "MAPSSWE" in said and "paired t-test" in said and "sign-flip over speakers" in said


def test_strata_are_shown(files):
    ids = list(utterances.read(files / "ref.trn", "reference").texts)
    table = pd.DataFrame({"id": ids, "stratum": ["few"] * 5 + ["[bold]many"] * 195})
    table.to_csv(files / "strata.csv", index=False)
    arguments = ("compare", files / "b.trn", files / "a.trn", "--reference", files / "ref.trn")
    _, said = run(*arguments, "--strata", files / "strata.csv")
    assert "too few" in said and "p (Holm)" in said
    table[3:].to_csv(files / "strata.csv", index=False)
    code, said = run(*arguments, "--strata", files / "strata.csv")
    assert code and "3 utterances have no stratum" in said


def test_what_is_missing_is_refused_or_counted(files):
    lines = (files / "a.trn").read_text().splitlines(keepends=True)
    (files / "short.trn").write_text("".join(lines[2:]))
    code, said = run("score", files / "ref.trn", files / "short.trn")
    assert code and "2 of 200 utterances have no hypothesis" in said and "--missing deleted" in said
    code, said = run("score", files / "ref.trn", files / "short.trn", "--missing", "deleted")
    assert code == 0 and "2 references had no hypothesis" in said
    code, said = run("compare", files / "a.trn", files / "short.trn", "--reference", files / "ref.trn", "--missing", "leave")
    assert code and "not given the same utterances" in said
    for wrong in (["--missing", "ignore"], ["--normaliser", "none"]):
        code, said = run("score", files / "ref.trn", files / "a.trn", *wrong)
        assert code and "expected" in said


def test_what_cannot_be_compared_says_why(files):
    code, said = run("compare", files / "a.trn", files / "b.trn")
    assert code and "--reference" in said
    code, said = run("compare", files / "a.trn", "no-such-run", "--reference", files / "ref.trn")
    assert code and "no-such-run" in said
    code, said = run("compare", files / "a.trn", files / "b.trn", "--reference", files / "ref.trn", "--by", "word")
    assert code and "speaker or utterance" in said


def test_markup_in_a_stratum_or_text_is_not_obeyed(tmp_path):
    refs, hyps = fuzz(30, 0.2, 1)
    ids = [f"[red]u{i}[/red]" for i in range(30)]
    pd.DataFrame({"id": ids, "reference": refs, "hypothesis": hyps}).to_csv(tmp_path / "x.csv", index=False)
    pd.DataFrame({"id": ids, "stratum": ["[link=http://x]y[/nonsense]"] * 30}).to_csv(tmp_path / "s.csv", index=False)
    code, said = run("compare", tmp_path / "x.csv", tmp_path / "x.csv", "--reference", tmp_path / "x.csv", "--strata", tmp_path / "s.csv")
    assert code == 0 and "[link=http" in said
