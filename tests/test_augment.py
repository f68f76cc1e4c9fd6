"""Augmentation on real prompts: exact where a number is promised, in its place, and the same bits wherever it is made."""

from __future__ import annotations

import audioop
import dataclasses
import hashlib
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyroomacoustics.experimental import measure_rt60
from scipy.signal import resample_poly

from speechlab import audio, augment, effects
from speechlab.augment import ORDER, Augmenter
from speechlab.batches import feed
from speechlab.config import (
    AugmentConfig,
    ClippingConfig,
    CodecConfig,
    GainConfig,
    NoiseConfig,
    RoomConfig,
    SpecAugmentConfig,
    SpeedConfig,
    validate,
)
from speechlab.corpora import load_audio
from speechlab.errors import InputError
from speechlab.plan import Micro

# every transform on every clip, in small rooms that are made quickly
ALL = AugmentConfig(
    speed=SpeedConfig(factors=(0.9, 1.1)),
    room=RoomConfig(probability=1.0, low=0.2, high=0.4, rooms=3),
    noise=NoiseConfig(probability=1.0),
    gain=GainConfig(),
    clipping=ClippingConfig(probability=1.0),
    codec=CodecConfig(probability=1.0),
    spec=SpecAugmentConfig(),
)


@pytest.fixture(scope="module")
def waves(prompts) -> list[np.ndarray]:
    """Real clips, short to long."""
    cuts = sorted(prompts.cuts["test"], key=lambda c: c.duration)
    return [load_audio(c) for c in cuts[:: len(cuts) // 5]]


@pytest.fixture
def noises(tmp_path, waves) -> Path:
    """A folder of real recordings (other prompts serve as noise), one longer and one shorter than most clips."""
    for name, wave in (("b/long.flac", waves[-1]), ("a.wav", waves[0][:5000])):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        soundfile.write(tmp_path / name, wave, 16_000)
    (tmp_path / "README.txt").write_text("not a sound")
    return tmp_path


@dataclasses.dataclass(frozen=True)
class Augmented:
    """Clips as training hears them: what a loader process gets."""

    waves: tuple[np.ndarray, ...]
    augmenter: Augmenter

    def __call__(self, index: int, epoch: int) -> tuple[str, str, np.ndarray]:
        return f"clip-{index}", "", self.augmenter(self.waves[index], f"clip-{index}", epoch)


def lag(a: np.ndarray, b: np.ndarray, whiten: bool = False) -> int:
    """By how many samples b is later than a: the peak of their cross-correlation, or of GCC-PHAT (Knapp & Carter, 1976)."""
    n = 1 << (len(a) + len(b)).bit_length()
    cross = np.conj(np.fft.rfft(a, n)) * np.fft.rfft(b, n)
    if whiten:
        cross /= np.abs(cross) + 1e-9 * np.abs(cross).max()
    peak = int(np.fft.irfft(cross, n).argmax())
    return peak if peak < n // 2 else peak - n


def decibels(ratio: float) -> float:
    return 10 * np.log10(ratio)


def only(**sections) -> Augmenter:
    return Augmenter(AugmentConfig(**sections), seed=1)


@pytest.mark.parametrize("factor", [0.5, 0.9, 1.1, 1.37, 2.0])
def test_speed_moves_pitch_and_duration(factor):
    tone = (0.5 * np.sin(2 * np.pi * 440 * np.arange(32_000) / 16_000)).astype(np.float32)
    out = augment.speed(tone, factor)
    assert len(out) == round(32_000 / factor)
    peak = np.abs(np.fft.rfft(out[: len(out) // 2 * 2] * np.hanning(len(out) // 2 * 2))).argmax() * 16_000 / (len(out) // 2 * 2)
    assert peak == pytest.approx(440 * factor, abs=1)
    if factor != 1:
        assert abs(peak - 440) > 30


@pytest.mark.parametrize(("factor", "up", "down"), [(0.9, 10, 9), (1.1, 10, 11)])
def test_speed_agrees_with_another_resampler(waves, factor, up, down):
    for wave in waves:
        out, other = augment.speed(wave, factor), resample_poly(wave.astype(np.float64), up, down, window=("kaiser", 14.0))
        n = min(len(out), len(other))
        ours, theirs = (np.fft.rfft(x[:n])[: int(0.35 * n)] for x in (out, other))  # to 5.6 kHz: filters differ next to 8 kHz
        assert decibels(np.sum(np.abs(theirs) ** 2) / np.sum(np.abs(ours - theirs) ** 2)) > 50
        late = ours * np.exp(-2j * np.pi * np.arange(len(ours)) / n)
        assert decibels(np.sum(np.abs(theirs) ** 2) / np.sum(np.abs(late - theirs) ** 2)) < 20  # one sample late is seen


def envelope(wave: np.ndarray, hop: int = 16) -> np.ndarray:
    """Loudness over time, a value a millisecond, without its mean."""
    power = (wave[: len(wave) // hop * hop].reshape(-1, hop).astype(np.float64) ** 2).mean(axis=1)
    smooth = np.log(np.convolve(np.sqrt(power), np.hanning(31) / 15, "same") + 1e-4)
    return smooth - smooth.mean()


@pytest.mark.parametrize("factor", [0.5, 0.8, 1.25, 1.7, 2.0])
def test_tempo_moves_duration_alone(waves, factor):
    tone = (0.5 * np.sin(2 * np.pi * 440 * np.arange(32_000) / 16_000)).astype(np.float32)
    for change, hertz in ((effects.tempo, 440), (effects.speed, 440 * factor)):
        out = change(tone, factor)
        assert len(out) == round(32_000 / factor)
        peak = np.abs(np.fft.rfft(out * np.hanning(len(out)))).argmax() * 16_000 / len(out)
        assert peak == pytest.approx(hertz, abs=2)
    for wave in waves:
        out = effects.tempo(wave, factor)
        assert len(out) == effects.sped(len(wave), factor) and out.dtype == np.float32
        assert audio.active_power(out) == pytest.approx(audio.active_power(wave), rel=0.25)
        now, before = envelope(out), envelope(wave)
        before = np.interp(np.linspace(0, len(before) - 1, len(now)), np.arange(len(before)), before)
        assert abs(lag(before, now)) <= 40  # ms: it is in its place
        if len(wave) > 16_000:
            assert abs(lag(before, np.pad(now, (100, 0)))) > 40
    for n in (1, 100, 700):
        assert len(effects.tempo(waves[0][:n], factor)) == effects.sped(n, factor)
    assert not effects.tempo(np.zeros(5000, np.float32), factor).any()
    with pytest.raises(InputError, match="at that tempo"):
        effects.tempo(tone, 2.1)


@pytest.mark.parametrize(("low", "high"), [(0.1, 0.1), (0.2, 0.8), (0.5, 0.52), (1.2, 1.3)])
def test_rooms_have_the_reverberation_time_on_their_label(low, high):
    rooms = [effects.make_room(1, i, low, high) for i in range(1 if high > 1 else 5)]
    for room in rooms:
        assert low * 0.999 <= room.rt60 <= high * 1.001
        assert measure_rt60(room.rir_N, 16_000, decay_db=30) == pytest.approx(room.rt60, rel=0.03 if high < 0.2 else 0.01)
        assert measure_rt60(room.rir_N[: int(0.2 * room.rt60 * 16_000)], 16_000, decay_db=30) < 0.9 * room.rt60  # cut off: found out
        assert room.rir_N[0] == np.abs(room.rir_N).max() == 1
        assert 0.5 < room.distance < 2.05
    assert len({room.rir_N.tobytes() for room in rooms}) == len(rooms)
    assert not np.array_equal(rooms[0].rir_N, effects.make_room(2, 0, low, high).rir_N)


def test_reverberation_of_a_known_decay():
    noise = np.random.default_rng(1).standard_normal(16_000)
    for rt60 in (0.1, 0.37, 0.8):
        rir = (noise * 10 ** (-3 * np.arange(16_000) / 16_000 / rt60)).astype(np.float32)
        assert augment.reverberation(rir) == pytest.approx(rt60, rel=0.03)
    for bad in (np.ones(100, np.float32), np.eye(1, 100, dtype=np.float32)[0], np.zeros(100, np.float32)):
        with pytest.raises(InputError, match="no decay"):
            augment.reverberation(bad)


def test_a_room_keeps_place_length_and_level(waves):
    for i, wave in enumerate(waves):
        rir = effects.make_room(1, i, 0.2, 0.8).rir_N
        out = augment.room(wave, rir)
        assert len(out) == len(wave)
        assert lag(wave, out, whiten=True) == 0
        assert audio.active_power(out) == pytest.approx(audio.active_power(wave), rel=1e-4)
        late = augment.room(wave, np.concatenate([np.zeros(37, np.float32), rir]))
        assert lag(wave, late, whiten=True) == 37  # a delay left in would be seen
        assert decibels(np.sum(wave**2) / np.sum((wave - out) ** 2)) < 10  # and something was done
    with pytest.raises(InputError, match="lets nothing through"):
        augment.room(waves[0], np.zeros(10, np.float32))
    with pytest.raises(InputError, match="No room has such"):
        effects.make_room(1, 0, 0.5, 0.2)


@pytest.mark.parametrize("snr", [-20.0, 0.0, 13.7, 60.0])
def test_snr_is_exact_over_active_speech(waves, snr):
    for wave in waves:
        for out in (
            augment.noise(wave, snr, 3),
            augment.background(wave, waves[0][:3000], snr),
            augment.background(wave, waves[-1], snr, 0.7),
        ):
            added = out.astype(np.float64) - wave
            assert decibels(audio.active_power(wave) / np.mean(added**2)) == pytest.approx(snr, abs=0.01)
    pause = np.concatenate([waves[0], np.zeros(len(waves[0]) * 3, np.float32)])
    added = augment.background(pause, waves[-1], snr) - pause
    assert decibels(np.mean(pause.astype(np.float64) ** 2) / np.mean(added.astype(np.float64) ** 2)) < snr - 5  # not over the whole file


def test_background_is_repeated_from_where_it_begins(waves):
    short = np.arange(1, 11, dtype=np.float32)
    added = augment.background(waves[0], short, 20.0, at=0.25) - waves[0]
    assert np.corrcoef(added, np.resize(np.roll(short, -2), len(added)))[0, 1] > 0.999
    gap = np.concatenate([np.zeros(200_000, np.float32), waves[1]])
    out = augment.background(waves[0], gap, 10.0)  # begins in digital silence
    assert decibels(audio.active_power(waves[0]) / np.mean((out - waves[0]).astype(np.float64) ** 2)) == pytest.approx(10, abs=0.01)
    with pytest.raises(InputError, match="noise recording is silent"):
        augment.background(waves[0], np.zeros(100, np.float32), 10.0)
    with pytest.raises(InputError, match="SNR must be a number"):
        augment.background(waves[0], short, float("nan"))


def test_a_stretch_of_noise_is_never_silent():
    recording = np.concatenate([np.zeros(50, np.float32), np.arange(1, 6, dtype=np.float32)])
    assert np.array_equal(effects.stretch(recording, 7, at=50 / 55), [1, 2, 3, 4, 5, 0, 0])
    assert np.array_equal(effects.stretch(recording, 3), [5, 0, 0])  # the loudest, where there would be nothing
    assert np.array_equal(effects.stretch(recording[-2:], 5, at=0.5), [5, 4, 5, 4, 5])


def test_gain_and_clipping(waves):
    wave = waves[1]
    assert decibels(np.mean(augment.gain(wave, -7.5).astype(np.float64) ** 2) / np.mean(wave.astype(np.float64) ** 2)) == pytest.approx(
        -7.5, abs=1e-4
    )
    clipped = augment.clip(wave, 9.0)
    assert 20 * np.log10(np.abs(wave).max() / np.abs(clipped).max()) == pytest.approx(9, abs=1e-4)
    untouched = np.abs(wave) < np.abs(clipped).max()
    assert np.array_equal(clipped[untouched], wave[untouched])
    assert 0 < (~untouched).mean() < 0.5
    with pytest.raises(InputError, match="cannot be clipped"):
        augment.clip(wave, -1.0)


@pytest.mark.parametrize(
    ("kind", "bitrate", "least", "most"),
    [("mp3", 8_000, 8, 20), ("mp3", 32_000, 12, 28), ("mp3", 64_000, 14, 35), ("opus", 6_000, 3, 15), ("opus", 16_000, 10, 28),
     ("opus", 24_000, 12, 35), ("telephone", None, 8, 40)],
)  # fmt: skip
def test_codecs_keep_place_and_length_and_lose_something(waves, kind, bitrate, least, most):
    for wave in waves:
        out = augment.code(wave, kind, bitrate)
        assert out.shape == wave.shape and out.dtype == np.float32
        assert abs(lag(wave, out)) <= (2 if bitrate == 6_000 else 1)
        assert least < decibels(np.sum(wave**2) / np.sum((wave - out) ** 2)) < most


def test_telephone_is_g711_at_8_khz(waves):
    import soxr

    for wave in waves[:2]:
        narrow = audio.quantise(soxr.resample(wave, 16_000, 8_000)).tobytes()
        heard = np.frombuffer(audioop.ulaw2lin(audioop.lin2ulaw(narrow, 2), 2), np.int16).astype(np.float32) / 32768
        back = soxr.resample(heard, 8_000, 16_000)
        out = augment.code(wave, "telephone")
        n = min(len(back), len(out))
        # Python's and FFmpeg's tables differ where a sample lies between two steps
        assert decibels(np.sum(back[:n] ** 2) / np.sum((back[:n] - out[:n]) ** 2)) > 30
        spectrum = np.abs(np.fft.rfft(out)) ** 2
        above = np.fft.rfftfreq(len(out), 1 / 16_000) > 4200
        assert spectrum[above].sum() < 1e-5 * spectrum.sum() < (np.abs(np.fft.rfft(wave)) ** 2)[above].sum()


def test_gsm_is_that_of_another_decoder(waves, tmp_path):
    import av
    import soxr

    for wave in waves:
        out = effects.gsm(wave)
        assert out.shape == wave.shape and out.dtype == np.float32
        assert abs(lag(wave, out)) <= 1
        assert 3 < decibels(np.sum(wave**2) / np.sum((wave - out) ** 2)) < 25
        narrow = audio.quantise(soxr.resample(wave, 16_000, 8_000))
        soundfile.write(tmp_path / "gsm.wav", narrow, 8_000, subtype="GSM610")
        with av.open(str(tmp_path / "gsm.wav")) as file:
            assert file.streams.audio[0].codec_context.name == "gsm_ms"
            heard = np.concatenate([f.to_ndarray().reshape(-1) for f in file.decode(audio=0)]).astype(np.float32) / 32768
        theirs = soxr.resample(heard, 8_000, 16_000)[: len(wave)]
        assert np.abs(theirs - out[: len(theirs)]).max() < 1e-3 < np.abs(augment.code(wave, "telephone") - out).max()
        above = np.fft.rfftfreq(len(out), 1 / 16_000) > 4200
        spectrum = np.abs(np.fft.rfft(out)) ** 2
        assert spectrum[above].sum() < 1e-4 * spectrum.sum()
    assert all(len(effects.gsm(waves[0][:n])) == n for n in (1, 2, 319, 321))


def test_codecs_refuse(waves):
    with pytest.raises(InputError, match="Unknown codec"):
        augment.code(waves[0], "gsm")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="refuses these settings"):
        augment.code(waves[0], "opus", 100)


def test_codecs_and_rooms_give_the_same_bits_in_another_process(waves, tmp_path):
    np.save(tmp_path / "wave.npy", waves[2])
    code = (
        "import sys, hashlib, numpy as np, pyroomacoustics; from speechlab import augment, effects; wave = np.load(sys.argv[1])\n"
        "pyroomacoustics.constants.set('num_threads', 3)\n"
        "for kind, rate in (('mp3', 32_000), ('opus', 16_000), ('telephone', None)):\n"
        "    print(hashlib.sha256(augment.code(wave, kind, rate).tobytes()).hexdigest())\n"
        "for out in (effects.gsm(wave), effects.tempo(wave, 0.8), effects.make_room(1, 4, 0.3, 0.5).rir_N):\n"
        "    print(hashlib.sha256(out.tobytes()).hexdigest())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "wave.npy"],
        env=os.environ | {"OMP_NUM_THREADS": "3"},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    here = [augment.code(waves[2], kind, rate) for kind, rate in (("mp3", 32_000), ("opus", 16_000), ("telephone", None))]
    here += [effects.gsm(waves[2]), effects.tempo(waves[2], 0.8), effects.make_room(1, 4, 0.3, 0.5).rir_N]
    assert done.stdout.split() == [hashlib.sha256(x.tobytes()).hexdigest() for x in here]


def test_a_clip_is_a_function_of_seed_epoch_and_id(waves):
    augmenter = Augmenter(ALL, 1)
    out = augmenter(waves[1], "a", 0)
    assert np.array_equal(out, Augmenter(ALL, 1)(waves[1], "a", 0))
    assert np.array_equal(out, pickle.loads(pickle.dumps(augmenter))(waves[1], "a", 0))
    for other in (augmenter(waves[1], "b", 0), augmenter(waves[1], "a", 1), Augmenter(ALL, 2)(waves[1], "a", 0)):
        assert not np.array_equal(out, other)
    assert len(pickle.dumps(augmenter)) < 10_000
    assert np.array_equal(Augmenter(AugmentConfig(), 1)(waves[1], "a", 0), waves[1])
    before = waves[1].copy()
    augmenter(waves[1], "a", 3)
    assert np.array_equal(before, waves[1])  # the clip itself is left alone


def test_switching_one_off_leaves_the_others():
    full = Augmenter(ALL, 1)
    ids = [f"clip-{i}" for i in range(20)]
    for off in ORDER:
        fewer = Augmenter(ALL.model_copy(update={off: None}), 1)
        for clip in ids:
            story = full.story(clip, 0)
            assert fewer.story(clip, 0) == {name: words for name, words in story.items() if name != off}
            assert fewer.masks(clip, 0, 300) == full.masks(clip, 0, 300)
    assert list(full.story("a", 0)) == list(ORDER)
    assert len({str(full.story(clip, 0)) for clip in ids}) == len(ids)
    assert full.story("a", 0) != full.story("a", 1)


def test_draws_are_as_likely_as_configured():
    augmenter = only(speed=SpeedConfig(), noise=NoiseConfig(probability=0.5, low=5.0, high=15.0), codec=CodecConfig(probability=0.3))
    stories = [augmenter.story(str(i), 0) for i in range(3000)]
    assert np.mean(["noise" in s for s in stories]) == pytest.approx(0.5, abs=0.04)  # over four standard errors
    assert np.mean(["codec" in s for s in stories]) == pytest.approx(0.3, abs=0.04)
    assert np.mean(["noise" in s and "codec" in s for s in stories]) == pytest.approx(0.15, abs=0.03)  # independent
    speeds = [augmenter.speed(str(i), 0) for i in range(3000)]
    assert [np.mean([s == f for s in speeds]) for f in (0.9, 1.0, 1.1)] == pytest.approx([1 / 3] * 3, abs=0.04)
    snrs = np.array([float(s["noise"].split()[1]) for s in stories if "noise" in s])
    assert snrs.min() >= 5 and snrs.max() <= 15
    assert snrs.mean() == pytest.approx(10, abs=0.4)


def test_noise_from_a_folder(waves, noises):
    augmenter = only(noise=NoiseConfig(probability=1.0, root=str(noises)))
    out = augmenter(waves[2], "a", 0)
    snr = float(augmenter.story("a", 0)["noise"].split()[1])
    assert decibels(audio.active_power(waves[2]) / np.mean((out - waves[2]).astype(np.float64) ** 2)) == pytest.approx(snr, abs=0.06)
    stories = [augmenter.story(str(i), 0)["noise"] for i in range(40)]
    assert {s.split(", ")[1].split()[0] for s in stories} == {"a.wav", "long.flac"}
    assert np.array_equal(out, pickle.loads(pickle.dumps(augmenter))(waves[2], "a", 0))


def test_a_folder_of_noise_must_hold_sound(tmp_path, noises, waves):
    for root in (tmp_path / "nowhere", noises / "README.txt"):
        with pytest.raises(InputError, match="There is no noise to add"):
            only(noise=NoiseConfig(root=str(root)))
    for name, content in {"broken": b"no sound", "silent": None}.items():
        folder = tmp_path / name
        folder.mkdir()
        if content:
            (folder / "x.wav").write_bytes(content)
        else:
            soundfile.write(folder / "x.wav", np.zeros(1000), 16_000)
        with pytest.raises(InputError, match=r"cannot be decoded|recording is silent") as caught:
            only(noise=NoiseConfig(probability=1.0, root=str(folder)))(waves[0], "a", 0)
        assert "x.wav" in str(caught.value)


def test_silence_stays_silence_and_nonsense_is_refused():
    silent = np.zeros(4000, np.float32)
    for clip in "abc":
        out = Augmenter(ALL, 1)(silent, clip, 0)
        assert np.abs(out).max() < 1e-3  # codecs dither
        assert len(out) == Augmenter(ALL, 1).samples(4000, clip, 0)
    for bad in (np.full(100, np.nan, np.float32), np.zeros(0, np.float32), np.zeros((2, 3), np.float32)):
        with pytest.raises(InputError):
            Augmenter(AugmentConfig(), 1)(bad, "a", 0)
    with pytest.raises(InputError, match="within 0.5 and 2"):
        augment.speed(silent, 3.0)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    n=st.integers(1, 3000),
    scale=st.sampled_from([0.0, 1e-30, 1e-6, 0.1, 1.0, 4.0]),
    seed=st.integers(0, 2**31 - 1),
    clip=st.text(max_size=8),
    epoch=st.integers(0, 10**6),
    factors=st.lists(st.floats(0.5, 2), min_size=1, max_size=3),
)
def test_any_clip_comes_out_finite_as_long_as_foretold_and_the_same_again(n, scale, seed, clip, epoch, factors):
    config = ALL.model_copy(update={"speed": SpeedConfig(factors=tuple(factors))})
    wave = (np.random.default_rng(n).uniform(-scale, scale, n) if scale else np.zeros(n)).astype(np.float32)
    augmenter = Augmenter(config, seed % 3)  # rooms are made once for each seed
    out = augmenter(wave, clip, epoch)
    assert len(out) == augmenter.samples(n, clip, epoch) == max(1, round(n / augmenter.speed(clip, epoch)))
    assert out.dtype == np.float32 and np.isfinite(out).all()
    assert np.array_equal(out, augmenter(wave, clip, epoch))


@given(
    frames=st.integers(0, 4000),
    clip=st.text(max_size=8),
    epoch=st.integers(0, 1000),
    count=st.integers(0, 20),
    width=st.integers(0, 1000),
    share=st.floats(0, 1),
)
def test_masks_lie_in_the_clip(frames, clip, epoch, count, width, share):
    spec = SpecAugmentConfig(time_masks=count, time_width=width, time_share=share)
    masks = only(spec=spec).masks(clip, epoch, frames)
    assert masks == only(spec=spec).masks(clip, epoch, frames)
    if masks is None:
        return
    assert masks.frames == frames
    assert len(masks.times) <= count and len(masks.bands) <= 2
    assert all(0 <= a < b <= frames and b - a <= min(width, share * frames) for a, b in masks.times)
    assert all(0 <= a < b <= 1 and round((b - a) * 80) <= 27 for a, b in masks.bands)


def test_masks_are_drawn_evenly_and_differ():
    augmenter = only(spec=SpecAugmentConfig(probability=0.5))
    masks = [augmenter.masks(str(i), 0, 1000) for i in range(2000)]
    drawn = [m for m in masks if m]
    assert len(drawn) / len(masks) == pytest.approx(0.5, abs=0.05)
    assert len(set(drawn)) > 0.99 * len(drawn)
    widths = [b - a for m in drawn for a, b in m.times]
    assert max(widths) == 100 and min(widths) == 1
    assert np.mean(widths) == pytest.approx(50, abs=4)
    assert augmenter.masks("1", 0, 1000) != augmenter.masks("1", 1, 1000)
    assert only().masks("1", 0, 1000) is None


def digests(waves, micros, augmenter, workers=0) -> dict[str, str]:
    """Clip to hash of what the model would hear of it."""
    found = {}
    for batch in feed(Augmented(tuple(waves), augmenter), micros, loader_workers=workers):
        for clip, wave, seconds in zip(batch.ids, batch.wave_BN.numpy(), batch.seconds, strict=True):
            found[clip] = hashlib.sha256(wave[: round(seconds * 16_000)].tobytes()).hexdigest()
    return found


def test_neither_order_nor_rank_changes_a_clip(waves):
    one = digests(waves, [Micro((0, 1, 2, 3, 4), 10.0)], Augmenter(ALL, 1))
    assert one == digests(waves, [Micro((4, 2), 10.0), Micro((0,), 10.0), Micro((3, 1), 10.0)], Augmenter(ALL, 1))
    ranks = [digests(waves, [Micro(tuple(range(5))[rank::2], 10.0)], Augmenter(ALL, 1)) for rank in (0, 1)]
    assert one == ranks[0] | ranks[1]
    assert set(one.values()).isdisjoint(digests(waves, [Micro((0, 1, 2, 3, 4), 10.0, epoch=1)], Augmenter(ALL, 1)).values())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:This DataLoader will create 4")
def test_loader_workers_do_not_change_a_clip(waves, noises):
    config = ALL.model_copy(update={"noise": NoiseConfig(probability=1.0, root=str(noises))})
    micros = [Micro((i,), 10.0) for i in (3, 0, 4, 1, 2)]
    none, one, four = (digests(waves, micros, Augmenter(config, 1), workers) for workers in (0, 1, 4))
    assert none == one == four
    assert len(set(none.values())) == 5


def test_cost_names_what_is_on(waves):
    config = ALL.model_copy(update={"clipping": None, "gain": GainConfig(probability=0.5)})
    table = augment.cost(config, waves[:2])
    assert list(table.effect) == ["speed", "room", "noise", "gain", "codec"]
    assert (table.core_seconds_per_hour > 0).all()
    assert table.expected.to_numpy() == pytest.approx((table.core_seconds_per_hour * table.probability).to_numpy())
    spent = table.set_index("effect").core_seconds_per_hour
    assert spent["codec"] > 3 * spent["gain"]  # a codec is work, a multiplication is not
    with pytest.raises(InputError, match="no clips"):
        augment.cost(config, [])


@pytest.mark.parametrize(
    ("section", "values"),
    [
        ("speed", {"factors": [0.4]}), ("speed", {"factors": []}), ("gain", {"low": 3.0, "high": 1.0}), ("room", {"low": 0.9, "high": 0.5}),
        ("noise", {"low": 20.0, "high": 10.0}), ("clipping", {"low": 9.0, "high": 3.0}), ("codec", {"mp3_bitrates": [1]}),
        ("codec", {"opus_bitrates": [1_000_000]}), ("codec", {"kinds": ["gsm"]}), ("spec", {"frequency_width": 81}),
    ],
)  # fmt: skip
def test_config_is_checked(section, values):
    base = {"name": "x", "question": "?"}
    assert getattr(validate({**base, "augment": {section: {}}}, "test").augment, section) is not None
    with pytest.raises(InputError, match=section):
        validate({**base, "augment": {section: values}}, "test")


def test_the_order_is_the_configs():
    assert (*ORDER, "spec") == tuple(AugmentConfig.model_fields)
