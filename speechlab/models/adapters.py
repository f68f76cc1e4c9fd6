"""LoRA (Hu et al., 2022) for any family: small trained matrices beside frozen linear layers, through peft.

Notable: :func:`merged` adds the adapters to copies. peft merges in place and subtracts again, which leaves rounding in the
weights, so that a training that saves more often would become another one.

Not covered: convolutions, embeddings and layers that share their weights with another; several adapters on one model;
quantised weights; peft's own files.
"""

from __future__ import annotations

import re
from collections import Counter

import torch
from torch import Tensor, nn

from speechlab.config import LoraConfig
from speechlab.errors import InputError, did_you_mean

ADAPTER = "default"  # peft's name of the one there is


def add(net: nn.Module, lora: LoraConfig, untouched: nn.Module | None = None) -> None:
    """Put adapters beside linear layers, in place, and freeze everything else.

    The adapted net computes what it did before until it is trained: the matrices B are zero. The matrices A are drawn from
    torch's generator, so seed that where equal bits are wanted.

    Args:
        net: Its layers keep their places; parameters of adapted ones move to ``<layer>.base_layer``.
        lora: Targets are the last parts of layers' names: ``q_proj``, or ``encoder_attn.q_proj`` for fewer of them.
        untouched: A part of the net that gets no adapters.

    Raises:
        InputError: if a target is the name of no linear layer, with those there are.
    """
    from peft import LoraConfig as PeftConfig
    from peft import inject_adapter_in_model

    layers = _linear_layers(net, untouched)
    chosen = {target: [name for name in layers if f".{name}".endswith(f".{target}")] for target in lora.targets}
    for target, names in chosen.items():
        if not names:
            raise InputError(
                "There is no such layer to adapt.",
                got=f"model.lora.targets: {target}",
                expected="the name of a linear layer that is not frozen",
                do=did_you_mean(target, {name.rpartition(".")[2] for name in layers}),
            )
    # whole names, as a pattern: of a list peft would take the ends. Its type of alpha is int, but it only divides by the rank
    places = "|".join(sorted({re.escape(name) for names in chosen.values() for name in names}))
    settings = PeftConfig(r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=places)  # type: ignore[arg-type]
    inject_adapter_in_model(settings, net, ADAPTER)


@torch.no_grad()
def merged(net: nn.Module) -> dict[str, Tensor]:
    """The weights with the adapters added, under the names they have in a net without adapters.

    Returns:
        Copies of the adapted matrices; all else as in ``net.state_dict()``, which is what a net without adapters gives.
    """
    state = dict(net.state_dict())
    for name, module in net.named_modules():
        if hasattr(module, "get_delta_weight"):
            state[f"{name}.base_layer.weight"] = module.base_layer.weight + module.get_delta_weight(ADAPTER)  # type: ignore[union-attr, operator]
    return {name.replace(".base_layer.", "."): value for name, value in state.items() if ".lora_" not in name}


def _linear_layers(net: nn.Module, untouched: nn.Module | None) -> list[str]:
    # subclasses are left out: nn.MultiheadAttention reads the weight of its out_proj and never calls it, so an adapter
    # there would do nothing; so are weights with a second place, such as Whisper's output layer, which is its embedding
    owners = Counter(id(p) for _, p in net.named_parameters(remove_duplicate=False))
    hidden = set(untouched.modules()) if untouched else set()
    return [n for n, m in net.named_modules() if type(m) is nn.Linear and owners[id(m.weight)] == 1 and m not in hidden]
