"""The front ends against others' extractors, alone and in batches; masks on real spectrograms."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.fft
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torchaudio.compliance import kaldi
from transformers import Wav2Vec2FeatureExtractor, WhisperFeatureExtractor
from transformers.audio_utils import mel_filter_bank, spectrogram

from speechlab import corpora
from speechlab.augment import Augmenter, Masks
from speechlab.batches import collate
from speechlab.config import AugmentConfig, SpecAugmentConfig
from speechlab.errors import InputError
from speechlab.features import FRONTS, MIN_SAMPLES, Fbank, LogMel, MelEnergies, Mfcc, RawWave, mask
from speechlab.units import FULL_CONTEXT

TOLERANCE = 1e-5


def reference(waves: list[np.ndarray], n_mels: int) -> torch.Tensor:
    extractor = WhisperFeatureExtractor(feature_size=n_mels)
    return extractor(waves, sampling_rate=16_000, return_tensors="pt").input_features


@pytest.fixture(scope="module")
def waves(prompts) -> list[np.ndarray]:
    """Real clips, short to long, and what is no speech."""
    cuts = sorted(prompts.cuts["test"], key=lambda c: c.duration)
    rng = np.random.default_rng(0)
    noise = rng.standard_normal(40_000).astype(np.float32) / 10
    return [corpora.load_audio(c) for c in cuts[:: len(cuts) // 6]] + [
        noise,
        np.zeros(16_000, np.float32),
        np.eye(1, 8000, 4000, np.float32)[0],
    ]


def padded(waves: list[np.ndarray]) -> torch.Tensor:
    return collate([("", "", w) for w in waves]).wave_BN


@pytest.mark.parametrize("n_mels", [80, 128])
def test_at_30_s_it_equals_transformers(waves, n_mels):
    ours, theirs = LogMel(n_mels)(padded(waves), FULL_CONTEXT), reference(waves, n_mels)
    assert ours.shape == theirs.shape == (len(waves), n_mels, 3000)
    assert (ours - theirs).abs().max() < TOLERANCE
    assert theirs.flatten(1).std(dim=1)[:-2].min() > 1000 * TOLERANCE  # a tolerance far below the values' spread


def test_other_windows_and_filters_are_told_apart(waves):
    theirs = reference(waves, 80)
    for name, value in {
        "window": torch.hamming_window(400),
        "filters": torch.tensor(mel_filter_bank(201, 80, 0.0, 8000.0, 16_000, norm="slaney", mel_scale="htk").T, dtype=torch.float32),
    }.items():
        front_end = LogMel()
        setattr(front_end, name, value)
        assert (front_end(padded(waves), FULL_CONTEXT) - theirs).abs().max() > 1000 * TOLERANCE, name


def test_a_short_window_is_the_beginning_of_the_long_one(waves):
    clip = [waves[0]]
    short, full = (LogMel()(padded(clip), s) for s in (len(waves[0]) / 16_000 + 0.5, FULL_CONTEXT))
    frames = short.shape[2] - 2  # the last two reach over the edge of the short window
    assert frames > 60
    assert (short[..., :frames] - full[..., :frames]).abs().max() < TOLERANCE


@pytest.mark.parametrize("seconds", [0.1, 0.58, 1.0, 29.9, 30.0])
def test_any_window_is_finite_and_has_a_frame_every_10_ms(waves, seconds):
    mel_BMT = LogMel()(padded(waves), seconds)
    assert mel_BMT.shape == (len(waves), 80, round(seconds * 100))
    assert mel_BMT.isfinite().all()
    assert round(0.1 * 16_000) >= MIN_SAMPLES  # the shortest context of all


def test_a_clip_sounds_the_same_alone_and_in_a_batch(waves):
    batch = LogMel()(padded(waves), FULL_CONTEXT)
    for i, wave in enumerate(waves):
        assert (LogMel()(padded([wave]), FULL_CONTEXT)[0] - batch[i]).abs().max() < TOLERANCE


def test_autocast_does_not_touch_it(waves):
    with torch.autocast("cpu", torch.bfloat16):
        mixed = LogMel()(padded(waves), 5.0)
    assert mixed.dtype == torch.float32
    assert torch.equal(mixed, LogMel()(padded(waves), 5.0))
    assert not list(LogMel().state_dict())  # buffers are no part of a checkpoint


@pytest.fixture(scope="module")
def clips(waves) -> list[np.ndarray]:
    """The same without the longest, which would make every batch wide."""
    return [w for w in waves if len(w) < 80_000]


def lengths(waves: list[np.ndarray]) -> torch.Tensor:
    return torch.tensor([len(w) for w in waves])


def each(front: torch.nn.Module, waves: list[np.ndarray]) -> list[np.ndarray]:
    """A front end's own frames of every clip, from one padded batch."""
    feats_BTF, frames_B = front(padded(waves), lengths(waves))
    assert feats_BTF.shape[:2] == (len(waves), int(frames_B.max()))
    assert all(not feats[n:].any() for feats, n in zip(feats_BTF, frames_B.tolist(), strict=True)), "zero behind the clip"
    return [feats[:n].numpy() for feats, n in zip(feats_BTF, frames_B.tolist(), strict=True)]


