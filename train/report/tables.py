"""Tables of the report: the headline, the options, the files' own numbers."""

from __future__ import annotations

import io
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from bmlpipe.manifests.common.tables import write_csv_rows
from bmlpipe.train.report.evaluations import Evaluated, Missing, Probe
from bmlpipe.train.report.experiments import differences, experiments, references
from bmlpipe.train.runs.journal_reader import Values
from bmlpipe.train.runs.read_run import Run, number

Groups = Mapping[str, Sequence[Run]]


@dataclass(frozen=True)
class Table:
    """A table of text; the first column names the rows.

    Attributes:
        name: Of its file.
        caption: What it shows.
        titles: Of the columns.
        rows: Text.
    """

    name: str
    caption: str
    titles: Sequence[str]
    rows: Sequence[Sequence[str]]

    def as_csv(self) -> str:
        """The table as CSV with a header."""
        text = io.StringIO()
        write_csv_rows(text, [self.titles, *self.rows])
        return text.getvalue()


def modalities_of(runs: Iterable[Run]) -> list[str]:
    """All runs' modalities, in the order of the first that has them."""
    return list(dict.fromkeys(modality for run in runs for modality in run.modalities))


def table(runs: Iterable[Run]) -> tuple[list[str], list[list[str]]]:
    """The headline table.

    Returns:
        Column titles and rows of text; accuracies and mAP in %, mean ± standard deviation over seeds; step time
        over that of the same training without modulation, which means something only if the machine was as busy.
    """
    groups = experiments(runs)
    modalities = modalities_of(group[0] for group in groups.values())
    titles = ["run", "seeds", "split", "accuracy", "mAP", *(f"{m} branch" for m in modalities)]
    titles += [*(f"ρ {m} halfway" for m in modalities), "step time"]
    plain = {name: name for name in groups} | references(groups)
    rows = []
    for name, group in groups.items():
        finals = [final for run in group if (final := run.final) is not None]
        columns = ("accuracy", "mAP", *(f"accuracy/{m}" for m in modalities))
        shares = [[100 * number(final, column) for final in finals] for column in columns]
        ratios = [[run.halfway.get(f"rho/{m}", np.nan) for run in group] for m in modalities]
        split = str(finals[0].get("split", "–")) if finals else "-"
        cells = [*(spread(values, ".1f") for values in shares), *(spread(values, ".2f") for values in ratios)]
        slower = _slower(group, groups[plain[name]]) if groups[plain[name]][0].modulation == "none" else "-"
        rows.append([name, str(len(finals)), split, *cells, slower])
    return titles, rows


def _slower(group: Sequence[Run], plain: Sequence[Run]) -> str:
    """Median step time over that of the runs without modulation."""
    own, theirs = ([run.step_seconds for run in runs if run.step_seconds] for runs in (group, plain))
    return f"{statistics.median(own) / statistics.median(theirs):.2f}" if own and theirs else "-"


def spread(values: Iterable[float], form: str) -> str:
    """Mean ± standard deviation of the finite values; without a deviation where there is one value only."""
    finite = [value for value in values if np.isfinite(value)]
    if not finite:
        return "-"
    mean = format(statistics.fmean(finite), form)
    return mean if len(finite) == 1 else f"{mean} ± {format(statistics.stdev(finite), form)}"


def headline(runs: Sequence[Run]) -> Table:
    """The table that `bmlpipe report` prints."""
    caption = (
        "Accuracy and mAP in %, mean ± standard deviation over seeds, of the epoch chosen on validation; ρ is the mean "
        "over the epoch in the middle of the run; step time is relative to the same training without modulation."
    )
    return Table("headline", caption, *table(runs))


def options_that_differ(groups: Groups) -> Table | None:
    """Options in which the experiments differ; None where there are none."""
    differing, _ = differences(groups)
    if not differing:
        return None
    caption = "Options in which the experiments differ. “–”: the option has no meaning there."
    rows = [[name, *values] for name, values in differing.items()]
    return Table("options-that-differ", caption, ["option", *groups], rows)


def options_in_common(groups: Groups) -> Table:
    """Options that are equal in all experiments."""
    _, equal = differences(groups)
    caption = "Options that all experiments share; where a run computes and writes, and the seed, are left out."
    return Table("options-in-common", caption, ["option", "value"], [[*item] for item in equal.items()])


