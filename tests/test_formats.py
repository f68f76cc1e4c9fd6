"""Every format that is read, at every rate and channel count it has, against the ffmpeg command; parts, limits, damage."""

from __future__ import annotations

import ctypes
import io
import math
import os
import subprocess
import tracemalloc
from itertools import pairwise

import numpy as np
import pytest
import soundfile
import soxr
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from speechlab import audio, formats
from speechlab.corpora import load_audio
from speechlab.errors import InputError
from speechlab.units import SAMPLE_RATE

RATES = (8000, 11025, 16000, 22050, 44100, 48000, 96000)
ALL = (*((rate, 1) for rate in RATES), (16000, 2), (44100, 2), (48000, 6), (48000, 8))
STEREO = tuple(pair for pair in ALL if pair[1] <= 2)
MP3 = tuple(pair for pair in STEREO if pair[0] < 96000)
OPUS = ((8000, 1), (16000, 1), (48000, 1), (16000, 2), (48000, 2), (48000, 6), (48000, 8))
LOSSLESS, CODEC = 0.0, 2e-6  # two versions of FFmpeg, which round differently

# name: suffix, what the ffmpeg command is told, (rate, channels), how far samples may be off,
# samples of encoder delay that the file does not tell, so that neither we nor ffmpeg can take it out
TABLE = {
    "wav-u8": ("wav", "-c:a pcm_u8", ALL, LOSSLESS, 0),
    "wav-s16": ("wav", "-c:a pcm_s16le", ALL, LOSSLESS, 0),
    "wav-s24": ("wav", "-c:a pcm_s24le", ALL, LOSSLESS, 0),
    "wav-s32": ("wav", "-c:a pcm_s32le", ALL, LOSSLESS, 0),
    "wav-f32": ("wav", "-c:a pcm_f32le", ALL, LOSSLESS, 0),
    "wav-f64": ("wav", "-c:a pcm_f64le", ALL, LOSSLESS, 0),
    "wav-mulaw": ("wav", "-c:a pcm_mulaw", ALL, LOSSLESS, 0),
    "wav-alaw": ("wav", "-c:a pcm_alaw", ALL, LOSSLESS, 0),
    "wav-gsm": ("wav", "-c:a libgsm_ms", ((8000, 1),), 2 / 32768, 0),
    "aiff": ("aiff", "", ALL, LOSSLESS, 0),
    "flac-16": ("flac", "-sample_fmt s16", ALL, LOSSLESS, 0),
    "flac-24": ("flac", "-sample_fmt s32", ALL, LOSSLESS, 0),
    "mp3": ("mp3", "-b:a 64k", MP3, CODEC, 0),
    "mp3-vbr": ("mp3", "-q:a 4", ((16000, 1), (44100, 2)), CODEC, 0),
    "mp3-vbr-no-lame-header": ("mp3", "-q:a 4 -write_xing 0", ((16000, 1), (44100, 2)), CODEC, 1105),
    "ogg-vorbis": ("ogg", "-c:a libvorbis", ALL, CODEC, 0),
    "ogg-opus": ("opus", "-c:a libopus", OPUS, CODEC, 0),
    "webm-opus": ("webm", "-c:a libopus", OPUS, CODEC, 0),
    "m4a": ("m4a", "-c:a aac", ALL, CODEC, 0),
    "aac-adts": ("aac", "-c:a aac", ALL, CODEC, 1024),
    "g722": ("g722", "", ((16000, 1),), LOSSLESS, 22),
    "gsm": ("gsm", "-c:a libgsm", ((8000, 1),), 2 / 32768, 0),
}
BY_OTHERS = ("amr-nb", "amr-wb", "sph", "sph-mulaw", "sph-stereo")  # what this ffmpeg does not write
CASES = [(name, rate, channels) for name, row in TABLE.items() for rate, channels in row[2]]


def run(*command) -> bytes:
    return subprocess.run([str(part) for part in command], check=True, capture_output=True, timeout=60).stdout


