"""The served app: each page and control in Chromium, and a table of attacks against the live server, each with its control."""

from __future__ import annotations

import html
import json
import re
import shutil
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import quote

import outline
import pytest
import visits
from accessible import barriers
from browser import EVIL_TEXT, answers, becomes, ended, free_port, make_run, on_a_page, play, pwned, step_event, watch
from heard import heard
from playwright.sync_api import expect
from sidelong import evaluated, trained
from visits import sent

from speechlab import app, board, conditions, config, corpora, evaluation, text
from speechlab.app import TITLES, App, address_of, nav_html
from speechlab.catalogue import Catalogue
from speechlab.errors import InputError
from speechlab.jobs import Queue
from speechlab.runs import Run

PAGES = {
    "/": "Runs",
    "/run": "Which run?",
    "/launch": "Launch",
    "/errors": "Whose errors?",
    "/compare": "Compare",
    "/playground": "Playground",
    "/system": "System",
}
SECRET = "the-secret-outside"


@pytest.fixture
def served():
    """Serve the app over a folder from a thread; returns its address."""
    threads = []

    def start(root: Path, queue: Queue | None = None) -> str:
        port = free_port()
        threads.append(app.serve(root, port=port, threaded=True, queue=queue))
        answers(port)
        return f"http://127.0.0.1:{port}/"

    yield start
    ended(*threads)


@pytest.fixture
def runs(tmp_path) -> Path:
    """A folder of runs: one that goes on, two evaluated ones, a broken one; and a run beside the folder."""
    root = tmp_path / "reports"
    root.mkdir()
    make_run(root, steps=9, name="live", end=False)
    for name in ("first", "second"):
        run = trained(root, name)
        evaluated(run)
        run.path.rename(root / name)
    (make_run(root, steps=3, epochs=1, name="broken").path / "config.yaml").write_text("name: [")
    make_run(tmp_path, steps=3, epochs=1, name="outside", question=SECRET)
    return root


def hear(root: Path, name: str, answer: str = "something else", evil: str = "") -> Run:
    """A run with evaluations of three real clips, clean and in noise, in which every answer is the same."""
    experiment = config.load("configs/quickstart.yaml", ["corpus.limit=3", "model.weights=null", "model.family=conformer"])
    run = Run.create(experiment, root)
    run = Run(run.path.rename(root / name))
    cuts = list(corpora.configured(experiment.corpus).cuts["test"])
    for condition in ("clean", "white-10db"):
        known = conditions.prepare(condition, cuts, experiment.seed)
        texts = [(evil or c.supervisions[0].text, answer) for c in cuts]
        made = heard(cuts, texts, condition=condition, context="clip", system="trained", heard_sha256=known.sha256)
        if evil:
            made = type(made)(**{**vars(made), "normaliser": "raw 1 (x)"})  # so that the markup is still there
        evaluation.save(run.path / "evaluations", made)
    return run


def opened(browser, url: str, **context):
    page = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **context}).new_page()
    log = watch(page)
    page.goto(url)
    return page, log


def says(page, words: str | re.Pattern, timeout: int = 60_000) -> None:
    page.get_by_text(words).first.wait_for(timeout=timeout)


def pulled(url: str, page: str = "", **asked: str) -> str:
    """All texts that a page holds, as the server sends it over the websocket, without a browser."""
    from bokeh.client import pull_session

    def pull() -> str:
        session = pull_session(url=url + page, arguments=asked)
        try:
            texts = [getattr(model, "text", "") for model in session.document.models]
            return html.unescape(" ".join(text for text in texts if isinstance(text, str)))
        finally:
            session.close()

    with ThreadPoolExecutor(1) as apart:  # Playwright's loop runs in this thread
        return apart.submit(pull).result()


# -- without a browser -------------------------------------------------------------------------------


