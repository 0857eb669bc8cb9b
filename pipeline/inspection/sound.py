"""Draw the stored spectrogram and waveform of a sample.

Shapes: (F, T) are the bins and windows of a spectrogram.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes

from bmlpipe.pipeline.inspection.samples import InspectedSample
from bmlpipe.shards.kinds import KINDS

Floats = npt.NDArray[np.floating[Any]]

_TICKS_HZ = (100, 250, 500, 1000, 2000, 4000, 8000)  # on a mel axis
_BRIGHTEST = 99.8  # percentile of a spectrogram's values: standardised spectrograms have rare peaks of 30 and more
_TITLE: dict[str, Any] = {"loc": "left", "size": 9, "pad": 3, "parse_math": False}


class SpectrogramAxes(NamedTuple):
    """The axes on which the values of a spectrogram are drawn.

    Attributes:
        extent: Left and right (seconds of the clip), bottom and top (units of the vertical axis).
        label: Label of the vertical axis.
        unit: Number of units of the vertical axis that are labelled as 1.
        ticks: Position on the vertical axis → label; empty: the axis is linear.
    """

    extent: tuple[float, float, float, float]
    label: str
    unit: float
    ticks: dict[float, str]


def spectrogram_axes(parameters: Mapping[str, Any], shape: tuple[int, int]) -> SpectrogramAxes | None:
    """Compute the axes of a spectrogram from the parameters it was computed with.

    A value is drawn around its window's centre and its bin's frequency: bin b of a Fourier transform is at
    b · rate / window Hz. Mel bins are evenly spaced on their mel scale, on which the axis is linear. Cepstral
    coefficients are numbered from 0.

    Args:
        parameters: Parameters of the feature kind, as stored in the index.
        shape: (F, T).

    Returns:
        The axes; None if the parameters do not state rate, window and hop.
    """
    try:
        rate, window, hop = (int(parameters[name]) for name in ("rate", "window", "hop"))
    except KeyError:
        return None
    bins, windows = shape
    left = ((0 if parameters.get("centred") else window) - hop) / 2 / rate
    right = left + windows * hop / rate
    if "coefficients" in parameters:
        return SpectrogramAxes((left, right, -0.5, bins - 0.5), "cepstral coefficient", 1, {})
    if "mel_bins" not in parameters:
        half = rate / window / 2
        return SpectrogramAxes((left, right, -half, (2 * bins - 1) * half), "frequency (kHz)", 1000, {})
    mel = _MEL_SCALES[parameters.get("mel_scale", "kaldi")]
    low, high = mel(parameters["low_hz"]), mel(parameters["high_hz"])
    half = (high - low) / (bins + 1) / 2
    ticks = {mel(hz): f"{hz / 1000:g}" for hz in _TICKS_HZ if low <= mel(hz) <= high}
    return SpectrogramAxes((left, right, low + half, high - half), "frequency (kHz), mel scale", 1, ticks)


def _kaldi_mel(hz: float) -> float:
    return float(1127 * np.log1p(hz / 700))


def _slaney_mel(hz: float) -> float:
    return hz * 3 / 200 if hz < 1000 else float(15 + 27 * np.log(hz / 1000) / np.log(6.4))


#: Value of the parameter `mel_scale` → Hz to mel.
_MEL_SCALES = {"kaldi": _kaldi_mel, "slaney": _slaney_mel}


def stored_spectrogram(sample: InspectedSample) -> Floats | None:
    """Load the stored spectrogram, (F, T) float32; None if the sample has none."""
    data = sample.members.get(KINDS["spectrogram"].member)
    if data is None:
        return None
    values: Floats = np.load(io.BytesIO(bytes(data)), allow_pickle=False).astype(np.float32)
    return values


def waveform_envelope(sample: InspectedSample, points: int = 1500) -> tuple[Floats, Floats, Floats] | None:
    """Compute the envelope of the stored waveform.

    Args:
        sample: The sample.
        points: Maximum number of points.

    Returns:
        Times in seconds, and the lowest and highest value from each time to the next, each of shape (n,); None if the
        sample has no waveform.
    """
    data = sample.members.get(KINDS["waveform"].member)
    if data is None:
        return None
    import soundfile

    samples, rate = soundfile.read(io.BytesIO(bytes(data)), dtype="float32")
    starts = np.unique(np.linspace(0, samples.size, points, endpoint=False, dtype=np.int64))
    return starts / rate, np.minimum.reduceat(samples, starts), np.maximum.reduceat(samples, starts)


def draw_sound(sample: InspectedSample, places: list[Axes]) -> None:
    """Draw the waveform into the first of these axes and the spectrogram into the last; skip those not stored."""
    values, wave, span = stored_spectrogram(sample), waveform_envelope(sample), None
    if values is not None:
        axes, parameters = places[-1], sample.features.get("spectrogram", {})
        found = spectrogram_axes(parameters, (values.shape[0], values.shape[1]))
        image = axes.imshow(
            values,
            origin="lower",
            aspect="auto",
            extent=found.extent if found else None,
            cmap="magma",
            vmax=max(np.percentile(values, _BRIGHTEST), values.min() + 1e-3),
            interpolation="antialiased",
        )
        axes.figure.colorbar(image, ax=places, pad=0.01, aspect=30, label="stored value", extend="max")
        axes.set_title(f"spectrogram {parameters.get('preset', '')}, {values.shape[0]} × {values.shape[1]}", **_TITLE)
        if found:
            span = (0.0, found.extent[1])
            axes.set_xlim(span)
            axes.set_facecolor("0.85")
            axes.set_xlabel("time (s)", size=9)
            axes.set_ylabel(found.label, size=9)
            if found.ticks:
                axes.set_yticks(list(found.ticks), list(found.ticks.values()))
            else:
                axes.yaxis.set_major_formatter(lambda value, _: f"{value / found.unit:g}")
        else:
            axes.set_xlabel("window", size=9)
            axes.set_ylabel("bin", size=9)
        axes.tick_params(labelsize=8)
    if wave is not None:
        axes = places[0]
        axes.fill_between(*wave, color="#35618f", linewidth=0.4, edgecolor="#35618f")
        axes.set(ylim=(-1.05, 1.05), yticks=(-1, 0, 1), xlim=span or (0, wave[0][-1]))
        axes.set_title("waveform", **_TITLE)
        axes.tick_params(labelsize=8, labelbottom=values is None)
