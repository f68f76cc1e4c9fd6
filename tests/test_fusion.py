"""Emissions kept and searched again: real clips through small models, made ones where the weights matter, and the figure."""

from __future__ import annotations

import holoviews as hv
import numpy as np
import pandas as pd
import pytest
import torch
from counts import assert_complete
from emitted import emit, vocabulary_of

from speechlab import corpora, fusion, models, ngram
from speechlab.batches import collate
from speechlab.config import ModelConfig, ShapeConfig, VocabularyConfig
from speechlab.decoding import Decoded
from speechlab.errors import InputError
from speechlab.fusion import Emissions
from speechlab.models import ctc
from speechlab.models.beam import Beam, Search, sentences
from speechlab.plots.fusion import weights
from speechlab.plots.style import COLOURS
from speechlab.text import normaliser

RAW = normaliser("raw")
SHAPE = ShapeConfig(dim=32, layers=2, heads=2, kernel=7, dropout=0.0)


@pytest.fixture(scope="module", autouse=True)
def own_cache(prompts, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPEECHLAB_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def cuts(prompts) -> list:
    return sorted(prompts.cuts["test"], key=lambda c: (c.duration, c.id))[20:100:8]


def small(family: str, folder, objective: str = "transcripts"):
    shape = SHAPE.model_copy(update={"kernel": 15}) if family == "conformer" else SHAPE
    config = ModelConfig(family=family, objective=objective, shape=shape)
    torch.manual_seed(1)
    models.family_class(family).create(config, None, "en", ["the quick brown fox jumps over the lazy dog"], folder)
    return models.load(family, folder, "en")


@pytest.fixture(scope="module")
def conformer(tmp_path_factory):
    return small("conformer", tmp_path_factory.mktemp("conformer"))


@pytest.fixture(scope="module")
def made(prompts, tmp_path_factory) -> tuple[Emissions, Beam]:
    """What a model might have written of real transcripts, every other label misheard, and a search for the words of the others."""
    texts = {split: [c.supervisions[0].text for c in prompts.cuts[split]] for split in ("train", "test")}
    vocabulary = ctc.make_vocabulary(VocabularyConfig(), texts["train"], tmp_path_factory.mktemp("vocabulary"))
    said = [text for text in texts["test"] if 2 <= len(ctc.spoken(text).split()) <= 10][:30]
    written = [emit(text, vocabulary, i, 1 / 2) for i, text in enumerate(said)]
    greedy = [vocabulary.decode(ctc.greedy(torch.tensor(x[None]), [len(x)])[0]) for x in written]
    clips = [
        Decoded(f"{i}", f"s{i % 3}", len(x) / 25, ctc.spoken(t), g) for i, (x, t, g) in enumerate(zip(written, said, greedy, strict=True))
    ]
    kept = Emissions(tuple(clips), tuple(x.astype(np.float16) for x in written))
    return kept, Beam(vocabulary, ngram.train(sentences(texts["train"]), 3))


# --- emissions ---


@pytest.mark.parametrize("family", ["conformer", "wav2vec2"])
def test_what_is_kept_is_what_the_model_wrote(family, cuts, tmp_path):
    model = small(family, tmp_path).train()
    kept = fusion.emissions(model, cuts, precision="fp32")
    assert model.training, "as it was"
    assert [clip.id for clip in kept.clips] == [cut.id for cut in cuts]
    assert len(kept) == len(kept.log_probs) == 10
    model.eval()
    alone = [model.transcribe(collate([(cut.id, "", corpora.load_audio(cut))]))[0].text for cut in cuts]
    assert [clip.hypothesis for clip in kept.clips] == alone
    assert [clip.reference for clip in kept.clips] == [cut.supervisions[0].text for cut in cuts]
    assert any(clip.hypothesis for clip in kept.clips)
    for log_probs_FV, cut in zip(kept.log_probs, cuts, strict=True):
        with torch.inference_mode():
            logits_1FV, _ = model.logits(collate([(cut.id, "", corpora.load_audio(cut))]))
        exact_FV = logits_1FV[0].log_softmax(-1).numpy()
        np.testing.assert_allclose(log_probs_FV.astype(np.float32), exact_FV, rtol=1e-3, atol=1e-4)
        assert log_probs_FV.dtype == np.float16
        assert np.allclose(np.exp(log_probs_FV.astype(np.float64)).sum(1), 1, atol=0.01)
        assert abs(len(log_probs_FV) / cut.duration - (25 if family == "conformer" else 50)) < 3
    assert kept.greedy(RAW).hypotheses == tuple(clip.hypothesis for clip in kept.clips)


def test_the_whole_way_from_clips_to_a_table(conformer, cuts, prompts):
    kept = fusion.emissions(conformer, cuts)
    texts = [c.supervisions[0].text for c in prompts.cuts["train"]]
    search = Beam(conformer.vocabulary, ngram.train(sentences(texts, conformer.vocabulary), 4), lexicon=False)
    table = fusion.sweep(kept, search, RAW, [0.0, 1.0], search=Search(beam=5))
    assert list(table.lm_weight) == [0, 1]
    assert (table.wer > 0.5).all(), "an untrained model stays one"


def test_more_than_the_limit_is_refused(conformer, cuts):
    with pytest.raises(InputError, match=r"too many clips(.|\n)*bytes for the first \d+ clips(.|\n)*at most 5,000") as e:
        fusion.emissions(conformer, cuts, limit=5000)
    assert_complete(e)
    size = sum(x.nbytes for x in fusion.emissions(conformer, cuts, limit=100_000).log_probs)
    assert 5000 < size < 100_000


def test_a_model_that_is_none_of_ctc_is_refused(small_whisper, cuts, tmp_path):
    for model in (models.load("whisper", small_whisper, "en"), small("wav2vec2", tmp_path, "pretraining")):
        with pytest.raises(InputError, match=r"Only what a CTC model writes(.|\n)*got: *(Whisper|Wav2Vec2)(.|\n)*trained on transcripts"):
            fusion.emissions(model, cuts)


# --- the sweep ---


def test_a_sweep_finds_the_weights_that_help(made):
    kept, search = made
    table = fusion.sweep(kept, search, RAW, [0.0, 1.0, 2.0, 2.0], [-1.0, 0.0])
    assert list(zip(table.lm_weight, table.word_score, strict=True)) == [(w, s) for w in (0, 1, 2) for s in (-1, 0)]
    found = fusion.best(table)
    assert found.wer == table.wer.min()
    assert found.lm_weight > 0
    assert found.wer < 0.85 * table[table.lm_weight == 0].wer.min() < 0.5 * kept.greedy(RAW).wer
    for row in table.itertuples():
        scores = fusion.scored(kept, search, Search(lm_weight=row.lm_weight, word_score=row.word_score), RAW)
        assert (row.wer, row.cer) == (scores.wer, scores.cer)
        assert row.substitutions + row.deletions + row.insertions == scores.errors
        assert row.low <= row.wer <= row.high
        assert 0 < row.seconds < 1
    assert scores.speakers == tuple(clip.speaker for clip in kept.clips)


def test_of_equal_rates_the_one_that_leans_least_on_weights_is_best():
    rows = [(0.3, 1.0, 0.0), (0.2, 2.0, 0.0), (0.2, 1.0, -3.0), (0.2, 1.0, 1.0), (0.2, 1.0, -2.0)]
    table = pd.DataFrame(rows, columns=["wer", "lm_weight", "word_score"])
    assert tuple(fusion.best(table)) == (0.2, 1.0, 1.0)


def test_what_cannot_be_swept(made, tmp_path):
    kept, search = made
    for weights_, scores in (([], [0.0]), ([1.0], [])):
        with pytest.raises(InputError, match=r"nothing to sweep over(.|\n)*30 clips(.|\n)*at least one of each"):
            fusion.sweep(kept, search, RAW, weights_, scores)
    with pytest.raises(InputError, match=r"0 clips"):
        fusion.sweep(Emissions((), ()), search, RAW, [1.0])
    with pytest.raises(InputError, match="cannot be set like this"):
        fusion.sweep(kept, search, RAW, [-1.0])
    free = Beam(vocabulary_of(tmp_path, ["<pad>", "|", "a"]), None, lexicon=False)
    with pytest.raises(InputError, match="no word score"):
        fusion.sweep(kept, free, RAW, [0.0], [1.0])


# --- the figure ---


def swept(word_scores: int) -> pd.DataFrame:
    rows = [(w, s, 0.3 + 0.05 * abs(w - 2) + 0.01 * abs(s - 1)) for w in (0.0, 1.0, 2.0, 3.0) for s in range(word_scores)]
    table = pd.DataFrame(rows, columns=["lm_weight", "word_score", "wer"])
    return table.assign(low=table.wer - 0.02, high=table.wer + 0.02)


@pytest.mark.parametrize("word_scores", [1, 3, 9])
def test_the_figure_rings_the_best(word_scores):
    figure = hv.render(weights(swept(word_scores), greedy=0.6), backend="bokeh")
    assert (figure.xaxis[0].axis_label, figure.yaxis[0].axis_label) == ("weight of the language model", "WER (%)")
    score = 0 if word_scores == 1 else 1
    assert figure.title.text == f"Lowest: {31 if score == 0 else 30}.0 % at weight 2, word score {score}"
    ring = figure.renderers[-1].data_source.data
    assert [list(values) for values in ring.values()] == [[2.0], [31.0 if score == 0 else 30.0]]
    items = figure.legend[0].items
    assert [item.label.value for item in items] == ["word score 0", *map(str, range(1, word_scores))]
    tips = [dict(tool.tooltips)["95 % interval"] for tool in figure.tools if type(tool).__name__ == "HoverTool"]
    assert tips == ["@{from_percent}{0.00} to @{to_percent}{0.00} %"]
    assert figure.y_range.end > 60, "the rate without a language model is in sight"
    lines = [r.glyph for r in figure.renderers if type(getattr(r, "glyph", None)).__name__ == "Line"]
    assert len({(line.line_color, str(line.line_dash)) for line in lines}) == word_scores
    assert {line.line_color for line in lines} <= set(COLOURS)


def test_the_figure_goes_without_the_greedy_rate_and_not_without_its_columns():
    figure = hv.render(weights(swept(2)), backend="bokeh")
    assert not any(type(each).__name__ == "Span" for each in figure.center)
    with pytest.raises(InputError, match=r"table for weights lacks columns(.|\n)*got: *wrong"):
        weights(pd.DataFrame({"wrong": [1]}))
