"""The Conformer against torchaudio's own layers, alone and in batches, on real clips."""

from __future__ import annotations

import copy
import itertools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from speechlab import corpora, models
from speechlab.augment import Masks
from speechlab.batches import Batch, collate
from speechlab.config import LoraConfig, ModelConfig, ShapeConfig, VocabularyConfig
from speechlab.errors import InputError
from speechlab.features import mask
from speechlab.models import conformer, ctc, weights
from speechlab.models.conformer import Conformer, Dimensions, Layers, dimensions

SHAPE = ShapeConfig(dim=32, layers=2, heads=2, kernel=7, dropout=0.0)
CONFIG = ModelConfig(family="conformer", shape=SHAPE)


def create(folder: Path, config: ModelConfig = CONFIG, texts: tuple[str, ...] = ("the quick brown fox jumps over the lazy dog",)) -> Path:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        Conformer.create(config, None, "en", texts, folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return create(tmp_path_factory.mktemp("conformer"))


@pytest.fixture(scope="module")
def model(folder) -> Conformer:
    return models.load("conformer", folder, "en").eval()


@pytest.fixture(scope="module")
def four(prompts) -> Batch:
    """Real clips, from short to long; the last frame of the second, of an odd number of halves, borders on padding within."""
    cuts = sorted(prompts.cuts["test"], key=lambda c: (c.duration, c.id))
    odd = next(c for c in cuts[30:] if len(corpora.load_audio(c)) // 320 % 2 == 0)
    return collate([(c.id, c.supervisions[0].text, corpora.load_audio(c)) for c in (cuts[0], odd, cuts[80], cuts[115])])


def alone(batch: Batch, i: int) -> Batch:
    """One clip, without the padding that it has in the batch."""
    wave = batch.wave_BN[i, : round(batch.seconds[i] * 16_000)].numpy()
    return collate([(batch.ids[i], batch.texts[i], wave, batch.masks[i] if batch.masks else None)])


# --- the layers ---


class OverChannels(nn.LayerNorm):
    """The norm as torchaudio's sequence of modules would hold it."""

    def forward(self, x_BDF: torch.Tensor) -> torch.Tensor:
        return super().forward(x_BDF.transpose(1, 2)).transpose(1, 2)


def torchaudios(model: Conformer) -> Layers:
    """torchaudio's own class with the same weights and its own forward."""
    d = model.dimensions
    theirs = Layers(d.dim, d.heads, d.ffn, d.layers, d.kernel)
    for layer in theirs.conformer_layers:
        layer.conv_module.sequential[3] = OverChannels(d.dim)
    theirs.load_state_dict(model.net["encoder"].state_dict())
    return theirs.eval()


def ours(model: Conformer, x_BFD: torch.Tensor, frames: list[int]) -> torch.Tensor:
    own_BF = torch.arange(x_BFD.shape[1]) < torch.tensor(frames)[:, None]
    for layer in model.net["encoder"].conformer_layers:
        x_BFD = conformer._layer(layer, x_BFD, own_BF)
    return x_BFD


@torch.no_grad()
def test_without_padding_the_layers_are_torchaudios(model):
    torch.manual_seed(0)
    x_BFD = torch.randn(3, 50, 32)
    theirs, _ = torchaudios(model)(x_BFD, torch.tensor([50, 50, 50]))
    assert (ours(model, x_BFD, [50, 50, 50]) - theirs).abs().max() < 1e-5 < theirs.std() / 1000


@torch.no_grad()
def test_padding_leaks_into_torchaudios_layers_and_not_into_ours(model):
    torch.manual_seed(0)
    x_BFD = torch.randn(2, 50, 32)
    own, _ = torchaudios(model)(x_BFD[1:, :20], torch.tensor([20]))
    leaky, _ = torchaudios(model)(x_BFD, torch.tensor([50, 20]))
    assert (ours(model, x_BFD, [50, 20])[1, :20] - own[0]).abs().max() < 1e-5
    assert (leaky[1, :20] - own[0]).abs().max() > 0.1  # negative control


def test_the_gradients_are_torchaudios_too(model):
    torch.manual_seed(0)
    x_BFD, theirs = torch.randn(2, 30, 32), torchaudios(model)
    weight = torch.randn(2, 30, 32)
    (theirs(x_BFD, torch.tensor([30, 30]))[0] * weight).sum().backward()
    mine = copy.deepcopy(model)
    (ours(mine, x_BFD, [30, 30]) * weight).sum().backward()
    for (name, a), (_, b) in zip(theirs.named_parameters(), mine.net["encoder"].named_parameters(), strict=True):
        assert a.grad is not None and b.grad is not None, name
        assert torch.allclose(a.grad, b.grad, rtol=1e-3, atol=1e-4), name


# --- padding does not matter ---


@torch.no_grad()
@pytest.mark.parametrize("masked", [False, True])
def test_a_clip_is_the_same_alone_and_in_a_batch(model, four, masked):
    if masked:
        masks = tuple(Masks(int(s * 100) + 1, ((0.1, 0.3),), ((5, 20),)) for s in four.seconds)
        four = Batch(four.ids, four.texts, four.wave_BN, four.seconds, four.context, masks)
    together_BFV, frames = model.logits(four)
    for i, count in enumerate(frames):
        own_BFV, own_frames = model.logits(alone(four, i))
        assert own_frames == [count] == [own_BFV.shape[1]]
        assert (own_BFV[0] - together_BFV[i, :count]).abs().max() < 1e-4 < own_BFV.std() / 100


@torch.no_grad()
@pytest.mark.parametrize("where", ["convolution", "subsampling", "attention"])
def test_it_would_not_be_if_padding_were_let_in(model, four, where, monkeypatch):
    """The negative control of the test above, for each place that padding is kept out of."""
    if where == "subsampling":  # its second convolution
        subsampling = model.net["subsampling"]
        plain = subsampling.forward
        monkeypatch.setattr(subsampling, "forward", lambda mel, halves: plain(mel, torch.full_like(halves, mel.shape[2])))
    else:
        plain = getattr(conformer, f"_{where}")
        monkeypatch.setattr(conformer, f"_{where}", lambda module, x, own: plain(module, x, torch.ones_like(own)))
    together_BFV, frames = model.logits(four)
    own_BFV, _ = model.logits(alone(four, 1))
    assert (own_BFV[0] - together_BFV[1, : frames[1]]).abs().max() > 1e-3


def test_loss_gradients_and_transcripts_do_not_depend_on_the_batch(model, four):
    model = copy.deepcopy(model).train()  # no dropout in SHAPE: a norm over the batch or a running mean would show
    before = {name: value.clone() for name, value in model.state_dict().items()}

    def gradients(batches: list[Batch]) -> tuple[float, int, dict[str, torch.Tensor]]:
        model.zero_grad()
        found = [model.loss(batch) for batch in batches]
        torch.stack([loss.total for loss in found]).sum().backward()
        return sum(f.total.item() for f in found), sum(f.tokens for f in found), {n: p.grad.clone() for n, p in model.named_parameters()}

    together, one_by_one = gradients([four]), gradients([alone(four, i) for i in range(4)])
    assert together[0] == pytest.approx(one_by_one[0], rel=1e-5)
    assert together[1] == one_by_one[1] == sum(model.count_tokens(list(four.texts)))
    for name, gradient in together[2].items():
        assert torch.allclose(gradient, one_by_one[2][name], rtol=1e-3, atol=1e-3 * gradient.abs().max().item() + 1e-5), name
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())  # nothing runs along
    found = model.transcribe(four)
    assert found == [model.transcribe(alone(four, i))[0] for i in range(4)]
    assert [(h.ended, h.context) for h in found] == [(True, s) for s in four.seconds]


# --- frames ---


@torch.no_grad()
@pytest.mark.parametrize("samples", [400, 639, 640, 641, 1279, 1280, 2560, 16_000, 16_001, 48_123])
def test_frames_are_a_function_of_samples(model, samples):
    wave = np.random.default_rng(0).normal(0, 0.1, samples).astype("float32")
    logits_BFV, frames = model.logits(collate([("x", "", wave)]))
    assert frames == [logits_BFV.shape[1]] == [1 + samples // 640]
    assert conformer.FRAMES_PER_SECOND == 25


@pytest.mark.parametrize("samples", [0, 1, 201, 399])
def test_a_clip_shorter_than_a_window_spoils_no_batch(model, four, samples):
    short = ("short", "a", four.wave_BN[0, :samples].numpy())
    single, batch = collate([short]), collate([short, (four.ids[0], four.texts[0], alone(four, 0).wave_BN[0].numpy())])
    assert len(model.transcribe(single)) == 1
    assert model.transcribe(batch)[1] == model.transcribe(alone(four, 0))[0]
    found = model.loss(batch)
    assert found.total.isfinite() and found.infeasible == ()
    assert found.total.item() == pytest.approx(model.loss(single).total.item() + model.loss(alone(four, 0)).total.item(), rel=1e-4)
    long = collate([("short", "too many letters", short[2])])
    assert model.loss(long).infeasible == (0,) and model.loss(long).total.item() == 0


@torch.no_grad()
def test_masks_reach_the_clip_that_has_them(model, four):
    masks = (None, Masks(int(four.seconds[1] * 100), ((0.0, 0.5),), ((0, 10),)), None, None)
    masked = Batch(four.ids, four.texts, four.wave_BN, four.seconds, four.context, masks)
    plain_BFV, frames = model.logits(four)
    found_BFV, _ = model.logits(masked)
    assert [torch.equal(plain_BFV[i, :n], found_BFV[i, :n]) for i, n in enumerate(frames)] == [True, False, True, True]
    feats_BTM, _ = model.front_end(four.wave_BN, four.samples_B)
    heard = []
    handle = model.net["subsampling"].register_forward_pre_hook(lambda _, inputs: heard.append(inputs[0]))
    model.logits(masked)
    handle.remove()
    assert torch.equal(heard[0], mask(feats_BTM.transpose(1, 2), masks))


# --- learning ---


@pytest.mark.parametrize("texts", [None, "x " * 500])
def test_every_parameter_has_a_gradient(model, four, texts):
    model = copy.deepcopy(model).train()
    batch = four if texts is None else Batch(four.ids, (texts,) * 4, four.wave_BN, four.seconds, four.context)
    found = model.loss(batch)
    assert found.infeasible == (() if texts is None else (0, 1, 2, 3))
    found.total.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert all(bool(p.grad.any()) == (texts is None) for p in model.parameters())


@pytest.mark.parametrize("autocast", [False, True])
def test_activations_computed_twice_give_equal_gradients(folder, four, autocast):
    config = ModelConfig(family="conformer", shape=ShapeConfig(dropout=0.2))
    kept, again = (models.load("conformer", folder, "en", config).train() for _ in range(2))
    again.recompute()
    for model in (kept, again):
        torch.manual_seed(3)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            total = model.loss(four).total
        total.backward()
    for (name, a), (_, b) in zip(kept.named_parameters(), again.named_parameters(), strict=True):
        assert torch.equal(a.grad, b.grad), name
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        assert kept.loss(four).total != kept.loss(four).total  # dropout is at work, so the equality says something
        kept.eval()
        assert kept.loss(four).total == kept.loss(four).total


def test_half_precision_is_near_single(model, four):
    full = model.loss(four).total.item()
    with torch.autocast("cpu", torch.bfloat16):
        half = model.loss(four)
    assert half.total.dtype == torch.float32
    assert half.total.item() == pytest.approx(full, rel=0.01)
    assert half.total.item() != full


@pytest.mark.parametrize(
    ("freeze", "learning"), [("nothing", "subsampling encoder head"), ("features", "encoder head"), ("encoder", "head")]
)
def test_what_is_frozen(folder, four, freeze, learning):
    model = models.load("conformer", folder, "en", CONFIG.model_copy(update={"freeze": freeze})).train()
    model.recompute()
    model.loss(four).total.backward()
    assert {name.split(".")[1] for name, p in model.named_parameters() if p.requires_grad} == set(learning.split())
    assert {name.split(".")[1] for name, p in model.named_parameters() if p.grad is not None} == set(learning.split())


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["characters", "bpe"])
def test_it_learns_real_clips_by_heart(prompts, tmp_path, kind):
    cuts = sorted(prompts.cuts["train"], key=lambda c: (-len(c.supervisions[0].text) / c.duration, c.id))
    batch = collate([(c.id, c.supervisions[0].text, corpora.load_audio(c)) for c in [c for c in cuts if 1 < c.duration < 3][:4]])
    vocabulary = VocabularyConfig(kind=kind, size=40)
    config = ModelConfig(family="conformer", shape=SHAPE.model_copy(update={"dim": 64, "kernel": 15}), vocabulary=vocabulary)
    model = models.load("conformer", create(tmp_path, config, batch.texts), "en", config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    said = [ctc.spoken(text) for text in batch.texts]
    heard: list[str] = []
    for step in itertools.count(1):
        loss = model.loss(batch)
        assert not loss.infeasible
        (loss.total / loss.tokens).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step % 20 == 0:
            heard = [h.text for h in model.transcribe(batch)]
            if heard == said or step == 600:
                break
    assert heard == said, step
    model.save(tmp_path)
    assert [h.text for h in models.load("conformer", tmp_path, "en").eval().transcribe(batch)] == said


# --- sizes ---


def test_sizes_are_the_papers():
    for size, dims in (("S", (144, 16, 4)), ("M", (256, 16, 4)), ("L", (512, 17, 8))):
        d = dimensions(ShapeConfig(size=size))
        assert (d.dim, d.layers, d.heads, d.ffn, d.kernel) == (*dims, 4 * dims[0], 31)
    assert dimensions(ShapeConfig()) == conformer.SIZES["S"]
    assert dimensions(ShapeConfig(size="M", dim=64, layers=3)) == Dimensions(dim=64, layers=3, heads=4, ffn=256, kernel=31)
    assert dimensions(ShapeConfig(dim=64, ffn=100, kernel=9)) == Dimensions(dim=64, layers=16, heads=4, ffn=100, kernel=9)


@pytest.mark.parametrize(("size", "published"), [("S", 10.3e6), ("M", 30.7e6), ("L", 118.8e6)])
def test_parameters_are_about_the_papers(size, published):
    with torch.device("meta"):  # theirs have relative positions, a subsampling in two dimensions, and an LSTM decoder
        count = sum(p.numel() for p in conformer._network(dimensions(ShapeConfig(size=size)), 32, 0.1).parameters())
    assert 0.7 < count / published < 1


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        (ShapeConfig(size="XL"), r'Unknown size "XL"(.|\n)*known: L, M, S'),
        (ShapeConfig(dim=50), r"heads do not share(.|\n)*dim 50, heads 4"),
        (ShapeConfig(heads=5), r"heads do not share(.|\n)*dim 144, heads 5"),
        (ShapeConfig(kernel=30), r"no middle frame(.|\n)*kernel 30(.|\n)*odd"),
    ],
)
def test_a_shape_that_cannot_be(shape, message, tmp_path):
    with pytest.raises(InputError, match=message):
        create(tmp_path, ModelConfig(family="conformer", shape=shape))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lora": LoraConfig()}, r"Adapters are Whisper's(.|\n)*model\.lora"),
        ({"objective": "pretraining"}, r"Pretraining is wav2vec2's"),
        ({"shape": ShapeConfig(layers=3)}, r"another shape(.|\n)*got: *layers 2\n *expected: *layers 3"),
        ({"shape": ShapeConfig(size="S", dim=32, heads=2, kernel=7)}, r"another shape(.|\n)*got: *layers 2\n *expected: *layers 16"),
        ({"shape": ShapeConfig(size="XL")}, r"Unknown size"),
    ],
)
def test_a_config_that_these_weights_do_not_meet(folder, change, message):
    with pytest.raises(InputError, match=message):
        models.load("conformer", folder, "en", CONFIG.model_copy(update=change))


