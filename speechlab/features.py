"""Front ends as batched modules on the model's device; window and filters are buffers, made once.

Per-clip features on the CPU were 75 times slower than batched ones on the GPU (transformers#29901).
:class:`LogMel` is Whisper's, in a window of its own. Those in :data:`FRONTS` are called alike,
``forward(wave_BN, samples_B) -> (feats_BTF, frames_B)``, and hold that padding never changes a clip: its frames are
the same alone and in any batch, and what lies behind them is zero. Shapes follow the legend in :mod:`speechlab.units`,
but F is the features of a frame here.

Not covered: streaming, pitch, energy as a feature, statistics over a whole corpus.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchaudio.compliance.kaldi import get_mel_banks  # type: ignore[import-untyped]
from torchaudio.transforms import MFCC, MelSpectrogram  # type: ignore[import-untyped]
from transformers.audio_utils import mel_filter_bank

from speechlab.augment import Masks
from speechlab.errors import InputError
from speechlab.units import SAMPLE_RATE, Samples, Seconds, exact_div

N_FFT = 400  # samples: a 25 ms window
HOP = 160  # samples: a 10 ms hop
N_FFT_PADDED = 512  # the next power of two: what Kaldi and the conformer recipes transform a window in
PIECE = 1024  # windows that a processor transforms at once
FRAMES_PER_SECOND = exact_div(SAMPLE_RATE, HOP)  # 100 mel frames
LOG_FLOOR = 2.0**-24  # added to mel power before the logarithm: silence is -16.6
MEL = {"n_fft": N_FFT_PADDED, "win_length": N_FFT, "hop_length": HOP, "pad_mode": "constant"}  # zeros, as padding in a batch is
MIN_SAMPLES = N_FFT // 2 + 1  # the reflection at the edges needs more than half a window


class LogMel(nn.Module):
    """Whisper's log-mel spectrogram (Radford et al., 2022): equal to transformers' extractor to 1e-5.

    Args:
        n_mels: Mel bands: 80, or 128 for large-v3.
    """

    window: Tensor
    filters: Tensor

    def __init__(self, n_mels: int = 80) -> None:
        super().__init__()
        filters = mel_filter_bank(N_FFT // 2 + 1, n_mels, 0.0, SAMPLE_RATE / 2, SAMPLE_RATE, norm="slaney", mel_scale="slaney")
        self.register_buffer("window", torch.hann_window(N_FFT), persistent=False)
        self.register_buffer("filters", torch.tensor(filters.T, dtype=torch.float32), persistent=False)

    def forward(self, wave_BN: Tensor, seconds: Seconds) -> Tensor:
        """Spectrogram of each clip in a window of its own.

        Args:
            wave_BN: Waveforms in [-1, 1], zero-padded on the right.
            seconds: The window: clips are padded with zeros, or cut, to this length.

        Returns:
            mel_BMT with ``T = 100 * seconds`` frames, float32 whatever autocast says.
        """
        samples = round(seconds * FRAMES_PER_SECOND) * HOP
        wave_BN = nn.functional.pad(wave_BN.float(), (0, max(0, samples - wave_BN.shape[1])))[:, :samples]
        with torch.autocast(wave_BN.device.type, enabled=False):
            spectrum = torch.stft(wave_BN, N_FFT, HOP, window=self.window, return_complex=True)
            power = spectrum[..., :-1].abs() ** 2
            log = (self.filters @ power).clamp(min=1e-10).log10()
            log = torch.maximum(log, log.amax(dim=(1, 2), keepdim=True) - 8.0)
            return (log + 4.0) / 4.0


class MelEnergies(nn.Module):
    """Log-mel for conformers: the natural logarithm of mel power, 25 ms Hann windows every 10 ms.

    Frames are centred on every 160th sample, and the sound is zero outside the clip, so a clip has ``1 + N // 160``.

    Args:
        n_mels: Mel bands.
        normalise: Bring each band of each clip to zero mean and unit variance over its own frames.
    """

    min_samples: Samples = N_FFT

    def __init__(self, n_mels: int = 80, normalise: bool = True) -> None:
        super().__init__()
        self.normalise = normalise
        self.mel = MelSpectrogram(SAMPLE_RATE, n_mels=n_mels, **MEL)
        _keep_out_of_checkpoints(self)

    def forward(self, wave_BN: Tensor, samples_B: Tensor) -> tuple[Tensor, Tensor]:
        """Features of each clip.

        Args:
            wave_BN: Waveforms in [-1, 1], padded on the right with anything.
            samples_B: Samples of each clip.

        Returns:
            feats_BTF, float32 whatever autocast says, zero behind a clip's frames; and frames_B.

        Raises:
            InputError: if a clip is shorter than a window or longer than the batch, or holds NaN or infinity.
        """
        wave_BN, samples_B = _checked(wave_BN, samples_B, self.min_samples)
        frames_B = samples_B // HOP + 1
        with torch.autocast(wave_BN.device.type, enabled=False):
            feats_BTF = (self.mel(wave_BN) + LOG_FLOOR).log().transpose(1, 2)
        return _finished(_normalised(feats_BTF, frames_B) if self.normalise else feats_BTF, frames_B), frames_B


class Mfcc(nn.Module):
    """Mel-frequency cepstral coefficients: the cosine transform (DCT-II, orthonormal) of the natural log of mel power.

    By logarithm (of 1e-6 more than the power) rather than in decibels, which torchaudio cuts off 80 dB below the loudest
    of the *batch*.

    Args:
        n_mfcc: Coefficients kept, the zeroth included.
        n_mels: Mel bands behind them.
    """

    min_samples: Samples = N_FFT

    def __init__(self, n_mfcc: int = 40, n_mels: int = 80) -> None:
        super().__init__()
        self.mfcc = MFCC(SAMPLE_RATE, n_mfcc, log_mels=True, melkwargs=MEL | {"n_mels": n_mels})
        _keep_out_of_checkpoints(self)

    def forward(self, wave_BN: Tensor, samples_B: Tensor) -> tuple[Tensor, Tensor]:
        """As :meth:`MelEnergies.forward`; frames lie as there."""
        wave_BN, samples_B = _checked(wave_BN, samples_B, self.min_samples)
        frames_B = samples_B // HOP + 1
        with torch.autocast(wave_BN.device.type, enabled=False):
            feats_BTF = self.mfcc(wave_BN).transpose(1, 2)
        return _finished(feats_BTF, frames_B), frames_B


class Fbank(nn.Module):
    """Kaldi's ``compute-fbank-feats``, without dither: equal to ``torchaudio.compliance.kaldi.fbank`` to 1e-4.

    Only windows that lie wholly in the clip count (``snip_edges``), so a clip has ``1 + (N - 400) // 160`` frames.
    Kaldi's own recipes scale samples to 16 bits, which adds ``2 * log(32768)`` to every value above the floor.

    Args:
        n_mels: Mel bands, from 20 Hz to half the sampling rate.
    """

    window: Tensor
    filters: Tensor
    min_samples: Samples = N_FFT
    preemphasis = 0.97

    def __init__(self, n_mels: int = 80) -> None:
        super().__init__()
        filters, _ = get_mel_banks(n_mels, N_FFT_PADDED, SAMPLE_RATE, 20.0, 0.0, 100.0, -500.0, 1.0)
        povey = torch.hann_window(N_FFT, periodic=False) ** 0.85
        self.register_buffer("window", povey, persistent=False)
        self.register_buffer("filters", nn.functional.pad(filters, (0, 1)).T.contiguous(), persistent=False)

    def forward(self, wave_BN: Tensor, samples_B: Tensor) -> tuple[Tensor, Tensor]:
        """As :meth:`MelEnergies.forward`, with Kaldi's frames."""
        wave_BN, samples_B = _checked(wave_BN, samples_B, self.min_samples)
        frames_B = (samples_B - N_FFT) // HOP + 1
        with torch.autocast(wave_BN.device.type, enabled=False):
            windows = wave_BN.unfold(1, N_FFT, HOP)  # B, T, 400: a view
            if wave_BN.device.type != "cpu":
                feats_BTF = self._log_mel(windows)
            else:  # in pieces that the processor's cache holds: three times as fast
                feats_BTF = wave_BN.new_zeros(*windows.shape[:2], self.filters.shape[1])
                for feats_TF, own, frames in zip(feats_BTF, windows, frames_B.tolist(), strict=True):
                    for at in range(0, frames, PIECE):
                        feats_TF[at : min(at + PIECE, frames)] = self._log_mel(own[at : min(at + PIECE, frames)])
        return _finished(feats_BTF, frames_B), frames_B

    def _log_mel(self, windows: Tensor) -> Tensor:
        """Kaldi's steps in its order, in place where that is the same."""
        centred = windows - windows.mean(dim=-1, keepdim=True)
        padded = nn.functional.pad(centred, (0, N_FFT_PADDED - N_FFT))
        padded[..., 1:N_FFT] -= self.preemphasis * centred[..., :-1]  # the first has no predecessor, and is weighted by zero
        padded[..., :N_FFT] *= self.window
        power = torch.view_as_real(torch.fft.rfft(padded)).square_().sum(dim=-1)
        return (power @ self.filters).clamp_(min=torch.finfo(torch.float32).eps).log_()


