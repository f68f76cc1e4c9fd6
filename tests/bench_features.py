"""How fast features are made: ours in batches against transformers', torchaudio's and lhotse's extractors.

Command: ``OMP_NUM_THREADS=1 python tests/bench_features.py``; half a minute. It prints a table: hours of audio a second on
one core, and the ratio to the first row of its group. Clips are the real ones of ``prompts``' test split, decoded
beforehand, in batches of 16 like lengths; each row is the best of three runs. Ours
are first checked to equal transformers' and torchaudio's. lhotse's WhisperFbank wants librosa, which is not installed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
import torch
from lhotse.features import Fbank as LhotseFbank
from lhotse.features import FbankConfig
from torchaudio.compliance import kaldi
from transformers import WhisperFeatureExtractor

from speechlab import corpora
from speechlab.batches import collate
from speechlab.features import FULL_CONTEXT, Fbank, LogMel, MelEnergies, Mfcc, RawWave

BATCH = 16


def best(work: Callable[[], object], runs: int = 3) -> float:
    """Processor seconds of the fastest run, after one to warm up."""
    work()
    seconds = []
    for _ in range(runs):
        start = time.process_time()
        work()
        seconds.append(time.process_time() - start)
    return min(seconds)


def main() -> None:
    torch.set_num_threads(1)
    cuts = sorted(corpora.prepare("prompts").cuts["test"], key=lambda c: c.duration)
    waves = [corpora.load_audio(c) for c in cuts if c.duration < 29]
    hours = sum(map(len, waves)) / 16_000 / 3600
    groups = [waves[i : i + BATCH] for i in range(0, len(waves), BATCH)]
    batches = [(collate([("", "", w) for w in g]), torch.tensor([len(w) for w in g])) for g in groups]
    log_mel, fbank, theirs = LogMel(), Fbank(), WhisperFeatureExtractor()
    lhotse_fbank = LhotseFbank(FbankConfig(num_mel_bins=80, dither=0.0))

    def front(module: torch.nn.Module) -> Callable[[], object]:
        return lambda: [module(b.wave_BN, samples) for b, samples in batches]

    def per_clip(work: Callable[[np.ndarray], object]) -> Callable[[], object]:
        return lambda: [work(w) for w in waves]

    def transformers(some: Sequence[np.ndarray]) -> torch.Tensor:
        return theirs(list(some), sampling_rate=16_000, return_tensors="pt").input_features

    ours = log_mel(batches[0][0].wave_BN, FULL_CONTEXT)
    assert (ours - transformers(groups[0])).abs().max() < 1e-5, "transformers' extractor gives something else"
    feats, frames = fbank(batches[0][0].wave_BN, batches[0][1])
    assert np.abs(feats[0, : frames[0]].numpy() - kaldi.fbank(torch.from_numpy(waves[0])[None], num_mel_bins=80).numpy()).max() < 1e-4

    table = {
        "Whisper's log-mel": {
            "ours, in the batch's length": lambda: [log_mel(b.wave_BN, b.context) for b, _ in batches],
            "ours, at 30 s": lambda: [log_mel(b.wave_BN, FULL_CONTEXT) for b, _ in batches],
            "transformers, batches, at 30 s": lambda: [transformers(g) for g in groups],
            "transformers, one clip at a time, at 30 s": per_clip(lambda w: transformers([w])),
        },
        "Kaldi's fbank": {
            "ours, in batches": front(fbank),
            "torchaudio kaldi.fbank, one clip at a time": per_clip(lambda w: kaldi.fbank(torch.from_numpy(w)[None], num_mel_bins=80)),
            "lhotse Fbank, one clip at a time": per_clip(lambda w: lhotse_fbank.extract(w, 16_000)),
            "lhotse Fbank, in batches": lambda: [lhotse_fbank.extract_batch(g, 16_000) for g in groups],
        },
        "others": {"log-mel, normalised": front(MelEnergies()), "MFCC": front(Mfcc()), "raw wave": front(RawWave())},
    }
    rows = []
    for group, works in table.items():
        speeds = {name: hours / best(work) for name, work in works.items()}
        first = next(iter(speeds.values()))
        rows += [(group, name, round(speed, 3), round(speed / first, 2)) for name, speed in speeds.items()]
    print(f"{len(waves)} clips, {hours * 60:.1f} min, batches of {BATCH}, one core")
    print(pd.DataFrame(rows, columns=["features", "who", "hours of audio a second", "ratio"]).to_string(index=False))


if __name__ == "__main__":
    main()
