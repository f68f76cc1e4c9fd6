"""How well a recogniser's confidence tells its right words from its wrong ones, and what rejecting the least sure would gain.

Dimensions: W recognised words, as normalised; U utterances.

Notable:

- A word is right if the alignment behind the WER says so. Words that were missed have no confidence and take no part.
- Confidences belong to words as they were written, the alignment to normalised ones. Where normalising each word alone gives
  the normalised whole, a word hands its confidence to what became of it; where it does not ("twenty one" becomes "21"), all
  words of that utterance get the mean, and the share of such utterances is told.
- Calibration (ECE, Brier, NCE) asks whether 0.8 means right in 80 %; AUROC and the rejection curve ask only whether the order
  is good. A system can have either without the other.
- Words of one utterance are not independent: intervals over words are too narrow rather than too wide.

Not covered: making confidences better (temperature, isotonic regression); confidence in what was missed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import pandas as pd
import scipy.stats  # type: ignore[import-untyped]
from numpy.typing import NDArray

from speechlab.errors import InputError, did_you_mean
from speechlab.scoring import Scores, score
from speechlab.statistics import Floats, Ints
from speechlab.text import Normaliser

Bools = NDArray[np.bool_]
Equal = Literal["mass", "width"]

BINS = 10
LEAST = 1e-7  # sclite keeps confidences this far from 0 and 1 in its cross entropy, for log 0 is infinite
POINTS = 101  # of a rejection curve: a per cent each, where there are utterances enough


@dataclass(frozen=True, eq=False)
class Judged:
    """Every recognised word with its confidence and whether it is right.

    Attributes:
        scores: Of the utterances.
        confidence_W: Of each normalised recognised word, utterance by utterance.
        right_W: Whether the alignment calls it a hit.
        confidence_U: Of each utterance: geometric mean over its words as they were written, ``nan`` where there are none.
        averaged_U: Whether its words got the mean, because normalising changed words across their borders.
    """

    scores: Scores
    confidence_W: Floats = field(repr=False)
    right_W: Bools = field(repr=False)
    confidence_U: Floats = field(repr=False)
    averaged_U: Bools = field(repr=False)


def judged(
    references: Sequence[str],
    hypotheses: Sequence[str],
    confidences: Sequence[Sequence[float]],
    normaliser: Normaliser,
    speakers: Sequence[str] | None = None,
) -> Judged:
    """Set confidences against what is right.

    Args:
        references: What was said (U).
        hypotheses: What was recognised, as the recogniser wrote it (U).
        confidences: Of each utterance a number in [0, 1] for each word of ``hypothesis.split()`` (U).
        normaliser: Applied to both texts.
        speakers: Who spoke (U).

    Raises:
        InputError: as for :func:`speechlab.scoring.score`, or if confidences and words differ in number or a confidence is
            not in [0, 1].
    """
    scores = score(references, hypotheses, normaliser, speakers)
    if len(confidences) != len(scores):
        got = f"{len(scores)} hypotheses, confidences of {len(confidences)}"
        raise InputError("The columns to judge differ in length.", got=got, expected="the same", do="join them by id")
    words: list[float] = []
    averaged = []
    for i, (text, values) in enumerate(zip(hypotheses, confidences, strict=True)):
        _check(i, text, values)
        inherited, exact = handed_on(text, values, normaliser)
        words += inherited
        averaged.append(not exact)
    with np.errstate(divide="ignore"):  # a confidence of 0 makes the mean 0
        means = [np.exp(np.mean(np.log(np.asarray(v, float)))) if len(v) else np.nan for v in confidences]
    right = [letter == "C" for operations in scores.operations for letter in operations if letter != "D"]
    assert len(words) == len(right), "a confidence for each recognised word"
    return Judged(scores, np.array(words, float), np.array(right, bool), np.array(means), np.array(averaged, bool))


def _check(i: int, text: str, values: Sequence[float]) -> None:
    words = text.split()
    if len(words) != len(values):
        raise InputError(
            f"Utterance {i} has not as many confidences as words.",
            got=f"{len(values)} for {len(words)} words",
            expected="one for each word of hypothesis.split()",
            do="give the hypothesis as the recogniser wrote it, before it is normalised",
        )
    for word, value in zip(words, values, strict=True):
        if not 0 <= value <= 1:  # NaN is neither
            raise InputError(
                f"A confidence of utterance {i} is no probability.",
                got=f"{value} for {word!r}",
                expected="a number from 0 to 1",
                do="log probabilities go through exp first",
            )


def handed_on(text: str, confidences: Sequence[float], normaliser: Normaliser) -> tuple[list[float], bool]:
    """Confidences of the normalised words of a text.

    Args:
        text: As it was written.
        confidences: One for each of its words.
        normaliser: What is done to it.

    Returns:
        One for each normalised word, and whether each comes from the word it was made of; where it does not, all are the mean.
    """
    made = [_alone(word, normaliser) for word in text.split()]
    whole = normaliser.words(text)
    if [word for part in made for word in part] == whole:
        return [c for part, c in zip(made, confidences, strict=True) for _ in part], True
    return [float(np.mean(confidences))] * len(whole), False


@lru_cache(maxsize=2**16)
def _alone(word: str, normaliser: Normaliser) -> tuple[str, ...]:
    """A word by itself, normalised; kept, for the English rules take a third of a millisecond and most words come often."""
    return tuple(normaliser.words(word))


@dataclass(frozen=True)
class Calibration:
    """Confidence against truth, over all recognised words.

    Attributes:
        utterances: How many there are.
        words: Recognised words.
        right: Of them right.
        averaged: Share of the utterances whose words got the mean confidence.
        confidence: Mean; above ``right / words`` the recogniser is too sure of itself.
        ece: Expected calibration error over bins of equal mass (Naeini et al., 2015): mean over words of how far a bin's
            confidence is from its share of right words.
        ece_width: The same over bins of equal width, as most papers have it; with most words near 1 it looks at a bin or two.
        ece_chance: What ``ece`` would come to by chance alone if the confidences were perfect, on so many words.
        mce: The largest of those distances, over bins of equal mass.
        brier: Mean squared distance of confidence from right (1) and wrong (0) (Brier, 1950).
        nce: NIST's normalised cross entropy (Siu et al., 1997), as sclite prints it: 1 is perfect, 0 no better than saying the
            share of right words each time, below 0 worse; ``nan`` if all words are right or all wrong.
        auroc: Chance that a right word has more confidence than a wrong one, ties a half (Mann & Whitney, 1947); likewise.
    """

    utterances: int
    words: int
    right: int
    averaged: float
    confidence: float
    ece: float
    ece_width: float
    ece_chance: float
    mce: float
    brier: float
    nce: float
    auroc: float


def calibration(judged: Judged, bins: int = BINS) -> Calibration:
    """All measures of the words' confidence at once; ``nan`` where nothing was recognised.

    Args:
        judged: From :func:`judged`.
        bins: Of the calibration errors.

    Raises:
        InputError: if there is not at least one bin.
    """
    confidence_W, right_W = judged.confidence_W, judged.right_W
    mass, width = (_binned(confidence_W, right_W, bins, equal) for equal in ("mass", "width"))
    chance = mass.words * np.sqrt(2 / np.pi * mass.variance / mass.words)  # mean of |x| for normal x (in the limit)
    known = len(confidence_W) > 0
    return Calibration(
        utterances=len(judged.scores),
        words=len(confidence_W),
        right=int(right_W.sum()),
        averaged=float(judged.averaged_U.mean()),
        confidence=float(confidence_W.mean()) if known else np.nan,
        ece=_error(mass),
        ece_width=_error(width),
        ece_chance=float(chance.sum() / mass.words.sum()) if known else np.nan,
        mce=float((mass.right - mass.confidence).abs().max()),
        brier=float(((confidence_W - right_W) ** 2).mean()) if known else np.nan,
        nce=normalised_cross_entropy(confidence_W, right_W),
        auroc=auroc(confidence_W, right_W),
    )


def reliability(judged: Judged, bins: int = BINS, equal: Equal = "mass") -> pd.DataFrame:
    """Confidence against the share of right words, by bins of confidence.

    Args:
        judged: From :func:`judged`.
        bins: How many at most: equal confidences stay together, so that there can be fewer of equal mass; empty ones are left out.
        equal: ``mass``: about as many words in each; ``width``: cut at equal steps from 0 to 1.

    Returns:
        One row a bin, by confidence: bin (the range it spans), confidence (mean), right (share), low and high (Wilson's 95 %
        interval of it, which takes words as independent), words.

    Raises:
        InputError: if there is not at least one bin, or they are to be equal in something else.
    """
    if equal not in ("mass", "width"):
        raise InputError("Unknown kind of bins.", got=equal, expected="mass or width", do=did_you_mean(equal, ["mass", "width"]))
    table = _binned(judged.confidence_W, judged.right_W, bins, equal)
    hits = (table.right * table.words).round().astype(int)
    ends = [scipy.stats.binomtest(k, n).proportion_ci(method="wilson") for k, n in zip(hits, table.words, strict=True)]
    names = [f"{a:.3f} to {b:.3f}" for a, b in zip(table.least, table.most, strict=True)]
    table = table.assign(bin=names, low=[e.low for e in ends], high=[e.high for e in ends])
    return table[["bin", "confidence", "right", "low", "high", "words"]]


def _binned(confidence_W: Floats, right_W: Bools, bins: int, equal: Equal) -> pd.DataFrame:
    """Of each bin that holds a word: confidence and right (means), variance (mean of p(1-p)), least, most, words."""
    if bins < 1:
        raise InputError("There are no bins.", got=f"bins={bins}", expected="1 or more", do=f"{BINS} is usual")
    inner = np.arange(1, bins) / bins
    if equal == "mass" and len(confidence_W):
        inner = np.quantile(confidence_W, inner, method="inverted_cdf")
    place_W = np.searchsorted(inner, confidence_W)  # a value on an edge belongs below: equal ones stay together
    words = pd.DataFrame({"confidence": confidence_W, "right": right_W.astype(float), "variance": confidence_W * (1 - confidence_W)})
    grouped = words.groupby(place_W)
    edges = grouped.confidence.agg(least="min", most="max", words="size")
    if equal == "width":
        edges = edges.assign(least=edges.index / bins, most=(edges.index + 1) / bins)
    return grouped.mean().join(edges).reset_index(drop=True)


def _error(table: pd.DataFrame) -> float:
    return float(((table.right - table.confidence).abs() * table.words).sum() / table.words.sum()) if len(table) else np.nan


def normalised_cross_entropy(confidence_W: Floats, right_W: Bools) -> float:
    """Share of the uncertainty about right and wrong that the confidences take away; see :class:`Calibration`."""
    right, words = int(right_W.sum()), len(right_W)
    if right in (0, words):
        return float("nan")
    share = right / words
    most = -(right * np.log2(share) + (words - right) * np.log2(1 - share))
    p_W = np.clip(confidence_W, LEAST, 1 - LEAST)
    return float((most + np.log2(np.where(right_W, p_W, 1 - p_W)).sum()) / most)


def auroc(confidence_W: Floats, right_W: Bools) -> float:
    """Area under the ROC curve of right against wrong, by ranks; see :class:`Calibration`."""
    right, wrong = int(right_W.sum()), int((~right_W).sum())
    if not right or not wrong:
        return float("nan")
    ranks = scipy.stats.rankdata(confidence_W)[right_W].sum()
    return float((ranks - right * (right + 1) / 2) / (right * wrong))


@dataclass(frozen=True, eq=False)
class Rejection:
    """What is left when the least sure utterances are rejected.

    Attributes:
        table: One row a point: rejected (share of the utterances), utterances and (reference) words that are kept, wer of them,
            and oracle, the lowest WER that any choice of as many utterances could have.
        aurc: Area under the risk-coverage curve (Geifman et al., 2019) as a mean: the WER averaged over all shares.
            Rejecting at random has the plain WER.
        oracle: The same of the oracle.
    """

    table: pd.DataFrame = field(repr=False)
    aurc: float
    oracle: float

    @property
    def excess(self) -> float:
        """Area between the curve and the oracle's: what a better order could still gain, as a mean WER."""
        return self.aurc - self.oracle


