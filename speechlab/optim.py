"""AdamW without decay on norms and biases, and the schedule: linear warm-up, then cosine."""

from __future__ import annotations

import math

import torch
from torch import nn

from speechlab.config import OptimConfig


def adamw(model: nn.Module, config: OptimConfig) -> torch.optim.AdamW:
    """AdamW (Loshchilov & Hutter, 2019) over the trainable parameters.

    Matrices and embeddings decay; vectors (norms, biases) do not.
    """
    trainable = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.lr, betas=(config.beta1, config.beta2), eps=config.eps, fused=True)


def learning_rate(step: int, total: int, config: OptimConfig) -> float:
    """The rate of a step: linear from lr / warmup_steps to lr, then cosine to ``lr_min`` at the last step.

    A warm-up longer than the training is a warm-up all the way.

    Args:
        step: From 0.
        total: Steps of the whole training.
        config: lr, lr_min and warmup_steps are used.
    """
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    progress = (step - config.warmup_steps) / max(1, total - 1 - config.warmup_steps)
    return config.lr_min + (config.lr - config.lr_min) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
