"""Log spectrograms of mono sound: frequency bins by windows.

| preset | made at | window | every | size for 10 s | for 3 s |
|---|---|---|---|---|---|
| `vggsound` | 16 kHz | 512 | 159 | 257 × 1004 | 257 × 299 |
| `magnitude` | 16 kHz | 512 | 159 | 257 × 1004 | 257 × 299 |
| `cvpr-cremad` | 22.05 kHz | 512 | 353, centred | 257 × 625 | 257 × 188 |
| `cvpr-vggsound` | 16 kHz | 256 | 128, centred | 129 × 1251 | 129 × 376 |
| `kaldi-fbank` | 16 kHz | 400 | 160 | 128 × 998 | 128 × 298 |

`vggsound` (default) is what VGGSound's release computes: `scipy.signal.spectrogram` with its defaults (Tukey window
with 25 % tapered, constant detrend, one-sided density), log(S + 1e-7), standardised over the clip. The next three are
log(|STFT| + 1e-7) with a periodic Hann window, as `librosa.stft`: `magnitude` with `center=False`, the others centred
on sound continued by zeros. `kaldi-fbank`: see `fbank`. The tests compare each with the library that defines it.

`cvpr-cremad` and `cvpr-vggsound` are what the CVPR 2022 release (OGM-GE) computes for CREMA-D and for VGGSound. Known
differences: it resamples by librosa, this by libswresample; it reads 16-bit files. It names no version of librosa:
before 0.9, librosa continued the sound by reflection, so that the first and the last column differ from these. Of 10 s
that release takes a random stretch of 5 s, in evaluation too; here the whole sound is stored, and `--seconds 5` gives
the first 5 s in that release's size, 129 × 626.

Stored as float16, which rounds a value between 2^k and 2^(k+1) by at most 2^(k-11). Measured on VGGSound clips, on
average and at most: 1e-4 and 3.9e-3 for `vggsound` (rare peaks reach 13), 1.1e-3 and 7.8e-3 for the others (-16 to 8).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from bmlpipe.manifests.common.errors import OptionError
from bmlpipe.pipeline.front_ends import kaldi_fbank as fbank

RATE = 16_000  # Hz

VERSION = 1  # of the values: raise it with every change that alters them
_FLOOR = 1e-7

Floats = npt.NDArray[np.float32]


class Layout(NamedTuple):
    """How windows lie in the sound: samples a second, samples a window, samples from window to window, centred."""

    rate: int
    window: int
    hop: int
    centred: bool = False


PRESETS = {
    "vggsound": Layout(RATE, 512, 159),
    "magnitude": Layout(RATE, 512, 159),
    "cvpr-cremad": Layout(22_050, 512, 353, centred=True),
    "cvpr-vggsound": Layout(RATE, 256, 128, centred=True),
    "kaldi-fbank": Layout(fbank.RATE, fbank.WINDOW, fbank.HOP),
}


@dataclass(frozen=True)
class SpectrogramOptions:
    """Which spectrogram is computed.

    Attributes:
        preset: A name of `PRESETS`.
    """

    preset: str = "vggsound"

    def __post_init__(self) -> None:
        if self.preset not in PRESETS:
            raise OptionError(f"spectrogram preset is {self.preset!r}: must be one of {', '.join(PRESETS)}")

    @property
    def rate(self) -> int:
        """Samples a second of the sound that the spectrogram is made of."""
        return PRESETS[self.preset].rate

    def parameters(self, seconds: int) -> dict[str, Any]:
        """Everything that the values depend on, for hashing.

        Args:
            seconds: Length that the sound is tiled or cut to.
        """
        layout = PRESETS[self.preset]
        if self.preset == "kaldi-fbank":
            made = fbank.parameters()
        else:
            made = {"rate": layout.rate, "window": layout.window, "hop": layout.hop, "floor": _FLOOR}
        if layout.centred:
            made["centred"] = True
        return {"version": VERSION, "preset": self.preset, "seconds": seconds, "dtype": "float16", **made}


def windows(samples: int, preset: str = "vggsound") -> int:
    """Number of windows of so many samples: 1004 for 10 s, 299 for 3 s, under the default preset."""
    layout = PRESETS[preset]
    return samples // layout.hop + 1 if layout.centred else max(0, (samples - layout.window) // layout.hop + 1)


def log_spectrogram(samples: Floats, preset: str = "vggsound") -> Floats:
    """The log spectrogram of a clip, before it is rounded to float16.

    Args:
        samples: (n,) mono at the preset's rate, at least a window long, within ±1.
        preset: See the module.

    Returns:
        (bins, windows(n)) float32, C-contiguous; row b is b · rate / window Hz (`kaldi-fbank`: mel bins). A silent clip
        gives zeros under `vggsound`, and the logarithm of its floor elsewhere.

    Raises:
        OptionError: Too few samples for one window.
    """
    layout = PRESETS[preset]
    if samples.size < layout.window:
        raise OptionError(
            f"{samples.size} samples are fewer than one window of {layout.window}: a longer sound is needed"
        )
    if preset == "kaldi-fbank":
        return np.ascontiguousarray(fbank.log_mel(samples))
    return np.ascontiguousarray((_standardised if preset == "vggsound" else _magnitude)(samples, layout).T)


def _standardised(samples: Floats, layout: Layout) -> Floats:
    from scipy import fft

    strided = _strided(samples, layout)
    tapered = strided - strided.mean(axis=1, keepdims=True)
    tapered *= _tukey(layout.window)
    spectrum = fft.rfft(tapered, axis=1)
    power = spectrum.real**2 + spectrum.imag**2
    power *= _density(layout) / np.float32(_FLOOR)
    logs: Floats = np.log1p(power, out=power)  # log(S + 1e-7) - log(1e-7): the same once standardised, exact near 0
    mean, std = logs.mean(dtype=np.float64), logs.std(dtype=np.float64)
    logs -= np.float32(mean)
    logs *= np.float32(1 / (std + 1e-9))
    return logs


def _magnitude(samples: Floats, layout: Layout) -> Floats:
    from scipy import fft

    if layout.centred:
        samples = np.pad(samples, layout.window // 2)
    spectrum = fft.rfft(_strided(samples, layout) * _hann(layout.window), axis=1)
    values: Floats = np.log(np.abs(spectrum) + np.float32(_FLOOR))
    return values


def _strided(samples: Floats, layout: Layout) -> Floats:
    whole = np.ascontiguousarray(samples, np.float32)
    return np.lib.stride_tricks.sliding_window_view(whole, layout.window)[:: layout.hop]


def fit(samples: Floats, length: int) -> Floats:
    """Tile or cut sound to exactly so many samples and clip it to ±1.

    Args:
        samples: (n,), n ≥ 1.
        length: Wanted number of samples.
    """
    return np.clip(np.resize(samples, length), -1, 1)


@cache
def _hann(window: int) -> Floats:
    from scipy.signal import get_window

    return np.asarray(get_window("hann", window, fftbins=True), np.float32)


@cache
def _tukey(window: int) -> Floats:
    from scipy.signal import get_window

    return np.asarray(get_window(("tukey", 0.25), window, fftbins=True), np.float32)


@cache
def _density(layout: Layout) -> Floats:
    """Factor that makes squared FFT values a one-sided power spectral density: (bins,), 1/Hz."""
    from scipy.signal import get_window

    window = get_window(("tukey", 0.25), layout.window, fftbins=True)
    factor = np.full(layout.window // 2 + 1, 2 / (layout.rate * np.sum(window**2)))
    factor[[0, -1]] /= 2
    return factor.astype(np.float32)
