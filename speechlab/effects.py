"""One change to a waveform each: speed, tempo, room, noise, background, gain, clipping, codec; and rooms to play in.

Notable: all but speed and tempo keep the length, and all keep the place of every sound (delays are taken out), so that
times in a transcript stay true. A clip of digital silence has no level: rooms and noise give it back as it is, as training
must not stop for it. Nothing here draws at random except from a seed; :mod:`speechlab.augment` says who gets what.

Not covered: moving speakers, absorption that depends on frequency, packet loss.
"""

from __future__ import annotations

import contextlib
import io
import math
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Any, Literal

import av
import numpy as np
import numpy.typing as npt
import scipy.signal  # type: ignore[import-untyped]
import soundfile  # type: ignore[import-untyped]
import soxr  # type: ignore[import-untyped]

from speechlab import audio
from speechlab.audio import Wave
from speechlab.errors import InputError
from speechlab.units import SAMPLE_RATE, Decibels, Hertz, Samples, Seconds, exact_div

NARROW: Hertz = exact_div(SAMPLE_RATE, 2)  # of telephones
# kind: encoder, decoder, rate heard by the encoder
CODECS: dict[str, tuple[str, str, Hertz]] = {
    "mp3": ("libmp3lame", "mp3float", SAMPLE_RATE),
    "opus": ("libopus", "opus", SAMPLE_RATE),
    "telephone": ("pcm_mulaw", "pcm_mulaw", NARROW),  # ITU-T G.711
}

SOUND = 343.0  # metres a second
COMPLETE = 0.8  # of the reverberation time, up to which no image source is missing; T30 looks at the first 0.6


@dataclass(frozen=True, eq=False)
class Room:
    """A simulated room.

    Attributes:
        rir_N: Impulse response at 16 kHz from the direct sound on, which is 1; read-only.
        rt60: Reverberation time measured on it: see :func:`reverberation`.
        size: Length, width and height in metres.
        distance: From speaker to microphone in metres.
    """

    rir_N: Wave
    rt60: Seconds
    size: tuple[float, float, float]
    distance: float


def sped(n: Samples, factor: float) -> Samples:
    """How many samples are left of n at another speed: n / factor, rounded; one at least."""
    return max(1, round(n / factor))


def speed(wave_N: Wave, factor: float) -> Wave:
    """Play faster or slower by resampling, so that pitch moves too (Ko et al., 2015).

    Args:
        wave_N: 16 kHz samples.
        factor: 1.1 is a tenth faster, and higher.

    Returns:
        :func:`sped` samples; a full-scale sound may overshoot a little.

    Raises:
        InputError: if factor is not within 0.5 and 2, or as for :func:`speechlab.audio.check`.
    """
    if not 0.5 <= factor <= 2:
        raise InputError("A clip cannot be played at that speed.", got=factor, expected="a factor within 0.5 and 2")
    wave = audio.check(wave_N)
    if factor == 1:
        return wave
    ratio = Fraction(factor).limit_denominator(1000)  # whole numbers, for which soxr is exact
    out = soxr.resample(wave, ratio.numerator, ratio.denominator, quality="HQ")
    return _fitted(out, sped(wave.size, factor))