# --- folders ---


@pytest.mark.parametrize("kind", ["characters", "bpe"])
def test_a_saved_folder_is_the_same_model(kind, tmp_path, four):
    config = ModelConfig(family="conformer", shape=SHAPE, vocabulary=VocabularyConfig(kind=kind, size=40))
    (tmp_path / "saved").mkdir()
    (tmp_path / "first").mkdir()
    first = models.load("conformer", create(tmp_path / "first", config), "en", config)
    expected = first.eval().loss(four).total
    kept = {path.name: path.read_bytes() for path in (tmp_path / "first").iterdir()}
    shutil.rmtree(tmp_path / "first")  # as pruning does with checkpoints
    copy.deepcopy(first).save(tmp_path / "saved")
    assert {path.name: path.read_bytes() for path in (tmp_path / "saved").iterdir()} == kept
    found = weights.resolve("conformer", str(tmp_path / "saved"))
    assert found.source == "path"
    again = models.load("conformer", found.path, "en").eval()
    assert torch.equal(again.loss(four).total, expected)
    assert models.count_tokens("conformer", found.path, list(four.texts)) == again.count_tokens(list(four.texts))


@pytest.mark.parametrize("vocabulary", [VocabularyConfig(), VocabularyConfig(kind="bpe", size=31)])
def test_training_begins_from_nothing_with_equal_bits(vocabulary, tmp_path, monkeypatch):
    config = CONFIG.model_copy(update={"vocabulary": vocabulary})
    texts, found = ["the quick brown fox", "jumps over the lazy dog"], []
    for cache, seed, order in (("a", 1, texts), ("b", 1, texts[::-1] + texts[:1]), ("c", 2, texts)):
        monkeypatch.setenv("SPEECHLAB_CACHE", str(tmp_path / cache))
        torch.manual_seed(len(found))  # what was drawn before does not matter
        found.append(models.begin(config, "en", order, seed))
    assert [w.source for w in found] == ["made"] * 3
    assert found[0].sha256 == found[1].sha256 != found[2].sha256
    assert {p.name: p.read_bytes() for p in found[0].path.iterdir() if p.name != weights.RECORD} == {
        p.name: p.read_bytes() for p in found[1].path.iterdir() if p.name != weights.RECORD
    }
    assert len(models.load("conformer", found[0].path, "en", config).vocabulary) == 31  # 26 letters and five more

    again = models.begin(config.model_copy(update={"weights": str(found[0].path)}), "en", ["other words"], 5)
    assert (again.source, again.path) == ("path", found[0].path)  # it has its vocabulary


