"""Figures in one style: as SVG in the colours of the page, and as PNG and SVG files with a legend."""

from __future__ import annotations

import re
import textwrap
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D

from bmlpipe.train.report.series import AXIS, COLOURS, GRID, INK, Series

_STYLE: Any = {
    "text.parse_math": False,  # names may contain dollar signs
    "svg.fonttype": "none",
    "font.size": 9,
    "font.sans-serif": ["DejaVu Sans"],  # SVG repeats the list for every text
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.facecolor": "none",
    "figure.facecolor": "white",
    "axes.edgecolor": AXIS,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "text.color": INK,
    "xtick.color": AXIS,
    "ytick.color": AXIS,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "lines.linewidth": 1.5,
    "lines.markersize": 4,
    "legend.frameon": False,
    "legend.handlelength": 3.2,
    "legend.fontsize": 8.5,
    "legend.borderpad": 0.2,
    "legend.labelspacing": 0.25,
    "savefig.dpi": 160,
}

_BACKGROUND, _LEGEND = "background", "legend"  # groups that only the files have
_FILE_ONLY = re.compile(rf'\n  <g id="(?:{_BACKGROUND}|{_LEGEND})">.*?\n  </g>', re.DOTALL)
_NO_METADATA: Any = dict.fromkeys(("Date", "Creator", "Format", "Type"))
_COORDINATES = re.compile(r' (?:d|x|y)="[^"]*"(?=[^<>]*>)')
_LONG_NUMBER = re.compile(r"-?\d+\.\d{2,}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


@dataclass(frozen=True)
class Figure:
    """A figure of the page.

    Attributes:
        name: Stem of its file names, unique on the page.
        title: Title.
        alt: Description in words, for people who do not see the figure.
        draw: Function that draws into the axes.
        legend: Series that appear in it.
        size: Width and height in inches; the page scales it.
    """

    name: str
    title: str
    alt: str
    draw: Callable[[Axes], None]
    legend: Sequence[Series] = ()
    size: tuple[float, float] = (4.0, 2.5)

    @property
    def wide(self) -> bool:
        """Whether the figure needs more than one column of the page."""
        return self.size[0] > 5


def printable(text: str) -> str:
    """Replace characters that XML or a single line cannot hold."""
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)


def slug(text: str) -> str:
    """Reduce text to letters, digits and dashes, for file names.

    Examples:
        >>> slug("ρ of audio, Opm")
        'of-audio-opm'
    """
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:40]


def write_figure(figure: Figure, folder: Path) -> str:
    """Write a figure as PNG and SVG, with title and legend.

    Args:
        figure: Figure to draw.
        folder: Folder of the files.

    Returns:
        SVG element for the page, without legend. It takes colours and font from the page. All ids in it are hashes of
        the figure's name and what they identify, so they are unique on the page.
    """
    file = folder / f"{figure.name}.svg"
    with _style(figure.name):
        canvas = _canvas([figure])
        canvas.savefig(file, metadata=_NO_METADATA)
        canvas.savefig(file.with_suffix(".png"))
    return _for_page(file.read_text(encoding="utf-8"), figure)


def write_panels(figures: Sequence[Figure], path: Path) -> None:
    """Write several figures side by side into one file, with one legend; the file's suffix chooses the format."""
    with _style(path.stem):
        _canvas(figures).savefig(path)


@contextmanager
def _style(name: str) -> Iterator[None]:
    with mpl.rc_context({**_STYLE, "svg.hashsalt": name}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)  # the fonts of the page may have it
        yield


def _canvas(figures: Sequence[Figure]) -> Canvas:
    """Draw figures side by side, with a legend below that does not shrink them."""
    series = list(dict.fromkeys(one for figure in figures for one in figure.legend))
    labels = [_wrapped(one.name, 50) for one in series]
    width, height = sum(figure.size[0] for figure in figures), max(figure.size[1] for figure in figures)
    if labels:
        height += 0.1 + 0.17 * sum(label.count("\n") + 1 for label in labels)
    canvas = Canvas(figsize=(width, height), layout="constrained")
    canvas.patch.set_gid(_BACKGROUND)
    for axes, figure in zip(canvas.subplots(1, len(figures), squeeze=False)[0], figures, strict=True):
        axes.set_title(_wrapped(figure.title, 12 * int(figure.size[0])))
        figure.draw(axes)
    if labels:
        handles = [Line2D([], [], color=one.colour, linestyle=one.dash) for one in series]
        canvas.legend(handles, labels, loc="outside lower left").set_gid(_LEGEND)
    canvas.draw_without_rendering()
    canvas.set_layout_engine("none")  # keep the layout, which takes longer than drawing
    return canvas


def _wrapped(text: str, width: int) -> str:
    return "\n".join(textwrap.wrap(printable(text), width)) or "–"


def _for_page(svg: str, figure: Figure) -> str:
    """Turn an SVG file of matplotlib into an element of the page.

    Only markup is changed: matplotlib escapes `<` and `>` in text and attributes, so `(?=[^<>]*>)` holds inside of tags
    only.
    """
    content = re.sub(r"\A.*?<svg[^>]*>|<style.*?</style>|</svg>\s*\Z", "", svg, flags=re.DOTALL)
    content = _FILE_ONLY.sub("", content)  # matplotlib indents a group and its end alike
    content = re.sub(r'<g id="(series-\d+)"', r'<g class="\1"', content)
    content = re.sub(r'<g id="[^"]*"', "<g", content)  # matplotlib counts them from 1 in each figure
    for colour, variable in COLOURS.items():
        content = re.sub(rf"{colour}(?=[^<>]*>)", f"var(--{variable})", content)
    content = _COORDINATES.sub(_rounded, content)
    width, height = (72 * inches for inches in figure.size)
    label = escape(f"{figure.title}. {figure.alt}")
    return f'<svg viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{label}">{content}</svg>'


def _rounded(attribute: re.Match[str]) -> str:
    """Round the coordinates of an attribute to tenths of a point, a seventh of a pixel, which halves the page."""
    return _LONG_NUMBER.sub(lambda number: f"{float(number[0]):.1f}", attribute[0])