def tempo(wave_N: Wave, factor: float) -> Wave:
    """Speak faster or slower at the same pitch: WSOLA (Verhelst & Roelands, 1993) as FFmpeg's ``atempo`` has it.

    Args:
        wave_N: 16 kHz samples.
        factor: 1.25 is a quarter faster.

    Returns:
        :func:`sped` samples; a sound at t comes at t / factor to within some 40 ms, as pieces are shifted to fit.

    Raises:
        InputError: if factor is not within 0.5 and 2, or as for :func:`speechlab.audio.check`.
    """
    if not 0.5 <= factor <= 2:
        raise InputError("A clip cannot be spoken at that tempo.", got=factor, expected="a factor within 0.5 and 2")
    wave, rate = audio.check(wave_N), Fraction(1, SAMPLE_RATE)
    graph = av.filter.Graph()
    source = graph.add_abuffer(sample_rate=SAMPLE_RATE, format="flt", layout="mono", time_base=rate)
    sink = graph.add("abuffersink")
    graph.link_nodes(source, graph.add("atempo", str(factor)), sink).configure()
    # the filter keeps up to a window (64 ms) back at the end: let it be silence
    frame = av.AudioFrame.from_ndarray(np.pad(wave, (0, SAMPLE_RATE // 4))[None], format="flt", layout="mono")
    frame.sample_rate, frame.time_base, frame.pts = SAMPLE_RATE, rate, 0
    source.push(frame)
    source.push(None)
    parts = []
    with contextlib.suppress(av.error.EOFError):
        while True:
            parts.append(sink.pull().to_ndarray()[0])
    return _fitted(np.concatenate(parts), sped(wave.size, factor))


def room(wave_N: Wave, rir_N: Wave) -> Wave:
    """Play in a room, at the same active level and without the delay of the direct sound.

    Args:
        wave_N: 16 kHz samples; silence is given back as it is.
        rir_N: Impulse response that begins with the direct sound, as :attr:`Room.rir_N`.

    Returns:
        (N,): reverberation behind the clip's end is cut off. It may pass full scale.

    Raises:
        InputError: as for :func:`speechlab.audio.check`.
    """
    wave, rir = audio.check(wave_N), audio.check(rir_N, "an impulse response")
    if not wave.any():
        return wave
    wet: Wave = scipy.signal.fftconvolve(wave.astype(np.float64), rir)[: wave.size].astype(np.float32)
    if not wet.any():
        raise InputError("An impulse response lets nothing through.", got=f"{rir.size} samples", expected="one that begins with sound")
    return (wet * np.float32(math.sqrt(audio.active_power(wave) / audio.active_power(wet)))).astype(np.float32)


def noise(wave_N: Wave, snr: Decibels, seed: int) -> Wave:
    """Add Gaussian noise at an exact SNR: :func:`speechlab.audio.add_noise`, but silence is given back as it is.

    Raises:
        InputError: if snr is not a number, or as for :func:`speechlab.audio.check`.
    """
    wave = audio.check(wave_N)
    return audio.add_noise(wave, snr, seed) if wave.any() else wave


def background(wave_N: Wave, noise_N: Wave, snr: Decibels, at: float = 0.0) -> Wave:
    """Add a recording at an exact SNR over active speech.

    Args:
        wave_N: 16 kHz samples; silence is given back as it is.
        noise_N: The recording, repeated where it is the shorter.
        snr: Power of active speech over the mean power of what is added, in dB.
        at: Where in the recording to begin, as for :func:`stretch`.

    Returns:
        (N,); it may pass full scale.

    Raises:
        InputError: if snr is not a number, or as for :func:`stretch`.
    """
    if not math.isfinite(snr):
        raise InputError("An SNR must be a number.", got=snr, expected="decibels, for example 10")
    wave = audio.check(wave_N)
    added = stretch(noise_N, wave.size, at).astype(np.float64)
    if not wave.any():
        return wave
    added *= math.sqrt(audio.active_power(wave) / 10 ** (snr / 10) / np.mean(added**2))
    return (wave + added).astype(np.float32)


def stretch(noise_N: Wave, n: Samples, at: float = 0.0) -> Wave:
    """So many samples of a recording from a place on, (N,), repeated where it is the shorter.

    The place is a share of it in [0, 1). Where that part is digital silence, the recording's loudest sample is begun with.

    Raises:
        InputError: if the recording is silent, or as for :func:`speechlab.audio.check`.
    """
    recording = audio.check(noise_N, "a noise recording")
    if not recording.any():
        raise InputError("A noise recording is silent.", got=f"{recording.size} samples of zero", expected="noise", do="take it away")
    cut = np.roll(recording, -int(at * recording.size))[:n]
    return np.resize(cut if cut.any() else np.roll(recording, -int(np.abs(recording).argmax())), n)


def gain(wave_N: Wave, db: Decibels) -> Wave:
    """Louder or softer by so many decibels, (N,); it may pass full scale.

    Raises:
        InputError: as for :func:`speechlab.audio.check`.
    """
    return (audio.check(wave_N) * np.float32(10 ** (db / 20))).astype(np.float32)


def clip(wave_N: Wave, db: Decibels) -> Wave:
    """Cut off what lies less than db below the peak, as an input that is set too high does, (N,).

    Raises:
        InputError: if db is below 0 or not a number, or as for :func:`speechlab.audio.check`.
    """
    if not 0 <= db < math.inf:
        raise InputError("A clip cannot be clipped by that.", got=db, expected="decibels from 0")
    wave = audio.check(wave_N)
    limit = np.abs(wave).max() * np.float32(10 ** (-db / 20))
    return np.clip(wave, -limit, limit)


def code(wave_N: Wave, kind: Literal["mp3", "opus", "telephone"], bitrate: int | None = None) -> Wave:
    """Encode and decode: what a lossy codec leaves of a clip, in its place and at its length.

    Args:
        wave_N: 16 kHz samples; a codec gets 16-bit PCM, so louder ones than full scale are clipped.
        kind: One of :data:`CODECS`.
        bitrate: In bit/s, of MP3 and Opus; none is the encoder's own choice.

    Returns:
        (N,); codecs overshoot a little. Opus below some 12 kbit/s comes two samples late.

    Raises:
        InputError: if the codec is not known or refuses the bitrate, or as for :func:`speechlab.audio.check`.
    """
    if kind not in CODECS:
        raise InputError("Unknown codec.", got=kind, expected=f"one of {', '.join(CODECS)}")
    wave = audio.check(wave_N)
    encoder, decoder, rate = CODECS[kind]
    sent = wave if rate == SAMPLE_RATE else soxr.resample(wave, SAMPLE_RATE, rate)
    try:
        heard, heard_rate = _through(encoder, decoder, rate, bitrate, _fitted(sent, max(1, sent.size)))
    except av.error.FFmpegError as e:
        raise InputError(
            "A codec refuses these settings.", got=f"{kind} at {bitrate} bit/s: {e.strerror}", expected="a usual bitrate"
        ) from None
    if heard_rate != SAMPLE_RATE:
        heard = soxr.resample(heard, heard_rate, SAMPLE_RATE)
    return _fitted(heard, wave.size)


def gsm(wave_N: Wave) -> Wave:
    """What a mobile telephone leaves of a clip, (N,): 8 kHz, GSM 06.10 full rate at 13 kbit/s, as libsndfile has it.

    Raises:
        InputError: as for :func:`speechlab.audio.check`.
    """
    wave, file = audio.check(wave_N), io.BytesIO()
    sent = soxr.resample(wave, SAMPLE_RATE, NARROW)
    soundfile.write(file, audio.quantise(_fitted(sent, max(1, sent.size))), NARROW, format="WAV", subtype="GSM610")
    heard, _ = soundfile.read(io.BytesIO(file.getvalue()), dtype="float32")
    return _fitted(soxr.resample(heard, NARROW, SAMPLE_RATE), wave.size)


def make_room(seed: int, index: int, low: Seconds, high: Seconds) -> Room:
    """Room number ``index`` of an experiment's bank: a shoebox, image sources (Allen & Berkley, 1979), one absorption.

    Size, places and reverberation time are drawn from (seed, index). A formula for the walls misses that time by up to
    half; the rest is made up by an absorption of the air (a decay that grows with the path), until the time *measured*
    on the response is the one drawn. Made once a process: some 30 ms for 0.2 s, 2 s for 2 s.

    Args:
        seed: Of the experiment.
        index: From 0.
        low: Shortest reverberation time.
        high: Longest.

    Raises:
        InputError: if the times are not ordered within 0.1 and 2 s.
    """
    if not 0.1 <= low <= high <= 2:
        raise InputError("No room has such reverberation times.", got=f"{low:g} to {high:g} s", expected="0.1 <= low <= high <= 2")
    return _make_room(seed, index, float(low), float(high))


def reverberation(rir_N: Wave) -> Seconds:
    """The reverberation time of an impulse response: T30 of ISO 3382-1, by backward integration (Schroeder, 1965).

    Args:
        rir_N: At 16 kHz.

    Returns:
        Seconds to a decay of 60 dB, from a line through that from 5 to 35 dB.

    Raises:
        InputError: if it does not decay by 35 dB, or does so at once, or as for :func:`speechlab.audio.check`.
    """
    left_N = np.cumsum(audio.check(rir_N, "an impulse response")[::-1].astype(np.float64) ** 2)[::-1]
    level_N = 10 * np.log10(np.maximum(left_N / max(left_N[0], 1e-300), 1e-30))
    part = np.flatnonzero((level_N <= -5) & (level_N >= -35))
    if level_N[-1] > -35 or part.size < 2:
        raise InputError("An impulse response has no decay to measure.", got=f"{len(level_N)} samples that end at {level_N[-1]:.0f} dB",
                         expected="one that falls from 5 to 35 dB below its energy")  # fmt: skip
    seconds = (part - part.mean()) / SAMPLE_RATE  # a line by plain sums: those of a BLAS depend on its threads
    return float(-60 * np.sum(seconds**2) / np.sum(seconds * level_N[part]))


@lru_cache(maxsize=1024)
def _make_room(seed: int, index: int, low: Seconds, high: Seconds) -> Room:
    rng = np.random.default_rng(audio.clip_seed(seed, f"room:{index}"))
    inner = min(0.005 * high, (high - low) / 2)  # keeps what is measured inside the range, not only what is drawn
    for _ in range(100):
        rt60 = float(rng.uniform(low + inner, high - inner))
        # long times belong to large rooms; it also bounds the number of images
        size = rng.uniform((4.0, 3.0, 2.5), (8.0, 6.0, 3.5)) * max(0.6, math.sqrt(rt60 / 0.5))
        microphone, speaker, delay = _places(rng, size)
        rir_N = _decaying(_images(size, microphone, speaker, delay, rt60), rt60)
        if rir_N is not None and np.abs(rir_N).argmax() == 0:  # else reflections that meet are louder than the direct sound
            rir_N.setflags(write=False)
            length, width, height = (float(side) for side in size)
            return Room(rir_N, reverberation(rir_N), (length, width, height), delay * SOUND / SAMPLE_RATE)
    raise AssertionError(f"no room between {low} and {high} s")


def _images(size_3: Any, microphone_3: Any, speaker_3: Any, delay: Samples, rt60: Seconds) -> npt.NDArray[np.float64]:
    """The response of a room whose walls absorb what Eyring (1930) says, from the direct sound on."""
    import pyroomacoustics as pra  # a second to import, and only rooms need it

    volume, surface = float(size_3.prod()), 2 * float(size_3.prod() * (1 / size_3).sum())
    absorption = 1 - math.exp(-24 * math.log(10) * volume / (SOUND * surface * rt60))
    a, b, c = size_3
    reach = min(a * b / math.hypot(a, b), a * c / math.hypot(a, c), b * c / math.hypot(b, c))
    order = math.ceil(COMPLETE * SOUND * rt60 / reach)
    box = pra.ShoeBox(size_3, fs=SAMPLE_RATE, materials=pra.Material(absorption), max_order=order, air_absorption=False)
    box.set_sound_speed(SOUND)
    box.add_source(speaker_3)
    box.add_microphone(microphone_3)
    threads = pra.constants.get("num_threads")
    pra.constants.set("num_threads", 1)  # each thread sums its own images, so their number would change the bits
    try:
        box.compute_rir()
    finally:
        pra.constants.set("num_threads", threads)
    start = delay + pra.constants.get("frac_delay_length") // 2
    rir_N: npt.NDArray[np.float64] = box.rir[0][0][start : start + round(1.1 * rt60 * SAMPLE_RATE)].astype(np.float64)
    rir_N /= rir_N[0]
    return rir_N  # what is cut off lies 66 dB below


def _decaying(rir_N: npt.NDArray[np.float64], rt60: Seconds) -> Wave | None:
    """The response with a decay over time added, so that :func:`reverberation` is rt60; None where that cannot be had."""
    seconds_N = np.arange(rir_N.size) / SAMPLE_RATE
    rate = 0.0  # dB a second
    for _ in range(30):
        tried = (rir_N * 10 ** (-rate * seconds_N / 20)).astype(np.float32)
        try:
            measured = reverberation(tried)
        except InputError:
            return None
        if abs(measured / rt60 - 1) < 5e-4:
            return tried
        rate += 0.8 * (60 / rt60 - 60 / measured)  # reflections are discrete: full steps may go to and fro
    return None


def _places(rng: np.random.Generator, size_3: Any) -> tuple[Any, Any, Samples]:
    """Microphone, speaker, and the samples between them: a whole number, so that the direct sound is one sample."""
    for _ in range(1000):
        microphone = rng.uniform(0.2, size_3 - 0.2)
        delay = int(rng.integers(24, 94))  # 0.5 to 2 m
        angle, rise = rng.uniform(0, 2 * math.pi), rng.uniform(-0.3, 0.3)
        way = np.array([math.cos(angle) * math.cos(rise), math.sin(angle) * math.cos(rise), math.sin(rise)])
        speaker = microphone + way * delay * SOUND / SAMPLE_RATE
        if (speaker > 0.2).all() and (speaker < size_3 - 0.2).all():
            return microphone, speaker, delay
    raise AssertionError(f"no two places in a room of {size_3}")


def _fitted(wave_N: Wave, n: Samples) -> Wave:
    """The first n samples, with zeros behind where there are fewer."""
    return np.pad(wave_N[:n], (0, max(0, n - len(wave_N)))).astype(np.float32, copy=False)


def _through(encoder: str, decoder: str, rate: Hertz, bitrate: int | None, wave_N: Wave) -> tuple[Wave, Hertz]:
    """Packets straight from encoder to decoder; FFmpeg's marks in them take the encoder's delay out."""
    out = av.CodecContext.create(encoder, "w")
    planar = encoder == "libmp3lame"
    out.sample_rate, out.layout, out.format, out.time_base = rate, "mono", "s16p" if planar else "s16", Fraction(1, rate)
    if bitrate is not None:
        out.bit_rate = bitrate
    frame = av.AudioFrame.from_ndarray(audio.quantise(wave_N)[None], format="s16p" if planar else "s16", layout="mono")
    frame.sample_rate, frame.time_base, frame.pts = rate, Fraction(1, rate), 0
    packets = [*out.encode(frame), *out.encode(None)]
    back = av.CodecContext.create(decoder, "r")
    back.sample_rate, back.layout = rate, "mono"
    if out.extradata:
        back.extradata = out.extradata
    frames = [decoded for packet in packets for decoded in back.decode(packet)] + list(back.decode(None))
    if not frames:
        return np.zeros(0, np.float32), rate
    pcm_N = np.concatenate([decoded.to_ndarray().reshape(-1) for decoded in frames])
    scale = 32768 if pcm_N.dtype == np.int16 else 1
    return (pcm_N / np.float32(scale)).astype(np.float32), frames[0].sample_rate
