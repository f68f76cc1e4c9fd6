"""The transcript check: likelihoods against transformers, swapped transcripts among real ones."""

from __future__ import annotations

import math
from dataclasses import replace

import jiwer
import numpy as np
import pandas as pd
import pytest
import torch

from speechlab import batches, corpora, models, transcripts
from speechlab.errors import InputError
from speechlab.models import Hypothesis
from speechlab.text import normaliser
from speechlab.units import FULL_CONTEXT

ENGLISH = normaliser("english")


@pytest.fixture(scope="module")
def model(tiny_en):
    return models.load("whisper", tiny_en, "en").eval()


@pytest.fixture(scope="module")
def clips(prompts) -> list:
    """Sixteen real clips of one to three seconds, each of another text."""
    texts: dict[str, object] = {}
    for cut in prompts.cuts["train"]:
        if 1.0 < cut.duration < 3.0 and len(said(cut).split()) > 2:
            texts.setdefault(ENGLISH(said(cut)), cut)
    return list(texts.values())[:16]


def said(cut) -> str:
    return cut.supervisions[0].text


def retold(cut, text: str):
    return replace(cut, supervisions=[replace(cut.supervisions[0], text=text)])


def heard(clips):
    return batches.collate([(c.id, said(c), corpora.load_audio(c)) for c in clips], FULL_CONTEXT)


# --- likelihoods ---


def test_likelihoods_are_those_of_transformers(model, clips):
    batch, texts = heard(clips[:3]), [said(c) for c in clips[:3]]
    others = ["something else altogether", "", "yes"]
    found = model.likelihoods(batch, [texts, others])
    mel = model.front_end(batch.wave_BN, FULL_CONTEXT)
    for column, row in zip([texts, others], found, strict=True):
        for i, (text, (nats, tokens)) in enumerate(zip(column, row, strict=True)):
            ids = model.tokenizer(" " + text, add_special_tokens=False)["input_ids"] if text else []
            full = torch.tensor([[*model._special.prompt, *ids, model._special.end]])
            with torch.inference_mode():
                logits = model.net(input_features=mel[i : i + 1], decoder_input_ids=full[:, :-1]).logits[0]
            logs = logits.log_softmax(-1).gather(1, full[0, 1:, None])[len(model._special.prompt) - 1 :]
            assert tokens == len(ids) + 1 == len(logs)
            assert nats == pytest.approx(float(logs.sum()), abs=2e-3)


def test_likelihoods_add_up_to_the_loss(model, clips):
    batch = heard(clips[:4])
    (found,) = model.likelihoods(batch, [list(batch.texts)])
    with torch.inference_mode():
        loss = model.loss(batch)
    assert -sum(nats for nats, _ in found) == pytest.approx(float(loss.total), rel=1e-4)
    assert sum(tokens for _, tokens in found) == loss.tokens


def test_a_text_the_decoder_has_no_room_for(model, clips):
    ((first, second),) = model.likelihoods(heard(clips[:2]), [["no " * 500, "yes"]])
    assert first[0] == -math.inf and first[1] > 448 and math.isfinite(second[0])


# --- the ranking ---


@pytest.mark.slow
def test_swapped_transcripts_come_first(model, clips):
    """Known truth: four of 16 real clips get each other's transcripts."""
    wrong = {clips[i].id for i in range(0, 16, 4)}
    texts = [said(c) for c in clips[0:16:4]]
    mixed = [retold(c, texts[(i // 4 + 1) % 4]) if c.id in wrong else c for i, c in enumerate(clips)]
    counted: list[int] = []
    model.train()
    table = transcripts.check(model, mixed, "en", seconds=40, heard=counted.append)
    assert model.training
    model.eval()
    assert list(table.columns) == ["rank", "id", "duration", "reference", "hypothesis", "ended", "nats", "margin", "cer"]
    assert list(table["rank"]) == list(range(1, 17)) and len(counted) > 1 and counted == sorted(set(counted)) and counted[-1] == 16
    for by in transcripts.SCORES:
        assert set(transcripts.ranked(table, by)["id"][:4]) == wrong
    assert table["nats"][3] > 2 * max(table["nats"][4], 1)
    assert dict(zip(table["id"], table["reference"], strict=True)) == {c.id: said(c) for c in mixed}

    own = [c for c in clips if c.id in wrong]  # the control: the same clips with their own transcripts
    assert transcripts.check(model, own, "en")["nats"].max() < table["nats"][3] / 2


@pytest.mark.slow
def test_style_costs_nothing(model, clips):
    plain = transcripts.check(model, [retold(c, said(c).rstrip(".").lower()) for c in clips[:4]], "en")
    styled = transcripts.check(model, [retold(c, said(c).rstrip(".").capitalize() + ".") for c in clips[:4]], "en")
    nats = [dict(zip(t["id"], t["nats"], strict=True)) for t in (plain, styled)]
    assert all(abs(nats[0][c.id] - nats[1][c.id]) < 0.5 for c in clips[:4])
    assert {spelling("l\u2019audio.") for spelling in transcripts.SPELLINGS} == {"l'audio.", "L'audio.", "l'audio"}


def test_a_text_too_long_to_be_said_is_worst(model, clips):
    table = transcripts.check(model, [retold(clips[0], "no " * 500), *clips[1:3]], "en")
    assert table["id"][0] == clips[0].id and table["nats"][0] == table["margin"][0] == math.inf and np.isfinite(table["nats"][1:]).all()


class Deaf(torch.nn.Module):
    """A family without likelihoods, which hears the same whatever is said."""

    def transcribe(self, batch, *, context=None, fallback=True):
        return [Hypothesis("good day", True, batch.context) for _ in batch.ids]


def test_without_likelihoods_the_error_rate_ranks(clips):
    cuts = [retold(c, t) for c, t in zip(clips, ["good day", "good dry", "something else", "(pause)"], strict=False)]
    table = transcripts.check(Deaf(), cuts, "en")
    assert table[["nats", "margin"]].isna().all(axis=None)
    assert list(table["reference"]) == ["(pause)", "something else", "good dry", "good day"]
    assert table["cer"][0] == math.inf and table["cer"][3] == 0


def test_error_rates_are_jiwers():
    references, hypotheses = ["hello there", "yes", "a b", ""], ["hallo there", "", "a b c d e", ""]
    rates = transcripts.character_errors(references, hypotheses, ENGLISH)
    pairs = list(zip(references, hypotheses, strict=True))[:3]
    assert rates[:3].tolist() == pytest.approx([jiwer.cer(ENGLISH(r), ENGLISH(h)) for r, h in pairs]) and rates[3] == 0
    assert transcripts.character_errors([""], ["x"], ENGLISH)[0] == math.inf


def test_ties_are_ordered_by_error_rate_then_id():
    table = pd.DataFrame({"id": ["c", "b", "a", "d"], "nats": [1.0, 1.0, 1.0, math.nan], "cer": [0.1, 0.5, 0.1, 9.0]})
    assert list(transcripts.ranked(table)["id"]) == ["b", "a", "c", "d"]
    assert list(transcripts.ranked(transcripts.ranked(table), "cer")["id"]) == ["d", "b", "a", "c"]


def test_no_clips():
    with pytest.raises(InputError, match="no transcripts to check"):
        transcripts.check(None, [], "en")
    with pytest.raises(InputError, match='ranked by that(.|\n)*did you mean "cer"'):
        transcripts.check(None, [], "en", by="wer")