def test_the_bar_marks_the_page_that_is_shown():
    for address, title in TITLES.items():
        marked = re.findall(r'<a href="([^"]*)" aria-current="page">([^<]*)</a>', nav_html(address))
        assert marked == [("./" if address == "/" else address[1:], title)]
    assert set(App().pages()) == set(TITLES)


@pytest.mark.parametrize("address", ["0.0.0.0", "192.168.1.5", "example.org", ""])
def test_the_app_is_served_on_loopback_only(tmp_path, address):
    with pytest.raises(InputError, match="a login: speechlab user"):
        app.serve(tmp_path, address=address, threaded=True)


def test_a_taken_port_is_an_input_error(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(InputError, match="free port"):
            app.serve(tmp_path, port=taken.getsockname()[1], threaded=True)


def test_an_address_leads_to_a_run_whatever_it_is_called(tmp_path):
    run = make_run(tmp_path, steps=1, epochs=1, name="a b&c")
    assert address_of(run) == "http://127.0.0.1:5006/run?run=a%20b%26c"
    assert address_of(None, "::1", 80) == "http://[::1]:80/"


# -- attacks -----------------------------------------------------------------------------------------


def shaken(url: str, page: str, origin: str | None, host: str | None = None) -> int:
    """The status of a websocket's handshake, with a token that the server has just made."""
    return visits.shaken(url, page, visits.token(url, page), Origin=origin, Host=host)


@pytest.mark.slow
def test_websockets_are_taken_from_the_own_origin_only(served, runs):
    url = served(runs)
    own = url.rstrip("/")
    port = own.rpartition(":")[2]
    others = ("http://evil.example", f"http://127.0.0.1:{int(port) + 1}", f"http://localhost:{port}", f"http://127.0.0.1.evil.example:{port}",
              f"http://evil.example:{port}", "null", "file://", f"http://127.0.0.1:{port}@evil.example")  # fmt: skip
    for page in PAGES:
        assert shaken(url, page, own) == 101, "control"
        assert {origin: shaken(url, page, origin) for origin in others} == dict.fromkeys(others, 403)


@pytest.mark.slow
def test_a_name_that_is_bound_to_this_machine_gets_no_run(served, runs):
    """DNS rebinding: a page of evil.example, whose address has become 127.0.0.1, asks as its own origin, which Tornado lets pass."""
    url = served(runs)
    own = url.rstrip("/")
    port = own.rpartition(":")[2]
    evil = f"evil.example:{port}"
    (runs / "first").rename(runs / "quokka")
    for page in PAGES:
        status, _, body = sent(url, page, Host=evil)
        assert (status, "quokka" in body) == (403, False)
        for origin in (f"http://{evil}", own, None):
            assert shaken(url, page, origin, host=evil) == 403
        assert shaken(url, page, own, host=own.removeprefix("http://")) == 101, "control"
    assert "quokka" in pulled(url), "control: over the websocket they come"


@pytest.mark.slow
def test_every_answer_carries_the_policy(served, runs):
    url = served(runs)
    for path in [*PAGES, "/static/js/bokeh.min.js", "/nowhere", "/favicon.ico"]:
        _, headers, _ = sent(url, path)
        assert "frame-ancestors 'none'" in headers["content-security-policy"], path
        assert headers["x-frame-options"] == "DENY"
        assert headers["x-content-type-options"] == "nosniff"


TRAVERSALS = [
    "../outside",
    "..",
    ".",
    "/etc",
    "../../etc/passwd",
    "..%2foutside",
    "%2e%2e/outside",
    "a\x00b",
    "live/../../outside",
    "out",
    "latest",
]


@pytest.mark.slow
@pytest.mark.parametrize(("page", "names"), [("run", ("run",)), ("errors", ("run",)), ("compare", ("a", "b"))])
def test_no_address_leads_out_of_the_folder(served, runs, page, names):
    url = served(runs)
    evaluated(Run(runs.parent / "outside"))
    (runs / "out").symlink_to(runs.parent / "outside")
    for name in TRAVERSALS:
        told = pulled(url, page, **dict.fromkeys(names, name))
        assert SECRET not in told, name
        assert "no such run" in told or "leads out" in told, name
        assert "Traceback" not in told
    evaluated(Run(runs / "live"))
    shutil.copytree(runs.parent / "outside", runs / "inside")
    inside = pulled(url, page, **dict.fromkeys(names, "inside"))
    assert "no such run" not in inside and "leads out" not in inside, "control"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["../../config.yaml", "..", "finetuned--clean--silence/../../x", "x", "\x00", "%2e%2e"])
