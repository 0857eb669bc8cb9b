"""Figures: one look for all, as SVG that takes the page's colours, and as PNG and SVG files with a legend."""

from __future__ import annotations

import io
import re
import textwrap
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D

#: Colour in the files → name of the page's variable. Series: Okabe and Ito's colour-blind-safe palette, each dark
#: enough for a contrast of 3 on white.
COLOURS = {
    "#0072b2": "series-0",
    "#b87a00": "series-1",
    "#00875f": "series-2",
    "#d55e00": "series-3",
    "#b4588c": "series-4",
    "#2e8bc0": "series-5",
    "#1b1b1b": "ink",
    "#6b6b6b": "axis",
    "#dddddd": "grid",
}
INK, AXIS, GRID = (next(colour for colour, name in COLOURS.items() if name == one) for one in ("ink", "axis", "grid"))

_SERIES = [colour for colour, name in COLOURS.items() if name.startswith("series")] + [INK]
_DASHES: tuple[Any, ...] = ("solid", (0, (6, 2)), (0, (6, 2, 1.5, 2)), (0, (1.5, 1.8)))
_MARKERS = "osD^vPX"

_STYLE: Any = {
    "text.parse_math": False,  # names may hold dollar signs
    "svg.fonttype": "none",
    "svg.hashsalt": "bmlpipe",
    "font.size": 9,
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
}

_SVG, _LINK = "{http://www.w3.org/2000/svg}", "{http://www.w3.org/1999/xlink}href"
_BACKGROUND, _LEGEND = "background", "legend"  # parts that only the files have
_NUMBER = re.compile(r"-?\d+\.\d{2,}")  # a tenth of a unit is a seventh of a pixel
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


@dataclass(frozen=True)
class Series:
    """How an experiment looks in every figure; 28 differ in colour and dashes together.

    Attributes:
        index: Its place among the experiments.
        name: Of the experiment.
    """

    index: int
    name: str

    @property
    def colour(self) -> str:
        """As in the files."""
        return _SERIES[self.index % len(_SERIES)]

    @property
    def variable(self) -> str:
        """The page's name of the colour."""
        return COLOURS[self.colour]

    @property
    def dash(self) -> Any:
        """Matplotlib's line style."""
        return _DASHES[self.index % len(_DASHES)]

    @property
    def dasharray(self) -> str:
        """SVG's line style."""
        return "none" if self.dash == "solid" else " ".join(f"{1.5 * part:g}" for part in self.dash[1])

    @property
    def marker(self) -> str:
        """Matplotlib's."""
        return _MARKERS[self.index % len(_MARKERS)]

    @property
    def look(self) -> dict[str, Any]:
        """Arguments of `Axes.plot`."""
        return {"color": self.colour, "linestyle": self.dash, "gid": f"series-{self.index}"}


@dataclass(frozen=True)
class Figure:
    """A figure of the page.

    Attributes:
        name: Of its files, unique on the page.
        title: What is drawn.
        alt: What it shows, in words, for those who do not see it.
        draw: Draws into the axes.
        legend: Series that appear.
        size: Inches; the page scales it.
    """

    name: str
    title: str
    alt: str
    draw: Callable[[Axes], None]
    legend: Sequence[Series] = ()
    size: tuple[float, float] = (4.0, 2.5)

    @property
    def wide(self) -> bool:
        """Whether it needs more than a column of the page."""
        return self.size[0] > 5


def plain(text: str) -> str:
    """Text without characters that XML or a line cannot hold."""
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)


