"""Log-mel spectrograms and MFCCs of 16 kHz mono sound, computed by librosa.

Both follow librosa's defaults: mel filters of unit area on Slaney's scale (linear below 1 kHz, logarithmic above), the
power of a centred Fourier transform with a periodic Hann window over sound that is continued by zeros, and decibels
(`librosa.power_to_db`) relative to a power of 1, at least -100 dB, and at most 80 dB below the loudest value of the
clip. Of librosa's parameters these are chosen, as is usual for sound at 16 kHz:

- window and FFT of 1024 samples (64 ms), so that each of the 128 triangles holds at least one FFT bin,
- a window every 160 samples (10 ms),
- 128 mel bins from 0 Hz to 8 kHz,
- 40 cepstral coefficients, by an orthonormal DCT-II of the decibels.

They are computed in float64, because librosa multiplies matrices: a matrix product depends on the BLAS library and its
number of threads, by amounts that float64 keeps below what float16 shows.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from bmlpipe.manifests.common.errors import OptionError
from bmlpipe.pipeline.front_ends.presets import PRESETS

Floats = npt.NDArray[np.float32]

NAMES = ("log-mel", "mfcc")  # the presets that this module computes
MELS, COEFFICIENTS = 128, 40
_LAYOUT = PRESETS["log-mel"]  # and that of `mfcc`
_LOW, _HIGH = 0.0, 8000.0  # Hz
_FLOOR = 1e-10  # power
_RANGE = 80.0  # dB


def parameters(preset: str) -> dict[str, Any]:
    """Return all parameters that the values depend on, except the length of the sound.

    Args:
        preset: A name of `NAMES`.
    """
    values = {
        "rate": _LAYOUT.rate,
        "window": _LAYOUT.window,
        "hop": _LAYOUT.hop,
        "mel_bins": MELS,
        "mel_scale": "slaney",
        "low_hz": _LOW,
        "high_hz": _HIGH,
        "floor": _FLOOR,
        "range_db": _RANGE,
    }
    return {**values, "coefficients": COEFFICIENTS} if preset == "mfcc" else values


def mel_features(samples: Floats, preset: str) -> Floats:
    """Compute the log-mel spectrogram or the MFCCs of a clip.

    Args:
        samples: (n,) mono at 16 kHz within ±1, n ≥ 1024.
        preset: `log-mel` or `mfcc`.

    Returns:
        `log-mel`: (128, 1 + n // 160), mel bins by windows, in dB from -100 to about 40. `mfcc`: (40, 1 + n // 160),
        cepstral coefficients by windows; the first one, √128 times the mean level in dB, lies between -1132 and about
        500. Silence gives -100 dB everywhere.

    Raises:
        OptionError: There is no such preset.
    """
    if preset not in NAMES:
        raise OptionError(f"the preset is {preset!r}: must be one of {', '.join(NAMES)}")
    import librosa.feature  # more than a second of CPU time, and only these presets need it

    power = librosa.feature.melspectrogram(
        y=samples.astype(np.float64),
        sr=_LAYOUT.rate,
        n_fft=_LAYOUT.window,
        hop_length=_LAYOUT.hop,
        n_mels=MELS,
        fmin=_LOW,
        fmax=_HIGH,
        power=2.0,
        center=True,
        pad_mode="constant",
        htk=False,
        norm="slaney",
    )
    values = librosa.power_to_db(power, ref=1.0, amin=_FLOOR, top_db=_RANGE)
    if preset == "mfcc":
        values = librosa.feature.mfcc(S=values, n_mfcc=COEFFICIENTS, dct_type=2, norm="ortho", lifter=0)
    return np.ascontiguousarray(values, np.float32)
