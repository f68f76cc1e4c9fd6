"""Alignments against brute force, counts against scoring and jiwer, tables against what was put in."""

from __future__ import annotations

import math
import re
from collections import Counter

import jiwer
import kaldialign
import pytest
from counts import RAW, assert_complete, fuzz
from hypothesis import given, settings
from hypothesis import strategies as st

from speechlab import confusions, scoring
from speechlab.errors import InputError
from speechlab.scoring import score
from speechlab.text import normaliser

WORDS = st.lists(st.sampled_from(["a", "at", "cat", "cart", "there", "their", "here"]), max_size=6)
PAIRS = st.lists(st.tuples(WORDS.map(" ".join), WORDS.map(" ".join)), min_size=1, max_size=8)
SCRIPT = "<script>alert(1)</script>"


def letters(a: str, b: str) -> int:
    return kaldialign.edit_distance(a, b)["total"]


def cost(steps) -> tuple[int, int]:
    """Errors, and characters between what was paired."""
    return sum(op != "hit" for op, _, _ in steps), sum(letters(a, b) for op, a, b in steps if op == "sub")


def cheapest(said, heard) -> tuple[int, int]:
    """The same of the best of all alignments, every one of them tried."""
    if not said or not heard:
        return len(said) + len(heard), 0
    missed, added = cheapest(said[1:], heard), cheapest(said, heard[1:])
    both = cheapest(said[1:], heard[1:])
    wrong = said[0] != heard[0]
    paired = (both[0] + wrong, both[1] + (letters(said[0], heard[0]) if wrong else 0))
    return min(paired, (missed[0] + 1, missed[1]), (added[0] + 1, added[1]))


def table(references, hypotheses):
    scores = score(references, hypotheses, RAW)
    return confusions.words(scores, [f"u{i}" for i in range(len(scores))])


# --- alignment ---


@settings(deadline=None, max_examples=150)
@given(st.lists(st.sampled_from(["a", "at", "cat", "there", "their"]), max_size=5), WORDS)
def test_no_alignment_is_better(said, heard):
    steps = confusions.align(said, heard)
    assert [a for op, a, _ in steps if op != "ins"] == said
    assert [b for op, _, b in steps if op != "del"] == heard
    assert all((a == b) == (op == "hit") for op, a, b in steps)
    assert cost(steps) == cheapest(said, heard)


@settings(deadline=None)
@given(PAIRS)
def test_the_errors_of_every_utterance_are_those_of_scoring_and_jiwer(pairs):
    refs, hyps = map(list, zip(*pairs, strict=True))
    words = table(refs, hyps)
    counted = words[words.op != "hit"].groupby("id").size().reindex([f"u{i}" for i in range(len(pairs))], fill_value=0)
    assert counted.tolist() == score(refs, hyps, RAW).errors_U.tolist()
    theirs = jiwer.process_words(refs, hyps)
    assert int(counted.sum()) == theirs.substitutions + theirs.deletions + theirs.insertions


@pytest.mark.parametrize(
    ("said", "heard", "pair"),
    [
        ("their", "oh there", ("their", "there")),
        ("number", "does remember", ("number", "remember")),  # this one and the next were heard by tiny.en in noise
        ("playback mode", "when that me", ("mode", "me")),
    ],
)
def test_like_words_are_paired_where_a_plain_alignment_takes_neighbours(said, heard, pair):
    ours, plain = (how(said.split(), heard.split()) for how in (confusions.align, scoring.align))
    assert cost(ours)[0] == cost(plain)[0]
    assert ("sub", *pair) in ours
    assert ("sub", *pair) not in plain


def test_over_many_utterances_a_plain_alignment_pairs_words_further_apart():
    """Negative control: were the distance not minimised, the two would be the same."""
    refs, hyps = fuzz(200, 0.5, 3)
    ours, plain = (
        sum(cost(how(r.split(), h.split()))[1] for r, h in zip(refs, hyps, strict=True)) for how in (confusions.align, scoring.align)
    )
    assert ours < 0.95 * plain


