"""Sound in and out: anything decodable to 16 kHz mono float32, MP3 for pages, noise at an exact SNR.

Notable: nothing is trusted. A truncated MP3, Opus or WAV decodes without an error, so a duration can be
demanded; empty and non-finite audio is refused; a playlist posing as audio cannot make the decoder open other
files. SNR belongs to active speech, not to the whole file with its pauses. Files as they are, at their own rate and
with all channels, are :mod:`speechlab.formats`, re-exported here.

Not covered: streaming, loudness, voice activity as time spans.
"""

from __future__ import annotations

import hashlib
import io
import math
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
import soundfile  # type: ignore[import-untyped]
import soxr  # type: ignore[import-untyped]

from speechlab.errors import InputError
from speechlab.formats import MAX_SECONDS, TOLERANCE, Probe, Sound, blocks, probe, read
from speechlab.units import SAMPLE_RATE, Decibels, Samples, Seconds, exact_div

__all__ = [
    "FRAME", "MARGIN", "MAX_SECONDS", "TOLERANCE", "Probe", "Sound", "Wave", "active_power", "add_noise", "blocks", "check", "clip_seed",
    "decode", "encode_mp3", "pcm_sha256", "probe", "quantise", "read", "save_flac",
]  # fmt: skip

Wave = npt.NDArray[np.float32]  # (N,)

FRAME: Samples = exact_div(SAMPLE_RATE, 50)  # 20 ms, over which speech is active or not
MARGIN: Decibels = 15.9  # ITU-T P.56 (2011), section 6: active is what lies at most this far below the active level


def decode(
    source: str | Path | bytes,
    format: str | None = None,
    *,
    start: Seconds | None = None,
    duration: Seconds | None = None,
    channel: int | None = None,
    expected_seconds: Seconds | None = None,
    tolerance: Seconds = TOLERANCE,
    max_seconds: Seconds = MAX_SECONDS,
) -> Wave:
    """Decode a file, or a part of it, to 16 kHz mono.

    Args:
        source: A path or the file's bytes; its content says what it is, not its name, save for ``.g722``.
        format: ``g722`` for such bytes, which have no header.
        start: Where the part begins, in seconds; None is the beginning. See :func:`speechlab.formats.read` for how
            seconds become samples.
        duration: How long it is, in seconds; None is to the end.
        channel: From 0 on; None averages them.
        expected_seconds: The duration that the result should have.
        tolerance: How far it may be off, in seconds.
        max_seconds: More is refused.

    Returns:
        ``wave_N``, float32, full scale 1; other rates are resampled by soxr (HQ).

    Raises:
        InputError: if the file is missing, empty, not audio, damaged, too long, holds NaN or infinity, lacks the part
            or the channel, or is shorter or longer than expected.
    """
    name = "audio" if isinstance(source, bytes) else str(source)
    parts: list[Wave] = []
    resampler, at = None, 0
    # block by block, so that the file's own rate and channels are never held whole
    for block in blocks(source, format, start=start, duration=duration, max_seconds=max_seconds):
        wave_N = check(block.mono(channel), f"{name}, from {at / block.rate:.1f} s on" if at else name)
        at += len(wave_N)
        if block.rate != SAMPLE_RATE:
            resampler = resampler or soxr.ResampleStream(block.rate, SAMPLE_RATE, 1, dtype="float32", quality="HQ")
            wave_N = resampler.resample_chunk(wave_N)
        parts.append(wave_N)
    if resampler:
        parts.append(resampler.resample_chunk(np.zeros(0, np.float32), last=True))
    wave_N = np.concatenate(parts)
    seconds = len(wave_N) / SAMPLE_RATE
    if expected_seconds is not None and abs(seconds - expected_seconds) > tolerance:
        raise InputError("An audio file has another duration than it should.", got=f"{name}: {seconds:.3f} s",
                         expected=f"{expected_seconds:.3f} s within {tolerance:g} s", do="it may be cut off: fetch it again")  # fmt: skip
    return wave_N


def check(wave_N: npt.ArrayLike, name: str = "audio") -> Wave:
    """The waveform as float32, if it is one.

    Args:
        wave_N: Samples.
        name: What to call it in the message.

    Raises:
        InputError: if it is not one-dimensional, is empty, or any sample is NaN or infinite.
    """
    wave = np.asarray(wave_N, dtype=np.float32)
    if wave.ndim != 1 or not wave.size:
        raise InputError("A waveform has the wrong shape.", got=f"{name}: {wave.shape}", expected="(N,) with N > 0")
    bad = int(np.count_nonzero(~np.isfinite(wave)))
    if bad:
        raise InputError("Audio holds samples that are not numbers.", got=f"{name}: {bad} of {wave.size} are NaN or infinite",
                         expected="finite samples", do="leave the clip out, or export it again")  # fmt: skip
    return wave


