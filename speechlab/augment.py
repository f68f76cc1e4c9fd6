"""What happens to training clips on the way to the model: which speed, room, noise, level, codec and masks each gets.

Notable: what a clip becomes is a pure function of (seed, epoch, clip id). Each transform draws from a stream of its
own, so that switching one off leaves the others as they were, and neither loader workers nor ranks nor order matter.
The transforms themselves are :mod:`speechlab.effects`.

Not covered: time warping, mixing of speakers, schedules over epochs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from speechlab import audio
from speechlab.audio import Wave
from speechlab.config import AugmentConfig, ClippingConfig, CodecConfig, GainConfig, NoiseConfig, RoomConfig, home
from speechlab.effects import background, clip, code, gain, make_room, noise, reverberation, room, sped, speed
from speechlab.errors import InputError
from speechlab.formats import SUFFIXES
from speechlab.units import FULL_CONTEXT, SAMPLE_RATE, Samples

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "ORDER",
    "Augmenter",
    "Masks",
    "background",
    "clip",
    "code",
    "cost",
    "gain",
    "make_room",
    "noise",
    "reverberation",
    "room",
    "speed",
]

ORDER = ("speed", "room", "noise", "gain", "clipping", "codec")  # of the waveform transforms: AugmentConfig's own
BANDS = 80  # in which SpecAugment's widths are given, whatever the front end has


@dataclass(frozen=True)
class Masks:
    """SpecAugment for one clip, independent of the front end's number of bands.

    Attributes:
        frames: The clip's own 10 ms frames; what lies behind them is padding.
        bands: Masked mel bands: (from, to) as shares of all bands.
        times: Masked frames: (from, to), the last exclusive and at most ``frames``.
    """

    frames: int
    bands: tuple[tuple[float, float], ...] = ()
    times: tuple[tuple[int, int], ...] = ()


class Augmenter:
    """The waveform transforms and masks of an experiment; picklable, and cheap to build.

    Args:
        config: What is done; an empty one leaves clips as they are.
        seed: Of the experiment.

    Raises:
        InputError: if a folder of noise is missing or holds no audio.
    """

    def __init__(self, config: AugmentConfig, seed: int) -> None:
        self.config = config
        self.seed = seed
        self._noises = _recordings(config.noise.root) if config.noise and config.noise.root else ()

    def __call__(self, wave_N: Wave, clip: str, epoch: int) -> Wave:
        """What the model hears of a clip in an epoch.

        Args:
            wave_N: 16 kHz samples.
            clip: Its id.
            epoch: From 0.

        Returns:
            float32, :meth:`samples` long, finite; noise, rooms and gain may take it past full scale.

        Raises:
            InputError: if the waveform is empty or not finite, or a noise recording cannot be used.
        """
        wave = audio.check(wave_N, clip)
        for _, _, do in self._deeds(clip, epoch, len(wave)):
            wave = do(wave)
        return audio.check(wave, clip)

    def speed(self, clip: str, epoch: int, n: Samples = 0) -> float:
        """The factor that a clip of n samples is sped up by: 1.1 is a tenth faster; 1.0 where speed is off.

        A clip that would be slowed down beyond 30 s, which is all that Whisper hears, keeps its speed.
        """
        if self.config.speed is None:
            return 1.0
        factors = self.config.speed.factors
        factor = factors[int(self._rng("speed", clip, epoch).integers(len(factors)))]
        return factor if sped(n, factor) <= FULL_CONTEXT * SAMPLE_RATE else 1.0

    def samples(self, n: Samples, clip: str, epoch: int) -> Samples:
        """How many samples :meth:`__call__` gives for a clip of n."""
        return sped(n, self.speed(clip, epoch, n))

    def masks(self, clip: str, epoch: int, frames: int) -> Masks | None:
        """SpecAugment for a clip.

        Args:
            clip: Its id.
            epoch: From 0.
            frames: Of 10 ms that it has in this epoch, padding left out.

        Returns:
            None where nothing is masked.
        """
        c = self.config.spec
        rng = self._rng("spec", clip, epoch)
        if c is None or rng.random() >= c.probability:
            return None
        bands = _intervals(rng, c.frequency_masks, c.frequency_width, BANDS)
        times = _intervals(rng, c.time_masks, min(c.time_width, int(c.time_share * frames)), frames)
        if not bands and not times:
            return None
        return Masks(frames, tuple((low / BANDS, high / BANDS) for low, high in bands), times)

    def story(self, clip: str, epoch: int, n: Samples = 0) -> dict[str, str]:
        """What is done to a waveform of n samples, in order and in words: ``{"room": "RT60 0.43 s, ..."}``."""
        return {name: words for name, words, _ in self._deeds(clip, epoch, n)}

    def _rng(self, transform: str, clip: str, epoch: int) -> np.random.Generator:
        return np.random.default_rng(audio.clip_seed(self.seed, f"{epoch}:{transform}:{clip}"))

    def _deeds(self, clip: str, epoch: int, n: Samples) -> Iterator[tuple[str, str, Callable[[Wave], Wave]]]:
        """Name, words and function of each transform that this clip gets in this epoch."""
        factor = self.speed(clip, epoch, n)
        if factor != 1:
            yield "speed", f"x {factor:g}", lambda wave: speed(wave, factor)
        for name in ORDER[1:]:
            section = getattr(self.config, name)
            if section is None:
                continue
            rng = self._rng(name, clip, epoch)
            if rng.random() < section.probability:
                words, do = getattr(self, f"_{name}")(section, rng)
                yield name, words, do

    def _room(self, c: RoomConfig, rng: np.random.Generator) -> tuple[str, Callable[[Wave], Wave]]:
        place = make_room(self.seed, int(rng.integers(c.rooms)), c.low, c.high)
        size = " x ".join(f"{side:.1f}" for side in place.size)
        return f"RT60 {place.rt60:.2f} s, {size} m, heard from {place.distance:.1f} m", lambda wave: room(wave, place.rir_N)

    def _noise(self, c: NoiseConfig, rng: np.random.Generator) -> tuple[str, Callable[[Wave], Wave]]:
        snr = float(rng.uniform(c.low, c.high))
        if c.root is None:
            seed = int(rng.integers(2**63))
            return f"SNR {snr:.1f} dB, Gaussian", lambda wave: noise(wave, snr, seed)
        path, at = self._noises[int(rng.integers(len(self._noises)))], float(rng.random())
        return f"SNR {snr:.1f} dB, {Path(path).name} from {at:.0%}", lambda wave: background(wave, _recording(path), snr, at)

    def _gain(self, c: GainConfig, rng: np.random.Generator) -> tuple[str, Callable[[Wave], Wave]]:
        db = float(rng.uniform(c.low, c.high))
        return f"{db:+.1f} dB", lambda wave: gain(wave, db)

    def _clipping(self, c: ClippingConfig, rng: np.random.Generator) -> tuple[str, Callable[[Wave], Wave]]:
        db = float(rng.uniform(c.low, c.high))
        return f"{db:.1f} dB below the peak", lambda wave: clip(wave, db)

    def _codec(self, c: CodecConfig, rng: np.random.Generator) -> tuple[str, Callable[[Wave], Wave]]:
        kind = c.kinds[int(rng.integers(len(c.kinds)))]
        if kind == "telephone":
            return "telephone: 8 kHz, G.711", lambda wave: code(wave, kind)
        rates = c.mp3_bitrates if kind == "mp3" else c.opus_bitrates
        rate = rates[int(rng.integers(len(rates)))]
        return f"{kind}, {rate / 1000:g} kbit/s", lambda wave: code(wave, kind, rate)


def cost(config: AugmentConfig, waves: Sequence[Wave], seed: int = 1) -> pd.DataFrame:
    """What each transform costs on this machine, measured on a few clips; rooms and recordings count as loaded.

    Args:
        config: The transforms that are named in it are measured, each alone.
        waves: Some seconds of real clips.
        seed: Of the experiment.

    Returns:
        Per transform: ``effect`` (its name), ``probability``, ``core_seconds_per_hour`` of audio where it is applied, and
        ``expected``, the same times the probability.

    Raises:
        InputError: if there are no clips, or as for :class:`Augmenter`.
    """
    import pandas as pd  # only this table needs it

    if not waves:
        raise InputError("There are no clips to measure on.", got="none", expected="some seconds of audio")
    hours = sum(len(wave) for wave in waves) / SAMPLE_RATE / 3600
    rows = []
    for name in ORDER:
        section = getattr(config, name)
        if section is None:
            continue
        always = section if name == "speed" else section.model_copy(update={"probability": 1.0})
        alone = Augmenter(AugmentConfig(**{name: always}), seed)
        spent = 0.0
        for i, wave in enumerate(waves):
            alone(wave, str(i), 0)
            start = time.process_time()
            alone(wave, str(i), 0)
            spent += time.process_time() - start
        share = sum(f != 1 for f in section.factors) / len(section.factors) if name == "speed" else section.probability
        seconds = spent / hours
        applied, expected = (seconds / share if share else 0.0, seconds) if name == "speed" else (seconds, seconds * share)
        rows.append({"effect": name, "probability": share, "core_seconds_per_hour": applied, "expected": expected})
    return pd.DataFrame(rows, columns=["effect", "probability", "core_seconds_per_hour", "expected"])


def _intervals(rng: np.random.Generator, count: int, width: int, whole: int) -> tuple[tuple[int, int], ...]:
    """Up to count intervals [from, to) within whole, each of a width drawn from 0 to the one given; empty ones left out."""
    found = []
    for _ in range(count):
        wide = int(rng.integers(min(width, whole) + 1))
        low = int(rng.integers(whole - wide + 1))
        if wide:
            found.append((low, low + wide))
    return tuple(found)


def _recordings(root: str) -> tuple[str, ...]:
    """All audio files under a folder by name, sorted, so that a draw means the same file on every machine."""
    folder = home() / Path(root).expanduser()
    paths = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
    if not paths:
        got = f"{folder}: {'no audio in it' if folder.is_dir() else 'no such folder'}"
        raise InputError("There is no noise to add.", got=got, expected=f"a folder of {', '.join(sorted(SUFFIXES))}",
                         do="set augment.noise.root, or leave it out for Gaussian noise")  # fmt: skip
    return tuple(str(folder / path) for path in paths)


@lru_cache(maxsize=8)
def _recording(path: str) -> Wave:
    """A noise recording; the last few stay in memory."""
    wave = audio.decode(path)
    if not wave.any():
        raise InputError("A noise recording is silent.", got=path, expected="noise", do="take it out of augment.noise.root")
    wave.setflags(write=False)
    return wave
