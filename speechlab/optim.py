"""AdamW without decay on norms and biases; the schedule, linear warm-up, then cosine; the weights' moving average."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

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


class Average:
    """Exponential moving average of the trainable weights over steps (Polyak & Juditsky, 1992).

    The first steps count fully: the decay of step n is at most ``(1 + n) / (10 + n)``, as in TensorFlow's and timm's, or
    the initial weights would stay in the average for ``1 / (1 - decay)`` steps.

    Args:
        model: Whose weights are followed.
        decay: Share of the old average that stays at each step.

    Attributes:
        weights: The averages by parameter name.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._decay, self._model = decay, model
        self.weights = {name: p.detach().clone() for name, p in self._followed()}

    def _followed(self) -> Iterator[tuple[str, nn.Parameter]]:
        return ((name, p) for name, p in self._model.named_parameters() if p.requires_grad)

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take the weights in after a step, counted from 0."""
        weight = 1 - min(self._decay, (1 + step) / (10 + step))
        for name, p in self._followed():
            self.weights[name].lerp_(p, weight)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The model with the averaged weights, for as long as this lasts."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for name, p in self._followed():
            p.data, self.weights[name] = self.weights[name], p.data
