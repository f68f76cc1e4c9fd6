"""The explorer: what clicks, searches and buttons list, and the same in Chromium and in JupyterLab with a person's mouse."""

from __future__ import annotations

import re

import panel as pn
import pytest
from browser import EVIL_TEXT, becomes, ended, on_a_page, play, pwned, settle, watch
from bs4 import BeautifulSoup
from heard import clips, heard
from playwright.sync_api import expect
from test_cases import run  # noqa: F401
from test_lab import lab, run_all  # noqa: F401
from test_plots import live_markup

from speechlab import board, cases, confusions, corpora, likeness, text
from speechlab.errors import InputError
from speechlab.explorer import PAGE, Explorer, _Desk
from speechlab.findings import SECTIONS

TEXTS = [
    ("press three", "press free"),
    ("hold the line", "hold the lion"),
    ("three lines", "free lines"),
    ("please hold", "please hold"),
    ("hold the line please", "hold line please now"),
    *(("goodbye", "goodbye"),) * 8,
    *(("again", "a gain"),) * 12,
]


@pytest.fixture(scope="module")
def cuts(prompts):
    return clips(prompts, len(TEXTS))


@pytest.fixture(scope="module")
def made(cuts, tmp_path_factory) -> Explorer:
    """An explorer of known errors, whose sounds are the ids' hashes."""
    e = heard(cuts, TEXTS, [[0.9 - 0.01 * i] * len(h.split()) for i, (_, h) in enumerate(TEXTS)])
    index = likeness.prepare(e, cuts, tmp_path_factory.mktemp("explorer"))
    index.spaces["sound"] = index.spaces["wording"][::-1].copy()  # as unlike the wording as can be
    return Explorer(e, cuts, index)


@pytest.fixture
def desk(made) -> _Desk:
    return _Desk(made)


def listed(desk: _Desk) -> list[str]:
    return [slot.id for slot in desk.slots if slot.layout.visible]


def head(desk: _Desk) -> list[str]:
    soup = BeautifulSoup(desk.title.value, "html.parser")
    return [soup.h3.text, soup.p.text]


def button(layout, name: str):
    return next(b for b in layout.select(pn.widgets.Button) if b.name == name)


def test_it_opens_with_the_hardest(desk, made, cuts):
    assert head(desk) == ["Most errors first", "1 to 10 of 16"]
    assert listed(desk)[0] == made.cases.hardest(1)[0]
    assert desk.slots[0].view.value.count("<audio") == 1
    assert "data:audio/mpeg" in desk.slots[0].view.value
    assert "25 utterances: WER" in desk.layout[0].value
    assert "these speakers" in desk.layout[0].value


def test_pages_turn_to_the_end_and_back(desk, made):
    ids = made.cases.hardest(99)
    desk.on.clicks += 1
    assert listed(desk) == ids[PAGE:]
    assert head(desk)[1] == "11 to 16 of 16"
    assert (desk.on.disabled, desk.back.disabled) == (True, False)
    assert desk.slots[PAGE - 1].view.value == ""
    desk.back.clicks += 1
    assert listed(desk) == ids[:PAGE]
    assert (desk.on.disabled, desk.back.disabled) == (False, True)


def test_a_click_on_a_bar_lists_its_utterances(desk, cuts):
    desk.streams[0].event(index=[0])
    pair, _ = head(desk)
    assert pair in ("three → free", "again → gain")
    rows = {"three → free": [cuts[0].id, cuts[2].id], "line → lion": [cuts[1].id]}
    for at in range(3):
        desk.streams[0].event(index=[at])
        if head(desk)[0] in rows:
            assert listed(desk) == rows.pop(head(desk)[0])
    assert not rows
    before = head(desk)
    desk.streams[0].event(index=[])
    assert head(desk) == before, "a click beside all bars"


def test_every_stream_lists_something(desk, made):
    assert len(desk.streams) == sum(len(f.picks) for name in SECTIONS for f in made.findings.section(name))
    for stream in desk.streams:
        desk.show("nothing yet", [])
        stream.event(index=[0])
        assert head(desk)[0] != "nothing yet"


def test_a_search_lists_what_it_finds(desk, cuts):
    desk.search.value = "Line"
    assert head(desk)[0] == "“Line”"
    assert listed(desk)[:2] == [cuts[1].id, cuts[4].id]
    assert "said, not heard" in desk.slots[0].view.value
    desk.search.value = "three > free"
    assert listed(desk) == [cuts[0].id, cuts[2].id]
    desk.search.value = "?"
    assert "nothing to search for" in head(desk)[0]
    assert listed(desk) == []


