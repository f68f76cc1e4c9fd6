"""The pages in a real browser: the board moves within seconds, the report works offline, nothing injected runs."""

from __future__ import annotations

import time
from pathlib import Path

import nbformat
import pytest
from accessible import barriers
from browser import (
    EVIL,
    EVIL_TEXT,
    becomes,
    canvas_pixels,
    chromium,
    ended,
    free_port,
    make_run,
    play,
    pwned,
    step_event,
    validation_event,
    watch,
)
from nbformat import v4
from test_report import KERNEL, code

from speechlab import board, report, text

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def browser():
    with chromium() as running:
        yield running


@pytest.fixture
def served():
    """Serve a run's board from a thread; returns its address."""
    threads = []

    def start(run) -> str:
        port = free_port()
        threads.append(board.serve(run, port=port, threaded=True))
        return f"http://127.0.0.1:{port}/"

    yield start
    ended(*threads)


def open_board(browser, url, **context):
    page = browser.new_context(**context).new_page()
    log = watch(page)
    page.goto(url)
    page.wait_for_selector("canvas")
    page.wait_for_selector(".tiles b")
    return page, log


# -- the board ---------------------------------------------------------------------------------------


def test_each_event_reaches_the_page(browser, served, tmp_path):
    run = make_run(tmp_path, steps=5, epochs=1, end=False)
    page, log = open_board(browser, served(run))
    before = canvas_pixels(page)
    for step in range(6, 26):
        time.sleep(0.13)  # so that writes fall anywhere in the board's period
        run.append(step_event(step, 60))
        page.wait_for_function(
            """n => { const find = root => { for (const e of root.querySelectorAll('*')) {
                        if (e.matches('.tiles b') && e.textContent.startsWith(n + ' / ')) return true;
                        if (e.shadowRoot && find(e.shadowRoot)) return true; } return false; };
                      return find(document); }""",
            arg=str(step),
            polling=20,
            timeout=30_000,
        )
    assert becomes(lambda: canvas_pixels(page) != before), "the loss curve did not move"
    run.append(validation_event(25))
    run.append({"kind": "end", "step": 25, "seconds": 25.0, "best": {"step": 25, "wer": 0.03}})
    page.wait_for_selector(".badge.finished", timeout=30_000)
    assert page.locator("audio").count() == 4
    assert play(page.locator("audio").first)["time"] > 0
    assert log.external == []
    assert log.errors == []


def test_an_unchanged_file_moves_nothing(browser, served, tmp_path):
    """Negative control of the test above."""
    page, _ = open_board(browser, served(make_run(tmp_path, steps=5, epochs=1, end=False)))
    time.sleep(1)
    before = canvas_pixels(page)
    time.sleep(1.5)
    assert canvas_pixels(page) == before


def test_two_pages_of_one_board_both_follow(browser, served, tmp_path):
    run = make_run(tmp_path, steps=5, epochs=1, end=False)
    url = served(run)
    pages = [open_board(browser, url)[0] for _ in range(2)]
    run.append(step_event(6))
    for page in pages:
        page.locator(".tiles b").get_by_text("6 / 5").wait_for(timeout=30_000)


def test_a_run_of_ten_thousand_steps_opens(browser, served, tmp_path):
    page, log = open_board(browser, served(make_run(tmp_path, steps=10_000, epochs=10)))
    page.locator(".tiles b").get_by_text("10000 / 10000").wait_for(timeout=60_000)
    assert log.errors == []


def test_a_failure_is_shown_for_what_it_is(browser, served, tmp_path):
    run = make_run(tmp_path, steps=5, epochs=1, end=False)
    run.append({"kind": "failure", "error": "the loss of steps 3 to 5 is not a number"})
    page, _ = open_board(browser, served(run))
    assert page.locator(".badge").inner_text() == "failed"
    assert "not a number" in page.locator(".log .failure").inner_text()


