"""Whisper in the lab against transformers' own, on the same weights and real clips."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections import Counter
from pathlib import Path

import pytest
import torch
from transformers import GenerationConfig, WhisperConfig, WhisperFeatureExtractor, WhisperForConditionalGeneration, WhisperTokenizerFast

from speechlab import corpora, models
from speechlab.batches import Batch, collate
from speechlab.config import LoraConfig, ModelConfig
from speechlab.decoding import autocast
from speechlab.errors import InputError
from speechlab.models import Hypothesis, adapters
from speechlab.models.inference import ALL_FRAMES, Inference, Row
from speechlab.models.whisper import MAX_LABELS, MAX_NEW_TOKENS, Whisper
from speechlab.scoring import score
from speechlab.text import normaliser


def clips(corpus, count: int) -> list:
    """Real test clips with audio, from short to long."""
    cuts = sorted(corpus.cuts["test"], key=lambda c: (c.duration, c.id))
    picked = [cuts[i * (len(cuts) - 1) // (count - 1)] for i in range(count)]
    return [(c.id, c.supervisions[0].text, corpora.load_audio(c)) for c in picked]


def features(batch: Batch, n_mels: int = 80) -> torch.Tensor:
    waves = [wave[: round(s * 16_000)].numpy() for wave, s in zip(batch.wave_BN, batch.seconds, strict=True)]
    return WhisperFeatureExtractor(feature_size=n_mels)(waves, sampling_rate=16_000, return_tensors="pt").input_features


@pytest.fixture(scope="module")
def small(small_whisper) -> Whisper:
    return models.load("whisper", small_whisper, "en").eval()


@pytest.fixture(scope="module")
def real(tiny_en) -> Whisper:
    return models.load("whisper", tiny_en, "en").eval()


@pytest.fixture(scope="module")
def four(prompts) -> Batch:
    return collate(clips(prompts, 4))


# --- the encoder and the loss ---


@torch.no_grad()
def test_at_30_s_the_encoder_equals_transformers(small, four):
    theirs = small.net.model.encoder(features(four)).last_hidden_state
    ours = small.encode(four.at(30.0))
    assert ours.shape == theirs.shape == (4, 1500, 64)
    assert (ours - theirs).abs().max() < 1e-4 < theirs.std() / 1000
    short = small.encode(four)
    assert short.shape == (4, round(four.context * 50), 64)
    assert (short - theirs[:, : short.shape[1]]).abs().max() > 1e-3  # negative control: attention over less is another result


@pytest.mark.slow
@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="one thread adds up in one order")
def test_gradients_of_positions_are_the_same_each_time(real):
    """A training that is repeated ends with the same bits only if they are: the quickstart did not, before positions were given once."""
    tokens_BL = torch.randint(50_000, (64, 40), generator=torch.Generator().manual_seed(0))
    states_BFD = torch.randn(64, 4, real.net.config.d_model, generator=torch.Generator().manual_seed(1))
    table = real.net.model.decoder.embed_positions.weight

    def gradient(how) -> torch.Tensor:
        return torch.autograd.grad(how(tokens_BL, states_BFD).square().sum(), table)[0]

    def theirs(tokens_BL, states_BFD) -> torch.Tensor:
        return real.net.model.decoder(input_ids=tokens_BL, encoder_hidden_states=states_BFD, use_cache=False).last_hidden_state

    threads, strict = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    torch.set_num_threads(2)
    torch.use_deterministic_algorithms(False)
    try:
        first = gradient(real._decode)
        assert all(torch.equal(gradient(real._decode), first) for _ in range(4))
        known = gradient(theirs)
        torch.testing.assert_close(first, known, rtol=1e-4, atol=1e-4 * known.abs().max().item())
        assert any(not torch.equal(gradient(theirs), known) for _ in range(100))  # negative control
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(strict)


@torch.no_grad()
def test_at_30_s_the_real_encoder_equals_transformers(real, four):
    theirs = real.net.model.encoder(features(four)).last_hidden_state
    assert (real.encode(four.at(30.0)) - theirs).abs().max() < 1e-3 < theirs.std() / 100


@torch.no_grad()
def test_the_loss_is_transformers_loss(small, small_whisper, four):
    tokenizer = WhisperTokenizerFast.from_pretrained(small_whisper)
    ours = small.loss(four.at(30.0))
    rows = [tokenizer(" " + text).input_ids for text in four.texts]  # <|startoftranscript|><|notimestamps|> text <|endoftext|>
    assert ours.tokens == sum(len(row) - 2 for row in rows) == sum(small.count_tokens(list(four.texts)))
    total, wrong = 0.0, 0.0
    for i, row in enumerate(rows):  # one at a time, so that padding in the batch is proven to be without effect
        mel = features(four.rows([i]))
        tokens, labels = torch.tensor([row[:-1]]), torch.tensor([row[1:]])
        labels[0, 0] = -100  # the prompt is given, not predicted
        total += small.net(mel, decoder_input_ids=tokens, labels=labels).loss.item() * (len(row) - 2)
        wrong += small.net(mel, decoder_input_ids=tokens, labels=labels.roll(1)).loss.item() * (len(row) - 2)
    assert ours.total.item() == pytest.approx(total, rel=1e-5)
    assert ours.total.item() != pytest.approx(wrong, rel=1e-3)


def test_the_gradients_are_transformers_gradients(small_whisper, four):
    """Though the embedding's is sparse while it is the output layer's too, and the vocabulary is scored where there is a label only."""

    def gradients(scored) -> dict[str, torch.Tensor]:
        model = models.load("whisper", small_whisper, "en").eval()
        scored(model).backward()
        return {name: p.grad for name, p in model.net.named_parameters() if p.requires_grad}

    def theirs(model: Whisper, prompt_too: bool = False) -> torch.Tensor:
        tokens_BL, labels_BL = model._labels(four.texts)
        if prompt_too:
            labels_BL[:, 0] = tokens_BL[:, 1]
        return model.net(features(four), decoder_input_ids=tokens_BL, labels=labels_BL).loss * (labels_BL != -100).sum()

    def apart(model: Whisper) -> torch.Tensor:
        """An output layer of its own: then nothing dense comes to the embedding."""
        model.net.proj_out.weight = torch.nn.Parameter(model.net.proj_out.weight.detach().clone())
        return model.loss(four.at(30.0)).total

    ours, known = gradients(lambda model: model.loss(four.at(30.0)).total), gradients(theirs)
    wrong = gradients(lambda model: theirs(model, prompt_too=True))
    assert ours.keys() == known.keys()
    far = {name: float((ours[name] - known[name]).norm() / known[name].norm()) for name in known}
    assert max(far.values()) < 1e-4, far
    table = "model.decoder.embed_tokens.weight"
    assert float((wrong[table] - known[table]).norm() / known[table].norm()) > 1e-2, "negative control: the prompt is given, not predicted"
    assert not any(g.is_sparse for g in (*ours.values(), *gradients(apart).values())), "clipping and AdamW take dense ones"


@pytest.mark.slow
def test_the_table_s_gradient_is_the_same_each_time(real, four):
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        found = [torch.autograd.grad(real.loss(four).total, real.net.proj_out.weight)[0] for _ in range(6)]
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(g, found[0]) for g in found) and not found[0].is_sparse and found[0].any()


def test_the_sinusoids_stay_as_they_are(small):
    assert [name for name, p in small.named_parameters() if not p.requires_grad] == ["net.model.encoder.embed_positions.weight"]


def test_a_text_beyond_the_decoder_is_refused(small, four):
    fits = " ".join(["a"] * (MAX_LABELS - 3))  # two tokens of prompt, one of end
    assert small.count_tokens([fits]) == [MAX_LABELS - 2]
    one = four.rows([0])
    assert small.loss(collate([("x", fits, one.wave_BN[0].numpy())])).tokens == MAX_LABELS - 2
    with pytest.raises(InputError, match=rf"longer than Whisper's decoder(.|\n)*{MAX_LABELS + 1} tokens(.|\n)*at most {MAX_LABELS}"):
        small.loss(collate([("x", fits + " a", one.wave_BN[0].numpy())]))


# --- what learns ---


ALL = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")


def learner(folder: Path, freeze: str = "nothing", **lora) -> Whisper:
    config = ModelConfig(freeze=freeze, lora=LoraConfig(**lora) if lora else None)
    return models.load("whisper", folder, "en", config).train()


def learnt(model: Whisper) -> dict[str, torch.Tensor]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def train(model: Whisper, batch: Batch, steps: int = 3, lr: float = 0.01) -> list[float]:
    optimizer = torch.optim.AdamW(learnt(model).values(), lr=lr)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        found = model.loss(batch)
        (found.total / found.tokens).backward()
        optimizer.step()
        losses.append(found.total.item() / found.tokens)
    return losses


@pytest.fixture(scope="module")
def with_dropout(small_whisper, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("with-dropout")
    shutil.copytree(small_whisper, folder, dirs_exist_ok=True)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"dropout": 0.1, "attention_dropout": 0.1}))
    return folder


@pytest.fixture(scope="module")
def two(four) -> Batch:
    return four.rows([0, 1]).at(2.0 + four.seconds[1])


@pytest.mark.parametrize("freeze", ["nothing", "features", "encoder"])
def test_what_is_frozen_neither_learns_nor_keeps_activations(small_whisper, two, freeze):
    model = learner(small_whisper, freeze)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.shape) or x, lambda x: x):
        convolved = torch.nn.functional.gelu(model.net.model.encoder.conv1(features(two)))
        count = len(kept)
        states = model.encode(two)
    assert convolved.requires_grad == (count > 0) == (freeze == "nothing")
    assert states.requires_grad == (len(kept) > count) == (freeze != "encoder")
    train(model, two)
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    encoder = {name for name in before if name.startswith("net.model.encoder.")}
    convolutions = {name for name in encoder if ".conv" in name}
    stay = {"nothing": set(), "features": convolutions, "encoder": encoder}[freeze] | {"net.model.encoder.embed_positions.weight"}
    assert len(encoder) > len(convolutions) == 4
    assert moved == set(before) - stay
    assert set(learnt(model)) == moved - {"net.proj_out.weight"}  # the same tensor as the embedding


def test_adapters_alone_learn_and_start_as_nothing(small_whisper, small, two):
    torch.manual_seed(1)
    model = learner(small_whisper, rank=4, targets=ALL)
    assert torch.equal(model.loss(two).total, small.loss(two).total)  # B is zero
    before = {name: value.clone() for name, value in model.state_dict().items()}
    losses = train(model, two, steps=4)
    assert losses[-1] < losses[0] - 0.1
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == set(learnt(model)) == {name for name in before if ".lora_" in name}
    # a matrix A and a matrix B beside 6 layers of 2 encoder blocks and 10 of 2 decoder blocks
    assert len(moved) == 2 * (6 * 2 + 10 * 2)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"targets": ("encoder_attn.q_proj", "fc1")}, {"decoder encoder_attn.q_proj": 2, "encoder fc1": 2, "decoder fc1": 2}),
        ({"targets": ("fc1",), "freeze": "encoder"}, {"decoder fc1": 2}),
        ({"targets": ("decoder.layers.1.fc1",), "freeze": "features"}, {"decoder fc1": 1}),
    ],
)
def test_adapters_go_where_they_are_meant_to(small_whisper, settings, expected):
    found = [name.split(".") for name in learnt(learner(small_whisper, rank=2, **settings)) if "lora_A" in name]
    assert Counter(f"{name[2]} {'.'.join(name[5:-3])}" for name in found) == expected


@pytest.mark.parametrize(("target", "nearest"), [("qproj", "q_proj"), ("proj_out", None), ("layers", None), ("proj", None)])
def test_an_unknown_target_lists_the_linear_layers(small, target, nearest):
    # proj_out is linear, but its weight is the embedding's
    names = set(small.state_dict())
    hint = f'did you mean "{nearest}"? ' if nearest else ""
    with pytest.raises(InputError, match=rf"no such layer(.|\n)*model.lora.targets: {target}\n") as caught:
        adapters.add(small.net, LoraConfig(rank=4, targets=("v_proj", target)))
    assert f"{hint}known: fc1, fc2, k_proj, out_proj, q_proj, v_proj" in str(caught.value)
    assert set(small.state_dict()) == names


@torch.no_grad()
def test_adapters_are_merged_into_what_is_saved_and_not_into_what_learns(small_whisper, small, two, tmp_path):
    torch.manual_seed(1)
    model = learner(small_whisper, rank=4, alpha=8.0, dropout=0.2, targets=ALL)
    with torch.enable_grad():
        train(model, two)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for folder in ("a", "b"):
        model.save(tmp_path / folder)
    assert model.training
    after = model.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(value, after[name]) for name, value in before.items())
    assert (tmp_path / "a/model.safetensors").read_bytes() == (tmp_path / "b/model.safetensors").read_bytes()
    assert not list(tmp_path.rglob("adapter_*"))  # from_pretrained would add them a second time

    net, report = WhisperForConditionalGeneration.from_pretrained(tmp_path / "a", output_loading_info=True)
    assert {key: list(value) for key, value in report.items() if value} == {}
    tokens, batch = model.eval()._labels(two.texts)[0], two.at(30.0)
    theirs = net.eval()(features(batch), decoder_input_ids=tokens).logits
    ours = model.net(features(batch), decoder_input_ids=tokens).logits
    unadapted = small.net(features(batch), decoder_input_ids=tokens).logits
    assert (theirs - ours).abs().max() < 1e-5 < 1e-2 < (unadapted - ours).abs().max()
    again = models.load("whisper", tmp_path / "a", "en").eval()
    assert again.loss(two).total.item() == pytest.approx(model.loss(two).total.item(), rel=1e-6)
    assert again.transcribe(two) == model.transcribe(two)


@pytest.mark.parametrize("settings", [{}, {"freeze": "encoder"}, {"rank": 4, "dropout": 0.1, "targets": ALL}])
def test_recomputed_activations_give_the_same_gradients(with_dropout, two, settings):
    model = learner(with_dropout, **settings)
    calls: Counter[str] = Counter()
    for name, module in model.named_modules():
        if name.endswith("fc1"):
            module.register_forward_hook(lambda *_, name=name: calls.update([name.split(".")[2]]))
    with torch.no_grad():
        for p in learnt(model).values():  # B is zero, and then A has no gradient
            p += 0.01 * torch.randn_like(p)

    def gradients(seed: int) -> dict[str, torch.Tensor]:
        calls.clear()
        model.zero_grad()
        torch.manual_seed(seed)
        model.loss(two).total.backward()
        return {name: p.grad for name, p in learnt(model).items()}

    other, plain = gradients(2), gradients(1)
    assert calls == {"encoder": 2, "decoder": 2}
    heard = model.eval().transcribe(two)
    model.train().recompute()
    again = gradients(1)
    assert calls == {"encoder": 2 if settings.get("freeze") == "encoder" else 4, "decoder": 4}
    assert plain and all(torch.equal(plain[name], again[name]) for name in plain)
    assert not any(torch.equal(plain[name], other[name]) for name in plain)  # negative control: dropout is at work
    assert model.eval().transcribe(two) == heard  # layers that recompute drop the decoder's cache


# --- transcripts ---


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_greedy_text_equals_transformers_generate(real, tiny_en, prompts, precision):
    batch = collate(clips(prompts, 10))
    net = WhisperForConditionalGeneration.from_pretrained(tiny_en).eval()  # with its own settings
    mel = features(batch)
    with autocast("cpu", precision):
        tokens = net.generate(mel, num_beams=1, do_sample=False, max_new_tokens=MAX_NEW_TOKENS)
        ours = real.transcribe(batch, context="full")
    theirs = [t.strip() for t in real.tokenizer.batch_decode(tokens, skip_special_tokens=True)]
    other = [(h.text, t) for h, t in zip(ours, theirs, strict=True) if h.text != t]
    if precision == "fp32":
        assert other == []
    else:  # bf16 breaks a tie as the order of its sums falls, which is the processor's: one without AMX leaves out a full stop
        assert len(other) <= 1
        assert all(normaliser("english")(a) == normaliser("english")(b) for a, b in other)
    assert all(h.ended and h.context == 30 for h in ours)
    assert len(set(theirs)) == 10
    assert score(batch.texts, theirs, normaliser("english")).wer < 0.2  # and it is what was said


def test_scores_at_30_s_equal_transformers(small, four):
    """Not the text alone: the probability of every token written, and of the end."""
    engine = Inference(adapters.merged(small.net), small.net.config, torch.float32)
    heard = engine.hear(four.wave_BN, [ALL_FRAMES] * 4, small.front_end, silence=False)
    never, first = small._banned(torch.device("cpu"))
    prompt = list(small._special.prompt)
    rows = engine.write(heard, prompt, [12] * 4, never, first, small._special.end)
    for i, row in enumerate(rows):
        ids = torch.tensor([prompt + row.tokens + [small._special.end] * row.ended])
        with torch.no_grad():
            logits = small.net(features(four.rows([i])), decoder_input_ids=ids[:, :-1]).logits[0, len(prompt) - 1 :] + never
        logits[0] += first
        nats = logits.log_softmax(-1)
        assert row.nats == pytest.approx(nats.gather(1, ids[0, len(prompt) :, None])[:, 0].tolist(), abs=1e-4)
        assert ids[0, len(prompt) :].tolist() == logits.argmax(-1).tolist()
        assert len(row.nats) == len(row.tokens) + row.ended


@pytest.mark.slow
@pytest.mark.parametrize("context", ["silence", "short", "full"])
def test_a_transcript_does_not_depend_on_the_batch(real, prompts, context):
    batch = collate(clips(prompts, 6))
    together = real.transcribe(batch, context=context)
    alone = [real.transcribe(batch.rows([i]), context=context)[0] for i in range(6)]
    assert alone == together
    for one, many in zip(alone, together, strict=True):
        assert one.confidences == pytest.approx(many.confidences, abs=1e-3)
        assert len(one.confidences) == len(one.text.split())
    assert real.transcribe(batch.rows([5, 0, 3]), context=context) == [together[i] for i in (5, 0, 3)]  # order kept


@pytest.mark.parametrize("silence", [False, True])
def test_states_of_a_clip_do_not_depend_on_the_batch(small, four, silence):
    engine = Inference(adapters.merged(small.net), small.net.config, torch.float32)
    frames = [math.ceil(50 * (s + 0.5)) for s in four.seconds]
    together = engine.encode(four.wave_BN, torch.tensor(frames), small.front_end, silence)
    for i, count in enumerate(frames):
        noise = four.wave_BN.clone()[[i]][:, : round(16_000 * four.seconds[i])]
        alone = engine.encode(noise, torch.tensor([count]), small.front_end, silence)
        assert (alone[0] - together[i, :count]).abs().max() < 1e-4 < alone.std() / 100
    other = engine.encode(four.wave_BN, torch.tensor(frames), small.front_end, not silence)
    assert (other[0, : frames[0]] - together[0, : frames[0]]).abs().max() > 1e-3  # negative control: silence is heard


@pytest.mark.slow
def test_shared_silence_comes_closer_to_30_s_than_a_short_context(real, prompts):
    """How far states and transcripts are from those at 30 s, on clips that an untrained model does not end in a short context."""
    batch = collate(clips(prompts, 10)[:8])
    engine = Inference(adapters.merged(real.net), real.net.config, torch.float32)
    frames = torch.tensor([math.ceil(50 * (s + 0.5)) for s in batch.seconds])
    whole = engine.encode(batch.wave_BN, torch.full_like(frames, ALL_FRAMES), real.front_end, False)

    def distance(silence: bool) -> float:
        states = engine.encode(batch.wave_BN, frames, real.front_end, silence)
        return sum(float((states[i, :n] - whole[i, :n]).abs().mean()) for i, n in enumerate(frames.tolist())) / len(frames)

    assert distance(True) < 0.6 * distance(False)  # what is left: silence does not hear the clip
    full = real.transcribe(batch, context="full", fallback=False)
    silence = real.transcribe(batch, context="silence", fallback=False)
    short = real.transcribe(batch, context="short", fallback=False)
    assert all(h.ended and h.context < 30 for h in silence)
    assert sum(h.ended for h in short) <= 5  # negative control: what silence is for

    def differing(found: list[Hypothesis]) -> int:
        return score([h.text for h in full], [h.text for h in found], normaliser("english")).errors

    assert differing(silence) <= 2 < 20 < differing(short)


def test_decoding_leaves_the_mode_and_the_settings_alone(small, small_whisper, four):
    before = small.net.generation_config.to_dict()
    assert small.transcribe(four) == small.transcribe(four)
    assert small.net.generation_config.to_dict() == before
    assert not small.training


def test_transcripts_follow_the_weights(small_whisper, two, tmp_path):
    """What is laid out for transcribing is made anew when the weights have changed."""
    model = learner(small_whisper).eval()
    before = model.transcribe(two)
    assert model.transcribe(two) == before
    model.train()
    train(model, two, steps=30)
    after = model.eval().transcribe(two)
    assert [h.text for h in after] != [h.text for h in before]
    model.save(tmp_path)
    assert models.load("whisper", tmp_path, "en").eval().transcribe(two) == after


def test_only_clips_that_did_not_end_are_decoded_again_at_30_s(small, four, monkeypatch):
    asked = []

    def written(batch: Batch, context: str) -> list[Hypothesis]:
        asked.append((batch.ids, context))
        return [
            Hypothesis(f"{i} {context}", i not in four.ids[1:3] or context == "full", 30.0 if context == "full" else 5.0) for i in batch.ids
        ]

    monkeypatch.setattr(small, "_written", written)
    found = small.transcribe(four)
    assert asked == [(four.ids, "silence"), (four.ids[1:3], "full")]
    assert [h.context for h in found] == [5.0, 30.0, 30.0, 5.0]
    assert [h.text.split()[0] for h in found] == list(four.ids)
    assert all(h.ended for h in found)

    asked.clear()
    assert [h.ended for h in small.transcribe(four, fallback=False)] == [True, False, False, True]
    small.transcribe(four, context="full")
    assert asked == [(four.ids, "silence"), (four.ids, "full")]  # at 30 s there is nothing to fall back to


def test_text_that_runs_away_is_cut_and_says_so(small, four, monkeypatch):
    monkeypatch.setattr("speechlab.models.whisper.MAX_NEW_TOKENS", 1)  # the first token cannot be the end: it is suppressed
    found = small.transcribe(four)
    assert [(h.ended, h.context) for h in found] == [(False, 30.0)] * 4


def test_a_clip_is_given_no_more_text_than_its_own_length_allows(small, four):
    """Also beside a longer one, whose text may go on."""
    never_ends = torch.zeros(small.net.config.vocab_size)
    never_ends[small._special.end] = -math.inf
    engine = Inference(adapters.merged(small.net), small.net.config, torch.float32)
    heard = engine.hear(four.wave_BN, [100, 200, 300, 400], small.front_end, silence=True)
    rows = engine.write(heard, small._special.prompt, [3, 5, 9, 2], never_ends, never_ends, small._special.end)
    assert [(len(row.tokens), row.ended) for row in rows] == [(3, False), (5, False), (9, False), (2, False)]


def test_a_word_is_as_sure_as_all_its_tokens(real):
    ids = real.tokenizer(" Hello tremendously", add_special_tokens=False)["input_ids"]
    nats = [-0.1 * (i + 1) for i in range(len(ids))]
    parts = [1 + [t.startswith(" ") or t.startswith("\u0120") for t in real.tokenizer.convert_ids_to_tokens(ids)][1:].index(True)]
    first, second = real._confidences("Hello tremendously", Row(ids, [*nats, -9.0], True))
    assert first == pytest.approx(math.exp(sum(nats[: parts[0]])))
    assert second == pytest.approx(math.exp(sum(nats[parts[0] :])))
    assert real._confidences("", Row([], [-1.0], True)) == ()
    strange = real._confidences("one two three", Row(ids, nats, False))  # tokens that are not the text's
    assert len(strange) == 3 and len(set(strange)) == 1


# --- languages and folders ---


def multilingual(folder: Path, target: Path) -> Path:
    """The same checkpoint, with settings as multilingual ones have."""
    for path in folder.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    settings = json.loads((target / "generation_config.json").read_text())
    settings |= {"is_multilingual": True, "lang_to_id": {"<|en|>": 50258, "<|de|>": 50260}, "task_to_id": {"transcribe": 50358}}
    (target / "generation_config.json").write_text(json.dumps(settings))
    return target


def test_an_english_checkpoint_is_not_asked_for_another_language(small_whisper):
    with pytest.raises(InputError, match=r"knows English only(.|\n)*language de(.|\n)*without .en"):
        models.load("whisper", small_whisper, "de")


def test_a_multilingual_checkpoint_is_told_the_language_it_knows(small_whisper, tmp_path, four):
    folder = multilingual(small_whisper, tmp_path)
    with pytest.raises(InputError, match=r"does not know the language(.|\n)*got: *xx(.|\n)*one of de, en"):
        models.load("whisper", folder, "xx")
    model = models.load("whisper", folder, "de").eval()
    tokens_BL, labels_BL = model._labels(four.texts)
    assert tokens_BL[:, :4].tolist() == [[50257, 50260, 50358, 50362]] * 4  # start, language, task, no timestamps
    assert (labels_BL[:, :3] == -100).all()
    assert (labels_BL[:, 3] != -100).all()
    assert int((labels_BL != -100).sum()) == sum(model.count_tokens(list(four.texts)))
    assert len(model.transcribe(four)) == 4


def first_input(net: WhisperForConditionalGeneration, batch: Batch) -> list[list[int]]:
    """What transformers' own ``generate`` first asks the decoder."""
    asked = []
    hook = net.model.decoder.register_forward_pre_hook(lambda _, __, given: asked.append(given["input_ids"].tolist()), with_kwargs=True)
    net.eval().generate(features(batch), max_new_tokens=4)
    hook.remove()
    return asked[0]


