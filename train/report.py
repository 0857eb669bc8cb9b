"""Runs side by side: a table (mean ± deviation over seeds) and pictures, from the runs' own files."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from bmlpipe.train.checkpoint import FREE
from bmlpipe.train.config import ConfigError
from bmlpipe.train.journal import METRICS_FILE, STEPS_FILE, Row, read_rows

#: Options that do not make two runs different experiments.
_ASIDE = FREE - {"epochs"} | {"seed"}

#: Options that mean something under one modulation only.
_OF_MODULATION = {"q_base": "opm", "lam": "opm", "alpha": "ogm", "noise": "ogm"}


@dataclass(frozen=True)
class Run:
    """What a run left.

    Attributes:
        folder: Its folder.
        config: Its resolved options.
        steps: Rows of `steps.jsonl`.
        metrics: Rows of `metrics.jsonl`.
    """

    folder: Path
    config: Mapping[str, Any]
    steps: Sequence[Row]
    metrics: Sequence[Row]

    @property
    def final(self) -> Row | None:
        """The test row; without a test split, validation's best; None for a run without any."""
        tests = [row for row in self.metrics if row["split"] == "test"]
        return tests[-1] if tests else max(self.metrics, key=lambda row: float(row["accuracy"]), default=None)

    def halfway(self, column: str) -> float | None:
        """Mean of a journal column over the epoch in the middle of the run."""
        middle = int(self.config["epochs"]) // 2
        values = [row[column] for row in self.steps if row["epoch"] == middle and row.get(column) is not None]
        return statistics.fmean(values) if values else None

    @property
    def step_seconds(self) -> float | None:
        """Median time of a step, waiting for data left out."""
        times = [row["step_s"] - row["data_s"] for row in self.steps]
        return statistics.median(times) if times else None


def read_run(folder: Path) -> Run:
    """Read a run's files; one that is still going on is read as far as it is.

    Raises:
        ConfigError: The folder holds no run.
    """
    try:
        config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
        return Run(folder, config, read_rows(folder / STEPS_FILE), read_rows(folder / METRICS_FILE))
    except FileNotFoundError as error:
        raise ConfigError(
            f"{folder} holds no run ({error.filename} is missing): name folders that train/run.py wrote"
        ) from error


def experiments(runs: Iterable[Run]) -> dict[str, list[Run]]:
    """Group runs that differ by seed only; each group is named by the options in which the groups differ."""
    groups: dict[tuple[tuple[str, Any], ...], list[Run]] = {}
    for run in runs:
        groups.setdefault(tuple(_options(run.config)), []).append(run)
    options = [dict(key) for key in groups]
    names = dict.fromkeys(name for option in options for name in option)
    telling = [name for name in names if len({option[name] for option in options if name in option}) > 1]
    titles = [", ".join(_shown(name, option[name]) for name in telling if name in option) for option in options]
    return {title or "all": group for title, group in zip(titles, groups.values(), strict=True)}


def _options(config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in config.items():
        used = name not in _ASIDE and _OF_MODULATION.get(name, "") in str(config["modulation"])
        if used:
            yield name, tuple(value) if isinstance(value, list) else value


def _shown(name: str, value: Any) -> str:
    if isinstance(value, tuple):
        return "+".join(value)
    return value if isinstance(value, str) else f"{name} {value}"


def table(runs: Iterable[Run]) -> tuple[list[str], list[list[str]]]:
    """The headline table.

    Returns:
        Column titles and rows of text; accuracies and mAP in %, mean ± standard deviation over seeds; step time
        over that of the same training without modulation, which means something only if the machine was as busy.
    """
    groups = experiments(runs)
    modalities = list(dict.fromkeys(m for group in groups.values() for m in group[0].config["modalities"]))
    titles = ["run", "seeds", "split", "accuracy", "mAP", *(f"{m} branch" for m in modalities)]
    titles += [*(f"ρ {m} halfway" for m in modalities), "step time"]
    plain = {_unmodulated(group[0]): group for group in groups.values() if group[0].config["modulation"] == "none"}
    rows = []
    for name, group in groups.items():
        finals = [final for run in group if (final := run.final) is not None]
        columns = ("accuracy", "mAP", *(f"accuracy/{m}" for m in modalities))
        shares = [[100 * final[column] for final in finals if column in final] for column in columns]
        ratios = [[value for run in group if (value := run.halfway(f"rho/{m}")) is not None] for m in modalities]
        split = finals[0]["split"] if finals else "-"
        cells = [*(_spread(values, ".1f") for values in shares), *(_spread(values, ".2f") for values in ratios)]
        rows.append([name, str(len(finals)), split, *cells, _slower(group, plain.get(_unmodulated(group[0])))])
    return titles, rows


def _unmodulated(run: Run) -> tuple[tuple[str, Any], ...]:
    """What a run shares with the same one without modulation."""
    return tuple((name, value) for name, value in _options(run.config) if name not in {"modulation", *_OF_MODULATION})


def _slower(group: Sequence[Run], plain: Sequence[Run] | None) -> str:
    """Median step time over that of the runs without modulation."""
    own, theirs = ([run.step_seconds for run in runs if run.step_seconds] for runs in (group, plain or ()))
    return f"{statistics.median(own) / statistics.median(theirs):.2f}" if own and theirs else "-"


def _spread(values: Sequence[float], form: str) -> str:
    if not values:
        return "-"
    mean = format(statistics.fmean(values), form)
    return mean if len(values) == 1 else f"{mean} ± {format(statistics.stdev(values), form)}"


def markdown(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """The table as Markdown."""
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


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
    modalities = list(dict.fromkeys(m for group in groups.values() for m in group[0].config["modalities"]))
    panels = ["rho", "accuracy", *(f"accuracy/{m}" for m in modalities)]
    figure, axes = plt.subplots(1, len(panels), figsize=(4.2 * len(panels), 3.6), layout="constrained")
    for number, (name, group) in enumerate(groups.items()):
        for run in group:
            style = {"color": f"C{number}", "label": name if run is group[0] else None}
            _draw_ratio(axes[0], run, style)
            for axis, column in zip(axes[1:], panels[1:]):
                points = [
                    (row["epoch"] + 1, 100 * row[column])
                    for row in run.metrics
                    if row["split"] == "val" and column in row
                ]
                axis.plot(*zip(*points), **style) if points else None
    axes[0].axhline(1, color="grey", linewidth=0.8, linestyle=":")
    axes[0].set(title=f"ρ of {modalities[0]}", xlabel="step", yscale="log")
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
    """ρ of the first modality: every step faintly, and a running mean over 1/40 of the run."""
    column = f"rho/{run.config['modalities'][0]}"
    points = [(row["step"], row[column]) for row in run.steps if row.get(column)]
    if not points:
        return
    steps, values = zip(*points)
    width = max(1, len(values) // 40)
    means = [statistics.fmean(values[max(0, i - width) : i + width + 1]) for i in range(len(values))]
    axis.plot(steps, values, color=style["color"], alpha=0.2, linewidth=0.6)
    axis.plot(steps, means, **style)
