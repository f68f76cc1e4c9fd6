"""What augmentation costs: seconds of one core for each hour of audio, for each transform alone.

Command: ``OMP_NUM_THREADS=1 python tests/bench_augment.py``; half a minute. It prints a table over real clips of
``prompts``' test split, decoded beforehand; then what a room of the bank costs once a process. Noise from a folder
takes other prompts as recordings, in memory after the first use.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import pandas as pd

from speechlab import audio, corpora, effects
from speechlab.augment import cost
from speechlab.config import AugmentConfig, ClippingConfig, CodecConfig, GainConfig, NoiseConfig, RoomConfig, SpeedConfig

CLIPS = 64


def main() -> None:
    cuts = corpora.prepare("prompts").cuts["test"][:CLIPS]
    waves = [corpora.load_audio(c) for c in cuts]
    with tempfile.TemporaryDirectory() as folder:
        for i, wave in enumerate(waves[:4]):
            audio.save_flac(Path(folder) / f"{i}.flac", wave)
        configs = {
            "speed, 0.9 or 1.1": AugmentConfig(speed=SpeedConfig(factors=(0.9, 1.1))),
            "room, RT60 0.2 to 0.8 s": AugmentConfig(room=RoomConfig()),
            "noise, Gaussian": AugmentConfig(noise=NoiseConfig()),
            "noise, from a folder": AugmentConfig(noise=NoiseConfig(root=folder)),
            "gain": AugmentConfig(gain=GainConfig()),
            "clipping": AugmentConfig(clipping=ClippingConfig()),
            "codec, MP3": AugmentConfig(codec=CodecConfig(kinds=("mp3",))),
            "codec, Opus": AugmentConfig(codec=CodecConfig(kinds=("opus",))),
            "codec, telephone": AugmentConfig(codec=CodecConfig(kinds=("telephone",))),
        }
        seconds = {name: cost(config, waves).core_seconds_per_hour.item() for name, config in configs.items()}
    print(f"{len(waves)} clips, {sum(map(len, waves)) / 16_000 / 60:.1f} min")
    print(pd.Series(seconds, name="core seconds an hour of audio").round(2).to_string())
    for low, high in ((0.2, 0.3), (0.4, 0.6), (0.7, 0.8), (1.9, 2.0)):
        start = time.process_time()
        for i in range(4):
            effects.make_room(99, i, low, high)
        print(f"a room of {low} to {high} s: {(time.process_time() - start) / 4:.2f} s, once a process")


if __name__ == "__main__":
    main()
