"""Audio files as they are: what a header says, and samples at the file's own rate, whole or a part of them.

Notable: libsndfile reads WAV, FLAC, AIFF, SPHERE and their like, and jumps to a part without decoding what lies
before; FFmpeg (PyAV) reads all else (see :data:`FFMPEG` for what libsndfile would get wrong). Both are read block by
block under a cap, so a small file that unfolds to days of silence costs no memory. Sample positions are those of the
``ffmpeg`` command: encoder delay is trimmed wherever the file tells it (LAME's header, edit lists, Opus pre-skip).
The content says what a file is; only G.722 has none that could.

Not covered: headerless PCM, whose rate nothing tells; several audio streams in one file (the first is read); jumping
in what FFmpeg reads: a part of it costs decoding all that precedes it.
"""

from __future__ import annotations

import io
import math
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt
import soundfile  # type: ignore[import-untyped]

from speechlab.errors import InputError, did_you_mean
from speechlab.units import Hertz, Samples, Seconds

SUFFIXES = frozenset(
    {".wav", ".flac", ".mp3", ".ogg", ".opus", ".m4a", ".aac", ".webm", ".sph", ".aif", ".aiff", ".g722", ".amr", ".wma", ".mp4"}
)
HEADERLESS = ("g722",)  # formats that must be named, or are by the file's suffix
MAX_SECONDS: Seconds = 6 * 3600  # of what is decoded at once: 1.4 GB at 16 kHz
MAX_VALUES = 2**29  # samples times channels that are kept at once at the file's own rate: 2 GiB
LONGEST: Seconds = 24 * 3600  # a longer file is a broken header, or was made to be one
MAX_CHANNELS = 64
RATES: tuple[Hertz, Hertz] = (1_000, 768_000)
TOLERANCE: Seconds = 0.1  # MP3 and AAC pad by up to about 0.08 s
BLOCK: Samples = 2**16
OPUS_RATE: Hertz = 48_000  # RFC 7845: pre-skip is counted at this rate
# What libsndfile reads, but not as well: of an MP3 with a variable bitrate and no LAME header it gives as much as it
# guesses from the first frame, two thirds lost; Opus it decodes at the rate that the header mentions, narrow or not,
# and with other channel orders.
FFMPEG = ("MP3", "OGG")
UNKNOWN = 2**62  # from so many samples on libsndfile means that the header does not tell
DTX = {"amrnb": "libopencore_amrnb", "amrwb": "libopencore_amrwb"}  # FFmpeg's own decoders refuse frames of silence


@dataclass(frozen=True)
class Probe:
    """What a file's header says.

    Attributes:
        rate: Samples a second.
        channels: How many.
        samples: In each channel; None where the header does not tell it exactly.
        seconds: The duration; an estimate where ``samples`` is None, and None where there is none.
        format: Of the file, by the library that reads it: ``WAV``, ``FLAC``, ``matroska,webm``.
        subtype: Of the samples: ``PCM_16``, ``ULAW``, ``opus``.
    """

    rate: Hertz
    channels: int
    samples: Samples | None
    seconds: Seconds | None
    format: str
    subtype: str


@dataclass(frozen=True)
class Sound:
    """Samples of a file at its own rate.

    Attributes:
        wave_NC: Float32, full scale 1, channels in the file's order (that of WAV where FFmpeg reads).
        rate: Samples a second.
    """

    wave_NC: npt.NDArray[np.float32]
    rate: Hertz

    @property
    def seconds(self) -> Seconds:
        """Duration."""
        return len(self.wave_NC) / self.rate

    def mono(self, channel: int | None = None) -> npt.NDArray[np.float32]:
        """One channel, (N,), or the mean over all.

        Args:
            channel: From 0 on; None averages.

        Raises:
            InputError: if there is no such channel.
        """
        channels = self.wave_NC.shape[1]
        if channel is None and channels > 1:
            mean_N: npt.NDArray[np.float32] = self.wave_NC.mean(axis=1)
            return mean_N
        channel = channel or 0
        if not 0 <= channel < channels:
            raise InputError("An audio file has no such channel.", got=channel, expected=f"0 to {channels - 1}, or none for their mean")
        return np.ascontiguousarray(self.wave_NC[:, channel])  # a view would keep the others


