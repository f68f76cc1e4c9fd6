"""Front ends as batched modules on the model's device; window and filters are buffers, made once.

Per-clip features on the CPU were 75 times slower than batched ones on the GPU (transformers#29901).
Shapes follow the legend in :mod:`speechlab.units`. Not covered yet: Kaldi fbank, MFCC.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers.audio_utils import mel_filter_bank

from speechlab.units import SAMPLE_RATE, Seconds, exact_div

N_FFT = 400  # samples: a 25 ms window
HOP = 160  # samples: a 10 ms hop
FULL_CONTEXT: Seconds = 30.0  # what Whisper was trained on
FRAMES_PER_SECOND = exact_div(SAMPLE_RATE, HOP)  # 100 mel frames
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
