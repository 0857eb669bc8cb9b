"""The look of an experiment in every figure: colour, line style and marker."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

#: Colour in the files → CSS variable of the page. The series have Okabe and Ito's colour-blind-safe palette, darkened
#: to a contrast of at least 3 on white.
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


@dataclass(frozen=True)
class Series:
    """An experiment and its look in every figure; 28 series have different pairs of colour and line style.

    Attributes:
        index: Position of the experiment, from 0.
        name: Name of the experiment.
    """

    index: int
    name: str

    @property
    def colour(self) -> str:
        """Colour in the files."""
        return _SERIES[self.index % len(_SERIES)]

    @property
    def variable(self) -> str:
        """CSS variable of the colour on the page."""
        return COLOURS[self.colour]

    @property
    def dash(self) -> Any:
        """Line style of matplotlib."""
        return _DASHES[self.index % len(_DASHES)]

    @property
    def dasharray(self) -> str:
        """Line style of SVG."""
        return "none" if self.dash == "solid" else " ".join(f"{1.5 * part:g}" for part in self.dash[1])

    @property
    def marker(self) -> str:
        """Marker of matplotlib."""
        return _MARKERS[self.index % len(_MARKERS)]

    @property
    def gid(self) -> str:
        """Group id of everything that is drawn for the experiment; on the page it becomes a CSS class."""
        return f"series-{self.index}"

    @property
    def line(self) -> dict[str, Any]:
        """Arguments of `Axes.plot`."""
        return {"color": self.colour, "linestyle": self.dash, "gid": self.gid}
