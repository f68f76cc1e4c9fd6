"""Conformer with a CTC head (Gulati et al., 2020), trained from scratch, in which padding does not matter.

The layers are torchaudio's, run here for two reasons. Theirs let padding into the depthwise convolution, and their batch
norm makes a clip's result depend on its batch and a training on the number of workers: here padded frames are zeroed
before every convolution, and each frame is normalised over its channels, as in SpeechBrain's Conformer. And kept frame by
frame (BFD) with the convolution channels-last, they take a processor two thirds of the time.

A frame of the encoder is 40 ms, four of the front end. Shapes follow :mod:`speechlab.units`; H is halfway, 20 ms.

Not covered: relative positions (position comes from the convolutions, as in torchaudio's recipes), streaming,
transducers, adapters.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torchaudio.models import Conformer as Layers  # type: ignore[import-untyped]

from speechlab.batches import Batch
from speechlab.config import ModelConfig, ShapeConfig
from speechlab.errors import InputError, did_you_mean
from speechlab.features import HOP, MelEnergies, mask
from speechlab.models import Hypothesis, Loss, ctc, timing
from speechlab.units import SAMPLE_RATE, Samples, exact_div

MELS = 80
STRIDE: Samples = 4 * HOP  # of the encoder's frames
FRAMES_PER_SECOND = exact_div(SAMPLE_RATE, STRIDE)  # 25
ABOUT = {"model_type": "conformer", "version": 1, "sample_rate": SAMPLE_RATE, "mels": MELS}  # of a folder, beside dimensions


@dataclass(frozen=True)
class Dimensions:
    """How large a network is; ``ffn`` is the width of the feed-forward layers, ``kernel`` frames of a convolution."""

    dim: int
    layers: int
    heads: int
    ffn: int
    kernel: int


SIZES = {  # Gulati et al., table 1
    "S": Dimensions(dim=144, layers=16, heads=4, ffn=576, kernel=31),
    "M": Dimensions(dim=256, layers=16, heads=4, ffn=1024, kernel=31),
    "L": Dimensions(dim=512, layers=17, heads=8, ffn=2048, kernel=31),
}


def dimensions(shape: ShapeConfig) -> Dimensions:
    """A size of :data:`SIZES`, S if none is named, with single numbers changed; ``ffn`` follows ``dim`` four times over.

    Raises:
        InputError: if the size is not known, or the numbers do not go together.
    """
    size = shape.size or "S"
    if size not in SIZES:
        raise InputError(f'Unknown size "{size}" of a conformer.', got=f"model.shape.size: {size}", do=did_you_mean(size, SIZES))
    base = SIZES[size]
    dim = shape.dim or base.dim
    d = Dimensions(dim, shape.layers or base.layers, shape.heads or base.heads, shape.ffn or 4 * dim, shape.kernel or base.kernel)
    if d.dim % d.heads:
        raise InputError(
            "The heads do not share the width evenly.",
            got=f"dim {d.dim}, heads {d.heads}",
            expected="dim a multiple of heads",
            do="change model.shape.dim or model.shape.heads",
        )
    if d.kernel % 2 == 0:
        raise InputError(
            "The convolution has no middle frame.", got=f"kernel {d.kernel}", expected="an odd number", do="change model.shape.kernel"
        )
    return d


class Conformer(nn.Module):
    """A Conformer behind the lab's two methods.

    Args:
        folder: As :meth:`create` or :meth:`save` writes it.
        language: Not looked at: what the model writes is in its vocabulary.
        config: What is frozen, and how much is dropped out, while training; None is for transcribing.

    Raises:
        InputError: if the folder is not a conformer's, or the config asks for what this family or these weights do not have.

    Attributes:
        search: Finds the transcript in log-probabilities; None is greedy.
    """

    contexts = ("clip",)
    label_rate = None

    def __init__(self, folder: str | Path, language: str = "en", config: ModelConfig | None = None) -> None:
        super().__init__()
        folder = Path(folder)
        self.dimensions = _dimensions_of(folder)
        self.vocabulary = ctc.Vocabulary(folder)
        with torch.device("meta"):  # nothing is drawn, and memory is taken by what the file holds
            self.net = _network(self.dimensions, len(self.vocabulary), config.shape.dropout if config else 0.0)
        _fill(self.net, _tensors(folder), folder)
        self.front_end = MelEnergies(MELS)
        self.search: ctc.Searcher | None = None
        self._recompute = False
        if config:
            _check(config, self.dimensions)
            frozen = {"nothing": [], "features": ["subsampling"], "encoder": ["subsampling", "encoder"]}[config.freeze]
            for name in frozen:
                self.net[name].requires_grad_(False)

    @classmethod
    def create(cls, config: ModelConfig, start: Path | None, language: str, texts: Sequence[str], folder: Path) -> None:
        """Write initial weights and the vocabulary of the transcripts into an empty folder.

        Args:
            config: The model section.
            start: A conformer without a vocabulary, whose encoder is taken; None draws one.
            language: Of the speech.
            texts: Training transcripts.
            folder: To fill.

        Raises:
            InputError: if the config asks for what this family or these weights do not have, or no vocabulary can be made.
        """
        d = _dimensions_of(start) if start else dimensions(config.shape)
        _check(config, d)
        vocabulary = ctc.make_vocabulary(config.vocabulary, texts, folder)
        net = _network(d, len(vocabulary), 0.0)
        if start:
            kept = {name: value for name, value in _tensors(start).items() if not name.startswith("head.")}
            _fill(net, kept | {f"head.{name}": value for name, value in net["head"].state_dict().items()}, start)
        _write(folder, d, net)

    @classmethod
    def complete(cls, folder: Path, config: ModelConfig) -> bool:
        """Whether a folder has a vocabulary; one without gets a new one and a head, as for another language."""
        return ctc.has_vocabulary(folder)

    def recompute(self) -> None:
        """From now on compute a layer's activations twice rather than keep them."""
        self._recompute = True

    def loss(self, batch: Batch) -> Loss:
        """CTC loss of the transcripts: see :func:`speechlab.models.ctc.loss`."""
        logits_BFV, frames = self.logits(batch)
        return ctc.loss(logits_BFV, frames, self.vocabulary.encode(batch.texts), self.vocabulary.blank)

    forward = loss  # what DistributedDataParallel calls

    @torch.inference_mode()
    def transcribe(self, batch: Batch, *, context: str | None = None, fallback: bool = True) -> list[Hypothesis]:
        """Transcripts: greedy, or as :attr:`search` finds them.

        Args:
            batch: Transcripts in it are not looked at.
            context: Without effect: a clip is always heard whole.
            fallback: Without effect: a CTC model always comes to its end.
        """
        return ctc.transcripts(*self.logits(batch), batch.seconds, self.vocabulary, self.search)

    @torch.inference_mode()
    def times(self, batch: Batch, texts: Sequence[str]) -> list[timing.Times]:
        """When each word of each text was said: see :func:`speechlab.models.ctc.times`."""
        return ctc.times(*self.logits(batch), batch.seconds, self.vocabulary, texts)

    def logits(self, batch: Batch) -> tuple[Tensor, list[int]]:
        """Scores of each label in each frame.

        Returns:
            logits_BFV, and the B counts of frames that are not padding: ``1 + N // 640`` for a clip of N samples.
        """
        least = self.front_end.min_samples  # a shorter clip is heard with silence behind it
        wave_BN = nn.functional.pad(batch.wave_BN, (0, max(0, least - batch.wave_BN.shape[1])))
        samples_B = batch.samples_B.clamp(min=least)
        feats_BTM, _ = self.front_end(wave_BN, samples_B)
        mel_BMT = feats_BTM.transpose(1, 2)
        if batch.masks is not None:
            mel_BMT = mask(mel_BMT, batch.masks)
        frames_B = samples_B // STRIDE + 1
        x_BFD = self.net["subsampling"](mel_BMT, samples_B // (STRIDE // 2) + 1)
        own_BF = torch.arange(x_BFD.shape[1], device=x_BFD.device) < frames_B[:, None]
        encoder: Any = self.net["encoder"]
        for layer in encoder.conformer_layers:
            if self._recompute and torch.is_grad_enabled():
                x_BFD = checkpoint(_layer, layer, x_BFD, own_BF, use_reentrant=False)
            else:
                x_BFD = _layer(layer, x_BFD, own_BF)
        return self.net["head"](x_BFD), frames_B.tolist()

    @torch.inference_mode()
    def embed(self, batch: Batch) -> Tensor:
        """What a clip sounds like to the encoder: the mean of its last states over the clip's own frames.

        Args:
            batch: Transcripts in it are not looked at.

        Returns:
            (B, D) in float32; what else is in the batch does not matter.
        """
        states: list[Tensor] = []
        with self.net["head"].register_forward_pre_hook(lambda _, inputs: states.append(inputs[0])):
            _, frames = self.logits(batch)
        return torch.stack([states_FD[:n].float().mean(0) for states_FD, n in zip(states[0], frames, strict=True)])

    def count_tokens(self, texts: list[str]) -> list[int]:
        """Labels of each transcript."""
        return self.vocabulary.count(texts)

    def save(self, folder: Path) -> None:
        """Write a folder that this class reads."""
        self.vocabulary.save(folder)
        _write(folder, self.dimensions, self.net)


def count_tokens(folder: str | Path, texts: Sequence[str]) -> list[int]:
    """As :meth:`Conformer.count_tokens`, from the vocabulary alone."""
    return ctc.Vocabulary(folder).count(texts)


# --- the network -----------------------------------------------------------------------------------------------


class Subsampling(nn.Module):
    """Two convolutions of stride 2 over time, as in Whisper and fairseq's S2T: 10 ms to 40 ms.

    The paper's two-dimensional ones would be a third of the work of size S.

    Args:
        dim: Model width.
        dropout: Share of the output that is dropped.
    """

    def __init__(self, dim: int, dropout: float) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(MELS, dim, 3, stride=2, padding=1)
        self.conv2 = nn.Conv1d(dim, dim, 3, stride=2, padding=1)
        self.linear = nn.Linear(dim, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, mel_BMT: Tensor, halves_B: Tensor) -> Tensor:
        """Frames of the encoder.

        Args:
            mel_BMT: Zero behind a clip's frames.
            halves_B: Frames of each clip after the first convolution.

        Returns:
            x_BFD, float32, so that the sums along the layers are, whatever autocast says.
        """
        x_BDH = nn.functional.gelu(self.conv1(mel_BMT))
        own_BH = torch.arange(x_BDH.shape[2], device=x_BDH.device) < halves_B[:, None]
        x_BDF = nn.functional.gelu(self.conv2(x_BDH * own_BH[:, None]))
        x_BFD: Tensor = self.dropout(self.linear(x_BDF.transpose(1, 2)))
        return x_BFD.float()


def _network(d: Dimensions, labels: int, dropout: float) -> nn.ModuleDict:
    encoder = Layers(d.dim, d.heads, d.ffn, d.layers, d.kernel, dropout)
    for layer in encoder.conformer_layers:
        layer.conv_module.sequential[3] = nn.LayerNorm(d.dim)
        layer.self_attn.dropout = 0.0  # the paper drops out residual units, and without it attention is 2.5 times as fast
    return nn.ModuleDict({"subsampling": Subsampling(d.dim, dropout), "encoder": encoder, "head": nn.Linear(d.dim, labels)})


def _layer(layer: Any, x_BFD: Tensor, own_BF: Tensor) -> Tensor:
    """One of torchaudio's layers: half a feed-forward step, attention, convolution, the other half."""
    x_BFD = x_BFD + 0.5 * layer.ffn1(x_BFD)
    x_BFD = x_BFD + layer.self_attn_dropout(_attention(layer.self_attn, layer.self_attn_layer_norm(x_BFD), own_BF))
    x_BFD = x_BFD + _convolution(layer.conv_module, x_BFD, own_BF)
    x_BFD = x_BFD + 0.5 * layer.ffn2(x_BFD)
    x_BFD = layer.final_layer_norm(x_BFD)
    return x_BFD


def _attention(attention: nn.MultiheadAttention, x_BFD: Tensor, own_BF: Tensor) -> Tensor:
    """Self-attention over a clip's own frames."""
    qkv = nn.functional.linear(x_BFD, attention.in_proj_weight, attention.in_proj_bias)
    device = x_BFD.device.type
    if device == "cpu":  # where half precision takes two to five times as long, backward
        qkv = qkv.float()
    q, k, v = qkv.view(*x_BFD.shape[:2], 3, attention.num_heads, -1).permute(2, 0, 3, 1, 4)
    with torch.autocast(device, enabled=False):
        heard = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=own_BF[:, None, None])
    x_BFD = attention.out_proj(heard.transpose(1, 2).flatten(2))
    return x_BFD