def test_an_encoder_goes_on_with_the_vocabulary_of_another_language(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("SPEECHLAB_CACHE", str(tmp_path / "cache"))
    start = shutil.copytree(folder, tmp_path / "start")
    (start / "vocab.json").unlink()
    found = models.begin(CONFIG.model_copy(update={"weights": str(start)}), "ru", ["все люди рождаются"], 1)
    assert found.source == "made"
    before, after = (load_file(path / "model.safetensors") for path in (folder, found.path))
    assert {name for name in before if not torch.equal(before[name], after[name])} == {"head.weight", "head.bias"}
    model = models.load("conformer", found.path, "ru", CONFIG)
    assert model.vocabulary.decode(model.vocabulary.encode(["Все люди!"])[0]) == "все люди"


def settings(folder: Path, **change: object) -> None:
    """Change keys of config.json; None takes one out."""
    values = json.loads((folder / "config.json").read_text()) | change
    (folder / "config.json").write_text(json.dumps({name: value for name, value in values.items() if value is not None}))


def tensors(folder: Path, change) -> None:
    save_file(change(load_file(folder / "model.safetensors")), folder / "model.safetensors")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: (f / "config.json").unlink(), r"config\.json is not one of a conformer(.|\n)*No such file"),
        (lambda f: (f / "config.json").write_text("[]"), r"config\.json is not one of a conformer"),
        (lambda f: (f / "config.json").write_text("{"), r"config\.json is not one of a conformer"),
        (
            lambda f: settings(f, model_type="whisper"),
            r"not one of a conformer(.|\n)*'whisper'(.|\n)*expected(.|\n)*conformer",
        ),
        (lambda f: settings(f, version=2), r"not one of a conformer(.|\n)*'version': 2(.|\n)*\"version\": 1"),
        (lambda f: settings(f, sample_rate=8000), r"not one of a conformer(.|\n)*'sample_rate': 8000"),
        (lambda f: settings(f, layers=None), r"not one of a conformer(.|\n)*missing(.|\n)*layers"),
        (lambda f: settings(f, colour="red"), r"not one of a conformer(.|\n)*unexpected(.|\n)*colour"),
        (lambda f: settings(f, dim="32"), r"not one of a conformer(.|\n)*dim"),
        (lambda f: settings(f, layers=10**9), r"not one of a conformer(.|\n)*layers(.|\n)*less than or equal to 64"),
        (lambda f: settings(f, heads=3), r"not one of a conformer(.|\n)*heads do not share"),
        (lambda f: settings(f, dim=64, ffn=128), r"do not fit(.|\n)*size mismatch"),
        (lambda f: settings(f, layers=3), r"do not fit(.|\n)*Missing key"),
        (lambda f: settings(f, layers=1), r"do not fit(.|\n)*Unexpected key"),
        (lambda f: (f / "vocab.json").unlink(), r"holds no vocabulary"),
        (lambda f: (f / "vocab.json").write_text('{"<pad>": 0, "a": 1}'), r"do not fit(.|\n)*size mismatch for head"),
        (lambda f: (f / "model.safetensors").unlink(), r"weights cannot be read(.|\n)*No such file"),
        (lambda f: (f / "model.safetensors").write_bytes(b"damaged"), r"weights cannot be read"),
        (
            lambda f: tensors(f, lambda t: {n: v for n, v in t.items() if n != "head.bias"}),
            r"do not fit(.|\n)*Missing(.|\n)*head\.bias",
        ),
        (lambda f: tensors(f, lambda t: t | {"more": torch.zeros(1)}), r"do not fit(.|\n)*Unexpected key(.|\n)*more"),
    ],
)
def test_a_folder_that_is_no_conformer_says_why(folder, tmp_path, spoil, message):
    spoilt = shutil.copytree(folder, tmp_path / "spoilt")
    spoil(spoilt)
    with pytest.raises(InputError, match=message):
        models.load("conformer", spoilt, "en")


@pytest.mark.parametrize(("batch", "frames"), [(15, 32), (11, 48)])
def test_shapes_at_which_a_bf16_convolution_never_returned(batch, frames):
    """In a process of its own, with two threads: torch's bf16 depthwise convolution of width 144 hangs there for ever."""
    code = f"""
import torch
from torchaudio.models.conformer import ConformerLayer
from speechlab.models.conformer import _convolution
torch.set_num_threads(2)
torch.manual_seed(0)
module = ConformerLayer(144, 288, 4, 31).conv_module
module.sequential[3] = torch.nn.LayerNorm(144)
x = torch.randn({batch}, {frames}, 144, requires_grad=True)
with torch.autocast("cpu", torch.bfloat16):
    out = _convolution(module, x, torch.ones({batch}, {frames}))
out.float().sum().backward()
print(x.grad.isfinite().all().item())
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env={**os.environ, "OMP_NUM_THREADS": "2"}
    )
    assert done.stdout.strip() == "True", done.stderr[-2000:]
