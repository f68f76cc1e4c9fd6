"""Notebooks headless and merged: names checked, failures explained, nothing shown that should not be."""

from __future__ import annotations

from html import escape
from pathlib import Path

import nbformat
import pytest
from browser import EVIL, EVIL_TEXT
from bs4 import BeautifulSoup
from nbformat import v4
from test_plots import live_markup

from speechlab import card, checkpoints, cluster, config, corpora, evaluation, experiments, models, report, runs, systems, validation
from speechlab.errors import InputError
from speechlab.markup import Html
from speechlab.world import World

KERNEL = {"kernelspec": {"name": "python3", "language": "python", "display_name": "Python 3"}, "language_info": {"name": "python"}}


def code(source: str, *tags: str, **outputs: str):
    """A code cell; each keyword is an output of the kind it names with __ for /."""
    cell = v4.new_code_cell(source, metadata={"tags": list(tags)})
    cell.outputs = [v4.new_output("display_data", {kind.replace("__", "/"): data}) for kind, data in outputs.items()]
    return cell


def write(path: Path, *cells) -> Path:
    nbformat.write(v4.new_notebook(cells=list(cells), metadata=KERNEL), path)
    return path


@pytest.fixture
def notebook(tmp_path) -> Path:
    return write(
        tmp_path / "n.ipynb",
        code('epochs: int = 3  # passes\nrun: str = "a"', "parameters"),
        code("print(epochs, run)"),
        code("1 / (epochs - 1)"),
    )


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("epocs", 'did you mean "epochs"'),
        ("unknown", "known: epochs, run"),
        ("epochs=1;import os", "known: epochs, run"),
        ("import os", "known:"),
        ("", "known:"),
    ],
)
def test_an_unknown_parameter_is_an_input_error_before_anything_runs(notebook, tmp_path, name, remedy):
    with pytest.raises(InputError, match=r"no such parameter[\s\S]*expected") as e:
        report.execute(notebook, tmp_path / "out.ipynb", {name: 1})
    assert remedy in str(e.value)
    assert not (tmp_path / "out.ipynb").exists()


def test_a_parameter_with_equals_signs_is_one_too(tmp_path):
    """papermill's inspector leaves such lines out, with a warning."""
    cell = code('space: str = "lr=1"  # key=value texts\nother = 2\nif other:\n    inner = 3', "parameters")
    path = write(tmp_path / "n.ipynb", cell, code("print(space, other)"))
    assert report._parameters(path) == ["space", "other"]
    executed = report.execute(path, tmp_path / "out.ipynb", {"space": "lr=2"}, progress=False)
    assert "lr=2 2" in executed.read_text()


def test_a_notebook_without_parameters_says_so(tmp_path):
    with pytest.raises(InputError, match="takes no parameters"):
        report.execute(write(tmp_path / "n.ipynb", code("1")), tmp_path / "out.ipynb", {"x": 1})


@pytest.mark.parametrize("content", [None, "", "{}", "not json", '{"nbformat": 4}'])
def test_a_file_that_is_no_notebook_is_an_input_error(tmp_path, content):
    path = tmp_path / "n.ipynb"
    if content is not None:
        path.write_text(content)
    with pytest.raises(InputError, match=r"does not exist|cannot be read"):
        report.execute(path, tmp_path / "out.ipynb", {})
    with pytest.raises(InputError, match=r"does not exist|cannot be read"):
        report.html([path], tmp_path / "out.html", "t")


def test_a_report_of_nothing_is_an_input_error(tmp_path):
    with pytest.raises(InputError, match="needs a notebook"):
        report.html([], tmp_path / "out.html", "t")


def test_merge_keeps_what_a_reader_needs(tmp_path):
    cells = (
        v4.new_markdown_cell("# One"),
        code("x = 1", "parameters"),
        code("x = 2", "injected-parameters"),
        code("load()", "setup", application__javascript="JS"),
        code("board", "live", text__html="LIVE"),
        code("table", text__html="<b>T</b>", text__markdown="**M**", text__vnd="kept"),
    )
    merged = report.merge([write(tmp_path / "a.ipynb", *cells), write(tmp_path / "b.ipynb", *cells)])
    sources = [cell.source for cell in merged.cells]
    assert sources == ["# One", "load()", "board", "table"] * 2
    kinds = [[list(out.data) for out in cell.outputs] for cell in merged.cells if cell.cell_type == "code"]
    assert kinds == [[["application/javascript"]], [], [["text/html"], ["text/vnd"]], [], [], [["text/html"], ["text/vnd"]]]
    assert len({cell.id for cell in merged.cells}) == len(merged.cells)


def test_contents_are_the_headings_outside_of_code(tmp_path):
    merged = report.merge([write(tmp_path / "a.ipynb", v4.new_markdown_cell("# A `b` [c](d)\n\n```\n# not\n```\n### deep\n## Two\n"))])
    assert [(entry["level"], entry["text"]) for entry in report.contents(merged)] == [(1, "A b c"), (2, "Two")]


def test_a_progress_bar_that_came_to_its_end_is_left_out(tmp_path):
    bar = "listening: 10%|█         | 1/9 [00:01<00:08]\rlistening: 100%|██████████| 9/9 [00:09<00:00,  1.00clip/s]"
    stopped = "listening: 10%|█         | 1/9 [00:01<00:08,  1.00clip/s]"
    cell = code("1", "said")
    cell.outputs += [v4.new_output("stream", name="stderr", text=f"{bar}\nsaid\n{stopped}")]
    page = report.html([write(tmp_path / "a.ipynb", cell)], tmp_path / "out.html", "a").read_text("utf-8")
    assert "100%|" not in page
    assert escape(stopped) in page


