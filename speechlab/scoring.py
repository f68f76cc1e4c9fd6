"""Word and character errors of a set of utterances, with intervals and tests that know about speakers.

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

Intervals speak either of *these speakers* (utterances are resampled) or of *new speakers* (speakers are).
Where speakers differ, the first is far too narrow as a statement about the second, so each says which it is.

Not covered: verdicts, strata, MAPSSWE, recordings of many minutes (alignment takes words squared of memory).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import kaldialign
import numpy as np
from numpy.typing import NDArray

from speechlab.errors import InputError, did_you_mean
from speechlab.text import Normaliser

Op = Literal["hit", "sub", "del", "ins"]
By = Literal["utterance", "speaker"]
Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

SCOPES = {"utterance": "these speakers", "speaker": "new speakers"}  # what an interval speaks of, by what is resampled
FEW = 20  # below so many resampled units a percentile interval is too narrow
EXACT = 12  # up to so many units all 2^12 sign patterns are enumerated
FLIPS = 10_000  # sign patterns drawn where there are more units
BLOCK = 2**22  # random numbers held at a time (32 MiB as int64)


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


@dataclass(frozen=True)
class Interval:
    """A bootstrap interval and what it speaks of.

    Attributes:
        low: Lower end, in the unit of what it belongs to (a fraction for a rate, points for a difference); ``nan`` if it cannot be had.
        high: Upper end, likewise.
        level: Nominal coverage, such as 0.95.
        by: What was resampled: ``utterance`` or ``speaker``.
        units: How many of them there are.
        warning: Why it is missing or should be read with care; empty if neither.
    """

    low: float
    high: float
    level: float
    by: By
    units: int
    warning: str = ""

    @property
    def scope(self) -> str:
        """Whom it speaks of: ``these speakers`` or ``new speakers``."""
        return SCOPES[self.by]


@dataclass(frozen=True, eq=False)
class Scores:
    """Counts for each utterance, from which every rate, interval and comparison derives.

    Attributes:
        references: Normalised references (U).
        hypotheses: Normalised hypotheses (U).
        normaliser: Identity of the normaliser: name, version and hash.
        speakers: Speaker of each utterance (U), or None if they are not known.
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

    def interval(self, resamples: int = 1000, seed: int = 0, level: float = 0.95, by: By = "utterance") -> Interval:
        """Percentile bootstrap interval of the corpus WER (Bisani & Ney, 2004).

        Args:
            resamples: How many times the units are drawn anew.
            seed: The same seed gives the same interval.
            level: Nominal coverage, between 0 and 1.
            by: ``utterance`` for a statement about these speakers, ``speaker`` about new ones.

        Returns:
            Fractions, or ``nan`` with a warning where one unit alone, or no reference word, leaves nothing to resample.

        Raises:
            InputError: if an argument is out of range, or speakers are asked for and were not given to :func:`score`.
        """
        if by == "speaker" and self.speakers is None:
            raise InputError(
                "The speakers are not known.", got="no speakers", expected="one for each utterance", do="pass speakers= to score()"
            )
        return _interval(self, self.errors_U, 1.0, resamples, seed, level, by)


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


@dataclass(frozen=True)
class Difference:
    """How two systems differ on the same utterances: b minus a, in points of WER (negative: b is better).

    Attributes:
        points: Difference of the corpus WERs times 100.
        interval: Its paired bootstrap interval over utterances, in points: these speakers.
        speaker_interval: The same over speakers: new speakers; ``nan`` and a warning where it cannot be had.
        p: Two-sided p-value of a sign-flip permutation test.
        p_by: What the signs were flipped over; ``utterance`` only where there are not two speakers.
        p_exact: Whether every sign pattern was enumerated, rather than drawn.
        p_warning: What limits the p-value; empty if nothing does.
    """

    points: float
    interval: Interval
    speaker_interval: Interval
    p: float
    p_by: By
    p_exact: bool
    p_warning: str = ""

    @property
    def low(self) -> float:
        """Lower end of :attr:`interval`, in points."""
        return self.interval.low

    @property
    def high(self) -> float:
        """Upper end of :attr:`interval`, in points."""
        return self.interval.high

    def __str__(self) -> str:
        """One line: ``-4.35 points [-5.9, -2.9] (these speakers), p = 0.002 by speaker``."""
        return f"{self.points:+.2f} points [{self.low:+.2f}, {self.high:+.2f}] ({self.interval.scope}), p = {self.p:.3g} by {self.p_by}"


