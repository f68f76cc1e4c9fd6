"""The playground in Chromium: a file, the microphone, effects, two models; and what may not get in."""

from __future__ import annotations

import os
import re
import signal

import numpy as np
import pytest
import soundfile
from browser import EVIL_TEXT, becomes, chromium, ended, on_a_page, play, pwned, watch
from playwright.sync_api import expect
from test_uploads import flac

from speechlab import config, corpora, playground, plots, worker
from speechlab.errors import InputError
from speechlab.playground import Playground
from speechlab.units import SAMPLE_RATE


def test_a_clip_is_kept_as_a_corpus_reads_it(tmp_path):
    wave_N = (0.1 * np.sin(np.arange(SAMPLE_RATE) / 7)).astype(np.float32)
    path = playground.keep(wave_N, "héllo <b>", tmp_path / "kept")
    assert playground.keep(wave_N, "héllo <b>", tmp_path / "kept") == path
    for i in range(3):
        playground.keep(np.roll(wave_N, 10 + i) * 0.9, f"other {i}", tmp_path / "kept")
    experiment = config.load("configs/smoke.yaml", ["corpus.name=own", f"corpus.root={tmp_path / 'kept'}", "corpus.limit=null"])
    corpus = corpora.configured(experiment.corpus)
    found = {cut.supervisions[0].text for cuts in corpus.cuts.values() for cut in cuts}
    assert found == {"héllo <b>", "other 0", "other 1", "other 2"}


def test_a_playground_wants_a_model():
    with pytest.raises(InputError, match="no model"):
        Playground([])


def test_a_clip_is_kept_for_who_may_change_things(tmp_path, monkeypatch):
    may = [False]
    monkeypatch.setattr(playground.door, "may_change", lambda: may[0])
    bench = Playground(keep=tmp_path / "kept")
    bench._wave_N = (0.1 * np.sin(np.arange(SAMPLE_RATE) / 7)).astype(np.float32)
    bench.reference.value, bench.consent.value = "hello", list(bench.consent.options)
    assert bench.store.disabled and "operators only" in bench.store.label
    bench._stored(None)  # as a message that no button sends
    assert "Only operators may do this." in bench.said.value and not (tmp_path / "kept").exists()
    may[0] = True
    bench._storable()
    assert not bench.store.disabled
    bench._stored(None)
    assert len(list((tmp_path / "kept").glob("*.flac"))) == 1, "control"


# -- in a browser ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def clip(prompts, tiny_en):
    cut = sorted(prompts.cuts["test"], key=lambda cut: (cut.duration, cut.id))[110]
    return cut.supervisions[0].text, corpora.load_audio(cut)


@pytest.fixture
def page(clip, tmp_path):
    """A playground that is served, and a browser whose microphone hears the clip."""
    plots.extension()
    said, wave_N = clip
    soundfile.write(tmp_path / "microphone.wav", np.concatenate([wave_N, np.zeros(4 * SAMPLE_RATE)]), SAMPLE_RATE)
    (tmp_path / "clip <img src=x onerror=window.pwned=1>.flac").write_bytes(flac(wave_N))
    (tmp_path / "broken.mp3").write_bytes(EVIL_TEXT.encode())
    server, url = on_a_page(
        lambda: Playground(["tiny.en", "openai/whisper-tiny.en"], keep=tmp_path / "kept"),
        check_unused_sessions_milliseconds=1000,  # whoever has gone is noticed soon
        unused_session_lifetime_milliseconds=3000,
    )
    flags = "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"
    try:
        with chromium(*flags, f"--use-file-for-fake-audio-capture={tmp_path / 'microphone.wav'}%noloop") as browser:
            shown = browser.new_page(viewport={"width": 1280, "height": 1000})
            shown.log = watch(shown)
            shown.goto(url)
            shown.get_by_role("button", name="Record", exact=True).wait_for(timeout=60_000)
            yield shown
    finally:
        ended(server)


def heard(page, rows: int = 1) -> list[str]:
    """The words of each system, once all of them have been timed."""
    page.locator("td", has_text=re.compile(r"^\d\.\d\d$")).nth(rows - 1).wait_for(timeout=120_000)
    return page.locator("p:has(> button.word)").all_inner_texts()


