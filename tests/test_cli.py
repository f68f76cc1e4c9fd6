"""The command line as a user meets it: every bad input says got, expected and what to do."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from speechlab import config, runs

ROOT = Path(__file__).resolve().parents[1]


def speechlab(*words: str, cwd: Path = ROOT, env: dict[str, str] | None = None, timeout: float = 240) -> subprocess.CompletedProcess[str]:
    """Run the real command in a process of its own."""
    import os

    return subprocess.run(
        [sys.executable, "-m", "speechlab", *words],
        cwd=cwd,
        env={**os.environ, "COLUMNS": "200", **(env or {})},
        capture_output=True,
        text=True,
        timeout=timeout,
    )


@pytest.fixture
def written(tmp_path):
    """Write a config file from text and give its path."""

    def write(text: str) -> str:
        path = tmp_path / "experiment.yaml"
        path.write_text(text)
        return str(path)

    return write


HEAD = "name: x\nquestion: does it work?\n"

# config text, further words, what the message must hold
BAD = {
    "misspelt key": (HEAD + "training: {epocs: 3}\n", [], ["training.epocs", "unknown key", 'did you mean "epochs"']),
    "unknown section": (HEAD + "optimiser: {lr: 0.1}\n", [], ["optimiser", 'did you mean "optim"']),
    "wrong type": (HEAD + "training: {epochs: three}\n", [], ["training.epochs", "got 'three' (str)", "expected"]),
    "1e-4 is text in YAML": (HEAD + "optim: {lr: 1e-4}\n", [], ["optim.lr", "'1e-4'", "write 0.0001"]),
    "out of range": (HEAD + "optim: {clip: -1.0}\n", [], ["optim.clip", "-1.0", "greater than 0"]),
    "several at once": (
        HEAD + "seed: -1\ntraining: {epochs: 0, precision: fp8}\n",
        [],
        ["3 values", "seed", "training.epochs", "training.precision"],
    ),
    "unknown corpus": (HEAD + "corpus: {name: promts}\n", ["--dry-run"], ["promts", 'did you mean "prompts"', "librispeech"]),
    "unknown language": (HEAD + "corpus: {name: prompts, language: xx}\n", ["--dry-run"], ["xx", "en"]),
    "unknown family": (HEAD + "model: {family: wisper}\n", ["--dry-run"], ["wisper", 'did you mean "whisper"']),
    "unknown weights": (HEAD + "model: {weights: tinyen}\n", ["--dry-run"], ["tinyen", "tiny.en"]),
    "workers that cannot share a step": (HEAD + "cluster: {workers: 3}\n", [], ["micro_batches 4", "workers 3", "multiple"]),
    "override without a value": (HEAD, ["--set", "training.epochs"], ["training.epochs", "section.key=value"]),
    "corpus without a root": (HEAD + "corpus: {name: librispeech}\n", ["--dry-run"], ["LibriSpeech", "do:"]),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_configs(case, written):
    text, words, expected = BAD[case]
    done = speechlab("train", "--config", written(text), *words)
    assert done.returncode == 2, done.stderr
    assert [part for part in expected if part not in done.stderr] == [], done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_good_config_is_not_refused(written):
    done = speechlab("train", "--config", written(HEAD + "corpus: {limit: 8}\n"), "--dry-run")
    assert done.returncode == 0, done.stderr


def test_a_missing_config_lists_those_there_are():
    done = speechlab("train", "--config", "configs/quickstrat.yaml")
    assert done.returncode == 2
    assert "does not exist" in done.stderr
    assert "configs/quickstart.yaml" in done.stderr


def test_a_missing_run_lists_those_there_are(tmp_path):
    run = runs.Run.create(config.load("configs/smoke.yaml"), tmp_path)
    done = speechlab("evaluate", str(tmp_path / "nothing"))
    assert done.returncode == 2
    assert run.id in done.stderr


def test_no_network_and_an_empty_cache_names_every_place(tmp_path):
    empty = {"SPEECHLAB_CACHE": str(tmp_path), "SPEECHLAB_OFFLINE": "1"}
    done = speechlab("fetch", env=empty)
    assert done.returncode == 2
    assert "asterisk-core-sounds-en" in done.stderr
    assert str(tmp_path) in done.stderr, "where to put it by hand"
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_the_dry_run_shows_plan_padding_steps_and_time():
    done = speechlab("train", "--config", "configs/smoke.yaml", "--dry-run")
    assert done.returncode == 0, done.stderr
    for word in ("signature", "manifest", "steps", "padding", "estimated time", "wheel"):
        assert word in done.stdout or word == "wheel"
    assert not list((ROOT / "reports").glob("smoke-*/dry*"))


def test_stop_needs_a_training_run(tmp_path):
    run = runs.Run.create(config.load("configs/smoke.yaml"), tmp_path)
    done = speechlab("stop", str(run.path))
    assert done.returncode == 2
    assert "not training" in done.stderr


def test_track_says_what_is_wrong_with_the_tracker(tmp_path):
    run = runs.Run.create(config.load("configs/smoke.yaml", ["tracking.uri=http://127.0.0.1:9"]), tmp_path)
    done = speechlab("track", str(run.path))
    assert done.returncode == 2
    assert "MLflow cannot be reached" in done.stderr
    assert "http://127.0.0.1:9" in done.stderr


def test_a_taken_port_is_refused(tmp_path):
    import socket

    run = runs.Run.create(config.load("configs/smoke.yaml"), tmp_path)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = speechlab("dashboard", str(run.path), "--port", str(port))
    assert done.returncode == 2, done.stderr
    assert str(port) in done.stderr


def test_a_notebook_s_parameters_are_read_strictly():
    done = speechlab("notebook", "notebooks/01_corpus.ipynb", "-p", "language")
    assert done.returncode == 2
    assert "name=value" in done.stderr
    done = speechlab("notebook", "notebooks/01_corpus.ipynb", "-p", "langauge=it")
    assert done.returncode == 2
    assert 'did you mean "language"' in done.stderr
    assert speechlab("notebook", "notebooks/nowhere.ipynb").returncode == 2


@pytest.mark.slow
def test_a_notebook_becomes_one_page():
    done = speechlab("notebook", "notebooks/02_signal.ipynb", "-p", "epochs=1", "-p", "seed=2")
    assert done.returncode == 0, done.stderr[-2000:]
    page = Path(done.stdout.strip().splitlines()[-1])
    assert page.name == "02_signal.html"
    assert page.stat().st_size > 1e6
    shutil.rmtree(page.parent)


def test_help_names_every_command():
    done = speechlab("--help")
    for command in ("train", "evaluate", "report", "corpus", "notebook", "fetch", "dashboard", "stop", "track", "doctor"):
        assert command in done.stdout
