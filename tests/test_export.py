"""Saved Whisper checkpoints in other people's programs: plain transformers, CTranslate2, faster-whisper."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from transformers import WhisperFeatureExtractor, WhisperForConditionalGeneration, WhisperProcessor

from speechlab import corpora, models
from speechlab.batches import Batch, collate
from speechlab.config import LoraConfig, ModelConfig
from speechlab.models import ctranslate2 as reader
from speechlab.models.whisper import Whisper
from speechlab.units import FULL_CONTEXT, SAMPLE_RATE

pytestmark = pytest.mark.slow
ADAPTED = LoraConfig(rank=8, alpha=16.0, dropout=0.1, targets=("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"))


def clips(corpus, split: str, count: int) -> list:
    cuts = sorted(corpus.cuts[split], key=lambda c: (c.duration, c.id))
    return [(c.id, c.supervisions[0].text, corpora.load_audio(c)) for c in cuts[len(cuts) // 2 :: len(cuts) // 2 // count][:count]]


class Trained(NamedTuple):
    model: Whisper
    folder: Path
    converted: Path


@pytest.fixture(scope="module", params=[None, ADAPTED], ids=["all-weights", "adapters"])
def trained(request, tiny_en, prompts, tmp_path_factory) -> Trained:
    """tiny.en after a few steps on real clips, and what other programs make of its folder."""
    from ctranslate2.converters import TransformersConverter

    torch.manual_seed(1)
    model = models.load("whisper", tiny_en, "en", ModelConfig(lora=request.param)).train()
    lr = 1e-3 if request.param else 3e-5
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=lr)
    batch = collate(clips(prompts, "train", 6))
    for _ in range(3):
        optimizer.zero_grad()
        found = model.loss(batch)
        (found.total / found.tokens).backward()
        optimizer.step()
    folder = tmp_path_factory.mktemp("trained")
    model.eval().save(folder)
    converted = folder / "converted"
    TransformersConverter(str(folder), copy_files=["tokenizer.json", "preprocessor_config.json"]).convert(str(converted))
    return Trained(model, folder, converted)


@pytest.fixture(scope="module")
def heard(prompts) -> Batch:
    return collate(clips(prompts, "test", 5), context=FULL_CONTEXT)


@torch.no_grad()
def test_plain_transformers_gives_the_same_logits(trained, tiny_en, heard):
    net, report = WhisperForConditionalGeneration.from_pretrained(trained.folder, output_loading_info=True)
    assert {key: list(value) for key, value in report.items() if value} == {}
    processor = WhisperProcessor.from_pretrained(trained.folder)  # tokenizer and front end
    batch = heard.rows([0, 1])
    waves = [wave[: round(s * SAMPLE_RATE)].numpy() for wave, s in zip(batch.wave_BN, batch.seconds, strict=True)]
    mel = processor(waves, sampling_rate=SAMPLE_RATE, return_tensors="pt").input_features
    tokens = trained.model._labels(batch.texts)[0]
    hidden = trained.model.net.model.decoder(input_ids=tokens, encoder_hidden_states=trained.model.encode(batch)).last_hidden_state
    ours, theirs = trained.model.net.proj_out(hidden), net.eval()(mel, decoder_input_ids=tokens).logits
    untrained = WhisperForConditionalGeneration.from_pretrained(tiny_en).eval()(mel, decoder_input_ids=tokens).logits
    assert (ours - theirs).abs().max() < 2e-3 < 0.1 < (untrained - theirs).abs().max()


def test_ctranslate2_has_the_same_weights(trained):
    """Its file as our own reader of the format sees it, which knows nothing of the converter."""
    found = reader.state_dict(reader.read(trained.converted / "model.bin"))
    saved = WhisperForConditionalGeneration.from_pretrained(trained.folder).state_dict()
    assert found.keys() == saved.keys() - {"proj_out.weight"}
    assert all(np.array_equal(value, saved[name].numpy()) for name, value in found.items())
    settings = json.loads((trained.converted / "config.json").read_text())
    assert settings["alignment_heads"] == trained.model.net.generation_config.alignment_heads
    assert settings["suppress_ids"] == trained.model.net.generation_config.suppress_tokens


def test_faster_whisper_hears_the_same(trained, tiny_en, heard):
    from faster_whisper import WhisperModel

    program = WhisperModel(str(trained.converted), device="cpu", compute_type="float32", cpu_threads=1, local_files_only=True)
    settings = {"beam_size": 1, "temperature": 0.0, "without_timestamps": True, "condition_on_previous_text": False, "vad_filter": False}
    theirs = []
    for wave in heard.wave_BN.numpy():
        # it pads spectrograms with zeros, which are no silence, so it gets the clip in 30 s of sound
        whole = np.pad(wave, (0, round(FULL_CONTEXT * SAMPLE_RATE) - len(wave)))
        segments, _ = program.transcribe(whole, language="en", no_speech_threshold=None, **settings)
        theirs.append(" ".join(segment.text.strip() for segment in segments))
    ours = trained.model.transcribe(heard, context="full")
    assert [h.text for h in ours] == theirs
    assert all(h.ended for h in ours)
    assert len(set(theirs)) == len(heard.ids)
    untrained = models.load("whisper", tiny_en, "en").eval().transcribe(heard, context="full")
    assert [h.text for h in untrained] != theirs  # negative control: the weights are those that were trained


def test_the_folder_has_what_converters_copy(trained):
    assert {"tokenizer.json", "preprocessor_config.json", "generation_config.json"} <= {p.name for p in trained.folder.iterdir()}
    assert WhisperFeatureExtractor.from_pretrained(trained.converted).feature_size == 80
