"""Turn the stored features of a sample into pictures: axes of spectrograms, colours of flow, rows of tiles.

Shapes: (H, W) are the height and width of a picture, (F, T) the bins and windows of a spectrogram.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import simplejpeg
from PIL import Image

from bmlpipe.pipeline.front_ends import flow, rgb_diff
from bmlpipe.pipeline.inspection.samples import InspectedSample
from bmlpipe.shards.kinds import KINDS, FeatureKind

Picture = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.floating[Any]]

#: RGB differences are shown with this gain, because most of them are a few levels only.
RGB_DIFF_GAIN = 4

_MAX_TILES = 10  # per row
_TICKS_HZ = (100, 250, 500, 1000, 2000, 4000, 8000)  # on a mel axis
_WHEEL_PERCENTILE = 99.0  # of the length of the flow vectors: it lies at the edge of the wheel
_WHEEL_SIDE = 96  # pixels


class Tile(NamedTuple):
    """One picture of a row.

    Attributes:
        pixels: (H, W, 3).
        caption: Text below the picture.
        jpeg: The stored JPEG, if the picture is shown unchanged.
    """

    pixels: Picture
    caption: str
    jpeg: bytes | None = None


class TileRow(NamedTuple):
    """Tiles shown side by side under one title."""

    title: str
    tiles: list[Tile]


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
    """The axes of a spectrogram, from the parameters it was computed with.

    A value is drawn around its window's centre and its bin's frequency: bin b of a Fourier transform is at
    b · rate / window Hz. Mel bins are evenly spaced on their mel scale, on which the axis is linear. Cepstral
    coefficients are numbered from 0.

    Args:
        parameters: Parameters of the feature kind, as stored in the index.
        shape: (F, T).

    Returns:
        The axes; None where the parameters do not state rate, window and hop.
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


def flow_colours(field: Floats, radius: float) -> Picture:
    """Colour a field of displacements by direction (hue) and length (saturation).

    Args:
        field: (H, W, 2), x to the right and y downwards.
        radius: Length that gets full saturation, in the field's unit.

    Returns:
        (H, W, 3), uint8. No motion is white; motion to the right is red (0°), down yellow-green (90°), to the left cyan
        (180°), up violet (270°).
    """
    from matplotlib.colors import hsv_to_rgb

    x, y = field[..., 0], field[..., 1]
    hue = np.arctan2(y, x) / (2 * np.pi) % 1
    saturation = np.minimum(np.hypot(x, y) / radius, 1)
    colours = hsv_to_rgb(np.stack([hue, saturation, np.ones_like(hue)], axis=-1))
    picture: Picture = np.rint(255 * colours).astype(np.uint8)
    return picture


def flow_wheel(side: int = _WHEEL_SIDE) -> Picture:
    """The legend of `flow_colours`: the colour of each displacement up to the radius, on a white square."""
    place = (np.arange(side) + 0.5) / side * 2 - 1
    field = np.stack(np.meshgrid(place, place), axis=-1)
    wheel = flow_colours(field, 1.0)
    wheel[np.hypot(field[..., 0], field[..., 1]) > 1] = 255
    return wheel


def tile_rows(sample: InspectedSample, most: int = _MAX_TILES) -> list[TileRow]:
    """The rows of a sample's pictures, one row per feature kind that is stored as pictures.

    Args:
        sample: The sample.
        most: Maximum number of instants per row; they are evenly spaced.
    """
    stored = [kind for kind in KINDS.values() if kind.is_pictures and kind.name in sample.meta]
    return [_DRAWN.get(kind.name, _plain)(sample, kind, most) for kind in stored]


def _instants(sample: InspectedSample, kind: str, most: int) -> tuple[list[int], list[str], str]:
    """The instants to show, their times as text, and a remark if some are left out."""
    times = sample.meta[kind]["times"]
    shown = sorted({round(place) for place in np.linspace(0, len(times) - 1, min(most, len(times)))})
    remark = f", {len(shown)} of {len(times)} instants" if len(shown) < len(times) else ""
    return shown, [f"{times[at]:.2f} s" for at in shown], remark


def _plain(sample: InspectedSample, kind: FeatureKind, most: int) -> TileRow:
    """The pictures as they are stored."""
    shown, times, remark = _instants(sample, kind.name, most)
    jpegs = [bytes(sample.members[kind.members_at(at)[0]]) for at in shown]
    tiles = [Tile(simplejpeg.decode_jpeg(jpeg, "RGB"), time, jpeg) for jpeg, time in zip(jpegs, times)]
    return TileRow(f"{kind.name}{remark}", tiles)


