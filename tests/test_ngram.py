"""N-gram models against Kneser and Ney's formula, kaldingram's own perplexity and KenLM, and files that are none."""

from __future__ import annotations

import base64
import gzip
import itertools
import math
import os
import random
import subprocess
import sys
import zlib
from collections import Counter
from pathlib import Path

import pytest
from counts import assert_complete
from hypothesis import example, given, settings
from hypothesis import strategies as st

from speechlab import ngram
from speechlab.errors import InputError
from speechlab.models import ctc

SMALL = r"""\data\
ngram 1=4
ngram 2=3

\1-grams:
-99	<s>	-0.3
-0.6	</s>
-0.5	a	-0.2
-0.4	b	-0.1

\2-grams:
-0.2	<s> a
-0.3	a b
-0.3	b </s>

\end\
"""
# SMALL as KenLM's build_binary writes it
BINARY = zlib.decompress(
    base64.b85decode(
        "c-qU&O)OBz$yLZGDJihh*U!#KO-##7%}LQq&d=3P&QD2INXswEO)OC;OD!tS%+FIW<zhg9274f}pAks>2Lg}?BUFY7OdhaD7Gr_Z%nYc26^IM!6!%)T"
        "mBQ6x1A^JvmoJHnvxD?=<$V8GTl^p!WRJO))}-1$-LD|#pEv|jeeBSznKSpznkfl#Ljw@opFQKV@9dc~c0jzB;}cUx%SK~ikebG#w;yV&Yg$3_nr-G6_8"
        "e+f0Er{pZBv?;ZO33!48;0CB9S490RW56PcQ"
    )
)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SPEECHLAB_CACHE", str(tmp_path / "cache"))


class Arpa:
    """An ARPA file read and looked up in the plainest way."""

    def __init__(self, path: Path) -> None:
        self.logs: dict[tuple[str, ...], float] = {}
        self.backs: dict[tuple[str, ...], float] = {}
        for line in path.read_text("utf-8").split("\n"):
            if len(fields := line.split("\t")) > 1:
                words = tuple(fields[1].split(" "))
                self.logs[words] = float(fields[0])
                self.backs[words] = float(fields[2]) if len(fields) > 2 else 0.0
        self.order = max(map(len, self.logs))
        self.words = [words[0] for words in self.logs if len(words) == 1 and words != ("<s>",)]

    def log10(self, history: tuple[str, ...], word: str) -> float:
        history = history[-(self.order - 1) :]
        if (*history, word) in self.logs:
            return self.logs[*history, word]
        return self.backs.get(history, 0.0) + self.log10(history[1:], word) if history else -100.0

    def sums(self, most: int = 1000) -> list[float]:
        """What the probabilities of all words add up to, behind histories that have any of their own."""
        histories = sorted({words[:-1] for words in self.logs})
        histories = [(), *random.Random(0).sample(histories, min(most, len(histories)))]
        return [sum(10 ** self.log10(history, word) for word in self.words) for history in histories]

    def of(self, sentence: str) -> float:
        words = ("<s>", *sentence.split(" "), "</s>")
        return sum(self.log10(words[:i], words[i]) for i in range(1, len(words)))


def asked(model: ngram.Ngram, sentence: str) -> float:
    """What KenLM says of a sentence, end included."""
    places = {token: place for place, token in enumerate(dict.fromkeys(sentence.split(" ")))}
    lm, _ = ngram.kenlm(model, list(places))
    state, total = lm.start(False), 0.0
    for token in sentence.split(" "):
        state, log10 = lm.score(state, places[token])
        total += log10
    return total + lm.finish(state)[1]


# --- counting ---