def probe(source: str | Path | bytes, format: str | None = None) -> Probe:
    """What a file's header says, without decoding it.

    Args:
        source: A path or the file's bytes.
        format: One of :data:`HEADERLESS`, for files that no content tells; a path's suffix may say it, too.

    Raises:
        InputError: if the file is missing, empty, no regular file, not audio, or its header is absurd: over 64
            channels, a rate outside 1 to 768 kHz, a length over 24 hours.
    """
    with _opened(source, format) as (found, _):
        return found


def read(
    source: str | Path | bytes,
    format: str | None = None,
    *,
    start: Seconds | None = None,
    duration: Seconds | None = None,
    max_seconds: Seconds = MAX_SECONDS,
) -> Sound:
    """A file's samples at its own rate, or a part of them.

    Args:
        source: A path or the file's bytes.
        format: As for :func:`probe`.
        start: Where the part begins, in seconds; None is the beginning.
        duration: How long it is, in seconds; None is to the end. Both ends are rounded to the nearest sample of the
            file's own rate (halves up), so parts that adjoin in seconds adjoin in samples.
        max_seconds: More is refused.

    Raises:
        InputError: as for :func:`blocks`, or if it is more than :data:`MAX_VALUES` samples in all channels.
    """
    parts, values = [], 0
    for block in blocks(source, format, start=start, duration=duration, max_seconds=max_seconds):
        parts.append(block.wave_NC)
        values += block.wave_NC.size
        if values > MAX_VALUES:
            raise InputError("Audio is too long to be kept whole at its own rate.", got=f"{_name(source)}: over {MAX_VALUES} samples",
                             expected=f"at most {MAX_VALUES}", do="read a part: start and duration")  # fmt: skip
    return Sound(np.concatenate(parts), block.rate)


def blocks(
    source: str | Path | bytes,
    format: str | None = None,
    *,
    start: Seconds | None = None,
    duration: Seconds | None = None,
    max_seconds: Seconds = MAX_SECONDS,
) -> Iterator[Sound]:
    """A file's samples block by block, for what should not be kept whole; at least one block.

    Args:
        source: A path or the file's bytes.
        format: As for :func:`probe`.
        start: As for :func:`read`.
        duration: As for :func:`read`; a part that ends up to :data:`TOLERANCE` past the file's end is cut there.
        max_seconds: More is refused, by the header if it tells, else when so much is decoded.

    Raises:
        InputError: as for :func:`probe`, or if the file is damaged, holds no samples, is too long, or does not
            hold the part.
    """
    name = _name(source)
    begin = 0.0 if start is None else start
    if not (math.isfinite(begin) and begin >= 0 and (duration is None or (math.isfinite(duration) and duration > 0))):
        raise InputError("That is no part of an audio file.", got=f"{name}: start {start}, duration {duration}",
                         expected="seconds, start from 0 on and duration above 0")  # fmt: skip
    got, rate = 0, 0
    with _opened(source, format) as (found, decoded):
        rest = 0.0 if found.samples is None else found.samples / found.rate - begin
        if (rest if duration is None else min(rest, duration)) > max_seconds:
            raise _too_long(name, max_seconds)
        try:
            for block in decoded(begin, duration):
                rate = block.rate
                got += len(block.wave_NC)
                if got > max_seconds * rate:
                    raise _too_long(name, max_seconds)
                yield block
        except (soundfile.LibsndfileError, RuntimeError) as e:
            raise _undecodable(name, [f"libsndfile: {getattr(e, 'error_string', e)}"]) from None
        except (av.error.FFmpegError, ValueError, IndexError) as e:
            raise _undecodable(name, [f"FFmpeg: {getattr(e, 'strerror', None) or e}"]) from None
    if duration is not None and (not got or got < (duration - TOLERANCE) * rate):
        raise InputError("An audio file does not hold the part asked for.", got=f"{name}: {got} samples from {begin:.3f} s on",
                         expected=f"{duration:.3f} s from there", do="compare the segment with the file's duration")  # fmt: skip
    if not got:
        raise InputError("An audio file holds no samples.", got=f"{name}, from {begin:g} s on", expected="audio", do="record it again")