def test_no_evaluation_s_name_leads_out_of_its_run(served, runs, name):
    told = pulled(served(runs), "errors", run="first", evaluation=name)
    assert "holds no such evaluation" in told
    assert "finetuned--clean--silence" in told, "what there is"


@pytest.mark.slow
@pytest.mark.parametrize(
    "path",
    ["/static/../../etc/passwd", "/static/%2e%2e/%2e%2e/%2e%2e/etc/passwd", "/static/extensions/panel/../../../../../../etc/passwd",
     "/run/static/..%2f..%2f..%2fetc/passwd", "/components/speechlab/../../etc/passwd", "//etc/passwd", "/reports/first/config.yaml"],
)  # fmt: skip
def test_no_file_of_the_machine_is_served(served, runs, path):
    url = served(runs)
    status, _, body = sent(url, path)
    assert status in (400, 403, 404)
    assert "root:" not in body and "corpus:" not in body
    assert sent(url, "/static/js/bokeh.min.js")[0] == 200, "control"


@pytest.mark.slow
def test_an_address_alone_changes_nothing(served, runs):
    url = served(runs)
    run = Run(runs / "live")
    with run.lock():
        for more in ("stop=1", "resume=1", "deed=stop", "yes=1"):
            assert sent(url, f"/run?run=live&{more}")[0] == 200
        for method in ("POST", "PUT", "DELETE"):
            assert sent(url, "/run?run=live", method, Content_Length="0")[0] in (403, 405)
        time.sleep(1)
    assert not run.stop_file.exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["nobody", "<script>window.pwned=1</script>", "x" * 5000, "é漢"])
def test_an_unknown_run_is_a_page_that_says_so(chrome, served, runs, name):
    url = served(runs)
    for page in ("run?run=", "errors?run=", "compare?b=first&a="):
        shown, log = opened(chrome, url + page + quote(name, safe=""))
        says(shown, "There is no such run.")
        expect(shown.get_by_role("link", name="all runs")).to_have_count(1)
        assert "Traceback" not in shown.content()
        assert not pwned(shown)
        assert log.errors == []
        shown.context.close()


@pytest.mark.slow
def test_an_error_of_ours_is_a_page_too_and_is_logged(served, runs, monkeypatch, caplog):
    def fail(self, asked):
        raise ZeroDivisionError("one of ours")

    monkeypatch.setattr(App, "_system", fail)
    told = pulled(served(runs), "system")
    assert "ZeroDivisionError: one of ours" in told
    assert "Traceback" not in told
    assert "a page could not be made" in caplog.text


@pytest.mark.slow
def test_the_app_is_shown_in_no_other_page(chrome, served, runs):
    """Or a click that was meant for another page could stop a run."""
    url = served(runs)
    thread, bare = on_a_page(lambda: board.page(board.Board(runs / "live").panel()))
    try:
        page = chrome.new_page()
        page.set_content(f'<iframe src="{bare}" id="board"></iframe><iframe src="{url}run?run=live" id="app"></iframe>')
        page.frame_locator("#board").locator(".badge").first.wait_for(timeout=60_000)  # control
        page.wait_for_timeout(2000)
        assert page.frame_locator("#app").locator(".badge").count() == 0
        assert page.frame_locator("#app").locator("nav").count() == 0
    finally:
        ended(thread)