@pytest.mark.slow
def test_a_file_is_heard_rated_and_changed(page, clip, tmp_path):
    said, _ = clip
    page.set_input_files("input[type=file]", str(next(tmp_path.glob("clip*.flac"))))
    plain = heard(page)
    assert plain[0].lower().strip() == said.lower().strip()
    word = page.locator("button.word").nth(3)
    assert re.fullmatch(r"\d\.\d\d to \d\.\d\d s, confidence \d+ %", word.get_attribute("title"))
    word.click()  # plays from there
    begin = float(word.get_attribute("title").split()[0])
    later = "(a, t) => new Promise(done => { const look = () => a.currentTime > t ? done(t) : requestAnimationFrame(look); look(); })"
    assert page.locator("audio").evaluate(later, begin + 0.1) > 0.1
    assert page.locator(".sound i").evaluate("i => parseFloat(i.style.left)") > 5, "the cursor follows"
    assert play(page.locator("audio"))["ready"] >= 2
    page.get_by_label("What was said").fill(f"{said} {EVIL_TEXT}")
    page.keyboard.press("Enter")
    page.get_by_text("window").first.wait_for(timeout=30_000)
    page.get_by_label("What was said").fill(said)
    page.keyboard.press("Enter")
    page.get_by_text("0.0 %").wait_for(timeout=30_000)
    with page.expect_download() as got:
        page.get_by_text("SRT", exact=True).click()
    assert "00:00:0" in got.value.path().read_text()
    expect(page.get_by_role("button", name="Keep the clip")).to_be_disabled()
    page.get_by_role("checkbox", name=re.compile("whoever speaks agrees")).check()
    page.get_by_role("button", name="Keep the clip").click()
    page.get_by_text("Kept as").wait_for(timeout=30_000)
    assert len(list((tmp_path / "kept").glob("*.flac"))) == 1
    page.get_by_label("Heard through").select_option("noise")
    handle = page.locator(".noUi-handle")
    handle.focus()
    for _ in range(12):
        page.keyboard.press("ArrowLeft")
    page.get_by_text(re.compile(r"[1-9]\d*\.\d %")).wait_for(timeout=60_000)  # it is heard worse, and the rate says so
    page.set_input_files("input[type=file]", str(tmp_path / "broken.mp3"))
    page.get_by_text("cannot be decoded").wait_for(timeout=60_000)
    assert not pwned(page) and page.log.errors == [] and page.log.external == []


@pytest.mark.slow
def test_the_microphone_is_heard_by_two_models_unnamed(page, clip):
    said, wave_N = clip
    page.get_by_label("beside it").select_option("openai/whisper-tiny.en")
    page.get_by_role("checkbox", name=re.compile("blind")).check()
    page.get_by_role("button", name="Record", exact=True).click()
    page.get_by_text("recording …", exact=True).wait_for(timeout=30_000)
    page.wait_for_timeout(round(1000 * len(wave_N) / SAMPLE_RATE) + 1500)
    page.get_by_role("button", name="Stop").click()
    texts = heard(page, 2)
    assert [re.sub(r"\W+", " ", text.lower()).strip() for text in texts] == [re.sub(r"\W+", " ", said.lower()).strip()] * 2
    expect(page.locator("h3")).to_have_text(["first", "second"])
    page.get_by_role("button", name="Show the names").click()
    assert becomes(lambda: sorted(page.locator("h3").all_inner_texts()) == ["openai/whisper-tiny.en", "tiny.en"])
    assert page.log.errors == []


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_narrow_window(page, clip, tmp_path, scheme):
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": 390, "height": 900})
    page.set_input_files("input[type=file]", str(next(tmp_path.glob("clip*.flac"))))
    heard(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


@pytest.mark.slow
def test_the_page_answers_while_a_model_listens(page, clip):
    """The process that hears is stopped: another visitor's page comes at once, and whoever waits is answered when it goes on."""
    said, wave_N = clip
    upload = {"name": "a.flac", "mimeType": "audio/flac", "buffer": flac(wave_N)}
    page.set_input_files("input[type=file]", files=[upload])
    heard(page)
    pid = worker.SHARED.pid
    os.kill(pid, signal.SIGSTOP)
    try:
        page.get_by_role("button", name="Transcribe").click()
        page.get_by_text("listens").wait_for(timeout=60_000)
        two = page.context.browser.new_page()
        two.goto(page.url)
        two.get_by_role("button", name="Record", exact=True).wait_for(timeout=60_000)
        assert page.get_by_text("listens").is_visible(), "it is still not answered"
        two.set_input_files("input[type=file]", files=[upload])
        two.get_by_text("listens").wait_for(timeout=60_000)
        assert len(worker.SHARED._waiting) == 2
        page.close()  # nobody waits for it any more
        assert becomes(lambda: len(worker.SHARED._waiting) <= 1, 60)
    finally:
        os.kill(pid, signal.SIGCONT)
    assert heard(two)[0].lower().strip() == said.lower().strip() and worker.SHARED.pid == pid
