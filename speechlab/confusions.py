"""What was misheard: words against words, where in an utterance, and what a model made up.

Notable: the words are aligned anew. Of the alignments with the fewest word errors, and there are often several, the one is
taken whose replaced words are nearest to each other in characters, so that ``there`` answers to ``their`` and not to the
word beside it. The sum S + D + I of every utterance stays that of :mod:`speechlab.scoring`; the split may be another. All
tables come from the one of :func:`words`, and :func:`where` leads from a pair of words back to its utterances. Shares and rates
stand beside the number they are shares of, and are rounded to what that number can tell.

Not covered: words split or joined (``into`` heard as ``in to`` is a replaced and an added word); loops of characters within
a word or of over :data:`LONGEST` words; who says it wrong (:mod:`speechlab.comparison` has strata).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
from rapidfuzz.distance import Levenshtein

from speechlab.errors import InputError
from speechlab.scoring import Op, Scores

LONGEST = 8  # words in a row that are looked at as one repeated phrase
LOOP = 4  # times in a row from which on a phrase is a loop
DECILES = 10
KINDS = {"sub": "substitutions", "del": "deletions", "ins": "insertions"}


def align(
    said: Sequence[str], heard: Sequence[str], distance: Callable[[str, str], int] = Levenshtein.distance
) -> list[tuple[Op, str, str]]:
    """Of the alignments with the fewest errors the one whose substituted pairs are nearest to each other.

    Exact dynamic programming (Wagner & Fischer, 1974) over pairs (errors, sum of distances), in the band that an alignment
    with the fewest errors cannot leave (Ukkonen, 1985): as wide as there are errors, so a loop of 200 words costs little.
    Of equal ones, right words stand as early as they can; what a loop adds stands at its end.

    Args:
        said: Words of the reference, or phones.
        heard: Words of the hypothesis.
        distance: How far two different words are apart, from 0 to the sum of their lengths; by default Levenshtein's
            distance in characters (``rapidfuzz``).

    Returns:
        ``(op, said, heard)`` in order; the absent side of a ``del`` or ``ins`` is ``""``.
    """
    n, m = len(said), len(heard)
    errors = Levenshtein.distance(said, heard)
    if not errors:
        return [("hit", word, word) for word in said]
    slack = (errors - abs(m - n)) // 2
    low, width = min(0, m - n) - slack, abs(m - n) + 2 * slack + 1  # the band: what j - i may be
    error = 1 + sum(map(len, said)) + sum(map(len, heard))  # more than all distances together
    never = error * (n + m + 1)

    def paired(i: int, j: int) -> int:
        return 0 if said[i] == heard[j] else error + distance(said[i], heard[j])

    # what it costs from word i of the one and j = i + low + k - 1 of the other on, between k = 0 and width + 1, which are no places
    rest = [[never] * (width + 2) for _ in range(n + 2)]
    rest[n][m - n - low + 1] = 0
    for i in range(n, -1, -1):
        row, below = rest[i], rest[i + 1]
        for k in range(width, 0, -1):
            j = i + low + k - 1
            if 0 <= j <= m and (i < n or j < m):
                row[k] = min(below[k - 1] + error, row[k + 1] + error)
                if i < n and j < m:
                    row[k] = min(row[k], below[k] + paired(i, j))
    found: list[tuple[Op, str, str]] = []
    i, j = 0, 0
    while i < n or j < m:
        k = j - i - low + 1
        if i < n and j < m and rest[i][k] == rest[i + 1][k] + paired(i, j):
            found.append(("hit" if said[i] == heard[j] else "sub", said[i], heard[j]))
            i, j = i + 1, j + 1
        elif i < n and rest[i][k] == rest[i + 1][k - 1] + error:
            found.append(("del", said[i], ""))
            i += 1
        else:
            found.append(("ins", "", heard[j]))
            j += 1
    return found


def words(scores: Scores, ids: Sequence[str]) -> pd.DataFrame:
    """Every word said or heard, a row a column of the alignments by :func:`align`.

    Args:
        scores: Normalised texts (U).
        ids: Of the utterances (U), in the same order.

    Returns:
        id; op (``hit``, ``sub``, ``del`` or ``ins``); said and heard, ``""`` where there is none; place, the number of the
        reference word from 0 on, of an added word that of the word it stands before; position, the same from 0 (the first
        word of the utterance) to 1 (the last), what is added behind the last word with it, and ``nan`` where there are not two
        words; words, how many the utterance's reference has.

    Raises:
        InputError: if there is not one id for each utterance.
    """
    _one_each(scores, ids)
    rows: list[tuple[Any, ...]] = []
    for id_, reference, hypothesis in zip(ids, scores.references, scores.hypotheses, strict=True):
        said = reference.split()
        n, place = len(said), 0
        for op, word, other in align(said, hypothesis.split()):
            rows.append((id_, op, word, other, place, min(place, n - 1) / (n - 1) if n > 1 else math.nan, n))
            place += op != "ins"
    return pd.DataFrame(rows, columns=["id", "op", "said", "heard", "place", "position", "words"])


def where(table: pd.DataFrame, said: str, heard: str) -> list[str]:
    """The utterances in which ``said`` was heard as ``heard``, in the table's order.

    Args:
        table: From :func:`words`.
        said: A word; ``""`` asks for ``heard`` where it was added.
        heard: A word; ``""`` asks for ``said`` where it was missed.
    """
    return list(dict.fromkeys(table.id[(table.said == said) & (table.heard == heard)]))


def substitutions(table: pd.DataFrame) -> pd.DataFrame:
    """Words heard as others, the most common pair first.

    Args:
        table: From :func:`words`.

    Returns:
        said, heard, count, utterances (that hold the pair), occurrences (of ``said`` in the references) and share (of those that
        were heard so).
    """
    return _counted(table, "sub", ["said", "heard"], "said")


def deletions(table: pd.DataFrame) -> pd.DataFrame:
    """Words missed, the most common first.

    Args:
        table: From :func:`words`.

    Returns:
        said, count, utterances, occurrences (of ``said`` in the references) and share (of those that were missed).
    """
    return _counted(table, "del", ["said"], "said")


def insertions(table: pd.DataFrame) -> pd.DataFrame:
    """Words added, the most common first.

    Args:
        table: From :func:`words`.

    Returns:
        heard, count, utterances, occurrences (of ``heard`` in the hypotheses) and share (of those that answer to no word).
    """
    return _counted(table, "ins", ["heard"], "heard")


def _counted(table: pd.DataFrame, op: str, keys: list[str], whole: str) -> pd.DataFrame:
    counts = table[table.op == op].groupby(keys, sort=False).id.agg(count="size", utterances="nunique").reset_index()
    counts["occurrences"] = counts[whole].map(table[whole].value_counts()).astype(int)
    counts["share"] = share(counts["count"], counts.occurrences)
    return counts.sort_values(["count", "utterances", *keys], ascending=[False, False, *(True for _ in keys)], ignore_index=True)


def by_word(table: pd.DataFrame) -> pd.DataFrame:
    """How each word of the references fared, the one with most errors first.

    Args:
        table: From :func:`words`.

    Returns:
        word, occurrences, hits, substitutions, deletions, errors (the two together: an added word belongs to none) and rate
        (errors over occurrences).
    """
    said = table[table.op != "ins"]
    counts = pd.crosstab(said.said, said.op).reindex(columns=["hit", "sub", "del"], fill_value=0)
    counts.columns = pd.Index(["hits", "substitutions", "deletions"])
    counts.insert(0, "occurrences", counts.sum(axis=1))
    counts["errors"] = counts.substitutions + counts.deletions
    counts["rate"] = share(counts.errors, counts.occurrences)
    order = ["errors", "rate", "word"]
    return counts.rename_axis("word").reset_index().sort_values(order, ascending=[False, False, True], ignore_index=True)


def by_position(table: pd.DataFrame) -> pd.DataFrame:
    """Errors over the place in an utterance, from its first word to its last.

    Utterances of one word have no beginning apart from their end and are left out, as are those without a reference word. One
    loop can outweigh all else at the end; ``table[~table.id.isin(loops(...).id)]`` shows the rest.

    Args:
        table: From :func:`words`.

    Returns:
        A row a tenth of the way: low and high (0 to 1), words (of the references), substitutions, deletions, insertions and, of
        each over words, substitution_rate, deletion_rate and insertion_rate; ``nan`` where there is no word.
    """
    placed = table[table.position.notna()]
    tenth = (DECILES * placed.position).astype(int).clip(upper=DECILES - 1)
    counts = _rates(placed, tenth, list(range(DECILES)))
    counts.insert(0, "low", np.arange(DECILES) / DECILES)
    counts.insert(1, "high", np.arange(1, DECILES + 1) / DECILES)
    return counts


def by_length(table: pd.DataFrame) -> pd.DataFrame:
    """Errors over the length of the utterance, in classes that double; those without a reference word have no rate and are left out.

    Args:
        table: From :func:`words`.

    Returns:
        A row a class that occurs: low and high (words of an utterance, both included), utterances, and the columns of
        :func:`by_position` from words on.
    """
    known = table[table.words > 0]
    classes = np.ceil(np.log2(known.words)).astype(int)
    present = sorted(classes.unique())
    counts = _rates(known, classes, present)
    counts.insert(0, "low", [2**c // 2 + 1 for c in present])
    counts.insert(1, "high", [2**c for c in present])
    counts.insert(2, "utterances", known.groupby(classes).id.nunique().reindex(present).to_numpy())
    return counts


def _rates(table: pd.DataFrame, group: pd.Series[int], groups: list[int]) -> pd.DataFrame:
    counts = pd.crosstab(group, table.op).reindex(index=groups, columns=["hit", *KINDS], fill_value=0).reset_index(drop=True)
    counts.insert(0, "words", counts.hit + counts["sub"] + counts["del"])
    counts = counts.drop(columns="hit").rename(columns=KINDS).rename_axis(columns=None)
    for kind in KINDS.values():
        counts[f"{kind[:-1]}_rate"] = share(counts[kind], counts.words)
    return counts


def share(count: pd.Series[int], of: pd.Series[int]) -> list[float]:
    """Fractions to whole percents, and finer only where there are hundreds and more; ``nan`` of nothing."""
    return [round(c / n, max(2, len(str(n)))) if n else math.nan for c, n in zip(count, of, strict=True)]


def loops(scores: Scores, ids: Sequence[str]) -> pd.DataFrame:
    """Hypotheses in which the model went round in circles.

    A phrase of 1 to :data:`LONGEST` words that stands :data:`LOOP` times or more in a row is a loop; where the reference
    repeats it itself, be it begun at another word, as many more times are needed.

    Args:
        scores: Normalised texts (U).
        ids: Of the utterances (U), in the same order.

    Returns:
        The longest first: id, text (the phrase), times (in a row), said (times in a row in the reference, 1 if not repeated there) and
        words (of the hypothesis that the loop takes up).

    Raises:
        InputError: if there is not one id for each utterance.
    """
    _one_each(scores, ids)
    rows = []
    for id_, reference, hypothesis in zip(ids, scores.references, scores.hypotheses, strict=True):
        own: dict[tuple[str, ...], int] = {}
        for phrase, times in _repeated(reference.split()):
            own[_turned(phrase)] = max(times, own.get(_turned(phrase), 1))
        for phrase, times in _repeated(hypothesis.split()):
            said = own.get(_turned(phrase), 1)
            if times - said + 1 >= LOOP:
                rows.append((id_, " ".join(phrase), times, said, times * len(phrase)))
    table = pd.DataFrame(rows, columns=["id", "text", "times", "said", "words"])
    return table.sort_values(["words", "times", "id"], ascending=[False, False, True], ignore_index=True)


def _repeated(words: list[str]) -> Iterator[tuple[tuple[str, ...], int]]:
    """Phrases that follow upon themselves, each with how often it stands in a row; none is itself a repetition."""
    for n in range(1, LONGEST + 1):
        same = [a == b for a, b in zip(words, words[n:], strict=False)]
        at = 0
        for equal, stretch in itertools.groupby(same):
            length = len(list(stretch))
            phrase = tuple(words[at : at + n])
            if equal and length >= n and not any(phrase == phrase[:k] * (n // k) for k in range(1, n)):
                yield phrase, (length + n) // n
            at += length


def _turned(phrase: tuple[str, ...]) -> tuple[str, ...]:
    """One name for all phrases that differ only in where the circle begins."""
    return min(phrase[k:] + phrase[:k] for k in range(len(phrase)))


def invented(scores: Scores, ids: Sequence[str]) -> pd.DataFrame:
    """What was heard where nothing was said, the commonest text first.

    Args:
        scores: Normalised texts (U).
        ids: Of the utterances (U), in the same order.

    Returns:
        id, text (the hypothesis), words and times (utterances with nothing said in which this text was heard).

    Raises:
        InputError: if there is not one id for each utterance.
    """
    _one_each(scores, ids)
    rows = [(i, h, len(h.split())) for i, r, h in zip(ids, scores.references, scores.hypotheses, strict=True) if h and not r]
    table = pd.DataFrame(rows, columns=["id", "text", "words"])
    table["times"] = table.groupby("text").id.transform("size").astype(int)
    return table.sort_values(["times", "text", "id"], ascending=[False, True, True], ignore_index=True)


def _one_each(scores: Scores, ids: Sequence[str]) -> None:
    if len(ids) != len(scores):
        got, do = f"{len(ids)} ids, {len(scores)} utterances", "take both from the same table"
        raise InputError("The ids do not fit the scores.", got=got, expected="one for each utterance", do=do)