class RawWave(nn.Module):
    """The waveform at zero mean and unit variance, as Wav2Vec2's extractor has it (``do_normalize``): to 1e-5."""

    min_samples: Samples = 1

    def forward(self, wave_BN: Tensor, samples_B: Tensor) -> tuple[Tensor, Tensor]:
        """As :meth:`MelEnergies.forward`, but a frame is a sample, and there is one feature: (B, N, 1)."""
        wave_BN, samples_B = _checked(wave_BN, samples_B, self.min_samples)
        own_BN = _own(wave_BN.shape[1], samples_B)
        wide_BN = wave_BN.double()  # a long clip's sums in float32 are off by more than the tolerance
        mean = wide_BN.sum(dim=1, keepdim=True) / samples_B[:, None]
        variance = ((wide_BN - mean) ** 2).masked_fill(~own_BN, 0).sum(dim=1, keepdim=True) / samples_B[:, None]
        feats_BN = ((wide_BN - mean) / (variance + 1e-7).sqrt()).float()
        return _finished(feats_BN[..., None], samples_B), samples_B


FRONTS: dict[str, type[nn.Module]] = {"log_mel": MelEnergies, "mfcc": Mfcc, "fbank": Fbank, "wave": RawWave}


def mask(mel_BMT: Tensor, masks: Sequence[Masks | None]) -> Tensor:
    """SpecAugment on a batch, on its device.

    Args:
        mel_BMT: Any log-mel; the last frames of each clip may be padding, which stays as it is.
        masks: Of each clip; None leaves it alone.

    Returns:
        A copy in which masked frames and bands of a clip hold the mean over its own frames (unmasked), in all bands.

    Raises:
        InputError: if there are not as many masks as clips.
    """
    if len(masks) != len(mel_BMT):
        raise InputError(
            "Masks and clips differ in number.", got=f"{len(masks)} masks", expected=f"{len(mel_BMT)}, None where there are none"
        )
    _, n_mels, n_frames = mel_BMT.shape
    device = mel_BMT.device
    own_BT = _own(n_frames, torch.tensor([m.frames if m else 0 for m in masks], device=device))
    in_band_BM = _within([[(round(a * n_mels), round(b * n_mels)) for a, b in m.bands] if m else [] for m in masks], n_mels, device)
    in_time_BT = _within([m.times if m else () for m in masks], n_frames, device)
    hidden_BMT = (in_band_BM[:, :, None] | in_time_BT[:, None, :]) & own_BT[:, None, :]
    total_B = mel_BMT.masked_fill(~own_BT[:, None, :], 0).sum(dim=(1, 2), dtype=torch.float32)
    mean_B = total_B / (own_BT.sum(dim=1) * n_mels).clamp(min=1)
    return torch.where(hidden_BMT, mean_B[:, None, None].to(mel_BMT.dtype), mel_BMT)