def test_a_saved_multilingual_checkpoint_transcribes_in_its_language_without_being_told(small_whisper, tmp_path, two):
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    multilingual(small_whisper, first)
    assert first_input(WhisperForConditionalGeneration.from_pretrained(first), two) == [[50257]] * 2  # negative control: it guesses
    settings = json.loads((first / "generation_config.json").read_text())
    old = settings | {"forced_decoder_ids": [[1, 50258], [2, 50358]]}  # of another language, as the hub's oldest have them
    (first / "generation_config.json").write_text(json.dumps(old))
    model = models.load("whisper", first, "de").eval()
    model.save(second)
    net = WhisperForConditionalGeneration.from_pretrained(second)
    g = net.generation_config
    assert (g.language, g.task, getattr(g, "forced_decoder_ids", None)) == ("de", "transcribe", None)
    assert first_input(net, two) == [[50257, 50260, 50358, 50362]] * 2  # start, German, transcribe, no timestamps
    assert models.load("whisper", second, "de").eval().transcribe(two) == model.transcribe(two)


def test_large_v3_has_more_bands_and_one_more_language(small_whisper, tmp_path, two):
    shutil.copytree(small_whisper, tmp_path, dirs_exist_ok=True)
    # ids as of large-v3, whose Cantonese moves what stands behind the languages; the text's ids lie before them
    ids = {"bos_token_id": 50257, "eos_token_id": 50257, "pad_token_id": 50256, "decoder_start_token_id": 50258}
    size = {"num_mel_bins": 128, "vocab_size": 51866, "begin_suppress_tokens": None, "suppress_tokens": None}
    config = WhisperConfig.from_pretrained(small_whisper, **size, **ids)
    torch.manual_seed(1)
    net = WhisperForConditionalGeneration(config).eval()
    languages = {"lang_to_id": {"<|en|>": 50259, "<|yue|>": 50358}, "task_to_id": {"translate": 50359, "transcribe": 50360}}
    net.generation_config = GenerationConfig(is_multilingual=True, no_timestamps_token_id=50364, max_length=448, **languages, **ids)
    net.save_pretrained(tmp_path)

    model = models.load("whisper", tmp_path, "yue", ModelConfig(weights="large-v3", lora=LoraConfig(rank=2))).train()
    assert model._labels(two.texts)[0][:, :4].tolist() == [[50258, 50358, 50360, 50364]] * 2
    losses = train(model, two)
    assert losses[-1] < losses[0]
    assert len(model.eval().transcribe(two)) == 2
    model.save(tmp_path / "saved")
    saved = WhisperForConditionalGeneration.from_pretrained(tmp_path / "saved").eval()
    assert WhisperFeatureExtractor.from_pretrained(tmp_path / "saved").feature_size == 128
    with torch.no_grad():
        ours, theirs = model.encode(two.at(30.0)), saved.model.encoder(features(two, 128)).last_hidden_state
    assert (ours - theirs).abs().max() < 1e-4 < theirs.std() / 1000


def test_an_unknown_family_lists_the_known():
    with pytest.raises(InputError, match=r"Unknown model family(.|\n)*whisper"):
        models.load("whispr", "nowhere", "en")


@torch.no_grad()
def test_a_saved_folder_is_one_that_transformers_loads(small, small_whisper, tmp_path, four):
    small.save(tmp_path)
    net, report = WhisperForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert {key: list(value) for key, value in report.items() if value} == {}
    ours = small.net.state_dict()
    assert set(net.state_dict()) == set(ours)
    assert all(torch.equal(value, ours[name]) for name, value in net.state_dict().items())
    first, saved = (json.loads((folder / "generation_config.json").read_text()) for folder in (small_whisper, tmp_path))
    assert {**saved, "transformers_version": None} == {**first, "transformers_version": None}
    texts = WhisperTokenizerFast.from_pretrained(tmp_path)(list(four.texts)).input_ids
    assert texts == WhisperTokenizerFast.from_pretrained(small_whisper)(list(four.texts)).input_ids
    net.eval().generate(features(four.rows([0])), max_new_tokens=4)  # and its own generate() still runs on it
    again = models.load("whisper", tmp_path, "en").eval()
    assert torch.equal(again.loss(four).total, small.loss(four).total)
