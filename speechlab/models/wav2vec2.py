"""Wav2Vec2 (Baevski et al., 2020): CTC on transcripts, or contrastive pretraining without them, in transformers' weights.

transformers' forward is not used, its modules are. The base models' first layer normalises over time (group norm), so
that there padding changes what is heard (transformers#10117); here each clip is normalised over its own frames, padding
is hidden from the encoder too, and a clip's outputs are the same alone and in any batch, up to rounding. Masks and
distractors are drawn from torch's generator (transformers': numpy's), so a step is what its seed says.

In pretraining the quantiser's temperature stays at the paper's first, 2: codes are drawn hard, so it scales gradients
and never changes what is drawn, and a rate that falls by 0.0005 % a step would make a resumed run depend on a counter.

Not covered: LoRA, layer drop (every weight has a gradient in every step), convolutional adapters, vocabularies of
several languages in one file (MMS). Shapes as in :mod:`speechlab.units`, and C channels of the convolutions, K masked
frames, G groups of codes, X distractors.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import Wav2Vec2Config, Wav2Vec2CTCTokenizer, Wav2Vec2FeatureExtractor, Wav2Vec2ForCTC, Wav2Vec2ForPreTraining
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils import logging

from speechlab.batches import Batch
from speechlab.config import ModelConfig, ShapeConfig
from speechlab.errors import InputError, did_you_mean
from speechlab.features import RawWave
from speechlab.models import Hypothesis, Loss, ctc, timing
from speechlab.units import SAMPLE_RATE, Samples

HIDDEN = 0.65  # spans times their length, of a clip's frames, in pretraining: half of them once spans overlap
SPAN = 10  # frames, 0.2 s
LEAST_SPANS = 2
TEMPERATURE = 2.0  # of the Gumbel softmax
GROUPS = 16  # of the positional convolution's channels

_LARGE = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
_LARGE |= {"codevector_dim": 768, "proj_codevector_dim": 768}
_LAYER_NORMS = {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True}
SIZES: dict[str, dict[str, Any]] = {
    "tiny": {  # trains on a CPU, where group norm takes a quarter less time than layer norms
        **{"hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 256, "conv_dim": (64,) * 7},
        **{"num_conv_pos_embeddings": 32, "num_codevectors_per_group": 64, "codevector_dim": 64, "proj_codevector_dim": 64},
        "do_stable_layer_norm": True,
    },
    "base": {},  # as Wav2Vec2Config has it: 95 million weights
    "large": _LARGE,  # 317 million
    "large-lv60": _LARGE | _LAYER_NORMS,
}
_SHAPE = {"dim": "hidden_size", "layers": "num_hidden_layers", "heads": "num_attention_heads", "ffn": "intermediate_size",
          "kernel": "num_conv_pos_embeddings"}  # fmt: skip
_DROPOUTS = ("hidden_dropout", "attention_dropout", "activation_dropout", "final_dropout")
_HEADS = {"transcripts": "lm_head.weight", "pretraining": "quantizer.codevectors"}  # a weight that only this objective has
_BESIDE = ("preprocessor_config.json", "processor_config.json", "vocab.json", "tokenizer_config.json", "special_tokens_map.json",
           "added_tokens.json", "tokenizer.model")  # fmt: skip
_EMBEDDING = "wav2vec2.masked_spec_embed"  # stands for what is hidden


class OwnFrames(GradientCheckpointingLayer):  # type: ignore[misc]
    """The base models' first layer, normalised over each clip's own frames; same weights, same names.

    Args:
        layer: transformers' layer, whose parts are taken over.
    """

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.conv, self.layer_norm, self.activation = layer.conv, layer.layer_norm, layer.activation

    def forward(self, x_BCN: Tensor, frames: Sequence[int]) -> Tensor:
        """What the convolution hears in each clip; behind a clip's frames zeros."""
        y_BCT = self.conv(x_BCN)
        own = [self.layer_norm(y_BCT[i : i + 1, :, :n]) for i, n in enumerate(frames)]
        normed: Tensor = self.activation(torch.cat([nn.functional.pad(y_1CT, (0, y_BCT.shape[2] - y_1CT.shape[2])) for y_1CT in own]))
        return normed


