"""Every notebook runs small: under papermill as a user would, and under nbval."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import nbformat
import pytest
from browser import chromium, free_port, watch

from speechlab import config, evaluation, report, results, runs
from speechlab.errors import InputError

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent


@pytest.fixture(scope="session")
def trained(tmp_path_factory, prompts, tiny_en):
    """A small run, trained by the notebook itself through papermill's own command."""
    folder = tmp_path_factory.mktemp("notebooks")
    run = runs.Run.create(config.load("configs/smoke.yaml"), folder)
    done = subprocess.run(
        [
            str(BIN / "papermill"),
            "notebooks/03_train.ipynb",
            str(run.path / "03_train.ipynb"),
            "-p",
            "run",
            str(run.path),
            "--no-progress-bar",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return run


@pytest.fixture(scope="session")
def reported(trained):
    """The same run with its report."""
    assert report.make(trained, progress=False) == trained.path / "report.html"
    return trained


@pytest.mark.slow
def test_training_leaves_a_whole_run(trained):
    assert trained.state == "finished"
    steps = trained.steps()
    assert len(steps) == trained.events()[0]["steps"] or len(steps) == next(e for e in trained.events() if e["kind"] == "start")["steps"]
    assert list(steps.step) == list(range(1, len(steps) + 1))
    assert len(trained.validations()) == trained.config.training.epochs
    record = trained.provenance
    assert record["weights"]["name"] == "tiny.en"
    assert len(record["data"]["manifest_sha256"]) == 64
    assert "CC BY-SA" in record["data"]["licence"]
    assert record["command"].startswith("speechlab report --config")
    assert (trained.path.parent / "mlflow.db").exists()


@pytest.mark.slow
def test_the_executed_notebook_shows_the_final_board(trained):
    notebook = nbformat.read(trained.path / "03_train.ipynb", as_version=4)
    outputs = [o for c in notebook.cells if c.cell_type == "code" for o in c.outputs]
    assert not any(o.output_type == "error" for o in outputs)
    last_board = next(c for c in notebook.cells if "static()" in c.source)
    assert any("text/html" in o.get("data", {}) for o in last_board.outputs)


@pytest.mark.slow
def test_the_report_is_one_file_with_everything(reported):
    trained = reported
    page = (trained.path / "report.html").read_text("utf-8")
    assert 3e5 < len(page) < 15e6
    for text in (
        "Is the trained model better",
        "CC BY-SA 3.0",
        "Allison Smith",
        trained.id,
        trained.config.question,
        "data:audio/mpeg",
        "sign-flip",
    ):
        assert text in page, text
    table = results.summary(evaluation.load(trained.path / "evaluations"), trained.config.evaluation, trained.config.seed)
    assert len(table) == 7
    assert set(table.condition) == {"clean", "white-10db"}
    assert f"{100 * table.wer.iloc[0]:.2f} %" in page
    usual = results.usual(table)[lambda rates: rates.condition == "clean"]
    assert all(f"{100 * wer:.2f} [" in page.partition("<main>")[0] for wer in usual.wer), "before and after, where it begins"
    hardest = trained.path / "evaluations/hardest/finetuned--clean--silence"
    assert (hardest / "index.html").is_file() and list((hardest / "clips").glob("*.flac"))
    assert report.costs(trained)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["03_train.ipynb", "04_evaluate.ipynb", "05_errors.ipynb", "06_compare.ipynb", "07_reproduce.ipynb"])
def test_notebooks_under_nbval(name, reported, tmp_path):
    prepared, given = tmp_path / name, {"run": str(reported.path)}
    if name.startswith("06"):
        given = {"a": f"{reported.path}:pretrained--clean--silence", "b": str(reported.path)}
    prepare = [str(BIN / "papermill"), f"notebooks/{name}", str(prepared), "--prepare-only"]
    prepare += [word for key, value in given.items() for word in ("-p", key, value)]
    subprocess.run(prepare, cwd=ROOT, check=True, capture_output=True, timeout=60)
    validate = [
        sys.executable,
        "-m",
        "pytest",
        "--nbval-lax",
        "--nbval-current-env",
        "-q",
        "-p",
        "no:cacheprovider",
        "--rootdir",
        str(tmp_path),
        str(prepared),
    ]
    done = subprocess.run(validate, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-3000:]


@pytest.mark.slow
def test_notebooks_with_boards_are_served_as_they_are(reported, tmp_path):
    """``panel serve notebooks/….ipynb``: they show the latest run, and train nothing."""
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    shutil.copytree(ROOT / "notebooks", tmp_path / "notebooks")
    shutil.copytree(reported.path, tmp_path / "reports" / reported.id)
    port, names = free_port(), ("05_errors", "06_compare", "10_runs")
    command = [sys.executable, "-m", "panel", "serve", *(f"notebooks/{name}.ipynb" for name in names)]
    with (tmp_path / "serve.log").open("w") as log:
        server = subprocess.Popen([*command, f"--port={port}", "--address=127.0.0.1"], cwd=tmp_path, stdout=log, stderr=log)
    try:
        for _ in range(600):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=2)
                break
            except OSError:
                assert server.poll() is None, (tmp_path / "serve.log").read_text()
                time.sleep(0.2)
        with chromium() as browser:

            def opened(name: str):
                page = browser.new_page(viewport={"width": 1280, "height": 1000})
                seen.append(watch(page))
                page.goto(f"http://127.0.0.1:{port}/{name}", timeout=180_000)
                return page

            seen: list = []
            page = opened("05_errors")
            search = page.get_by_placeholder("said > heard")
            search.wait_for(timeout=120_000)
            search.fill("please")
            page.keyboard.press("Enter")
            page.get_by_text("“please”").first.wait_for(timeout=60_000)
            page = opened("06_compare")
            page.get_by_text(re.compile("^(OK|REGRESSED|INCONCLUSIVE): ")).first.wait_for(timeout=120_000)
            page = opened("10_runs")
            page.get_by_role("cell", name=reported.id, exact=True).first.wait_for(timeout=120_000)
            for told in seen:
                assert (told.external, told.errors) == ([], [])
    finally:
        server.terminate()
        server.wait(30)
    assert [path.name for path in (tmp_path / "reports").iterdir() if (path / "config.yaml").exists()] == [reported.id]
    assert (tmp_path / "reports" / reported.id / "events.jsonl").read_bytes() == (reported.path / "events.jsonl").read_bytes()


