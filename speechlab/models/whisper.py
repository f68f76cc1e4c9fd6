"""Whisper without the 30-second tax: training and decoding in the context a clip needs.

transformers' encoder insists on 3,000 mel frames. Its layers do not: the positional table is sinusoidal
and a shorter window uses its first rows, so the encoder here runs the same modules over as many
frames as the batch's context has. At 30 s the outputs equal transformers' own (tested).

Which context that is while training, the plan says: the longest clip and a margin drawn anew for each micro-batch, now
and then the whole 30 s, so that a trained model works in both. Transcribing is :mod:`speechlab.models.inference`'s: each
clip in a context of its own, and where its text does not end there, once more at 30 s.

A saved folder is a plain Whisper: transformers, CTranslate2 and faster-whisper read it, adapters merged.

Not covered: timestamps, beam search, long audio, text before the prompt, translation.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import WhisperFeatureExtractor, WhisperForConditionalGeneration, WhisperTokenizerFast
from transformers.utils import logging

from speechlab.batches import Batch
from speechlab.config import ModelConfig
from speechlab.errors import InputError
from speechlab.features import LogMel, mask
from speechlab.models import Hypothesis, Loss, adapters, timing
from speechlab.models.inference import ALL_FRAMES, FRAMES_PER_SECOND, PLAIN_CONTEXT, Inference, Row
from speechlab.units import FULL_CONTEXT, TOKENS_PER_SECOND, Seconds

MAX_LABELS = 448  # decoder positions: prompt, text and end
MAX_NEW_TOKENS = 224  # half of them, as in OpenAI's decoder
LOGITS = 1024  # positions whose scores over the vocabulary are held at a time: 0.2 GB
SPACE = "\u0120"  # how the tokenizer writes the blank that begins a word
MARGIN: Seconds = 0.5  # heard behind a clip; less, and the last word suffers


@dataclass(frozen=True)
class _Special:
    prompt: tuple[int, ...]
    end: int


class Whisper(nn.Module):
    """A Whisper checkpoint behind the lab's two methods.

    Args:
        folder: A folder that transformers' ``from_pretrained`` loads.
        language: Of the speech; multilingual checkpoints are told in the prompt.
        config: What is frozen or adapted while training; None is for transcribing. Adapters freeze everything else, and a
            frozen encoder gets none. What is frozen costs no activation memory up to the first layer that learns.

    Raises:
        InputError: if the checkpoint does not know the language, or has no layer that an adapter is meant for.
    """

    contexts = ("silence", "short", "full")
    label_rate = TOKENS_PER_SECOND

    def __init__(self, folder: str | Path, language: str = "en", config: ModelConfig | None = None) -> None:
        super().__init__()
        logging.disable_progress_bar()  # 40 ms of work
        self.net = WhisperForConditionalGeneration.from_pretrained(folder, local_files_only=True, use_safetensors=True, dtype=torch.float32)
        self.net.model.encoder.embed_positions.requires_grad_(False)  # sinusoids; from_pretrained loses that they are fixed
        self.tokenizer = WhisperTokenizerFast.from_pretrained(folder, local_files_only=True)
        self.front_end = LogMel(self.net.config.num_mel_bins)
        self._special = self._prompt(language)
        self._inference: Inference | None = None
        self._checkpoint_settings = copy.deepcopy(self.net.generation_config)
        if self._multilingual:  # else transformers' generate() guesses the language of each clip (transformers#29938)
            self._checkpoint_settings.forced_decoder_ids = None
            self._checkpoint_settings.language, self._checkpoint_settings.task = language, "transcribe"
        if config is not None:
            self._learn(config)

    def recompute(self) -> None:
        """From now on keep only what goes into each layer while training, and compute the rest again when gradients need it."""
        # renamed within transformers 5; the layers look themselves whether it is on, so :meth:`encode` has it too
        enable = getattr(self.net, "activation_checkpointing_enable", None) or self.net.gradient_checkpointing_enable
        enable({"use_reentrant": False})

    def loss(self, batch: Batch) -> Loss:
        """Cross-entropy of the transcripts, summed, so that steps can be weighted by tokens.

        Args:
            batch: With transcripts.

        Returns:
            The sum over label tokens in nats, and their number (text and end; the prompt is given).
        """
        tokens_BL, labels_BL = self._labels(batch.texts)
        states_BFD = self.encode(batch)
        hidden_BLD = self._decode(tokens_BL, states_BFD)
        # prompt and padding have no label, and to score the vocabulary is what a position costs
        at = torch.nonzero(labels_BL != -100, as_tuple=True)
        logits_NV = self.net.proj_out(hidden_BLD[at])
        return Loss(nn.functional.cross_entropy(logits_NV.float(), labels_BL[at], reduction="sum"), len(logits_NV))

    forward = loss  # what DistributedDataParallel calls

    def _decode(self, tokens_BL: Tensor, states_BFD: Tensor) -> Tensor:
        # Positions are given once for all clips. By itself transformers repeats them for each, and the gradient of that lookup adds up the
        # clips in the order in which threads come by (index_put with accumulate), so that two trainings differ in the last bits.
        positions_1L = torch.arange(tokens_BL.shape[1], device=tokens_BL.device)[None]
        decoder = self.net.model.decoder
        table = decoder.embed_tokens
        # The table is the output layer too. A sparse gradient of the lookup is added to that layer's in place; a dense one would be another
        # matrix of the vocabulary's size for each pass (reports/LOG.md). On a GPU, where nothing was measured, it is dense.
        sparse = tokens_BL.device.type == "cpu" and table.weight is self.net.proj_out.weight
        embedded_BLD = nn.functional.embedding(tokens_BL, table.weight, table.padding_idx, sparse=sparse)
        states_BLD: Tensor = decoder(
            inputs_embeds=embedded_BLD, position_ids=positions_1L, encoder_hidden_states=states_BFD, use_cache=False
        ).last_hidden_state
        return states_BLD

    @torch.inference_mode()
    def likelihoods(self, batch: Batch, candidates: list[list[str]]) -> list[list[tuple[float, int]]]:
        """How likely the model finds given texts, under teacher forcing; the encoder hears the clips once.

        Args:
            batch: Transcripts in it are not looked at.
            candidates: Lists of one text a clip.

        Returns:
            For each list and clip the log-probability of text and end in nats, minus infinity where the decoder has no
            room for the text, and the number of tokens.
        """
        states_BFD = self.encode(batch)
        room = MAX_LABELS - len(self._special.prompt)
        found = []
        for texts in candidates:
            counts = self.count_tokens(texts)
            fit = [text if count <= room else "" for text, count in zip(texts, counts, strict=True)]
            tokens_BL, labels_BL = self._labels(tuple(fit))
            hidden_BLD = self._decode(tokens_BL, states_BFD)
            rows, columns = torch.nonzero(labels_BL != -100, as_tuple=True)
            nats = torch.zeros(len(texts), device=hidden_BLD.device)
            for start in range(0, len(rows), LOGITS):
                at = rows[start : start + LOGITS], columns[start : start + LOGITS]
                costs_N = nn.functional.cross_entropy(self.net.proj_out(hidden_BLD[at]).float(), labels_BL[at], reduction="none")
                nats.index_add_(0, at[0], -costs_N)
            found.append([(float(v) if n <= room else -math.inf, n) for v, n in zip(nats, counts, strict=True)])
        return found

    @torch.inference_mode()
    def transcribe(self, batch: Batch, *, context: str | None = None, fallback: bool = True) -> list[Hypothesis]:
        """Greedy transcripts, each as if its clip were alone in the batch.

        Args:
            batch: Transcripts, context and masks in it are not looked at.
            context: What the encoder hears: ``silence``, the clip, half a second behind it, and silence that stands for the rest of
                30 s; ``short``, without that; ``full``, 30 s as transformers has them. None is ``silence``.
            fallback: Decode clips whose text does not end within the context once more at 30 s.

        Returns:
            One hypothesis a clip, in the batch's order.
        """
        context = context or self.contexts[0]
        found = self._written(batch, context)
        again = [i for i, h in enumerate(found) if not h.ended and h.context < FULL_CONTEXT]
        if fallback and again:
            for i, hypothesis in zip(again, self._written(batch.rows(again), "full"), strict=True):
                found[i] = hypothesis
        return found

    @torch.inference_mode()
    def times(self, batch: Batch, texts: Sequence[str]) -> list[timing.Times]:
        """When each word of each text was said, by where the decoder looks while it writes them: see :mod:`speechlab.models.timing`.

        Args:
            batch: Transcripts in it are not looked at.
            texts: One a clip, as the model writes them.

        Returns:
            Of ``text.split()``; without spaces between words, or where a token is no text, the text's stretch dealt out by length.
        """
        rows = _text_ids(self.tokenizer, texts)
        tokens_BL, _ = self._labels(tuple(texts))
        layers, heads = self.net.model.decoder.layers, self._checkpoint_settings.to_dict().get("alignment_heads")
        # a checkpoint that names none: all heads of the later half of the layers, as in OpenAI's code
        every = [(layer, head) for layer in range(len(layers) // 2, len(layers)) for head in range(self.net.config.decoder_attention_heads)]
        with timing.Listener(layers, [(int(a), int(b)) for a, b in heads or every]).hearing() as heard:
            self._decode(tokens_BL, self.encode(batch))
        found = []
        for i, (text, ids, seconds) in enumerate(zip(texts, rows, batch.seconds, strict=True)):
            first = len(self._special.prompt) - 1  # where the first token of the text is written; after the last, the end
            frames = max(1, math.ceil(FRAMES_PER_SECOND * seconds))
            begins = timing.path(heard.scores(i, first + len(ids) + 1, frames)[first:])
            pieces = [self.tokenizer.decode([id]) for id in ids]
            own = timing.of_pieces(begins[:-1], begins[-1], pieces, FRAMES_PER_SECOND) if ids else []
            found.append(timing.spread(text.split(), own))
        return found

    @torch.inference_mode()
    def embed(self, batch: Batch) -> Tensor:
        """What a clip sounds like to the encoder: the mean of its last states over the clip's own frames.

        Args:
            batch: Transcripts, context and masks in it are not looked at.

        Returns:
            (B, D) in float32; what else is in the batch does not matter, as for :meth:`transcribe`.
        """
        device = batch.wave_BN.device
        dtype = torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else torch.float32
        if self._inference is None or self._inference.dtype != dtype:
            self._inference = Inference(adapters.merged(self.net), self.net.config, dtype)
        own, heard = ([math.ceil(FRAMES_PER_SECOND * (s + margin)) for s in batch.seconds] for margin in (0.0, MARGIN))
        frames_B = torch.tensor(heard, device=device).clamp(max=ALL_FRAMES)
        with torch.autocast(device.type, enabled=False):
            states_BFD = self._inference.encode(batch.wave_BN, frames_B, self.front_end, True)
        return torch.stack([states_FD[:n].float().mean(0) for states_FD, n in zip(states_BFD, own, strict=True)])

    def train(self, mode: bool = True) -> Whisper:
        """As for every module; what was laid out for transcribing is dropped where weights may have changed or may change."""
        if mode or self.training:
            self._inference = None
        return super().train(mode)

    def encode(self, batch: Batch) -> Tensor:
        """Encoder states in the batch's context.

        Returns:
            states_BFD with ``F = 50 * context`` frames.
        """
        self._attend(batch)
        mel_BMT = self.front_end(batch.wave_BN, batch.context)
        if batch.masks is not None:
            mel_BMT = mask(mel_BMT, batch.masks)
        encoder = self.net.model.encoder
        x = nn.functional.gelu(encoder.conv1(mel_BMT))
        x_BFD = nn.functional.gelu(encoder.conv2(x)).transpose(1, 2)
        x_BFD = x_BFD + encoder.embed_positions.weight[: x_BFD.shape[1]]
        x_BFD = nn.functional.dropout(x_BFD, self.net.config.dropout, self.training)
        for layer in encoder.layers:
            x_BFD = layer(x_BFD, attention_mask=None)
        states_BFD: Tensor = encoder.layer_norm(x_BFD)
        return states_BFD

    def count_tokens(self, texts: list[str]) -> list[int]:
        """Label tokens of each transcript, end included."""
        return _counts(self.tokenizer, texts)

    def save(self, folder: Path) -> None:
        """Write the weights, adapters merged into them, as a folder that transformers' ``from_pretrained`` loads.

        With the tokenizer, front end and settings that converters look for; a multilingual checkpoint's ``generate`` then
        transcribes in the language it was trained on.
        """
        self.net.save_pretrained(folder, state_dict=adapters.merged(self.net))
        self._checkpoint_settings.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        WhisperFeatureExtractor(feature_size=self.net.config.num_mel_bins).save_pretrained(folder)  # as LogMel computes it

    # -- inside ---------------------------------------------------------------------------------

    def _learn(self, config: ModelConfig) -> None:
        encoder = self.net.model.encoder
        frozen = {"nothing": (), "features": (encoder.conv1, encoder.conv2), "encoder": (encoder,)}[config.freeze]
        for part in frozen:  # autograd keeps nothing of what it needs no gradient through
            part.requires_grad_(False)
        if config.lora is not None:
            adapters.add(self.net, config.lora, untouched=encoder if config.freeze == "encoder" else None)

    @property
    def _multilingual(self) -> bool:
        return bool(getattr(self.net.generation_config, "is_multilingual", False))

    def _attend(self, batch: Batch) -> None:
        """Choose the attention, of decoder and encoder alike, that costs least in this context; in float32 and on a GPU the fused one."""
        reduced = batch.wave_BN.device.type == "cpu" and torch.is_autocast_enabled("cpu")
        wanted = "eager" if reduced and batch.context <= PLAIN_CONTEXT else "sdpa"
        if self.net.config._attn_implementation != wanted:
            self.net.set_attn_implementation(wanted)

    def _written(self, batch: Batch, context: str) -> list[Hypothesis]:
        device = batch.wave_BN.device
        dtype = torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else torch.float32
        if self._inference is None or self._inference.dtype != dtype:
            self._inference = Inference(adapters.merged(self.net), self.net.config, dtype)
        frames = [
            ALL_FRAMES if context == "full" else min(ALL_FRAMES, math.ceil(FRAMES_PER_SECOND * (seconds + MARGIN)))
            for seconds in batch.seconds
        ]
        # text beyond any speaking rate has run away
        rooms = [
            MAX_NEW_TOKENS if f == ALL_FRAMES else min(MAX_NEW_TOKENS, 8 + round(TOKENS_PER_SECOND * seconds))
            for f, seconds in zip(frames, batch.seconds, strict=True)
        ]
        with torch.autocast(device.type, enabled=False):
            heard = self._inference.hear(batch.wave_BN, frames, self.front_end, context == "silence")
            rows = self._inference.write(heard, self._special.prompt, rooms, *self._banned(device), self._special.end)
        texts = self.tokenizer.batch_decode([row.tokens for row in rows], skip_special_tokens=True)
        return [
            Hypothesis(text.strip(), row.ended, f / FRAMES_PER_SECOND, self._confidences(text, row))
            for text, row, f in zip(texts, rows, frames, strict=True)
        ]

    def _banned(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Added to the scores of tokens: those that the checkpoint never writes, and those that it never begins with."""
        never = torch.zeros(self.net.config.vocab_size, device=device)
        never[list(self._checkpoint_settings.suppress_tokens or ())] = -math.inf
        first = never.clone()
        first[list(self._checkpoint_settings.begin_suppress_tokens or ())] = -math.inf
        return never, first

    def _confidences(self, text: str, row: Row) -> tuple[float, ...]:
        """The probability of each word, given all before it: the product over its tokens."""
        words: list[float] = []
        for token, nats in zip(self.tokenizer.convert_ids_to_tokens(row.tokens), row.nats, strict=False):
            if not words or token.startswith(SPACE):
                words.append(0.0)
            words[-1] += nats
        if len(words) != len(text.split()):  # a language without spaces, or a token that is no text
            words = [sum(row.nats) / max(1, len(row.nats))] * len(text.split())
        return tuple(math.exp(nats) for nats in words)

    def _labels(self, texts: tuple[str, ...]) -> tuple[Tensor, Tensor]:
        prompt, end = list(self._special.prompt), self._special.end
        rows = [prompt + ids + [end] for ids in _text_ids(self.tokenizer, texts)]
        longest = max(map(len, rows))
        if longest > MAX_LABELS:
            raise InputError(
                "A transcript is longer than Whisper's decoder.",
                got=f"{longest} tokens",
                expected=f"at most {MAX_LABELS}",
                do="split the clip",
            )
        tokens = torch.full((len(rows), longest - 1), end)
        labels = torch.full((len(rows), longest - 1), -100)
        for i, row in enumerate(rows):
            tokens[i, : len(row) - 1] = torch.tensor(row[:-1])
            labels[i, len(prompt) - 1 : len(row) - 1] = torch.tensor(row[len(prompt) :])
        device = self.front_end.window.device
        return tokens.to(device), labels.to(device)

    def _prompt(self, language: str) -> _Special:
        g: Any = self.net.generation_config
        middle: tuple[int, ...] = ()
        if self._multilingual:
            key = f"<|{language}|>"
            if key not in g.lang_to_id:
                raise InputError(
                    "This checkpoint does not know the language.",
                    got=language,
                    expected="one of " + ", ".join(k[2:-2] for k in sorted(g.lang_to_id)),
                )
            middle = (g.lang_to_id[key], g.task_to_id["transcribe"])
        elif language != "en":
            raise InputError(
                "This checkpoint knows English only.", got=f"language {language}", do="choose multilingual weights: the name without .en"
            )
        return _Special((self.net.config.decoder_start_token_id, *middle, g.no_timestamps_token_id), self.net.config.eos_token_id)


def count_tokens(folder: str | Path, texts: Sequence[str]) -> list[int]:
    """As :meth:`Whisper.count_tokens`, from the tokenizer alone."""
    return _counts(WhisperTokenizerFast.from_pretrained(folder, local_files_only=True), texts)


def _counts(tokenizer: Any, texts: Sequence[str]) -> list[int]:
    return [len(ids) + 1 for ids in _text_ids(tokenizer, texts)]


def _text_ids(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    # a leading space, as in the pretraining data: "▁Thank" and not "Thank"; a transcript that spells out
    # "<|endoftext|>" is text like any other
    spaced = [" " + t.strip() if t.strip() else "" for t in texts]
    ids: list[list[int]] = tokenizer(spaced, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    return ids
