"""N-gram language models: counted from texts and kept in the cache, or read from a file that the user names.

Sentences come and go as tokens with single spaces between: words, or labels of a CTC model. Counts and Kneser-Ney smoothing
are kaldingram's (back-off and unmodified, as SRILM's ``-ukndiscount``), mended where texts are few: if an order has no n-gram seen
exactly twice its discount is 1, and each one seen once would have probability 0; and behind a history that every token
followed what is discounted would be lost. The vocabulary is closed: a token never counted has the 1e-100 that KenLM gives to
what a file leaves out.

KenLM, inside flashlight-text, answers queries. It refuses a damaged ARPA file, but believes its own binary format, where a few
wrong bytes can end the process: a binary is first tried in a process of its own. That finds a broken header, not every byte,
so name binaries that you trust.

Not covered: pruning; more than a few million tokens (each takes about 1 kB of memory while counting: KenLM's lmplz counts on
disk, and its file can be read here); order 1, where kaldingram counts the beginning of a sentence as a word.
"""

from __future__ import annotations

import contextlib
import gc
import gzip
import hashlib
import io
import itertools
import os
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from speechlab import fetch
from speechlab.errors import InputError
from speechlab.progress import track
from speechlab.runs import write_atomic
from speechlab.units import Seconds

ORDERS = range(2, 7)  # from what kaldingram gets right to what this KenLM was compiled for
DISCOUNT = 0.75  # of an order whose counts give none: Church & Gale's (1991) for bigrams, the textbook's
MOST_TOKENS = 4_000_000  # counted here: about 4 GB and three minutes
VERSION = 1  # raise it when equal sentences give another file
MARKS = ("<s>", "</s>", "<unk>")  # of an n-gram file; no words
BINARY = b"mmap lm http://kheafield.com/code"  # KenLM's
LONGEST_LINE = 10_000  # characters of an ARPA file's line that are looked at
PATIENCE: Seconds = 120.0  # with a binary that is tried


@dataclass(frozen=True)
class Ngram:
    """A language model on disk.

    Attributes:
        path: An ARPA file, or one of KenLM's binaries.
        sha256: Of the file: belongs beside every number that it helped to make.
        words: Its tokens, without the marks of beginning, end and unknown; of a binary those that came with it.
    """

    path: Path
    sha256: str
    words: tuple[str, ...] = field(repr=False)


def train(sentences: Sequence[str], order: int = 3) -> Ngram:
    """Count and smooth an n-gram model, or take it from the cache: equal sentences give the same file.

    Args:
        sentences: Tokens with single spaces between; empty ones do not count.
        order: Tokens of the longest n-gram.

    Raises:
        InputError: if the order cannot be had, or there is nothing to count, or too much.
    """
    if order not in ORDERS:
        raise InputError("The order of an n-gram model cannot be had.", got=order, expected=f"{ORDERS.start} to {ORDERS.stop - 1}")
    counted = [sentence for sentence in sentences if sentence]
    tokens = sum(sentence.count(" ") + 1 for sentence in counted)
    if not 0 < tokens <= MOST_TOKENS:
        raise InputError(
            "No n-gram model can be counted from these texts.",
            got=f"{tokens:,} tokens in {len(counted):,} sentences",
            expected=f"1 to {MOST_TOKENS:,} tokens",
            do="give texts" if not tokens else "count with KenLM's lmplz, and name its ARPA file",
        )
    digest = hashlib.sha256(f"{VERSION} {order}".encode())
    for sentence in sorted(counted):  # the order of sentences changes no count
        digest.update(b"\n" + sentence.encode())
    path = fetch.cache() / "ngrams" / f"{digest.hexdigest()[:16]}.arpa"
    with fetch.locked(path):
        if not path.is_file():
            write_atomic(path, _arpa(sorted(counted), order).encode())
    return read(path)


def read(path: str | Path, words: Iterable[str] = ()) -> Ngram:
    """A model that the user names.

    Args:
        path: An ARPA file, plain or gzipped, or a binary by KenLM's ``build_binary``.
        words: Of a binary, which does not list its own.

    Raises:
        InputError: if it is neither. What only shows on the way through it, :func:`kenlm` refuses.
    """
    path = Path(path).expanduser()
    try:
        with path.open("rb") as file:
            head = file.read(len(BINARY))
            file.seek(0)
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        found = dict.fromkeys(words if head == BINARY else _unigrams(path, head))
    except (OSError, EOFError, UnicodeDecodeError) as e:
        raise _not_one(path, getattr(e, "strerror", None) or str(e)) from None
    return Ngram(path, sha256, tuple(word for word in found if word not in MARKS and word.lower() not in MARKS))


