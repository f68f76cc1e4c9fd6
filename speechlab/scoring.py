"""Word and character errors of a set of utterances.

Policy, in one place:

- A corpus rate is total errors over total reference units, never the mean of utterance rates.
- The alignment is Levenshtein's (every error costs 1), by ``kaldialign``. The total S + D + I is unique; where
  several alignments reach it, the split between them is kaldialign's and may differ from another tool's. NIST
  sclite weighs 4/3/3 and can count an error more on badly garbled utterances.
- An empty reference counts: its words are insertions. If the whole set holds no reference word the rates are
  ``nan`` (jiwer would return the number of insertions, which is not a rate); the counts still stand.
- An empty hypothesis is all deletions.
- CER follows jiwer's convention: characters of the normalised text, the single spaces between words included.
- Raw and normalised rates are two calls of :func:`score` with two normalisers; a result carries its normaliser.

- Utterances are scored in pairs: what to do with missing and extra ones is decided where texts are joined by id
  (:mod:`speechlab.utterances`).

Intervals are :mod:`speechlab.statistics`', comparisons of two systems :mod:`speechlab.comparison`'s.

Not covered: recordings of many minutes (alignment takes words squared of memory), alternations of a reference.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

import kaldialign
import numpy as np
import pandas as pd

from speechlab.errors import InputError
from speechlab.statistics import By, Interval, Ints, ratio_interval
from speechlab.text import Normaliser

Op = Literal["hit", "sub", "del", "ins"]
LETTERS = {"hit": "C", "sub": "S", "del": "D", "ins": "I"}  # as sclite writes an alignment


def align(reference_words: Sequence[str], hypothesis_words: Sequence[str]) -> list[tuple[Op, str, str]]:
    """Align two word sequences with the fewest errors (Levenshtein, 1966; ``kaldialign``).

    Args:
        reference_words: What was said, none of the words empty.
        hypothesis_words: What was recognised, none of the words empty.

    Returns:
        ``(op, reference word, hypothesis word)`` in order; the absent side of a ``del`` or ``ins`` is ``""``.

    Raises:
        InputError: if a word is empty, which would be taken for an absent one.
    """
    if "" in reference_words or "" in hypothesis_words:
        raise InputError("A word to align is empty.", got='""', expected="words as str.split() returns them", do="drop empty words")
    pairs = kaldialign.align(list(reference_words), list(hypothesis_words), "")
    return [("hit" if r == h else "ins" if not r else "del" if not h else "sub", r, h) for r, h in pairs]


@dataclass(frozen=True, eq=False)
class Scores:
    """Counts for each utterance, from which every rate, interval and comparison derives.

    Attributes:
        references: Normalised references (U).
        hypotheses: Normalised hypotheses (U).
        normaliser: Identity of the normaliser: name, version and hash.
        speakers: Speaker of each utterance (U), or None if they are not known.
        operations: Alignment of each utterance (U), a letter a column: C right, S replaced, D missed, I added.
        words_U: Reference words.
        hits_U: Words recognised.
        substitutions_U: Words replaced.
        deletions_U: Reference words missed.
        insertions_U: Hypothesis words that answer to none.
        chars_U: Reference characters, single spaces included.
        char_errors_U: Substituted, deleted and inserted characters.
    """

    references: tuple[str, ...] = field(repr=False)
    hypotheses: tuple[str, ...] = field(repr=False)
    normaliser: str
    speakers: tuple[str, ...] | None = field(repr=False)
    operations: tuple[str, ...] = field(repr=False)
    words_U: Ints = field(repr=False)
    hits_U: Ints = field(repr=False)
    substitutions_U: Ints = field(repr=False)
    deletions_U: Ints = field(repr=False)
    insertions_U: Ints = field(repr=False)
    chars_U: Ints = field(repr=False)
    char_errors_U: Ints = field(repr=False)

    def __len__(self) -> int:
        """Number of utterances."""
        return len(self.references)

    def __str__(self) -> str:
        """One line: ``WER 7.02 % (27 S, 7 D, 12 I; 655 words), CER 3.10 %, english 0.1.15 (…)``."""
        counts = f"{self.substitutions} S, {self.deletions} D, {self.insertions} I; {self.words} words"
        return f"WER {100 * self.wer:.2f} % ({counts}), CER {100 * self.cer:.2f} %, {self.normaliser}"

    @property
    def errors_U(self) -> Ints:
        """Word errors of each utterance: S + D + I."""
        return self.substitutions_U + self.deletions_U + self.insertions_U

    @property
    def words(self) -> int:
        """Reference words in all."""
        return int(self.words_U.sum())

    @property
    def substitutions(self) -> int:
        """Words replaced in all."""
        return int(self.substitutions_U.sum())

    @property
    def deletions(self) -> int:
        """Words missed in all."""
        return int(self.deletions_U.sum())

    @property
    def insertions(self) -> int:
        """Words added in all."""
        return int(self.insertions_U.sum())

    @property
    def errors(self) -> int:
        """Word errors in all: S + D + I."""
        return int(self.errors_U.sum())

    @property
    def wer(self) -> float:
        """Corpus word error rate, a fraction that can exceed 1; ``nan`` if there is no reference word."""
        return self.errors / self.words if self.words else math.nan

    @property
    def cer(self) -> float:
        """Corpus character error rate, likewise; spaces count as characters."""
        chars = int(self.chars_U.sum())
        return int(self.char_errors_U.sum()) / chars if chars else math.nan

    @property
    def mer(self) -> float:
        """Match error rate, errors over aligned columns (Morris et al., 2004); at most 1; ``nan`` if there is no word at all."""
        columns = int(self.hits_U.sum()) + self.errors
        return self.errors / columns if columns else math.nan

    @property
    def wil(self) -> float:
        """Word information lost (Morris et al., 2004); ``nan`` if either side has no word."""
        hits = int(self.hits_U.sum())
        heard = hits + self.substitutions + self.insertions
        return 1 - hits / self.words * hits / heard if self.words and heard else math.nan

    def interval(self, resamples: int = 1000, seed: int = 0, level: float = 0.95, by: By = "utterance") -> Interval:
        """Interval of the corpus WER: see :func:`speechlab.statistics.ratio_interval`.

        Args:
            resamples: How many times the units are drawn anew.
            seed: The same seed gives the same interval.
            level: Nominal coverage, between 0 and 1.
            by: ``utterance`` for a statement about these speakers, ``speaker`` about new ones.

        Raises:
            InputError: if an argument is out of range, or speakers are asked for and were not given to :func:`score`.
        """
        if by == "speaker" and self.speakers is None:
            raise InputError(
                "The speakers are not known.", got="no speakers", expected="one for each utterance", do="pass speakers= to score()"
            )
        how: dict[str, Any] = {"by": by, "resamples": resamples, "seed": seed, "level": level, "least": 0.0}
        return ratio_interval(self.units(self.errors_U, by), self.units(self.words_U, by), **how)

    def units(self, values_U: Ints, by: By) -> Ints:
        """Values summed over utterances or speakers (K); where the speakers are not known, all utterances are one unit."""
        if by != "speaker":
            return values_U
        speakers, index_U = np.unique(np.array(self.speakers or ("",) * len(self)), return_inverse=True)
        sums = np.zeros(len(speakers), np.int64)
        np.add.at(sums, index_U, values_U)
        return sums

    def only(self, chosen: Sequence[int] | Ints) -> Scores:
        """The scores of some of the utterances."""
        at = np.asarray(chosen, np.int64)

        def part(value: Any) -> Any:
            return _frozen(value[at]) if isinstance(value, np.ndarray) else tuple(value[i] for i in at)

        parts = {f.name: part(value) for f in fields(self) if f.name != "normaliser" and (value := getattr(self, f.name)) is not None}
        return replace(self, **parts)

    def table(self) -> pd.DataFrame:
        """One row an utterance: speaker, texts, words, hits, S, D, I, characters and their errors, wer, and the alignment in words."""
        return pd.DataFrame(
            {
                "speaker": self.speakers or ("",) * len(self),
                "reference": self.references,
                "hypothesis": self.hypotheses,
                "words": self.words_U,
                "hits": self.hits_U,
                "substitutions": self.substitutions_U,
                "deletions": self.deletions_U,
                "insertions": self.insertions_U,
                "characters": self.chars_U,
                "character_errors": self.char_errors_U,
                "wer": np.divide(self.errors_U, self.words_U, out=np.full(len(self), np.nan), where=self.words_U > 0),
                "alignment": [worded(r, h, o) for r, h, o in zip(self.references, self.hypotheses, self.operations, strict=True)],
            }
        )


def worded(reference: str, hypothesis: str, operations: str) -> str:
    """An alignment in words: right ones as they are, ``[said > heard]``, ``[said > ]`` for a missed word, ``[ > heard]`` for an added one.

    >>> worded("the cat sat", "the bat sat down", "CSCI")
    'the [cat > bat] sat [ > down]'
    """
    said, heard = iter(reference.split()), iter(hypothesis.split())
    parts = []
    for operation in operations:
        word = next(said) if operation != "I" else ""
        other = next(heard) if operation != "D" else ""
        parts.append(word if operation == "C" else f"[{word} > {other}]")
    return " ".join(parts)


def score(references: Sequence[str], hypotheses: Sequence[str], normaliser: Normaliser, speakers: Sequence[str] | None = None) -> Scores:
    """Count word and character errors of each utterance after normalisation.

    Args:
        references: What was said (U).
        hypotheses: What was recognised, in the same order (U).
        normaliser: Applied to both sides; ``text.normaliser("raw")`` leaves words, case and punctuation.
        speakers: Who spoke (U), for intervals and tests over speakers.

    Returns:
        The counts; see the module's docstring for the policy on empty texts.

    Raises:
        InputError: if there is no utterance, the lengths differ, or an item is not text.
    """
    columns = {"references": _texts("references", references), "hypotheses": _texts("hypotheses", hypotheses)}
    if speakers is not None:
        columns["speakers"] = _texts("speakers", speakers)
    lengths = {name: len(column) for name, column in columns.items()}
    if len(set(lengths.values())) > 1:
        got = ", ".join(f"{n} {name}" for name, n in lengths.items())
        expected = "one of each for every utterance"
        raise InputError("The columns to score differ in length.", got=got, expected=expected, do="join them by id")
    if not columns["references"]:
        raise InputError("There is nothing to score.", got="0 utterances", expected="at least one", do="check the split and its filters")
    refs, hyps = (tuple(map(normaliser, columns[name])) for name in ("references", "hypotheses"))
    ops = [[op for op, _, _ in align(r.split(), h.split())] for r, h in zip(refs, hyps, strict=True)]
    hits, subs, dels, ins = (_frozen([utterance.count(op) for utterance in ops]) for op in ("hit", "sub", "del", "ins"))
    return Scores(
        references=refs,
        hypotheses=hyps,
        normaliser=normaliser.identity,
        speakers=None if speakers is None else tuple(columns["speakers"]),
        operations=tuple("".join(LETTERS[op] for op in utterance) for utterance in ops),
        words_U=_frozen(hits + subs + dels),
        hits_U=hits,
        substitutions_U=subs,
        deletions_U=dels,
        insertions_U=ins,
        chars_U=_frozen([len(r) for r in refs]),
        char_errors_U=_frozen([kaldialign.edit_distance(r, h)["total"] for r, h in zip(refs, hyps, strict=True)]),
    )


def _texts(name: str, column: Sequence[str]) -> list[str]:
    if isinstance(column, str):
        raise InputError(f"The {name} are one text.", got=column, expected="a list of texts, one an utterance", do="put it in a list")
    texts = list(column)
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            do = 'write "" for an empty one' if name == "hypotheses" else "fill it in or leave the utterance out"
            raise InputError(f"Item {i} of the {name} is not text.", got=text if text is not None else "None", expected="a str", do=do)
    return texts


def _frozen(values: Any) -> Ints:
    array = np.asarray(values, np.int64)
    array.flags.writeable = False
    return array