@pytest.mark.slow
def test_the_browser_lets_nothing_out(chrome, served, runs):
    url = served(runs)
    page, log = opened(chrome, url)
    says(page, "4 runs")
    fetched = "url => fetch(url, {mode: 'no-cors'}).then(() => 'went', () => 'stayed')"
    assert page.evaluate(fetched, url) == "went", "control"
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        assert page.evaluate(fetched, f"http://127.0.0.1:{other.getsockname()[1]}/") == "stayed"
    assert any("Content Security Policy" in error for error in log.errors)


@pytest.mark.slow
def test_no_text_of_a_run_runs_on_any_page(chrome, served, tmp_path, monkeypatch, prompts):
    name = "<img src=x onerror=window.pwned=1>"
    root = tmp_path / "reports"
    root.mkdir()
    run = make_run(root, steps=9, evil=EVIL_TEXT, name=name, end=False)
    run.append({"kind": "failure", "error": EVIL_TEXT})
    hear(root, name + "2", EVIL_TEXT + " heard", evil=EVIL_TEXT)
    hear(root, name + "3", EVIL_TEXT, evil=EVIL_TEXT)
    bad = make_run(root, steps=3, epochs=1, name=name + "4")
    (bad.path / "config.yaml").write_text(f"{json.dumps(EVIL_TEXT)}: 1\n")
    two, three = quote(name + "2"), quote(name + "3")
    addresses = [
        "",
        f"run?run={quote(name)}",
        f"errors?run={two}",
        f"compare?a={two}&b={three}",
        f"run?run={quote(EVIL_TEXT)}",
        "run",
        "compare",
    ]

    def visit() -> list[bool]:
        url = served(root)
        ran = []
        for address in addresses:
            page, log = opened(chrome, url + address)
            page.locator(".speechlab").first.wait_for(timeout=60_000)
            page.wait_for_timeout(4000)
            read = page.get_by_text("window.pwned")
            assert becomes(lambda page=page, read=read: read.count() > 0 or any([*ran, pwned(page)])), "the text itself is to be read"
            assert log.external == []
            ran.append(pwned(page))
            page.context.close()
        return ran

    assert visit() == [False] * len(addresses)
    monkeypatch.setattr(text, "escape", str)  # negative control
    assert any(visit())


# -- each page and control ---------------------------------------------------------------------------


@pytest.mark.slow
def test_every_page_is_reached_by_keyboard_and_marked(chrome, served, runs):
    page, log = opened(chrome, served(runs))
    says(page, "4 runs")
    for i, (address, heading) in enumerate(PAGES.items()):
        page.locator("nav a").first.focus()
        for _ in range(i):
            page.keyboard.press("Tab")
        page.keyboard.press("Enter")
        page.wait_for_url(f"**{address}")
        page.get_by_role("heading", name=heading).first.wait_for(timeout=60_000)
        assert page.locator("nav a[aria-current]").all_inner_texts() == [TITLES[address]]
        assert page.title() == f"{TITLES[address]} · SpeechLab"
    assert log.external == []
    assert log.errors == []


@pytest.mark.slow
def test_runs_grow_break_vanish_and_appear_on_the_open_page(chrome, served, runs):
    page, log = opened(chrome, served(runs))
    says(page, "4 runs: 1 running, 2 finished, 1 broken")
    expect(page.locator(".run .name").first).to_have_text("live")
    says(page, "YAML")
    says(page, "step 9 of 9")
    Run(runs / "live").append(step_event(10, 20))
    says(page, "step 10 of 9")
    make_run(runs, steps=3, epochs=1, name="new")
    says(page, "5 runs")
    shutil.rmtree(runs / "broken")
    says(page, "4 runs: 1 running, 3 finished")
    expect(page.locator(".run .name", has_text="broken")).to_have_count(0)
    Run(runs / "live").append({"kind": "failure", "error": "no more"})
    says(page, "1 failed")
    shutil.rmtree(runs)
    says(page, "There is no run yet.")
    assert log.external == []
    assert log.errors == []