def slug(text: str) -> str:
    """Letters, digits and dashes, for file names."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:40]


def render(figure: Figure, folder: Path) -> str:
    """Write a figure's PNG and SVG files, with title and legend.

    Args:
        figure: What to draw.
        folder: Where the files go, with the figure's name.

    Returns:
        The figure as SVG for the page: colours and fonts are the page's, ids are unique on it.
    """
    with mpl.rc_context(_STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)  # the page's fonts may have it
        canvas = Canvas(figsize=figure.size, layout="constrained")
        axes = canvas.add_subplot()
        axes.set_title(_wrapped(figure.title, 12 * int(figure.size[0])))
        figure.draw(axes)
        canvas.draw_without_rendering()
        canvas.set_layout_engine("none")  # what it found stays
        canvas.patch.set_gid(_BACKGROUND)
        height = canvas.get_size_inches()[1]
        if figure.legend:
            _add_legend(canvas, figure.legend)
        file = io.BytesIO()
        canvas.savefig(file, format="svg", metadata={"Date": None})
        canvas.savefig(folder / f"{figure.name}.png", dpi=160)
    (folder / f"{figure.name}.svg").write_bytes(file.getvalue())
    return _for_page(file.getvalue(), figure, 72 * height)


def _add_legend(canvas: Canvas, legend: Sequence[Series]) -> None:
    """Make room below the axes, and name the series there."""
    labels = [_wrapped(one.name, 50) for one in legend]
    width, height = canvas.get_size_inches()
    extra = 0.1 + 0.17 * sum(label.count("\n") + 1 for label in labels)
    for axes in canvas.axes:
        left, bottom, across, up = axes.get_position().bounds
        share = height / (height + extra)
        axes.set_position((left, 1 - (1 - bottom) * share, across, up * share))
    canvas.set_size_inches(width, height + extra)
    handles = [Line2D([], [], color=one.colour, linestyle=one.dash) for one in legend]
    below = canvas.legend(handles, labels, loc="lower left", fontsize=8.5, borderpad=0.2, labelspacing=0.25)
    below.set_gid(_LEGEND)


def _wrapped(text: str, width: int) -> str:
    return "\n".join(textwrap.wrap(plain(text), width)) or "–"


def _for_page(svg: bytes, figure: Figure, height: float) -> str:
    """The SVG element, `height` units from the top of it, without what belongs to a file of its own."""
    root = ET.fromstring(svg)  # noqa: S314 - matplotlib wrote it a moment ago
    width = root.attrib["viewBox"].split()[2]
    root.attrib.clear()
    root.attrib |= {"viewBox": f"0 0 {width} {height:g}", "role": "img", "aria-label": f"{figure.title}. {figure.alt}"}
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag in (f"{_SVG}metadata", f"{_SVG}style") or child.get("id") in (_BACKGROUND, _LEGEND):
                parent.remove(child)
    used = {element.attrib[_LINK][1:] for element in root.iter() if _LINK in element.attrib}
    for element in root.iter():
        _restyle(element, figure.name, used)
    ET.register_namespace("", _SVG[1:-1])
    ET.register_namespace("xlink", _LINK[1:].partition("}")[0])
    return ET.tostring(root, encoding="unicode")


def _restyle(element: ET.Element, name: str, used: set[str]) -> None:
    """Bring an element's ids, references, class and colours into the page."""
    identity = element.attrib.pop("id", "")
    if identity.startswith("series-"):
        element.set("class", identity)
    elif identity in used or element.tag == f"{_SVG}clipPath":
        element.set("id", f"{name}-{identity}")
    if element.get(_LINK, "").startswith("#"):
        element.set(_LINK, f"#{name}-{element.attrib[_LINK][1:]}")
    if "clip-path" in element.attrib:
        element.set("clip-path", element.attrib["clip-path"].replace("url(#", f"url(#{name}-"))
    for place in ("d", "x", "y"):
        if place in element.attrib:
            element.set(place, _NUMBER.sub(lambda found: f"{float(found[0]):.1f}", element.attrib[place]))
    if style := element.get("style"):
        style = re.sub(r"font-family: [^;]*;? ?", "", style)
        element.set("style", re.sub(r"#[0-9a-f]{6}\b", _variable, style))


def _variable(found: re.Match[str]) -> str:
    return f"var(--{COLOURS[found[0]]})" if found[0] in COLOURS else found[0]