SMALL = ["corpus.limit=8", "training.epochs=2", "training.validate_epochs=1", "cluster.workers=0", "tracking.enabled=false"]


@pytest.mark.slow
@pytest.mark.parametrize("family", ["conformer", "wav2vec2"])
def test_the_same_notebooks_train_and_report_each_family(family, tmp_path, prompts):
    small = ["model.shape.layers=1"] if family == "conformer" else []
    run = runs.Run.create(config.load(f"configs/{family}.yaml", [*SMALL, *small]), tmp_path)
    page = report.make(run, progress=False).read_text("utf-8")
    assert run.state == "finished"
    assert run.provenance["weights"]["source"] == "made"
    (clean, noisy) = evaluation.load(run.path / "evaluations")
    assert {clean.system, noisy.system} == {"trained"}
    assert "data:audio/mpeg" in page and run.config.question in page
    assert ", short context" not in page, "what is Whisper's alone is not said of others"


def test_an_unknown_parameter_is_an_error(tmp_path):
    with pytest.raises(InputError, match=r'"config"'):
        report.execute(ROOT / "notebooks/03_train.ipynb", tmp_path / "out.ipynb", {"confg": "x"})


@pytest.mark.slow
def test_a_failing_cell_names_itself(tmp_path):
    with pytest.raises(report.NotebookError, match=r"04_evaluate[\s\S]*systems.measure"):
        report.execute(ROOT / "notebooks/04_evaluate.ipynb", tmp_path / "out.ipynb", {"run": str(tmp_path)}, progress=False)