def kneser_ney(sentences: list[str]) -> dict[tuple[str, str], float]:
    """Bigrams that were seen, by the formula of back-off: (c - D) / c(h), D = n1 / (n1 + 2 n2); and unigrams by their left neighbours."""
    pairs = Counter(pair for s in sentences for pair in itertools.pairwise(["<s>", *s.split(" "), "</s>"]))
    times = Counter(pairs.values())
    discount = times[1] / (times[1] + 2 * times[2])
    before = Counter(first for first, _ in pairs.elements())
    left = Counter(second for _, second in pairs)
    found = {(first, second): (count - discount) / before[first] for (first, second), count in pairs.items()}
    return found | {("", word): count / len(pairs) for word, count in left.items()}


@pytest.fixture(scope="module")
def texts(prompts) -> dict[str, list[str]]:
    said = {split: [ctc.spoken(c.supervisions[0].text) for c in prompts.cuts[split]] for split in ("train", "test")}
    return {split: [text for text in found if text] for split, found in said.items()}


def test_bigrams_are_kneser_and_neys(texts):
    arpa = Arpa(ngram.train(texts["train"], 2).path)
    expected = kneser_ney(texts["train"])
    assert len(expected) > 1000
    for (first, second), probability in expected.items():
        assert 10 ** arpa.log10((first,) if first else (), second) == pytest.approx(probability, rel=1e-5), (first, second)


@pytest.mark.parametrize("order", [2, 3, 5])
def test_probabilities_behind_every_history_of_real_texts_add_up_to_one(texts, order):
    sums = Arpa(ngram.train(texts["train"], order).path).sums()
    assert len(sums) > 500
    assert max(abs(total - 1) for total in sums) < 1e-4


@given(
    st.lists(st.lists(st.sampled_from("abcde"), min_size=1, max_size=6).map(" ".join), min_size=1, max_size=8),
    st.sampled_from(ngram.ORDERS),
)
@example(["a b c", "d e"], 2)  # no bigram seen twice
@example(["a a"], 2)  # all there is follows a
@settings(max_examples=60, deadline=None)
def test_so_they_do_of_texts_as_small_as_can_be(sentences, order):
    model = ngram.train(sentences, order)
    arpa = Arpa(model.path)
    assert max(abs(total - 1) for total in arpa.sums()) < 1e-3
    assert min(log for words, log in arpa.logs.items() if words != ("<s>",)) > -10  # what was seen can be
    assert asked(model, sentences[0]) == pytest.approx(arpa.of(sentences[0]), abs=1e-3)


def test_kaldingram_alone_holds_what_it_saw_once_for_impossible(tmp_path):
    """Negative control of the fallback."""
    (tmp_path / "text").write_text("a b c\nd e\n")
    command = [
        sys.executable,
        "-m",
        "kaldingram.train",
        "--ngram-order",
        "2",
        "--text",
        str(tmp_path / "text"),
        "--lm",
        str(tmp_path / "lm"),
    ]
    subprocess.run(command, check=True, capture_output=True)
    assert Arpa(tmp_path / "lm").log10(("a",), "b") == -99
    assert 10 ** Arpa(ngram.train(["a b c", "d e"], 2).path).log10(("a",), "b") == pytest.approx(1 - ngram.DISCOUNT)


def test_perplexity_is_kaldingrams_and_kenlms(texts):
    from kaldingram.ppl import compute_ppl
    from kaldingram.prune import ArpaParser

    model = ngram.train(texts["train"], 3)
    known = [text for text in texts["test"] if set(text.split()) <= set(model.words)]
    assert len(known) > 50
    theirs = compute_ppl(ArpaParser().loadf(str(model.path), encoding="utf-8")[0], known)
    assert theirs["num_oov"] == 0
    ours = sum(asked(model, text) for text in known)
    assert ours == pytest.approx(theirs["logprob"], rel=1e-5)
    assert ours == pytest.approx(sum(map(Arpa(model.path).of, known)), rel=1e-5)
    tokens = sum(text.count(" ") + 2 for text in known)
    mixed = [word for text in texts["train"] for word in text.split()]
    random.Random(0).shuffle(mixed)
    shuffled = ngram.train([" ".join(mixed[i : i + 5]) for i in range(0, len(mixed), 5)], 3)
    perplexities = [10 ** (-sum(asked(m, text) for text in known) / tokens) for m in (model, shuffled)]
    assert perplexities[0] < 0.7 * perplexities[1], "an order of words was learned"