@pytest.mark.slow
def test_the_filter_and_the_ticks_lead_to_a_comparison(chrome, served, runs, monkeypatch):
    look = Catalogue.look
    monkeypatch.setattr(Catalogue, "look", lambda self: (time.sleep(0.2), look(self))[1])  # who types is faster than the server
    page, log = opened(chrome, served(runs))
    says(page, "Tick two runs")
    ticks = page.get_by_role("checkbox")
    expect(ticks).to_have_count(4)
    names = page.locator(".run .name").all_inner_texts()
    assert becomes(lambda: [ticks.nth(i).is_enabled() for i in range(4)] == [name in ("first", "second") for name in names])
    ticks.nth(names.index("first")).check()
    says(page, "first is ticked")
    page.get_by_placeholder("all runs").type("second", delay=70)
    page.locator(".run .name", has_text="live").wait_for(state="detached", timeout=30_000)
    expect(page.get_by_placeholder("all runs")).to_have_value("second")
    expect(page.locator(".run .name")).to_have_text(["second"])
    page.get_by_role("checkbox").check()
    Run(runs / "live").append(step_event(10, 20))  # what changes elsewhere takes no tick away
    link = page.get_by_role("link", name=re.compile("^Compare .* with"))
    link.wait_for(timeout=30_000)
    page.get_by_placeholder("all runs").fill("")
    page.locator(".run .name", has_text="live").wait_for(timeout=30_000)
    assert becomes(lambda: [ticks.nth(i).is_checked() for i in range(ticks.count())] == [name in ("first", "second") for name in names])
    link.click()
    says(page, re.compile(r"^OK: \+0.00 points"))
    assert re.search(r"compare\?a=(first&b=second|second&b=first)$", page.url)
    assert log.errors == []


@pytest.mark.slow
def test_a_run_is_tagged_found_and_deleted_on_its_page(chrome, served, runs):
    page, log = opened(chrome, served(runs))
    says(page, "4 runs")
    expect(page.get_by_role("checkbox", name="compare second"), "a name of its own for who hears the page").to_have_count(1)
    page.get_by_role("button", name="Tag or delete second").click()
    page.get_by_label("Tags of second").fill("baseline, v2 new")
    page.get_by_role("button", name="Save").click()
    says(page, "#v2 new")
    assert (runs / "second" / "tags.txt").read_text() == "baseline\nv2 new\n"
    page.get_by_placeholder("all runs").type("#base")
    page.locator(".run .name", has_text="live").wait_for(state="detached", timeout=30_000)
    expect(page.locator(".run .name")).to_have_text(["second"])
    page.get_by_role("button", name="Tag or delete second").click()
    page.get_by_role("button", name="Delete the run").click()
    says(page, "Delete second with all that is in its directory")
    assert (runs / "second").exists()
    page.get_by_role("button", name="Yes, delete it").click()
    says(page, "No run holds")
    assert not (runs / "second").exists() and (runs / "first").exists()
    assert log.external == []
    assert log.errors == []


@pytest.mark.slow
def test_two_runs_are_compared_by_address_and_by_form(chrome, served, runs):
    url = served(runs)
    page, log = opened(chrome, url + "compare?a=first:pretrained&b=first")
    says(page, re.compile(r"^(OK|INCONCLUSIVE): -20.00 points"))
    says(page, "sign-flip over speakers")
    page.locator("canvas").first.wait_for()
    table = page.locator("table", has_text="b − a, points")
    expect(table).to_contain_text("clean")
    page.get_by_label("a: in use").select_option("second")
    page.get_by_role("button", name="Compare").click()
    page.wait_for_url("**/compare?a=second&b=first")
    says(page, re.compile(r"^OK: \+0.00 points"))
    page.go_back()
    says(page, re.compile(r"-20.00 points"))
    assert log.external == []
    assert log.errors == []


