"""Which phones the words that were misheard differ in, by a pronouncing dictionary of American English.

Notable: no sound is measured. What is compared are the pronunciations that CMUdict gives for the word in the reference and for
the word in the hypothesis; how the speaker said it, and what the model took for what, it does not tell. Of several
pronunciations of the two words the nearest pair is taken. A word that is not in the dictionary (numbers in digits, names,
contractions that a normaliser left in pieces) has none and is never guessed: it is counted, listed, and its pair left out.

Phones are aligned as words are (:func:`speechlab.confusions.align`): with the fewest edits, of 1 each, and of those so that like
answers to like: a plosive to a plosive, and any consonant rather to a consonant than to a vowel.

Not covered: other languages; stress (the file has none); words split or joined; distances by phonetic features beyond these
classes.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.resources import files

import pandas as pd

from speechlab.confusions import align, share

CLASSES = {
    "vowels": "IY IH EH AE AA AO UH UW AH ER EY AY OY AW OW",
    "plosives": "P B T D K G",
    "affricates": "CH JH",
    "fricatives": "F V TH DH S Z SH ZH HH",
    "nasals": "M N NG",
    "approximants": "L R W Y",
}
CLASS = {phone: name for name, phones in CLASSES.items() for phone in phones.split()}
PHONES = tuple(CLASS)  # the 39 of CMUdict, like beside like
NOTHING = "–"  # stands where a phone was added or is missing
EXAMPLES = 3  # pairs of words shown for a pair of phones

Phones = tuple[str, ...]


@lru_cache
def dictionary() -> dict[str, tuple[Phones, ...]]:
    """Pronunciations by word, in lower case: CMUdict as ``pocketsphinx`` carries it, read when first asked for.

    Returns:
        Of each word one pronunciation or several, in the file's order, as phones without stress.
    """
    found: dict[str, list[Phones]] = {}
    lines = (files("pocketsphinx") / "model/en-us/cmudict-en-us.dict").read_text("utf-8").splitlines()
    for word, *phones in map(str.split, lines):
        found.setdefault(word.partition("(")[0], []).append(tuple(phones))  # "tomato(2)" is another way to say "tomato"
    return {word: tuple(ways) for word, ways in found.items()}


def pronunciations(word: str) -> tuple[Phones, ...]:
    """How a word may be said; none if the dictionary does not have it.

    >>> pronunciations("three")
    (('TH', 'R', 'IY'),)
    """
    return dictionary().get(word.lower(), ())


def nearest(said: str, heard: str) -> list[tuple[str, str]] | None:
    """The pronunciations of two words that differ least, phone by phone.

    Args:
        said: A word of the reference.
        heard: What it was heard as.

    Returns:
        Pairs of phones, :data:`NOTHING` where there is none; None if the dictionary lacks one of the words.

    >>> nearest("three", "free")
    [('TH', 'F'), ('R', 'R'), ('IY', 'IY')]
    """
    ways = [align(a, b, _unlike) for a in pronunciations(said) for b in pronunciations(heard)]
    if not ways:
        return None
    best = min(ways, key=lambda way: (sum(op != "hit" for op, _, _ in way), sum(_unlike(a, b) for op, a, b in way if op == "sub")))
    return [(a or NOTHING, b or NOTHING) for _, a, b in best]


def _unlike(a: str, b: str) -> int:
    """How unlike two phones are: 0 of one class, 1 consonants of two, 2 a vowel and a consonant."""
    if CLASS[a] == CLASS[b]:
        return 0
    return 2 if "vowels" in (CLASS[a], CLASS[b]) else 1


@dataclass(frozen=True, eq=False)
class Confusions:
    """Phones said against phones heard, by the dictionary.

    Attributes:
        pairs: A row a phone of the words misheard: id, word, other (what it was heard as), said and heard (phones, or :data:`NOTHING`).
        counts: How often each phone (row) answered to each (column), :data:`NOTHING` last in both; on the diagonal those that
            agree, of misheard words and of words heard right.
        substitutions: Words heard as others.
        compared: Of these, those both words of which the dictionary has.
        alike: Of these, those that may be said alike: other letters, no other sound (``their`` and ``there``).
        tokens: Words looked up, of references and hypotheses.
        unknown: Words that the dictionary lacks, the commonest first: word, said (times in references) and heard (in hypotheses).
    """

    pairs: pd.DataFrame = field(repr=False)
    counts: pd.DataFrame = field(repr=False)
    substitutions: int
    compared: int
    alike: int
    tokens: int
    unknown: pd.DataFrame = field(repr=False)

    @property
    def missing(self) -> int:
        """Words looked up in vain."""
        return int(self.unknown[["said", "heard"]].to_numpy().sum())

    @property
    def oov(self) -> float:
        """Share of the words looked up that the dictionary lacks; ``nan`` if there are none."""
        return self.missing / self.tokens if self.tokens else math.nan

    def __str__(self) -> str:
        """One line: ``21 of 27 misheard words compared, 3 of them said alike; 35 of 1,310 words not in CMUdict``."""
        compared = f"{self.compared:,} of {self.substitutions:,} misheard words compared, {self.alike:,} of them said alike"
        return f"{compared}; {self.missing:,} of {self.tokens:,} words not in CMUdict"

    def where(self, said: str, heard: str) -> list[str]:
        """The utterances in which a phone of a misheard word answered to another, in the table's order."""
        return list(dict.fromkeys(self.pairs.id[(self.pairs.said == said) & (self.pairs.heard == heard)]))

    def table(self) -> pd.DataFrame:
        """The confusions alone, the most common first.

        Returns:
            said, heard, count, occurrences (of the phone ``said`` in all words compared, 0 where it is none), share (of those heard
            so; ``nan`` for phones added), utterances and examples (pairs of words, the commonest first).
        """
        wrong = self.pairs[self.pairs.said != self.pairs.heard]
        worded = (wrong.word.where(wrong.word != "", NOTHING) + " → " + wrong.other.where(wrong.other != "", NOTHING)).astype(object)
        groups = wrong.assign(words=worded).groupby(["said", "heard"], sort=False)
        found = groups.agg(count=("id", "size"), utterances=("id", "nunique"), examples=("words", _commonest)).reset_index()
        found.insert(3, "occurrences", found.said.map(self.counts.drop(index=NOTHING).sum(axis=1)).fillna(0).astype(int))
        found.insert(4, "share", share(found["count"], found.occurrences))
        return found.sort_values(["count", "utterances", "said", "heard"], ascending=[False, False, True, True], ignore_index=True)