def amr_wb(wave) -> bytes:
    """By VisualOn's encoder, 23.85 kbit/s (RFC 4867, section 5)."""
    encoder = ctypes.CDLL("libvo-amrwbenc.so.0")
    encoder.E_IF_init.restype = ctypes.c_void_p
    state, out, data = ctypes.c_void_p(encoder.E_IF_init()), ctypes.create_string_buffer(512), b"#!AMR-WB\n"
    for frame in audio.quantise(wave)[: len(wave) // 320 * 320].reshape(-1, 320):
        size = encoder.E_IF_encode(state, 8, np.ascontiguousarray(frame).ctypes.data_as(ctypes.c_void_p), out, 0)
        data += out.raw[:size]
    encoder.E_IF_exit(state)
    return data


@pytest.fixture(scope="session")
def speech(prompts) -> audio.Wave:
    """About three seconds of the real speaker."""
    return load_audio(next(cut for cut in prompts.cuts["test"] if 2.5 < cut.duration < 4))


@pytest.fixture(scope="session")
def files(speech, tmp_path_factory):
    """All files of the table, and what the ffmpeg command decodes from each: name to path and (N, C)."""
    folder = tmp_path_factory.mktemp("formats")
    for channels in (1, 2, 6, 8):  # each channel another stretch of the clip at another level, so that their order shows
        wave_NC = np.stack([np.roll(speech, 4000 * c) * (1 - 0.1 * c) for c in range(channels)], axis=1)
        soundfile.write(folder / f"{channels}.wav", wave_NC, SAMPLE_RATE, subtype="FLOAT")
    encode = [part for c in (1, 2, 6, 8) for part in ("-i", folder / f"{c}.wav")]
    paths = {}
    for name, rate, channels in CASES:
        suffix, options, *_ = TABLE[name]
        paths[name, rate, channels] = path = folder / f"{name}-{rate}-{channels}.{suffix}"
        encode += ["-map", {1: 0, 2: 1, 6: 2, 8: 3}[channels], "-ar", rate, *options.split(), path]
    run("ffmpeg", "-v", "error", "-nostdin", *encode)
    one, two = folder / "1.wav", folder / "2.wav"
    run("sox", one, "-r", 8000, paths.setdefault(("amr-nb", 8000, 1), folder / "a.amr-nb"))
    paths["amr-wb", 16000, 1] = folder / "a.awb"
    (folder / "a.awb").write_bytes(amr_wb(speech))
    run("sox", one, "-b", 16, paths.setdefault(("sph", 16000, 1), folder / "a.sph"))
    run("sox", one, "-r", 8000, "-e", "mu-law", paths.setdefault(("sph-mulaw", 8000, 1), folder / "b.sph"))
    run("sox", two, "-r", 8000, "-b", 16, paths.setdefault(("sph-stereo", 8000, 2), folder / "c.sph"))
    for key in (("amr-nb", 8000, 1), ("amr-wb", 16000, 1)):  # FFmpeg's own decoder refuses frames of silence, OpenCORE's knows them
        run("sox", paths[key], "-t", "f32", f"{paths[key]}.pcm")
    by_ffmpeg([path for path in paths.values() if path.suffix not in {".amr-nb", ".awb"}])
    return {key: (path, np.fromfile(f"{path}.pcm", "<f4").reshape(-1, key[2])) for key, path in paths.items()}


def by_ffmpeg(paths, *options) -> None:
    """Write what the ffmpeg command decodes from each file beside it; one process for all, which is what takes the time."""
    inputs, outputs = [], []
    for i, path in enumerate(paths):
        inputs += ["-threads", 1, *(("-f", "g722") if path.suffix == ".g722" else ()), "-i", path]
        outputs += ["-map", i, *options, "-f", "f32le", f"{path}.pcm"]
    run("ffmpeg", "-v", "error", "-nostdin", *inputs, *outputs)


def lag(wave, other) -> int:
    """By how many samples the other is late."""
    size = 1 << math.ceil(math.log2(len(wave) + len(other)))
    best = int(np.argmax(np.fft.irfft(np.fft.rfft(other, size) * np.conj(np.fft.rfft(wave, size)))))
    return best if best < size // 2 else best - size


# --- the table ---


@pytest.mark.parametrize(("name", "rate", "channels"), CASES)
def test_every_format_decodes_as_ffmpeg_does(files, name, rate, channels):
    path, expected_NC = files[name, rate, channels]
    got = formats.read(path)
    assert got.wave_NC.shape == expected_NC.shape
    assert np.abs(got.wave_NC - expected_NC).max() <= TABLE[name][3]
    # and the same on the way to the model, which goes block by block
    expected_N = expected_NC.mean(axis=1)
    expected_N = expected_N if got.rate == SAMPLE_RATE else soxr.resample(expected_N, got.rate, SAMPLE_RATE, quality="HQ")
    wave_N = audio.decode(path)
    assert wave_N.shape == expected_N.shape
    assert np.abs(wave_N - expected_N).max() <= 2 * TABLE[name][3] + 1e-9


@pytest.mark.parametrize("name", BY_OTHERS)
def test_formats_of_other_encoders_decode_as_ffmpeg_does(files, name):
    ((path, expected_NC),) = [value for key, value in files.items() if key[0] == name]
    got = formats.read(path)
    assert got.wave_NC.shape == expected_NC.shape and len(expected_NC) > 20_000
    assert np.array_equal(got.wave_NC, expected_NC)


def test_the_table_is_whole():
    assert len(CASES) == 183 and len(TABLE) == 22


@pytest.mark.parametrize("name", TABLE)
def test_delay_is_what_the_table_says(files, speech, name):
    for rate, channels in TABLE[name][2]:
        if channels == 1:
            got = formats.read(files[name, rate, 1][0])
            source = soxr.resample(speech, SAMPLE_RATE, got.rate, quality="HQ")
            assert abs(lag(source, got.wave_NC[:, 0]) - TABLE[name][4]) <= 1, rate


def test_every_channel_lies_where_it_was(files, speech):
    """Against the source, not only against FFmpeg, which might reorder as we do."""
    for name in ("wav-s16", "flac-16", "aiff"):
        got = formats.read(files[name, 48000, 6][0])
        for c in range(6):
            source = soxr.resample(np.roll(speech, 4000 * c), SAMPLE_RATE, 48000, quality="HQ")
            assert abs(lag(source, got.mono(c))) <= 1
            assert np.array_equal(audio.decode(files[name, 48000, 6][0], channel=c), soxr.resample(got.mono(c), 48000, SAMPLE_RATE))


def test_libsndfile_alone_would_lose_most_of_an_mp3(files, speech, tmp_path):
    """The negative control of :data:`formats.FFMPEG`: a loud start, a quiet rest, no header that tells the length."""
    soundfile.write(tmp_path / "a.wav", np.concatenate([np.tile(speech, 4), np.zeros(15 * SAMPLE_RATE)]), SAMPLE_RATE)
    run("ffmpeg", "-v", "error", "-i", tmp_path / "a.wav", "-q:a", 5, "-write_xing", 0, tmp_path / "a.mp3")
    by_ffmpeg([tmp_path / "a.mp3"])
    expected_NC = np.fromfile(tmp_path / "a.mp3.pcm", "<f4")[:, None]
    assert len(soundfile.read(tmp_path / "a.mp3")[0]) < 0.6 * len(expected_NC)
    assert np.allclose(formats.read(tmp_path / "a.mp3").wave_NC, expected_NC, atol=CODEC)


def test_ffmpeg_alone_would_shift_opus_in_webm(files, monkeypatch):
    path, expected_NC = files["webm-opus", 16000, 1]
    monkeypatch.setattr(formats, "_unskipped", lambda container, audio: 0)
    assert lag(expected_NC[:, 0], formats.read(path).mono()) == 208  # 312 samples of pre-skip, of which it drops 104


@pytest.mark.parametrize("rate", [8000, 11025, 22050, 44100, 48000, 96000])
def test_resampling_agrees_with_ffmpegs(files, tmp_path, rate):
    """Band-limited speech, so that only what both filters keep is compared; swr with a long filter."""
    path, _ = files["wav-f32", rate, 1]
    low = min(rate, SAMPLE_RATE) * 0.4
    run("ffmpeg", "-v", "error", "-i", path, "-af", ",".join([f"lowpass=f={0.5 * low}:p=2"] * 8), "-c:a", "pcm_f32le", tmp_path / "low.wav")
    by_ffmpeg([tmp_path / "low.wav"], "-af", f"aresample={SAMPLE_RATE}:filter_size=256:phase_shift=12:cutoff=0.98")
    expected_N = np.fromfile(tmp_path / "low.wav.pcm", "<f4")
    got_N = audio.decode(tmp_path / "low.wav")
    size = min(len(got_N), len(expected_N))
    assert abs(len(got_N) - len(expected_N)) <= 1
    error_N = (got_N[:size] - expected_N[:size])[400:-400]
    snr = 10 * math.log10(np.sum(got_N[400 : size - 400] ** 2) / np.sum(error_N**2))
    assert snr > 60
    late_N = got_N[401 : size - 399] - expected_N[400 : size - 400]  # one sample off would show
    assert 10 * math.log10(np.sum(got_N[400 : size - 400] ** 2) / np.sum(late_N**2)) < 40


# --- a part ---

PARTS = ("wav-s16", "wav-mulaw", "wav-gsm", "flac-24", "aiff", "mp3", "ogg-vorbis", "ogg-opus", "webm-opus", "m4a", "g722", "gsm")


@pytest.mark.parametrize("name", PARTS)
@pytest.mark.parametrize(("start", "duration"), [(0.5, 0.75), (1.23456, 0.1), (None, 1.0), (2.0, None)])
def test_a_part_is_the_same_samples(files, name, start, duration):
    rate, channels = TABLE[name][2][0]
    path, _ = files[name, rate, channels]
    whole, part = formats.read(path), formats.read(path, start=start, duration=duration)
    first = math.floor((start or 0) * whole.rate + 0.5)
    stop = None if duration is None else math.floor(((start or 0) + duration) * whole.rate + 0.5)
    assert 0 < len(part.wave_NC) < len(whole.wave_NC)
    assert np.array_equal(part.wave_NC, whole.wave_NC[first:stop])


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.floats(0.001, 2.6), min_size=1, max_size=5, unique=True))
def test_parts_that_adjoin_in_seconds_adjoin_in_samples(files, cuts):
    path, expected_NC = files["flac-16", 11025, 1]
    edges = [0.0, *sorted({round(cut, 2) for cut in cuts if cut > 0.005})]  # a part has a sample at least
    edges = [edge + 1e-5 * (edge > 0) for edge in edges]  # which no sample lies on
    joined = [formats.read(path, start=a, duration=b - a).wave_NC for a, b in pairwise(edges)]
    joined.append(formats.read(path, start=edges[-1]).wave_NC)
    assert np.array_equal(np.concatenate(joined), expected_NC)