@pytest.mark.slow
def test_the_board_of_a_run_is_followed_and_leads_to_its_errors(chrome, served, runs):
    url = served(runs)
    page, log = opened(chrome, url + "run?run=live")
    page.locator(".tiles b").get_by_text("9 / 9").wait_for(timeout=60_000)
    Run(runs / "live").append(step_event(10))
    page.locator(".tiles b").get_by_text("10 / 9").wait_for(timeout=60_000)
    assert page.get_by_role("link", name="its errors").count() == 0, "it was not evaluated"
    page.goto(url + "run?run=first")
    page.get_by_role("link", name="its errors").wait_for(timeout=60_000)
    page.get_by_role("link", name="before and after training").click()
    says(page, re.compile(r"-20.00 points"))
    page.goto(url + "run?run=broken")  # what there is of it
    page.locator(".tiles b").get_by_text("3 / 3").wait_for(timeout=60_000)
    assert log.external == []
    assert log.errors == []


@pytest.mark.slow
def test_errors_open_by_address_and_by_form(chrome, served, runs, prompts):
    hear(runs, "heard")
    url = served(runs)
    page, log = opened(chrome, url + "errors")
    page.get_by_label("Run").select_option("heard")
    page.get_by_role("button", name="Open").click()
    page.wait_for_url("**/errors?run=heard")
    says(page, "1 to 3 of 3", 120_000)
    says(page, "As recorded.")
    assert play(page.locator(".case:visible audio").first)["time"] > 0
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        assert barriers(page) == []
    page.get_by_placeholder("said > heard").fill("something")
    page.keyboard.press("Enter")
    says(page, "“something”")
    page.get_by_label("Evaluation").select_option("trained--white-10db--clip")
    page.get_by_role("button", name="Open").click()
    page.wait_for_url("**/errors?run=heard&evaluation=trained--white-10db--clip")
    says(page, re.compile("10 dB"), 120_000)
    page.goto(url + "errors?run=first&evaluation=trained--clean--clip")  # as the form asks once another run is chosen
    says(page, "Run first holds no such evaluation.")
    page.get_by_label("Run").wait_for()
    page.goto(url + "errors?run=first")  # made up, of no corpus
    says(page, re.compile("The clips are not those|could not|cannot"), 120_000)
    page.goto(url + "errors?run=live")
    says(page, "Run live has not been evaluated.")
    says(page, "speechlab evaluate live")
    assert log.external == []
    assert log.errors == []


@pytest.mark.slow
def test_the_machine_is_shown_and_moves(chrome, served, runs):
    page, log = opened(chrome, served(runs) + "system")
    says(page, "processor")
    assert page.get_by_role("meter").count() >= 3
    says(page, "Ray here")
    before = page.locator(".part").first.inner_text()
    assert becomes(lambda: page.locator(".part").first.inner_text() != before)
    assert log.external == []
    assert log.errors == []


@pytest.mark.slow
def test_an_empty_folder_says_on_every_page_what_to_do(chrome, served, tmp_path):
    url = served(tmp_path / "none")
    for address, told in {"": "make report", "run": "make report", "errors": "speechlab evaluate", "compare": "speechlab evaluate"}.items():
        page, log = opened(chrome, url + address)
        says(page, re.compile(told))
        assert log.errors == []
        page.context.close()


@pytest.mark.slow
@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (1280, "dark"), (390, "light"), (390, "dark")])
def test_every_page_fits_its_window_and_reads(chrome, served, runs, width, scheme):
    url = served(runs)
    luminance = "e => { const [r, g, b] = (getComputedStyle(e).color.match(/[0-9.]+/g) ?? []).map(Number); return (r + g + b) / 765; }"
    for address in ("", "run?run=live", "run", "launch", "errors", "compare?a=first&b=second", "playground", "system", "run?run=nobody"):
        page, log = opened(chrome, url + address, viewport={"width": width, "height": 800}, color_scheme=scheme)
        page.locator(".speechlab").first.wait_for(timeout=60_000)
        page.wait_for_timeout(1500)
        assert page.evaluate("document.documentElement.scrollWidth") <= width, address
        for place in ("nav a", ".speechlab"):
            lights = [page.locator(place).first.evaluate(luminance) for _ in range(5)]
            known = [light for light in lights if light == light]  # none of a text that was just written anew
            assert known and all((light > 0.5) == (scheme == "dark") for light in known), (address, place)
        assert barriers(page) == [], address
        assert log.external == []
        outline.compare(page, address or "runs", f"{width}-{scheme}")
        page.context.close()