@pytest.mark.parametrize("width", [1280, 390])
def test_the_board_fits_its_window(browser, served, tmp_path, width):
    page, _ = open_board(browser, served(make_run(tmp_path, steps=9)), viewport={"width": width, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def evil_run(root: Path, **values):
    return make_run(root, steps=9, evil=EVIL_TEXT, name="<img src=x onerror=window.pwned=1>", **values)


def spoil(run):
    run.append({"kind": "message", "level": EVIL_TEXT, "text": EVIL_TEXT})
    run.append({"kind": "failure", "error": EVIL_TEXT})
    return run


def test_nothing_injected_runs_on_the_board(browser, served, tmp_path):
    run = evil_run(tmp_path, end=False)
    page, log = open_board(browser, served(run))
    spoil(run)  # what comes while the page is open is drawn another way
    page.locator(".log .failure").wait_for(timeout=30_000)
    assert page.get_by_text("window.pwned").count() >= 8, "the text itself is to be read"
    for canvas in page.locator("canvas").all()[:6]:
        canvas.hover(force=True)
    assert not pwned(page)
    assert log.external == []


def test_without_the_escape_it_would_run(browser, served, tmp_path, monkeypatch):
    """Negative control of the test above."""
    monkeypatch.setattr(text, "escape", str)
    page, _ = open_board(browser, served(spoil(evil_run(tmp_path))))
    page.wait_for_function("window.pwned === 1", timeout=30_000)


# -- the report --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def report_page(tmp_path_factory) -> Path:
    """A report of two notebooks, executed by papermill, over a run whose every text is hostile."""
    root = tmp_path_factory.mktemp("report")
    run = spoil(evil_run(root))
    parameters = code('run_path: str = ""\nevil: str = ""', "parameters")
    setup = code(
        "import numpy as np, pandas as pd, panel as pn\nfrom speechlab import board, plots, runs\n"
        "plots.extension()\nrun = runs.Run(run_path)",
        "setup",
    )
    first = [
        v4.new_markdown_cell("# Training\n\nOur own words."),
        parameters,
        setup,
        code("board.Board(run).panel()", "live"),
        v4.new_markdown_cell("## Board"),
        code("board.Board(run).static()"),
        code("plots.definitions_html(run.config.model_dump())"),
        code("run.config.question"),
    ]
    second = [
        v4.new_markdown_cell("# Evaluation"),
        parameters,
        setup,
        code(
            "rows = [(evil, c, x, .07, .05, .09) for c in ('clean', evil) for x in ('short', evil)]\n"
            "rates = pd.DataFrame(rows, columns=['system', 'condition', 'context', 'wer', 'low', 'high'])\n"
            "pn.panel(plots.error_rates(rates))"
        ),
        code("pn.panel(plots.durations(pd.DataFrame({'split': [evil] * 50 + ['b'] * 50, 'seconds': np.linspace(1, 9, 100)})))"),
        code("pn.panel(plots.word_error_rate(run.validations()))"),
        *(code(f"pn.panel(plots.{name}(plots.curves(run.steps())))") for name in ("loss", "waste")),
        code("plots.table_html(rates, caption=evil)"),
        code("rates"),
        code("print(evil)"),
        code(
            "sound = (run.path / 'samples' / '0.mp3').read_bytes()\n"
            "plots.samples_html([{'id': evil, 'reference': evil, 'hypothesis': evil + ' x', 'audio': sound}])"
        ),
    ]
    executed = []
    for name, cells in (("train", first), ("evaluate", second)):
        path = root / f"{name}.ipynb"
        nbformat.write(v4.new_notebook(cells=cells, metadata=KERNEL), path)
        executed.append(report.execute(path, root / f"{name}.out.ipynb", {"run_path": run.path, "evil": EVIL_TEXT}, progress=False))
    page = report.html(executed, root / "report.html", EVIL_TEXT)
    print(f"report of {page.stat().st_size / 1e6:.1f} MB")
    return page


@pytest.fixture
def offline(browser, report_page):
    page = browser.new_context(offline=True, viewport={"width": 1280, "height": 900}).new_page()
    log = watch(page)
    page.goto(report_page.as_uri())
    page.wait_for_selector("canvas")
    page.wait_for_timeout(2000)
    return page, log


def test_the_report_works_offline_from_disk(offline, report_page):
    page, log = offline
    assert log.external == []
    assert log.errors == []
    figures = page.locator(".bk-Figure")
    assert figures.count() == 7 + 5
    assert all(f.locator("canvas").first.bounding_box()["width"] > 200 for f in figures.all())
    inked = "c => new Set(new Uint32Array(c.getContext('2d').getImageData(0, 0, c.width, c.height).data.buffer)).size"
    assert all(f.locator("canvas").first.evaluate(inked) > 10 for f in figures.all()), "an empty figure"
    assert report_page.stat().st_size < 6e6, "the JavaScript, 3.5 MB, is there more than once"


def test_the_report_plays(offline):
    page, _ = offline
    players = page.locator("audio").all()
    assert len(players) == 5
    for player in players:
        heard = play(player)
        assert heard["ready"] >= 2
        assert heard["time"] > 0
        assert heard["duration"] == pytest.approx(1.5, abs=0.1)


def test_the_report_answers_the_mouse(offline):
    page, _ = offline
    canvas = page.locator(".bk-Figure").first.locator("canvas").first
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.locator(".bk-Tooltip").get_by_text("smoothed").first.wait_for(timeout=30_000)


def test_nothing_injected_runs_in_the_report(offline):
    page, _ = offline
    for figure in page.locator(".bk-Figure").all():
        figure.scroll_into_view_if_needed()
        box = figure.bounding_box()
        for share in (0.25, 0.4, 0.5, 0.6, 0.75):  # tooltips show text too
            page.mouse.move(box["x"] + share * box["width"], box["y"] + 0.5 * box["height"])
            page.wait_for_timeout(30)
    for summary in page.locator("summary").all():
        summary.click()
    assert not pwned(page)
    assert page.get_by_text("window.pwned").count() > 10
    assert page.title() == " ".join(EVIL_TEXT.split())


@pytest.mark.parametrize("evil", EVIL)
def test_an_unescaped_insert_in_the_report_would_run(browser, report_page, tmp_path, evil):
    """Negative control of the test above."""
    page = browser.new_context(offline=True).new_page()
    bad = tmp_path / "bad.html"
    bad.write_text(report_page.read_text("utf-8").replace("<main>", f'<main><div title="{evil}">{evil}</div>', 1), "utf-8")
    page.goto(bad.as_uri())
    page.wait_for_function("window.pwned === 1", timeout=30_000)


@pytest.mark.parametrize(("scheme", "dark"), [("light", False), ("dark", True)])
@pytest.mark.parametrize("width", [1280, 390])
def test_the_report_reads_in_light_and_dark_and_on_a_telephone(browser, report_page, scheme, dark, width):
    page = browser.new_context(offline=True, color_scheme=scheme, viewport={"width": width, "height": 800}).new_page()
    page.goto(report_page.as_uri())
    page.wait_for_selector(".tiles b")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    luminance = """e => { const style = getComputedStyle(e), colour = e.tagName == 'BODY' ? style.backgroundColor : style.color;
                           const [r, g, b] = colour.match(/[0-9.]+/g).map(Number); return (r + g + b) / 765; }"""
    ground, ink = page.locator("body").evaluate(luminance), page.locator(".tiles b").first.evaluate(luminance)
    assert abs(ground - ink) > 0.6
    assert (ground < 0.5) == dark
    assert barriers(page) == []


def test_every_figure_and_picture_of_the_report_says_what_it_shows(offline):
    page, _ = offline
    told = page.locator(".bk-Figure").evaluate_all("all => all.map(e => [e.getAttribute('role'), e.getAttribute('aria-label')])")
    assert {role for role, _ in told} == {"img"}
    assert any(label.startswith("Loss; loss (nats per token) over optimizer step; each step: 9 values, from ") for _, label in told)
    assert any(label.startswith("WER, 95 % interval; ") and ": 7 [5, 9]" in label for _, label in told), told
    assert any(label.startswith("Validation word error rate; WER (%) over optimizer step; 3: 5.667, 6: 4.333, 9: 3") for _, label in told)
    assert all(page.locator("img").evaluate_all("all => all.map(e => e.alt)"))
    assert all(page.locator("audio").evaluate_all("all => all.map(e => e.ariaLabel)"))


def test_the_contents_lead_to_every_heading(offline):
    page, _ = offline
    links = page.locator("nav a")
    lost = "links => links.filter(a => !document.getElementById(decodeURIComponent(a.hash.slice(1)))).map(a => a.hash)"
    assert links.evaluate_all(lost) == []
    assert links.all_inner_texts() == page.locator("main :is(h1, h2)").all_inner_texts() == ["Training", "Board", "Evaluation"]
    links.last.click()
    assert page.get_by_role("heading", name="Evaluation").bounding_box()["y"] < 100
    links.last.evaluate("a => a.hash = '#nowhere'")
    assert links.evaluate_all(lost) == ["#nowhere"], "negative control"


@pytest.mark.parametrize("width", [1280, 700])
def test_a_printed_report_cuts_no_figure_and_shows_no_control(browser, report_page, width):
    page = browser.new_context(offline=True, color_scheme="dark", viewport={"width": width, "height": 900}).new_page()
    page.goto(report_page.as_uri())
    page.wait_for_selector("canvas")
    page.wait_for_timeout(2000)
    figures = page.locator(".bk-Figure")
    assert set(figures.evaluate_all("all => all.map(e => getComputedStyle(e).breakInside)")) == {"avoid"}
    page.emulate_media(media="print")
    page.set_viewport_size({"width": 703, "height": 1032})  # A4 but for its margins of 12 mm
    for place in ("nav", "audio", "summary", ".screen"):
        assert not any(e.is_visible() for e in page.locator(place).all()), place
    assert all(f.bounding_box()["x"] + f.bounding_box()["width"] <= 704 for f in figures.all())
    assert page.locator("body").evaluate("e => getComputedStyle(e).backgroundColor") == "rgb(255, 255, 255)"
    sheet = page.pdf(prefer_css_page_size=True, format="A4")
    assert sheet.startswith(b"%PDF") and len(sheet) > 50_000
    page.emulate_media(media="screen")
    assert page.locator("nav").is_visible() and page.locator("audio").first.is_visible(), "control"


def test_what_keeps_people_out_is_found(browser):
    """Behind a shadow root, as all of Panel's widgets are; the negative control of every test that asks for barriers."""
    page = browser.new_page()
    page.set_content("<!doctype html><html lang=en><title>t</title><main><h1>t</h1><div id=host></div></main>")
    planted = "body => document.getElementById('host').attachShadow({mode: 'open'}).innerHTML = body"
    page.evaluate(
        planted, "<button><svg width=9 height=9></svg></button><p style='color:#aaa;background:#fff'>faint</p><button>ok</button>"
    )
    assert [line.partition(":")[0] for line in sorted(barriers(page))] == ["button-name", "color-contrast"]
