"""A family is one module and one line of the registry: this file is such a module, and adds itself."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from speechlab import checkpoints, config, corpora, models, training
from speechlab.batches import Batch, Clips
from speechlab.config import ModelConfig
from speechlab.errors import InputError
from speechlab.models import Hypothesis, Loss, ctc
from speechlab.runs import Run


class Tiny(nn.Module):
    """CTC over blocks of 20 ms of the wave: the smallest model that the lab can train."""

    contexts = ("clip",)
    label_rate = None

    def __init__(self, folder: str | Path, language: str = "en", config: ModelConfig | None = None) -> None:
        super().__init__()
        self.vocabulary = ctc.Vocabulary(folder)
        self.head = nn.Linear(320, len(self.vocabulary))
        self.load_state_dict(load_file(Path(folder) / "model.safetensors"))

    def loss(self, batch: Batch) -> Loss:
        logits_BFV, frames = self._logits(batch)
        return ctc.loss(logits_BFV, frames, self.vocabulary.encode(batch.texts), self.vocabulary.blank)

    forward = loss

    def transcribe(self, batch: Batch, *, context: str | None = None, fallback: bool = True) -> list[Hypothesis]:
        logits_BFV, frames = self._logits(batch)
        rows = ctc.greedy(logits_BFV, frames, self.vocabulary.blank)
        return [Hypothesis(self.vocabulary.decode(row), True, batch.context) for row in rows]

    def _logits(self, batch: Batch) -> tuple[torch.Tensor, list[int]]:
        blocks_BFN = nn.functional.pad(batch.wave_BN, (0, -batch.wave_BN.shape[1] % 320)).unflatten(1, (-1, 320))
        return self.head(blocks_BFN), [n // 320 for n in batch.samples_B.tolist()]

    def count_tokens(self, texts: list[str]) -> list[int]:
        return [len(row) for row in self.vocabulary.encode(texts)]

    def recompute(self) -> None:
        """Nothing to save."""

    def save(self, folder: Path) -> None:
        save_file(self.state_dict(), folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps({"model_type": "tiny"}))
        self.vocabulary.save(folder)

    @classmethod
    def complete(cls, folder: Path, config: ModelConfig) -> bool:
        return (folder / "vocab.json").is_file()

    @classmethod
    def create(cls, config: ModelConfig, start: Path | None, language: str, texts: list[str], folder: Path) -> None:
        vocabulary = ctc.make_vocabulary(config.vocabulary, texts, folder)
        head = nn.Linear(320, len(vocabulary))
        save_file({"head.weight": head.weight.detach(), "head.bias": head.bias.detach()}, folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps({"model_type": "tiny"}))


def count_tokens(folder: str | Path, texts: Sequence[str]) -> list[int]:
    return [len(row) for row in ctc.Vocabulary(folder).encode(texts)]


@pytest.fixture
def tiny(monkeypatch, tmp_path) -> dict[str, Any]:
    """The one line, and a config that names it."""
    monkeypatch.setitem(models.FAMILIES, "tiny", f"{__name__}:Tiny")
    monkeypatch.setitem(sys.modules, __name__, sys.modules[Tiny.__module__])
    monkeypatch.setenv("SPEECHLAB_CACHE", str(tmp_path / "cache"))
    return {"name": "tiny", "question": "Does it train?", "model": {"family": "tiny"}, "training": {"epochs": 2, "micro_batches": 2}}


def few(corpus: corpora.Corpus) -> corpora.Corpus:
    from dataclasses import replace

    return replace(corpus, cuts={split: corpus.cuts[split].subset(first=8) for split in corpora.SPLITS})


def test_a_family_of_one_module_and_one_line_trains_and_is_evaluated(tiny, prompts, tmp_path):
    made, little = config.validate(tiny, "test"), few(prompts)
    start = training.begin(made, Clips.of(little))
    assert (start.source, start.name) == ("made", "from scratch")
    run = Run.create(made, tmp_path)
    for event in training.train(made, little, str(start.path), run):
        run.append(event)
    assert run.state == "finished"
    best = checkpoints.best(checkpoints.candidates(run.path / "checkpoints"))
    assert best is not None
    assert models.weights.resolve("tiny", str(best.path)).source == "path"
    again = models.load("tiny", best.path, "en")
    assert checkpoints.weights_digest(again) == best.digest


def test_a_clip_whose_text_is_too_long_for_ctc_is_counted_named_and_left_out(tiny, prompts, tmp_path):
    little = few(prompts)
    victim = sorted(little.cuts["train"], key=lambda c: c.id)[0]
    victim.supervisions[0].text = "letters " * 1000
    made = config.validate(tiny, "test")
    run = Run.create(made, tmp_path)
    events = list(training.train(made, little, str(training.begin(made, Clips.of(little)).path), run))
    steps = [e for e in events if e["kind"] == "step"]
    assert [i for e in steps for i in e["infeasible"]] == [victim.id] * 2, "once in each epoch"
    assert any(victim.id in e["text"] and "longer texts than CTC can align" in e["text"] for e in events if e["kind"] == "message")
    for step in steps:  # the mean is over the tokens that were in the loss
        assert step["tokens"] < 8000
        assert 0 < step["loss"] < 100


def test_weights_made_by_the_lab_are_the_same_bits_from_the_same_seed(tiny, prompts):
    clips = Clips.of(few(prompts))
    made = [training.begin(config.validate(tiny | {"seed": seed}, "test"), clips) for seed in (1, 1, 2)]
    assert made[0].sha256 == made[1].sha256 != made[2].sha256
    data = bytearray((made[0].path / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (made[0].path / "model.safetensors").write_bytes(data)
    assert training.begin(config.validate(tiny | {"seed": 1}, "test"), clips).sha256 == made[1].sha256, "damaged ones are made anew"


def test_whisper_does_not_start_from_scratch():
    with pytest.raises(InputError, match="does not start from scratch"):
        models.begin(ModelConfig(family="whisper", weights=None), "en", [], 1)
