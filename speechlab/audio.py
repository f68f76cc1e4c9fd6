"""Sound in and out: anything decodable to 16 kHz mono float32, MP3 for pages, noise at an exact SNR.

Notable: nothing is trusted. A truncated MP3, Opus or WAV decodes without an error, so a duration can be
demanded; empty and non-finite audio is refused; a playlist posing as audio cannot make the decoder open other
files. SNR belongs to active speech, not to the whole file with its pauses.

Not covered: streaming, channels apart (they are averaged), loudness, voice activity as time spans.
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
from speechlab.units import SAMPLE_RATE, Decibels, Hertz, Samples, Seconds, exact_div

Wave = npt.NDArray[np.float32]  # (N,)

FRAME: Samples = exact_div(SAMPLE_RATE, 50)  # 20 ms, over which speech is active or not
MARGIN: Decibels = 15.9  # ITU-T P.56 (2011), section 6: active is what lies at most this far below the active level
TOLERANCE: Seconds = 0.1  # MP3 and AAC pad by up to about 0.08 s


def decode(
    source: str | Path | bytes,
    format: str | None = None,
    *,
    expected_seconds: Seconds | None = None,
    tolerance: Seconds = TOLERANCE,
) -> Wave:
    """Decode a whole file to 16 kHz mono: by libsndfile, and what that does not read by FFmpeg.

    Args:
        source: A path or the file's bytes; its content says what it is, not its name.
        format: FFmpeg's name of the format, for files without a header, such as ``g722``.
        expected_seconds: The duration that the file should have.
        tolerance: How far it may be off, in seconds.

    Returns:
        ``wave_N``, float32, full scale 1; channels are averaged, other rates resampled by soxr (HQ).

    Raises:
        InputError: if the file is missing, empty, not audio, damaged, holds NaN or infinity, or is shorter or
            longer than expected.
    """
    name = "audio" if isinstance(source, bytes) else str(source)
    try:
        data = source if isinstance(source, bytes) else Path(source).read_bytes()
    except OSError as e:
        raise InputError("An audio file cannot be read.", got=f"{name}: {e.strerror}", expected="a readable file") from None
    if not data:
        raise InputError("An audio file is empty.", got=f"{name}: 0 bytes", expected="audio", do="fetch or record it again")
    wave_NC, rate = _decode(data, format, name)
    if not len(wave_NC):
        raise InputError("An audio file holds no samples.", got=f"{name}: {len(data)} bytes", expected="audio", do="record it again")
    wave_N = check(wave_NC.mean(axis=1), name)
    if rate != SAMPLE_RATE:
        wave_N = soxr.resample(wave_N, rate, SAMPLE_RATE, quality="HQ")
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


def save_flac(path: Path, wave_N: npt.ArrayLike) -> None:
    """Write 16 kHz 16-bit FLAC; :func:`decode` gives the quantised samples back exactly.

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


def _decode(data: bytes, format: str | None, name: str) -> tuple[npt.NDArray[np.float32], Hertz]:
    """Samples by channels, and their rate."""
    reasons = []
    if format is None:
        try:
            wave_NC, rate = soundfile.read(io.BytesIO(data), dtype="float32", always_2d=True)
            return wave_NC, rate
        except (soundfile.LibsndfileError, RuntimeError) as e:
            reasons.append(f"libsndfile: {getattr(e, 'error_string', e)}")
    try:
        return _decode_av(data, format)
    except (av.error.FFmpegError, ValueError, IndexError) as e:
        reasons.append(f"FFmpeg: {getattr(e, 'strerror', None) or e}")
    raise InputError("An audio file cannot be decoded.", got=f"{name}: {'; '.join(reasons)}",
                     expected="WAV, FLAC, MP3, Ogg, Opus, M4A or whatever FFmpeg reads, whole", do="fetch or export it again")  # fmt: skip


def _decode_av(data: bytes, format: str | None) -> tuple[npt.NDArray[np.float32], Hertz]:
    # An empty list of protocols: playlists (HLS, concat, DASH) could otherwise open files and addresses.
    with av.open(io.BytesIO(data), "r", format=format, options={"protocol_whitelist": "none"}) as container:
        if not container.streams.audio:
            raise ValueError("it holds no audio")
        planar = av.AudioResampler(format="fltp")
        frames = [out for frame in container.decode(audio=0) for out in planar.resample(frame)]
        frames += planar.resample(None) if frames else []
        if not frames:
            raise ValueError("it holds no samples")
        return np.concatenate([frame.to_ndarray() for frame in frames], axis=1).T, frames[0].sample_rate
