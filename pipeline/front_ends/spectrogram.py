"""Spectrograms of mono sound: frequency bins by windows.

| preset | sampling rate | window | hop | size for 10 s | for 3 s |
|---|---|---|---|---|---|
| `vggsound` | 16 kHz | 512 | 159 | 257 × 1004 | 257 × 299 |
| `magnitude` | 16 kHz | 512 | 159 | 257 × 1004 | 257 × 299 |
| `cvpr-cremad` | 22.05 kHz | 512 | 353, centred | 257 × 625 | 257 × 188 |
| `cvpr-vggsound` | 16 kHz | 256 | 128, centred | 129 × 1251 | 129 × 376 |
| `kaldi-fbank` | 16 kHz | 400 | 160 | 128 × 998 | 128 × 298 |
| `log-mel` | 16 kHz | 1024 | 160, centred | 128 × 1001 | 128 × 301 |
| `mfcc` | 16 kHz | 1024 | 160, centred | 40 × 1001 | 40 × 301 |

`vggsound` (default) is what VGGSound's release computes: `scipy.signal.spectrogram` with its defaults (Tukey window
with 25 % tapered, constant detrend, one-sided density), log(S + 1e-7), standardised over the clip. `magnitude`,
`cvpr-cremad` and `cvpr-vggsound` are log(|STFT| + 1e-7) with a periodic Hann window, as `librosa.stft` computes it:
`magnitude` with `center=False`, the others centred on sound that is continued by zeros. `kaldi-fbank` is described in
`bmlpipe.pipeline.front_ends.kaldi_fbank`, `log-mel` and `mfcc` in `bmlpipe.pipeline.front_ends.mel`. The tests compare
each preset with the library that defines it, or with its definition in float64.

The STFT presets are computed by `scipy.fft` in float32 and not by librosa itself, which takes twice the time and rounds
differently: of the stored float16 values 0.4 % would differ, nearly all of them in the last bit, and single values of
almost no energy by up to 1.1. Features that were extracted earlier stay valid this way.

`cvpr-cremad` and `cvpr-vggsound` are what the CVPR 2022 release (OGM-GE) computes for CREMA-D and for VGGSound. Known
differences: the release resamples with librosa, this module gets sound resampled by libswresample; the release reads
16-bit files. It states no version of librosa: before 0.9, librosa continued the sound by reflection, so that the first
and the last column differ from these. Of 10 s the release takes a random stretch of 5 s, in evaluation too; here the
whole sound is stored, and `--seconds 5` gives the first 5 s in the release's size, 129 × 626.

Values are stored as float16, which rounds a value between 2^k and 2^(k+1) by at most 2^(k-11). Measured on VGGSound
clips, on average and at most: 1e-4 and 3.9e-3 for `vggsound` (rare peaks reach 13), 1.1e-3 and 7.8e-3 for the presets
in natural logarithms (-16 to 8). For `log-mel`, in decibels, the bound is 0.03 dB.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from bmlpipe.manifests.common.errors import OptionError
from bmlpipe.pipeline.front_ends import kaldi_fbank, mel
from bmlpipe.pipeline.front_ends.features import ArrayFeature
from bmlpipe.pipeline.front_ends.front_end import SoundOptions
from bmlpipe.pipeline.front_ends.presets import PRESETS, Layout

RATE = 16_000  # Hz

VERSION = 1  # of the values: increase it with every change that alters them
_FLOOR = 1e-7

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class SpectrogramOptions(SoundOptions):
    """Options of the front end `spectrogram`.

    Attributes:
        preset: A name of `PRESETS`.

    Raises:
        OptionError: There is no such preset.
    """

    kind: ClassVar[str] = "spectrogram"

    preset: str = "vggsound"

    @classmethod
    def from_command_line(cls, values: Mapping[str, Any]) -> SpectrogramOptions:
        """See `FrontEndOptions.from_command_line`."""
        return cls(preset=values["spectrogram_preset"])

    def __post_init__(self) -> None:
        if self.preset not in PRESETS:
            raise OptionError(f"spectrogram preset is {self.preset!r}: must be one of {', '.join(PRESETS)}")

    @property
    def rate(self) -> int:
        """See `SoundOptions.rate`."""
        return PRESETS[self.preset].rate

    def make(self, samples: Floats) -> ArrayFeature:
        """See `SoundOptions.make`."""
        return ArrayFeature(log_spectrogram(samples, self.preset).astype("float16"))

    def parameters(self, seconds: int | None) -> dict[str, Any]:
        """See `FrontEndOptions.parameters`."""
        layout = PRESETS[self.preset]
        if self.preset == "kaldi-fbank":
            computed = kaldi_fbank.parameters()
        elif self.preset in mel.NAMES:
            computed = mel.parameters(self.preset)
        else:
            computed = {"rate": layout.rate, "window": layout.window, "hop": layout.hop, "floor": _FLOOR}
        if layout.centred:
            computed["centred"] = True
        return {"version": VERSION, "preset": self.preset, "seconds": seconds, "dtype": "float16", **computed}


def windows(samples: int, preset: str = "vggsound") -> int:
    """Count the windows in this number of samples; under the default preset, 1004 for 10 s and 299 for 3 s."""
    layout = PRESETS[preset]
    return samples // layout.hop + 1 if layout.centred else max(0, (samples - layout.window) // layout.hop + 1)


def log_spectrogram(samples: Floats, preset: str = "vggsound") -> Floats:
    """Compute the spectrogram of a clip, before it is rounded to float16.

    Args:
        samples: (n,) mono sound at the preset's rate, at least one window long, within ±1.
        preset: A name of `PRESETS`; see the module.

    Returns:
        (bins, windows(n)) float32, C-contiguous; row b is b · rate / window Hz (`kaldi-fbank`: mel bins). A silent clip
        gives zeros under `vggsound`, and the logarithm of its floor elsewhere.

    Raises:
        OptionError: There are too few samples for one window.
    """
    layout = PRESETS[preset]
    if samples.size < layout.window:
        raise OptionError(f"{samples.size} samples are fewer than one window of {layout.window}: give a longer sound")
    if preset == "kaldi-fbank":
        return np.ascontiguousarray(kaldi_fbank.log_mel(samples))
    if preset in mel.NAMES:
        return mel.mel_features(samples, preset)
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
    """Tile or cut sound to a fixed number of samples, and limit it to ±1.

    Args:
        samples: (n,), n ≥ 1.
        length: Number of samples of the result.
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
    """Return the factor that makes squared FFT values a one-sided power spectral density: (bins,), 1/Hz."""
    from scipy.signal import get_window

    window = get_window(("tukey", 0.25), layout.window, fftbins=True)
    factor = np.full(layout.window // 2 + 1, 2 / (layout.rate * np.sum(window**2)))
    factor[[0, -1]] /= 2
    return factor.astype(np.float32)
