"""The mixing desk on what a model might have written."""

from __future__ import annotations

import param
import pytest
from bs4 import BeautifulSoup
from test_fusion import made, own_cache  # noqa: F401 - fixtures

from speechlab import fusion
from speechlab.mixer import Mixer
from speechlab.models.beam import Search
from speechlab.scoring import score
from speechlab.text import normaliser

RAW = normaliser("raw")


@pytest.fixture(scope="module")
def mixer(made) -> Mixer:  # noqa: F811
    kept, beam = made
    return Mixer(kept, beam, RAW, fusion.sweep(kept, beam, RAW, [0.0, 2.0, 4.0], [0.0, -2.0]))


def shown(layout) -> BeautifulSoup:
    return BeautifulSoup(layout[-1].value, "html.parser")


def test_sliders_search_anew(mixer):
    layout = mixer.__panel__()
    best = fusion.best(mixer.sweep)
    assert f"{100 * best.wer:.2f} %" in shown(layout).text
    weight, score, beams = layout[1]
    assert (weight.value, score.value, beams.value) == (best.lm_weight, best.word_score, 50)
    before = shown(layout).text
    with_none = mixer.score(Search(50, 0.0, best.word_score))
    with param.edit_constant(weight):
        weight.value_throttled = weight.value = 0.0  # as the browser does when a slider is let go of
    assert shown(layout).text != before and f"WER {100 * with_none.wer:.2f} %" in shown(layout).text
    assert len(shown(layout).select("tbody tr")) <= 8


def test_a_report_has_no_sliders(mixer):
    layout = mixer.static()
    assert len(layout) == 2 and "greedy" in shown(layout).text
    assert f"{100 * mixer.greedy.wer:.2f} %" in shown(layout).text


def test_what_is_heard_stays_text(mixer, monkeypatch):
    evil = "<script>x</script>"
    monkeypatch.setattr(mixer, "score", lambda search: score([evil] * 30, [evil + " y"] * 30, RAW))
    soup = shown(mixer.static())
    assert not soup.find("script") and evil in soup.text