def _within(intervals: Sequence[Sequence[tuple[int, int]]], size: int, device: torch.device) -> Tensor:
    """Whether each of ``size`` places lies in any of a clip's intervals: (B, size)."""
    most = max((len(each) for each in intervals), default=0)
    edges = torch.tensor([[*each, *[(0, 0)] * (most - len(each))] for each in intervals], device=device).reshape(len(intervals), most, 2)
    places = torch.arange(size, device=device)
    return ((places >= edges[..., :1]) & (places < edges[..., 1:])).any(dim=1)


def _own(size: int, count_B: Tensor) -> Tensor:
    """Whether each of ``size`` places belongs to the clip rather than to padding: (B, size)."""
    return torch.arange(size, device=count_B.device) < count_B[:, None]


def _checked(wave_BN: Tensor, samples_B: Tensor, least: Samples) -> tuple[Tensor, Tensor]:
    """The batch in float32 with zeros for padding, and the lengths on its device."""
    counts = samples_B.tolist()
    if wave_BN.ndim != 2 or samples_B.ndim != 1 or len(counts) != len(wave_BN) or not counts:
        got = f"waveforms {tuple(wave_BN.shape)}, lengths {tuple(samples_B.shape)}"
        raise InputError("A batch has the wrong shape.", got=got, expected="(B, N) and (B,) with B > 0")
    bad = [i for i, n in enumerate(counts) if not least <= n <= wave_BN.shape[1]]
    if bad:
        raise InputError("A clip's length does not fit.", got=f"{counts[bad[0]]} samples (clip {bad[0]} of the batch)",
                         expected=f"{least} samples, one window, to {wave_BN.shape[1]}, the batch's length",
                         do="raise corpus.check.min_seconds to set such clips aside")  # fmt: skip
    samples_B = samples_B.to(wave_BN.device, torch.int64)
    return wave_BN.float().masked_fill(~_own(wave_BN.shape[1], samples_B), 0), samples_B