def apart(ours: list[np.ndarray], theirs: list[np.ndarray], relative: bool = False) -> float:
    """The largest difference, or share of those values that pass 1; shapes must agree."""
    assert [a.shape for a in ours] == [b.shape for b in theirs]
    return max(float((np.abs(a - b) / np.maximum(1, np.abs(b) * relative)).max()) for a, b in zip(ours, theirs, strict=True))


def mel_by_transformers(wave: np.ndarray, n_mels: int = 80) -> np.ndarray:
    """Mel power by transformers' NumPy code, in double precision."""
    filters = mel_filter_bank(257, n_mels, 0.0, 8000.0, 16_000, norm=None, mel_scale="htk")
    window = np.hanning(401)[:-1]
    mel_MT = spectrogram(
        wave.astype(np.float64), window, 400, 160, 512, power=2.0, pad_mode="constant", mel_filters=filters, dtype=np.float64
    )
    return mel_MT.T


@pytest.mark.parametrize("n_mels", [23, 80])
def test_fbank_equals_kaldis_on_each_clip_of_a_padded_batch(clips, n_mels):
    clips = [clips[0] + np.float32(0.2), *clips]  # a constant that the windows' means take out
    theirs = [kaldi.fbank(torch.from_numpy(w)[None], num_mel_bins=n_mels, dither=0.0).numpy() for w in clips]
    assert len({len(f) for f in theirs}) > 5  # clips of different length
    assert apart(each(Fbank(n_mels), clips), theirs) < 1e-4
    assert min(f.std() for f in theirs[:-2]) > 1


def test_fbank_tells_other_settings_apart(clips):
    ours = each(Fbank(), clips)
    for other in ({"window_type": "hamming"}, {"preemphasis_coefficient": 0.95}, {"low_freq": 0.0}, {"remove_dc_offset": False}):
        theirs = [kaldi.fbank(torch.from_numpy(w)[None], num_mel_bins=80, dither=0.0, **other).numpy() for w in clips]
        assert apart(ours, theirs) > 0.01, other


def test_mel_energies_are_the_log_of_mel_power(clips):
    theirs = [np.log(mel_by_transformers(w) + 2.0**-24) for w in clips]
    assert apart(each(MelEnergies(normalise=False), clips), theirs) < 2e-3
    assert apart(each(MelEnergies(normalise=False), clips[:-2]), theirs[:-2]) < 2e-3
    assert min(f.std() for f in theirs[:-2]) > 1
    assert not (mel_filter_bank(257, 80, 0.0, 8000.0, 16_000, norm=None, mel_scale="htk").sum(axis=0) == 0).any()  # no band is empty