def compare(a: Scores, b: Scores, resamples: int = 1000, seed: int = 0, level: float = 0.95) -> Difference:
    """Paired difference of two systems' corpus WER, b minus a.

    Both are drawn with the same units in each resample, so what makes an utterance hard for both cancels. The
    p-value flips, speaker by speaker, which system is called a: it keeps its 5 % of false alarms where the difference
    varies between speakers, and a paired t-test or MAPSSWE over utterances was measured to raise 22 %.

    Args:
        a: The system compared against.
        b: The system in question, scored on the same utterances in the same order with the same normaliser.
        resamples: Bootstrap resamples.
        seed: Of the resamples and of drawn sign patterns.
        level: Nominal coverage of the intervals.

    Raises:
        InputError: if normaliser, references or speakers of the two are not the same (the first difference is shown),
            or an argument is out of range.
    """
    if a.normaliser != b.normaliser:
        got = f"{a.normaliser} and {b.normaliser}"
        raise InputError("Two normalisers cannot be compared.", got=got, expected="the same", do="score both with one")
    _same("reference", a.references, b.references)
    _same("speaker", a.speakers or (), b.speakers or ())
    errors_U = b.errors_U - a.errors_U
    by: By = "speaker" if len(set(a.speakers or ())) > 1 else "utterance"
    differences = _units(a, errors_U, by)
    p, exact = _sign_flip(differences, seed)
    warnings = []
    if by == "utterance":
        known = "there is one speaker" if a.speakers else "the speakers are not known"
        warnings.append(f"{known}, so a test over speakers cannot be had: p takes utterances as independent, and speaks of these speakers")
    if (least := 2.0 ** (1 - len(differences))) > 0.01:
        warnings.append(f"with {len(differences)} {by}s p cannot fall below {least:.3g}")
    return Difference(
        points=100 * (b.wer - a.wer),
        interval=_interval(a, errors_U, 100.0, resamples, seed, level, "utterance"),
        speaker_interval=_interval(a, errors_U, 100.0, resamples, seed, level, "speaker"),
        p=p,
        p_by=by,
        p_exact=exact,
        p_warning="; ".join(warnings),
    )


def _same(what: str, a: Sequence[str], b: Sequence[str]) -> None:
    for i, (in_a, in_b) in enumerate(itertools.zip_longest(a, b)):
        if in_a != in_b:
            raise InputError(
                f"The two systems were not scored on the same utterances: the {what} of utterance {i} differs.",
                got=f"{in_a!r} in a, {in_b!r} in b",
                expected=f"the same {what}s in the same order",
                do="join the two by id before scoring",
            )


def _units(scores: Scores, values_U: Ints, by: By) -> Ints:
    """Values summed over each resampled unit; with unknown speakers all utterances are one unit."""
    if by == "utterance":
        return values_U
    speakers, index_U = np.unique(np.array(scores.speakers or ("",) * len(scores)), return_inverse=True)
    sums = np.zeros(len(speakers), np.int64)
    np.add.at(sums, index_U, values_U)
    return sums


def _interval(scores: Scores, errors_U: Ints, scale: float, resamples: int, seed: int, level: float, by: By) -> Interval:
    """Percentile bootstrap of ``scale * sum(errors) / sum(words)`` over units."""
    if by not in SCOPES:
        raise InputError("Unknown unit to resample.", got=by, expected="utterance or speaker", do=did_you_mean(str(by), SCOPES))
    if resamples < 1 or not 0 < level < 1:
        got, expected = f"resamples={resamples}, level={level}", "resamples >= 1, 0 < level < 1"
        raise InputError("No interval can be drawn like this.", got=got, expected=expected, do="for example 1000 and 0.95")
    errors, words = _units(scores, errors_U, by), _units(scores, scores.words_U, by)
    units = len(words)
    if scores.words == 0:
        return Interval(math.nan, math.nan, level, by, units, "there is no reference word, so there is no rate")
    if units == 1:
        known = f"there is one {by}" if by == "utterance" or scores.speakers else "the speakers are not known"
        return Interval(math.nan, math.nan, level, by, units, f"{known}: how much {by}s differ, and so this interval, cannot be had")
    tail = (1 - level) / 2
    low, high = np.nanquantile(scale * _resampled(errors, words, resamples, seed), [tail, 1 - tail])
    warning = f"only {units} {by}s: the interval is too narrow under {FEW}" if units < FEW else ""
    return Interval(float(low), float(high), level, by, units, warning)


def _resampled(errors: Ints, words: Ints, resamples: int, seed: int) -> Floats:
    """Ratios of sums (R) over units drawn with replacement; ``nan`` where no reference word was drawn."""
    rng = np.random.default_rng(seed)
    units = len(words)
    totals = []
    for start in range(0, resamples, step := max(1, BLOCK // units)):
        drawn = rng.integers(0, units, (min(step, resamples - start), units))
        totals.append((errors[drawn].sum(1), words[drawn].sum(1)))
    errors_R, words_R = (np.concatenate(part) for part in zip(*totals, strict=True))
    rates_R: Floats = np.divide(errors_R, words_R, out=np.full(resamples, np.nan), where=words_R > 0)
    return rates_R


def _sign_flip(differences: Ints, seed: int) -> tuple[float, bool]:
    """Two-sided p of ``|sum of ± differences|`` reaching the observed one, and whether it is exact.

    Units that do not differ are left out: their sign changes nothing. Drawn patterns count the observed one
    (Phipson & Smyth, 2010), so p is never 0.
    """
    moved = differences[differences != 0]
    observed = abs(int(moved.sum()))
    if len(moved) <= EXACT:
        patterns = np.array(list(itertools.product((-1, 1), repeat=len(moved))), np.int64).reshape(2 ** len(moved), len(moved))
        return float(np.mean(np.abs(patterns @ moved) >= observed)), True
    rng = np.random.default_rng(seed)
    reached = 0
    for start in range(0, FLIPS, step := max(1, BLOCK // len(moved))):
        flipped = rng.random((min(step, FLIPS - start), len(moved)), np.float32) < 0.5
        reached += int(np.sum(np.abs(moved.sum() - 2 * (flipped @ moved)) >= observed))
    return (1 + reached) / (1 + FLIPS), False
