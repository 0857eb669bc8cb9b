"""One picture of a comparison: ρ over the steps, accuracies over the epochs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from bmlpipe.train.report.experiments import experiments
from bmlpipe.train.report.tables import modalities_of
from bmlpipe.train.runs.read_run import Run, number
from bmlpipe.train.runs.traces import together


def picture(runs: Iterable[Run], path: Path) -> None:
    """Draw ρ over the steps, and the accuracies of joint prediction and branches over the epochs (validation).

    Args:
        runs: Runs; those that differ by seed only share a colour.
        path: File to write; its ending chooses the format (png, svg, pdf).
    """
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    groups = experiments(runs)
    modalities = modalities_of(group[0] for group in groups.values())
    panels = ["rho", "accuracy", *(f"accuracy/{m}" for m in modalities)]
    with mpl.rc_context({"text.parse_math": False}):
        figure, axes = plt.subplots(1, len(panels), figsize=(4.2 * len(panels), 3.6), layout="constrained")
        for index, (name, group) in enumerate(groups.items()):
            for run in group:
                style = {"color": f"C{index}", "label": name if run is group[0] else None}
                _draw_ratio(axes[0], run, style)
                for axis, column in zip(axes[1:], panels[1:]):
                    points = [
                        (number(row, "epoch") + 1, 100 * number(row, column))
                        for row in run.metrics
                        if row.get("split") == "val" and column in row
                    ]
                    axis.plot(*zip(*points), **style) if points else None
        axes[0].axhline(1, color="grey", linewidth=0.8, linestyle=":")
        axes[0].set(title=f"ρ of {modalities[0]}" if modalities else "ρ", xlabel="step", yscale="log")
        for which in (axes[0].yaxis.set_major_formatter, axes[0].yaxis.set_minor_formatter):
            which("{x:g}")
        for axis, column in zip(axes[1:], panels[1:]):
            what = "both modalities" if column == "accuracy" else f"{column.partition('/')[2]} branch alone"
            axis.set(title=what, xlabel="epoch", ylabel="validation accuracy, %", ylim=(0, 102))
            axis.xaxis.get_major_locator().set_params(integer=True)
        axes[1].legend(frameon=False, fontsize="small")
        for axis in axes:
            axis.spines[["top", "right"]].set_visible(False)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=130)
        plt.close(figure)


def _draw_ratio(axis: Any, run: Run, style: Mapping[str, Any]) -> None:
    """ρ of the first modality: lowest to highest faintly, and means over some sixtieth of the run."""
    trace = run.traces.get(f"rho/{run.modalities[0]}") if run.modalities else None
    means = together([trace], 64) if trace else None
    if trace is None or means is None:
        return
    axis.fill_between(trace.steps, *trace.ranges, color=style["color"], alpha=0.2, linewidth=0.6)
    axis.plot(means.steps, means.means, **style)