@pytest.mark.slow
@pytest.mark.parametrize(("format", "suffix"), [("WAV", "wav"), ("FLAC", "flac"), ("NIST", "sph")])
def test_a_part_of_an_hour_does_not_read_the_hour(speech, tmp_path, monkeypatch, format, suffix):
    path = tmp_path / f"hour.{suffix}"
    hour = np.resize(audio.quantise(speech), 3600 * 8000)
    soundfile.write(path, hour, 8000, format=format, subtype="PCM_16")
    read = []

    class Counting(io.BufferedReader):
        def readinto(self, buffer):
            read.append(super().readinto(buffer))
            return read[-1]

        def read(self, size=-1):
            read.append(len(data := super().read(size)))
            return data

    monkeypatch.setattr(type(path), "open", lambda self, mode: Counting(io.FileIO(self)))
    part = formats.read(path, start=3000.5, duration=2.0)
    assert np.array_equal(part.wave_NC[:, 0], hour[24_004_000:24_020_000] / np.float32(32768))
    assert 0 < sum(read) < 0.03 * path.stat().st_size
    read.clear()
    formats.read(path)  # the negative control: the counter sees what is read
    assert sum(read) > 0.9 * path.stat().st_size


@pytest.mark.parametrize(
    ("start", "duration", "says"),
    [(2.6, 1.0, "does not hold the part"), (99.0, 1.0, "does not hold the part"), (99.0, None, "no samples"), (-1.0, 1.0, "no part"),
     (math.nan, 1.0, "no part"), (0.0, 0.0, "no part"), (0.0, -1.0, "no part"), (0.0, math.inf, "no part"), (math.inf, None, "no part")],
)  # fmt: skip
@pytest.mark.parametrize("name", ["wav-s16", "m4a"])
def test_a_part_that_is_not_there_is_refused(files, name, start, duration, says):
    path, _ = files[name, 16000, 1]
    with pytest.raises(InputError, match=says) as e:
        audio.decode(path, start=start, duration=duration)
    assert path.name in str(e.value)


