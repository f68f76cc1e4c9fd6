"""The schedule against PyTorch's own, and which parameters decay."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, SequentialLR

from speechlab import models
from speechlab.config import OptimConfig
from speechlab.optim import adamw, learning_rate


def oracle(total: int, config: OptimConfig) -> list[float]:
    """The rates of PyTorch's linear warm-up followed by its cosine annealing."""
    warmup = config.warmup_steps
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=config.lr)
    cosine = CosineAnnealingLR(optimizer, T_max=total - 1 - warmup, eta_min=config.lr_min)
    if warmup:
        linear = LinearLR(optimizer, start_factor=1 / warmup, total_iters=warmup - 1)
        schedule = SequentialLR(optimizer, [linear, cosine], milestones=[warmup])
    else:
        schedule = cosine
    rates = []
    for _ in range(total):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return rates


@pytest.mark.parametrize(("total", "warmup"), [(81, 10), (30, 2), (25, 0), (100, 50)])
def test_the_schedule_equals_pytorchs(total, warmup):
    config = OptimConfig(lr=3e-5, lr_min=1e-6, warmup_steps=warmup)
    rates = [learning_rate(s, total, config) for s in range(total)]
    assert rates == pytest.approx(oracle(total, config), rel=1e-9)
    assert rates[-1] == pytest.approx(config.lr_min, rel=1e-12)
    assert max(rates) == pytest.approx(config.lr) == rates[max(0, warmup - 1)]
    assert rates != pytest.approx(oracle(total + 1, config)[:total], rel=1e-9)  # one step more is another schedule


@settings(deadline=None)
@given(st.integers(1, 300), st.integers(0, 400), st.floats(1e-7, 1), st.floats(0, 1))
def test_any_schedule_rises_then_falls_between_its_bounds(total, warmup, lr, share):
    config = OptimConfig(lr=lr, lr_min=lr * share, warmup_steps=warmup)
    rates = [learning_rate(s, total, config) for s in range(total)]
    top = rates.index(max(rates))
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)
    assert all(0 <= r <= lr * (1 + 1e-12) for r in rates)
    assert all(r >= config.lr_min * (1 - 1e-12) for r in rates[warmup:])


def test_a_warmup_longer_than_the_training_is_a_warmup_all_the_way():
    config = OptimConfig(lr=1.0, warmup_steps=1000)
    assert [learning_rate(s, 4, config) for s in range(4)] == pytest.approx([0.001, 0.002, 0.003, 0.004])


def test_matrices_decay_and_vectors_do_not(small_whisper):
    model = models.load("whisper", small_whisper, "en")
    config = OptimConfig(lr=2e-4, beta1=0.8, beta2=0.9, eps=1e-7, weight_decay=0.3)
    decayed, rest = adamw(model, config).param_groups
    assert (decayed["weight_decay"], rest["weight_decay"]) == (0.3, 0.0)
    assert all((g["lr"], g["betas"], g["eps"]) == (2e-4, (0.8, 0.9), 1e-7) for g in (decayed, rest))
    named = {id(p): name for name, p in model.named_parameters()}
    vectors = {named[id(p)] for p in rest["params"]}
    assert all(name.endswith("bias") or "layer_norm" in name for name in vectors)
    matrices = {named[id(p)] for p in decayed["params"]}
    assert not any(name.endswith("bias") or "layer_norm" in name for name in matrices)
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {"net.model.encoder.embed_positions.weight"}  # sinusoids
    assert vectors | matrices | frozen == set(named.values())
    assert len(decayed["params"]) + len(rest["params"]) + 1 == len(named)