def rejection(judged: Judged) -> Rejection:
    """WER of what is kept, from all utterances to the surest one.

    Utterances in which nothing was recognised go first. Utterances of equal confidence leave together, a part of each where a
    point falls between them, so that the curve does not depend on their order.

    Args:
        judged: From :func:`judged`.
    """
    errors_U, words_U = judged.scores.errors_U, judged.scores.words_U
    _, group_U = np.unique(-np.nan_to_num(judged.confidence_U, nan=-1.0), return_inverse=True)  # the surest first
    sizes = np.bincount(group_U)
    shared = [np.bincount(group_U, v) / sizes for v in (errors_U, words_U)]
    errors, words = (np.cumsum(np.repeat(v, sizes)) for v in shared)
    size = len(group_U)
    kept = np.unique(np.rint(np.linspace(size, 1, POINTS)).astype(int))[::-1]
    rows = [{"rejected": 1 - k / size, "utterances": k, "words": words[k - 1], "wer": _ratio(errors[k - 1], words[k - 1]),
             "oracle": _fewest(errors_U, words_U, k)} for k in kept]  # fmt: skip
    table = pd.DataFrame(rows)
    return Rejection(table, _area(table.rejected, table.wer), _area(table.rejected, table.oracle))


def _fewest(errors_U: Ints, words_U: Ints, kept: int) -> float:
    """Lowest ``sum(errors) / sum(words)`` over all choices of so many utterances (Dinkelbach, 1967)."""
    ratio = _ratio(errors_U.sum(), words_U.sum())
    while True:
        chosen = np.argpartition(errors_U - ratio * words_U, kept - 1)[:kept]
        better = _ratio(errors_U[chosen].sum(), words_U[chosen].sum())
        if not better < ratio - 1e-12:  # also where what was chosen holds no reference word
            return ratio
        ratio = better


def _ratio(errors: Any, words: Any) -> float:
    return float(errors / words) if words else float("nan")


def _area(x: pd.Series, y: pd.Series) -> float:
    """Mean of y over the range of x, by trapezia; points without a value are left out."""
    x, y = x[y.notna()], y[y.notna()]
    return float(np.trapezoid(y, x) / (x.iloc[-1] - x.iloc[0])) if len(x) > 1 else float("nan")