def test_letters_of_any_language_come_back():
    model = ngram.train(["à la ▁carte ё", "हिन्दी भाषा", "e\u0301 x"], 2)
    assert set(model.words) == {"à", "la", "▁carte", "ё", "हिन्दी", "भाषा", "e\u0301", "x"}
    assert asked(model, "à la ▁carte ё") > asked(model, "ё la à ▁carte")


def test_equal_sentences_are_counted_once(monkeypatch):
    first = ngram.train(["a b", "c", "a b"], 2)
    before = first.path.stat().st_mtime_ns
    monkeypatch.setattr(ngram, "_arpa", lambda *_: pytest.fail("counted again"))
    assert ngram.train(["", "c", "a b", "a b"], 2) == first
    assert first.path.stat().st_mtime_ns == before
    assert [p.name for p in first.path.parent.iterdir() if not p.name.startswith(".")] == [first.path.name]
    monkeypatch.undo()


def test_other_sentences_or_another_order_are_another_model():
    models = [ngram.train(*args) for args in ((["a b", "c"], 2), (["a b", "c"], 3), (["a b", "c", "c"], 2), (["a", "b c"], 2))]
    assert len({m.sha256 for m in models}) == len({m.path for m in models}) == 4


@pytest.mark.parametrize(
    ("sentences", "order", "message"),
    [
        (["a"], 1, r"order(.|\n)*got: *1\n *expected: *2 to 6"),
        (["a"], 7, r"order(.|\n)*got: *7"),
        ([], 3, r"No n-gram model(.|\n)*0 tokens in 0 sentences(.|\n)*give texts"),
        (["", ""], 3, r"0 tokens in 0 sentences"),
        (["a b c", "d e f"], 3, r"6 tokens in 2 sentences(.|\n)*1 to 5 tokens(.|\n)*lmplz"),
    ],
)
def test_what_cannot_be_counted(sentences, order, message, monkeypatch):
    monkeypatch.setattr(ngram, "MOST_TOKENS", 5)
    with pytest.raises(InputError, match=message):
        ngram.train(sentences, order)


def test_counting_leaves_no_bars_of_every_order_behind(capfd):
    ngram.train(["a b", "c"], 3)
    assert "cal_f" not in capfd.readouterr().err


# --- files ---


def test_files_of_others_plain_gzipped_and_binary_say_the_same(tmp_path, capfd):
    (tmp_path / "a.arpa").write_text(SMALL)
    (tmp_path / "a.arpa.gz").write_bytes(gzip.compress(SMALL.encode()))
    (tmp_path / "a.bin").write_bytes(BINARY)
    models = [
        ngram.read(tmp_path / "a.arpa"),
        ngram.read(str(tmp_path / "a.arpa.gz")),
        ngram.read(tmp_path / "a.bin", ["b", "a", "<s>", "b"]),
    ]
    assert [m.words for m in models] == [("a", "b"), ("a", "b"), ("b", "a")]
    assert ngram.read(tmp_path / "a.bin").words == ()
    for model in models:
        assert asked(model, "a b") == pytest.approx(-0.8, abs=1e-5)  # all three are bigrams of the file
        assert asked(model, "b a") == pytest.approx(-0.3 - 0.4 - 0.1 - 0.5 - 0.2 - 0.6, abs=1e-5)  # and here it backs off
        assert asked(model, "a zebra") < -100
    assert capfd.readouterr().err == "", "KenLM draws bars on standard error"


