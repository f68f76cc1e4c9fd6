"""Beam search over what a CTC model wrote, with an n-gram language model (flashlight's decoders; Kahn et al., 2022).

What is looked for is the transcript W with the highest ``log P_ctc(W) + lm_weight * log10 P_lm(W) + word_score * words``, where P_ctc
sums over all alignments that are in the beam (flashlight's log-add, not its maximum) and the logarithm of the language model is
to base 10, as KenLM gives it, so that weights published for torchaudio or fairseq mean the same here. With a beam of 1 and no
language model that is the greedy transcript, except where a frame's two likeliest labels are exactly equal.

With a lexicon the model knows words, and nothing but words it knows is written. Without one it knows the labels of the CTC
model, and any word can be written. A word's spelling ends with the delimiter, for which the end of a clip counts as well: else
flashlight drops the last word of a model that writes none there.

Where labels are pieces of words there is no delimiter, and flashlight's lexicon then lets a word's last piece last one frame only.
So frames in a row whose likeliest label is the same piece are first made one (:func:`merged`), which costs alignments that change
the label between them. And twice the same piece at a word's end needs no blank between. Without a lexicon nothing is bent.

Not covered: word times; language models of words over an open vocabulary; neural ones; a word score without a lexicon, which
flashlight does not have. Shapes as in :mod:`speechlab.units`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from speechlab import ngram
from speechlab.errors import InputError
from speechlab.models import ctc
from speechlab.models.ctc import LogProbs
from speechlab.ngram import Ngram

NEVER = -1e4  # nats, of what cannot be: finite, since infinities less one another are no number
LABELS = 64  # of a frame, the likeliest, that a search looks at: all characters of an alphabet, and of pieces enough
UNKNOWN = "<unk>"


@dataclass(frozen=True)
class Search:
    """How a beam search weighs and prunes.

    Attributes:
        beam: Hypotheses kept after each frame.
        lm_weight: Of the language model's logarithms to base 10.
        word_score: Added for each word, in nats; only with a lexicon.
        threshold: Nats behind the best at which a hypothesis is dropped.

    Raises:
        InputError: if a number is out of range.
    """

    beam: int = 50
    lm_weight: float = 2.0
    word_score: float = 0.0
    threshold: float = 25.0

    def __post_init__(self) -> None:
        finite = all(map(math.isfinite, (self.lm_weight, self.word_score, self.threshold)))
        if self.beam < 1 or not finite or self.lm_weight < 0 or self.threshold <= 0:
            raise InputError(
                "The beam search cannot be set like this.",
                got=f"beam {self.beam}, lm_weight {self.lm_weight:g}, word_score {self.word_score:g}, threshold {self.threshold:g}",
                expected="beam at least 1, lm_weight at least 0, threshold above 0, all of them numbers",
                do="for example beam 50, lm_weight 2, word_score 0, threshold 25",
            )


@dataclass(frozen=True)
class Heard:
    """What a beam search found in a clip.

    Attributes:
        words: Of the transcript, as the CTC model writes them.
        confidence: Its share of the probability of all transcripts left in the beam, by the searched-for score: 1 where none
            else is left. Comparable between clips of one search, not between searches.
        score: As in the module's docstring; nats.
    """

    words: tuple[str, ...]
    confidence: float
    score: float

    @property
    def text(self) -> str:
        """The words with single spaces."""
        return " ".join(self.words)


def sentences(texts: Sequence[str], vocabulary: ctc.Vocabulary | None = None) -> list[str]:
    """Texts as :func:`speechlab.ngram.train` counts them.

    Args:
        texts: Transcripts, as written.
        vocabulary: Gives its labels, for a search without lexicon; None gives words, for one with.
    """
    if vocabulary is None:
        return [ctc.spoken(text) for text in texts]
    names = _names(vocabulary)
    return [" ".join(names[i] for i in ids) for ids in vocabulary.encode(texts)]


def log_probs(logits_BFV: Tensor, frames: Sequence[int]) -> list[LogProbs]:
    """What :meth:`Beam.decode` takes of a batch.

    Args:
        logits_BFV: Scores before softmax.
        frames: B counts of frames that are not padding.

    Returns:
        B arrays (F, V), float32, natural logarithms.
    """
    log_probs_BFV = logits_BFV.float().log_softmax(-1).cpu().numpy()
    return [log_probs_FV[:count] for log_probs_FV, count in zip(log_probs_BFV, frames, strict=True)]


def merged(log_probs_FV: LogProbs, blank: int) -> LogProbs:
    """Frames in a row whose likeliest label is the same, and not the blank, made one.

    Args:
        log_probs_FV: Natural logarithms.
        blank: Id of the blank.

    Returns:
        Fewer frames, in which the probability of a label is that of being all that is said in the frames that were made one.
    """
    if not len(log_probs_FV):
        return log_probs_FV
    best_F = log_probs_FV.argmax(1)
    changes = np.flatnonzero((best_F[1:] != best_F[:-1]) | (best_F[1:] == blank)) + 1
    rows = []
    for run_FV in np.split(log_probs_FV.astype(np.float64), changes):
        nothing, saying_V, said_V = 0.0, *np.full((2, run_FV.shape[1]), -np.inf)
        for row_V in run_FV:
            said_V = np.logaddexp(said_V, saying_V) + row_V[blank]
            saying_V = np.logaddexp(saying_V, nothing) + row_V
            nothing += row_V[blank]
        row_V = np.logaddexp(saying_V, said_V)
        row_V[blank] = nothing
        rows.append(row_V)
    return np.array(rows, np.float32)


class Beam:
    """A language model in memory, and a CTC vocabulary's way into it; good for any number of clips and weights.

    Args:
        vocabulary: Of the CTC model.
        model: Of words with a lexicon, of the vocabulary's labels (:func:`sentences`) without; None for none, without a lexicon.
        lexicon: Whether only words of the language model can be written.

    Raises:
        InputError: if the file cannot be used, or model and vocabulary have nothing in common.

    Attributes:
        left_out: Words of the language model that the vocabulary cannot spell.
    """

    def __init__(self, vocabulary: ctc.Vocabulary, model: Ngram | None, lexicon: bool = True) -> None:
        from flashlight.lib.text.decoder import ZeroLM  # type: ignore[import-untyped]

        self.vocabulary = vocabulary
        self.left_out: tuple[str, ...] = ()
        self._delimiter = _delimiter(vocabulary)
        self._trie: Any = None
        if lexicon:
            if model is None or not model.words:
                raise InputError(
                    "A lexicon needs words.",
                    got=f"{model.path}, of which no words are known" if model else "no language model",
                    expected="an ARPA file, or a binary with its words",
                    do="give the words of a binary to ngram.read, or search without a lexicon",
                )
            self._spell(model)
        elif model is None:
            self._lm = ZeroLM()
        else:
            names = _names(vocabulary)
            if model.words and not set(names) & set(model.words) - {UNKNOWN}:
                raise _strangers(model, ", ".join(names[:5]), "an n-gram model of the labels")
            self._lm, _ = ngram.kenlm(model, names)

    def decode(self, log_probs_FV: LogProbs, search: Search) -> Heard:
        """Search one clip.

        Args:
            log_probs_FV: Of each label in each frame, natural logarithms, of any floating type; labels behind the vocabulary's
                are not looked at.
            search: Weights and limits.

        Raises:
            InputError: if the array is of another vocabulary or holds NaN, or a word score is set without a lexicon.
        """
        labels, holes = log_probs_FV.shape[1], int(np.isnan(log_probs_FV).sum())
        if labels < len(self.vocabulary) or holes:
            expected = f"{len(self.vocabulary)} labels, and numbers"
            raise InputError("These are not log-probabilities of this vocabulary.", got=f"{labels} labels, {holes} NaN", expected=expected)
        if not self.spells and search.word_score:
            raise InputError(
                "Without a lexicon there is no word score.", got=f"word_score {search.word_score:g}", expected="word_score 0",
                do="search with a lexicon, or leave it out",
            )  # fmt: skip
        found = self._free(log_probs_FV, search) if not self.spells else self._known(log_probs_FV, search)
        scores = np.array([result.score for result in found])
        return Heard(self._words(found[0]), float(1 / np.exp(scores - scores[0]).sum()), float(scores[0]))

    @property
    def spells(self) -> bool:
        """Whether there is a lexicon, so that words are counted and a word score can be set."""
        return self._trie is not None

    # -- inside ---------------------------------------------------------------------------------

    def _spell(self, model: Ngram) -> None:
        """Put the words of a model into a trie of their labels."""
        from flashlight.lib.text.decoder import SmearingMode, Trie

        rows = self.vocabulary.encode(model.words)
        known = [
            (word, ids)
            for word, ids in zip(model.words, rows, strict=True)
            if ids and self.vocabulary.decode(ids).replace(" ", "") == ctc.spoken(word).replace(" ", "")
        ]
        if not known:
            raise _strangers(model, ", ".join(model.words[:5]), "words that the labels can spell")
        self._written = [tuple(ctc.spoken(word).split()) for word, _ in known]
        spelt = {word for word, _ in known}
        self.left_out = tuple(word for word in model.words if word not in spelt)
        self._lm, _ = ngram.kenlm(model, [*(word for word, _ in known), UNKNOWN])
        self._trie = Trie(len(self.vocabulary) + 1, self._silence)
        start = self._lm.start(False)
        end = [] if self._delimiter is None else [self._delimiter]
        for place, (_, ids) in enumerate(known):
            self._trie.insert([*ids, *end], place, self._lm.score(start, place)[1])
        self._trie.smear(SmearingMode.MAX)

    @property
    def _silence(self) -> int:
        """What may stand between words: the delimiter, or where there is none a label of its own that is never said."""
        return len(self.vocabulary) if self._delimiter is None else self._delimiter

    def _known(self, log_probs_FV: LogProbs, search: Search) -> Any:
        from flashlight.lib.text.decoder import CriterionType, LexiconDecoder, LexiconDecoderOptions

        if self._delimiter is None:
            log_probs_FV = merged(log_probs_FV, self.vocabulary.blank)
        frames, size = len(log_probs_FV), len(self.vocabulary)
        padded_FV = np.full((frames + 1, size + 1), NEVER, np.float32)
        padded_FV[:frames, :size] = _floored(log_probs_FV[:, :size])
        if self._delimiter is not None:
            padded_FV[frames, self._delimiter] = 0.0  # the end of the clip ends a word
            frames += 1
        options = LexiconDecoderOptions(
            search.beam, LABELS, search.threshold, search.lm_weight, search.word_score, -math.inf, 0.0, True, CriterionType.CTC
        )
        decoder = LexiconDecoder(options, self._trie, self._lm, self._silence, self.vocabulary.blank, len(self._written), [], False)
        return decoder.decode(padded_FV.ctypes.data, frames, size + 1)

    def _free(self, log_probs_FV: LogProbs, search: Search) -> Any:
        from flashlight.lib.text.decoder import CriterionType, LexiconFreeDecoder, LexiconFreeDecoderOptions

        size = len(self.vocabulary)
        own_FV = _floored(log_probs_FV[:, :size])
        weight = search.lm_weight
        options = LexiconFreeDecoderOptions(search.beam, LABELS, search.threshold, weight, 0.0, True, CriterionType.CTC)
        blank = self.vocabulary.blank
        return LexiconFreeDecoder(options, self._lm, blank, blank, []).decode(own_FV.ctypes.data, len(own_FV), size)

    def _words(self, result: Any) -> tuple[str, ...]:
        if self.spells:
            return tuple(itertools.chain.from_iterable(self._written[i] for i in result.words if i >= 0))
        path = (label for label, _ in itertools.groupby(result.tokens))
        return tuple(self.vocabulary.decode([i for i in path if i != self.vocabulary.blank]).split())


def _floored(log_probs_FV: LogProbs) -> NDArray[np.float32]:
    return np.ascontiguousarray(np.maximum(log_probs_FV, NEVER), dtype=np.float32)


def _strangers(model: Ngram, got: str, expected: str) -> InputError:
    return InputError(
        "The language model and the CTC model have nothing in common.",
        got=f"{model.path}: {got} …",
        expected=expected,
        do="count one from texts, with beam.sentences",
    )


def _names(vocabulary: ctc.Vocabulary) -> list[str]:
    """What a language model of labels calls each: as it is written, in lower case; what is no text by a name no text has."""
    if vocabulary._pieces:
        p = vocabulary._pieces
        special = [p.is_control(i) or p.is_unknown(i) for i in range(len(vocabulary))]
        return [f"<label {i}>" if special[i] else p.id_to_piece(i) for i in range(len(vocabulary))]
    labels = (vocabulary._labels.get(i, "<s>") for i in range(len(vocabulary)))
    return [f"<label {i}>" if label in ctc.SPECIAL else label.lower() if vocabulary._upper else label for i, label in enumerate(labels)]


def _delimiter(vocabulary: ctc.Vocabulary) -> int | None:
    return vocabulary._ids.get(ctc.DELIMITER)