Decoded = Callable[[Seconds, Seconds | None], Iterator[Sound]]


@contextmanager
def _opened(source: str | Path | bytes, format: str | None) -> Iterator[tuple[Probe, Decoded]]:
    """The file's header, and a function that decodes a part of it."""
    name, reasons = _name(source), []
    if format is None and not isinstance(source, bytes) and Path(source).suffix.lower()[1:] in HEADERLESS:
        format = Path(source).suffix.lower()[1:]
    if format is not None and format not in HEADERLESS:
        raise InputError("Only audio without a header has its format named.", got=format, do=did_you_mean(format, HEADERLESS))
    with _stream(source, name) as stream:
        if format is None:
            try:
                with soundfile.SoundFile(stream) as file:
                    if file.format not in FFMPEG and file.frames < UNKNOWN and file.seekable():
                        found = Probe(file.samplerate, file.channels, file.frames, file.frames / max(file.samplerate, 1),
                                      file.format, file.subtype)  # fmt: skip
                        _refuse_absurd(found, name)
                        yield found, partial(_by_libsndfile, file)
                        return
            except soundfile.LibsndfileError as e:
                reasons.append(f"libsndfile: {e.error_string}")
            stream.seek(0)
        try:
            # An empty list of protocols: playlists (HLS, concat, DASH) could otherwise open files and addresses.
            container = av.open(stream, "r", format=format, options={"protocol_whitelist": "none"})
        except (av.error.FFmpegError, ValueError, IndexError) as e:
            raise _undecodable(name, [*reasons, f"FFmpeg: {getattr(e, 'strerror', None) or e}"]) from None
        with container:
            if not container.streams.audio or container.streams.audio[0].codec_context is None:  # none for unknown codecs
                raise _undecodable(name, [*reasons, "FFmpeg: it holds no audio that it can decode"])
            audio = container.streams.audio[0]
            ticks = audio.duration * audio.time_base if audio.duration else (container.duration or 0) / 1_000_000  # av.time_base
            found = Probe(audio.rate, audio.channels, None, float(ticks) if ticks > 0 else None, container.format.name,
                          audio.codec_context.name)  # fmt: skip
            _refuse_absurd(found, name)
            yield found, partial(_by_ffmpeg, container, audio)


def _by_libsndfile(file: Any, start: Seconds, duration: Seconds | None) -> Iterator[Sound]:
    first, stop = _part(start, duration, file.samplerate)
    first, stop = min(first, file.frames), file.frames if stop is None else min(stop, file.frames)
    file.seek(first)
    while first < stop:
        wave_NC = file.read(min(BLOCK, stop - first), dtype="float32", always_2d=True)
        if not len(wave_NC):
            raise RuntimeError(f"it ends after {first} of {file.frames} samples")
        first += len(wave_NC)
        yield Sound(wave_NC, file.samplerate)


def _by_ffmpeg(container: Any, audio: Any, start: Seconds, duration: Seconds | None) -> Iterator[Sound]:
    at, waiting, have, rate, channels = -_unskipped(container, audio), [], 0, 0, 0
    first: Samples = 0
    stop: Samples | None = None
    for frame in _frames(container, audio):
        if not rate:
            rate, channels = frame.sample_rate, frame.layout.nb_channels  # of what is decoded: some AAC headers tell half the rate
            first, stop = _part(start, duration, rate)
        if (frame.sample_rate, frame.layout.nb_channels) != (rate, channels) or at > LONGEST * rate:
            raise ValueError(f"it goes on at {frame.sample_rate} Hz in {frame.layout.name} after {at} samples at {rate} Hz")
        wave_NC = frame.to_ndarray().reshape(-1, channels)
        low, high = max(first - at, 0), len(wave_NC) if stop is None else min(stop - at, len(wave_NC))
        at += len(wave_NC)
        if high > low:
            waiting.append(wave_NC[low:high])
            have += high - low
        if have >= BLOCK:
            yield Sound(np.concatenate(waiting), rate)
            waiting, have = [], 0
        if stop is not None and at >= stop:
            break
    if have:
        yield Sound(np.concatenate(waiting), rate)


