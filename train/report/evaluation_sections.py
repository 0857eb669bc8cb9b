"""The sections about trained models, from the results of `bmlpipe evaluate`."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import numpy as np

from bmlpipe.train.modulation.names import JOINT
from bmlpipe.train.report.curves import missing_curves, probe_curves
from bmlpipe.train.report.experiments import Comparison
from bmlpipe.train.report.per_class import NAMED, confusion_figure, confusion_table, gains_figure, gains_table
from bmlpipe.train.report.read_evaluation import Evaluation, RunEvaluations
from bmlpipe.train.report.section import Hint, Section, evaluation_hints
from bmlpipe.train.report.tables import Table, confused_table, missing_table, probes_table
from bmlpipe.train.runs.journal_reader import Values
from bmlpipe.train.runs.run_reader import Run

_MATRICES = 24  # on one page; with more, the matrices of single branches are only linked


def evaluation_sections(compared: Comparison) -> list[Section]:
    """Make all sections about trained models, in the order of the page."""
    return [_probes(compared), _classes(compared), _missing(compared), _confusion(compared)]


def _probes(compared: Comparison) -> Section:
    section = Section("probes", "Linear probes of the encoders")
    for split in ("val", "test"):
        for m in compared.modalities:
            title = f"probe of {m}: {'validation' if split == 'val' else split} accuracy, %"
            figure = probe_curves(m, split, title, compared.evaluations)
            section.figures += [figure] if figure else []
    if section.figures:
        section.lead = (
            "Quality of each encoder by itself: accuracy of a linear classifier on its frozen features, fitted on the "
            "training split, for each checkpoint that was kept (training option --keep-every). Epochs count from 0."
        )
        probes = {series.name: [run.probes for run in runs] for series, runs in compared.evaluations.items()}
        section.folded_tables.append(probes_table(probes))
    without = compared.runs_without(lambda found: bool(found.probes))
    section.hints += evaluation_hints("Linear probes", without, "--probe", "--checkpoint", "all")
    return section


def _classes(compared: Comparison) -> Section:
    section = Section("classes", "Gain per class")
    recalls = {
        series: [e for e in found if "recall" in e.per_class.get(JOINT, {})]
        for series, found in compared.shown_evaluations().items()
    }
    recalls = {series: found for series, found in recalls.items() if found}
    for series, reference in compared.against.items():
        if series not in recalls or reference not in recalls:
            continue
        classes = recalls[reference][0].classes
        if any(e.classes != classes for e in chain(recalls[series], recalls[reference])):
            text = (
                f"{series.name} and {reference.name} were evaluated on different classes, so they cannot be compared. "
                "Evaluate both on the same shards:"
            )
            section.hints.append(Hint(text, "bmlpipe evaluate RUN --shards SHARDS"))
            continue
        own, theirs = (_means(recalls[one]) for one in (series, reference))
        gains = 100 * (own["recall"] - theirs["recall"])
        section.figures.append(gains_figure(series, reference.name, classes, gains))
        table = gains_table(series, reference.name, classes, own, theirs)
        (section.folded_tables if len(classes) <= NAMED else section.linked_tables).append(table)
    if section.figures:
        section.lead = (
            f"Recall of each class minus that of the reference ({compared.evaluation}). The reference is the same "
            "training without modulation, or the run named by --reference."
        )
    elif not compared.against:
        text = "There is nothing to compare with: none of the runs is the same training without modulation. Name a run:"
        section.hints.append(Hint(text, "bmlpipe report RUN… --reference RUN --out report.html"))
    section.hints += evaluation_hints("Metrics of each class", _without_evaluation(compared))
    return section


def _means(evaluations: Sequence[Evaluation]) -> dict[str, Values]:
    """Average each measure over seeds, (K,); NaN for a class that has no value in any seed."""
    measures = dict.fromkeys(m for e in evaluations for m in e.per_class[JOINT])
    means = {}
    for measure in measures:
        values = np.array([e.per_class[JOINT][measure] for e in evaluations if measure in e.per_class[JOINT]])
        finite = np.isfinite(values)
        count = finite.sum(axis=0)
        total = np.where(finite, values, 0).sum(axis=0)
        means[measure] = np.divide(total, count, out=np.full(len(total), np.nan), where=count > 0)
    return means


def _missing(compared: Comparison) -> Section:
    section = Section("missing", "Missing modalities")
    found = {series: [e.missing for e in own if e.missing] for series, own in compared.shown_evaluations().items()}
    found = {series: runs for series, runs in found.items() if runs}
    every = [row for runs in found.values() for rows in runs for row in rows]
    lacking = dict.fromkeys(frozenset(m for m, rate in row.rates.items() if rate > 0) for row in every)
    for names in sorted(lacking, key=lambda names: (len(names), [m in names for m in compared.modalities][::-1])):
        title = f"accuracy without {' and '.join(sorted(names))}, %"
        figure = missing_curves(names, "accuracy", title, found) if names else None
        section.figures += [figure] if figure else []
    if found:
        section.lead = (
            f"Accuracy where a part of the samples lacks a modality ({compared.evaluation}): mean and standard "
            "deviation over draws and seeds."
        )
        section.folded_tables.append(missing_table({series.name: runs for series, runs in found.items()}))
    several = [run for run in _without_evaluation(compared, missing=True) if len(run.modalities) > 1]
    options = [word for m in compared.modalities for word in ("--missing", f"{m}=0:1:0.1")]
    section.hints += evaluation_hints("Accuracy with missing modalities", several, *options)
    if not section.figures and not section.hints:
        section.lead = "Each run has a single modality, and without it there is nothing to predict from."
    return section


def _confusion(compared: Comparison) -> Section:
    section = Section("confusion", "Confusion matrices")
    found = {
        series: [e for e in evaluations if e.confusion and e.classes == evaluations[0].classes]
        for series, evaluations in compared.shown_evaluations().items()
    }
    pairs: list[Table] = []
    for series, evaluations in ((s, e) for s, e in found.items() if e):
        branches = dict.fromkeys(branch for e in evaluations for branch in e.confusion)
        for branch in branches:
            classes = evaluations[0].classes
            counts = np.sum([e.confusion[branch] for e in evaluations if branch in e.confusion], axis=0)
            title = series.name if branch == JOINT else f"{series.name}, {branch} branch"
            figure = confusion_figure(series, branch, title, classes, counts)
            (section.figures if branch == JOINT else section.folded_figures).append(figure)
            section.linked_tables.append(confusion_table(figure, classes, counts))
            if branch == JOINT:
                pairs.append(confused_table(series.name, classes, counts, 20 if len(found) == 1 else 10))
    if pairs:
        rows = [row for table in pairs for row in table.rows]
        section.tables.append(Table(pairs[0].name, pairs[0].caption, pairs[0].header, rows))
        section.lead = (
            f"Rows are true classes, columns are predicted classes ({compared.evaluation}); counts: sums over seeds. "
            "Colours follow the square root, which makes rare confusions visible."
        )
    if len(section.figures) + len(section.folded_figures) > _MATRICES:
        section.linked_figures, section.folded_figures = section.folded_figures, []
    section.hints += evaluation_hints("Confusion matrices", _without_evaluation(compared))
    return section


def _without_evaluation(compared: Comparison, *, missing: bool = False) -> list[Run]:
    """Return the runs without the evaluation that the page shows, or without its rows on missing modalities."""

    def has(found: RunEvaluations) -> bool:
        evaluation = found.splits.get(compared.evaluation or "")
        return evaluation is not None and (bool(evaluation.missing) or not missing)

    return compared.runs_without(has)