def test_a_loop_of_hundreds_of_words_stands_at_the_end():
    said = ["one", "two", "three", "four", "five"]
    steps = confusions.align(said, said * 60)
    others = confusions.align(["zero", *said[1:]], ["zoo", "bar"] * 150)
    assert [op for op, _, _ in steps] == ["hit"] * 5 + ["ins"] * 295
    assert next(pair for pair in others if pair[0] == "sub") == ("sub", "zero", "zoo")


def test_a_long_text_does_not_cost_its_square():
    """Of 12,000 words with few errors only those near each other are compared."""
    said, compared = [str(i) for i in range(12_000)], []

    def distance(a: str, b: str) -> int:
        compared.append((a, b))
        return 1

    confusions.align(said, [*said[:-1], "x"], distance)
    assert 1 <= len(compared) < 10
    compared.clear()
    confusions.align(said[:100], said[100:200], distance)
    assert len(compared) >= 100**2 / 2, "control: where all is wrong, nearly all are"


# --- tables ---


def test_a_row_says_where_a_word_stood():
    words = table(["the cat sat on", "a", ""], ["um the bat sat on it", "", "x"])
    rows = list(words.itertuples(index=False, name=None))
    assert rows[:4] == [
        ("u0", "ins", "", "um", 0, 0.0, 4),
        ("u0", "hit", "the", "the", 0, 0.0, 4),
        ("u0", "sub", "cat", "bat", 1, pytest.approx(1 / 3), 4),
        ("u0", "hit", "sat", "sat", 2, pytest.approx(2 / 3), 4),
    ]
    assert rows[5] == ("u0", "ins", "", "it", 4, 1.0, 4)  # behind the last word, and with it
    assert rows[6][:5] == ("u1", "del", "a", "", 0) and math.isnan(rows[6][5])
    assert rows[7][:5] == ("u2", "ins", "", "x", 0) and math.isnan(rows[7][5])


def test_tables_count_and_lead_back_to_the_utterances():
    words = table(["their cat", "their dog", "their their", "dog dog"], ["there cat", "there", "their there", "dog dog dog"])
    subs = confusions.substitutions(words)
    assert subs.to_dict("records") == [{"said": "their", "heard": "there", "count": 3, "utterances": 3, "occurrences": 4, "share": 0.75}]
    assert confusions.where(words, "their", "there") == ["u0", "u1", "u2"]
    assert confusions.deletions(words).to_dict("records") == [{"said": "dog", "count": 1, "utterances": 1, "occurrences": 3, "share": 0.33}]
    assert confusions.where(words, "dog", "") == ["u1"]
    assert confusions.insertions(words).to_dict("records") == [
        {"heard": "dog", "count": 1, "utterances": 1, "occurrences": 3, "share": 0.33}
    ]
    assert confusions.where(words, "", "dog") == ["u3"]
    assert confusions.where(words, "dog", "cat") == []
    by_word = confusions.by_word(words).set_index("word")
    assert by_word.loc["their"].to_dict() == {"occurrences": 4, "hits": 1, "substitutions": 3, "deletions": 0, "errors": 3, "rate": 0.75}
    assert list(by_word.index) == ["their", "dog", "cat"]


def test_the_commonest_comes_first_and_then_what_many_utterances_hold():
    words = table(["a b", "a b", "c d c d", "e"], ["x y", "x y", "x d x d", "y"])
    subs = confusions.substitutions(words)
    assert list(zip(subs.said, subs.heard, strict=True)) == [("a", "x"), ("b", "y"), ("c", "x"), ("e", "y")]
    assert subs.utterances.tolist() == [2, 2, 1, 1]


@pytest.mark.parametrize(("right", "share"), [(2, 0.33), (150, 0.007), (12_344, 0.00008)])
def test_a_share_is_no_finer_than_its_number_allows(right, share):
    words = table(["a"] * (right + 1), ["a"] * right + ["b"])
    assert confusions.substitutions(words).share.tolist() == [share]


