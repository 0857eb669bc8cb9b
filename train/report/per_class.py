"""Figures and tables of single classes: the gain of each class, and confusions between classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm

from bmlpipe.train.report.figure import Figure, printable, slug
from bmlpipe.train.report.series import INK, Series
from bmlpipe.train.report.tables import Table
from bmlpipe.train.runs.journal_reader import Values

#: Maximum number of classes that a figure names. With more classes the bars show the first and the last of the order.
NAMED = 40

_ANNOTATED = 12  # maximum number of classes for which a confusion matrix prints the value of each cell


def gains_figure(series: Series, reference: str, classes: Sequence[str], gains: Values) -> Figure:
    """Draw the gain in recall of each class as sorted bars; of many classes, those that gain and lose most.

    Args:
        series: Experiment.
        reference: Name of the experiment that it is compared with.
        classes: Names of the K classes.
        gains: Gains in percentage points, (K,); classes with NaN (without a sample) are left out.
    """
    order = [int(i) for i in _order(gains) if np.isfinite(gains[i])]
    shown = order if len(order) <= NAMED else order[: NAMED // 2] + order[-NAMED // 2 :]
    left_out = len(order) - len(shown)

    def draw(axes: Axes) -> None:
        positions = np.arange(len(shown)) + np.where(np.arange(len(shown)) >= NAMED // 2, 1, 0) * (left_out > 0)
        values = gains[shown]
        axes.barh(positions, values, color=series.colour, height=0.72)
        axes.set_ylim(-0.6, positions.max(initial=0) + 0.6)
        if not np.abs(values).max(initial=0) > 1:
            axes.set_xlim(-1, 1)
        axes.set_yticks(positions, [_short(classes[i]) for i in shown])
        axes.tick_params(axis="y", length=0, labelsize=7.5)
        axes.invert_yaxis()
        axes.axvline(0, color=INK, linewidth=0.8)
        axes.grid(axis="y", visible=False)
        axes.set_xlabel("gain in recall, percentage points")
        if left_out:
            axes.text(0, NAMED // 2, f"  {left_out} classes not shown", fontsize=7.5, va="center")

    up, down = int((gains > 0).sum()), int((gains < 0).sum())
    best, worst = (f"{classes[i]} by {gains[i]:+.1f} points" for i in (order[0], order[-1])) if order else ("–", "–")
    alt = f"{up} classes gain and {down} lose against {reference}; largest gain: {best}, smallest gain: {worst}"
    title = f"{series.name} against {reference}"
    return Figure(f"gain-{series.index}-{slug(series.name)}", title, alt, draw, (), (4.0, 0.9 + 0.17 * len(shown)))


def gains_table(
    series: Series, reference: str, classes: Sequence[str], own: dict[str, Values], theirs: dict[str, Values]
) -> Table:
    """List all classes, sorted by their gain in recall.

    Args:
        series: Experiment.
        reference: Name of the experiment that it is compared with.
        classes: Names of the K classes.
        own: Measure → values of the experiment as fractions, (K,).
        theirs: Measure → values of the reference as fractions, (K,).
    """
    measures = [m for m in ("recall", "precision", "f1", "ap") if m in own and m in theirs]
    header = ["class", "samples"]
    for measure in measures:
        header += [f"{measure} of the reference, %", f"{measure}, %", f"{measure} gain, points"]
    support = own.get("support")
    rows = []
    for i in _order(100 * (own["recall"] - theirs["recall"])):
        cells = [classes[i], "-" if support is None else f"{support[i]:.0f}"]
        for measure in measures:
            before, after = theirs[measure][i], own[measure][i]
            cells += [_percent(before), _percent(after), _percent(after - before, "+.1f")]
        rows.append(cells)
    caption = f"{series.name} against {reference}, class by class: means over seeds, sorted by the gain in recall."
    return Table(f"gain-{series.index}-{slug(series.name)}", caption, header, rows)


def _order(gains: Values) -> npt.NDArray[np.intp]:
    """Sort classes by gain, highest first; gains that are equal but for rounding keep the order of the classes."""
    return np.argsort(-gains.round(6), kind="stable")


def _percent(value: float, form: str = ".1f") -> str:
    return format(100 * value, form) if np.isfinite(value) else "-"


def confusion_figure(series: Series, branch: str, title: str, classes: Sequence[str], counts: Values) -> Figure:
    """Draw a confusion matrix in % of the true class; classes are named if there are at most `NAMED`.

    Args:
        series: Experiment.
        branch: Branch that predicted.
        title: Title.
        classes: Names of the K classes.
        counts: Counts, (K, K); rows are the true classes.
    """
    totals = counts.sum(axis=1, keepdims=True)
    shares = np.divide(100 * counts, totals, out=np.zeros_like(counts), where=totals > 0)
    size = len(classes)

    def draw(axes: Axes) -> None:
        norm = PowerNorm(0.5, 0, 100)
        image = axes.imshow(shares, cmap="cividis", norm=norm, interpolation="none", aspect="equal")
        bar = axes.figure.colorbar(image, ax=axes, shrink=0.8, pad=0.02, ticks=[0, 1, 5, 10, 25, 50, 100])
        bar.set_label("part of the true class, %")
        bar.outline.set_visible(False)
        axes.grid(visible=False)
        axes.spines[:].set_visible(False)
        axes.set(xlabel="predicted", ylabel="true")
        if size <= NAMED:
            names = [_short(name, 18) for name in classes]
            look: dict[str, Any] = {"fontsize": 8.0 if size <= _ANNOTATED else 6.5}
            axes.set_xticks(range(size), names, rotation=90 if max(map(len, names), default=0) > 2 else 0, **look)
            axes.set_yticks(range(size), names, **look)
        else:
            axes.set(xticks=[], yticks=[], xlabel=f"predicted, {size} classes", ylabel="true, in the same order")
        axes.tick_params(length=0)
        for (row, column), share in np.ndenumerate(shares) if size <= _ANNOTATED else ():
            colour = "#ffffff" if share < 35 else "#000000"
            axes.text(column, row, f"{share:.0f}", ha="center", va="center", fontsize=7, color=colour)

    right = 100 * np.trace(counts) / max(1.0, counts.sum())
    alt = f"Confusion matrix of {size} classes: {right:.1f} % of {counts.sum():.0f} predictions are right"
    inches = (6.8, 6.0) if _ANNOTATED < size <= NAMED else (4.0, 3.4)
    return Figure(f"confusion-{series.index}-{slug(series.name)}-{slug(branch)}", title, alt, draw, (), inches)


def confusion_table(figure: Figure, classes: Sequence[str], counts: Values) -> Table:
    """List the counts of a confusion matrix, under the name and title of its figure."""
    rows = [[name, *(f"{count:.0f}" for count in line)] for name, line in zip(classes, counts, strict=True)]
    return Table(figure.name, figure.title, ["true \\ predicted", *classes], rows)


def _short(name: str, longest: int = 30) -> str:
    """Shorten a name to its beginning and its end."""
    name, end = printable(name), longest // 3
    return name if len(name) <= longest else f"{name[: longest - end - 1]}…{name[-end:]}"