def test_like_this_goes_on_from_an_utterance(desk, made, cuts):
    desk.streams[0].event(index=[0])
    id = desk.slots[0].id
    by_name = {b.name: b for b in desk.slots[0].buttons}
    by_name["like this by wording"].clicks += 1
    assert head(desk)[0] == f"Like {id}, by wording"
    assert listed(desk) == [id, *made.index.like(id, "wording").id][:PAGE]
    assert "this one" in desk.slots[0].view.value
    assert "likeness" in desk.slots[1].view.value
    second = desk.slots[1].id
    {b.name: b for b in desk.slots[1].buttons}["like this by sound"].clicks += 1
    assert listed(desk) == [second, *made.index.like(second, "sound").id][:PAGE]


def test_other_buttons_list_too(desk, made):
    button(desk.layout, "list: the least sure first").clicks += 1
    assert listed(desk) == made.cases.hardest(PAGE, "confidence")
    button(desk.layout, "hardest first").clicks += 1
    assert listed(desk) == made.cases.hardest(PAGE)


def test_one_section_is_open(desk):
    assert [title for title, section in desk.sections.items() if section.visible] == ["Words"]
    desk.choice.value = "Phones"
    assert [title for title, section in desk.sections.items() if section.visible] == ["Phones"]


def test_two_displays_do_not_disturb_each_other(made, cuts):
    first, second = _Desk(made), _Desk(made)
    first.streams[0].event(index=[0])
    assert head(second)[0] == "Most errors first"


def test_without_an_index_there_is_no_search_and_without_a_model_no_sound(cuts, tmp_path):
    e = heard(cuts, TEXTS)
    bare = _Desk(Explorer(e, cuts))
    assert bare.search.disabled
    assert bare.slots[0].buttons == []
    worded = _Desk(Explorer(e, cuts, likeness.prepare(e, cuts, tmp_path)))
    assert [b.name for b in worded.slots[0].buttons] == ["like this by wording"]


def test_a_static_page_has_the_sections_and_no_buttons(made):
    every, words = made.static(), made.static("words")
    assert list(every.select(pn.widgets.Button)) == []
    assert len(words.select(pn.pane.HoloViews)) == 3
    assert len(every.select(pn.pane.HoloViews)) > 8
    with pytest.raises(InputError, match='did you mean "words"'):
        made.static("wrds")


def test_only_the_page_is_encoded_of_ten_thousand(prompts, monkeypatch):
    few = clips(prompts, 20)
    ids = [f"clip {i:05d}" for i in range(10_000)]
    many = [few[i % 20] for i in range(10_000)]
    known = [corpora.base.clip(i, c.recording.sources[0].source, c.recording.num_samples, "", "s", "en", "test", "")
             for i, c in zip(ids, many, strict=True)]  # fmt: skip
    texts = [(f"the number {i} is busy", f"a number {i} is" if i % 3 else f"the number {i} is busy") for i in range(10_000)]
    loaded = []
    real = corpora.load_audio
    monkeypatch.setattr(corpora, "load_audio", lambda cut: loaded.append(cut.id) or real(cut))
    e = heard(many, texts, ids=ids)
    desk = _Desk(Explorer(e, known, resamples=100))
    assert len(loaded) == PAGE
    size = sum(len(t.value) for t in desk.layout.select(pn.widgets.StaticText))
    assert size < 3e6, "what the page carries does not grow with the evaluation"
    desk.on.clicks += 1
    assert len(loaded) == 2 * PAGE


# --- hostile texts ---