@settings(deadline=None, max_examples=20)
@given(PAIRS)
def test_tables_add_up(pairs):
    refs, hyps = map(list, zip(*pairs, strict=True))
    words, scores = table(refs, hyps), score(refs, hyps, RAW)
    subs, dels, ins = confusions.substitutions(words), confusions.deletions(words), confusions.insertions(words)
    assert sum(int(t["count"].sum()) for t in (subs, dels, ins)) == scores.errors
    by_word = confusions.by_word(words)
    assert int(by_word.occurrences.sum()) == scores.words
    assert int(by_word.errors.sum()) == int(subs["count"].sum() + dels["count"].sum())
    for row in subs.itertuples():
        found = confusions.where(words, row.said, row.heard)
        assert len(found) == row.utterances
        assert all(row.said in refs[int(u[1:])].split() and row.heard in hyps[int(u[1:])].split() for u in found)
    kinds = ["substitutions", "deletions", "insertions"]
    for counts, least in ((confusions.by_position(words), 2), (confusions.by_length(words), 1)):
        kept = scores.only([i for i, r in enumerate(refs) if len(r.split()) >= least])
        assert int(counts.words.sum()) == (kept.words if len(kept) else 0)
        assert int(counts[kinds].to_numpy().sum()) == (kept.errors if len(kept) else 0)


def test_errors_over_the_place_in_an_utterance():
    reference = [f"w{i}" for i in range(11)]
    for wrong in range(11):
        heard = [*reference[:wrong], "x", *reference[wrong + 1 :]]
        counts = confusions.by_position(table([" ".join(reference)], [" ".join(heard)]))
        assert counts.words.tolist() == [1] * 9 + [2]  # the last two of eleven share the last tenth
        assert counts.substitutions.tolist() == [int(i == min(wrong, 9)) for i in range(10)]
    counts = confusions.by_position(table(["a b", "one"], ["um a b it", "two"]))
    assert counts.insertions.tolist() == [1] + [0] * 8 + [1]
    assert counts.insertion_rate[0] == counts.insertion_rate[9] == 1 and counts.insertion_rate[1:9].isna().all()
    assert counts.substitutions.sum() == 0  # of one word it cannot be said


def test_errors_over_the_length_of_an_utterance():
    lengths = [1, 2, 3, 4, 5, 8, 9, 64, 65]
    counts = confusions.by_length(table([" ".join(["a"] * n) for n in lengths] + [""], ["b"] * len(lengths) + ["x y"]))
    assert list(zip(counts.low, counts.high, strict=True)) == [(1, 1), (2, 2), (3, 4), (5, 8), (9, 16), (33, 64), (65, 128)]
    assert counts.utterances.tolist() == [1, 1, 2, 2, 1, 1, 1]
    assert counts.words.tolist() == [1, 2, 7, 13, 9, 64, 65]
    assert counts.deletions.tolist() == [0, 1, 5, 11, 8, 63, 64]
    assert counts.insertions.sum() == 0
    assert counts.deletion_rate[2] == 0.71


@pytest.mark.parametrize(("references", "hypotheses"), [([""], [""]), (["a"], ["a"]), ([""], ["a"])])
def test_tables_of_nothing_wrong_have_their_columns(references, hypotheses):
    words = table(references, hypotheses)
    assert list(confusions.substitutions(words).columns) == ["said", "heard", "count", "utterances", "occurrences", "share"]
    assert len(confusions.by_position(words)) == 10
    for make in (confusions.deletions, confusions.insertions, confusions.by_word, confusions.by_length):
        assert set(make(words).columns) > {"share"} or "rate" in " ".join(make(words).columns)


def test_a_script_in_a_transcript_stays_a_word():
    words = table([f"say {SCRIPT}"], [f"say {SCRIPT}{SCRIPT}"])
    assert confusions.substitutions(words).iloc[0].to_dict()["said"] == SCRIPT
    assert confusions.where(words, SCRIPT, SCRIPT * 2) == ["u0"]


