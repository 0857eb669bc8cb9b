"""Figures of curves: over steps, over epochs, and over the fraction of samples that lack a modality."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator

from bmlpipe.train.report.figure import Figure, slug
from bmlpipe.train.report.read_evaluation import MissingRow, Probe, RunEvaluations
from bmlpipe.train.report.series import AXIS, Series
from bmlpipe.train.runs.journal_reader import Values
from bmlpipe.train.runs.run_reader import Run, number
from bmlpipe.train.runs.traces import Trace, merge_traces

#: Points of all lines of a figure together; fewest and most points of one line.
_POINTS, _FEWEST, _MOST = 3072, 32, 128

#: x, mean and standard deviation, (N,) each.
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
    """Plot a column of the step journals: the mean as a line, in a band from the lowest to the highest value.

    Args:
        column: Column of `Run.traces`.
        title: Title.
        groups: Experiment → its runs.
        neutral: Value that means "no effect", drawn as a dotted line.
        log: Use a logarithmic axis if all values are above 0.
        percent: The values are fractions; show them in %.

    Returns:
        The figure and the number of steps per point; None if no run has the column.
    """
    points = max(_FEWEST, min(_MOST, _POINTS // max(1, len(groups))))
    found: dict[Series, Trace] = {}
    for series, runs in groups.items():
        trace = merge_traces([run.traces[column] for run in runs if column in run.traces], points)
        if trace is not None:
            found[series] = trace
    if not found:
        return None
    width = max(trace.width for trace in found.values())
    found = {series: trace.coarsened(width) for series, trace in found.items()}
    factor = 100 if percent else 1

    def draw(axes: Axes) -> None:
        for series, trace in found.items():
            low, high = (factor * values for values in trace.ranges)
            if (low < high).any():
                axes.fill_between(trace.steps, low, high, **_band(series))
            axes.plot(trace.steps, factor * trace.means, **_marker(trace.means, series), **series.line)
        if neutral is not None:
            axes.axhline(neutral, color=AXIS, linewidth=1, linestyle=(0, (1, 2)))
        if log and all(np.nanmin(trace.ranges[0]) > 0 for trace in found.values()):
            _use_log_scale(axes)
        axes.set_xlabel("step")
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))

    ends = ((series, factor * trace.means[np.isfinite(trace.means)]) for series, trace in found.items())
    alt = "; ".join(f"{series.name}: from {values[0]:.3g} to {values[-1]:.3g}" for series, values in ends)
    return Figure(slug(f"{column}-steps"), title, f"Over the steps, {alt}", draw, list(found)), width


def balanced_ratio(runs: Iterable[Run]) -> float:
    """Return the ρ of balanced modalities: 1, or 0 if any run uses the difference form."""
    return 0.0 if any(run.config.get("discrepancy") == "difference" for run in runs) else 1.0


def _band(series: Series) -> dict[str, Any]:
    """Return the arguments of `Axes.fill_between`."""
    return {"color": series.colour, "alpha": 0.16, "linewidth": 0, "gid": series.gid}


def _marker(values: Values, series: Series) -> dict[str, Any]:
    """Return a marker for a single point, which makes no line."""
    return {"marker": series.marker} if np.isfinite(values).sum() == 1 else {}


def _use_log_scale(axes: Axes) -> None:
    axes.set_yscale("log")
    form = FuncFormatter(lambda value, _: f"{value:g}")
    axes.yaxis.set_major_formatter(form)
    low, high = axes.get_ylim()
    axes.yaxis.set_minor_formatter(form if high / low < 10 else FuncFormatter(lambda *_: ""))


def over_epochs(
    column: str, title: str, groups: Mapping[Series, Sequence[Run]], *, percent: bool = True
) -> Figure | None:
    """Plot a column of the validation rows: mean and standard deviation over seeds; None if no run has it.

    Args:
        column: Column of `Run.metrics`.
        title: Title.
        groups: Experiment → its runs.
        percent: The values are fractions; show them in %.
    """
    factor = 100 if percent else 1

    def points(run: Run) -> Iterable[tuple[float, float]]:
        rows = (row for row in run.metrics if row.get("split") == "val")
        return ((number(row, "epoch"), factor * number(row, column)) for row in rows)

    curves = {series: _curve(point for run in runs for point in points(run)) for series, runs in groups.items()}
    return _curves_figure(slug(f"{column}-epochs"), title, curves, "epoch", percent=percent)


def probe_curves(
    modality: str, split: str, title: str, found: Mapping[Series, Sequence[RunEvaluations]]
) -> Figure | None:
    """Plot the accuracy of an encoder's linear probes over the epochs of the checkpoints; None without any."""

    def points(probes: Sequence[Probe]) -> Iterable[tuple[float, float]]:
        own = {one.epoch: 100 * getattr(one, split) for one in probes if one.modality == modality}
        return own.items()  # best, last and epoch-003 may be the same model, which counts once

    curves = {s: _curve(point for run in runs for point in points(run.probes)) for s, runs in found.items()}
    return _curves_figure(slug(f"probe-{modality}-{split}"), title, curves, "epoch")


def missing_curves(
    lacking: frozenset[str], metric: str, title: str, found: Mapping[Series, Sequence[Sequence[MissingRow]]]
) -> Figure | None:
    """Plot a metric over the rate at which modalities are missing; None without any.

    Args:
        lacking: Modalities that are missing at the same rate, while no other one is.
        metric: Metric.
        title: Title.
        found: Experiment → rows of each of its runs.
    """

    def points(rows: Sequence[MissingRow]) -> Iterable[tuple[float, float]]:
        for row in rows:
            rates = {m: rate for m, rate in row.rates.items() if rate > 0}
            if not rates or (set(rates) == lacking and len(set(rates.values())) == 1):
                rate = next(iter(rates.values()), 0.0)
                yield from ((100 * rate, 100 * value) for value in row.metrics.get(metric, ()))

    curves = {s: _curve(point for rows in runs for point in points(rows)) for s, runs in found.items()}
    return _curves_figure(slug("missing-" + "-".join(sorted(lacking))), title, curves, "samples that lack it, %")


def _curve(points: Iterable[tuple[float, float]]) -> Curve:
    """Compute mean and standard deviation of the finite values at each x."""
    found: dict[float, list[float]] = {}
    for x, y in points:
        if np.isfinite(x) and np.isfinite(y):
            found.setdefault(x, []).append(y)
    at = sorted(found)
    means = [float(np.mean(found[x])) for x in at]
    deviations = [float(np.std(found[x], ddof=1)) if len(found[x]) > 1 else 0.0 for x in at]
    return np.array(at), np.array(means), np.array(deviations)


def _curves_figure(
    name: str, title: str, curves: Mapping[Series, Curve], label: str, *, percent: bool = True
) -> Figure | None:
    """Plot curves with bands of one standard deviation; None if all are empty."""
    drawn = {series: curve for series, curve in curves.items() if len(curve[0])}
    if not drawn:
        return None

    def draw(axes: Axes) -> None:
        for series, (x, mean, deviation) in drawn.items():
            if deviation.any():
                axes.fill_between(x, mean - deviation, mean + deviation, **_band(series))
            axes.plot(x, mean, marker=series.marker, **series.line)
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
