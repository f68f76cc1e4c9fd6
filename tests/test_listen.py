"""The listening bench on a real clip: what is heard is what training hears, what is drawn is what is there, text stays text."""

from __future__ import annotations

import base64
import re

import holoviews as hv
import nbformat
import numpy as np
import panel as pn
import param
import pytest
import torch
from bokeh.models import ColumnDataSource
from browser import EVIL, EVIL_TEXT, becomes, canvas_pixels, chromium, ended, on_a_page, play, watch
from bs4 import BeautifulSoup
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from speechlab import audio, babble, config, effects, listen, plots, report, vad
from speechlab.augment import Augmenter
from speechlab.corpora import load_audio
from speechlab.errors import InputError
from speechlab.features import LogMel
from speechlab.units import SAMPLE_RATE


@pytest.fixture(scope="module")
def cut(prompts):
    return listen.pick(prompts)


@pytest.fixture(scope="module")
def wave(cut) -> audio.Wave:
    return load_audio(cut)


def players(viewable) -> list[bytes]:
    """The MP3 files that a view carries."""
    page = "".join(str(text.value) for text in viewable.select(pn.widgets.StaticText))
    return [base64.b64decode(data) for data in re.findall(r"data:audio/mpeg;base64,([^\"]+)", page)]


def images(viewable) -> list[np.ndarray]:
    sources = [s for pane in viewable.select(pn.pane.Bokeh) for s in pane.object.select({"type": ColumnDataSource})]
    return [source.data["image"][0] for source in sources if "image" in source.data]


# --- figures ---


@settings(max_examples=25, deadline=None)
@given(arrays(np.float32, st.integers(1, 5000), elements=st.floats(-1, 1, width=32)))
def test_the_waveform_keeps_every_peak(wave_N):
    area = plots.waveform(wave_N).Area.Samples.dframe()
    assert len(area) <= plots.MOST_COLUMNS
    assert area.low.min() == wave_N.min() and area.high.max() == wave_N.max()
    assert (area.low <= area.high).all()


def test_the_waveform_has_units_and_the_spans_of_speech(wave):
    spans = vad.speech(wave)
    assert spans
    figure = hv.render(plots.waveform(wave, spans), backend="bokeh")
    assert figure.xaxis[0].axis_label == "time (s)" and figure.yaxis[0].axis_label == "full scale"
    assert (figure.x_range.start, figure.x_range.end) == (0, len(wave) / SAMPLE_RATE)
    (drawn,) = [source.data for source in figure.select({"type": ColumnDataSource}) if "from" in source.data]
    assert [*zip(drawn["from"], drawn["to"], strict=True)] == spans


def test_the_spectrogram_is_whispers_log_mel_in_decibels(wave):
    mel_MT = LogMel()(torch.tensor(wave)[None], len(wave) / SAMPLE_RATE)[0].numpy()
    element = plots.spectrogram(listen.log_mel(wave), len(wave) / SAMPLE_RATE)
    (source,) = hv.render(element, backend="bokeh").select({"type": ColumnDataSource})
    drawn = source.data["image"][0]  # row 0 is the lowest band
    assert drawn.dtype == np.int8 and drawn.shape == mel_MT.shape
    assert np.abs(drawn - 40 * (mel_MT - mel_MT.max())).max() <= 0.5 + 1e-3
    assert source.data["dw"][0] == len(wave) / SAMPLE_RATE


def test_a_tone_lies_where_the_axis_says():
    for kilohertz in (0.5, 1, 2, 4):
        tone = 0.5 * np.sin(2 * np.pi * 1000 * kilohertz * np.arange(SAMPLE_RATE) / SAMPLE_RATE)
        element = plots.spectrogram(listen.log_mel(tone), 1.0)
        figure = hv.render(element, backend="bokeh")
        loudest = int(np.argmax(element.dimension_values(2, flat=False).mean(axis=1))) + 0.5
        (tick,) = [at for at, label in figure.yaxis[0].major_label_overrides.items() if label == f"{kilohertz:g}"]
        assert abs(loudest - tick) <= 1, kilohertz


def test_a_long_spectrogram_is_thinned_but_keeps_its_clicks():
    mel_MT = np.full((80, 6000), -1.5)
    mel_MT[:, 4321] = 0.5
    shown = plots.spectrogram(mel_MT, 60.0).dimension_values(2, flat=False)
    assert shown.shape == (80, plots.MOST_COLUMNS)
    assert (shown == 0).any(axis=0).sum() == 1
    assert not (mel_MT[:, ::6] == 0.5).any()  # negative control: every sixth frame would lose it


