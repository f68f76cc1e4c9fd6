"""What CTC models share: a vocabulary, the loss over clips that can be aligned, and greedy decoding.

The loss is Graves et al. (2006). A text of n labels, r of them equal to the one before, needs n + r frames; where there
are fewer its loss is infinite, so such a clip is left out of the sum and named (``zero_infinity`` would hide it).

Not covered: beam search and language models (:mod:`speechlab.models.beam`).
"""

from __future__ import annotations

import io
import itertools
import json
import math
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from speechlab.config import VocabularyConfig
from speechlab.errors import InputError
from speechlab.models import Hypothesis, Loss, timing
from speechlab.units import Seconds

LogProbs = NDArray[np.floating[Any]]  # (F, V), natural logarithms
Searcher = Callable[[LogProbs], tuple[str, float]]  # a clip's log-probabilities to its transcript and how sure it is

BLANK = 0  # of vocabularies made here
DELIMITER = "|"  # between words, as in the vocabularies of Wav2Vec2
BLANKS, UNKNOWNS = ("<pad>", "[PAD]"), ("<unk>", "[UNK]")  # Meta's spelling and the one of Hugging Face's recipe
SPECIAL = {*BLANKS, *UNKNOWNS, "<s>", "</s>"}  # labels that are no text


def spoken(text: str) -> str:
    """A transcript as a CTC model writes it: lower case, letters, marks, digits and apostrophes, single spaces.

    Characters of format, such as soft hyphens and joiners, stand within words and go without leaving a space.

    >>> spoken("Don\u2019t \u2014 press 1, please!")
    "don't press 1 please"
    """
    text = "".join(c for c in text if unicodedata.category(c) != "Cf").lower().replace("\u2019", "'")
    text = unicodedata.normalize("NFC", text)  # last, since lower() takes some letters apart
    kept = (c if c == "'" or unicodedata.category(c)[0] in "LMN" else " " for c in text)
    words = (word.strip("'") for word in "".join(kept).split())
    return " ".join(word for word in words if word)


