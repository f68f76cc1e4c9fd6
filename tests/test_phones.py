"""Pronunciations against the dictionary's file, their alignment against an independent edit distance, counts against hand."""

from __future__ import annotations

import math
from importlib.resources import files

import kaldialign
import pytest
from counts import RAW
from hypothesis import given, settings
from hypothesis import strategies as st

from speechlab import confusions, phones
from speechlab.phones import NOTHING, nearest, pronunciations
from speechlab.scoring import score
from speechlab.text import normaliser

WORD = st.sampled_from(["three", "free", "tomato", "tomatoes", "either", "the", "thee", "twenty", "plenty", "a", "i", "ask", "axe", "data"])


def compared(references, hypotheses, whole=False, rules=RAW):
    scores = score(references, hypotheses, rules)
    return phones.confusions(confusions.words(scores, [f"u{i}" for i in range(len(scores))]), whole)


def wrong(found) -> dict[tuple[str, str], int]:
    """Confusions alone, from the matrix."""
    return {(a, b): int(n) for a, row in found.counts.iterrows() for b, n in row.items() if n and a != b}


def test_the_dictionary_is_the_file():
    lines = (files("pocketsphinx") / "model/en-us/cmudict-en-us.dict").read_text("utf-8").splitlines()
    ways = [way for ways in phones.dictionary().values() for way in ways]
    assert len(ways) == len(lines) == 134_860
    assert {phone for way in ways for phone in way} == set(phones.PHONES)
    assert len(phones.PHONES) == 39  # and so without stress
    assert not any("(" in word for word in phones.dictionary())


def test_pronunciations_hold_the_other_ways_to_say_a_word():
    assert pronunciations("tomato") == (("T", "AH", "M", "EY", "T", "OW"), ("T", "AH", "M", "AA", "T", "OW"))
    assert pronunciations("Three") == pronunciations("three") == (("TH", "R", "IY"),)


@pytest.mark.parametrize("word", ["20", "$20.50", "didn", "zzyzxq", "<script>", ""])
def test_what_the_dictionary_lacks_is_never_guessed(word):
    assert pronunciations(word) == ()
    assert nearest(word, "the") is nearest("the", word) is None


@pytest.mark.parametrize(
    ("said", "heard", "way"),
    [
        ("three", "free", "TH-F R-R IY-IY"),
        ("their", "there", "DH-DH EH-EH R-R"),
        ("park", "bark", "P-B AA-AA R-R K-K"),
        ("tomato", "tomatoes", "T-T AH-AH M-M EY-EY T-T OW-OW –-Z"),
        ("the", "thee", "DH-DH IY-IY"),  # in its second pronunciation
    ],
)
def test_known_pairs(said, heard, way):
    assert nearest(said, heard) == [tuple(pair.split("-")) for pair in way.split()]


@settings(deadline=None)
@given(WORD, WORD)
def test_the_pair_of_pronunciations_is_the_nearest(said, heard):
    way = nearest(said, heard)
    least = min(kaldialign.edit_distance(list(a), list(b))["total"] for a in pronunciations(said) for b in pronunciations(heard))
    assert sum(a != b for a, b in way) == least
    assert tuple(a for a, _ in way if a != NOTHING) in pronunciations(said)
    assert tuple(b for _, b in way if b != NOTHING) in pronunciations(heard)


def test_the_first_pronunciations_alone_would_be_further_apart():
    """Negative control of the test above."""
    assert kaldialign.edit_distance(list(pronunciations("the")[0]), list(pronunciations("thee")[0]))["total"] == 1
    assert all(a == b for a, b in nearest("the", "thee"))


def test_like_answers_to_like():
    assert nearest("co", "e") == [("K", NOTHING), ("OW", "IY")]  # a vowel to a vowel
    assert nearest("speak", "beak") == [("S", NOTHING), ("P", "B"), ("IY", "IY"), ("K", "K")]  # a plosive to a plosive


def test_with_costs_that_know_no_classes_unlike_would_answer_to_unlike():
    """Negative control of the test above."""
    steps = confusions.align(("K", "OW"), ("IY",), lambda a, b: 0)
    assert steps[0] == ("sub", "K", "IY")