# --- loops ---


@pytest.mark.parametrize(
    ("reference", "hypothesis", "found"),
    [
        ("call us", "call us call us call us call us", ("call us", 4, 1, 8)),
        ("call us", "call us call us call us", None),  # three times are no loop yet
        ("", "you you you you you", ("you", 5, 1, 5)),
        ("no no no no no", "no no no no no no no", None),  # said five times itself
        ("no no no no no", " ".join(["no"] * 8), ("no", 8, 5, 8)),
        ("b a b a b a b a", "a b a b a b a b a", None),  # the same circle, begun elsewhere
        ("x", "a b c d e f g h " * 4, ("a b c d e f g h", 4, 1, 32)),
        ("x", "a b c d e f g h i " * 4, None),  # longer than what is looked at
        ("x", "so a b a b a b a b a then", ("a b", 4, 1, 8)),
        ("a b c", "a b c", None),
    ],
)
def test_loops(reference, hypothesis, found):
    loops = confusions.loops(score([reference], [hypothesis], RAW), ["u"])
    assert [row[1:] for row in loops.itertuples(index=False, name=None)] == ([found] if found else [])
    assert list(loops.columns) == ["id", "text", "times", "said", "words"]


def test_the_longest_loop_comes_first_and_one_utterance_may_hold_two():
    scores = score(["x", "x"], ["a a a a", "b b b b c c c c c"], RAW)
    assert confusions.loops(scores, ["u", "v"])[["id", "text", "times"]].to_numpy().tolist() == [
        ["v", "c", 5],
        ["u", "a", 4],
        ["v", "b", 4],
    ]


@settings(deadline=None)
@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=8), st.integers(1, 12), st.lists(st.sampled_from("xyz"), max_size=3))
def test_a_loop_put_in_is_found(phrase, times, around):
    hypothesis = [*around, *phrase * times, *around]
    loops = confusions.loops(score(["q"], [" ".join(hypothesis)], RAW), ["u"])
    for row in loops.itertuples():
        assert f" {' '.join([row.text] * row.times)} " in f" {' '.join(hypothesis)} "
    if times >= confusions.LOOP:
        assert loops.words.max() >= len(phrase) * times


def test_invented_words_are_those_where_nothing_was_said():
    scores = score(["", "", "a", "", ""], ["thank you", "", "thank you", "bye", "thank you"], RAW)
    found = confusions.invented(scores, list("vwxyz"))
    assert found.to_numpy().tolist() == [["v", "thank you", 2, 2], ["z", "thank you", 2, 2], ["y", "bye", 1, 1]]
    assert list(found.columns) == ["id", "text", "words", "times"]


@pytest.mark.parametrize("make", [confusions.words, confusions.loops, confusions.invented])
def test_an_id_too_few_is_refused_with_a_remedy(make):
    with pytest.raises(InputError, match=re.escape("1 ids, 2 utterances")) as e:
        make(score(["a", "b"], ["a", "b"], RAW), ["u"])
    assert_complete(e)


@pytest.mark.slow
def test_on_what_a_model_heard_in_noise(prompts, tiny_en):
    from speechlab import conditions, decoding, models

    cuts = sorted(prompts.cuts["test"], key=lambda c: (c.duration, c.id))[20:52]
    model = models.load("whisper", tiny_en, "en")
    answers = [d for part in decoding.decode(model, conditions.prepare("white-0db", cuts, 1).cuts) for d in part]
    scores = score([d.reference for d in answers], [d.hypothesis for d in answers], normaliser("english"))
    ids = [d.id for d in answers]
    words = confusions.words(scores, ids)
    counted = Counter(words.op)
    assert scores.errors > 20  # there is something to look at
    assert counted["sub"] + counted["del"] + counted["ins"] == scores.errors
    first = confusions.substitutions(words).iloc[0]
    for id_ in confusions.where(words, first.said, first.heard):
        at = ids.index(id_)
        assert first.said in scores.references[at].split() and first.heard in scores.hypotheses[at].split()
