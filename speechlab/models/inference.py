"""Whisper for transcribing only: every clip in a context of its own, silence heard once, keys and values in place.

transformers pads each clip to 30 s, and nine tenths of what its encoder hears of short clips is the same silence. Here a
clip has the frames that it needs, and what lies behind it up to 30 s is a small set of keys and values, made once from
silence and weighed by the number of frames each stands for. The one thing that is left out is that the silence does not
hear the clip. An untrained model, which does not stop in a bare short context, then ends as it does at 30 s, at the same
WER within its interval (reports/LOG.md). With frames for the whole 30 s the outputs are transformers' own (tested).

Clips of a batch do not see each other or their padding: convolutions, attention and the limit of the text are each
clip's own, so a transcript does not depend on what else is in the batch.

Not covered: beam search, timestamps, temperature.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from speechlab.units import FULL_CONTEXT, Seconds, exact_div

FRAMES_PER_SECOND = 50  # of the encoder
ALL_FRAMES = round(FRAMES_PER_SECOND * FULL_CONTEXT)
GROUP = 25  # frames of silence that one key stands for
SILENT = -0.6  # log-mel of silence beside a clip of usual level; what level it is hardly matters (reports/LOG.md)
PASS: Seconds = 48.0  # audio that a processor's encoder hears at once; larger passes fall out of its cache
PLAIN_CONTEXT: Seconds = 15.0  # up to here plain attention in bf16 on a processor beats the fused kernel (reports/LOG.md)

Linear = tuple[Tensor, Tensor]  # weight and bias


@dataclass(frozen=True)
class Heard:
    """What the decoder attends to.

    Attributes:
        cross: Of each decoder layer keys and values, (B, heads, F, width of a head), silence behind the clips' frames.
        mask_B11F: Added to the scores: minus infinity on padding, on silence the log of the frames a key stands for.
    """

    cross: list[tuple[Tensor, Tensor]]
    mask_B11F: Tensor


class Row(NamedTuple):
    """The tokens of one clip: ids, the log-probability of each in nats, and whether the end was reached."""

    tokens: list[int]
    nats: list[float]
    ended: bool


class _Cross(NamedTuple):
    norm: Linear
    query: Linear
    kv: Linear
    out: Linear


class _Layer(NamedTuple):
    norm: Linear
    qkv: Linear
    out: Linear
    cross: _Cross | None
    last_norm: Linear
    up: Linear
    down: Linear


class Inference:
    """A Whisper's weights laid out for transcribing.

    Args:
        state: As ``WhisperForConditionalGeneration.state_dict()`` has it, adapters merged.
        config: Of the checkpoint.
        dtype: Of weights and activations.
    """

    def __init__(self, state: Mapping[str, Tensor], config: Any, dtype: torch.dtype) -> None:
        self.dtype, self.heads, self.width = dtype, config.encoder_attention_heads, config.d_model
        self._state = state
        get = self._get
        # a convolution over three frames as a product over a window of them: faster on a processor, equal on the paper
        self._convs = [
            (get(f"model.encoder.conv{i}.weight").transpose(1, 2).flatten(1).contiguous(), get(f"model.encoder.conv{i}.bias"))
            for i in (1, 2)
        ]
        self._positions = get("model.encoder.embed_positions.weight")
        self._encoder = [self._layer(f"model.encoder.layers.{i}", crossing=False) for i in range(config.encoder_layers)]
        self._encoder_norm = self._pair("model.encoder.layer_norm")
        self._decoder = [self._layer(f"model.decoder.layers.{i}", crossing=True) for i in range(config.decoder_layers)]
        self._decoder_norm = self._pair("model.decoder.layer_norm")
        self._tokens = get("model.decoder.embed_tokens.weight")
        self._token_positions = get("model.decoder.embed_positions.weight")
        del self._state
        self._silence: tuple[list[tuple[Tensor, Tensor]], list[tuple[Tensor, Tensor]]] | None = None

    # -- hearing --------------------------------------------------------------------------------

    @torch.inference_mode()
    def hear(self, wave_BN: Tensor, frames_B: Sequence[int], front_end: Callable[[Tensor, Seconds], Tensor], silence: bool) -> Heard:
        """Encode clips, and make the keys and values that the decoder attends to.

        Args:
            wave_BN: 16 kHz, zeros behind each clip.
            frames_B: Encoder frames of each clip's context.
            front_end: Waves and seconds to log-mel, (B, M, 100 * seconds).
            silence: Whether there is silence behind the context, up to 30 s.
        """
        device = wave_BN.device
        frames = torch.tensor(frames_B, device=device)
        behind = self._behind() if silence else None
        groups = exact_div(ALL_FRAMES, GROUP) if silence else 0
        length = int(frames.max()) + groups
        cross = [self._room(len(frames_B), length, device) for _ in self._decoder]
        for rows in _passes(frames_B, device.type):
            at = torch.tensor(rows, device=device)
            states_BFD = self.encode(wave_BN[at], frames[at], front_end, silence)
            n = states_BFD.shape[1]
            for layer, (keys, values) in zip(self._decoder, cross, strict=True):
                assert layer.cross
                k, v = self._split(nn.functional.linear(states_BFD, *layer.cross.kv), 2)
                keys[at, :, groups : groups + n], values[at, :, groups : groups + n] = k, v
        if behind:
            for (keys, values), (k, v) in zip(cross, behind[1], strict=True):
                keys[:, :, :groups], values[:, :, :groups] = k, v
        return Heard(cross, self._mask(frames, silence))

    @torch.inference_mode()
    def encode(self, wave_BN: Tensor, frames_B: Tensor, front_end: Callable[[Tensor, Seconds], Tensor], silence: bool) -> Tensor:
        """States of each clip's own frames; arguments as for :meth:`hear`.

        Returns:
            states_BFD; those behind a clip's frames mean nothing.
        """
        n = int(frames_B.max())
        mel_BMT = front_end(wave_BN, n / FRAMES_PER_SECOND).to(self.dtype)
        states_BFD = self._subsampled(mel_BMT, frames_B)
        mask_B11F = self._mask(frames_B, silence)
        behind = self._behind()[0] if silence else [None] * len(self._encoder)
        plain = wave_BN.device.type == "cpu" and self.dtype != torch.float32 and n <= PLAIN_CONTEXT * FRAMES_PER_SECOND
        for layer, extra in zip(self._encoder, behind, strict=True):
            q, k, v = self._split(nn.functional.linear(self._normed(states_BFD, layer.norm), *layer.qkv), 3)
            if extra is not None:  # silence first, as in the mask
                k, v = (torch.cat([e.expand(len(k), -1, -1, -1), own], 2) for e, own in zip(extra, (k, v), strict=True))
            states_BFD = states_BFD + self._joined(_attend(q, k, v, mask_B11F, plain), layer.out)
            states_BFD = self._fed_forward(states_BFD, layer)
        return self._normed(states_BFD, self._encoder_norm)

    # -- writing --------------------------------------------------------------------------------

    @torch.inference_mode()
    def write(self, heard: Heard, prompt: Sequence[int], rooms: Sequence[int], banned: Tensor, banned_first: Tensor, end: int) -> list[Row]:
        """Greedy decoding: the likeliest token, again and again.

        Args:
            heard: From :meth:`hear`.
            prompt: Token ids that the text goes on from.
            rooms: Most tokens of each clip's text, its end included.
            banned: Added to the scores of all tokens, (V): minus infinity on those that are not to be written.
            banned_first: The same of the first token.
            end: Id of the token that ends a text.
        """
        clips, room = len(rooms), max(rooms)
        device = heard.mask_B11F.device
        cross, mask_B11F = heard.cross, heard.mask_B11F
        caches = [self._room(clips, len(prompt) + room, device) for _ in self._decoder]
        found, nats = torch.full((clips, room), end, device=device), torch.zeros(clips, room, device=device)
        live, limits = torch.arange(clips, device=device), torch.tensor(rooms, device=device)
        over = torch.zeros(clips, dtype=torch.bool, device=device)
        inputs_BL, at = torch.tensor([list(prompt)] * clips, device=device), 0
        for n in range(room):
            scores_BV = self._scores(inputs_BL, at, caches, cross, mask_B11F) + (banned if n else banned_first).to(self.dtype)
            at += inputs_BL.shape[1]
            best_B = scores_BV.argmax(-1)
            chosen_B = torch.softmax(scores_BV, -1, dtype=torch.float32).gather(1, best_B[:, None])[:, 0].log()
            written = torch.where(over, torch.full_like(best_B, end), best_B)
            found[live, n], nats[live, n] = written, torch.where(over, torch.zeros_like(chosen_B), chosen_B)
            over = over | (written == end) | (n + 1 >= limits[live])
            left = int((~over).sum())
            if not left:
                break
            if 2 * left <= len(live):  # those that are done cost as much as the others
                keep = (~over).nonzero()[:, 0]
                live, over, written, mask_B11F = live[keep], over[keep], written[keep], mask_B11F[keep]
                caches = [(k[keep], v[keep]) for k, v in caches]
                cross = [(k[keep], v[keep]) for k, v in cross]
            inputs_BL = written[:, None]
        return [_row(ids, logs, limit, end) for ids, logs, limit in zip(found.tolist(), nats.tolist(), rooms, strict=True)]

    def _scores(self, inputs_BL: Tensor, at: int, caches: list[Any], cross: list[Any], mask_B11F: Tensor) -> Tensor:
        """Scores of the token after the last, (B, V); keys and values of the inputs go into the caches."""
        x_BLD = self._tokens[inputs_BL] + self._token_positions[at : at + inputs_BL.shape[1]]
        until = at + inputs_BL.shape[1]
        several = inputs_BL.shape[1] > 1
        for layer, (keys, values), (cross_k, cross_v) in zip(self._decoder, caches, cross, strict=True):
            q, k, v = self._split(nn.functional.linear(self._normed(x_BLD, layer.norm), *layer.qkv), 3)
            keys[:, :, at:until], values[:, :, at:until] = k, v
            if several:  # only the prompt, which comes first
                own = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=1.0)
            else:
                own = _attend(q, keys[:, :, :until], values[:, :, :until], None, True)
            x_BLD = x_BLD + self._joined(own, layer.out)
            assert layer.cross
            (q,) = self._split(nn.functional.linear(self._normed(x_BLD, layer.cross.norm), *layer.cross.query), 1)
            x_BLD = x_BLD + self._joined(_attend(q, cross_k, cross_v, mask_B11F, True), layer.cross.out)
            x_BLD = self._fed_forward(x_BLD, layer)
        scores_BV: Tensor = nn.functional.linear(self._normed(x_BLD[:, -1], self._decoder_norm), self._tokens)
        return scores_BV

    # -- silence --------------------------------------------------------------------------------

    def _behind(self) -> tuple[list[tuple[Tensor, Tensor]], list[tuple[Tensor, Tensor]]]:
        """Keys and values of silence in each encoder layer and for each decoder layer, one in the middle of every group of frames."""
        if self._silence is None:
            mel_BMT = torch.full((1, self._convs[0][0].shape[1] // 3, 2 * ALL_FRAMES), SILENT, dtype=self.dtype, device=self._tokens.device)
            middle = slice(GROUP // 2, None, GROUP)
            states_BFD = self._subsampled(mel_BMT, torch.tensor([ALL_FRAMES], device=mel_BMT.device))
            inside = []
            for layer in self._encoder:
                q, k, v = self._split(nn.functional.linear(self._normed(states_BFD, layer.norm), *layer.qkv), 3)
                inside.append((k[:, :, middle].contiguous(), v[:, :, middle].contiguous()))
                states_BFD = states_BFD + self._joined(_attend(q, k, v, None, False), layer.out)
                states_BFD = self._fed_forward(states_BFD, layer)
            states_BFD = self._normed(states_BFD, self._encoder_norm)[:, middle]
            outside = [self._split(nn.functional.linear(states_BFD, *layer.cross.kv), 2) for layer in self._decoder if layer.cross]
            self._silence = inside, [(k, v) for k, v in outside]
        return self._silence

    def _mask(self, frames_B: Tensor, silence: bool) -> Tensor:
        """What is added to scores: of silence first, then of the clips' own frames."""
        device = frames_B.device
        places = torch.arange(int(frames_B.max()), device=device)
        own_BF = torch.zeros(len(frames_B), len(places), device=device).masked_fill(places >= frames_B[:, None], -math.inf)
        if silence:
            starts = torch.arange(0, ALL_FRAMES, GROUP, device=device)
            left = (starts + GROUP - torch.maximum(starts, frames_B[:, None])).clamp(min=0)  # of a group that a clip reaches into
            own_BF = torch.cat([left.log(), own_BF], 1)
        return own_BF[:, None, None].to(self.dtype)

    # -- parts of layers ------------------------------------------------------------------------

    def _subsampled(self, mel_BMT: Tensor, frames_B: Tensor) -> Tensor:
        """Both convolutions; behind a clip's frames they find the zeros that they would find at the end of a window."""
        x_BTC = mel_BMT.transpose(1, 2)
        for (weight, bias), stride in zip(self._convs, (1, 2), strict=True):
            behind = torch.arange(x_BTC.shape[1], device=x_BTC.device) >= 2 * frames_B[:, None]
            windows = nn.functional.pad(x_BTC.masked_fill(behind[..., None], 0), (0, 0, 1, 1)).unfold(1, 3, stride)
            x_BTC = nn.functional.gelu(nn.functional.linear(windows.transpose(2, 3).flatten(2), weight, bias))
        return x_BTC + self._positions[: x_BTC.shape[1]]

    def _room(self, clips: int, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Space for keys and values, (B, heads, length, width of a head) each."""
        size = (clips, self.heads, length, self.width // self.heads)
        return torch.zeros(size, dtype=self.dtype, device=device), torch.zeros(size, dtype=self.dtype, device=device)

    def _split(self, x_BLD: Tensor, parts: int) -> tuple[Tensor, ...]:
        """Queries, keys, values: each (B, heads, L, width of a head)."""
        clips, length, _ = x_BLD.shape
        return x_BLD.view(clips, length, parts, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)

    def _joined(self, x_BHLd: Tensor, out: Linear) -> Tensor:
        return nn.functional.linear(x_BHLd.transpose(1, 2).flatten(2), *out)

    def _normed(self, x: Tensor, norm: Linear) -> Tensor:
        return nn.functional.layer_norm(x, (self.width,), *norm)

    def _fed_forward(self, x: Tensor, layer: _Layer) -> Tensor:
        hidden = nn.functional.gelu(nn.functional.linear(self._normed(x, layer.last_norm), *layer.up))
        return x + nn.functional.linear(hidden, *layer.down)

    # -- weights --------------------------------------------------------------------------------

    def _get(self, name: str) -> Tensor:
        return self._state[name].detach().to(self.dtype)

    def _pair(self, name: str) -> Linear:
        return self._get(f"{name}.weight"), self._get(f"{name}.bias")

    def _layer(self, at: str, crossing: bool) -> _Layer:
        cross = None
        if crossing:
            kv, query = (self._projections(f"{at}.encoder_attn", which) for which in ("kv", "q"))
            cross = _Cross(self._pair(f"{at}.encoder_attn_layer_norm"), query, kv, self._pair(f"{at}.encoder_attn.out_proj"))
        return _Layer(
            norm=self._pair(f"{at}.self_attn_layer_norm"),
            qkv=self._projections(f"{at}.self_attn", "qkv"),
            out=self._pair(f"{at}.self_attn.out_proj"),
            cross=cross,
            last_norm=self._pair(f"{at}.final_layer_norm"),
            up=self._pair(f"{at}.fc1"),
            down=self._pair(f"{at}.fc2"),
        )

    def _projections(self, at: str, which: str) -> Linear:
        """Several projections as one product; queries scaled beforehand, keys have no bias."""
        weights, biases = [], []
        for name in which:
            weight = self._state[f"{at}.{name}_proj.weight"].detach()
            bias = self._state.get(f"{at}.{name}_proj.bias", torch.zeros(self.width, device=weight.device)).detach()
            scale = (self.width // self.heads) ** -0.5 if name == "q" else 1.0
            weights.append(weight * scale)
            biases.append(bias * scale)
        return torch.cat(weights).to(self.dtype), torch.cat(biases).to(self.dtype)


def _attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, plain: bool) -> Tensor:
    if not plain:
        return nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=1.0)
    scores = q @ k.transpose(-1, -2)
    return torch.softmax(scores if mask is None else scores + mask, -1) @ v


def _passes(frames_B: Sequence[int], device: str) -> list[list[int]]:
    """Places in the batch that are heard together: clips of like length, on a processor no more than its cache likes."""
    limit = PASS * FRAMES_PER_SECOND if device == "cpu" else math.inf
    passes: list[list[int]] = []
    for i in sorted(range(len(frames_B)), key=lambda i: frames_B[i]):
        if passes and (len(passes[-1]) + 1) * frames_B[i] <= limit:
            passes[-1].append(i)
        else:
            passes.append([i])
    return passes


def _row(ids: list[int], nats: list[float], limit: int, end: int) -> Row:
    ids, nats = ids[:limit], nats[:limit]
    if end not in ids:
        return Row(ids, nats, False)
    at = ids.index(end)
    return Row(ids[:at], nats[: at + 1], True)  # how sure the end is belongs to the text