def hostile(cuts, tmp_path) -> Explorer:
    """An explorer whose every text is hostile: transcripts, hypotheses, speakers, columns and an id."""
    texts = [(f"{EVIL_TEXT} three", f"{EVIL_TEXT} free"), (f"a {EVIL_TEXT}", "b"), ("", EVIL_TEXT), ("hello", f"{EVIL_TEXT} " * 6)]
    texts += [("<b>bold</b>", "<i>italic</i>")] * (len(cuts) - 4)
    ids = [EVIL_TEXT, *(c.id for c in cuts[1:])]
    speakers = [EVIL_TEXT if i % 2 else "</script>" for i in range(len(cuts))]
    columns = {"</script><script>window.pwned=1</script>": EVIL_TEXT, "accent": EVIL_TEXT}
    known = [corpora.base.clip(i, c.recording.sources[0].source, c.recording.num_samples, t, s, "en", "test", c.custom["audio"],
                               {name: value if n % 2 else "other" for name, value in columns.items()})
             for n, (i, c, (t, _), s) in enumerate(zip(ids, cuts, texts, speakers, strict=True))]  # fmt: skip
    e = heard(cuts, texts, [[0.5] * len(h.split()) for _, h in texts], ids=ids, speakers=speakers)
    raw = type(e)(**{**vars(e), "normaliser": "raw 1 (x)"})  # so that the markup is still there
    return Explorer(raw, known, likeness.prepare(raw, known, tmp_path))


def test_no_text_becomes_markup(cuts, tmp_path, monkeypatch):
    def live(explorer: Explorer) -> list[str]:
        desk = _Desk(explorer)
        desk.search.value = EVIL_TEXT
        desk.like(EVIL_TEXT, "wording")
        texts = [t.value for page in (desk.layout, explorer.static()) for t in page.select(pn.widgets.StaticText)]
        return [found for value in texts for found in live_markup(value) if found != "img"]

    assert live(hostile(cuts, tmp_path)) == []
    monkeypatch.setattr(text, "escape", str)  # negative control
    assert "script" in live(hostile(cuts, tmp_path))


# --- in a browser ---

AT = """([title, x, y]) => { for (const view of Bokeh.index.query(v => v.model.type == 'Figure'))
    if (view.model.title.text.startsWith(title)) { const box = view.canvas_view?.el.getBoundingClientRect();
        if (box?.width) return [box.x + view.frame.x_scale.compute(x), box.y + view.frame.y_scale.compute(y)]; } }"""


def served(explorer: Explorer):
    return on_a_page(lambda: board.page(explorer.panel()))


def open_page(browser, url, **context):
    page = browser.new_context(**{"viewport": {"width": 1280, "height": 1000}, **context}).new_page()
    log = watch(page)
    page.goto(url)
    page.wait_for_selector(".case")
    page.wait_for_selector("canvas")
    page.wait_for_timeout(500)
    return page, log


def titled(page, title: str | re.Pattern) -> None:
    """Wait until the list has this title."""
    pattern = title if isinstance(title, re.Pattern) else re.compile(f"^{re.escape(title)}$")
    page.locator("h3").filter(has_text=pattern).wait_for(timeout=30_000)


def click_at(page, title: str, x: float, y: float, until: str) -> None:
    """Click on a place of a figure, in its own units, and wait for what is listed."""
    page.wait_for_timeout(500)  # or Bokeh takes two clicks for a double one
    page.mouse.click(*page.wait_for_function(AT, arg=[title, x, y], timeout=30_000).json_value())
    titled(page, until)


def shown(page) -> list[str]:
    return page.locator(".case:visible b").all_inner_texts()


@pytest.mark.slow
def test_clicks_searches_and_likeness_in_chromium(chrome, made, cuts):
    thread, url = served(made)
    try:
        page, log = open_page(chrome, url)
        words = [f.shown for f in made.findings.section("words")]
        for figure, title in zip(words, ("Replaced", "Missed", "Added"), strict=True):
            for at, row in enumerate(figure.data.head(3).itertuples()):
                click_at(page, title, 0.5, at, f"{row.said} → {row.heard}")
                sides = ("" if side == "–" else side for side in (row.said, row.heard))
                table = made.cases.words
                said, heard_ = sides
                assert shown(page) == list(table.id[(table.said == said) & (table.heard == heard_)].unique())[:PAGE]
        page.get_by_role("button", name="Phones", exact=True).click()
        cells = made.findings.section("phones")[1].shown.data
        cell = cells[(cells.said == "TH") & (cells.heard == "F")].iloc[0]
        click_at(page, "Phones by dictionary", float(cell.x), float(cell.y), "TH → F, by pronunciations")
        assert shown(page) == [cuts[0].id, cuts[2].id]
        assert play(page.locator(".case:visible audio").first)["time"] > 0

        page.get_by_placeholder("said > heard").fill("lion")
        page.keyboard.press("Enter")
        titled(page, "“lion”")
        assert shown(page)[0] == cuts[1].id
        for by in ("wording", "sound"):
            id = shown(page)[0]
            page.get_by_role("button", name=f"like this by {by}").first.click()
            titled(page, f"Like {id}, by {by}")
            assert shown(page) == [id, *made.index.like(id, by).id][:PAGE]
        page.get_by_role("button", name="hardest first").click()
        titled(page, "Most errors first")
        page.get_by_role("button", name="▶").click()
        page.get_by_text("11 to 16 of 16").wait_for(timeout=30_000)
        assert log.errors == []
        assert log.external == []
    finally:
        ended(thread)