def test_a_part_may_end_a_little_past_the_end(files):
    path, expected_NC = files["wav-s16", 16000, 1]
    seconds = len(expected_NC) / 16000
    assert np.array_equal(audio.decode(path, start=1.0, duration=seconds - 1 + 0.09), expected_NC[16000:, 0])


@pytest.mark.parametrize("channel", [-1, 2, 6])
def test_a_channel_that_is_not_there_is_refused(files, channel):
    with pytest.raises(InputError, match="no such channel"):
        audio.decode(files["wav-s16", 16000, 2][0], channel=channel)


# --- probe ---


def test_headers_tell_what_decoding_gives(files):
    for path, expected_NC in files.values():
        found, sound = formats.probe(path), formats.read(path)
        assert (found.rate, found.channels) == (sound.rate, expected_NC.shape[1])
        assert found.samples in {len(expected_NC), None}
        if found.seconds is not None:
            assert found.seconds == pytest.approx(sound.seconds, rel=0.1 if found.samples is None else 1e-9), path
    exact = {key[0] for key, (path, _) in files.items() if formats.probe(path).samples is not None}
    assert exact == {n for n in TABLE if n.startswith(("wav", "aiff", "flac"))} - {"wav-gsm"} | {"sph", "sph-mulaw", "sph-stereo"}
    assert formats.probe(files["wav-mulaw", 8000, 1][0]) == formats.Probe(8000, 1, 21082, 21082 / 8000, "WAV", "ULAW")


