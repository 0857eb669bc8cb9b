"""Kaldi's log mel filter bank, as `torchaudio.compliance.kaldi.fbank` computes it, on 16 kHz mono sound.

The settings are those of the Audio Spectrogram Transformer and its descendants: 128 mel bins, windows of 25 ms every
10 ms within the sound (`snip_edges`), `window_type="hanning"` (symmetric), `dither=0`, `htk_compat=True`,
`use_energy=False`, and the function's defaults for the rest: the mean of each window removed, pre-emphasis 0.97, FFT of
512, power, triangles from 20 Hz to 8 kHz on the scale 1127 · ln(1 + f / 700), natural logarithm of at least 2^-23.
Samples lie within ±1; Kaldi itself takes 16-bit numbers, which adds 2 · ln 32768 = 20.79 to values above the floor.
The triangle of row 3 lies between two FFT bins, so that the row always holds the floor, -15.94, as in torchaudio.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from bmlpipe.pipeline.front_ends.presets import PRESETS

Floats = npt.NDArray[np.float32]

RATE, WINDOW, HOP, _ = PRESETS["kaldi-fbank"]
MELS = 128
_FFT = 512
_LOW, _HIGH = 20.0, 8000.0  # Hz
_PREEMPHASIS = 0.97
_FLOOR = 2.0**-23  # float32's epsilon


def parameters() -> dict[str, Any]:
    """Return all parameters that the values depend on, except the length of the sound."""
    return {
        "rate": RATE,
        "window": WINDOW,
        "hop": HOP,
        "fft": _FFT,
        "mel_bins": MELS,
        "low_hz": _LOW,
        "high_hz": _HIGH,
        "preemphasis": _PREEMPHASIS,
        "floor": _FLOOR,
    }


def log_mel(samples: Floats) -> Floats:
    """Compute the log mel filter bank of a clip: (n,) within ±1, n ≥ 400 → (128, 1 + (n − 400) // 160)."""
    from scipy import fft

    strided = np.lib.stride_tricks.sliding_window_view(np.ascontiguousarray(samples, np.float32), WINDOW)[::HOP]
    centred = strided - strided.mean(axis=1, keepdims=True)
    emphasised = centred - np.float32(_PREEMPHASIS) * np.concatenate([centred[:, :1], centred[:, :-1]], axis=1)
    spectrum = fft.rfft(emphasised * np.hanning(WINDOW).astype(np.float32), n=_FFT, axis=1)
    power = np.ascontiguousarray((spectrum.real**2 + spectrum.imag**2).T)
    # Not a matrix product: that would depend on BLAS and its threads, and most weights are 0.
    energies = np.stack(
        [np.einsum("f,ft->t", weights, power[first : first + len(weights)]) for first, weights in _bands()]
    )
    values: Floats = np.log(np.maximum(energies, np.float32(_FLOOR)))
    return values


@cache
def _bands() -> list[tuple[int, Floats]]:
    """Return for each mel bin the first FFT bin with a weight above 0, and the weights from there on."""
    low, high, *bins = 1127 * np.log1p(np.array([_LOW, _HIGH, *np.arange(_FFT // 2 + 1) * (RATE / _FFT)]) / 700)
    edges = np.linspace(low, high, MELS + 2)
    width = edges[1] - edges[0]
    rising, falling = (bins - edges[:-2, None]) / width, (edges[2:, None] - bins) / width
    weights = np.maximum(0, np.minimum(rising, falling)).astype(np.float32)
    inside = [np.flatnonzero(row) for row in weights]
    return [(at[0], row[at[0] : at[-1] + 1]) if at.size else (0, row[:1]) for at, row in zip(inside, weights)]