class Wav2Vec2(nn.Module):
    """A Wav2Vec2 checkpoint behind the lab's two methods.

    Args:
        folder: As on the hub: a CTC checkpoint with its vocabulary, or a pretraining checkpoint with its quantiser.
        language: Of the speech; not looked at, since a CTC model writes what its vocabulary has.
        config: What is frozen while training; None is for transcribing.

    Raises:
        InputError: if the folder holds neither, or not what the objective needs, or the config asks for what there is not.

    Attributes:
        vocabulary: None in pretraining.
        search: Finds the transcript in log-probabilities; None is greedy.
    """

    contexts = ("clip",)
    label_rate = None

    def __init__(self, folder: str | Path, language: str = "en", config: ModelConfig | None = None) -> None:
        super().__init__()
        folder = Path(folder)
        objective = _objective(folder)
        if config is not None:
            _check(config)
            if objective != config.objective:
                raise InputError("These weights are for another objective.", got=f"{folder}: {objective}", expected=config.objective,
                                 do="let models.begin make the initial weights, or change model.objective")  # fmt: skip
        logging.disable_progress_bar()  # 40 ms of work
        kind: Any = Wav2Vec2ForCTC if objective == "transcripts" else Wav2Vec2ForPreTraining
        self.net, report = kind.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, dtype=torch.float32, output_loading_info=True
        )
        self.vocabulary = ctc.Vocabulary(folder) if objective == "transcripts" else None
        extractor = Wav2Vec2FeatureExtractor.from_pretrained(folder, local_files_only=True)
        self._suits(folder, sorted(report["missing_keys"]), extractor.sampling_rate)
        self._beside = {name: (folder / name).read_bytes() for name in _BESIDE if (folder / name).is_file()}
        self.net.config.layerdrop = 0.0  # a layer left out would have no gradient, and its worker wait for it
        if self.net.config.feat_extract_norm == "group":
            self._convolutions[0] = OwnFrames(self._convolutions[0])
        self.search: ctc.Searcher | None = None
        self.front_end = RawWave()
        self._normalise = bool(extractor.do_normalize)
        self.front_end.min_samples = self._least(1 if self.vocabulary else 2)  # a frame needs another to be told from
        if config is not None and config.freeze == "features":
            self.net.freeze_feature_encoder()
        elif config is not None and config.freeze == "encoder":
            self.net.freeze_base_model()

    @classmethod
    def complete(cls, folder: Path, config: ModelConfig) -> bool:
        """Whether a folder can be trained as it is: it has the objective's head, and its vocabulary or mask embedding."""
        names = _names(folder)
        if config.objective == "pretraining":
            return {_HEADS["pretraining"], _EMBEDDING} <= names
        return _HEADS["transcripts"] in names and ctc.has_vocabulary(folder)

    @classmethod
    def create(cls, config: ModelConfig, start: Path | None, language: str, texts: list[str], folder: Path) -> None:
        """Write initial weights: all drawn, or only what the objective needs beyond weights that are given.

        Args:
            config: Shape, objective and kind of vocabulary.
            start: A pretraining or bare checkpoint (a CTC one loses its head), or None.
            language: Not looked at.
            texts: Training transcripts, for the vocabulary.
            folder: Empty; gets what the hub has of such a model. With bpe transformers has no tokenizer for it.

        Raises:
            InputError: if the shape cannot be, or the texts give no such vocabulary, or start holds other weights.
        """
        _check(config)
        made: Any = Wav2Vec2Config.from_pretrained(start, local_files_only=True) if start else _shaped(config.shape)
        made.layerdrop = 0.0
        if config.objective == "pretraining":
            made.mask_time_prob = made.mask_time_prob or 0.05  # at 0 there is no embedding for what is hidden
        if config.objective == "transcripts":
            vocabulary = ctc.make_vocabulary(config.vocabulary, texts, folder)
            made.vocab_size, made.pad_token_id = len(vocabulary), vocabulary.blank
            if config.vocabulary.kind == "characters":
                Wav2Vec2CTCTokenizer(str(folder / "vocab.json")).save_pretrained(folder)
        net: Any = (Wav2Vec2ForCTC if config.objective == "transcripts" else Wav2Vec2ForPreTraining)(made)
        if start:
            _take_over(net, start)
            extractor = Wav2Vec2FeatureExtractor.from_pretrained(start, local_files_only=True)
        else:
            extractor = Wav2Vec2FeatureExtractor(return_attention_mask=made.feat_extract_norm == "layer")
        logging.disable_progress_bar()
        net.save_pretrained(folder)
        extractor.save_pretrained(folder)

    def loss(self, batch: Batch) -> Loss:
        """CTC of the transcripts, or the contrastive loss and the weighted diversity loss of pretraining, summed.

        Args:
            batch: With transcripts, unless this is pretraining.

        Returns:
            The sum in nats over label tokens, or over masked frames.

        Raises:
            InputError: if a clip is shorter than a frame (pretraining: two), or the batch brings masks for a spectrogram.
        """
        if batch.masks is not None:
            raise InputError("Wav2Vec2 has no spectrogram to mask.", got="augment.spec", expected="augment.spec: null",
                             do="leave it out: the model hides frames by mask_time_prob of its own config.json")  # fmt: skip
        if self.vocabulary is None:
            return self._contrast(batch)
        logits_BFV, frames = self.logits(batch)
        return ctc.loss(logits_BFV, frames, self.vocabulary.encode(batch.texts), self.vocabulary.blank)

    forward = loss  # what DistributedDataParallel calls

    @torch.inference_mode()
    def times(self, batch: Batch, texts: Sequence[str]) -> list[timing.Times]:
        """When each word of each text was said: see :func:`speechlab.models.ctc.times`."""
        assert self.vocabulary is not None
        return ctc.times(*self.logits(batch), batch.seconds, self.vocabulary, texts)

    def logits(self, batch: Batch) -> tuple[Tensor, list[int]]:
        """Scores of the vocabulary before softmax, logits_BFV, and each clip's frames; while training, spans are hidden."""
        hidden_BFD, _, frames = self._features(batch)
        config = self.net.config
        if self.training:
            times, features = (share * config.apply_spec_augment for share in (config.mask_time_prob, config.mask_feature_prob))
            hidden_BFD = self._hide(hidden_BFD, spans(frames, times, config.mask_time_length, config.mask_time_min_masks))
            widths = [hidden_BFD.shape[2]] * len(frames)
            out_BD = spans(widths, features, config.mask_feature_length, config.mask_feature_min_masks)
            hidden_BFD = hidden_BFD.masked_fill(out_BD[:, None].to(hidden_BFD.device), 0.0)
        return self.net.lm_head(self.net.dropout(self._encode(hidden_BFD, frames))), frames

    @torch.inference_mode()
    def transcribe(self, batch: Batch, *, context: str | None = None, fallback: bool = True) -> list[Hypothesis]:
        """Transcripts: greedy, or as :attr:`search` finds them; of a pretraining model empty ones, so that its WER is 100 %.

        Args:
            batch: Transcripts in it are not looked at.
            context: Without effect: a clip is always heard whole.
            fallback: Without effect: a CTC model always comes to its end.

        Returns:
            One hypothesis a clip, in the batch's order.
        """
        if self.vocabulary is None:
            return [Hypothesis("", True, seconds) for seconds in batch.seconds]
        return ctc.transcripts(*self.logits(batch), batch.seconds, self.vocabulary, self.search)

    @torch.inference_mode()
    def embed(self, batch: Batch) -> Tensor:
        """What a clip sounds like to the encoder: the mean of its last states over the clip's own frames.

        Args:
            batch: Transcripts in it are not looked at.

        Returns:
            (B, D) in float32; what else is in the batch does not matter.
        """
        hidden_BFD, _, frames = self._features(batch)
        states_BFD = self._encode(hidden_BFD, frames)
        return torch.stack([states_FD[:n].float().mean(0) for states_FD, n in zip(states_BFD, frames, strict=True)])

    def count_tokens(self, texts: list[str]) -> list[int]:
        """Labels of each transcript; in pretraining 1, since the number of masked frames is known only in the step."""
        return _counts(self.vocabulary, texts)

    def recompute(self) -> None:
        """From now on compute activations twice rather than keep them, convolutions included."""
        # renamed within transformers 5
        enable = getattr(self.net, "activation_checkpointing_enable", None) or self.net.gradient_checkpointing_enable
        enable({"use_reentrant": False})

    def save(self, folder: Path) -> None:
        """Write a folder as on the hub; what stood beside the weights stays as it came."""
        self.net.save_pretrained(folder)
        for name, content in self._beside.items():
            (folder / name).write_bytes(content)

    # -- inside ---------------------------------------------------------------------------------

    @property
    def _convolutions(self) -> Any:
        return self.net.wav2vec2.feature_extractor.conv_layers

    def _features(self, batch: Batch) -> tuple[Tensor, Tensor, list[int]]:
        """The encoder's input (B, F, D), what the quantiser hears (B, F, C), and each clip's frames."""
        samples_B = batch.samples_B.cpu()
        wave_BN1, _ = self.front_end(batch.wave_BN, samples_B)
        x = (wave_BN1[..., 0] if self._normalise else batch.wave_BN[:, : wave_BN1.shape[1]])[:, None]
        for layer in self._convolutions:
            samples_B = (samples_B - layer.conv.kernel_size[0]) // layer.conv.stride[0] + 1
            x = layer(x, samples_B.tolist()) if isinstance(layer, OwnFrames) else layer(x)
        hidden_BFD, features_BFC = self.net.wav2vec2.feature_projection(x.transpose(1, 2))
        return hidden_BFD, features_BFC, samples_B.tolist()

    def _hide(self, hidden_BFD: Tensor, spans_BF: Tensor) -> Tensor:
        """Put the mask embedding into spans; where there are none, it still has a gradient, of zeros."""
        embedding_D = getattr(self.net.wav2vec2, "masked_spec_embed", None)
        if embedding_D is None:
            return hidden_BFD
        return torch.where(spans_BF[..., None].to(hidden_BFD.device), embedding_D.to(hidden_BFD.dtype), hidden_BFD)

    def _encode(self, hidden_BFD: Tensor, frames: Sequence[int]) -> Tensor:
        own_BF = torch.arange(hidden_BFD.shape[1]) < torch.tensor(frames)[:, None]
        states_BFD: Tensor = self.net.wav2vec2.encoder(hidden_BFD, attention_mask=own_BF.to(hidden_BFD.device)).last_hidden_state
        return states_BFD

    def _contrast(self, batch: Batch) -> Loss:
        """Each masked frame's own code must be told from those of other masked frames of the clip, and all codes be used."""
        hidden_BFD, features_BFC, frames = self._features(batch)
        spans_BF = spans(frames, HIDDEN, SPAN, LEAST_SPANS)
        counts = spans_BF.sum(1).tolist()
        others_KX = torch.cat([distractors(count, self.net.config.num_negatives) for count in counts]).to(hidden_BFD.device)
        states_BFD = self._encode(self._hide(hidden_BFD, spans_BF), frames)
        at = spans_BF.to(hidden_BFD.device)
        predicted_KD = self.net.project_hid(states_BFD[at])
        with torch.autocast(predicted_KD.device.type, enabled=False):
            quantised_KD, codes_KG, perplexity = self._quantise(self.net.dropout_features(features_BFC)[at].float())
            targets_KD = nn.functional.normalize(self.net.project_q(quantised_KD), dim=-1)
            predicted_KD = nn.functional.normalize(predicted_KD.float(), dim=-1)
            clips = zip(*(torch.split(each, counts) for each in (predicted_KD, targets_KD, codes_KG, others_KX)), strict=True)  # type: ignore[no-untyped-call]
            logits = torch.cat([_similarities(*clip) for clip in clips]) / self.net.config.contrastive_logits_temperature
            first_K = torch.zeros(len(logits), dtype=torch.long, device=logits.device)
            contrastive = nn.functional.cross_entropy(logits, first_K, reduction="sum")
        codes = self.net.quantizer.num_groups * self.net.quantizer.num_vars
        diversity = (codes - perplexity) / codes * len(logits)
        return Loss(contrastive + self.net.config.diversity_loss_weight * diversity, len(logits))

    def _quantise(self, features_KC: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Codes drawn by Gumbel softmax (in evaluation the likeliest), as vectors and as numbers, and their perplexity."""
        quantiser = self.net.quantizer
        scores_KGV = quantiser.weight_proj(features_KC).view(len(features_KC), quantiser.num_groups, quantiser.num_vars)
        if self.training:
            chosen_KGV = nn.functional.gumbel_softmax(scores_KGV, tau=TEMPERATURE, hard=True)
            used_GV = scores_KGV.softmax(-1).mean(0)
        else:
            chosen_KGV = nn.functional.one_hot(scores_KGV.argmax(-1), quantiser.num_vars).to(scores_KGV.dtype)
            used_GV = chosen_KGV.mean(0)
        books_GVD = quantiser.codevectors.view(quantiser.num_groups, quantiser.num_vars, -1)
        quantised_KD = torch.einsum("kgv,gvd->kgd", chosen_KGV, books_GVD).flatten(1)
        logs_GV = used_GV.clamp(min=torch.finfo(torch.float32).tiny).log()  # of 0 times its logarithm the gradient is not a number
        perplexity = torch.exp(-(used_GV * logs_GV).sum(-1)).sum()
        return quantised_KD, chosen_KGV.argmax(-1), perplexity

    def _least(self, frames: int) -> Samples:
        """Samples that give so many frames."""
        for layer in reversed(self._convolutions):
            frames = (frames - 1) * layer.conv.stride[0] + layer.conv.kernel_size[0]
        return frames

    def _suits(self, folder: Path, missing: list[str], rate: int) -> None:
        labels = len(self.vocabulary) if self.vocabulary else 0
        problems = {
            f"no weights for {', '.join(missing[:3])}": bool(missing),
            f"{labels} labels, and a head for {self.net.config.vocab_size}": labels > self.net.config.vocab_size,
            f"a model for {rate} Hz": rate != SAMPLE_RATE,
            "convolutional adapters": bool(self.net.config.add_adapter),
            "no embedding for what is hidden": not self.vocabulary and not hasattr(self.net.wav2vec2, "masked_spec_embed"),
        }
        if found := [problem for problem, so in problems.items() if so]:
            raise InputError("These Wav2Vec2 weights cannot be used.", got=f"{folder}: {'; '.join(found)}", do="name others",
                             expected="a whole checkpoint for 16 kHz, without adapters")  # fmt: skip


def count_tokens(folder: str | Path, texts: Sequence[str]) -> list[int]:
    """As :meth:`Wav2Vec2.count_tokens`, without loading weights."""
    return _counts(ctc.Vocabulary(folder) if _objective(Path(folder)) == "transcripts" else None, texts)


def _counts(vocabulary: ctc.Vocabulary | None, texts: Sequence[str]) -> list[int]:
    return vocabulary.count(texts) if vocabulary else [1] * len(texts)


def spans(counts: Sequence[int], share: float, length: int, least: int) -> Tensor:
    """Draw spans to hide, from torch's generator on the CPU; a clip's do not depend on its padding.

    Args:
        counts: Places of each clip.
        share: Number of spans times their length, of the places; they may overlap. 0 draws none.
        length: Places of a span; in a short clip at most half of it.
        least: Fewest spans of a clip.

    Returns:
        Whether each place is hidden: (B, most places), on the CPU.
    """
    hidden = torch.zeros(len(counts), max(counts), dtype=torch.bool)
    if not share:
        return hidden
    for row, count in zip(hidden, counts, strict=True):
        span = min(length, max(count // 2, 1))
        wanted = max(math.floor(share * count / span + torch.rand(()).item()), least)
        starts = torch.randperm(count - span + 1)[:wanted]
        row[(starts[:, None] + torch.arange(span)).flatten()] = True
    return hidden


def distractors(count: int, number: int) -> Tensor:
    """For each of a clip's masked frames, draw others of them, from torch's generator on the CPU: (count, number)."""
    others_KX = torch.randint(count - 1, (count, number))
    return others_KX + (others_KX >= torch.arange(count)[:, None]).long()


def _similarities(predicted_KD: Tensor, targets_KD: Tensor, codes_KG: Tensor, others_KX: Tensor) -> Tensor:
    """Cosine of what was predicted to the frame's own target, then to its distractors; those of the same code do not count."""
    all_KK = predicted_KD @ targets_KD.T
    same_KX = (codes_KG[others_KX] == codes_KG[:, None]).all(-1)
    return torch.cat([all_KK.diagonal()[:, None], all_KK.gather(1, others_KX).masked_fill(same_KX, -math.inf)], dim=1)


# -- folders ------------------------------------------------------------------------------------------------


def _names(folder: Path) -> set[str]:
    with safe_open(folder / "model.safetensors", framework="numpy") as file:
        return set(file.keys())


def _objective(folder: Path) -> str:
    names = _names(folder)
    for objective, head in _HEADS.items():
        if head in names:
            return objective
    raise InputError("These Wav2Vec2 weights have no head.", got=str(folder), expected="a CTC or a pretraining checkpoint",
                     do="train on transcripts from them: models.begin adds a head")  # fmt: skip


def _check(config: ModelConfig) -> None:
    if config.lora is not None:
        raise InputError("Wav2Vec2 has no adapters here.", got="model.lora", expected="model.lora: null",
                         do="freeze with model.freeze: features or encoder")  # fmt: skip
    if config.objective == "pretraining" and config.freeze == "encoder":
        raise InputError("Pretraining learns the encoder.", got="model.freeze: encoder", expected="nothing or features")


def _shaped(shape: ShapeConfig) -> Wav2Vec2Config:
    """The config of a size, single numbers of it changed."""
    size = shape.size or next(iter(SIZES))
    if size not in SIZES:
        raise InputError(f'Unknown size "{size}" of Wav2Vec2.', got=f"model.shape.size: {size}", do=did_you_mean(size, SIZES))
    changed = {theirs: getattr(shape, ours) for ours, theirs in _SHAPE.items() if getattr(shape, ours) is not None}
    fewest = {"mask_time_min_masks": 0}  # the default, 2, hides half of a short word
    config = Wav2Vec2Config(**(SIZES[size] | fewest | changed | dict.fromkeys(_DROPOUTS, shape.dropout)))
    for parts, what in ((config.num_attention_heads, "model.shape.heads"), (GROUPS, "the positional convolution's groups")):
        if config.hidden_size % parts:
            raise InputError("The model's width cannot be divided.", got=f"model.shape.dim: {config.hidden_size}",
                             expected=f"a multiple of {parts}, {what}")  # fmt: skip
    return config


def _take_over(net: Any, start: Path) -> None:
    """Copy all weights that fit, but never a head over another vocabulary."""
    found = load_file(start / "model.safetensors")
    prefix = "" if any(name.startswith("wav2vec2.") for name in found) else "wav2vec2."  # a bare model's names have none
    kept = {prefix + name: tensor for name, tensor in found.items() if not name.startswith("lm_head.")}
    missing, _ = net.load_state_dict(kept, strict=False)
    if lost := [name for name in missing if name.startswith("wav2vec2.") and name != _EMBEDDING]:
        raise InputError("The weights to start from are not whole.", got=f"{start}: no {', '.join(lost[:3])}",
                         expected="a Wav2Vec2 checkpoint", do="name others, or save them once more")  # fmt: skip