def kenlm(model: Ngram, tokens: Sequence[str]) -> tuple[Any, Any]:
    """Load a model into memory.

    Args:
        model: What to load.
        tokens: What will be asked for, each once, by its place in this list.

    Returns:
        flashlight's KenLM, whose scores are logarithms to base 10, and the dictionary of the tokens.

    Raises:
        InputError: if KenLM refuses the file, or dies of it.
    """
    from flashlight.lib.text.decoder.kenlm import KenLM  # type: ignore[import-untyped]
    from flashlight.lib.text.dictionary import Dictionary  # type: ignore[import-untyped]

    with model.path.open("rb") as file:
        binary = file.read(len(BINARY)) == BINARY
    if binary:
        _try(model, tokens)
    dictionary = Dictionary()
    for token in tokens:
        dictionary.add_entry(token)
    try:
        with _quiet():
            return KenLM(str(model.path), dictionary), dictionary
    except (RuntimeError, UnicodeDecodeError, MemoryError) as e:  # of a message that quotes the file's bytes, the second
        raise _not_one(model.path, _reason(str(e))) from None


# --- counting --------------------------------------------------------------------------------------------------


def _arpa(sentences: list[str], order: int) -> str:
    from kaldingram.train import NgramCounts  # type: ignore[import-untyped]

    counts = NgramCounts(order)
    collecting = gc.isenabled()
    gc.disable()  # nothing here goes in circles, and looking for it takes longer than counting
    try:
        for sentence in track(sentences, f"counting {order}-grams", len(sentences)):
            counts.add_raw_counts_from_line(sentence)
        with contextlib.redirect_stderr(io.StringIO()):  # a bar for each order and history
            counts.cal_discounting_constants()
            counts.d = [d if d < 1 else DISCOUNT for d in counts.d]
            counts.cal_f()
            full = _fill(counts)
            counts.cal_bow()
            for *before, last in full:
                counts.counts[len(before)][tuple(before)].word_to_bow[last] = None
            file = io.StringIO()
            counts.print_as_arpa(file)
    finally:
        if collecting:
            gc.enable()
    return file.getvalue()


def _fill(counts: Any) -> list[tuple[str, ...]]:
    """Give histories that every word followed what was discounted, since there it has nowhere to go; returns them."""
    full = []
    for shorter, longer in itertools.pairwise(counts.counts):
        for history, seen in longer.items():
            if sum(shorter[history[1:]].word_to_f[word] for word in seen.word_to_f) > 1 - 1e-9:
                total = sum(seen.word_to_f.values())
                seen.word_to_f = {word: f / total for word, f in seen.word_to_f.items()}
                full.append(history)
    return full


# --- files -----------------------------------------------------------------------------------------------------


def _unigrams(path: Path, head: bytes) -> list[str]:
    """The tokens of an ARPA file."""
    opened: Any = gzip.open if head[:2] == b"\x1f\x8b" else open
    with opened(path, "rt", encoding="utf-8", newline="\n") as file:
        lines = (line.strip() for line in iter(lambda: file.readline(LONGEST_LINE), ""))
        first = next((line for line in lines if line), "")
        if first != "\\data\\":
            raise _not_one(path, f"its first line is {first[:80]!r}" if first else "it is empty")
        words: list[str] = []
        inside = False
        for line in lines:
            if line.startswith("\\"):
                if inside:
                    return words
                inside = line == "\\1-grams:"
            elif inside and line:
                words.append((line.split() * 2)[1])  # probability, word, and for most a back-off weight
    raise _not_one(path, "it ends before its 2-grams" if inside else "it has no 1-grams")


_TRIAL = """
import sys
from flashlight.lib.text.decoder.kenlm import KenLM
from flashlight.lib.text.dictionary import Dictionary
tokens = sys.stdin.buffer.read().decode().split("\\n")
dictionary = Dictionary()
for token in tokens:
    dictionary.add_entry(token)
try:
    model = KenLM(sys.argv[1], dictionary)
except (RuntimeError, UnicodeDecodeError, MemoryError) as e:
    sys.exit(str(e))
state = model.start(False)
for place in range(len(tokens)):
    alone = model.score(model.start(False), place)[1]
    state, after = model.score(state, place)
    if not (-1e6 < alone <= 0 and -1e6 < after <= 0):
        sys.exit("it has probabilities that are none")
"""


def _try(model: Ngram, tokens: Sequence[str]) -> None:
    """Ask a binary for everything once, where it can do no harm."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", _TRIAL, str(model.path)], input="\n".join(tokens).encode(), capture_output=True, timeout=PATIENCE
        )
    except subprocess.TimeoutExpired:
        raise _not_one(model.path, f"KenLM did not come to an end within {PATIENCE:g} s") from None
    if done.returncode < 0:
        raise _not_one(model.path, f"KenLM died of it (signal {-done.returncode})")
    if done.returncode:
        raise _not_one(model.path, _reason(done.stderr.decode("utf-8", "replace")))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Standard error closed, for C++ that writes a progress bar of its own there, under Python's."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _reason(said: str) -> str:
    """What KenLM says, without the place in its source."""
    return re.sub(r"^.*? threw \w+( because `.*?')?\.?\s*", "", said.strip(), flags=re.S)[:300]


def _not_one(path: Path, reason: str) -> InputError:
    return InputError(
        "The file is not an n-gram model that can be used.",
        got=f"{path}: {reason}",
        expected=f"an ARPA file in UTF-8 (plain or gzipped) or a KenLM binary, of order {ORDERS.stop - 1} at most",
        do="name another, or let one be counted from texts",
    )