# --- limits and damage ---


def wav_header(rate: int, channels: int) -> bytes:
    fmt = (1).to_bytes(2, "little") + channels.to_bytes(2, "little") + rate.to_bytes(4, "little")
    fmt += (rate * channels * 2 % 2**32).to_bytes(4, "little") + (channels * 2 % 2**16).to_bytes(2, "little") + (16).to_bytes(2, "little")
    body = b"WAVEfmt " + (16).to_bytes(4, "little") + fmt + b"data" + (26_000).to_bytes(4, "little") + bytes(26_000)
    return b"RIFF" + len(body).to_bytes(4, "little") + body


@pytest.mark.parametrize(("rate", "channels"), [(999, 1), (768_001, 1), (1, 1), (2**31 - 1, 1), (16000, 65), (16000, 1000)])
@pytest.mark.parametrize("function", [formats.probe, formats.read, audio.decode])
def test_absurd_headers_are_refused(function, rate, channels):
    with pytest.raises(InputError, match="absurd|cannot be decoded"):
        function(wav_header(rate, channels))


@pytest.mark.parametrize(("rate", "channels"), [(1000, 1), (768_000, 1), (16000, 64)])
def test_odd_headers_are_read(rate, channels):
    assert formats.read(wav_header(rate, channels)).wave_NC.shape == (26_000 // 2 // channels, channels)


def flac(seconds: int, rate: int = 1000) -> bytes:
    buffer = io.BytesIO()
    with soundfile.SoundFile(buffer, "w", rate, 1, format="FLAC", subtype="PCM_16") as file:
        for _ in range(seconds // 600):
            file.write(np.zeros(600 * rate, np.int16))
    return buffer.getvalue()


def test_a_day_of_silence_in_a_small_file_is_refused_by_its_header():
    data = flac(int(6.5 * 3600))
    assert len(data) < 120_000
    with pytest.raises(InputError, match="longer than may be decoded"):
        audio.decode(data)
    assert len(audio.decode(data, start=6.4 * 3600, duration=1.0)) == SAMPLE_RATE  # a part of it can be had
    with pytest.raises(InputError, match="absurd"):
        formats.probe(flac(25 * 3600))


@pytest.mark.slow
@pytest.mark.parametrize(("suffix", "options"), [("flac", ""), ("opus", "-c:a libopus -b:a 6k"), ("mp3", "-b:a 8k")])
def test_a_bomb_without_a_length_costs_no_memory(tmp_path, suffix, options):
    """Five minutes of silence through a pipe, so that no header tells how long it is."""
    silence = ("-f", "lavfi", "-i", "anullsrc=r=16000:cl=mono", "-t", 300)
    data = run("ffmpeg", "-v", "error", *silence, *options.split(), "-f", suffix, "pipe:1")
    assert len(data) < 2_000_000
    assert formats.probe(data).samples is None
    tracemalloc.start()
    with pytest.raises(InputError, match="longer than may be decoded"):
        audio.decode(data, max_seconds=10)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10 * SAMPLE_RATE * 4 * 5 < 300 * SAMPLE_RATE * 4 / 5  # the whole would be 19 MB
    assert len(audio.decode(data, max_seconds=310)) >= 300 * SAMPLE_RATE


def test_wide_files_are_not_kept_whole(monkeypatch, files):
    path, expected_NC = files["wav-s16", 48000, 6]
    monkeypatch.setattr(formats, "MAX_VALUES", expected_NC.size - 1)
    with pytest.raises(InputError, match="too long to be kept"):
        formats.read(path)
    assert len(audio.decode(path)) > 0
    monkeypatch.setattr(formats, "MAX_VALUES", expected_NC.size)
    assert formats.read(path).wave_NC.size == expected_NC.size


@pytest.mark.parametrize("function", [formats.probe, formats.read, audio.decode])
def test_what_is_no_file_is_refused_at_once(function, tmp_path):
    os.mkfifo(tmp_path / "pipe.wav")
    for path in (tmp_path / "pipe.wav", tmp_path, "/dev/zero"):
        with pytest.raises(InputError, match="no regular file"):
            function(path)
    for path in (tmp_path / "gone.wav", "a\0b.wav", "x" * 5000):
        with pytest.raises(InputError, match="cannot be read"):
            function(path)


def test_only_g722_is_named(files, tmp_path):
    path, expected_NC = files["g722", 16000, 1]
    assert np.array_equal(audio.decode(path.read_bytes(), "g722"), expected_NC[:, 0])
    (tmp_path / "A.G722").write_bytes(path.read_bytes())
    assert np.array_equal(audio.decode(tmp_path / "A.G722"), expected_NC[:, 0])
    with pytest.raises(InputError, match="cannot be decoded"):
        audio.decode(path.read_bytes())
    with pytest.raises(InputError, match="has its format named"):
        audio.decode(path, "lavfi")


PLACES = st.integers(0, 400) | st.integers(0, 20_000)  # headers oftener than what follows
FUZZED = ("wav-s16", "wav-f32", "aiff", "flac-16", "mp3", "ogg-vorbis", "ogg-opus", "webm-opus", "m4a", "aac-adts", "gsm")


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(FUZZED),
    st.lists(st.tuples(PLACES, st.integers(0, 255)), max_size=6),
    st.floats(0.01, 1),
)
@example("wav-f32", [(20, 0), (21, 6)], 1.0)  # a codec that FFmpeg has no decoder for
def test_damage_gives_samples_or_an_input_error(files, name, changes, share):
    path, _ = files[name, *TABLE[name][2][0]]
    data = bytearray(path.read_bytes()[:20_000])
    data = data[: max(1, int(share * len(data)))]
    for at, value in changes:
        data[at % len(data)] = value
    try:
        wave_N = audio.decode(bytes(data), max_seconds=60)
    except InputError:
        return
    assert wave_N.ndim == 1 and np.isfinite(wave_N).all()