def _flow(sample: InspectedSample, kind: FeatureKind, most: int) -> TileRow:
    shown, times, remark = _instants(sample, kind.name, most)
    bound = float(sample.meta["flow"]["bound"])
    fields = [
        np.stack([flow.dequantise(_grey(sample, member), bound) for member in kind.members_at(at)], axis=-1)
        for at in shown
    ]
    lengths = np.concatenate([np.hypot(field[..., 0], field[..., 1]).ravel() for field in fields])
    radius = max(1.0, float(np.percentile(lengths, _WHEEL_PERCENTILE)))
    tiles = [Tile(flow_colours(field, radius), time) for field, time in zip(fields, times)]
    stack = int(sample.features.get("flow", {}).get("stack", 1))
    title = f"flow{remark}" + (f", the first of {stack} fields" if stack > 1 else "")
    return TileRow(f"{title}, stored up to ±{bound:g} px", [*tiles, Tile(flow_wheel(), f"edge: {radius:.1f} px")])


def _rgb_diff(sample: InspectedSample, kind: FeatureKind, most: int) -> TileRow:
    shown, times, remark = _instants(sample, kind.name, most)
    tiles = []
    for at, time in zip(shown, times):
        levels = simplejpeg.decode_jpeg(bytes(sample.members[kind.members_at(at)[0]]), "RGB")
        shift = rgb_diff.dequantise(levels).astype(np.int32) * RGB_DIFF_GAIN // 2
        tiles.append(Tile(np.clip(128 + shift, 0, 255).astype(np.uint8), time))
    stack = int(sample.features.get("rgb_diff", {}).get("stack", 1))
    title = f"RGB differences{remark}" + (f", the first of {stack}" if stack > 1 else "")
    return TileRow(f"{title}, contrast × {RGB_DIFF_GAIN}", tiles)


# Feature kind → how its pictures are drawn, where they do not show themselves.
_DRAWN = {"flow": _flow, "rgb_diff": _rgb_diff}


def _grey(sample: InspectedSample, member: str) -> Picture:
    picture: Picture = simplejpeg.decode_jpeg(bytes(sample.members[member]), "GRAY")[..., 0]
    return picture


def stored_spectrogram(sample: InspectedSample) -> Floats | None:
    """The stored spectrogram, (F, T) float32; None if the sample has none."""
    data = sample.members.get(KINDS["spectrogram"].member)
    if data is None:
        return None
    values: Floats = np.load(io.BytesIO(bytes(data)), allow_pickle=False).astype(np.float32)
    return values


def waveform_envelope(sample: InspectedSample, points: int = 1500) -> tuple[Floats, Floats, Floats] | None:
    """The envelope of the stored waveform.

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


def montage(tiles: Sequence[Tile], height: int, columns: int) -> tuple[Picture, list[tuple[float, float]]]:
    """Combine tiles into one picture of several lines.

    Args:
        tiles: The tiles.
        height: Height to which each tile is scaled, in pixels.
        columns: Tiles per line.

    Returns:
        The picture (H, W, 3), and for each tile the point (x, y) below its centre, where its caption goes.
    """
    gap, below = 6, 22
    scaled = []
    for tile in tiles:
        width = max(1, round(tile.pixels.shape[1] * height / tile.pixels.shape[0]))
        scaled.append(np.asarray(Image.fromarray(tile.pixels).resize((width, height), Image.Resampling.LANCZOS)))
    lines = [scaled[start : start + columns] for start in range(0, len(scaled), columns)]
    width = max(sum(picture.shape[1] + gap for picture in line) for line in lines)
    whole = np.full((len(lines) * (height + below), width, 3), 255, np.uint8)
    places = []
    for number, line in enumerate(lines):
        top, left = number * (height + below), 0
        for picture in line:
            # A grey border, because the flow of a still picture is as white as the sheet.
            whole[top : top + height, left : left + picture.shape[1]] = 200
            whole[top + 1 : top + height - 1, left + 1 : left + picture.shape[1] - 1] = picture[1:-1, 1:-1]
            places.append((left + picture.shape[1] / 2, float(top + height)))
            left += picture.shape[1] + gap
    return whole, places
