"""How much audio the memory holds: probed, kept, and right about passes larger than those probed."""

from __future__ import annotations

import json

import pytest
import torch

from speechlab import budget, config, memory, models, training
from speechlab.batches import Clips
from speechlab.errors import InputError
from speechlab.runs import Run


def experiment(**cluster) -> config.Experiment:
    values = {"name": "b", "question": "?", "training": {"batch_seconds": 60.0, "precision": "fp32"}, "cluster": cluster}
    return config.validate(values, "test")


@pytest.fixture
def probed(prompts, small_whisper, tmp_path, monkeypatch):
    """Model, clips, plan and a run, with a cache of their own."""
    monkeypatch.setenv("SPEECHLAB_CACHE", str(tmp_path / "cache"))
    clips = Clips.of(prompts)
    model = models.load("whisper", small_whisper, "en").train()
    plan = training.plan_for(experiment(), clips, model.count_tokens(clips.texts))
    return model, clips, plan, Run.create(experiment(), tmp_path)


def test_two_small_probes_tell_what_a_large_pass_takes(probed):
    model, clips, plan, _ = probed
    found = budget.find(experiment(), model, clips, plan, "cpu")
    assert all(p.grad is None for p in model.parameters()), "the probe leaves nothing behind"
    batch = budget._worst(clips, 30.0)
    assert len(batch.wave_BN[0]) == max(round(16_000 * c.duration) for c in clips.cuts)
    measured = budget._peak(model, batch.rows([0] * 8), "fp32", "cpu")
    moments = budget.MOMENTS * sum(p.numel() for p in model.parameters() if p.requires_grad)
    predicted = found.fixed - moments + 8 * 30 * found.per_second
    print(f"8 clips at 30 s: {measured / 1e6:.0f} MB, predicted from one and two: {predicted / 1e6:.0f} MB")
    assert measured == pytest.approx(predicted, rel=0.35)
    assert found.seconds == budget.MOST_ON_CPU  # a small model on a machine with some memory


def test_what_was_found_is_kept_for_device_model_and_precision(probed, monkeypatch):
    model, clips, plan, _ = probed
    first = budget.find(experiment(), model, clips, plan, "cpu")
    monkeypatch.setattr(budget, "_peak", lambda *a: pytest.fail("probed again"))
    again = budget.find(experiment(), model, clips, plan, "cpu")
    assert (again.fixed, again.per_second) == (first.fixed, first.per_second)
    with pytest.raises(pytest.fail.Exception, match="probed again"):
        budget.find(config.validate(experiment().model_dump() | {"training": {"precision": "bf16"}}, "test"), model, clips, plan, "cpu")


def test_the_room_is_shared_by_workers_and_a_reserve_stays_free(probed, monkeypatch):
    model, clips, plan, _ = probed
    monkeypatch.setattr(budget, "_peak", lambda model, batch, *a: 1e9 + 30e7 * len(batch.ids))  # 10 MB a second of 30
    monkeypatch.setattr(memory, "free", lambda device: 4e9)
    moments = budget.MOMENTS * sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert budget.find(experiment(), model, clips, plan, "cpu").seconds == pytest.approx((0.85 * 4e9 - 1e9 - moments) / 1e7)
    assert budget.find(experiment(), model, clips, plan, "cpu", workers=2).seconds == pytest.approx((0.85 * 2e9 - 1e9 - moments) / 1e7)
    with pytest.raises(InputError, match=r"does not hold one clip[\s\S]*0.8 GB free on cpu[\s\S]*gradient_checkpointing"):
        budget.find(experiment(), model, clips, plan, "cpu", workers=5)


def test_a_run_keeps_its_budget_whatever_the_memory_is_later(probed, monkeypatch):
    model, clips, plan, run = probed
    found = budget.of_run(run, model, clips, plan, "cpu")
    budget.keep(run, found)
    monkeypatch.setattr(memory, "free", lambda device: 1.0)
    assert budget.of_run(run, model, clips, plan, "cpu") == found
    assert json.loads((run.path / "budget.json").read_text())["seconds"] == found.seconds


def test_a_budget_given_is_taken_and_nothing_is_probed(probed, tmp_path, monkeypatch):
    model, clips, plan, _ = probed
    monkeypatch.setattr(budget, "_peak", lambda *a: pytest.fail("probed"))
    run = Run.create(experiment(device_seconds=33.0), tmp_path)
    assert budget.of_run(run, model, clips, plan, "cpu").seconds == 33.0
    budget.keep(run, budget.of_run(run, model, clips, plan, "cpu"))
    assert not (run.path / "budget.json").exists()


def test_a_probe_draws_no_random_numbers_and_the_smallest_device_decides(probed, monkeypatch):
    model, clips, plan, _ = probed
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    budget.find(experiment(), model, clips, plan, "cpu")
    assert torch.equal(before, torch.random.get_rng_state())


def test_a_time_estimate_is_positive(probed):
    model, clips, plan, _ = probed
    assert 0 < budget.seconds_of_steps(experiment(), clips, plan, model, 240.0) < 3600
