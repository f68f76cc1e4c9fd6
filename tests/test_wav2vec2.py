"""Wav2Vec2 in the lab against transformers' own, on the same small weights and real clips."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    Wav2Vec2Config,
    Wav2Vec2CTCTokenizer,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2ForCTC,
    Wav2Vec2ForPreTraining,
    Wav2Vec2Model,
    Wav2Vec2Processor,
)
from transformers.models.wav2vec2.modeling_wav2vec2 import _compute_mask_indices

from speechlab import corpora, models
from speechlab.augment import Masks
from speechlab.batches import Batch, collate
from speechlab.config import LoraConfig, ModelConfig, ShapeConfig, VocabularyConfig
from speechlab.errors import InputError
from speechlab.models import ctc, weights
from speechlab.models.wav2vec2 import SIZES, OwnFrames, Wav2Vec2, _shaped, count_tokens, distractors, spans

VARIANTS = {
    "group": {"feat_extract_norm": "group", "do_stable_layer_norm": False, "conv_bias": False},
    "layer": {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True},
}
SMALL = {
    **{"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64, "conv_dim": (16,) * 7},
    **{"num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4, "num_codevectors_per_group": 8, "codevector_dim": 16},
    **{"proj_codevector_dim": 16, "mask_feature_prob": 0.1, "mask_feature_length": 2, "num_negatives": 20},
}
LETTERS = "ETAONIHSRDLUMWCFGYPBVK'XJQZ"  # the order of wav2vec2-base-960h


def small(folder: Path, variant: str, objective: str) -> Path:
    """A checkpoint in the hub's format, by transformers alone: random weights, none of them at its initial 0 or 1."""
    vocabulary = {label: i for i, label in enumerate(["<pad>", "<s>", "</s>", "<unk>", "|", *LETTERS])}
    config = Wav2Vec2Config(**SMALL, **VARIANTS[variant], vocab_size=len(vocabulary))
    with torch.random.fork_rng():
        torch.manual_seed(3)
        net = (Wav2Vec2ForCTC if objective == "transcripts" else Wav2Vec2ForPreTraining)(config)
        with torch.no_grad():
            for name, p in net.named_parameters():
                p.add_(torch.randn(p.shape) * (2.0 if name.startswith("lm_head") else 0.1))
    net.save_pretrained(folder)
    Wav2Vec2FeatureExtractor(return_attention_mask=variant == "layer").save_pretrained(folder)
    if objective == "transcripts":
        (folder / "vocab.json").write_text(json.dumps(vocabulary))
        Wav2Vec2CTCTokenizer(str(folder / "vocab.json")).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[tuple[str, str], Path]:
    kinds = [(variant, objective) for variant in VARIANTS for objective in ("transcripts", "pretraining")]
    return {kind: small(tmp_path_factory.mktemp("-".join(kind)), *kind) for kind in kinds}