def test_counts_of_one_example():
    found = compared(["their three cats", "three"], ["there free cat", "three"])
    assert wrong(found) == {("TH", "F"): 1, ("S", NOTHING): 1}
    assert (found.counts.loc["TH", "TH"], found.counts.loc["R", "R"], found.counts.loc["IY", "IY"]) == (1, 3, 2)
    assert (found.substitutions, found.compared, found.alike, found.missing, found.tokens) == (3, 3, 1, 0, 8)
    assert found.where("TH", "F") == ["u0"] and found.where("TH", "TH") == []
    row = found.table().set_index(["said", "heard"]).loc[("TH", "F")]
    assert row.to_dict() == {"count": 1, "occurrences": 2, "share": 0.5, "utterances": 1, "examples": "three → free"}
    assert str(found) == "3 of 3 misheard words compared, 1 of them said alike; 0 of 8 words not in CMUdict"


def test_homophones_confuse_no_phone():
    assert wrong(compared(["their two"], ["there too"])) == {}


def test_words_missed_and_added_count_on_request():
    refs, hyps = ["a b cat", "dog"], ["a b", "dog uh"]
    assert wrong(compared(refs, hyps)) == {}
    found = compared(refs, hyps, whole=True)
    assert wrong(found) == {("K", NOTHING): 1, ("AE", NOTHING): 1, ("T", NOTHING): 1, (NOTHING, "AH"): 1}
    table = found.table().set_index(["said", "heard"])
    assert table.examples["K", NOTHING] == "cat → –" and table.examples[NOTHING, "AH"] == "– → uh"
    assert math.isnan(table.share[NOTHING, "AH"])
    assert found.where(NOTHING, "AH") == ["u1"]


def test_numbers_in_digits_are_counted_as_missing():
    found = compared(["press twenty and wait", "wait"], ["press plenty and weight", "20"], rules=normaliser("english"))
    assert found.unknown.to_numpy().tolist() == [["20", 1, 1]]  # what the normaliser made of "twenty", and what was heard
    assert (found.substitutions, found.compared, found.alike) == (3, 1, 1)
    assert found.oov == pytest.approx(2 / found.tokens) and found.tokens == 10
    assert wrong(found) == {}


def test_the_commonest_unknown_words_come_first():
    found = compared(["qqq zzz", "zzz"], ["qqq zzz", "zzz"])
    assert found.unknown.to_numpy().tolist() == [["zzz", 2, 2], ["qqq", 1, 1]]
    assert found.oov == 1


def test_examples_are_the_commonest_pairs():
    found = compared(["three"] * 2 + ["thin", "thought", "thank"], ["free"] * 2 + ["fin", "fought", "frank"])
    row = found.table().iloc[0]
    assert (row.said, row.heard, row["count"]) == ("TH", "F", 5)
    assert row.examples == "three → free, thin → fin, thought → fought"


@settings(deadline=None, max_examples=30)
@given(st.lists(st.tuples(st.lists(WORD, max_size=4).map(" ".join), st.lists(WORD, max_size=4).map(" ".join)), min_size=1, max_size=5))
def test_with_all_words_every_phone_is_counted_once(pairs):
    refs, hyps = map(list, zip(*pairs, strict=True))
    found = compared(refs, hyps, whole=True)
    assert found.compared == found.substitutions and found.missing == 0
    for counts, texts in ((found.counts.drop(index=NOTHING), refs), (found.counts.drop(columns=NOTHING), hyps)):
        lengths = [sorted({len(way) for way in pronunciations(word)}) for text in texts for word in text.split()]
        assert sum(low for low, *_ in lengths) <= int(counts.to_numpy().sum()) <= sum(high for *_, high in lengths)
    assert sum(wrong(found).values()) == int(found.table()["count"].sum())
    for row in found.table().itertuples():
        assert len(found.where(row.said, row.heard)) == row.utterances


def test_nothing_wrong_gives_an_empty_table():
    found = compared(["", "a"], ["", "a"])
    assert len(found.table()) == 0 and "examples" in found.table().columns
    assert math.isnan(compared([""], [""]).oov)


def test_a_script_in_a_transcript_stays_a_word():
    found = compared(["<script>alert(1)</script> three"], ["<b> free"])
    assert found.unknown.word.tolist() == ["<b>", "<script>alert(1)</script>"]
    assert wrong(found) == {("TH", "F"): 1}
