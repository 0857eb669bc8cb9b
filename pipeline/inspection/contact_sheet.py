"""Draw contact sheets as PNG files: the pictures of each sample beside its sound, with axes."""

from __future__ import annotations

import io
import textwrap
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.gridspec import SubplotSpec
from matplotlib.layout_engine import ConstrainedLayoutEngine
from PIL import Image

from bmlpipe.pipeline.inspection.captions import sample_title, source_line
from bmlpipe.pipeline.inspection.samples import InspectedSample
from bmlpipe.pipeline.inspection.sound import draw_sound, stored_spectrogram, waveform_envelope
from bmlpipe.pipeline.inspection.tiles import TileRow, montage, tile_rows

_DPI = 100
_WIDTH = 19.2  # inches
_TEXT: dict[str, Any] = {"parse_math": False, "fontfamily": ["DejaVu Sans"]}  # ids and labels may hold any characters


def write_contact_sheet(samples: Iterable[InspectedSample], out: Path) -> int:
    """Draw samples one below the other.

    Args:
        samples: The samples.
        out: PNG file to write; an existing one is replaced.

    Returns:
        Number of samples. If it is 0, no file is written.
    """
    parts = [_render(draw_sample(sample)) for sample in samples]
    if parts:
        sheet = Image.new("RGB", (max(part.width for part in parts), sum(part.height for part in parts)), "white")
        top = 0
        for part in parts:
            sheet.paste(part, (0, top))
            top += part.height
        sheet.save(out, "PNG")
    return len(parts)


def sound_png(sample: InspectedSample) -> bytes | None:
    """Draw the stored spectrogram and waveform as a PNG; None if neither is stored."""
    values, wave = stored_spectrogram(sample), waveform_envelope(sample)
    heights = ([0.9] if wave else []) + ([2.6] if values is not None else [])
    if not heights:
        return None
    figure = Figure(figsize=(10, sum(heights) + 0.5), dpi=_DPI, layout="constrained")
    draw_sound(sample, _stack_axes(figure, figure.add_gridspec(1, 1)[0], heights))
    file = io.BytesIO()
    _render(figure).save(file, "PNG")
    return file.getvalue()


def draw_sample(sample: InspectedSample) -> Figure:
    """Draw the heading, pictures and sound of a sample as one figure."""
    rows, meta = tile_rows(sample), sample.meta
    sounds = [stored_spectrogram(sample) is not None, waveform_envelope(sample) is not None]
    columns = max((len(row.tiles) for row in rows), default=1)
    if len(rows) == 1:  # there is room for two lines of larger tiles
        columns = max(5, -(-columns // 2))
    lines = sum(-(-len(row.tiles) // columns) for row in rows)
    height = 0.75 + max(1.2 * lines, 2.2 * sounds[0] + 0.8 * sounds[1], 1.0)
    layout = ConstrainedLayoutEngine(w_pad=0.05, h_pad=0.03, rect=(0, 0, 1, 1 - 0.62 / height))
    figure = Figure(figsize=(_WIDTH, height), dpi=_DPI, layout=layout)
    name = textwrap.shorten(sample_title(meta), 130, placeholder="…")
    figure.text(0.006, 1 - 0.22 / height, name, size=14, weight="bold", **_TEXT)
    details = textwrap.shorten(source_line(sample), 190, placeholder="…")
    figure.text(0.006, 1 - 0.45 / height, details, size=10, color="0.3", **_TEXT)
    if flags := meta.get("flags"):
        box = {"facecolor": "#fde2e0", "edgecolor": "#b3261e", "boxstyle": "round,pad=0.3"}
        text = "flags: " + ", ".join(flags)
        figure.text(0.994, 1 - 0.3 / height, text, size=11, color="#8c1d18", ha="right", bbox=box, **_TEXT)
    sides = figure.add_gridspec(1, 2, width_ratios=(1.75, 1)) if rows and any(sounds) else figure.add_gridspec(1, 1)
    if rows:
        ratios = [float(-(-len(row.tiles) // columns)) for row in rows]
        for axes, row in zip(_stack_axes(figure, sides[0], ratios), rows):
            _draw_row(axes, row, columns)
    if any(sounds):
        draw_sound(sample, _stack_axes(figure, sides[-1], [0.8] * sounds[1] + [2.2] * sounds[0]))
    return figure


def _stack_axes(figure: Figure, place: SubplotSpec, heights: Sequence[float]) -> list[Axes]:
    """Add axes of the given relative heights, one below the other."""
    grid = place.subgridspec(len(heights), 1, height_ratios=heights)
    return [figure.add_subplot(grid[number]) for number in range(len(heights))]


def _draw_row(axes: Axes, row: TileRow, columns: int) -> None:
    picture, places = montage(row.tiles, 128, columns)
    axes.imshow(picture, interpolation="antialiased")
    axes.set_anchor("W")
    axes.set_title(row.title, loc="left", size=9, pad=2)
    axes.set_axis_off()
    for (across, down), tile in zip(places, row.tiles):
        axes.text(across, down + 2, tile.caption, size=8, ha="center", va="top")


def _render(figure: Figure) -> Image.Image:
    canvas: Any = FigureCanvasAgg(figure)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")  # such a glyph is drawn as a box
        canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
