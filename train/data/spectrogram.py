"""Compute the spectrogram `vggsound` during training, on the device, from the stored waveform.

The values are those of extraction (`bmlpipe.pipeline.front_ends.spectrogram`, which this module may not import; a test
compares them): Tukey window with 25 % tapered, 512 samples every 159, constant detrend, one-sided density,
log(S + 1e-7), standardised over the clip. The other presets are not offered here: they are normalised by statistics of
the data set, which shards without these spectrograms do not have.
"""

from __future__ import annotations

import torch
from scipy.signal import get_window
from torch import Tensor, nn

RATE, WINDOW, HOP = 16_000, 512, 159  # Hz, samples, samples

_FLOOR = 1e-7
_SCALE = 32_768  # a stored sample is the amplitude times 32768 (docs/format.md)


class LogSpectrogram(nn.Module):
    """Log spectrograms, (B, 1, 257, windows), of 16-bit sound, (B, n)."""

    def __init__(self) -> None:
        super().__init__()
        window = get_window(("tukey", 0.25), WINDOW, fftbins=True)
        density = torch.full((WINDOW // 2 + 1,), 2 / (RATE * float((window**2).sum())))
        density[[0, -1]] /= 2
        self.register_buffer("window", torch.from_numpy(window).float() / _SCALE, persistent=False)
        self.register_buffer("density", density / _FLOOR, persistent=False)

    @torch.no_grad()
    def forward(self, levels: Tensor) -> Tensor:
        """Compute the spectrograms.

        Args:
            levels: Sound, (B, n), int16, 16 kHz mono, n ≥ 512.

        Returns:
            (B, 1, 257, 1 + (n − 512) // 159), float32: 1004 windows for 10 s, 299 for 3 s. Silence gives zeros.
        """
        with torch.autocast(levels.device.type, enabled=False):
            parts = levels.float().unfold(1, WINDOW, HOP)
            spectrum = torch.fft.rfft((parts - parts.mean(2, keepdim=True)) * self.get_buffer("window"))
            power = spectrum.real.square() + spectrum.imag.square()
            # log(S + 1e-7) − log(1e-7): equal after standardising, and exact near silence
            logs = torch.log1p(power * self.get_buffer("density")).transpose(1, 2)
            mean, std = logs.mean((1, 2), keepdim=True), logs.std((1, 2), correction=0, keepdim=True)
            return ((logs - mean) / (std + 1e-9)).unsqueeze(1)
