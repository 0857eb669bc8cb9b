"""The tables of the report."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from bmlpipe.train.report.experiments import group_runs, modalities_of, option_differences, references
from bmlpipe.train.report.read_evaluation import MissingRow, Probe, RunEvaluations
from bmlpipe.train.runs.journal_reader import Values
from bmlpipe.train.runs.run_reader import Run, number

Groups = Mapping[str, Sequence[Run]]

_NONE = "-"


@dataclass(frozen=True)
class Table:
    """A table of text.

    Attributes:
        name: Stem of its file name.
        caption: Description of its content.
        header: Titles of the columns.
        rows: Rows of cells; the first cell names the row.
    """

    name: str
    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]


def mean_and_deviation(values: Iterable[float], form: str) -> str:
    """Write the mean ± sample standard deviation of the finite values; a single value has no deviation.

    Examples:
        >>> mean_and_deviation([40, 50], ".1f"), mean_and_deviation([40], ".1f"), mean_and_deviation([], ".1f")
        ('45.0 ± 7.1', '40.0', '-')
    """
    finite = [value for value in values if np.isfinite(value)]
    if not finite:
        return _NONE
    mean = format(statistics.fmean(finite), form)
    return mean if len(finite) == 1 else f"{mean} ± {format(statistics.stdev(finite), form)}"


def results_table(runs: Iterable[Run]) -> Table:
    """Make the table that `bmlpipe report` prints: one row per experiment.

    Accuracy and mAP are means ± standard deviations over the seeds, of the test split if it was evaluated. The step
    time is relative to the same training without modulation; it can be compared only between runs on equally busy
    machines.
    """
    groups = group_runs(runs)
    modalities = modalities_of(group[0] for group in groups.values())
    header = ["run", "seeds", "split", "accuracy, %", "mAP, %", *(f"{m} branch, %" for m in modalities)]
    header += [*(f"ρ {m} halfway" for m in modalities), "step time"]
    compared_with = {name: name for name in groups} | references(groups)
    rows = []
    for name, group in groups.items():
        finals = [final for run in group if (final := run.final) is not None]
        columns = ("accuracy", "mAP", *(f"accuracy/{m}" for m in modalities))
        ratios = [[run.halfway.get(f"rho/{m}", np.nan) for run in group] for m in modalities]
        split = str(finals[0].get("split", _NONE)) if finals else _NONE
        cells = [_percent(number(final, column) for final in finals) for column in columns]
        cells += [mean_and_deviation(values, ".2f") for values in ratios]
        other = groups[compared_with[name]]
        relative = _relative_step_time(group, other) if other[0].modulation == "none" else _NONE
        rows.append([name, str(len(finals)), split, *cells, relative])
    caption = (
        "Accuracy and mAP: mean ± standard deviation over seeds, at the epoch that was best on validation. ρ halfway: "
        "mean over the steps of the epoch in the middle of the run. Step time: relative to the same training without "
        "modulation."
    )
    return Table("headline", caption, header, rows)


def _relative_step_time(group: Sequence[Run], unmodulated: Sequence[Run]) -> str:
    """Divide the median step time of a group by that of the runs without modulation."""
    own, theirs = ([run.step_seconds for run in runs if run.step_seconds] for runs in (group, unmodulated))
    return f"{statistics.median(own) / statistics.median(theirs):.2f}" if own and theirs else _NONE


def _percent(fractions: Iterable[float]) -> str:
    return mean_and_deviation((100 * fraction for fraction in fractions), ".1f")


def _metric(name: str, values: Iterable[float]) -> str:
    """Write a metric in %; the loss as it is."""
    return mean_and_deviation(values, ".3f") if name == "loss" else _percent(values)


def _metric_title(name: str) -> str:
    return name if name == "loss" else f"{name}, %"


def differing_options_table(groups: Groups) -> Table | None:
    """List the options in which the experiments differ; None if there are none."""
    differing, _ = option_differences(groups)
    if not differing:
        return None
    caption = "Options in which the experiments differ."
    rows = [[name, *values] for name, values in differing.items()]
    return Table("options-that-differ", caption, ["option", *groups], rows)


def common_options_table(groups: Groups) -> Table:
    """List the options that all experiments share."""
    _, equal = option_differences(groups)
    caption = "Options that all experiments share, without the seed and those that only say where and how to compute."
    return Table("options-in-common", caption, ["option", "value"], [[*item] for item in equal.items()])


def runs_table(groups: Groups) -> Table:
    """List the runs, with folder, progress and speed."""
    header = ["folder", "experiment", "seed", "state", "epochs", "steps", "samples/s", "waiting for data, %"]
    rows = [
        [
            str(run.folder),
            name,
            run.seed,
            "finished" if run.finished else "not finished",
            f"{run.epochs_done} of {run.config.get('epochs', '?')}",
            str(run.steps_done),
            _NONE if run.samples_per_s is None else f"{run.samples_per_s:.0f}",
            _NONE if run.waiting is None else f"{100 * run.waiting:.1f}",
        ]
        for name, group in groups.items()
        for run in group
    ]
    caption = "All runs. Samples/s: mean over all steps, including the time spent waiting for data."
    return Table("runs", caption, header, rows)


def evaluations_table(found: Mapping[str, Sequence[RunEvaluations]], names: Sequence[str], file: str) -> Table:
    """Make one row per experiment and evaluation, with all metrics.

    Args:
        found: Experiment → evaluations of each of its runs.
        names: Names of the evaluations to show.
        file: Name of the table.
    """
    cells = {
        (experiment, name): [run.splits[name].metrics for run in group if name in run.splits]
        for experiment, group in found.items()
        for name in names
    }
    metrics = dict.fromkeys(metric for own in cells.values() for one in own for metric in one)
    rows = [
        [*key, str(len(own)), *(_metric(metric, [one.get(metric, np.nan) for one in own]) for metric in metrics)]
        for key, own in cells.items()
        if own
    ]
    which = "All evaluations" if len(names) > 1 else f"The evaluation {names[0]}"
    caption = f"{which} of bmlpipe evaluate: mean ± standard deviation over seeds."
    return Table(file, caption, ["run", "evaluation", "seeds", *map(_metric_title, metrics)], rows)


def probes_table(probes: Mapping[str, Sequence[Sequence[Probe]]]) -> Table:
    """Make one row per experiment, modality and checkpoint.

    Args:
        probes: Experiment → probes of each of its runs.
    """
    found: dict[tuple[str, str, int, str], list[Probe]] = {}
    for name, seeds in probes.items():
        for probe in (probe for seed in seeds for probe in seed):
            found.setdefault((name, probe.modality, probe.epoch, probe.checkpoint), []).append(probe)
    splits = ("train", "val", "test")
    rows = [
        [
            name,
            modality,
            checkpoint,
            str(epoch),
            *(_percent(getattr(probe, split) for probe in own) for split in splits),
        ]
        for (name, modality, epoch, checkpoint), own in found.items()
    ]
    caption = "Accuracy of linear probes of the frozen encoders: mean ± standard deviation over seeds."
    header = ["run", "modality", "checkpoint", "epoch", *(f"{split}, %" for split in splits)]
    return Table("probes", caption, header, rows)


def missing_table(found: Mapping[str, Sequence[Sequence[MissingRow]]]) -> Table:
    """Make one row per experiment and combination of rates.

    Args:
        found: Experiment → rows of each of its runs.
    """
    every = [row for runs in found.values() for rows in runs for row in rows]
    modalities = dict.fromkeys(m for row in every for m in row.rates)
    metrics = dict.fromkeys(m for row in every for m in row.metrics)
    lines = []
    for name, runs in found.items():
        by_rates: dict[tuple[float, ...], list[MissingRow]] = {}
        for row in (row for rows in runs for row in rows):
            by_rates.setdefault(tuple(row.rates.get(m, 0.0) for m in modalities), []).append(row)
        for rates, own in sorted(by_rates.items()):
            values = [np.concatenate([row.metrics.get(m, np.empty(0)) for row in own]) for m in metrics]
            lines.append([name, *(f"{100 * rate:g}" for rate in rates), *map(_metric, metrics, values)])
    caption = (
        "Metrics where a part of the samples lacks a modality, whose input is replaced by zeros at random: mean ± "
        "standard deviation over draws and seeds."
    )
    header = ["run", *(f"{m} missing, %" for m in modalities), *map(_metric_title, metrics)]
    return Table("missing", caption, header, lines)


def confused_table(name: str, classes: Sequence[str], counts: Values, limit: int) -> Table:
    """List the pairs of classes that are confused most often.

    Args:
        name: Name of the experiment.
        classes: Names of the K classes.
        counts: Confusion matrix, (K, K); rows are the true classes.
        limit: Maximum number of pairs.
    """
    wrong = counts - np.diag(np.diag(counts))
    order = np.argsort(-wrong, axis=None, kind="stable")[:limit]
    rows = [
        [name, classes[true], classes[taken], f"{wrong[true, taken]:.0f}", f"{100 * wrong[true, taken] / total:.1f}"]
        for true, taken in zip(*np.unravel_index(order, wrong.shape))
        if wrong[true, taken] > 0 and (total := counts[true].sum())
    ]
    caption = f"The {limit} pairs of classes that each experiment confuses most often, counted over its seeds."
    return Table(
        "most-confused", caption, ["run", "true class", "predicted class", "samples", "of true class, %"], rows
    )