BROKEN = {
    "empty": b"",
    "text": b"hello\n",
    "noise": bytes(random.Random(0).randbytes(5000)),
    "no unigrams": b"\\data\\\nngram 1=4\n",
    "cut among unigrams": SMALL[:70].encode(),
    "gzip, cut": gzip.compress(SMALL.encode())[:40],
    "gzip of text": gzip.compress(b"hello"),
    "latin-1": SMALL.replace("b", "é").encode("latin-1"),
}


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN)
def test_a_file_that_is_no_model_is_refused_when_it_is_read(content, tmp_path):
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(InputError, match="not an n-gram model") as e:
        ngram.read(tmp_path / "x")
    assert_complete(e)
    assert str(tmp_path / "x") in str(e.value)


def test_so_are_a_folder_and_a_file_that_is_not_there(tmp_path):
    for path, reason in ((tmp_path, "Is a directory"), (tmp_path / "nothing", "No such file")):
        with pytest.raises(InputError, match=f"not an n-gram model(.|\n)*{reason}"):
            ngram.read(path)


DAMAGED = {
    "another count": (SMALL.replace("1=4", "1=5"), "Could not parse"),
    "no end": (SMALL[:-8], "End of file|end"),
    "a probability over 1": (SMALL.replace("-0.5\ta", "0.5\ta"), "Positive log probability"),
    "no number": (SMALL.replace("-0.3\ta b", "x\ta b"), "Could not parse"),
    "an unknown word": (SMALL.replace("a b", "a c"), "c"),
    "no beginning": (SMALL.replace("-99\t<s>\t-0.3\n", "").replace("1=4", "1=3"), "missing <s>"),
    "of order 7": (SMALL.replace("2=3", "2=3\nngram 3=0\nngram 4=0\nngram 5=0\nngram 6=0\nngram 7=0"), "order 7"),
}


@pytest.mark.parametrize(("content", "reason"), DAMAGED.values(), ids=DAMAGED)
def test_what_only_kenlm_finds_is_an_input_error_too(content, reason, tmp_path, capfd):
    (tmp_path / "x").write_text(content)
    with pytest.raises(InputError, match=f"not an n-gram model(.|\n)*({reason})") as e:
        ngram.kenlm(ngram.read(tmp_path / "x"), ["a"])
    assert_complete(e)
    assert "pip-req-build" not in str(e.value) and ".cc:" not in str(e.value)
    assert capfd.readouterr().err == ""


def damaged(path: Path, place: int, length: int = 1) -> ngram.Ngram:
    path.write_bytes(BINARY[:place] + length * b"\xff" + BINARY[place + length :])
    return ngram.read(path, ["a", "b"])


@pytest.mark.parametrize(
    ("place", "length", "reason"),
    [(70, 1, "test values"), (144, 8, r"died of it \(signal 11\)"), (223, 1, "probabilities that are none")],
)
def test_a_damaged_binary_does_not_take_the_process_along(place, length, reason, tmp_path):
    model = damaged(tmp_path / "x", place, length)
    with pytest.raises(InputError, match=f"not an n-gram model(.|\n)*{reason}"):
        ngram.kenlm(model, ["a", "b"])


def test_nor_does_one_that_kenlm_never_gets_through(tmp_path, monkeypatch):
    monkeypatch.setattr(ngram, "PATIENCE", 1.0)
    with pytest.raises(InputError, match="did not come to an end within 1 s"):
        ngram.kenlm(damaged(tmp_path / "x", 284), ["a", "b"])


def test_without_the_trial_it_would(tmp_path):
    """Negative control."""
    path = damaged(tmp_path / "x", 144, 8).path
    code = f"from speechlab import ngram; ngram._try = lambda *_: None; ngram.kenlm(ngram.read({str(path)!r}, ['a']), ['a'])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60, env=os.environ).returncode < 0


def test_a_cut_binary_says_how_much_is_missing(tmp_path):
    (tmp_path / "x").write_bytes(BINARY[:200])
    with pytest.raises(InputError, match=r"size 200 but the headers say"):
        ngram.kenlm(ngram.read(tmp_path / "x", ["a"]), ["a"])


def test_a_token_never_counted_is_as_good_as_impossible():
    assert math.isclose(asked(ngram.train(["a b"], 2), "zebra"), -100, abs_tol=2)