def test_mel_energies_are_normalised_over_own_frames(clips):
    for feats in each(MelEnergies(), clips[:-2]):
        assert np.abs(feats.mean(axis=0)).max() < 1e-4
        assert feats.std(axis=0) == pytest.approx(1, abs=1e-3)
    assert not each(MelEnergies(), [np.zeros(16_000, np.float32)])[0].any()  # silence has no variance
    whole, _ = MelEnergies(normalise=False)(padded(clips), lengths(clips))
    assert abs(float(((whole - whole.mean(1, keepdim=True)) / whole.std(1, keepdim=True))[0, :20].mean())) > 0.1  # padding would tell


def test_mfcc_is_the_cosine_transform_of_log_mel(clips):
    theirs = [scipy.fft.dct(np.log(mel_by_transformers(w) + 1e-6), norm="ortho")[:, :40] for w in clips]
    assert apart(each(Mfcc(), clips), theirs) < 2e-3
    assert min(f.std() for f in theirs[:-2]) > 1
    assert apart(each(Mfcc(13), clips), [f[:, :13] for f in theirs]) < 2e-3


def test_raw_wave_equals_wav2vec2s_extractor(clips):
    extractor = Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=True)
    theirs = extractor(clips, sampling_rate=16_000, padding=True, return_tensors="np")
    ours, samples_B = RawWave()(padded(clips), lengths(clips))
    assert ours.shape == (*theirs.input_values.shape, 1)
    assert apart(list(ours[..., 0].numpy()), list(theirs.input_values), relative=True) < 1e-5
    assert samples_B.tolist() == theirs.attention_mask.sum(axis=1).tolist()
    for w, feats in zip(clips, ours[..., 0].numpy(), strict=True):
        if w.any():
            assert feats[: len(w)].std() == pytest.approx(1, abs=1e-2)  # one that is all but silent falls short


@pytest.mark.parametrize("name", FRONTS)
def test_a_clip_is_the_same_alone_in_any_batch_and_behind_any_padding(clips, name):
    front = FRONTS[name]()
    batch = each(front, clips)
    assert apart([each(front, [w])[0] for w in clips], batch, relative=True) < TOLERANCE
    assert apart(each(front, clips[::-1])[::-1], batch, relative=True) < TOLERANCE
    dirty = padded(clips)
    for row, wave in zip(dirty, clips, strict=True):
        row[len(wave) :] = float("nan")
    feats_BTF, frames_B = front(torch.nn.functional.pad(dirty, (0, 5000), value=9.0), lengths(clips))
    assert apart([f[:n].numpy() for f, n in zip(feats_BTF, frames_B.tolist(), strict=True)], batch, relative=True) < TOLERANCE
    longer = [np.concatenate([clips[0], clips[1]])]  # real sound behind it instead of padding does change the clip's end
    assert name == "fbank" or np.abs(each(front, longer)[0][: len(batch[0])] - batch[0]).max() > 100 * TOLERANCE


@pytest.mark.parametrize("name", FRONTS)
def test_fronts_refuse_what_they_cannot_hear(name):
    front = FRONTS[name]()
    wave_BN = torch.zeros(2, 8000)
    least = front.min_samples
    front(wave_BN, torch.tensor([least, 8000]))
    for samples in ([least - 1, 8000], [8000, 8001]):
        with pytest.raises(InputError, match=r"length does not fit[\s\S]*got[\s\S]*expected"):
            front(wave_BN, torch.tensor(samples))
    for wave, samples in ((wave_BN[0], [8000]), (wave_BN, [8000]), (wave_BN[:0], [])):
        with pytest.raises(InputError, match="wrong shape"):
            front(wave, torch.tensor(samples))
    for bad in (float("nan"), float("inf")):
        with pytest.raises(InputError, match=r"clips \[1\] of the batch"):
            front(torch.stack([wave_BN[0], wave_BN[1].index_fill(0, torch.tensor([77]), bad)]), torch.tensor([8000, 8000]))


