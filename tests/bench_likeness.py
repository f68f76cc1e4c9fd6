"""The exact search of likeness over 100,000 utterances, and what a graph would cost.

    python tests/bench_likeness.py

Prints seconds to open what is kept and to answer a question, and for an HNSW graph by the same library to build it and to answer.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import numpy as np
from usearch.compiled import MetricKind
from usearch.index import Index, search

UTTERANCES, DIMENSIONS, QUESTIONS = 100_000, 1024, 100


def main() -> None:
    """Print the measurements."""
    rng = np.random.default_rng(0)
    kinds = rng.standard_normal((2000, DIMENSIONS))[rng.integers(0, 2000, UTTERANCES)]
    vectors = (kinds + 0.7 * rng.standard_normal(kinds.shape)).astype(np.float16)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "vectors.npy"
        np.save(path, vectors)
        began = time.perf_counter()
        kept = np.load(path, mmap_mode="r")
        search(kept, np.asarray(kept[7]), 10, MetricKind.Cos, exact=True)
        print(f"opened, and the first question answered: {time.perf_counter() - began:.3f} s, {path.stat().st_size / 1e6:.0f} MB")
        began = time.perf_counter()
        exact = [search(kept, np.asarray(kept[i]), 10, MetricKind.Cos, exact=True).keys for i in range(QUESTIONS)]
        print(f"exact: {1000 * (time.perf_counter() - began) / QUESTIONS:.1f} ms a question")
    graph = Index(ndim=DIMENSIONS, metric="cos", dtype="f16")
    began = time.perf_counter()
    graph.add(np.arange(UTTERANCES), vectors)
    print(f"graph: {time.perf_counter() - began:.0f} s to build")
    began = time.perf_counter()
    found = [graph.search(vectors[i], 10).keys for i in range(QUESTIONS)]
    milliseconds = 1000 * (time.perf_counter() - began) / QUESTIONS
    recall = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(exact, found, strict=True)])
    print(f"graph: {milliseconds:.1f} ms a question, {recall:.1%} of the nearest found")


if __name__ == "__main__":
    main()