def _convolution(module: Any, x_BFD: Tensor, own_BF: Tensor) -> Tensor:
    """The convolution module, pointwise convolutions as matrix products, padding zeroed before the depthwise one."""
    pointwise1, _, depthwise, norm, activation, pointwise2, dropout = module.sequential
    x_BFD = nn.functional.linear(module.layer_norm(x_BFD), pointwise1.weight.squeeze(-1), pointwise1.bias)
    x_BFD = nn.functional.glu(x_BFD) * own_BF[..., None]
    # as an image of one row: channels-last, which it is without a copy, is 12 times as fast on a processor
    image = x_BFD.transpose(1, 2).unsqueeze(2)
    weight = depthwise.weight.squeeze(1)[:, None, None]  # squeezed so that its gradient has its strides: DDP warns otherwise
    around = (0, depthwise.padding[0])
    # in float32 on a processor: torch 2.11's bf16 one never returns for some shapes (odd batches) with two threads, and is no faster
    exact = image.device.type == "cpu"
    with torch.autocast(image.device.type, enabled=False) if exact else nullcontext():
        image = nn.functional.conv2d(image.float() if exact else image, weight, depthwise.bias, padding=around, groups=depthwise.groups)
    x_BFD = activation(norm(image.squeeze(2).transpose(1, 2)))
    x_BFD = dropout(nn.functional.linear(x_BFD, pointwise2.weight.squeeze(-1), pointwise2.bias))
    return x_BFD


