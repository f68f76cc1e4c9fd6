"""Reviews: what is shown, heard and written down, with a person's clicks made by the test."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import nbformat
import pandas as pd
import pytest
import soundfile

from speechlab import corpora, report, review
from speechlab.config import corpus_section
from speechlab.corpora import decisions
from speechlab.corpora.base import Entry
from speechlab.corpora.check import counts, inspect

ROOT = Path(__file__).resolve().parents[1]
EVIL = "<script>alert(1)</script>"


@pytest.fixture
def doubted(prompts, tmp_path):
    """Four clips, the second with a transcript that is not what is said and would be markup."""
    cuts = [c for c in prompts.cuts["train"] if 1 < c.duration < 3][:4]
    texts = [EVIL if i == 1 else c.supervisions[0].text for i, c in enumerate(cuts)]
    rows = [{"id": c.id, "reference": text, "hypothesis": c.supervisions[0].text} for c, text in zip(cuts, texts, strict=True)]
    table = pd.DataFrame(rows)
    return review.Review(table, cuts, tmp_path / "decisions.jsonl", "en", top=3), cuts


def parts(desk):
    view, text, buttons = desk.objects
    return view, text, {b.label: b for b in buttons}


def test_clicks_become_lines_in_the_users_file(doubted):
    made, cuts = doubted
    view, text, buttons = parts(made.panel())
    assert cuts[0].id in view.value
    assert "1 of 3" in view.value
    assert "data:audio/mpeg" in view.value
    buttons["accept"].clicks += 1
    assert cuts[1].id in view.value
    text.value = "what is said"
    buttons["fix"].clicks += 1
    buttons["drop"].clicks += 1
    assert "3 decided" in view.value
    found = decisions.read(made.path)
    assert {id: (d.verdict, d.text) for id, d in found.items()} == {
        cuts[0].id: ("accept", ""),
        cuts[1].id: ("fix", "what is said"),
        cuts[2].id: ("drop", ""),
    }
    assert found[cuts[1].id].reference == EVIL
    buttons["◀"].clicks += 1
    again_view, again_text, _ = parts(made.panel())  # another display knows what was decided
    assert "3 decided" in again_view.value
    assert "1 of 3" in again_view.value


def test_a_fix_without_a_change_is_not_written(doubted):
    made, cuts = doubted
    view, text, buttons = parts(made.panel())
    buttons["fix"].clicks += 1
    assert "accept it, or change it" in view.value
    assert decisions.read(made.path) == {}


def test_texts_cannot_become_markup(doubted):
    made, _ = doubted
    view, _, buttons = parts(made.panel())
    buttons["▶"].clicks += 1
    assert EVIL not in view.value
    assert "<script" not in view.value
    page = str(made.static())
    assert "&lt;script&gt;" in page
    assert EVIL not in page
    assert page.count("data:audio/mpeg") == 3


def test_nothing_in_doubt(tmp_path):
    empty = review.Review(pd.DataFrame(), [], tmp_path / "d.jsonl")
    assert "No transcript is in doubt" in empty.panel().objects[0].value
    assert "No clips yet" in str(empty.static())


def test_counts_and_examples_of_a_check(prompts, tmp_path):
    cut = next(iter(prompts.cuts["train"]))
    path = Path(cut.recording.sources[0].source)
    entries = [Entry("good", path, "some words"), Entry("nothing", None, EVIL), Entry("long", path, EVIL * 20)]
    entries.append(Entry(EVIL, path, "\ufeffmended"))
    found = [(e, inspect(e, corpus_section())[0]) for e in entries]
    table = str(review.counts_html(counts(f.row() for _, f in found)))
    assert "<td>&emsp;there is no recording</td>" in table
    page = str(review.examples_html(found))
    assert EVIL not in table + page
    assert "remarked: ctc" in page
    assert "repaired: characters that cannot be seen" in page
    assert page.count("data:audio/mpeg") == 2
    assert "Nothing was remarked" in str(review.examples_html(found[:1]))


def test_a_sample_is_by_hash_and_grows(prompts):
    few, more, every = (review.sample(prompts, n) for n in (5, 9, -1))
    assert more[:5] == few
    assert len(every) == sum(prompts.clips.values())
    assert review.sample(prompts, 0) == []


@pytest.mark.slow
def test_the_corpus_notebook_runs_headless_on_a_folder_of_yours(prompts, tmp_path):
    root = tmp_path / "mine"
    root.mkdir()
    for cut in [c for c in prompts.cuts["train"] if 1 < c.duration < 3][:40]:
        name = cut.id.replace("/", "_")
        soundfile.write(root / f"{name}.wav", corpora.load_audio(cut), 16_000)
        (root / f"{name}.txt").write_text(cut.supervisions[0].text)
    (root / "broken.wav").write_bytes(b"nothing")
    (root / "broken.txt").write_text("some words")
    out = tmp_path / "01_corpus.ipynb"
    command = [str(Path(sys.executable).parent / "papermill"), "notebooks/01_corpus.ipynb", str(out), "--no-progress-bar",
               "-p", "root", str(root), "-p", "heard", "4", "-p", "top", "3", "-p", "decisions", str(tmp_path / "d.jsonl")]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    listing = ROOT / "reports/corpora/own-en-mine.jsonl"
    rows = [json.loads(line) for line in listing.read_text().splitlines()]
    listing.unlink()
    assert len(rows) == 41
    assert [r["id"] for r in rows if r["verdict"] == "set aside"] == ["broken"]
    assert not any(o.output_type == "error" for c in nbformat.read(out, 4).cells if c.cell_type == "code" for o in c.outputs)
    page = report.html([out], tmp_path / "page.html", "Corpus").read_text("utf-8")
    assert "checking clips 100%" in page
    assert page.count("checking clips") == 2  # of each progress bar the page has the last state: the check's, and the corpus'
    assert page.count("data:audio/mpeg") >= 3