def _frames(container: Any, audio: Any) -> Iterator[Any]:
    """Decoded frames, float32, channels interleaved: of eight planes and more PyAV reads past the last."""
    name = audio.codec_context.name
    decoder = av.CodecContext.create(DTX[name], "r") if name in DTX else audio.codec_context
    packed = av.AudioResampler(format="flt")
    begun = False
    for packet in container.demux(audio):
        for frame in decoder.decode(packet):
            begun = True
            yield from packed.resample(frame)
    if begun:
        yield from packed.resample(None)


def _unskipped(container: Any, audio: Any) -> Samples:
    """Samples of Opus pre-skip that FFmpeg forgets in Matroska and WebM.

    It counts them at the rate of what was encoded, as the header mentions it, and drops so many at 48 kHz.
    """
    context = audio.codec_context
    head = context.extradata or b""  # "OpusHead", version, channels, pre-skip u16, rate u32 (RFC 7845, 5.1)
    if context.name not in {"opus", "libopus"} or "matroska" not in container.format.name or len(head) < 16:
        return 0
    preskip, rate = int.from_bytes(head[10:12], "little"), int.from_bytes(head[12:16], "little")
    return preskip - context.delay if context.delay == preskip * rate // OPUS_RATE and rate < OPUS_RATE else 0


def _part(start: Seconds, duration: Seconds | None, rate: Hertz) -> tuple[Samples, Samples | None]:
    """First sample, and the one after the last; both to the nearest, halves up."""
    return math.floor(start * rate + 0.5), None if duration is None else math.floor((start + duration) * rate + 0.5)


@contextmanager
def _stream(source: str | Path | bytes, name: str) -> Iterator[Any]:
    """The file's bytes, opened."""
    if isinstance(source, bytes):
        if not source:
            raise InputError("An audio file is empty.", got=f"{name}: 0 bytes", expected="audio", do="fetch or record it again")
        yield io.BytesIO(source)
        return
    try:
        state = Path(source).stat()
        if not stat.S_ISREG(state.st_mode):  # a pipe would be waited for, a device never ends
            raise InputError("An audio file is no regular file.", got=name, expected="a file")
        stream = Path(source).open("rb")  # noqa: SIM115  # closed below
    except (OSError, ValueError) as e:
        reason = getattr(e, "strerror", None) or e
        raise InputError("An audio file cannot be read.", got=f"{name}: {reason}", expected="a readable file") from None
    with stream:
        if not state.st_size:
            raise InputError("An audio file is empty.", got=f"{name}: 0 bytes", expected="audio", do="fetch or record it again")
        yield stream


def _refuse_absurd(found: Probe, name: str) -> None:
    if not (RATES[0] <= found.rate <= RATES[1] and 1 <= found.channels <= MAX_CHANNELS and (found.seconds or 0) <= LONGEST):
        length = "unknown" if found.seconds is None else f"{found.seconds:.0f} s"
        raise InputError("An audio file's header is absurd.",
                         got=f"{name}: {found.rate} Hz, {found.channels} channels, length {length}",
                         expected=f"{RATES[0]} to {RATES[1]} Hz, at most {MAX_CHANNELS} channels and {LONGEST:.0f} s",
                         do="export it again, or leave it out")  # fmt: skip


def _too_long(name: str, max_seconds: Seconds) -> InputError:
    return InputError("Audio is longer than may be decoded at once.", got=name, expected=f"at most {max_seconds:g} s",
                      do="read a part (start, duration), or raise max_seconds")  # fmt: skip


def _undecodable(name: str, reasons: list[str]) -> InputError:
    return InputError("An audio file cannot be decoded.", got=f"{name}: {'; '.join(reasons)}",
                      expected="WAV, FLAC, MP3, Ogg, Opus, M4A or whatever FFmpeg reads, whole", do="fetch or export it again")  # fmt: skip


def _name(source: str | Path | bytes) -> str:
    return "audio" if isinstance(source, bytes) else str(source)
