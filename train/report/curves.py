"""Figures of what changes: over steps, over epochs, over the share of samples that lack a modality."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator

from bmlpipe.train.report.evaluations import Evaluated, Missing, Probe
from bmlpipe.train.report.plot import AXIS, Figure, Series, slug
from bmlpipe.train.runs.journal_reader import Values
from bmlpipe.train.runs.read_run import Run, number
from bmlpipe.train.runs.traces import Trace, together

#: Points of all experiments' lines in one figure together, and of one line at least and at most.
_POINTS, _FEWEST, _MOST = 3072, 32, 128

#: x, mean, deviation.
Curve = tuple[Values, Values, Values]


def over_steps(
    column: str,
    title: str,
    groups: Mapping[Series, Sequence[Run]],
    *,
    neutral: float | None = None,
    log: bool = False,
    percent: bool = False,
) -> tuple[Figure, int] | None:
    """A column of the journals: a line of means, in a band from the lowest to the highest value.

    Args:
        column: Of `Run.traces`.
        title: What it is.
        groups: Experiment → its runs.
        neutral: Value with a meaning of its own, drawn as a dotted line.
        log: Logarithmic axis, where all values are above 0.
        percent: The values are shares, shown in %.

    Returns:
        The figure, and how many steps a point stands for; None where no run has the column.
    """
    points = max(_FEWEST, min(_MOST, _POINTS // max(1, len(groups))))
    found: dict[Series, Trace] = {}
    for series, runs in groups.items():
        trace = together([run.traces[column] for run in runs if column in run.traces], points)
        if trace is not None:
            found[series] = trace
    if not found:
        return None
    width = max(trace.width for trace in found.values())
    found = {series: trace.coarser(width) for series, trace in found.items()}
    factor = 100 if percent else 1

    def draw(axes: Axes) -> None:
        for series, trace in found.items():
            low, high = (factor * values for values in trace.ranges)
            if (low < high).any():
                band = axes.fill_between(trace.steps, low, high, color=series.colour, alpha=0.16, linewidth=0)
                band.set_gid(f"series-{series.index}")
            axes.plot(trace.steps, factor * trace.means, **_lone(trace.means, series), **series.look)
        if neutral is not None:
            axes.axhline(neutral, color=AXIS, linewidth=1, linestyle=(0, (1, 2)))
        if log and all(np.nanmin(trace.ranges[0]) > 0 for trace in found.values()):
            _log_scale(axes)
        axes.set_xlabel("step")
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))

    ends = ((series, factor * trace.means[np.isfinite(trace.means)]) for series, trace in found.items())
    alt = "; ".join(f"{series.name}: from {values[0]:.3g} to {values[-1]:.3g}" for series, values in ends)
    return Figure(slug(f"{column}-steps"), title, f"Over the steps, {alt}", draw, list(found)), width


def _lone(values: Values, series: Series) -> dict[str, Any]:
    """A marker for what is no line: a single point."""
    return {"marker": series.marker} if np.isfinite(values).sum() == 1 else {}


def _log_scale(axes: Axes) -> None:
    axes.set_yscale("log")
    form = FuncFormatter(lambda value, _: f"{value:g}")
    axes.yaxis.set_major_formatter(form)
    low, high = axes.get_ylim()
    axes.yaxis.set_minor_formatter(form if high / low < 10 else FuncFormatter(lambda *_: ""))


def over_epochs(
    column: str, title: str, groups: Mapping[Series, Sequence[Run]], *, percent: bool = True
) -> Figure | None:
    """A column of the validation rows, mean and deviation over seeds; None where no run has it."""
    factor = 100 if percent else 1

    def points(run: Run) -> Iterable[tuple[float, float]]:
        rows = (row for row in run.metrics if row.get("split") == "val")
        return ((number(row, "epoch") + 1, factor * number(row, column)) for row in rows)

    curves = {series: _curve(point for run in runs for point in points(run)) for series, runs in groups.items()}
    return _curves(slug(f"{column}-epochs"), title, curves, "epoch", percent=percent)


def probe_curves(modality: str, split: str, title: str, probes: Mapping[Series, Sequence[Evaluated]]) -> Figure | None:
    """Accuracy of linear probes of one modality's encoder over the epochs of the checkpoints; None without any."""

    def points(found: Sequence[Probe]) -> Iterable[tuple[float, float]]:
        own = {one.epoch + 1: 100 * getattr(one, split) for one in found if one.modality == modality}
        return own.items()  # best, last and epoch-003 may be the same model: it counts once

    curves = {s: _curve(point for one in seeds for point in points(one.probes)) for s, seeds in probes.items()}
    return _curves(slug(f"probe-{modality}-{split}"), title, curves, "epoch")


def missing_curves(
    lost: frozenset[str], metric: str, title: str, sweeps: Mapping[Series, Sequence[Sequence[Missing]]]
) -> Figure | None:
    """A metric over the rate at which modalities are lost, all of `lost` alike and no other; None without any."""

    def points(sweep: Sequence[Missing]) -> Iterable[tuple[float, float]]:
        for one in sweep:
            rates = {m: rate for m, rate in one.rates.items() if rate > 0}
            if not rates or (set(rates) == lost and len(set(rates.values())) == 1):
                rate = next(iter(rates.values()), 0.0)
                yield from ((100 * rate, 100 * value) for value in one.metrics.get(metric, ()))

    curves = {s: _curve(point for sweep in seeds for point in points(sweep)) for s, seeds in sweeps.items()}
    return _curves(slug("missing-" + "-".join(sorted(lost))), title, curves, "samples without it, %")


def _curve(points: Iterable[tuple[float, float]]) -> Curve:
    """Mean and standard deviation of the finite values at each x."""
    found: dict[float, list[float]] = {}
    for x, y in points:
        if np.isfinite(x) and np.isfinite(y):
            found.setdefault(x, []).append(y)
    at = sorted(found)
    means = [float(np.mean(found[x])) for x in at]
    deviations = [float(np.std(found[x], ddof=1)) if len(found[x]) > 1 else 0.0 for x in at]
    return np.array(at), np.array(means), np.array(deviations)


def _curves(
    name: str, title: str, curves: Mapping[Series, Curve], label: str, *, percent: bool = True
) -> Figure | None:
    drawn = {series: curve for series, curve in curves.items() if len(curve[0])}
    if not drawn:
        return None

    def draw(axes: Axes) -> None:
        for series, (x, mean, deviation) in drawn.items():
            if deviation.any():
                band = axes.fill_between(x, mean - deviation, mean + deviation, color=series.colour, alpha=0.16)
                band.set(gid=f"series-{series.index}", linewidth=0)
            axes.plot(x, mean, marker=series.marker, **series.look)
        if percent:
            low, high = axes.get_ylim()
            axes.set_ylim(max(low, -2), min(high, 102))
        axes.set_xlabel(label)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))

    ends = ((series, x, mean) for series, (x, mean, _) in drawn.items())
    alt = "; ".join(
        f"{series.name}: {mean[0]:.3g} at {x[0]:g}" + (f", {mean[-1]:.3g} at {x[-1]:g}" if len(x) > 1 else "")
        for series, x, mean in ends
    )
    return Figure(name, title, f"Over {label}, {alt}", draw, list(drawn))
