"""Draw the stored pictures of a sample as rows of tiles: frames, optical flow, RGB differences.

Shapes: (H, W) are the height and width of a picture.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import simplejpeg
from PIL import Image

from bmlpipe.pipeline.front_ends import flow, rgb_diff
from bmlpipe.pipeline.inspection.flow_colours import Picture, flow_colours, flow_wheel
from bmlpipe.pipeline.inspection.samples import InspectedSample
from bmlpipe.shards.kinds import KINDS, FeatureKind

#: RGB differences are shown with this gain, because most of them are a few levels only.
RGB_DIFF_GAIN = 4

_MAX_TILES = 10  # per row
_WHEEL_PERCENTILE = 99.0  # of the length of the flow vectors: it lies at the edge of the wheel


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


class _Instants(NamedTuple):
    """The instants of a row.

    Attributes:
        shown: Their numbers.
        captions: Their times as text.
        remark: Says so if some instants are left out; otherwise empty.
    """

    shown: list[int]
    captions: list[str]
    remark: str


def tile_rows(sample: InspectedSample, most: int = _MAX_TILES) -> list[TileRow]:
    """Draw one row of tiles per picture kind of a sample.

    Args:
        sample: The sample.
        most: Maximum number of instants per row; they are evenly spaced.
    """
    kinds = [kind for kind in KINDS.values() if kind.is_pictures and kind.name in sample.meta]
    return [_DRAWERS.get(kind.name, _stored_row)(sample, kind, _instants(sample, kind, most)) for kind in kinds]


def _instants(sample: InspectedSample, kind: FeatureKind, most: int) -> _Instants:
    times = sample.meta[kind.name]["times"]
    shown = sorted({round(place) for place in np.linspace(0, len(times) - 1, min(most, len(times)))})
    remark = f", {len(shown)} of {len(times)} instants" if len(shown) < len(times) else ""
    return _Instants(shown, [f"{times[at]:.2f} s" for at in shown], remark)


def _stored_row(sample: InspectedSample, kind: FeatureKind, instants: _Instants) -> TileRow:
    """Show the first picture of each instant, as it is stored."""
    jpegs = [bytes(sample.members[kind.members_at(at)[0]]) for at in instants.shown]
    tiles = [Tile(simplejpeg.decode_jpeg(jpeg, "RGB"), time, jpeg) for jpeg, time in zip(jpegs, instants.captions)]
    return TileRow(f"{kind.name}{instants.remark}", tiles)


def _flow_row(sample: InspectedSample, kind: FeatureKind, instants: _Instants) -> TileRow:
    """Draw the first field of each instant in colours, and the wheel that explains them."""
    bound, stack = float(sample.meta[kind.name]["bound"]), _stack(sample, kind)
    fields = []
    for at in instants.shown:
        jpegs = [bytes(sample.members[member]) for member in kind.members_at(at)]
        levels = [simplejpeg.decode_jpeg(jpeg, "GRAY")[..., 0] for jpeg in jpegs]
        fields.append(np.stack([flow.dequantise(level, bound) for level in levels], axis=-1))
    lengths = np.concatenate([np.hypot(field[..., 0], field[..., 1]).ravel() for field in fields])
    radius = max(1.0, float(np.percentile(lengths, _WHEEL_PERCENTILE)))
    tiles = [Tile(flow_colours(field, radius), time) for field, time in zip(fields, instants.captions)]
    title = f"flow{instants.remark}" + (f", the first of {stack} fields" if stack > 1 else "")
    return TileRow(f"{title}, stored up to ±{bound:g} px", [*tiles, Tile(flow_wheel(), f"edge: {radius:.1f} px")])


def _rgb_diff_row(sample: InspectedSample, kind: FeatureKind, instants: _Instants) -> TileRow:
    """Draw the first difference of each instant, with a gain."""
    stack, tiles = _stack(sample, kind), []
    for at, time in zip(instants.shown, instants.captions):
        levels = simplejpeg.decode_jpeg(bytes(sample.members[kind.members_at(at)[0]]), "RGB")
        shift = rgb_diff.dequantise(levels).astype(np.int32) * RGB_DIFF_GAIN // 2
        tiles.append(Tile(np.clip(128 + shift, 0, 255).astype(np.uint8), time))
    title = f"RGB differences{instants.remark}" + (f", the first of {stack}" if stack > 1 else "")
    return TileRow(f"{title}, contrast × {RGB_DIFF_GAIN}", tiles)


def _stack(sample: InspectedSample, kind: FeatureKind) -> int:
    """Return the number of steps at each instant."""
    return int(sample.features.get(kind.name, {}).get("stack", 1))


#: Picture kind → function that draws it, for kinds whose stored pictures are not meant for the eye.
_DRAWERS: Mapping[str, Callable[[InspectedSample, FeatureKind, _Instants], TileRow]] = {
    "flow": _flow_row,
    "rgb_diff": _rgb_diff_row,
}


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