@pytest.mark.slow
@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (1280, "dark"), (390, "light"), (390, "dark")])
def test_it_fits_its_window_and_reads(chrome, made, width, scheme):
    thread, url = served(made)
    try:
        page, log = open_page(chrome, url, viewport={"width": width, "height": 900}, color_scheme=scheme)
        for title in SECTIONS.values():
            page.get_by_role("button", name=title, exact=True).click()
            page.wait_for_timeout(400)
            assert page.evaluate("document.documentElement.scrollWidth") <= width, title
        luminance = """e => { const [r, g, b] = getComputedStyle(e).color.match(/[0-9.]+/g).map(Number); return (r + g + b) / 765; }"""
        assert (page.locator(".case .heard").first.evaluate(luminance) > 0.5) == (scheme == "dark")
        assert log.external == []
    finally:
        ended(thread)


@pytest.mark.slow
def test_nothing_injected_runs(chrome, cuts, tmp_path, monkeypatch):
    def visit() -> bool:
        thread, url = served(hostile(cuts, tmp_path))
        try:
            page, log = open_page(chrome, url)
            for title in SECTIONS.values():
                page.get_by_role("button", name=title, exact=True).click()
                page.wait_for_timeout(300)
                for figure in page.locator(".bk-Figure:visible").all():
                    figure.scroll_into_view_if_needed()
                    box = figure.bounding_box()
                    for share in (0.3, 0.45, 0.6, 0.75):  # tooltips show text too
                        page.mouse.move(box["x"] + 0.4 * box["width"], box["y"] + share * box["height"])
                        page.wait_for_timeout(60)
            assert page.get_by_text("window.pwned").count() > 5 or pwned(page), "the text itself is to be read"
            page.get_by_placeholder("said > heard").fill(EVIL_TEXT)
            page.keyboard.press("Enter")
            assert becomes(lambda: pwned(page) or page.locator("h3").filter(has_text="window.pwned").count())
            assert log.external == []
            return pwned(page)
        finally:
            ended(thread)

    assert not visit()
    monkeypatch.setattr(text, "escape", str)  # negative control
    assert visit()


@pytest.mark.slow
def test_the_notebook_s_explorer_answers_in_jupyterlab(chrome, lab, run):  # noqa: F811
    url, project = lab("05_errors.ipynb", run=run.path, evaluation="trained--white-10db--clip")
    page = chrome.new_page(viewport={"width": 1280, "height": 1600})
    log = watch(page)
    run_all(page, url)
    # the last cell's table: until then the kernel has no time for clicks
    page.locator(".jp-OutputArea-output", has_text="clips.csv, clips.jsonl").first.wait_for(timeout=240_000)
    page.get_by_text("Most errors first").first.scroll_into_view_if_needed()
    settle(page)
    page.get_by_role("button", name="like this by wording").first.click()
    titled(page, re.compile("^Like .*, by wording$"))
    page.get_by_placeholder("said > heard").fill("something")
    page.keyboard.press("Enter")
    titled(page, "“something”")
    expect(page.get_by_text("heard, not said")).to_have_count(3)
    page.get_by_role("button", name="Speakers and clips", exact=True).first.click()
    page.wait_for_timeout(1000)
    page.get_by_role("button", name="Words", exact=True).first.click()
    words = Explorer(*(getattr(cases.opened(run.path, "trained--white-10db--clip"), name) for name in ("evaluation", "cuts"))).cases.words
    row = confusions.substitutions(words).iloc[0]
    click_at(page, "Replaced", 0.5, 0, f"{row.said} → {row.heard}")
    assert page.locator(".jp-OutputArea-output[data-mime-type='application/vnd.jupyter.error']").count() == 0
    page.screenshot(path=str(project / "lab.png"))
    assert log.external == []