@pytest.fixture(scope="module")
def four(prompts) -> Batch:
    """Real clips of 0.6 to 1.7 s."""
    cuts = sorted(prompts.cuts["test"], key=lambda c: (c.duration, c.id))
    return collate([(c.id, c.supervisions[0].text, corpora.load_audio(c)) for c in (cuts[0], cuts[20], cuts[40], cuts[70])])


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("SPEECHLAB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def config(**values) -> ModelConfig:
    return ModelConfig(family="wav2vec2", **values)


def load(folder: Path, settings: ModelConfig | None = None) -> Wav2Vec2:
    return models.load("wav2vec2", folder, "en", settings)


def values(folder: Path, batch: Batch, **options) -> dict:
    """What transformers' extractor makes of the clips, each without its padding."""
    waves = [wave[:n].numpy() for wave, n in zip(batch.wave_BN, batch.samples_B.tolist(), strict=True)]
    return Wav2Vec2FeatureExtractor.from_pretrained(folder)(waves, sampling_rate=16_000, return_tensors="pt", padding=True, **options)


def bits(model) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.net.state_dict().items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# --- outputs and CTC ---


@torch.no_grad()
@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_loss_and_text_of_a_clip_are_transformers(folders, four, variant):
    folder = folders[variant, "transcripts"]
    net = Wav2Vec2ForCTC.from_pretrained(folder).eval()
    processor = Wav2Vec2Processor.from_pretrained(folder)
    model = load(folder).eval()
    for i, text in enumerate(four.texts):
        one = collate([(four.ids[i], text, four.wave_BN[i, : four.samples_B[i]].numpy())])
        labels = processor.tokenizer(ctc.spoken(text).upper(), return_tensors="pt").input_ids
        theirs = net(values(folder, one).input_values, labels=labels)
        logits_BFV, frames = model.logits(one)
        assert frames == [theirs.logits.shape[1]]
        assert (logits_BFV - theirs.logits).abs().max() < 1e-4 < theirs.logits.std() / 1000
        ours = model.loss(one)
        assert (ours.total.item(), ours.tokens) == (pytest.approx(theirs.loss.item(), rel=1e-5), labels.shape[1])
        assert net(values(folder, one).input_values, labels=labels + 1).loss.item() != pytest.approx(ours.total.item(), rel=1e-3)
        heard = model.transcribe(one)[0]
        said = re.sub("<[^>]+>", "", processor.batch_decode(theirs.logits.argmax(-1))[0]).lower()  # random weights choose <s> too
        assert heard.text == " ".join(said.split())
        assert len(heard.text) > 5 and heard.ended and heard.context == four.seconds[i]


@torch.no_grad()
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_clip_is_heard_the_same_alone_and_in_a_batch(folders, four, variant):
    folder = folders[variant, "transcripts"]
    model = load(folder).eval()
    plain = Wav2Vec2ForCTC.from_pretrained(folder).eval()
    padded = values(folder, four, return_attention_mask=True)
    theirs_BFV = plain(**padded).logits
    logits_BFV, frames = model.logits(four)
    noisy = four.wave_BN + torch.randn(four.wave_BN.shape) * (torch.arange(four.wave_BN.shape[1]) >= four.samples_B[:, None])
    behind_BFV, _ = model.logits(Batch(four.ids, four.texts, noisy, four.seconds, four.context))
    for i, n in enumerate(frames):
        clip = collate([("x", "", four.wave_BN[i, : four.samples_B[i]].numpy())])
        alone_FV = model.logits(clip)[0][0]
        assert alone_FV.shape[0] == n <= logits_BFV.shape[1]
        assert (logits_BFV[i, :n] - alone_FV).abs().max() < 1e-4
        assert (behind_BFV[i, :n] - alone_FV).abs().max() < 1e-4  # whatever lies behind the clip
        off = (theirs_BFV[i, :n] - alone_FV).abs().max()
        assert off > 0.1 if variant == "group" and i < 3 else off < 1e-4  # negative control: transformers' own, attention mask and all
        assert model.transcribe(clip)[0].text == model.transcribe(four)[i].text
    total = sum(model.loss(four.rows([i])).total.item() for i in range(4))
    assert model.loss(four).total.item() == pytest.approx(total, rel=1e-5)


def test_text_is_put_in_the_case_of_the_vocabulary(folders, four):
    folder = folders["group", "transcripts"]
    tokenizer = Wav2Vec2CTCTokenizer.from_pretrained(folder)
    texts = [*four.texts, "Don't press 1, please!", "Hello  World"]
    ids = load(folder).vocabulary.encode(texts)
    assert ids == [tokenizer(ctc.spoken(t).upper()).input_ids for t in texts]
    assert ids != [tokenizer(ctc.spoken(t)).input_ids for t in texts]  # negative control: lower case is unknown to it
    assert count_tokens(folder, texts) == [len(row) for row in ids]
    assert count_tokens(folders["group", "pretraining"], texts) == [1] * len(texts)


def test_frames_and_the_shortest_clip(folders):
    model = load(folders["group", "transcripts"]).eval()
    lengths = [400, 719, 720, 16_000, 16_001]
    batch = collate([(str(n), "a", np.full(n, 0.1, np.float32) + np.arange(n) % 7) for n in lengths])
    assert model.logits(batch)[1] == model.net._get_feat_extract_output_lengths(torch.tensor(lengths)).tolist() == [1, 1, 2, 49, 49]
    with pytest.raises(InputError, match=r"length does not fit(.|\n)*399 samples(.|\n)*400 samples"):
        model.loss(collate([("x", "a", np.ones(399, np.float32))]))
    pretraining = load(folders["group", "pretraining"]).train()
    assert pretraining.loss(batch.rows([2])).tokens == 2  # each is the other's distractor
    with pytest.raises(InputError, match="720 samples"):
        pretraining.loss(batch.rows([1]))


# --- pretraining ---


def theirs_of(net, folder: Path, batch: Batch, spans_BF: torch.Tensor, others: list[torch.Tensor]):
    """transformers' loss for masks and distractors of ours: those count a clip's masked frames, theirs all frames of the batch."""
    negatives = torch.zeros(*spans_BF.shape, net.config.num_negatives, dtype=torch.long)
    for i, others_KX in enumerate(others):
        negatives[i][spans_BF[i]] = spans_BF[i].nonzero()[:, 0][others_KX] + i * spans_BF.shape[1]
    given = values(folder, batch, return_attention_mask=True)
    return net(**given, mask_time_indices=spans_BF.clone(), sampled_negative_indices=negatives)


@torch.no_grad()
@pytest.mark.parametrize(("variant", "clips"), [("group", [3]), ("layer", [0, 1, 2, 3])])
def test_the_pretraining_loss_is_transformers(folders, four, variant, clips):
    folder = folders[variant, "pretraining"]
    net = Wav2Vec2ForPreTraining.from_pretrained(folder).eval()
    model = load(folder).eval()
    batch = four.rows(clips)
    frames = model._features(batch)[2]

    def drawn(seed: int) -> tuple[torch.Tensor, list[torch.Tensor]]:
        torch.manual_seed(seed)
        spans_BF = spans(frames, 0.65, 10, 2)
        return spans_BF, [distractors(count, 20) for count in spans_BF.sum(1).tolist()]

    theirs = theirs_of(net, folder, batch, *drawn(5))
    torch.manual_seed(5)
    ours = model.loss(batch)
    assert ours.tokens == int(drawn(5)[0].sum())
    assert ours.total.item() == pytest.approx(theirs.loss.item(), rel=1e-5)
    assert theirs.contrastive_loss > 0 and theirs.diversity_loss > 0
    assert theirs_of(net, folder, batch, *drawn(6)).loss.item() != pytest.approx(ours.total.item(), rel=1e-3)


def test_the_pretraining_loss_is_transformers_while_codes_are_drawn(folders, four, monkeypatch):
    folder = folders["layer", "pretraining"]
    net = Wav2Vec2ForPreTraining.from_pretrained(folder).train()
    model = load(folder).train()
    for part in [*net.modules(), *model.modules()]:
        if isinstance(part, torch.nn.Dropout):
            part.p = 0.0
    for changed in (net.config, model.net.config):
        changed.update({"layerdrop": 0.0, "attention_dropout": 0.0, "mask_feature_prob": 0.0})
    for layer in [*net.wav2vec2.encoder.layers, *model.net.wav2vec2.encoder.layers]:
        layer.attention.dropout = 0.0
    one = four.rows([3])
    everywhere = torch.ones(1, model._features(one)[2][0], dtype=torch.bool)  # then both draw codes for equally many frames
    others = [torch.randint(everywhere.shape[1] - 1, (everywhere.shape[1], 20))]
    others[0] += (others[0] >= torch.arange(everywhere.shape[1])[:, None]).long()
    monkeypatch.setattr("speechlab.models.wav2vec2.spans", lambda *_: everywhere)
    monkeypatch.setattr("speechlab.models.wav2vec2.distractors", lambda *_: others[0])
    for seed in (0, 1):
        torch.manual_seed(seed)
        theirs = theirs_of(net, folder, one, everywhere, others)
        torch.manual_seed(seed)
        ours = model.loss(one)
        assert ours.total.item() == pytest.approx(theirs.loss.item(), rel=1e-5)
    net.zero_grad(), theirs.loss.backward(), ours.total.backward()
    gradients = {name: p.grad for name, p in net.named_parameters()}
    for name, p in model.net.named_parameters():
        off = (p.grad - gradients[name]).norm()
        assert off < 1e-3 * gradients[name].norm() + 1e-5, name  # of a key's bias it is 0, up to rounding


def test_codes_that_are_never_likely_leave_the_gradient_finite(folders, four):
    models_ = load(folders["layer", "pretraining"]).train(), Wav2Vec2ForPreTraining.from_pretrained(folders["layer", "pretraining"]).train()
    for each in models_:
        quantiser = each.net.quantizer if isinstance(each, Wav2Vec2) else each.quantizer
        quantiser.weight_proj.bias.data[::2] -= 200.0  # a softmax in float32 gives them exactly 0
    ours, theirs = models_
    loss = ours.loss(four)
    loss.total.backward()
    assert torch.isfinite(loss.total)
    assert all(bool(p.grad.isfinite().all()) for p in ours.parameters())
    spans_BF = spans(ours._features(four)[2], 0.65, 10, 2)
    theirs_of(theirs, folders["layer", "pretraining"], four, spans_BF, [distractors(n, 20) for n in spans_BF.sum(1)]).loss.backward()
    assert not theirs.quantizer.weight_proj.bias.grad.isfinite().all()  # negative control


def test_a_pretraining_model_answers_every_clip_with_nothing(folders, four):
    model = load(folders["group", "pretraining"]).eval()
    assert [(h.text, h.ended, h.context) for h in model.transcribe(four)] == [("", True, s) for s in four.seconds]


def test_spans_hide_as_much_as_transformers_and_depend_on_no_neighbour():
    torch.manual_seed(0)
    np.random.seed(0)
    ours = spans([500] * 200, 0.65, 10, 2).float().mean()
    theirs = _compute_mask_indices((200, 500), 0.65, 10, min_masks=2).mean()
    assert ours == pytest.approx(theirs, abs=0.01) == pytest.approx(0.48, abs=0.02)
    torch.manual_seed(1)
    alone = spans([40], 0.65, 10, 2)
    torch.manual_seed(1)
    together = spans([40, 90], 0.65, 10, 2)
    assert torch.equal(alone[0], together[0, :40]) and not together[0, 40:].any()
    for count in range(2, 30):  # there is always another masked frame to be told from
        assert spans([count], 0.65, 10, 2).sum() >= 2
    assert not spans([40, 90], 0.0, 10, 2).any()


def test_distractors_are_all_the_others_equally():
    torch.manual_seed(0)
    others_KX = distractors(5, 20_000)
    for i, row in enumerate(others_KX):
        counts = torch.bincount(row, minlength=5)
        assert counts[i] == 0
        assert (counts[torch.arange(5) != i] / 20_000 - 0.25).abs().max() < 0.02


# --- training ---


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(
    ("objective", "freeze"),  # pretraining of a frozen encoder is refused
    [
        ("transcripts", "nothing"),
        ("transcripts", "features"),
        ("transcripts", "encoder"),
        ("pretraining", "nothing"),
        ("pretraining", "features"),
    ],
)
def test_every_weight_that_learns_has_a_gradient(folders, four, variant, objective, freeze):
    model = load(folders[variant, objective], config(objective=objective, freeze=freeze)).train()
    learns = {name: p for name, p in model.net.named_parameters() if p.requires_grad}
    features = [name for name, _ in model.net.named_parameters() if ".feature_extractor." in name]
    assert len(features) > 5 and bool(set(features) & set(learns)) == (freeze == "nothing")
    assert freeze != "encoder" or set(learns) == {"lm_head.weight", "lm_head.bias"}
    model.loss(four.rows([0, 1])).total.backward()
    assert [name for name, p in learns.items() if p.grad is None] == []
    assert all(bool(p.grad.any()) for name, p in learns.items() if name.startswith(("lm_head", "project", "quantizer")))
    model.zero_grad()
    model.net.config.apply_spec_augment = False  # nothing is hidden
    model.loss(four.rows([0, 1])).total.backward()
    assert [name for name, p in learns.items() if p.grad is None] == []


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("objective", ["transcripts", "pretraining"])
def test_recomputed_activations_give_equal_gradients(folders, four, variant, objective):
    found = []
    for again in (False, True):
        model = load(folders[variant, objective], config(objective=objective)).train()
        calls = []
        first = model._convolutions[0]
        first.conv.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        assert isinstance(first, OwnFrames) == (variant == "group")
        if again:
            model.recompute()
        torch.manual_seed(1)
        loss = model.loss(four.rows([0, 2]))
        loss.total.backward()
        assert len(calls) == 1 + again
        found.append((loss.total.detach(), {name: p.grad for name, p in model.net.named_parameters()}))
    assert torch.equal(found[0][0], found[1][0]) and same(found[0][1], found[1][1])


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("objective", ["transcripts", "pretraining"])
def test_in_half_precision_the_loss_is_nearly_the_same(folders, four, variant, objective):
    model = load(folders[variant, objective]).eval()
    totals = []
    for half in (False, True):
        torch.manual_seed(0)
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            loss = model.loss(four)
        loss.total.backward()
        assert loss.total.dtype == torch.float32
        totals.append(loss.total.item())
    assert totals[1] == pytest.approx(totals[0], rel=0.1 if objective == "transcripts" else 0.2)  # other codes are chosen
    assert totals[1] != totals[0]


@pytest.mark.parametrize("objective", ["transcripts", "pretraining"])
def test_a_step_is_what_torchs_seed_says(folders, four, objective):
    model = load(folders["group", objective]).train()

    def total(seed: int) -> float:
        torch.manual_seed(seed)
        np.random.seed(np.random.randint(1000))  # numpy's generator has no say
        return model.loss(four).total.item()

    assert total(1) == total(1)
    assert total(1) != total(2)
    model.eval()
    assert (total(1) == total(2)) == (objective == "transcripts")  # pretraining draws masks in validation too


def test_masks_over_a_spectrogram_are_refused(folders, four):
    one = four.rows([0])
    masked = Batch(one.ids, one.texts, one.wave_BN, one.seconds, one.context, (Masks(10, (), ((0, 3),)),))
    with pytest.raises(InputError, match=r"no spectrogram(.|\n)*augment.spec: null(.|\n)*mask_time_prob"):
        load(folders["group", "transcripts"]).loss(masked)


def fit(model, batch: Batch, steps: int, lr: float) -> list[float]:
    """Losses per token of so many steps on one batch."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], betas=(0.9, 0.98))
    found = []
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = lr * min(1.0, (step + 1) / 30)
        torch.manual_seed(step)
        loss = model.loss(batch)
        (loss.total / loss.tokens).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        found.append(loss.total.item() / loss.tokens)
    return found


@pytest.mark.slow
def test_from_scratch_it_learns_four_clips_by_heart(prompts, cache):
    cuts = sorted(prompts.cuts["test"], key=lambda c: (c.duration, c.id))[4:36:8]
    batch = collate([(c.id, c.supervisions[0].text, corpora.load_audio(c)) for c in cuts])
    made = config(shape=ShapeConfig(dropout=0.0))
    start = models.begin(made, "en", batch.texts, 1)
    model = load(start.path, made).train()
    control = [h.text for h in model.eval().transcribe(batch)]
    losses = fit(model.train(), batch, 200, 3e-3)
    assert losses[0] > 10 > 0.2 > min(losses)
    assert [h.text for h in model.eval().transcribe(batch)] == [ctc.spoken(t) for t in batch.texts]
    assert not set(control) & {ctc.spoken(t) for t in batch.texts}


@pytest.mark.slow
def test_pretraining_learns_what_is_hidden(prompts, cache):
    cuts = sorted(prompts.cuts["test"], key=lambda c: (c.duration, c.id))[4:36:8]
    batch = collate([(c.id, "", corpora.load_audio(c)) for c in cuts])
    made = config(objective="pretraining", shape=ShapeConfig(dropout=0.0))
    start = models.begin(made, "en", [], 1)
    losses = fit(load(start.path, made).train(), batch, 100, 3e-3)
    still = fit(load(start.path, made).train(), batch, 20, 0.0)
    assert np.mean(losses[-10:]) < 2.5 < 4 < np.mean(losses[:10])
    assert np.mean(still[-10:]) > 4  # negative control: without learning it stays; chance is log(101) = 4.6 and the diversity


# --- folders ---


@torch.no_grad()
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("objective", ["transcripts", "pretraining"])
def test_a_saved_folder_is_one_that_transformers_loads(folders, four, tmp_path, variant, objective):
    folder = folders[variant, objective]
    assert weights.resolve("wav2vec2", str(folder)).path == folder
    model = load(folder).eval()
    model.save(tmp_path)
    kind = Wav2Vec2ForCTC if objective == "transcripts" else Wav2Vec2ForPreTraining
    net, report = kind.from_pretrained(tmp_path, output_loading_info=True)
    assert {key: list(value) for key, value in report.items() if value} == {}
    assert same(net.state_dict(), kind.from_pretrained(folder).state_dict()) and same(net.state_dict(), bits(model))
    first, saved = (json.loads((each / "config.json").read_text()) for each in (folder, tmp_path))
    assert saved == first | {"layerdrop": 0.0} != first
    beside = {p.name for p in folder.iterdir()} - {"config.json", "model.safetensors"}
    assert "preprocessor_config.json" in beside
    assert all((tmp_path / name).read_bytes() == (folder / name).read_bytes() for name in beside)
    if objective == "transcripts":
        Wav2Vec2Processor.from_pretrained(tmp_path)
        assert [h.text for h in load(tmp_path).eval().transcribe(four)] == [h.text for h in model.transcribe(four)]
    again = load(tmp_path).eval()
    totals = []
    for each in (model, again):
        torch.manual_seed(0)
        totals.append(each.loss(four).total)
    assert torch.equal(*totals)


@pytest.mark.parametrize("objective", ["transcripts", "pretraining"])
def test_from_scratch_equal_seeds_give_equal_bits(cache, four, objective):
    made = config(objective=objective, shape=ShapeConfig(dim=32, layers=1, heads=2, ffn=48, kernel=15))
    first = models.begin(made, "en", four.texts, 1)
    assert first.source == "made" and "scratch" in first.licence
    shutil.rmtree(cache / "weights")
    again, other = (models.begin(made, "en", four.texts, seed) for seed in (1, 2))
    assert first.sha256 == again.sha256 != other.sha256
    kind = Wav2Vec2ForCTC if objective == "transcripts" else Wav2Vec2ForPreTraining
    net, report = kind.from_pretrained(again.path, output_loading_info=True)
    assert not report["missing_keys"] and net.config.layerdrop == 0
    assert (net.config.hidden_size, net.config.num_hidden_layers, net.config.num_conv_pos_embeddings) == (32, 1, 15)
    model = load(again.path, made)
    assert len(model.transcribe(four)) == 4
    if objective == "transcripts":
        tokenizer = Wav2Vec2Processor.from_pretrained(again.path).tokenizer
        assert model.vocabulary.encode(four.texts) == [tokenizer(ctc.spoken(t)).input_ids for t in four.texts]
        assert net.config.vocab_size == len(model.vocabulary) and net.config.pad_token_id == model.vocabulary.blank


def test_pretrained_weights_get_a_head_for_the_texts(cache, folders, four):
    start = folders["group", "pretraining"]
    made = models.begin(config(weights=str(start)), "en", four.texts, 1)
    assert (made.source, made.name) == ("made", str(start))
    old, new = load_file(start / "model.safetensors"), load_file(made.path / "model.safetensors")
    body = {name for name in old if name.startswith("wav2vec2.")}
    assert {name for name in new if name not in body} == {"lm_head.weight", "lm_head.bias"}
    assert all(torch.equal(old[name], new[name]) for name in body)
    model = load(made.path, config(weights=str(start))).train()
    assert len(model.vocabulary) == 5 + len(set(ctc.spoken("".join(four.texts)).replace(" ", "")))
    model.loss(four).total.backward()
    assert Wav2Vec2.complete(made.path, config())
    assert not torch.equal(
        new["lm_head.weight"],
        load_file(models.begin(config(weights=str(start)), "en", four.texts, 2).path / "model.safetensors")["lm_head.weight"],
    )


def test_weights_that_are_complete_are_used_as_they_are(cache, folders):
    for (_, objective), folder in folders.items():
        assert models.begin(config(weights=str(folder), objective=objective), "en", ["a"], 1).path == folder


def test_a_ctc_checkpoint_can_be_pretrained_further(cache, folders, four):
    start = folders["layer", "transcripts"]
    made = models.begin(config(weights=str(start), objective="pretraining"), "en", [], 1)
    old, new = load_file(start / "model.safetensors"), load_file(made.path / "model.safetensors")
    assert all(torch.equal(old[name], new[name]) for name in old if name.startswith("wav2vec2."))
    assert "lm_head.weight" not in new and "quantizer.codevectors" in new
    load(made.path, config(objective="pretraining")).train().loss(four).total.backward()


def test_a_bare_checkpoint_with_the_hubs_older_names_loads(cache, folders, four, tmp_path):
    Wav2Vec2Model.from_pretrained(folders["group", "pretraining"]).save_pretrained(tmp_path)
    shutil.copy(folders["group", "pretraining"] / "preprocessor_config.json", tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    assert not any(name.startswith("wav2vec2.") for name in tensors)
    conv = "encoder.pos_conv_embed.conv."
    older = {f"{conv}parametrizations.weight.original{i}": f"{conv}weight_{letter}" for i, letter in enumerate("gv")}
    assert set(older) <= set(tensors)
    save_file({older.get(name, name): t for name, t in tensors.items()}, tmp_path / "model.safetensors", {"format": "pt"})
    made = models.begin(config(weights=str(tmp_path)), "en", four.texts, 1)
    new = load_file(made.path / "model.safetensors")
    assert all(torch.equal(new[f"wav2vec2.{name}"], tensor) for name, tensor in tensors.items())
    with pytest.raises(InputError, match=r"no head(.|\n)*models.begin adds a head"):
        load(tmp_path)


def test_a_vocabulary_of_pieces(cache, folders, prompts, tmp_path, four):
    texts = [c.supervisions[0].text for c in prompts.cuts["test"]]
    bpe = config(weights=str(folders["layer", "pretraining"]), vocabulary=VocabularyConfig(kind="bpe", size=60))
    made = models.begin(bpe, "en", texts, 1)
    model = load(made.path, bpe)
    assert len(model.vocabulary) == model.net.config.vocab_size == 60
    assert model.vocabulary.decode(model.vocabulary.encode(four.texts)[3]) == ctc.spoken(four.texts[3])
    model.save(tmp_path)
    assert load(tmp_path).eval().transcribe(four) == model.eval().transcribe(four)
    assert Wav2Vec2ForCTC.from_pretrained(tmp_path).config.pad_token_id == model.vocabulary.blank


def test_the_sizes_are_the_papers():
    with torch.device("meta"):
        counts = {size: sum(p.numel() for p in Wav2Vec2ForPreTraining(_shaped(ShapeConfig(size=size))).parameters()) for size in SIZES}
    assert counts["base"] == pytest.approx(95e6, rel=0.01) and counts["large"] == pytest.approx(317e6, rel=0.01)
    assert counts["tiny"] < 0.5e6


def without(folder: Path, target: Path, *names: str, **changed) -> Path:
    """A copy of a checkpoint that lacks files, or whose config.json says something else."""
    shutil.copytree(folder, target)
    for name in names:
        (target / name).unlink()
    settings = json.loads((target / "config.json").read_text()) | changed
    (target / "config.json").write_text(json.dumps(settings))
    return target


def test_folders_that_cannot_be_used_say_why(folders, tmp_path):
    whole, pretraining = folders["group", "transcripts"], folders["group", "pretraining"]
    pickled = without(whole, tmp_path / "bin", "model.safetensors")
    (pickled / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(InputError, match=r"only pickled weights \(pytorch_model.bin\)"):
        weights.resolve("wav2vec2", str(pickled))
    with pytest.raises(InputError, match="preprocessor_config.json"):
        weights.resolve("wav2vec2", str(without(whole, tmp_path / "a", "preprocessor_config.json")))
    silent = without(whole, tmp_path / "b", "vocab.json")
    with pytest.raises(InputError, match=r"no vocabulary(.|\n)*vocab.json"):
        load(silent)
    assert not Wav2Vec2.complete(silent, config())
    with pytest.raises(InputError, match=r"another objective(.|\n)*got: .*transcripts(.|\n)*expected: *pretraining"):
        load(whole, config(objective="pretraining"))
    with pytest.raises(InputError, match=r"another objective(.|\n)*got: .*pretraining(.|\n)*expected: *transcripts"):
        load(pretraining, config())
    with pytest.raises(InputError, match=r"cannot be used(.|\n)*no weights for wav2vec2.encoder.layers.2"):
        load(without(whole, tmp_path / "c", num_hidden_layers=3))
    with pytest.raises(InputError, match=r"cannot be used(.|\n)*convolutional adapters"):
        load(without(whole, tmp_path / "d", add_adapter=True))
    with pytest.raises(InputError, match=r"not whole(.|\n)*no wav2vec2.encoder.layers.2"):
        Wav2Vec2.create(config(), without(pretraining, tmp_path / "e", num_hidden_layers=3), "en", ["a"], tmp_path)
    many = without(whole, tmp_path / "f")
    (many / "vocab.json").write_text(json.dumps({"<pad>": 0, "a": 99}))
    with pytest.raises(InputError, match=r"100 labels, and a head for 32"):
        load(many)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lora": LoraConfig()}, r"no adapters here(.|\n)*lora: null(.|\n)*model.freeze"),
        ({"objective": "pretraining", "freeze": "encoder"}, r"Pretraining learns the encoder(.|\n)*nothing or features"),
        ({"shape": ShapeConfig(size="bass")}, r"Unknown size(.|\n)*did you mean \"base\"(.|\n)*large, large-lv60, tiny"),
        ({"shape": ShapeConfig(dim=40)}, r"width cannot be divided(.|\n)*dim: 40(.|\n)*multiple of 16"),
        ({"shape": ShapeConfig(heads=5)}, r"width cannot be divided(.|\n)*multiple of 5, model.shape.heads"),
        ({"vocabulary": VocabularyConfig(kind="bpe", size=5000)}, r"do not give (so|that) many pieces(.|\n)*size 5000(.|\n)*characters"),
    ],
)
def test_settings_that_cannot_be_say_why(cache, settings, message):
    with pytest.raises(InputError, match=message):
        models.begin(config(**settings), "en", ["one two three"], 1)


def test_without_transcripts_there_is_no_vocabulary(cache):
    with pytest.raises(InputError, match="no transcripts to make a vocabulary"):
        models.begin(config(), "en", ["", "?!"], 1)