@pytest.mark.parametrize("mel", [np.zeros((0, 5)), np.zeros(5), np.full((2, 2), np.nan)])
def test_what_is_no_spectrogram_is_refused(mel):
    with pytest.raises(InputError, match="no spectrogram"):
        plots.spectrogram(mel, 1.0)
    with pytest.raises(InputError, match="no waveform"):
        plots.waveform(np.zeros(0))


# --- effects ---


def test_every_transform_of_training_is_on_the_bench():
    named = {effect.name.partition(":")[0] for effect in listen.EFFECTS}
    assert named == set(config.AugmentConfig.model_fields) - {"spec"}
    assert {e.name.partition(": ")[2] for e in listen.EFFECTS if e.name.startswith("codec")} == set(effects.CODECS)
    assert len(listen.EFFECTS) == 8


@pytest.mark.parametrize("effect", [*listen.EFFECTS, listen.babble(np.sin(np.arange(9000) / 9).astype(np.float32))], ids=lambda e: e.name)
def test_every_strength_can_be_heard(wave, effect):
    assert effect.usual in effect.strengths and list(effect.strengths) == sorted(set(effect.strengths))
    usual = effect.apply(wave, effect.usual, 1)
    assert np.array_equal(usual, effect.apply(wave, effect.usual, 1))  # pure
    assert len(usual) != len(wave) or np.abs(usual - wave).max() > 0.01  # and it does something
    for strength in {effect.strengths[0], effect.strengths[len(effect.strengths) // 2], effect.strengths[-1]}:
        assert audio.check(effect.apply(wave[: SAMPLE_RATE // 2], strength, 1)).size


def test_a_crowd_is_all_of_its_voices(prompts, wave):
    others = [load_audio(other) for other in list(prompts.cuts["train"])[:3]]
    together = babble.crowd(others)
    assert len(together) == max(map(len, others)) and np.abs(together).max() == pytest.approx(0.5)
    for other in others:
        voice = np.resize(other, len(together))
        assert np.corrcoef(together, voice)[0, 1] > 0.3
    with pytest.raises(InputError, match="voices"):
        babble.crowd([])


def test_a_clip_is_picked_by_id(prompts, cut):
    assert abs(cut.duration - listen.USUAL) <= min(abs(other.duration - listen.USUAL) for other in prompts.cuts["test"])
    other = list(prompts.cuts["train"])[5]
    assert listen.pick(prompts, other.id).id == other.id
    with pytest.raises(InputError, match="no such clip"):
        listen.pick(prompts, "en/<script>")


# --- the bench ---


def test_the_static_bench_has_every_effect_to_see_and_hear(wave):
    view = listen.Listen(wave, "said").static()
    assert len(players(view)) == 1 + 2 * len(listen.EFFECTS)
    assert len(images(view)) == 1 + 2 * len(listen.EFFECTS)
    assert not list(view.select(pn.widgets.DiscreteSlider))
    room = listen.EFFECTS[1]
    expected = audio.decode(audio.encode_mp3(room.apply(wave, room.usual, 1)))
    heard = [audio.decode(data) for data in players(view)]
    assert sum(h.shape == expected.shape and np.array_equal(h, expected) for h in heard) == 1  # not the original, nor another's


def test_a_slider_changes_what_is_seen_and_heard(wave):
    view = listen.Listen(wave, shown=listen.EFFECTS[:1]).panel()
    (slider,) = view.select(pn.widgets.DiscreteSlider)
    seen, heard = images(view), players(view)
    with param.edit_constant(slider):
        slider.value_throttled = 0.8
    (_, original, changed), (_, first, second) = images(view), players(view)
    assert np.array_equal(original, seen[1]) and first == heard[1]  # the original stays
    assert changed.shape[1] == pytest.approx(seen[2].shape[1] * 1.1 / 0.8, abs=2)
    assert len(audio.decode(second)) == pytest.approx(len(wave) / 0.8, abs=2000) and second != heard[2]


@pytest.mark.parametrize("evil", [*EVIL, EVIL_TEXT])
def test_no_text_becomes_markup(wave, evil):
    view = listen.Listen(wave[:4000], evil, evil, shown=listen.EFFECTS[:1]).static()
    page = "".join(str(text.value) for text in view.select(pn.widgets.StaticText))
    soup = BeautifulSoup(page, "html.parser")
    assert soup.find_all(["script", "img", "svg"]) == []
    assert soup.find("h3").text == evil


@pytest.mark.parametrize("samples", [1, 100, 201, 1000])
def test_the_shortest_clips_have_a_bench(samples):
    wave = 0.1 * np.sin(np.arange(samples) + 0.5)
    assert len(players(listen.Listen(wave, shown=listen.EFFECTS[:1]).static())) == 3


def test_silence_has_a_bench():
    view = listen.Listen(np.zeros(SAMPLE_RATE)).static()
    assert "silence" in "".join(str(text.value) for text in view.select(pn.widgets.StaticText))


def test_what_is_no_clip_is_refused(wave):
    with pytest.raises(InputError, match="too long for the bench"):
        listen.Listen(np.zeros(61 * SAMPLE_RATE))
    with pytest.raises(InputError, match="wrong shape"):
        listen.Listen(wave[None])


def test_the_draws_are_those_of_training(cut, wave):
    everything = config.AugmentConfig(noise=config.NoiseConfig(probability=1), gain=config.GainConfig(), spec=config.SpecAugmentConfig())
    augmenter = Augmenter(everything, 3)
    page = listen.epochs_html(wave, augmenter, cut.id, 2)
    soup = BeautifulSoup(page, "html.parser")
    assert len(soup.find_all("audio")) == 2  # and not their markup as text
    assert augmenter.story(cut.id, 1)["gain"] in soup.find_all("tr")[2].text
    masked, mel = listen.masked(wave, augmenter, cut.id, 0), listen.log_mel(augmenter(wave, cut.id, 0))
    hidden = masked != mel
    assert 0 < hidden.mean() < 1 and len(np.unique(masked[hidden])) == 1  # the rest is what is heard; what is hidden is its mean
    assert "left as it is" in listen.epochs_html(wave, Augmenter(config.AugmentConfig(), 3), cut.id, 1)


# --- the notebook ---


@pytest.fixture(scope="module")
def notebook(tmp_path_factory, prompts):
    folder = tmp_path_factory.mktemp("signal")
    return report.execute("notebooks/02_signal.ipynb", folder / "02.ipynb", {"seed": 2, "epochs": 2}, progress=False)


@pytest.mark.slow
def test_the_notebook_shows_and_plays(notebook, cut):
    outputs = [o for c in nbformat.read(notebook, as_version=4).cells if c.cell_type == "code" for o in c.outputs]
    assert not any(o.output_type == "error" or o.get("name") == "stderr" for o in outputs)
    page = report.html([notebook], notebook.with_name("report.html"), "Signal").read_text("utf-8")
    assert cut.id in page and cut.supervisions[0].text in page
    for effect in (*listen.EFFECTS, listen.babble(np.ones(1, np.float32))):
        assert effect.about in page, effect.name
    assert page.count("data:audio/mpeg") == 1 + 2 * (len(listen.EFFECTS) + 1) + 2
    assert "core-seconds an hour" in page and "CC BY-SA 3.0" in page
    assert len(page) < 12e6
    with chromium() as browser:
        shown = browser.new_page(viewport={"width": 1200, "height": 900})
        log = watch(shown)
        shown.goto(notebook.with_name("report.html").as_uri())
        shown.wait_for_selector("canvas")
        assert play(shown.locator("audio").first)["ready"] >= 2
        lengths = sorted(shown.locator("audio").evaluate_all("all => all.map(a => a.duration)"))
        assert len(lengths) == 1 + 2 * (len(listen.EFFECTS) + 1) + 2
        assert lengths[0] == pytest.approx(cut.duration / 1.1, abs=0.15) and lengths[10] == pytest.approx(cut.duration, abs=0.15)
        assert shown.evaluate("document.documentElement.scrollWidth") <= 1200
        assert log.external == [] and log.errors == []


@pytest.mark.slow
def test_a_slider_works_in_a_browser(wave):
    plots.extension()
    bench = listen.Listen(wave, "said", shown=listen.EFFECTS[:1])
    server, url = on_a_page(bench.panel)
    try:
        with chromium() as browser:
            shown = browser.new_page(viewport={"width": 1200, "height": 1000})
            log = watch(shown)
            shown.goto(url)
            shown.get_by_text("factor 1.1").wait_for()
            count = shown.locator("canvas").count()
            before = [canvas_pixels(shown, i) for i in range(count)]
            handle = shown.locator(".noUi-handle").first
            handle.focus()
            for _ in range(3):
                shown.keyboard.press("ArrowRight")
            shown.get_by_text("factor 1.25").wait_for(timeout=30_000)
            assert becomes(lambda: [canvas_pixels(shown, i) for i in range(count)] != before)
            shown.wait_for_timeout(500)
            after = [canvas_pixels(shown, i) for i in range(count)]
            assert sum(b != a for b, a in zip(before, after, strict=True)) == 1  # the changed spectrogram alone is painted anew
            assert [e for e in log.errors if "favicon" not in e] == [] and log.external == []
    finally:
        ended(server)