# --- folders ---------------------------------------------------------------------------------------------------


def _check(config: ModelConfig, d: Dimensions) -> None:
    """Refuse what the config asks for in vain."""
    if config.lora is not None:
        raise InputError("Adapters are Whisper's.", got="model.lora beside model.family: conformer", do="leave model.lora out")
    if config.objective != "transcripts":
        raise InputError("Pretraining is wav2vec2's.", got=f"model.objective: {config.objective}", expected="transcripts")
    have = asdict(d)
    wanted = asdict(dimensions(config.shape)) if config.shape.size else have | config.shape.model_dump(include=set(have), exclude_none=True)
    if differ := [name for name in have if wanted[name] != have[name]]:
        raise InputError(
            "The weights have another shape than the config.",
            got=", ".join(f"{name} {have[name]}" for name in differ),
            expected=", ".join(f"{name} {wanted[name]}" for name in differ),
            do="leave model.shape out, or start from scratch",
        )


def _dimensions_of(folder: Path) -> Dimensions:
    try:
        found = json.loads((folder / "config.json").read_text("utf-8"))
        about = {name: found.pop(name, None) for name in ABOUT}
        if about != ABOUT:
            raise ValueError(f"{about}")
        d = Dimensions(**found)
        return dimensions(ShapeConfig(**asdict(d)))  # of the same bounds
    except (OSError, ValueError, TypeError, AttributeError) as e:
        raise InputError(
            "The folder's config.json is not one of a conformer.",
            got=f"{folder}: {e}",
            expected=f"{json.dumps(ABOUT)[1:-1]}, {', '.join(Dimensions.__dataclass_fields__)}",
            do="name a folder that the lab wrote",
        ) from None


def _tensors(folder: Path) -> dict[str, Tensor]:
    try:
        return dict(load_file(folder / "model.safetensors"))
    except (OSError, SafetensorError) as e:
        raise InputError("The weights cannot be read.", got=f"{folder}: {e}", expected="a model.safetensors that is whole") from None


def _fill(net: nn.Module, tensors: dict[str, Tensor], folder: Path) -> None:
    try:
        net.load_state_dict({name: value.float() for name, value in tensors.items()}, strict=True, assign=True)
    except RuntimeError as e:
        lines = [line.strip() for line in str(e).splitlines()[1:]]
        raise InputError(
            "The weights do not fit the folder's config.json and vocabulary.",
            got=f"{folder}: {' '.join(lines)[:500]}",
            expected="every tensor of the network, in its shape, and no other",
            do="take the files of a folder from one training",
        ) from None


def _write(folder: Path, d: Dimensions, net: nn.Module) -> None:
    (folder / "config.json").write_text(json.dumps({**ABOUT, **asdict(d)}, indent=2) + "\n", "utf-8")
    save_file({name: value.contiguous() for name, value in net.state_dict().items()}, folder / "model.safetensors")
