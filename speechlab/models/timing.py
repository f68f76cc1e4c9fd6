"""When each word of a known text was said, by the model that wrote it.

Whisper: while it writes a token, some heads of its attention look at the frames in which the token is heard. Their weights, normalised
over the tokens and smoothed by a median over time, give the path along which the tokens follow one another (the method of OpenAI's
``whisper.timing``; the heads are the checkpoint's ``alignment_heads``). CTC: ``torchaudio.functional.forced_align``, the most likely path
of the labels through the frames.

Notable: Whisper's path lets no frame go back and every token have one frame at least, so it is found frame by frame over all tokens at once
(Viterbi), where dynamic time warping walks through every pair.

Not covered: pauses between words that Whisper gives to one of the two; times within a word.
"""

from __future__ import annotations

import itertools
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import median_filter
from torch import Tensor, nn
from torchaudio.functional import forced_align

from speechlab.errors import InputError
from speechlab.units import Seconds

SMOOTHED = 7  # frames of 20 ms, OpenAI's
Times = list[tuple[Seconds, Seconds]]  # begin and end of each word
Scores = NDArray[np.floating[Any]]


def path(scores_LF: Scores) -> list[int]:
    """The frame in which each of L labels begins, on the best path through F frames on which they follow one another.

    Args:
        scores_LF: What a frame is worth to a label; a path's worth is their sum.

    Returns:
        Ascending, the first of them 0; where there are fewer frames than labels, several share one.
    """
    labels, frames = scores_LF.shape
    if frames < labels:
        return [i * frames // labels for i in range(labels)]
    best_L = np.full(labels, -np.inf)
    best_L[0] = scores_LF[0, 0]
    moved_FL = np.zeros((frames, labels), bool)
    for frame in range(1, frames):
        before_L = np.concatenate(([-np.inf], best_L[:-1]))
        moved_FL[frame] = before_L > best_L
        best_L = np.maximum(best_L, before_L) + scores_LF[:, frame]
    begins = [0] * labels
    label = labels - 1
    for frame in range(frames - 1, 0, -1):
        if moved_FL[frame, label]:
            begins[label] = frame
            label -= 1
    return begins


class Listener:
    """Hears the attention that decoder heads pay to the encoder's states.

    Args:
        layers: Of a Whisper decoder.
        heads: Layer and head of each that follows time.
    """

    def __init__(self, layers: Any, heads: Sequence[tuple[int, int]]) -> None:
        self._layers, self._heads = layers, list(heads)
        self._heard: dict[int, tuple[Tensor, Tensor]] = {}

    @contextmanager
    def hearing(self) -> Iterator[Listener]:
        """While this lasts, a forward pass of the decoder is heard."""
        hooks = [
            self._layers[layer].encoder_attn.register_forward_pre_hook(self._keeper(layer), with_kwargs=True)
            for layer in sorted({layer for layer, _ in self._heads})
        ]
        try:
            yield self
        finally:
            for hook in hooks:
                hook.remove()

    def scores(self, row: int, tokens: int, frames: int) -> Scores:
        """How much the heads look at each frame while a token is written, on average.

        Args:
            row: Of the batch.
            tokens: Of the row's text with its prompt.
            frames: Of the row's clip.

        Returns:
            (tokens, frames), each frame normalised over the tokens.
        """
        found = []
        for layer, head in self._heads:
            queries, keys = (part[row] for part in self._heard[layer])
            size = self._layers[layer].encoder_attn.head_dim
            own = slice(head * size, (head + 1) * size)
            looks_LF = (queries[:tokens, own] @ keys[:frames, own].T * size**-0.5).softmax(-1)
            found.append((looks_LF - looks_LF.mean(0)) / looks_LF.std(0, correction=0).clamp(min=1e-6))
        return np.asarray(median_filter(torch.stack(found).cpu().numpy(), size=(1, 1, SMOOTHED), mode="reflect").mean(0))

    def _keeper(self, layer: int) -> Any:
        def keep(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            states_BLD = kwargs.get("hidden_states", args[0] if args else None)
            self._heard[layer] = module.q_proj(states_BLD).float(), module.k_proj(kwargs["key_value_states"]).float()

        return keep


def of_pieces(begins: Sequence[int], last: int, pieces: Sequence[str], second: float) -> Times:
    """Begin and end of each word of which the pieces are known.

    Args:
        begins: First frame of each piece.
        last: The frame after the last piece.
        pieces: Their texts; one with a blank before it begins a word, as the first does. A word ends before the punctuation that
            follows it: frames in which nothing is said.
        second: Frames of one.
    """
    firsts = [i for i, piece in enumerate(pieces) if piece.startswith(" ") or i == 0]
    times = []
    for first, end in itertools.pairwise([*firsts, len(pieces)]):
        silent = next((i for i in range(first + 1, end) if all(map(_punctuation, pieces[i:end]))), end)
        times.append((begins[first] / second, [*begins, last][silent] / second))
    return times


def _punctuation(piece: str) -> bool:
    return all(unicodedata.category(c)[0] == "P" for c in piece)


def spread(words: Sequence[str], times: Times) -> Times:
    """Times of each word: as found, or where the pieces are not those of the words, the stretch of the text, dealt out by length.

    Args:
        words: Of the text.
        times: Of whatever was found in it, ascending.
    """
    if not words or not times:
        return []
    if len(times) == len(words):
        return list(times)
    begin, end = times[0][0], times[-1][1]
    edges = np.cumsum([0, *map(len, words)]) / sum(map(len, words)) * (end - begin) + begin
    return [(float(a), float(b)) for a, b in itertools.pairwise(edges)]


def of_labels(logits_FV: Tensor, ids: Sequence[int], words: Sequence[int], blank: int, seconds: Seconds) -> Times:
    """Begin and end of each word of a text in a CTC model's clip.

    Args:
        logits_FV: Scores of each label in each frame of the clip.
        ids: Labels of the text.
        words: The word that each label belongs to, from 0 on; -1 for one between words.
        blank: Of the labels.
        seconds: Duration of the clip.

    Raises:
        InputError: if the frames are too few for the labels.
    """
    if not ids:
        return []
    frames, repeats = len(logits_FV), sum(a == b for a, b in itertools.pairwise(ids))
    if frames < len(ids) + repeats:
        raise InputError("A text is too long to be aligned with its clip.", got=f"{len(ids)} labels", expected=f"{frames} frames hold them")
    log_probs_1FV = nn.functional.log_softmax(logits_FV.float(), -1).cpu()[None]
    found_F = forced_align(log_probs_1FV, torch.tensor([list(ids)], dtype=torch.int32), blank=blank)[0][0].tolist()
    spans: list[list[int]] = []
    for frame, (label, before) in enumerate(zip(found_F, [blank, *found_F], strict=False)):
        if label != blank and label != before:
            spans.append([frame, frame + 1])
        elif label != blank:
            spans[-1][1] = frame + 1
    second = frames / seconds
    own = {word: [span for span, w in zip(spans, words, strict=True) if w == word] for word in sorted({*words} - {-1})}
    return [(parts[0][0] / second, parts[-1][1] / second) for parts in own.values()]