@pytest.mark.slow
def test_a_long_name_stays_within_a_narrow_window(chrome, served, tmp_path):
    make_run(tmp_path, name="whisper-tiny.en-of-a-very-long-name-" + "9" * 60)
    page, _ = opened(chrome, served(tmp_path) + "run", viewport={"width": 390, "height": 800})
    choice = page.locator("select")
    choice.wait_for(timeout=60_000)
    box = choice.bounding_box()
    assert box["x"] + box["width"] <= 390


def test_a_button_that_is_gone_and_a_column_more_are_told(chrome):
    """Control of the comparison of outlines."""
    page = chrome.new_page()
    whole = "<h1>Runs</h1><p>4 runs</p><table><thead><tr><th>clip 1</th><th>text</th></tr></thead></table><button>Stop</button>"
    page.set_content(whole)
    known = outline.outline(page)
    assert known == ['heading "Runs" [level=1]', 'columnheader "clip 0"', 'columnheader "text"', 'button "Stop"']
    for other in (whole.replace("<button>Stop</button>", ""), whole.replace("</tr>", "<th>WER</th></tr>"), whole.replace("Stop", "Go")):
        page.set_content(other)
        assert outline.outline(page) != known
    page.set_content(whole.replace("4 runs", "5 runs").replace("clip 1", "clip 23"))
    assert outline.outline(page) == known
    page.close()


@pytest.mark.slow
def test_times_are_in_the_zone_of_the_reader(chrome, served, runs):
    """The same moment, and where it is another day the other day; behind shadow roots, in texts that are written anew."""
    run = make_run(runs, steps=3, epochs=1, name="dated")
    (run.path / "events.jsonl").write_text("")
    run.append({"kind": "start", "time": 1_795_000_000.0, "steps": 3, "epochs": 1, "workers": 1, "device": "cpu", "resumed_from": None})
    run.append({"kind": "message", "time": 1_795_000_000.0, "level": "info", "text": "a message"})
    url = served(runs)
    shown = {}
    for zone in ("Pacific/Auckland", "America/Los_Angeles"):
        for address in ("", "run?run=dated"):
            page, log = opened(chrome, url + address, timezone_id=zone, locale="en-GB")
            time_of = page.locator("time[datetime='2026-11-18T11:06:40Z']")
            time_of.first.wait_for(timeout=60_000)
            shown[zone, address] = time_of.first.inner_text()
            assert re.fullmatch(r"2026-11-18 \d\d:\d\d UTC[+-]\d\d:\d\d", time_of.first.get_attribute("title")), (
                "with its offset, on demand"
            )
            assert log.errors == []
            page.context.close()
    assert shown["Pacific/Auckland", ""] == shown["Pacific/Auckland", "run?run=dated"] == "19 Nov 2026, 00:06"
    assert shown["America/Los_Angeles", ""] == shown["America/Los_Angeles", "run?run=dated"] == "18 Nov 2026, 03:06"


@pytest.mark.slow
def test_the_command_line_opens_at_a_run(runs, tmp_path):
    port = free_port()
    command = [sys.executable, "-m", "speechlab", "dashboard", str(runs / "live"), "--port", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        assert server.stdout.readline().strip() == f"live on http://127.0.0.1:{port}/run?run=live (Ctrl-C ends it)"
        answers(port, 120)
        assert "9 / 9" in pulled(f"http://127.0.0.1:{port}/", "run", run="live")
        assert "4 runs" in pulled(f"http://127.0.0.1:{port}/"), "the folder that the run lies in"
    finally:
        server.terminate()
        server.wait(timeout=30)