def quantise(wave_N: npt.ArrayLike) -> npt.NDArray[np.int16]:
    """The waveform as 16-bit PCM, (N,): scaled by 32768, rounded to nearest even, clipped; undoes what decoding 16 bits did.

    Raises:
        InputError: as for :func:`check`.
    """
    pcm_N: npt.NDArray[np.int16] = np.clip(np.rint(check(wave_N) * 32768.0), -32768, 32767).astype(np.int16)
    return pcm_N


def pcm_sha256(wave_N: npt.ArrayLike) -> str:
    """SHA-256 over the little-endian 16-bit PCM of :func:`quantise`.

    Encoders write other bytes from run to run (Opus) or version to version; the samples are what a clip is.

    Raises:
        InputError: as for :func:`check`.
    """
    return hashlib.sha256(quantise(wave_N).astype("<i2").tobytes()).hexdigest()


def save_flac(path: Path | io.BytesIO, wave_N: npt.ArrayLike) -> None:
    """Write 16 kHz 16-bit FLAC, to a file or into memory; :func:`decode` gives the quantised samples back exactly.

    Raises:
        InputError: as for :func:`check`.
    """
    soundfile.write(path, quantise(wave_N), SAMPLE_RATE, format="FLAC", subtype="PCM_16")


def encode_mp3(wave_N: npt.ArrayLike, bitrate: int = 64_000) -> bytes:
    """An MP3 file for a browser, mono at 16 kHz (MPEG-2 layer III, LAME).

    Args:
        wave_N: 16 kHz samples, full scale 1; louder ones are clipped.
        bitrate: In bit/s.

    Raises:
        InputError: as for :func:`check`.
    """
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp3") as container:
        stream = container.add_stream("libmp3lame", rate=SAMPLE_RATE, layout="mono", bit_rate=bitrate)
        frame = av.AudioFrame.from_ndarray(quantise(wave_N)[None], format="s16p", layout="mono")
        frame.sample_rate = SAMPLE_RATE
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            container.mux(packet)
    return buffer.getvalue()


def active_power(wave_N: npt.ArrayLike) -> float:
    """Mean power of the active speech in a clip, relative to full scale 1.

    The active level of ITU-T P.56 on frames: the mean power of those 20 ms frames that lie at most
    15.9 dB below that mean, found by leaving frames out until none is left to leave out. P.56 itself uses a
    smoothed envelope with 200 ms of hangover, which counts short pauses as speech; on read prompts the
    two agree to about a decibel.

    Args:
        wave_N: 16 kHz samples.

    Raises:
        InputError: if the clip is digital silence, or as for :func:`check`.
    """
    wave = check(wave_N).astype(np.float64)
    starts = np.arange(0, wave.size, FRAME)
    power_T = np.add.reduceat(wave**2, starts) / np.diff(np.append(starts, wave.size))
    active_T = power_T[power_T > 0]
    if not active_T.size:
        raise InputError("A clip is silent, so no level of speech can be given.", got=f"{wave.size} samples of zero",
                         expected="speech", do="leave the clip out")  # fmt: skip
    while True:
        loud_T = active_T[active_T >= active_T.mean() * 10 ** (-MARGIN / 10)]
        if loud_T.size == active_T.size:
            return float(active_T.mean())
        active_T = loud_T  # the mean has risen, and with it the threshold; it never falls, so this ends


def add_noise(wave_N: npt.ArrayLike, snr: Decibels, seed: int) -> Wave:
    """Add white Gaussian noise at an exact SNR over active speech.

    Args:
        wave_N: 16 kHz samples, (N,).
        snr: Power of active speech (:func:`active_power`) over the power of the noise added, in dB.
        seed: Fixes the noise; see :func:`clip_seed`.

    Returns:
        (N,) float32, not clipped: it may pass full scale.

    Raises:
        InputError: if snr is not a number, or as for :func:`active_power`.
    """
    if not math.isfinite(snr):
        raise InputError("An SNR must be a number.", got=snr, expected="decibels, for example 10")
    wave = check(wave_N)
    noise_N = np.random.default_rng(seed).standard_normal(wave.size)
    noise_N *= math.sqrt(active_power(wave) / 10 ** (snr / 10) / np.mean(noise_N**2))
    return (wave + noise_N).astype(np.float32)


def clip_seed(seed: int, clip: str) -> int:
    """A seed that belongs to a clip, whatever its place in a batch: the first 8 bytes of SHA-256 over seed and id."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{clip}".encode()).digest()[:8], "big")
