"""Low-rank adapters on a net of two layers; tests/test_whisper.py and tests/test_export.py have them in a real model."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from speechlab.config import LoraConfig
from speechlab.errors import InputError
from speechlab.models import adapters


class Net(nn.Module):
    """Attention, whose output layer is read and never called; two linear layers; an output layer that is the embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(10, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.block = nn.ModuleDict({"fc1": nn.Linear(8, 16), "fc2": nn.Linear(16, 8, bias=False)})
        self.fc2 = nn.Linear(8, 8)
        self.head = nn.Linear(8, 10, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids_BL: torch.Tensor) -> torch.Tensor:
        x = self.embed(ids_BL)
        x = x + self.attention(x, x, x)[0]
        x = x + self.block["fc2"](self.block["fc1"](x).relu())
        return self.head(self.fc2(x))


IDS = torch.arange(10)[None]


def adapted(seed: int = 1, **settings) -> Net:
    torch.manual_seed(0)
    net = Net()
    torch.manual_seed(seed)
    adapters.add(net, LoraConfig(**{"rank": 2, "targets": ("fc1", "fc2")} | settings))
    return net


def learnt(net: Net) -> dict[str, torch.Tensor]:
    return {name: p for name, p in net.named_parameters() if p.requires_grad}


def trained(**settings) -> Net:
    net = adapted(**settings)
    optimizer = torch.optim.AdamW(learnt(net).values(), lr=0.05)
    for _ in range(5):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(IDS)[0], IDS[0].roll(1)).backward()
        optimizer.step()
    return net


def test_adapters_alone_learn_and_start_as_nothing():
    torch.manual_seed(0)
    plain, net = Net(), adapted()
    assert torch.equal(plain(IDS), net(IDS))
    layers = ("block.fc1", "block.fc2", "fc2")
    assert set(learnt(net)) == {f"{layer}.lora_{which}.default.weight" for layer in layers for which in "AB"}
    assert {tuple(p.shape) for name, p in learnt(net).items() if name.startswith("block.fc1")} == {(2, 8), (16, 2)}
    after = trained().state_dict()
    assert {name for name, value in net.state_dict().items() if not torch.equal(value, after[name])} == set(learnt(net))


def test_a_longer_name_or_an_untouched_part_leaves_layers_out():
    assert {name.partition(".lora")[0] for name in learnt(adapted(targets=("block.fc2",)))} == {"block.fc2"}
    net = Net()
    adapters.add(net, LoraConfig(targets=("fc2",)), untouched=net.block)
    assert {name.partition(".lora")[0] for name in learnt(net)} == {"fc2"}
    net = Net()
    with pytest.raises(InputError, match=r"targets: fc1(.|\n)*not frozen(.|\n)*known: fc2$"):
        adapters.add(net, LoraConfig(targets=("fc1",)), untouched=net.block)


def test_they_begin_as_torch_is_seeded_and_load_back():
    first, same, other = adapted(1), adapted(1), adapted(2)
    assert first.state_dict().keys() == other.state_dict().keys()
    assert all(torch.equal(value, same.state_dict()[name]) for name, value in first.state_dict().items())
    assert not all(torch.equal(value, other.state_dict()[name]) for name, value in first.state_dict().items())
    source = trained()
    assert other.load_state_dict({name: p.detach() for name, p in learnt(source).items()}, strict=False).unexpected_keys == []
    assert torch.equal(other(IDS), source(IDS))


@torch.no_grad()
def test_merging_leaves_the_adapted_net_as_it_is():
    with torch.enable_grad():
        net = trained(alpha=3.0, dropout=0.1)
    net.eval()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    plain = Net().eval()
    unadapted = adapted().eval()(IDS)
    plain.load_state_dict(adapters.merged(net))  # strict: every name and shape
    assert (plain(IDS) - net(IDS)).abs().max() < 1e-5 < 0.1 < (unadapted - net(IDS)).abs().max()
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())

    for layer in net.modules():  # negative control: peft's own way leaves rounding behind
        if hasattr(layer, "merge"):
            layer.merge()
            layer.unmerge()
    assert not all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_without_adapters_there_is_nothing_to_merge():
    net = Net()
    state = adapters.merged(net)
    assert list(state) == list(net.state_dict())
    assert all(value.data_ptr() == net.state_dict()[name].data_ptr() for name, value in state.items())


@pytest.mark.parametrize(("target", "hint"), [("fc_1", 'did you mean "fc1"? '), ("block", ""), ("c1", 'did you mean "fc1"? ')])
def test_an_unknown_target_lists_the_layers_there_are(target, hint):
    net = Net()
    names = list(net.state_dict())
    with pytest.raises(InputError) as caught:
        adapters.add(net, LoraConfig(targets=("fc2", target)))
    assert str(caught.value).splitlines()[1:] == [
        f"  got:      model.lora.targets: {target}",
        "  expected: the name of a linear layer that is not frozen",
        f"  do:       {hint}known: fc1, fc2",
    ]
    assert list(net.state_dict()) == names  # and nothing was done


@pytest.mark.parametrize("target", ["out_proj", "head", "embed"])  # not called, the embedding's weight, not linear
def test_layers_on_which_adapters_would_be_wrong_are_none(target):
    with pytest.raises(InputError, match=r"no such layer(.|\n)*known: fc1, fc2$"):
        adapters.add(Net(), LoraConfig(targets=(target,)))
