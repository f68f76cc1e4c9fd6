"""JupyterLab in a real browser: open a notebook, run all of it, watch the board move, move a slider, decide about a transcript."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import nbformat
import pytest
from browser import canvas_pixels, chromium, free_port, settle, watch
from test_uploads import flac

from speechlab import corpora, runs
from speechlab.corpora import decisions

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent


@pytest.fixture
def lab(tmp_path, prompts, tiny_en):
    """JupyterLab over a project folder of its own; gives the address of a notebook with parameters of the test's."""
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    (tmp_path / "notebooks").mkdir()
    port, token = free_port(), secrets.token_hex(16)
    settings = [f"--port={port}", f"--IdentityProvider.token={token}", f"--ServerApp.root_dir={tmp_path}", "--LabApp.news_url=None"]
    server = subprocess.Popen(
        [str(BIN / "jupyter"), "lab", "--no-browser", "--allow-root", "--ip=127.0.0.1", *settings],
        stdout=subprocess.DEVNULL,
        stderr=(tmp_path / "lab.log").open("w"),
        env={**os.environ, "JUPYTER_CONFIG_DIR": str(tmp_path / "jupyter"), "JUPYTER_DATA_DIR": str(tmp_path / "jupyter-data")},
    )
    address = f"http://127.0.0.1:{port}"
    deadline = time.monotonic() + 180
    while True:
        try:
            urllib.request.urlopen(f"{address}/api?token={token}", timeout=2)
            break
        except OSError:
            assert time.monotonic() < deadline, (tmp_path / "lab.log").read_text()
            time.sleep(0.2)

    def prepared(name: str, *cells: str, **parameters: object) -> tuple[str, Path]:
        command = [str(BIN / "papermill"), str(ROOT / "notebooks" / name), str(tmp_path / "notebooks" / name), "--prepare-only"]
        wanted = [part for key, value in parameters.items() for part in ("-p", key, str(value))]
        subprocess.run([*command, *wanted], check=True, capture_output=True, timeout=60)
        notebook = nbformat.read(tmp_path / "notebooks" / name, as_version=4)
        notebook.cells += [nbformat.v4.new_code_cell(source) for source in cells]
        nbformat.write(notebook, tmp_path / "notebooks" / name)
        return f"{address}/lab/workspaces/test/tree/notebooks/{name}?token={token}", tmp_path

    yield prepared
    server.terminate()
    server.wait(120)


def run_all(page, url: str) -> None:
    """Open a notebook and run all of it."""
    page.goto(url)
    page.wait_for_selector(".jp-Notebook .jp-Cell", timeout=60_000)
    page.get_by_text("Python 3 (ipykernel) | Idle").wait_for(timeout=60_000)
    started = page.locator(".jp-InputPrompt").filter(has_text=re.compile(r"\[(\*|\d+)\]"))
    for _ in range(6):  # Lab drops what is asked of it before its kernel is connected
        page.locator("text=Run >> nth=0").click()
        page.locator("text=Run All Cells >> nth=0").click()
        page.wait_for_timeout(3000)
        if started.count():
            break


@pytest.mark.slow
def test_the_training_notebook_runs_live_in_jupyterlab(lab):
    url, project = lab("03_train.ipynb", config="configs/smoke.yaml", overrides="training.epochs=3 tracking.enabled=false")
    with chromium() as browser:
        page = browser.new_page(viewport={"width": 1280, "height": 1600})
        log = watch(page)
        run_all(page, url)
        step = page.locator(".tiles div:has(span:text-is('step')) b").first
        step.wait_for(timeout=180_000)
        (run,) = (runs.Run(p.parent) for p in (project / "reports").glob("*/config.yaml"))
        deadline = time.monotonic() + 240
        seen, pixels = set(), set()
        while not (len(run.events()) and run.events()[-1]["kind"] in ("end", "failure")):
            assert time.monotonic() < deadline, run.events()
            seen.add(step.inner_text())
            pixels.add("".join(canvas_pixels(page, i) for i in range(page.locator("canvas").count())))
            time.sleep(0.2)
        assert run.events()[-1]["kind"] == "end"
        assert len(seen) >= 3, f"the board moved while the kernel waited: {seen}"
        assert len(pixels) >= 2, "a curve moved"

        # the last cells ran: the final board and the validation table
        page.locator("text=Validation on the dev clips").first.wait_for(timeout=120_000)
        assert page.locator(".jp-OutputArea-output[data-mime-type='application/vnd.jupyter.stderr']").count() == 0
        page.screenshot(path=str(project / "lab.png"))
        assert log.external == []


@pytest.mark.slow
def test_the_signal_notebook_s_sliders_work_in_jupyterlab(lab):
    url, project = lab("02_signal.ipynb", epochs=1)
    with chromium() as browser:
        page = browser.new_page(viewport={"width": 1280, "height": 1600})
        log = watch(page)
        run_all(page, url)
        # the last cell's table: until then the kernel has no time for sliders
        page.locator(".jp-OutputArea-output", has_text="times probability").first.wait_for(timeout=240_000)
        handle = page.locator(".noUi-handle").first
        handle.scroll_into_view_if_needed()
        settle(page)
        place = handle.bounding_box()
        x, y = place["x"] + place["width"] / 2, place["y"] + place["height"] / 2
        page.mouse.move(x, y)  # by the mouse: Lab keeps the arrow keys for itself
        page.mouse.down()
        page.mouse.move(x + 40, y, steps=5)
        page.mouse.up()
        page.get_by_text(re.compile(r"factor 1\.(1[1-9]|[2-9])")).first.wait_for(timeout=60_000)
        assert page.locator(".jp-OutputArea-output[data-mime-type='application/vnd.jupyter.error']").count() == 0
        page.screenshot(path=str(project / "lab.png"))
        assert log.external == []


@pytest.mark.slow
def test_a_transcript_is_decided_about_and_a_clip_is_heard_in_jupyterlab(lab, prompts, tmp_path):
    cell = "from speechlab.playground import Playground\n\nPlayground(['tiny.en'])"
    url, project = lab("01_corpus.ipynb", cell, heard=8, top=4, decisions="decisions.jsonl")
    cut = sorted(prompts.cuts["test"], key=lambda cut: (cut.duration, cut.id))[110]
    (tmp_path / "clip.flac").write_bytes(flac(corpora.load_audio(cut)))
    with chromium() as browser:
        page = browser.new_page(viewport={"width": 1280, "height": 1600})
        log = watch(page)
        run_all(page, url)
        page.get_by_text("manifest " + prompts.manifest_sha256[:12]).first.wait_for(timeout=300_000)  # the last cell's table
        settle(page)
        page.get_by_role("button", name="accept").first.click()
        page.get_by_text("2 of 4").first.wait_for(timeout=60_000)
        page.get_by_role("button", name="drop").first.click()
        page.get_by_text("3 of 4").first.wait_for(timeout=60_000)
        made = decisions.read(project / "decisions.jsonl")
        assert [d.verdict for d in made.values()] == ["accept", "drop"]
        page.set_input_files(".jp-OutputArea input[type=file]", str(tmp_path / "clip.flac"))
        words = page.locator("p:has(> button.word)").first
        words.wait_for(timeout=180_000)
        page.locator("td", has_text=re.compile(r"^\d+\.\d\d$")).first.wait_for(timeout=120_000)  # timed: all of it was heard
        assert words.inner_text().lower().strip() == cut.supervisions[0].text.lower().strip()
        page.screenshot(path=str(project / "lab.png"))
        assert log.external == []
