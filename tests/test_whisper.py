"""Whisper in the lab against transformers' own, on the same weights and real clips."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import WhisperFeatureExtractor, WhisperForConditionalGeneration, WhisperTokenizerFast

from speechlab import corpora, models
from speechlab.batches import Batch, collate
from speechlab.errors import InputError
from speechlab.models import Hypothesis
from speechlab.models.whisper import MAX_LABELS, MAX_NEW_TOKENS, Whisper
from speechlab.scoring import score
from speechlab.text import normaliser


def clips(corpus, count: int) -> list:
    """Real test clips with audio, from short to long."""
    cuts = sorted(corpus.cuts["test"], key=lambda c: (c.duration, c.id))
    picked = [cuts[i * (len(cuts) - 1) // (count - 1)] for i in range(count)]
    return [(c.id, c.supervisions[0].text, corpora.load_audio(c)) for c in picked]


def features(batch: Batch) -> torch.Tensor:
    waves = [wave[: round(s * 16_000)].numpy() for wave, s in zip(batch.wave_BN, batch.seconds, strict=True)]
    return WhisperFeatureExtractor()(waves, sampling_rate=16_000, return_tensors="pt").input_features


@pytest.fixture(scope="module")
def small(small_whisper) -> Whisper:
    return models.load("whisper", small_whisper, "en").eval()


@pytest.fixture(scope="module")
def real(tiny_en) -> Whisper:
    return models.load("whisper", tiny_en, "en").eval()


@pytest.fixture(scope="module")
def four(prompts) -> Batch:
    return collate(clips(prompts, 4))


# --- the encoder and the loss ---


@torch.no_grad()
def test_at_30_s_the_encoder_equals_transformers(small, four):
    theirs = small.net.model.encoder(features(four)).last_hidden_state
    ours = small.encode(four.at(30.0))
    assert ours.shape == theirs.shape == (4, 1500, 64)
    assert (ours - theirs).abs().max() < 1e-4 < theirs.std() / 1000
    short = small.encode(four)
    assert short.shape == (4, round(four.context * 50), 64)
    assert (short - theirs[:, : short.shape[1]]).abs().max() > 1e-3  # negative control: attention over less is another result


@pytest.mark.slow
@torch.no_grad()
def test_at_30_s_the_real_encoder_equals_transformers(real, four):
    theirs = real.net.model.encoder(features(four)).last_hidden_state
    assert (real.encode(four.at(30.0)) - theirs).abs().max() < 1e-3 < theirs.std() / 100


@torch.no_grad()
def test_the_loss_is_transformers_loss(small, small_whisper, four):
    tokenizer = WhisperTokenizerFast.from_pretrained(small_whisper)
    ours = small.loss(four.at(30.0))
    rows = [tokenizer(" " + text).input_ids for text in four.texts]  # <|startoftranscript|><|notimestamps|> text <|endoftext|>
    assert ours.tokens == sum(len(row) - 2 for row in rows) == sum(small.count_tokens(list(four.texts)))
    total, wrong = 0.0, 0.0
    for i, row in enumerate(rows):  # one at a time, so that padding in the batch is proven to be without effect
        mel = features(four.rows([i]))
        tokens, labels = torch.tensor([row[:-1]]), torch.tensor([row[1:]])
        labels[0, 0] = -100  # the prompt is given, not predicted
        total += small.net(mel, decoder_input_ids=tokens, labels=labels).loss.item() * (len(row) - 2)
        wrong += small.net(mel, decoder_input_ids=tokens, labels=labels.roll(1)).loss.item() * (len(row) - 2)
    assert ours.total.item() == pytest.approx(total, rel=1e-5)
    assert ours.total.item() != pytest.approx(wrong, rel=1e-3)


def test_the_sinusoids_stay_as_they_are(small):
    assert [name for name, p in small.named_parameters() if not p.requires_grad] == ["net.model.encoder.embed_positions.weight"]


def test_a_text_beyond_the_decoder_is_refused(small, four):
    fits = " ".join(["a"] * (MAX_LABELS - 3))  # two tokens of prompt, one of end
    assert small.count_tokens([fits]) == [MAX_LABELS - 2]
    one = four.rows([0])
    assert small.loss(collate([("x", fits, one.wave_BN[0].numpy())])).tokens == MAX_LABELS - 2
    with pytest.raises(InputError, match=rf"longer than Whisper's decoder(.|\n)*{MAX_LABELS + 1} tokens(.|\n)*at most {MAX_LABELS}"):
        small.loss(collate([("x", fits + " a", one.wave_BN[0].numpy())]))


# --- transcripts ---


@pytest.mark.slow
def test_greedy_text_equals_transformers_generate(real, tiny_en, prompts):
    batch = collate(clips(prompts, 10), context=30.0)
    net = WhisperForConditionalGeneration.from_pretrained(tiny_en).eval()  # with its own settings
    tokens = net.generate(features(batch), num_beams=1, do_sample=False, max_new_tokens=MAX_NEW_TOKENS)
    theirs = [t.strip() for t in real.tokenizer.batch_decode(tokens, skip_special_tokens=True)]
    ours = real.transcribe(batch)
    assert [h.text for h in ours] == theirs
    assert all(h.ended and h.context == 30 for h in ours)
    assert len(set(theirs)) == 10
    assert score(batch.texts, theirs, normaliser("english")).wer < 0.2  # and it is what was said


@pytest.mark.slow
@pytest.mark.parametrize("context", [None, 30.0])
def test_a_transcript_does_not_depend_on_the_batch(real, prompts, context):
    batch = collate(clips(prompts, 6), context)
    together = real.transcribe(batch)
    assert [real.transcribe(batch.rows([i]))[0] for i in range(6)] == together
    assert real.transcribe(batch.rows([5, 0, 3])) == [together[i] for i in (5, 0, 3)]  # order kept


def test_decoding_leaves_the_mode_and_the_settings_alone(small, small_whisper, four):
    before = small.net.generation_config.to_dict()
    assert small.transcribe(four) == small.transcribe(four)
    assert small.net.generation_config.to_dict() == before
    assert not small.training


def test_only_clips_that_did_not_end_are_decoded_again_at_30_s(small, four, monkeypatch):
    asked = []

    def greedy(batch: Batch) -> list[Hypothesis]:
        asked.append((batch.ids, batch.context))
        return [Hypothesis(f"{i} at {batch.context:g}", i not in four.ids[1:3] or batch.context == 30, batch.context) for i in batch.ids]

    monkeypatch.setattr(small, "_greedy", greedy)
    found = small.transcribe(four)
    assert asked == [(four.ids, four.context), (four.ids[1:3], 30.0)]
    assert [h.context for h in found] == [four.context, 30.0, 30.0, four.context]
    assert [h.text.split()[0] for h in found] == list(four.ids)
    assert all(h.ended for h in found)

    asked.clear()
    assert [h.ended for h in small.transcribe(four, fallback=False)] == [True, False, False, True]
    small.transcribe(four.at(30.0))
    assert asked == [(four.ids, four.context), (four.ids, 30.0)]  # at 30 s there is nothing to fall back to


def test_text_that_runs_away_is_cut_and_says_so(small, four, monkeypatch):
    monkeypatch.setattr("speechlab.models.whisper.MAX_NEW_TOKENS", 1)  # the first token cannot be the end: it is suppressed
    found = small.transcribe(four)
    assert [(h.ended, h.context) for h in found] == [(False, 30.0)] * 4


# --- languages and folders ---


def multilingual(folder: Path, target: Path) -> Path:
    """The same checkpoint, with settings as multilingual ones have."""
    for path in folder.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    settings = json.loads((target / "generation_config.json").read_text())
    settings |= {"is_multilingual": True, "lang_to_id": {"<|en|>": 50258, "<|de|>": 50260}, "task_to_id": {"transcribe": 50358}}
    (target / "generation_config.json").write_text(json.dumps(settings))
    return target


def test_an_english_checkpoint_is_not_asked_for_another_language(small_whisper):
    with pytest.raises(InputError, match=r"knows English only(.|\n)*language de(.|\n)*without .en"):
        models.load("whisper", small_whisper, "de")


def test_a_multilingual_checkpoint_is_told_the_language_it_knows(small_whisper, tmp_path, four):
    folder = multilingual(small_whisper, tmp_path)
    with pytest.raises(InputError, match=r"does not know the language(.|\n)*got: *xx(.|\n)*one of de, en"):
        models.load("whisper", folder, "xx")
    model = models.load("whisper", folder, "de").eval()
    tokens_BL, labels_BL = model._labels(four.texts)
    assert tokens_BL[:, :4].tolist() == [[50257, 50260, 50358, 50362]] * 4  # start, language, task, no timestamps
    assert (labels_BL[:, :3] == -100).all()
    assert (labels_BL[:, 3] != -100).all()
    assert int((labels_BL != -100).sum()) == sum(model.count_tokens(list(four.texts)))
    assert len(model.transcribe(four)) == 4


def test_an_unknown_family_lists_the_known():
    with pytest.raises(InputError, match=r"Unknown model family(.|\n)*whisper"):
        models.load("whispr", "nowhere", "en")


@torch.no_grad()
def test_a_saved_folder_is_one_that_transformers_loads(small, small_whisper, tmp_path, four):
    small.save(tmp_path)
    net, report = WhisperForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert {key: list(value) for key, value in report.items() if value} == {}
    ours = small.net.state_dict()
    assert set(net.state_dict()) == set(ours)
    assert all(torch.equal(value, ours[name]) for name, value in net.state_dict().items())
    first, saved = (json.loads((folder / "generation_config.json").read_text()) for folder in (small_whisper, tmp_path))
    assert {**saved, "transformers_version": None} == {**first, "transformers_version": None}
    texts = WhisperTokenizerFast.from_pretrained(tmp_path)(list(four.texts)).input_ids
    assert texts == WhisperTokenizerFast.from_pretrained(small_whisper)(list(four.texts)).input_ids
    net.eval().generate(features(four.rows([0])), max_new_tokens=4)  # and its own generate() still runs on it
    again = models.load("whisper", tmp_path, "en").eval()
    assert torch.equal(again.loss(four).total, small.loss(four).total)
