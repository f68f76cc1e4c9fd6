"""Audio on real prompts: lossless where it should be, refused where it must be, and an SNR that is exact."""

from __future__ import annotations

import io
import math
import wave as pywave

import av
import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.signal import lfilter

from speechlab import audio
from speechlab.corpora import load_audio
from speechlab.errors import InputError
from speechlab.units import SAMPLE_RATE


@pytest.fixture(scope="module")
def speech(prompts) -> audio.Wave:
    """About three seconds of the real speaker."""
    return load_audio(next(cut for cut in prompts.cuts["test"] if 2.5 < cut.duration < 4))


def encode(wave: np.ndarray, format: str, subtype: str | None = None, rate: int = SAMPLE_RATE) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, wave, rate, format=format, subtype=subtype)
    return buffer.getvalue()


def encode_av(wave: np.ndarray, format: str, codec: str) -> bytes:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=format) as container:
        stream = container.add_stream(codec, rate=SAMPLE_RATE, layout="mono")
        frame = av.AudioFrame.from_ndarray(audio.quantise(wave)[None], format="s16", layout="mono")
        frame.sample_rate = SAMPLE_RATE
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            container.mux(packet)
    return buffer.getvalue()


# --- decode ---


@pytest.mark.parametrize(("format", "subtype"), [("WAV", "PCM_16"), ("FLAC", "PCM_16"), ("WAV", "FLOAT"), ("AIFF", "PCM_16")])
def test_lossless_formats_are_lossless(speech, format, subtype):
    assert np.array_equal(audio.decode(encode(speech, format, subtype)), speech)


def test_wav_agrees_with_the_standard_library(speech):
    data = encode(speech, "WAV", "PCM_16")
    with pywave.open(io.BytesIO(data)) as f:
        pcm = np.frombuffer(f.readframes(f.getnframes()), "<i2")
    assert np.array_equal(audio.decode(data), pcm / np.float32(32768))


def delay_and_likeness(wave, other) -> tuple[int, float]:
    """Where the other fits best, and its correlation there."""
    spectrum = np.fft.rfft(other, 2**18) * np.conj(np.fft.rfft(wave, 2**18))
    lag = np.fft.irfft(spectrum)
    best = int(np.argmax(lag))
    return best if best < 2**17 else best - 2**18, float(lag[best] / np.linalg.norm(wave) / np.linalg.norm(other))


@pytest.mark.parametrize(
    ("data", "format", "lag", "likeness"),
    [
        (lambda w: encode(w, "MP3"), None, 1200, 0.98),
        (lambda w: encode(w, "OGG", "OPUS"), None, 10, 0.98),
        (lambda w: encode(w, "OGG", "VORBIS"), None, 10, 0.98),
        (lambda w: audio.encode_mp3(w), None, 1200, 0.98),
        (lambda w: encode_av(w, "adts", "aac"), None, 1100, 0.98),  # by FFmpeg: libsndfile does not know it
        (lambda w: encode_av(w, "g722", "g722"), "g722", 30, 0.98),  # without a header
    ],
)
def test_lossy_formats_keep_speech_and_duration(speech, data, format, lag, likeness):
    got = audio.decode(data(speech), format, expected_seconds=len(speech) / SAMPLE_RATE, tolerance=0.15)
    delay, alike = delay_and_likeness(speech, got)
    assert 0 <= delay <= lag and alike > likeness


def test_other_rates_and_channels_become_16_khz_mono():
    t = np.arange(48_000) / 48_000
    stereo = np.stack([0.5 * np.sin(2 * np.pi * 440 * t), np.zeros_like(t)], axis=1)
    got = audio.decode(encode(stereo, "WAV", "FLOAT", 48_000))
    expected = 0.25 * np.sin(2 * np.pi * 440 * np.arange(SAMPLE_RATE) / SAMPLE_RATE)
    assert got.shape == expected.shape
    assert np.abs(got - expected)[200:-200].max() < 1e-3


