"""Made utterances and made counts, for tests and benches of the statistics."""

from __future__ import annotations

import dataclasses
import os
import random
import re
import shutil
import subprocess

import numpy as np
import pytest

from speechlab.scoring import Scores, score
from speechlab.text import normaliser

RAW = normaliser("raw")


def corrupt(words: list[str], vocabulary: list[str], rng: random.Random, rate: float) -> list[str]:
    """Substitute, drop and insert words, each at about a third of ``rate``."""
    out = []
    for word in words:
        draw = rng.random() / rate * 3
        out += [] if draw < 1 else [rng.choice(vocabulary)] if draw < 2 else [word, rng.choice(vocabulary)] if draw < 3 else [word]
    return out


def fuzz(utterances: int, rate: float, seed: int) -> tuple[list[str], list[str]]:
    rng = random.Random(seed)
    vocabulary = [f"w{i}" for i in range(40)]  # few words, so that chance matches make alignment hard
    refs = [rng.choices(vocabulary, k=rng.randint(1, 25)) for _ in range(utterances)]
    return [" ".join(r) for r in refs], [" ".join(corrupt(r, vocabulary, rng, rate)) for r in refs]


def made(words: np.ndarray, errors: np.ndarray, speakers: np.ndarray | None = None, operations: tuple[str, ...] | None = None) -> Scores:
    """Scores with given counts, all errors substitutions, for simulations."""
    size = len(words)
    base = score([""] * size, [""] * size, RAW, None if speakers is None else [str(s) for s in speakers])
    return dataclasses.replace(base, words_U=words, hits_U=words - errors, substitutions_U=errors, operations=operations or base.operations)


def some_scores(utterances: int = 60, speakers: int = 25, seed: int = 5) -> Scores:
    refs, hyps = fuzz(utterances, 0.2, seed)
    return score(refs, hyps, RAW, [f"s{i % speakers}" for i in range(utterances)])


def two_systems(speakers: int = 25, seed: int = 1, utterances: int = 120) -> tuple[Scores, Scores]:
    """b makes most of a's errors, and some fewer."""
    refs, hyps = fuzz(utterances, 0.3, seed)
    rng = random.Random(seed)
    better = [r if rng.random() < 0.3 else h for r, h in zip(refs, hyps, strict=True)]
    names = [f"s{i % speakers}" for i in range(utterances)]
    return score(refs, hyps, RAW, names), score(refs, better, RAW, names)


def simulated(rng: np.random.Generator, speakers: int, each: int, spread: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Words, errors and speakers; a speaker's rate is beta with mean 0.1 and standard deviation ``spread`` (0: all alike)."""
    size = 0.1 * 0.9 / spread**2 - 1 if spread else 0
    rates = rng.beta(0.1 * size, 0.9 * size, speakers) if spread else np.full(speakers, 0.1)
    who = np.repeat(np.arange(speakers), each)
    words = rng.integers(4, 30, len(who))
    return words, rng.binomial(words, rates[who]), who


def need_sctk() -> None:
    """Skip where NIST's tools are missing, fail where they must not be."""
    if not shutil.which("sctk"):
        if os.environ.get("CI"):
            pytest.fail("sctk is missing: CI installs the Debian package sctk")
        pytest.skip("sctk is missing: apt-get install sctk")


def assert_complete(e) -> None:
    for part in ("got:", "expected:", "do:"):
        assert part in str(e.value), str(e.value)


def sclite(refs: list[str], hyps: list[str], folder) -> dict[str, int]:
    """Sums that NIST sclite prints; an empty hypothesis keeps its line, for a missing one would be dropped silently."""
    for name, texts in (("ref", refs), ("hyp", hyps)):
        (folder / name).write_text("".join(f"{text} (s{i % 5}-u{i:05d})\n" for i, text in enumerate(texts)))
    return sums("ref", "hyp", folder)


def sums(ref: str, hyp: str, folder) -> dict[str, int]:
    """Sums that NIST sclite prints for two trn files of a folder."""
    need_sctk()
    command = ["sctk", "sclite", "-r", ref, "trn", "-h", hyp, "trn", "-i", "spu_id", "-s", "-o", "rsum", "stdout"]
    out = subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout
    row = re.search(r"\| Sum +\|([^|]*)\|([^|]*)\|", out)
    assert row, out
    keys = ["utterances", "words", "hits", "substitutions", "deletions", "insertions", "errors"]
    return dict(zip(keys, map(int, (row[1] + row[2]).split()), strict=False))