def _commonest(words: pd.Series[str]) -> str:
    return ", ".join(words.value_counts().index[:EXAMPLES])


def confusions(table: pd.DataFrame, whole: bool = False) -> Confusions:
    """Compare the pronunciations of words said and heard.

    Args:
        table: From :func:`speechlab.confusions.words`, of English.
        whole: Whether words missed and words added count too, all their phones as missing or added; without, only words heard as
            others do. Words heard right count in both, in their first pronunciation.
    """
    used = table if whole else table[table.op.isin(["hit", "sub"])]
    words: list[tuple[str, str, str, str]] = list(zip(used.id, used.op, used.said, used.heard, strict=True))
    ways = {pair: nearest(*pair) for pair in {(said, heard) for _, op, said, heard in words if op == "sub"}}
    counted: Counter[tuple[str, str]] = Counter()
    pairs: list[tuple[str, ...]] = []
    for id_, op, said, heard in words:
        if op == "hit":
            counted.update((phone, phone) for phone in _first(said))
        elif op == "sub":
            pairs += [(id_, said, heard, *phones) for phones in ways[said, heard] or ()]
        else:
            pairs += [(id_, said, heard, *((phone, NOTHING) if said else (NOTHING, phone))) for phone in _first(said or heard)]
    counted.update((a, b) for *_, a, b in pairs)
    every = [*PHONES, NOTHING]
    compared = [way for _, op, said, heard in words if op == "sub" and (way := ways[said, heard]) is not None]
    return Confusions(
        pairs=pd.DataFrame(pairs, columns=["id", "word", "other", "said", "heard"]),
        counts=pd.DataFrame([[counted[a, b] for b in every] for a in every], every, every),
        substitutions=sum(op == "sub" for _, op, _, _ in words),
        compared=len(compared),
        alike=sum(all(a == b for a, b in way) for way in compared),
        tokens=sum(bool(said) + bool(heard) for _, _, said, heard in words),
        unknown=_unknown([said for _, _, said, _ in words], [heard for _, _, _, heard in words]),
    )


def _first(word: str) -> Phones:
    return next(iter(pronunciations(word)), ())


def _unknown(said: list[str], heard: list[str]) -> pd.DataFrame:
    """Words without a pronunciation, and how often either side holds them."""
    in_said, in_heard = (Counter(word for word in side if word and not pronunciations(word)) for side in (said, heard))
    both = in_said + in_heard
    rows = [(word, in_said[word], in_heard[word]) for word in sorted(both, key=lambda word: (-both[word], word))]
    return pd.DataFrame(rows, columns=["word", "said", "heard"])
