"""The conditions that test clips are heard under: clean, noise, babble, rooms, codecs, tempo, and no speech at all.

Notable: a condition is made once and kept, with a hash over what is heard, so every system hears the same samples and
comparisons stay paired. What a clip becomes follows from seed, condition and its id alone: neither other clips nor
their order nor the number of processes matter. Along a curve over SNRs a clip keeps its noise, which only gets louder. What
was done is measured on the stored samples and stands beside the clip. A clip that cannot be altered is kept as it is
and named: see :attr:`Heard.notes`.

Not covered: several alterations at once, echoes of a loudspeaker, packet loss. The cache holds a copy of the clips for every
condition: 60 to 110 MB for an hour of speech.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from speechlab import audio, babble, corpora, effects, fetch, pool
from speechlab.audio import Wave
from speechlab.corpora.base import PCM, Built, clip, load_audio, manifest, prepared
from speechlab.errors import InputError, did_you_mean
from speechlab.formats import SUFFIXES
from speechlab.progress import track
from speechlab.units import FULL_CONTEXT, SAMPLE_RATE, Decibels, Seconds

Kind = Literal["clean", "noise", "room", "codec", "tempo", "nothing"]
Deed = Callable[[Wave], Wave]  # what is done to a clip; picklable

RULES = "1"  # changes when the same clips would be heard otherwise
LOWEST, HIGHEST = -10, 40  # dB
ROOMS: dict[str, tuple[Seconds, Seconds]] = {"small": (0.2, 0.4), "medium": (0.5, 0.8), "hall": (1.2, 2.0)}  # RT60
BANK = 8  # rooms of a kind
MP3 = (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)  # kbit/s that MPEG-2 layer III has at 16 kHz
OPUS = range(6, 257)  # kbit/s
QUIET: Decibels = -30.0  # dBFS of noise without speech; nominal speech is at -26 (ITU-T P.56)
FULL = 32767 / 32768  # of 16 bits
EXACT: Decibels = 0.1  # by which an SNR may miss
MANY: Seconds = 1800.0  # of audio, from which on other processes are worth their start

KNOWN = (
    f"clean; white-Ndb, babble-Ndb, noise-Ndb (N from {LOWEST} to {HIGHEST}); room-small, room-medium, room-hall; mp3-Nk (N of "
    f"{', '.join(map(str, MP3))}), opus-Nk (N from {OPUS[0]} to {OPUS[-1]}); telephone; gsm; tempo-X (X from 0.5 to 2); silence; noise-only"
)
STANDARD = (
    "clean",
    *(f"{which}-{snr}db" for which in ("white", "babble") for snr in (20, 15, 10, 5)),
    *(f"room-{size}" for size in ROOMS),
    *("mp3-64k", "opus-16k", "telephone", "gsm", "tempo-0.8", "tempo-1.25", "silence", "noise-only"),
)


@dataclass(frozen=True)
class Condition:
    """What is done to clips.

    Attributes:
        name: As :func:`condition` reads it.
        kind: ``clean``, ``noise``, ``room``, ``codec``, ``tempo``, or ``nothing`` where no speech is left and whatever is heard
            is invented.
        which: Of its kind: ``white``, ``babble`` or ``noise`` (recordings), a key of :data:`ROOMS`, the codec.
        about: A sentence for tables.
        amount: dB of SNR, kbit/s, or the factor of the tempo; None where there is none.
    """

    name: str
    kind: Kind
    which: str
    about: str
    amount: float | None = None

    @property
    def snr(self) -> Decibels | None:
        """Where it stands on a curve over SNRs; None if it is not on one."""
        return self.amount if self.kind == "noise" else None


@dataclass(frozen=True)
class Heard:
    """Clips under a condition.

    Attributes:
        condition: Which.
        cuts: lhotse cuts of what is heard, in the order, with the ids, speakers and columns of those given; without speech
            the text is empty. ``custom["heard"]`` says what was measured: ``snr`` in dB over active speech, ``rt60`` and ``distance``,
            ``codec`` and ``bitrate`` in bit/s, ``tempo``, ``level`` in dBFS of noise without speech, ``speakers`` of the babble,
            the ``recording``; and ``gain`` in dB where all was brought down to stay below full scale.
        sha256: Over their manifest (:func:`speechlab.corpora.base.manifest`) by id: equal where the same was heard.
        notes: Why a clip, by its id, is not what the condition says: digital silence has no SNR, a clip cannot be slowed
            down beyond 30 s, and one that is very quiet misses its SNR in 16 bits.
    """

    condition: Condition
    cuts: list[Any] = field(repr=False)
    sha256: str
    notes: dict[str, str] = field(default_factory=dict)


def condition(name: str) -> Condition:
    """A condition by its name.

    Raises:
        InputError: if there is none of that name.
    """
    if name in _FIXED:
        return _FIXED[name]
    for form, make in _FORMS.items():
        found = re.fullmatch(form, name)
        made = make(*found.groups()) if found else None
        if made and made.name == name:  # 05db and 5db would be two names for one thing
            return made
    raise InputError(f'Unknown condition "{name}".', got=name, expected=KNOWN, do=did_you_mean(name, STANDARD))


def standard(noise: Path | None = None) -> tuple[str, ...]:
    """The names of the full table: :data:`STANDARD`, with recordings of noise at four SNRs where there is a folder of them."""
    first_room = STANDARD.index("room-small")
    recorded = tuple(f"noise-{snr}db" for snr in (20, 15, 10, 5)) if noise is not None else ()
    return STANDARD[:first_room] + recorded + STANDARD[first_room:]


def named(names: Sequence[str], noise: Path | None = None) -> tuple[Condition, ...]:
    """Conditions by their names, each once; ``standard`` stands for :func:`standard`.

    Raises:
        InputError: if there is none of a name.
    """
    flat = itertools.chain.from_iterable(standard(noise) if name == "standard" else (name,) for name in names)
    return tuple(condition(name) for name in dict.fromkeys(flat))


def prepare(name: str, cuts: Sequence[Any], seed: int, *, corpus: corpora.Corpus | None = None, noise: Path | None = None) -> Heard:
    """Clips as they are heard under a condition, made now or in an earlier call.

    Args:
        name: Of the condition.
        cuts: lhotse cuts of a :class:`speechlab.corpora.Corpus`; ids differ.
        seed: Of the experiment.
        corpus: Whose train clips the voices of the babble come from. Those of ``prompts`` come from its other languages too,
            as each has one speaker.
        noise: A folder of recordings, for ``noise-Ndb`` and, where it is given, ``noise-only``. A file is known by its path in the
            folder, size and time.

    Raises:
        InputError: if there is no such condition; babble has fewer than three other speakers to come from, or the corpus
            does not say who speaks; the folder of noise is missing, or what is drawn from it cannot be used; or a clip cannot be read.
    """
    wanted, clips = condition(name), sorted(cuts, key=lambda cut: cut.id)
    if wanted.kind == "clean":
        return Heard(wanted, list(cuts), _digest(manifest(clips)))
    crowds = babble.sources(corpus, name) if wanted.which == "babble" else []
    recordings = _recordings(noise, name) if wanted.which == "noise" or (wanted.which == "noise-only" and noise) else {}
    made_from = [RULES, name, str(seed), *(other.manifest_sha256 for other in crowds), *recordings.values(), *manifest(clips)]

    def build(folder: Path) -> Built:
        stock = _stock(wanted, seed, crowds, list(recordings.items()))
        items = ((cut, *_drawn(cut, wanted, audio.clip_seed(seed, f"{wanted.which}/{cut.id}"), stock)) for cut in clips)
        few = sum(cut.duration for cut in clips) < MANY
        rows = pool.over(partial(_work, wanted=wanted, folder=folder), items, 0 if few else None)
        heard, notes = [], {}
        for (cut, *_), made in track(rows, f"making {name}", len(clips)):
            if isinstance(made, pool.Crashed):
                made = _stored(cut, load_audio(cut), {}, f"{made}: kept as it is", wanted, folder)
            heard.append(made)
            if why := made.custom["heard"].get("note"):
                notes[cut.id] = why
        return heard, [], notes

    built, _, notes = prepared(fetch.cache() / "conditions" / f"{name}-{_digest(made_from)[:12]}", build)
    by_id = {cut.id: cut for cut in built}
    return Heard(wanted, [by_id[cut.id] for cut in cuts], _digest(manifest(built)), notes)


def _noisy(which: str, snr: str) -> Condition | None:
    words = {"white": "White Gaussian noise", "babble": f"{babble.VOICES} voices of other speakers", "noise": "Recordings of noise"}
    if not LOWEST <= int(snr) <= HIGHEST:
        return None
    return Condition(f"{which}-{int(snr)}db", "noise", which, f"{words[which]} at {int(snr)} dB SNR over active speech.", float(snr))


def _coded(which: str, kbits: str) -> Condition | None:
    if int(kbits) not in {"mp3": MP3, "opus": OPUS}[which]:
        return None
    return Condition(f"{which}-{int(kbits)}k", "codec", which, f"Through {which} at {int(kbits)} kbit/s.", float(kbits))


def _paced(factor: str) -> Condition | None:
    x = float(factor)
    if not 0.5 <= x <= 2 or x == 1:
        return None
    return Condition(f"tempo-{x:g}", "tempo", "tempo", f"Spoken at {x:g} times the rate, at the same pitch.", x)


_FORMS: dict[str, Callable[..., Condition | None]] = {
    r"(white|babble|noise)-(-?[0-9]{1,2})db": _noisy,
    r"(mp3|opus)-([0-9]{1,3})k": _coded,
    r"tempo-([0-9](?:\.[0-9]{1,2})?)": _paced,
}
_FIXED = {
    made.name: made
    for made in (
        Condition("clean", "clean", "clean", "As recorded."),
        *(
            Condition(f"room-{size}", "room", size, f"In a simulated room, RT60 {low:g} to {high:g} s.")
            for size, (low, high) in ROOMS.items()
        ),
        Condition("telephone", "codec", "telephone", "Over the telephone: 8 kHz, G.711 (mu-law)."),
        Condition("gsm", "codec", "gsm", "Over a mobile telephone: 8 kHz, GSM 06.10 full rate."),
        Condition("silence", "nothing", "silence", "Digital silence as long as the clip; a word that is heard is invented."),
        Condition("noise-only", "nothing", "noise-only", f"Noise at {QUIET:g} dBFS without speech; a word that is heard is invented."),
    )
}


def _digest(lines: Sequence[str]) -> str:
    return hashlib.sha256("".join(line + "\n" for line in lines).encode("utf-8", "surrogatepass")).hexdigest()


def _recordings(noise: Path | None, name: str) -> dict[Path, str]:
    """All audio files under a folder with a line for each, sorted, so that a draw means the same file on every machine."""
    expected, do = f"a folder of {', '.join(sorted(SUFFIXES))}", "name one, or leave the condition out"
    if noise is None:
        raise InputError(f'The condition "{name}" needs recordings of noise.', expected=expected, do=do)
    folder = noise.expanduser().absolute()
    found = sorted((p.relative_to(folder).as_posix(), p) for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
    if not found:
        got = f"{folder}: {'no audio in it' if folder.is_dir() else 'no such folder'}"
        raise InputError(f'The condition "{name}" has no noise to add.', got=got, expected=expected, do=do)
    return {path: f"{relative} {path.stat().st_size} {path.stat().st_mtime_ns}" for relative, path in found}


def _stock(wanted: Condition, seed: int, crowds: list[corpora.Corpus], recordings: list[tuple[Path, str]]) -> Any:
    """What clips draw from: speakers, rooms or recordings."""
    if wanted.which == "babble":
        return babble.by_speaker(crowds)
    if wanted.kind == "room":
        low, high = ROOMS[wanted.which]
        return [effects.make_room(seed, i, low, high) for i in track(range(BANK), f"making rooms for {wanted.name}", BANK)]
    return recordings


def _drawn(cut: Any, wanted: Condition, seed: int, stock: Any) -> tuple[Deed, dict[str, Any]]:
    """What is done to a clip, from the seed that is its own, and what is known of it beforehand."""
    which: Any = wanted.which
    amount = wanted.amount or 0.0
    rng = np.random.default_rng(seed)
    if which == "babble":
        tracks, speakers = babble.draw(cut, rng, stock, wanted.name)
        return partial(babble.add, tracks=tracks, snr=amount), {"speakers": speakers}
    if wanted.kind == "room":
        room = stock[int(rng.integers(BANK))]
        return partial(effects.room, rir_N=room.rir_N), {"rt60": room.rt60, "distance": room.distance}
    if stock:
        (path, state), at = stock[int(rng.integers(len(stock)))], float(rng.random())
        return partial(_with_recording, path=path, state=state, at=at, snr=wanted.snr), {"recording": path.name, "from": at}
    if which == "white":
        return partial(effects.noise, snr=amount, seed=seed), {}
    if which == "noise-only":
        return partial(_white, seed=seed), {}
    if wanted.kind == "tempo":
        return partial(effects.tempo, factor=amount), {"tempo": amount}
    if which == "gsm":
        return effects.gsm, {"codec": which}
    if wanted.kind == "codec":
        bitrate = round(1000 * amount) or None
        return partial(effects.code, kind=which, bitrate=bitrate), {"codec": which} | ({"bitrate": bitrate} if bitrate else {})
    return np.zeros_like, {}


def _with_recording(wave_N: Wave, path: Path, state: str, at: float, snr: Decibels | None) -> Wave:
    """A recording added at an SNR; without one, alone."""
    noise_N = _recording(path, state)
    return _levelled(effects.stretch(noise_N, wave_N.size, at)) if snr is None else effects.background(wave_N, noise_N, snr, at)


def _white(wave_N: Wave, seed: int) -> Wave:
    return _levelled(np.random.default_rng(seed).standard_normal(wave_N.size))


def _levelled(noise_N: Any) -> Wave:
    """At :data:`QUIET`."""
    power = np.mean(np.square(noise_N, dtype=np.float64))
    quiet: Wave = (noise_N * math.sqrt(10 ** (QUIET / 10) / power)).astype(np.float32)
    return quiet


@lru_cache(maxsize=8)
def _recording(path: Path, state: str) -> Wave:
    """A recording of noise in a state of its file; the last few stay in memory."""
    wave_N = audio.decode(path)
    if not wave_N.any():
        raise InputError("A recording of noise is silent.", got=str(path), expected="noise", do="take it out of the folder")
    wave_N.setflags(write=False)
    return wave_N


def _work(item: tuple[Any, Deed, dict[str, Any]], wanted: Condition, folder: Path) -> Any:
    """Alter a clip, write it, and describe it as a cut."""
    cut, deed, truth = item
    wave_N = load_audio(cut)
    if wanted.kind == "noise" and not wave_N.any():
        return _stored(cut, wave_N, {}, "digital silence has no SNR: kept as it is", wanted, folder)
    if wanted.kind == "tempo" and effects.sped(wave_N.size, truth["tempo"]) > FULL_CONTEXT * SAMPLE_RATE >= wave_N.size:
        return _stored(cut, wave_N, {}, f"it would be longer than {FULL_CONTEXT:g} s: kept as it is", wanted, folder)
    heard_N, note = deed(wave_N), ""
    peak = float(np.abs(heard_N).max())
    scale = min(1.0, FULL / peak) if peak else 1.0
    if scale < 1:  # as a whole: clipping would add noise of its own
        heard_N, truth = heard_N * np.float32(scale), truth | {"gain": 20 * math.log10(scale)}
    kept_N = audio.quantise(heard_N) / 32768  # what is measured is what will be heard
    if wanted.snr is not None:
        added = float(np.mean(np.square(kept_N / scale - wave_N)))
        reached = 10 * math.log10(audio.active_power(wave_N) / added) if added else math.inf
        truth = truth | {"snr": min(reached, 100.0)}
        note = "" if abs(reached - wanted.snr) <= EXACT else f"too quiet for 16 bits: an SNR of {truth['snr']:.1f} dB was reached"
    if wanted.which == "noise-only":
        truth = truth | {"level": 10 * math.log10(float(np.mean(np.square(kept_N))))}
    return _stored(cut, heard_N, truth, note, wanted, folder)


def _stored(cut: Any, heard_N: Wave, truth: dict[str, Any], note: str, wanted: Condition, folder: Path) -> Any:
    """Write what is heard of a clip, and describe it as a cut."""
    (said,) = cut.supervisions
    name = hashlib.sha256(cut.id.encode("utf-8", "surrogatepass")).hexdigest()[:24]  # ids are from outside
    path = folder / "audio" / name[:2] / f"{name}.flac"
    path.parent.mkdir(parents=True, exist_ok=True)
    audio.save_flac(path, heard_N)
    text = "" if wanted.kind == "nothing" else said.text
    heard = clip(cut.id, str(path.relative_to(folder)), len(heard_N), text, said.speaker, said.language, cut.custom["split"],
                 PCM + audio.pcm_sha256(heard_N), cut.custom.get("columns"))  # fmt: skip
    heard.custom["heard"] = {"condition": wanted.name, **truth} | ({"note": note} if note else {})
    return heard