def test_the_name_does_not_matter(speech, tmp_path):
    (tmp_path / "really.wav").write_bytes(encode(speech, "FLAC"))
    assert np.array_equal(audio.decode(tmp_path / "really.wav"), speech)


def with_nan(wave: np.ndarray) -> np.ndarray:
    bad = wave.copy()
    bad[100] = np.nan
    return bad


def playlist(_) -> bytes:
    return b"ffconcat version 1.0\nfile '/etc/hostname'\n"


BAD = {
    "zero bytes": (lambda w: b"", "is empty"),
    "header only": (lambda w: encode(w, "WAV")[:44], "no samples"),
    "half a header": (lambda w: encode(w, "WAV")[:20], "cannot be decoded|no samples"),
    "no samples": (lambda w: encode(w[:0], "WAV"), "no samples"),
    "text": (lambda w: b"this is no sound at all\n" * 100, "cannot be decoded"),
    "playlist": (playlist, "cannot be decoded"),
    "truncated WAV": (lambda w: encode(w, "WAV")[: len(w)], "another duration"),
    "truncated MP3": (lambda w: (d := encode(w, "MP3"))[: len(d) // 2], "another duration"),
    "truncated Vorbis": (lambda w: (d := encode(w, "OGG", "VORBIS"))[: len(d) // 2], "another duration|no samples|cannot"),
    "truncated Opus": (lambda w: (d := encode(w, "OGG", "OPUS"))[: len(d) // 2], "another duration|cannot be decoded"),
    "truncated FLAC": (lambda w: (d := encode(w, "FLAC"))[: len(d) // 2], "cannot be decoded"),
    "NaN": (lambda w: encode(with_nan(w), "WAV", "FLOAT"), "1 of .* are NaN"),
    "infinite": (lambda w: encode(w / np.float32(0), "WAV", "FLOAT"), "NaN or infinite"),
    "too long": (lambda w: encode(np.tile(w, 2), "WAV"), "another duration"),
}


@pytest.mark.filterwarnings("ignore:divide by zero", "ignore:invalid value")
@pytest.mark.parametrize("kind", BAD)
def test_bad_audio_is_refused(speech, tmp_path, kind):
    make, says = BAD[kind]
    path = tmp_path / "clip.wav"
    path.write_bytes(make(speech))
    with pytest.raises(InputError, match=says) as e:
        audio.decode(path, expected_seconds=len(speech) / SAMPLE_RATE)
    assert str(path) in str(e.value)


@pytest.mark.parametrize("share", [0.3, 0.5, 0.8, 0.97])
def test_flac_is_refused_wherever_it_is_cut(speech, share):
    data = encode(speech, "FLAC")
    with pytest.raises(InputError):
        audio.decode(data[: int(share * len(data))])


def test_without_an_expected_duration_truncation_passes(speech):
    """The negative control: this is why the duration is asked for."""
    assert len(audio.decode(encode(speech, "WAV")[: len(speech)])) < len(speech)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match="gone.wav: No such file"):
        audio.decode(tmp_path / "gone.wav")


# --- quantise, encode ---


@settings(max_examples=50)
@given(st.lists(st.integers(-32768, 32767), min_size=1, max_size=300))
def test_quantise_undoes_decoding(pcm):
    assert audio.quantise(np.array(pcm, np.int16) / np.float32(32768)).tolist() == pcm


def test_quantise_clips():
    assert audio.quantise([1.5, -1.5]).tolist() == [32767, -32768]


def test_pcm_hash_is_of_samples_not_files(speech, tmp_path):
    audio.save_flac(tmp_path / "a.flac", speech)
    assert audio.pcm_sha256(audio.decode(tmp_path / "a.flac")) == audio.pcm_sha256(audio.decode(encode(speech, "WAV")))
    other = speech.copy()
    other[5] += 1 / 32768
    assert audio.pcm_sha256(other) != audio.pcm_sha256(speech)
    assert audio.pcm_sha256([0.0]) == "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7"  # of two zero bytes


def test_mp3_is_small_and_starts_like_one(speech):
    data = audio.encode_mp3(speech)
    assert len(data) == pytest.approx(64_000 / 8 * len(speech) / SAMPLE_RATE, rel=0.15)
    assert data[:3] == b"ID3" or data[0] == 0xFF


@pytest.mark.parametrize("function", [audio.quantise, audio.pcm_sha256, audio.encode_mp3, audio.active_power])
@pytest.mark.parametrize("wave", [[], [0.0, math.nan], [math.inf], [[0.0, 0.1]]])
def test_no_function_takes_a_bad_waveform(function, wave):
    with pytest.raises(InputError, match="wrong shape|not numbers"):
        function(wave)


# --- noise ---


def p56_level(wave: np.ndarray) -> float:
    """Active speech level by ITU-T P.56 method B, written from the recommendation: envelope, thresholds, hangover."""
    g = math.exp(-1 / (SAMPLE_RATE * 0.03))
    envelope = lfilter([1 - g], [1, -g], lfilter([1 - g], [1, -g], np.abs(wave)))
    hang = int(0.2 * SAMPLE_RATE)
    total = np.sum(wave.astype(np.float64) ** 2)
    previous = None
    for threshold in 2.0 ** np.arange(-15, 1):
        above = np.flatnonzero(envelope >= threshold)
        if not above.size:
            break
        active = np.zeros(wave.size + hang + 1)
        active[above] += 1
        active[above + hang + 1] -= 1
        count = np.count_nonzero(np.cumsum(active)[: wave.size] > 0)
        level, gap = 10 * math.log10(total / count), 10 * math.log10(total / count) - 20 * math.log10(threshold)
        if gap <= audio.MARGIN:
            if previous is None:
                return level
            share = (previous[1] - audio.MARGIN) / (previous[1] - gap)
            return previous[0] + share * (level - previous[0])
        previous = level, gap
    raise AssertionError("no crossing")


def test_active_level_agrees_with_p56(prompts):
    cuts = [cut for cut in prompts.cuts["test"] if cut.duration > 1.5][:25]
    off = [10 * math.log10(audio.active_power(wave)) - p56_level(wave) for wave in map(load_audio, cuts)]
    assert abs(np.median(off)) < 1 and np.abs(off).max() < 2


def test_active_level_does_not_see_pauses(speech):
    paused = np.concatenate([speech, np.zeros(len(speech), np.float32), speech * np.float32(1e-3)])
    assert audio.active_power(paused) == pytest.approx(audio.active_power(speech), rel=0.02)
    assert np.mean(paused**2) < 0.6 * np.mean(speech**2)  # while the whole file's level falls by 3 dB and more


@pytest.mark.parametrize("snr", [-5.0, 0.0, 10.0, 40.0])
def test_snr_is_exact(speech, snr):
    noise = audio.add_noise(speech, snr, seed=3).astype(np.float64) - speech
    assert 10 * math.log10(audio.active_power(speech) / np.mean(noise**2)) == pytest.approx(snr, abs=1e-3)
    assert abs(np.corrcoef(noise[1:], noise[:-1])[0, 1]) < 0.02  # white


def test_noise_depends_on_the_seed_alone(speech):
    noisy = audio.add_noise(speech, 10, audio.clip_seed(1, "en/a"))
    assert noisy.dtype == np.float32
    assert np.array_equal(noisy, audio.add_noise(speech, 10, audio.clip_seed(1, "en/a")))
    for other in (audio.clip_seed(2, "en/a"), audio.clip_seed(1, "en/b")):
        assert not np.array_equal(noisy, audio.add_noise(speech, 10, other))


def test_silence_has_no_snr():
    with pytest.raises(InputError, match="silent"):
        audio.add_noise(np.zeros(SAMPLE_RATE), 10, 0)
    with pytest.raises(InputError, match="must be a number"):
        audio.add_noise(np.ones(9), math.nan, 0)
