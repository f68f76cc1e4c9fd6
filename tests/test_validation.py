"""Dev clips scored while training: against jiwer, shared among workers, and to be heard."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jiwer
import pytest

from speechlab import audio, config, models, validation
from speechlab.runs import Run
from speechlab.text import normaliser
from speechlab.world import World


class Half(World):
    """One of two workers whose other half is computed here too, in place of a process group."""

    others: ClassVar[list] = []

    def gather(self, rows):
        type(self).others.append(rows)
        return [row for part in self.others for row in part]


@pytest.fixture
def run(tmp_path):
    return Run.create(config.validate({"name": "v", "question": "?", "training": {"precision": "fp32"}}, "test"), tmp_path)


@pytest.fixture
def few(prompts):
    cuts = dict(prompts.cuts) | {"dev": prompts.cuts["dev"].subset(first=7)}
    return dataclasses.replace(prompts, cuts=cuts)


def test_an_event_has_the_rates_of_all_clips_and_six_to_hear(few, run, tiny_en):
    model = models.load("whisper", tiny_en, "en")
    event = validation.validate(run.config, model, few, run, World(), 5, 2)
    assert (event["kind"], event["step"], event["epoch"], event["clips"]) == ("validation", 5, 2, 7)
    assert len(event["samples"]) == validation.SAMPLES
    named = normaliser(run.config.evaluation.normaliser)
    said = {c.id: c.supervisions[0].text for c in few.cuts["dev"]}
    for sample in event["samples"]:
        assert sample["reference"] == said[sample["id"]]
        assert len(audio.decode((run.path / sample["audio"]).read_bytes())) > 1000
    # all seven clips count, not the six shown: the rate is a multiple of one error over all words
    words = sum(len(named.words(text)) for text in said.values())
    assert (event["wer"] * words) == pytest.approx(round(event["wer"] * words))
    shown = jiwer.wer([named(s["reference"]) for s in event["samples"]], [named(s["hypothesis"]) for s in event["samples"]])
    assert event["wer"] * words >= shown * sum(len(named.words(s["reference"])) for s in event["samples"]) - 1e-9


def test_two_workers_decode_half_each_and_score_the_whole(few, run, small_whisper):
    model = models.load("whisper", small_whisper, "en")
    alone = validation.validate(run.config, model, few, run, World(), 1, 0)
    Half.others = []
    with pytest.raises(KeyError):  # half the clips are not the whole: the samples of the other half are missing
        validation.validate(run.config, model, few, run, Half(1, 2), 1, 0)
    together = validation.validate(run.config, model, few, run, Half(0, 2), 1, 0)
    assert together["clips"] == 7
    assert (together["wer"], together["cer"]) == (alone["wer"], alone["cer"])
