"""Trimming and level: what an experiment asks to be done to every clip of a corpus, as numbers beside the cuts.

Notable: no audio is written. A trimmed clip is a cut with a later start and a shorter duration, so the plan knows it;
a level is a gain that :func:`speechlab.corpora.load_audio` applies. Both are in the manifest and its hash, and
:func:`speechlab.corpora.base.origin` leads back to the sample of the original file.

Not covered: taking out pauses inside a clip, dynamic compression.
"""

from __future__ import annotations

import hashlib
import json
import math
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from speechlab import fetch, pool, vad
from speechlab.audio import check
from speechlab.config import CorpusConfig
from speechlab.corpora.base import SPLITS, Corpus, changed, load_audio
from speechlab.progress import track
from speechlab.units import SAMPLE_RATE, Decibels

BLOCK = 0.4  # seconds over which BS.1770 gates; shorter clips are one block


def conditioned(corpus: Corpus, config: CorpusConfig) -> Corpus:
    """The corpus trimmed and levelled as its config says; the same object where it says nothing.

    Args:
        corpus: Prepared.
        config: ``trim``, ``level`` and ``level_db`` count.
    """
    if config.trim is None and config.level == "recorded":
        return corpus
    from lhotse.utils import fastcopy

    settings = config.model_dump(include={"trim", "level", "level_db"})
    key = hashlib.sha256(f"{corpus.manifest_sha256}\n{json.dumps(settings, sort_keys=True)}".encode()).hexdigest()[:12]
    kept = fetch.cache() / "corpora" / corpus.name / f"conditioned-{key}.json"
    cuts = [cut for split in SPLITS for cut in corpus.cuts[split]]
    with fetch.locked(kept):
        if not kept.exists():
            work = partial(_numbers, trim=config.trim, level=config.level, level_db=config.level_db)
            done = track(pool.over(work, cuts, pool.workers_for(len(cuts))), "measuring clips", len(cuts))
            part = kept.with_suffix(".part")
            part.write_text(json.dumps({cut.id: numbers for cut, numbers in done}))
            part.replace(kept)
    numbers = json.loads(kept.read_text())

    def change(cut: Any) -> Any:
        first, last, gain = numbers[cut.id]
        seconds = (last - first) / SAMPLE_RATE
        (said,) = cut.supervisions
        custom = {**cut.custom, "gain": gain} if gain else cut.custom
        said = fastcopy(said, start=0.0, duration=seconds)
        return fastcopy(cut, start=cut.start + first / SAMPLE_RATE, duration=seconds, supervisions=[said], custom=custom)

    return changed(corpus, {split: list(map(change, corpus.cuts[split])) for split in SPLITS}, notes={"conditioned": settings})


def gain_to(wave_N: npt.ArrayLike, level: str, level_db: Decibels) -> Decibels:
    """The gain that brings a clip to a level, in dB, rounded to a hundredth.

    Args:
        wave_N: 16 kHz samples.
        level: ``peak`` for the largest magnitude in dBFS, ``loudness`` for LUFS (ITU-R BS.1770-4, by pyloudnorm),
            ``recorded`` for no gain.
        level_db: Where to.

    Returns:
        Never so much that a sample would pass full scale; 0 for silence.

    Raises:
        InputError: as for :func:`speechlab.audio.check`.
    """
    wave = check(wave_N)
    peak = 20 * math.log10(max(float(np.abs(wave).max()), 1e-9))
    if level == "recorded" or peak < -90:
        return 0.0
    now = peak if level == "peak" else _loudness(wave)
    return math.floor(100 * min(level_db - now, -peak)) / 100 if math.isfinite(now) else 0.0


def _loudness(wave_N: Any) -> float:
    import pyloudnorm

    block = min(BLOCK, wave_N.size / SAMPLE_RATE)
    with np.errstate(divide="ignore"):  # a clip below the gate is -inf
        return float(pyloudnorm.Meter(SAMPLE_RATE, block_size=block).integrated_loudness(wave_N.astype(np.float64)))


def _numbers(cut: Any, trim: float | None, level: str, level_db: Decibels) -> tuple[int, int, Decibels]:
    wave_N = load_audio(cut)
    first, last = vad.trimmed(wave_N, trim) if trim is not None else (0, len(wave_N))
    return first, last, gain_to(wave_N[first:last], level, level_db)