class Vocabulary:
    """Labels of a CTC model: characters, or pieces of words by sentencepiece.

    Args:
        folder: Holds ``tokenizer.model`` (sentencepiece, whose padding piece is the blank) or ``vocab.json`` (as of
            ``Wav2Vec2CTCTokenizer``, whose padding token is the blank).

    Raises:
        InputError: if it holds neither, or one that cannot be used.

    Attributes:
        blank: Id of the blank.
    """

    def __init__(self, folder: str | Path) -> None:
        folder = Path(folder)
        self._pieces: Any = None
        self._ids: dict[str, int] = {}
        try:
            if (folder / "tokenizer.model").is_file():
                import sentencepiece

                self._pieces = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
                self.blank = int(self._pieces.pad_id())
            else:
                self._ids = {str(k): int(v) for k, v in json.loads((folder / "vocab.json").read_text("utf-8")).items()}
                self.blank = next(self._ids[label] for label in BLANKS if label in self._ids)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, StopIteration) as e:
            raise InputError(
                "The folder holds no vocabulary of a CTC model.",
                got=f"{folder}: {type(e).__name__}: {e}",
                expected="vocab.json with <pad>, or a sentencepiece tokenizer.model",
                do="name weights that were trained on transcripts, or let training make one",
            ) from None
        self._labels = {i: label for label, i in self._ids.items()}
        self._upper = "".join(label for label in self._ids if len(label) == 1).isupper()  # as Meta's English ones are

    def __len__(self) -> int:
        return self._pieces.vocab_size() if self._pieces else max(self._ids.values()) + 1

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Label ids of transcripts; a character that the vocabulary does not have is its unknown label."""
        said = [spoken(text) for text in texts]
        if self._pieces:
            ids: list[list[int]] = self._pieces.encode(said)
            return ids
        unknown = next((self._ids[label] for label in UNKNOWNS if label in self._ids), None)
        rows = [[self._ids.get(c, unknown) for c in (t.upper() if self._upper else t).replace(" ", DELIMITER)] for t in said]
        return [[i for i in row if i is not None] for row in rows]

    def count(self, texts: Sequence[str]) -> list[int]:
        """Labels of each transcript."""
        return [len(ids) for ids in self.encode(texts)]

    def begins_word(self, label: int) -> bool:
        """Whether a label is where a new word begins: a piece with its blank, or the delimiter before."""
        return str(self._pieces.id_to_piece(label)).startswith("\u2581") if self._pieces else self._labels.get(label) == DELIMITER

    def decode(self, ids: Sequence[int]) -> str:
        """The text of label ids, blanks and special labels left out."""
        if self._pieces:
            p = self._pieces
            return str(p.decode([i for i in ids if i != self.blank and not p.is_control(i) and not p.is_unknown(i)]))
        labels = (self._labels.get(i, "") for i in ids if i != self.blank)
        text = "".join(" " if label == DELIMITER else label for label in labels if label not in SPECIAL)
        return " ".join((text.lower() if self._upper else text).split())

    def save(self, folder: Path) -> None:
        """Write the file that it was read from."""
        if self._pieces:
            (folder / "tokenizer.model").write_bytes(self._pieces.serialized_model_proto())
        else:
            (folder / "vocab.json").write_text(json.dumps(self._ids, ensure_ascii=False, indent=1), "utf-8")


def has_vocabulary(folder: Path) -> bool:
    """Whether a folder holds one."""
    return any((folder / name).is_file() for name in ("vocab.json", "tokenizer.model"))


def make_vocabulary(config: VocabularyConfig, texts: Sequence[str], folder: Path) -> Vocabulary:
    """Make a vocabulary from transcripts and write it into a folder.

    Args:
        config: Characters, or bpe and how many pieces.
        texts: Training transcripts.
        folder: Gets vocab.json or tokenizer.model.

    Raises:
        InputError: if the transcripts are empty, or do not give so many pieces.
    """
    said = sorted({spoken(text) for text in texts} - {""})  # in whatever order and however often they come
    if not said:
        raise InputError("There are no transcripts to make a vocabulary from.", got=f"{len(texts)} clips", expected="texts with letters")
    if config.kind == "characters":
        characters = sorted(Counter("".join(said).replace(" ", "")))
        labels = ["<pad>", "<s>", "</s>", "<unk>", DELIMITER, *characters]  # as Wav2Vec2CTCTokenizer has them
        (folder / "vocab.json").write_text(json.dumps({label: i for i, label in enumerate(labels)}, ensure_ascii=False, indent=1), "utf-8")
        return Vocabulary(folder)
    import sentencepiece

    model = io.BytesIO()  # a path would become a part of it
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(said),
            model_writer=model,
            model_type="bpe",
            vocab_size=config.size,
            character_coverage=1.0,
            normalization_rule_name="identity",  # spoken() has done it
            pad_id=BLANK,
            unk_id=1,
            bos_id=-1,
            eos_id=-1,
            num_threads=1,  # equal texts give equal pieces
            minloglevel=2,
        )
    except RuntimeError as e:
        raise InputError(
            "The transcripts do not give that many pieces.",
            got=f"model.vocabulary.size {config.size}: {str(e).rsplit('] ', 1)[-1][:200]}",  # names the bound that is crossed
            expected="at least one piece a character, at most as many as the text has",
            do="change model.vocabulary.size, or set model.vocabulary.kind to characters",
        ) from None
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    return Vocabulary(folder)


def frames_needed(labels: Sequence[int]) -> int:
    """Frames that CTC needs for a text: one a label, and a blank between equal neighbours."""
    return len(labels) + sum(a == b for a, b in itertools.pairwise(labels))


def loss(logits_BFV: Tensor, frames: Sequence[int], labels: Sequence[Sequence[int]], blank: int = BLANK) -> Loss:
    """CTC loss, summed over the clips that can be aligned.

    Args:
        logits_BFV: Scores before softmax.
        frames: B counts of frames that are not padding.
        labels: B lists of label ids.
        blank: Id of the blank.

    Returns:
        The sum in nats, the number of labels in it, and the clips left out.
    """
    infeasible = tuple(i for i, row in enumerate(labels) if frames_needed(row) > frames[i])
    kept = [i for i in range(len(labels)) if i not in infeasible]
    if not kept:
        return Loss(logits_BFV.sum() * 0.0, 0, infeasible)
    log_probs_FBV = logits_BFV[kept].float().log_softmax(-1).transpose(0, 1)
    targets = torch.tensor([label for i in kept for label in labels[i]], dtype=torch.long)
    counts = torch.tensor([len(labels[i]) for i in kept])
    total = torch.nn.functional.ctc_loss(
        log_probs_FBV, targets.to(logits_BFV.device), torch.tensor([frames[i] for i in kept]), counts, blank=blank, reduction="sum"
    )
    return Loss(total, int(counts.sum()), infeasible)


def greedy(logits_BFV: Tensor, frames: Sequence[int], blank: int = BLANK) -> list[list[int]]:
    """The best label of each frame, repeats collapsed first, then blanks taken out, so that double letters stay."""
    best_BF = logits_BFV.argmax(-1).cpu()
    rows = [torch.unique_consecutive(row[:count]).tolist() for row, count in zip(best_BF, frames, strict=True)]
    return [[i for i in row if i != blank] for row in rows]


def transcripts(
    logits_BFV: Tensor, frames: Sequence[int], seconds: Sequence[Seconds], vocabulary: Vocabulary, search: Searcher | None = None
) -> list[Hypothesis]:
    """What a model heard, from its scores.

    Args:
        logits_BFV: Scores before softmax.
        frames: B counts of frames that are not padding.
        seconds: B durations.
        vocabulary: Of the model.
        search: Finds the transcript; None is greedy.

    Returns:
        One hypothesis a clip. The confidence of a word is the product over its labels of the highest probability that each
        has in its frames; after a search all words have the transcript's.
    """
    log_probs_BFV = logits_BFV.float().log_softmax(-1)
    if search:
        sought = [search(log_probs_FV[:count].cpu().numpy()) for log_probs_FV, count in zip(log_probs_BFV, frames, strict=True)]
        return [Hypothesis(text, True, s, (sure,) * len(text.split())) for (text, sure), s in zip(sought, seconds, strict=True)]
    nats_BF, best_BF = (part.cpu() for part in log_probs_BFV.max(-1))  # on the device: a thirtieth of the scores leaves it, or less
    found = []
    for nats_F, best_F, count, duration in zip(nats_BF, best_BF, frames, seconds, strict=True):
        ids, confidences = _greedy(best_F[:count].tolist(), nats_F[:count].tolist(), vocabulary)
        text = vocabulary.decode(ids)
        if len(confidences) != len(text.split()):  # labels that are no text
            confidences = [math.prod(confidences) ** (1 / max(1, len(confidences)))] * len(text.split())
        found.append(Hypothesis(text, True, duration, tuple(confidences)))
    return found


def times(
    logits_BFV: Tensor, frames: Sequence[int], seconds: Sequence[Seconds], vocabulary: Vocabulary, texts: Sequence[str]
) -> list[timing.Times]:
    """When each word of each text was said: see :func:`speechlab.models.timing.of_labels`.

    Args:
        logits_BFV: Scores before softmax.
        frames: B counts of frames that are not padding.
        seconds: B durations.
        vocabulary: Of the model.
        texts: As the model writes them.

    Raises:
        InputError: if a text is too long for its clip.
    """
    found = []
    for logits_FV, count, duration, text, ids in zip(logits_BFV, frames, seconds, texts, vocabulary.encode(texts), strict=True):
        word, inside, places = -1, False, []
        for label in ids:
            if vocabulary.begins_word(label):
                inside = False
                if not vocabulary.decode([label]).strip():  # a delimiter alone
                    places.append(-1)
                    continue
            word, inside = word + (not inside), True
            places.append(word)
        own = timing.of_labels(logits_FV[:count], ids, places, vocabulary.blank, duration)
        found.append(timing.spread(text.split(), own))
    return found


def _greedy(best: Sequence[int], nats: Sequence[float], vocabulary: Vocabulary) -> tuple[list[int], list[float]]:
    """Labels and how sure each word is, of the best label of each frame and its log-probability."""
    ids: list[int] = []
    words: list[float] = []
    inside = False
    for label, run in itertools.groupby(zip(best, nats, strict=True), key=lambda frame: frame[0]):
        if label == vocabulary.blank:
            continue
        ids.append(label)
        surest = max(value for _, value in run)
        if vocabulary.begins_word(label):
            inside = False
            if not vocabulary.decode([label]).strip():  # a delimiter alone
                continue
        if not inside:
            words.append(0.0)
        words[-1] += surest
        inside = True
    return ids, [math.exp(value) for value in words]