@pytest.mark.parametrize("name", FRONTS)
def test_fronts_hold_no_weights_and_ignore_autocast(clips, name):
    front = FRONTS[name]()
    assert not list(front.state_dict()) and not list(front.parameters())
    with torch.autocast("cpu", torch.bfloat16):
        mixed, _ = front(padded(clips), lengths(clips))
    assert mixed.dtype == torch.float32
    assert torch.equal(mixed, front(padded(clips), lengths(clips))[0])


MADE = {name: front() for name, front in FRONTS.items()}


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    sizes=st.lists(st.integers(400, 4000), min_size=1, max_size=4),
    scale=st.sampled_from([0.0, 1e-20, 1e-4, 1.0, 100.0]),
    name=st.sampled_from(sorted(FRONTS)),
    seed=st.integers(0, 99),
)
def test_any_batch_is_finite_and_agrees_with_its_clips_alone(sizes, scale, name, seed):
    rng = np.random.default_rng(seed)
    made = [(scale * rng.uniform(-1, 1, n)).astype(np.float32) for n in sizes]
    front = MADE[name]
    batch = each(front, made)
    assert all(np.isfinite(f).all() for f in batch)
    assert apart([each(front, [c])[0] for c in made], batch, relative=True) < 1e-4


@pytest.mark.parametrize("n_mels", [80, 128])
def test_masks_hide_what_they_say_and_nothing_else(clips, n_mels):
    mel_BMT = LogMel(n_mels)(padded(clips[:4]), 5.0)
    before = mel_BMT.clone()
    masks = [Masks(60, ((0.25, 0.5),), ((10, 20), (15, 30))), None, Masks(50, (), ((45, 50),)), Masks(70, ((0.0, 0.1), (0.9, 1.0)))]
    out = mask(mel_BMT, masks)
    assert torch.equal(mel_BMT, before)
    assert torch.equal(out[1], mel_BMT[1])
    hidden = torch.zeros_like(out, dtype=torch.bool)
    hidden[0, n_mels // 4 : n_mels // 2, :60] = True
    hidden[0, :, 10:30] = True
    hidden[2, :, 45:50] = True
    hidden[3, : round(n_mels / 10), :70] = True
    hidden[3, round(n_mels * 0.9) :, :70] = True
    assert torch.equal(out[~hidden], mel_BMT[~hidden])
    for i, frames in ((0, 60), (2, 50), (3, 70)):
        mean = mel_BMT[i, :, :frames].mean()
        assert (out[i][hidden[i]] - mean).abs().max() < TOLERANCE
        assert (mean - mel_BMT[i].mean()).abs() > 100 * TOLERANCE  # padding would give another mean
    assert torch.equal(mask(mel_BMT, [None] * 4), mel_BMT)
    with pytest.raises(InputError, match="differ in number"):
        mask(mel_BMT, masks[:2])


def test_drawn_masks_fit_real_clips(clips):
    augmenter = Augmenter(AugmentConfig(spec=SpecAugmentConfig()), 1)
    real = clips[:-3]
    frames = [len(w) // 160 for w in real]
    mel_BMT = LogMel()(padded(real), FULL_CONTEXT)
    for epoch in range(5):
        out = mask(mel_BMT, [augmenter.masks(str(i), epoch, n) for i, n in enumerate(frames)])
        assert out.isfinite().all()
        changed = out != mel_BMT
        assert changed.any()
        assert not any(c[:, n:].any() for c, n in zip(changed, frames, strict=True))
        # two bands of at most 27 of 80, two stretches of at most a fifth
        assert all(c[:, :n].float().mean() <= 1 - (1 - 54 / 80) * 0.6 for c, n in zip(changed, frames, strict=True))


def test_masks_may_reach_past_the_window(clips):
    mel_BMT = LogMel()(padded(clips[:1]), 0.5)
    out = mask(mel_BMT, [Masks(400, (), ((30, 200),))])  # a window cut shorter than the clip
    assert torch.equal(out[..., :30], mel_BMT[..., :30])
    assert (out[..., 30:] - mel_BMT.mean()).abs().max() < TOLERANCE
    assert torch.equal(mask(mel_BMT, [Masks(0)]), mel_BMT)
