"""Babble: a few people talking at once, made of other speakers of the corpus.

Notable: nobody is heard behind a clip of their own. Each voice is brought to the same active level, clip by clip.

Not covered: rooms around the voices; speakers who answer each other.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from speechlab import audio, corpora, effects
from speechlab.audio import Wave
from speechlab.corpora.base import load_audio
from speechlab.corpora.voices import CORE
from speechlab.errors import InputError
from speechlab.units import Decibels

Track = tuple[tuple[Any, ...], float]  # the clips of a voice, and from which share of them on it is heard

VOICES, FEWEST = 6, 3  # heard at once, and the other speakers that it takes


def sources(corpus: corpora.Corpus | None, name: str) -> list[corpora.Corpus]:
    """The corpora whose train clips are a babble's voices; of ``prompts`` all languages, since each has one speaker.

    Args:
        corpus: Of the clips that are to be heard.
        name: Of the condition, for messages.

    Raises:
        InputError: if there is no corpus.
    """
    if corpus is None:
        raise InputError(f'The condition "{name}" needs other speakers.', expected="a corpus, whose train clips they are taken from")
    if corpus.name != "prompts":
        return [corpus]
    others = [language for language in CORE if language not in corpus.language.split(",")]
    band = corpus.notes.get("band", "wide")
    return [corpus, *(corpora.prepare("prompts", language=language, band=band) for language in others)]


def by_speaker(crowds: Sequence[corpora.Corpus]) -> dict[str, list[Any]]:
    """Train clips by who speaks, both sorted."""
    cuts = [cut for corpus in crowds for cut in corpus.cuts["train"] if cut.supervisions[0].speaker]
    cuts.sort(key=lambda cut: (cut.supervisions[0].speaker, cut.id))
    return {speaker: list(group) for speaker, group in itertools.groupby(cuts, lambda cut: cut.supervisions[0].speaker)}


def draw(cut: Any, rng: np.random.Generator, speakers: dict[str, list[Any]], name: str) -> tuple[list[Track], list[str]]:
    """Voices for a clip: of as many speakers as there are, each with as many of its clips as the clip is long.

    Args:
        cut: The clip, whose own speaker is none of them.
        rng: Decides.
        speakers: From :func:`by_speaker`.
        name: Of the condition, for messages.

    Returns:
        The tracks, for :func:`add`, and who speaks in them.

    Raises:
        InputError: if there are fewer than three others, or nobody knows who speaks in the clip.
    """
    own = cut.supervisions[0].speaker
    others = [speaker for speaker in speakers if speaker != own]
    if not own or len(others) < FEWEST:
        raise InputError(f'The condition "{name}" has too few voices.',
                         got=f"{len(others)} other speakers for {cut.id}" if own else f"{cut.id}, and nobody knows who speaks in it",
                         expected=f"clips with speakers, and {FEWEST} others among the train clips",
                         do=f"name a folder of recorded babble as noise, and take {name.replace('babble', 'noise')}")  # fmt: skip
    chosen = [others[i] for i in rng.permutation(len(others))]
    rest = {speaker: itertools.cycle(rng.permutation(len(speakers[speaker]))) for speaker in chosen[:VOICES]}
    tracks = []
    for speaker in itertools.islice(itertools.cycle(chosen), VOICES):
        said: list[Any] = []
        while sum(other.duration for other in said) < cut.duration:
            said.append(speakers[speaker][next(rest[speaker])])
        tracks.append((tuple(said), float(rng.random())))
    return tracks, sorted(chosen[:VOICES])


def add(wave_N: Wave, tracks: list[Track], snr: Decibels) -> Wave:
    """Add voices at an SNR over active speech: each one's clips at one active level, one after another, from some place on.

    Raises:
        InputError: as for :func:`speechlab.effects.background`.
    """
    voices = []
    for said, at in tracks:
        clips = [wave / math.sqrt(audio.active_power(wave)) for wave in map(load_audio, said) if wave.any()]
        if clips:
            voice = np.concatenate(clips)
            voices.append(np.roll(voice, -int(at * voice.size)))
    return effects.background(wave_N, crowd(voices), snr)


def crowd(waves: Sequence[Wave]) -> Wave:
    """Clips laid over each other, each at the same active level and repeated to the longest: voices from the next room.

    Raises:
        InputError: if there are none, or one is silent.
    """
    if not waves:
        raise InputError("A crowd needs voices.", got="none", expected="one clip or more")
    size = max(len(wave) for wave in waves)
    together = np.sum([np.resize(wave / math.sqrt(audio.active_power(wave)), size) for wave in waves], axis=0)
    quiet: Wave = (0.5 * together / np.abs(together).max()).astype(np.float32)
    return quiet