def runs_table(groups: Groups) -> Table:
    """A row a run: where it is, how far it came, how fast it was."""
    titles = ["folder", "experiment", "seed", "state", "epochs", "steps", "samples/s", "waiting for data, %"]
    rows = [
        [
            str(run.folder),
            name,
            run.seed,
            "finished" if run.finished else "not finished",
            f"{run.epochs_done} of {run.config.get('epochs', '?')}",
            str(run.steps_done),
            "-" if run.samples_per_s is None else f"{run.samples_per_s:.0f}",
            "-" if run.waiting is None else f"{100 * run.waiting:.1f}",
        ]
        for name, group in groups.items()
        for run in group
    ]
    return Table("runs", "The runs, one a row. Samples/s is over all steps, waiting for data included.", titles, rows)


def evaluations_table(evaluated: Mapping[str, Sequence[Evaluated]], names: Sequence[str], file: str) -> Table:
    """A row an experiment and evaluation: every metric in %, the loss as it is.

    Args:
        evaluated: Experiment → what was found about each of its runs.
        names: Of the evaluations.
        file: Name of the table.
    """
    found = {
        (run, name): [one.evaluations[name].metrics for one in group if name in one.evaluations]
        for run, group in evaluated.items()
        for name in names
    }
    metrics = dict.fromkeys(metric for own in found.values() for one in own for metric in one)
    rows = [
        [*key, str(len(own)), *(_share(metric, [one.get(metric, np.nan) for one in own]) for metric in metrics)]
        for key, own in found.items()
        if own
    ]
    which = "every evaluation" if len(names) > 1 else names[0]
    caption = f"What bmlpipe evaluate found ({which}): in %, the loss as it is; mean ± standard deviation over seeds."
    return Table(file, caption, ["run", "split-checkpoint", "seeds", *metrics], rows)


def _share(metric: str, values: Iterable[float]) -> str:
    """A metric in %; the loss as it is."""
    return spread(values, ".3f") if metric == "loss" else spread((100 * value for value in values), ".1f")


def probes_table(probes: Mapping[str, Sequence[Sequence[Probe]]]) -> Table:
    """A row an experiment, modality and checkpoint."""
    found: dict[tuple[str, str, int, str], list[Probe]] = {}
    for name, seeds in probes.items():
        for probe in (probe for seed in seeds for probe in seed):
            found.setdefault((name, probe.modality, probe.epoch, probe.checkpoint), []).append(probe)
    rows = [
        [
            name,
            modality,
            checkpoint,
            str(epoch + 1),
            *(spread((100 * getattr(probe, split) for probe in own), ".1f") for split in ("train", "val", "test")),
        ]
        for (name, modality, epoch, checkpoint), own in found.items()
    ]
    caption = "Linear probes of the frozen encoders: accuracy in %, mean ± standard deviation over seeds."
    return Table("probes", caption, ["run", "modality", "checkpoint", "epoch", "train", "val", "test"], rows)


def missing_table(sweeps: Mapping[str, Sequence[Sequence[Missing]]]) -> Table:
    """A row an experiment and combination of rates."""
    modalities = dict.fromkeys(m for runs in sweeps.values() for sweep in runs for one in sweep for m in one.rates)
    metrics = dict.fromkeys(m for runs in sweeps.values() for sweep in runs for one in sweep for m in one.metrics)
    rows = []
    for name, runs in sweeps.items():
        found: dict[tuple[float, ...], list[Missing]] = {}
        for one in (one for sweep in runs for one in sweep):
            found.setdefault(tuple(one.rates.get(m, 0.0) for m in modalities), []).append(one)
        for rates, own in sorted(found.items()):
            values = [np.concatenate([one.metrics.get(m, np.empty(0)) for one in own]) for m in metrics]
            rows.append([name, *(f"{rate:g}" for rate in rates), *map(_share, metrics, values)])
    caption = (
        "Metrics in % (the loss as it is) where a share of the samples lacks a modality (zeroed at random): mean ± "
        "standard deviation over the draws, and over the runs' seeds where there are several."
    )
    return Table("missing", caption, ["run", *(f"{m} missing" for m in modalities), *metrics], rows)


def confused_table(name: str, classes: Sequence[str], counts: Values, most: int) -> Table:
    """The pairs of classes that are most often taken for each other.

    Args:
        name: Of the experiment.
        classes: K names.
        counts: (K, K), rows the true classes.
        most: Pairs at most.
    """
    wrong = counts - np.diag(np.diag(counts))
    order = np.argsort(-wrong, axis=None, kind="stable")[:most]
    rows = [
        [name, classes[true], classes[taken], f"{wrong[true, taken]:.0f}", f"{100 * wrong[true, taken] / total:.1f}"]
        for true, taken in zip(*np.unravel_index(order, wrong.shape))
        if wrong[true, taken] > 0 and (total := counts[true].sum())
    ]
    caption = f"The {most} pairs of classes that each experiment confuses most often, counted over its seeds."
    return Table("most-confused", caption, ["run", "true class", "taken for", "samples", "of the true class, %"], rows)