def test_what_leads_stands_below_the_title(tmp_path):
    path = write(tmp_path / "a.ipynb", v4.new_markdown_cell("# Fine"))
    page = BeautifulSoup(report.html([path], tmp_path / "out.html", "a", Html("<b>4.11</b>")).read_text("utf-8"), "html.parser")
    assert page.select_one("header .speechlab b").text == "4.11"
    assert not BeautifulSoup(report.html([path], tmp_path / "out.html", "a").read_text("utf-8"), "html.parser").select("header .speechlab")


@pytest.mark.parametrize("evil", [*EVIL, EVIL_TEXT])
def test_no_text_but_our_own_becomes_markup(tmp_path, evil):
    """Title, source, streams, errors, plain text, tags, ids and metadata are all other people's."""
    cell = code(repr(evil), evil, text__plain=evil, text__markdown=evil, text__latex=evil)
    cell.outputs += [v4.new_output("stream", name="stdout", text=evil), v4.new_output("error", ename=evil, evalue=evil, traceback=[evil])]
    cell.metadata["name"] = evil
    path = write(tmp_path / "a.ipynb", v4.new_markdown_cell("# Fine"), cell)
    notebook = nbformat.read(path, 4)
    notebook.metadata |= {"title": evil, "authors": [{"name": evil}], "widgets": {"application/vnd.jupyter.widget-state+json": {"x": evil}}}
    nbformat.write(notebook, path)
    page = report.html([path], tmp_path / "out.html", evil).read_text("utf-8")
    found = live_markup(page)
    assert found == ["link", "script"], "the empty icon, our own script, and nothing else"
    control = page.replace("<h1>Fine", f"<h1>{evil}Fine")
    assert len(live_markup(control)) > len(found), "negative control"


def test_the_page_names_no_other_host(tmp_path):
    page = report.html(
        [write(tmp_path / "a.ipynb", v4.new_markdown_cell("# A $x$"), code("1", text__html="<p>x</p>"))], tmp_path / "o.html", "t"
    ).read_text("utf-8")
    assert "http://" not in page
    assert "https://" not in page
    assert len(page) < 100_000


def test_styles_that_panel_links_are_put_in():
    import panel

    link = f'{{"type":"object","name":"ImportedStyleSheet","id":"p1","attributes":{{"url":"https://cdn.holoviz.org/panel/{panel.__version__}/dist/css/loading.css"}}}}'
    page = report.inline_styles(f"<script>[{link},{link}]</script>")
    assert "cdn.holoviz.org" not in page
    assert page.count("InlineStyleSheet") == 2
    assert page.count("</script>") == 1


@pytest.mark.slow
def test_parameters_arrive_and_paths_become_text(notebook, tmp_path):
    out = nbformat.read(report.execute(notebook, tmp_path / "deep" / "out.ipynb", {"epochs": 5, "run": Path("x/'y")}, progress=False), 4)
    assert out.cells[2].outputs[0].text == "5 x/'y\n"


@pytest.mark.slow
def test_a_failing_cell_is_named_with_its_source_and_its_exception(notebook, tmp_path):
    with pytest.raises(report.NotebookError) as e:
        report.execute(notebook, tmp_path / "out.ipynb", {"epochs": 1}, progress=False)
    message = str(e.value)
    for part in ("n.ipynb", "1 / (epochs - 1)", "ZeroDivisionError", "division by zero", "out.ipynb"):
        assert part in message
    assert (tmp_path / "out.ipynb").exists()


@pytest.mark.slow
def test_the_report_of_a_pretraining_has_no_word_error_rate_and_says_why(root, tmp_path, prompts):
    small = ["corpus.language=en", "corpus.limit=8", "model.shape={dim: 32, layers: 1, heads: 2, ffn: 32, dropout: 0.0}"]
    small += ["training={epochs: 1, batch_clips: 4, micro_batches: 1, precision: fp32}", "cluster.workers=0", "tracking.enabled=false"]
    run = runs.Run.create(config.load(root / "configs" / "wav2vec2-pretraining.yaml", small), tmp_path)
    assert cluster.drive(run) == "finished" and not len(run.validations())
    (last,) = checkpoints.existing(run.path / "checkpoints")
    assert checkpoints.chosen(run) == last and last.wer is None
    page = BeautifulSoup(report.make(run, progress=False).read_text(), "html.parser")
    assert "its model writes no text" in page.text and "100.00" not in page.text
    assert "Evaluate" not in [h.text for h in page.find_all("h1")] and [h.text for h in page.find_all("h1")] == ["Train"]
    for refused in (evaluation.systems, card.model):
        with pytest.raises(InputError, match="is a pretraining(.|\n)*train on from it"):
            refused(run)
    with pytest.raises(InputError, match="is a pretraining"):
        systems.resolve(str(run.path), "en")
    assert experiments.table(tmp_path).dev.isna().all() and not len(experiments.curves(experiments.table(tmp_path)))
    # the control: scored, as it was before, it would have had one
    corpus = corpora.configured(run.config.corpus)
    model = models.load("wav2vec2", last.path, "en")
    assert validation.validate(run.config, model, corpus, run, World(), 1, 0)["wer"] == 1.0