def _normalised(feats_BTF: Tensor, frames_B: Tensor) -> Tensor:
    """Zero mean and unit variance over time; in double precision, or silence, which never changes, would come out as its rounding."""
    own_BT1, count_B11 = _own(feats_BTF.shape[1], frames_B)[..., None], frames_B[:, None, None]
    mean_B1F = feats_BTF.double().masked_fill(~own_BT1, 0).sum(dim=1, keepdim=True) / count_B11
    centred_BTF = (feats_BTF - mean_B1F).masked_fill(~own_BT1, 0)
    deviation_B1F = (centred_BTF.square().sum(dim=1, keepdim=True) / count_B11).sqrt()
    return (centred_BTF / (deviation_B1F + 1e-5)).float()


def _finished(feats_BTF: Tensor, frames_B: Tensor) -> Tensor:
    """Zeros behind each clip's frames, nothing that is not a number in them."""
    feats_BTF = feats_BTF[:, : int(frames_B.max())].masked_fill(~_own(int(frames_B.max()), frames_B)[..., None], 0)
    bad_B = ~feats_BTF.isfinite().flatten(1).all(dim=1)
    if bad_B.any():
        got = f"clips {bad_B.nonzero().flatten().tolist()} of the batch give NaN or infinity"
        raise InputError("Features are not numbers.", got=got, expected="finite samples", do="leave these clips out, or export them again")
    return feats_BTF


def _keep_out_of_checkpoints(module: nn.Module) -> None:
    """Windows and filters are made anew, as in the other front ends, and are no part of a model's weights."""
    for part in module.modules():
        for name, buffer in list(part.named_buffers(recurse=False)):
            part.register_buffer(name, buffer, persistent=False)
