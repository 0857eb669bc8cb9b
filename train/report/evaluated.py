"""Sections about trained models, from what `bmlpipe evaluate` wrote."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain

import numpy as np

from bmlpipe.train.report.classes import NAMED, confusion_counts, confusion_figure, gains_figure, gains_table
from bmlpipe.train.report.content import Absent, Comparison, Section, lacking
from bmlpipe.train.report.curves import missing_curves, probe_curves
from bmlpipe.train.report.evaluations import JOINT, Evaluated, Evaluation
from bmlpipe.train.report.tables import Table, confused_table, missing_table, probes_table
from bmlpipe.train.runs.journal_reader import Values
from bmlpipe.train.runs.read_run import Run

_MATRICES = 24  # that one page holds; those of more branches are only in the files


def evaluated_sections(compared: Comparison) -> list[Section]:
    """All sections about trained models, in the order of the page."""
    return [_probes(compared), _classes(compared), _missing(compared), _confusion(compared)]


def _without(compared: Comparison, has: Callable[[Evaluated], bool]) -> list[Run]:
    """Runs of which `has(what was found)` is false."""
    return [
        run
        for series, runs in compared.groups.items()
        for run, one in zip(runs, compared.evaluated[series], strict=True)
        if not has(one)
    ]


def _probes(compared: Comparison) -> Section:
    section = Section("probes", "Linear probes of the encoders")
    for split in ("val", "test"):
        for m in compared.modalities:
            title = f"probe of {m}, {'validation' if split == 'val' else split} accuracy, %"
            figure = probe_curves(m, split, title, compared.evaluated)
            section.figures += [figure] if figure else []
    if section.figures:
        section.lead = (
            "How good each encoder is on its own: a linear classifier fitted on the training split's frozen features, "
            "at every kept checkpoint (training keeps them with --keep-every)."
        )
        probes = {series.name: [one.probes for one in runs] for series, runs in compared.evaluated.items()}
        section.folded.append(probes_table(probes))
    bare = _without(compared, lambda one: bool(one.probes))
    section.absent += lacking("Linear probes", bare, "--probe", "--checkpoint", "all")
    return section


def _classes(compared: Comparison) -> Section:
    section = Section("classes", "Gain of each class")
    recalls = {
        series: [e for e in found if "recall" in e.per_class.get(JOINT, {})]
        for series, found in compared.chosen().items()
    }
    recalls = {series: found for series, found in recalls.items() if found}
    for series, reference in compared.against.items():
        if series not in recalls or reference not in recalls:
            continue
        classes = recalls[reference][0].classes
        if any(e.classes != classes for e in chain(recalls[series], recalls[reference])):
            text = f"{series.name} and {reference.name} have different classes, so none can be compared. Evaluate with"
            section.absent.append(Absent(text, "bmlpipe evaluate RUN --shards SHARDS"))
            continue
        own, theirs = (_means(recalls[one]) for one in (series, reference))
        gains = 100 * (own["recall"] - theirs["recall"])
        section.figures.append(gains_figure(series, reference.name, classes, gains))
        table = gains_table(series, reference.name, classes, own, theirs)
        (section.folded if len(classes) <= NAMED else section.files).append(table)
    if section.figures:
        section.lead = (
            f"Recall of each class ({compared.evaluation}), minus that of the reference: the same training without "
            "modulation, or --reference."
        )
    elif not compared.against:
        text = "Nothing to compare with: no run of the same training without modulation is among these. Name one:"
        section.absent.append(Absent(text, "bmlpipe report RUN… --reference RUN --out report.html"))
    section.absent += lacking("Numbers of single classes", _lacking_evaluation(compared))
    return section


def _means(evaluations: Sequence[Evaluation]) -> dict[str, Values]:
    """Each measure's mean over seeds, (K,); NaN for a class that has none in any."""
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
    sweeps = {series: [e.missing for e in found if e.missing] for series, found in compared.chosen().items()}
    sweeps = {series: found for series, found in sweeps.items() if found}
    rows = [one for runs in sweeps.values() for sweep in runs for one in sweep]
    lost = dict.fromkeys(frozenset(m for m, rate in one.rates.items() if rate > 0) for one in rows)
    for names in sorted(lost, key=lambda names: (len(names), [m in names for m in compared.modalities][::-1])):
        title = f"accuracy without {' and '.join(sorted(names))}, %"
        figure = missing_curves(names, "accuracy", title, sweeps) if names else None
        section.figures += [figure] if figure else []
    if sweeps:
        section.lead = (
            f"Accuracy ({compared.evaluation}) where a share of the samples loses a modality: mean and standard "
            "deviation over draws and seeds."
        )
        section.folded.append(missing_table({series.name: found for series, found in sweeps.items()}))
    several = [run for run in _lacking_evaluation(compared, missing=True) if len(run.modalities) > 1]
    options = [word for m in compared.modalities for word in ("--missing", f"{m}=0:1:0.1")]
    section.absent += lacking("Accuracy with missing modalities", several, *options)
    if not section.figures and not section.absent:
        section.lead = "Each run has a single modality: without it there is nothing to predict from."
    return section


def _confusion(compared: Comparison) -> Section:
    section = Section("confusion", "Confusion matrices")
    found = {
        series: [e for e in evaluations if e.confusion and e.classes == evaluations[0].classes]
        for series, evaluations in compared.chosen().items()
    }
    pairs: list[Table] = []
    for series, evaluations in ((s, e) for s, e in found.items() if e):
        branches = dict.fromkeys(branch for e in evaluations for branch in e.confusion)
        for branch in branches:
            classes = evaluations[0].classes
            counts = np.sum([e.confusion[branch] for e in evaluations if branch in e.confusion], axis=0)
            title = series.name if branch == JOINT else f"{series.name}, {branch} branch"
            figure = confusion_figure(series, branch, title, classes, counts)
            (section.figures if branch == JOINT else section.more).append(figure)
            section.files.append(confusion_counts(figure, classes, counts))
            if branch == JOINT:
                pairs.append(confused_table(series.name, classes, counts, 20 if len(found) == 1 else 10))
    if pairs:
        section.tables.append(
            Table(pairs[0].name, pairs[0].caption, pairs[0].titles, [r for t in pairs for r in t.rows])
        )
        section.lead = (
            f"Rows: true classes; columns: predicted ones ({compared.evaluation}); added over seeds. The scale of "
            "colours is a square root, so that rare confusions can be seen."
        )
    if len(section.figures) + len(section.more) > _MATRICES:
        section.unshown, section.more = section.more, []
    section.absent += lacking("Confusion matrices", _lacking_evaluation(compared))
    return section


def _lacking_evaluation(compared: Comparison, *, missing: bool = False) -> list[Run]:
    """Runs without the evaluation that the page shows, or without its sweep over missing modalities."""

    def has(one: Evaluated) -> bool:
        evaluation = one.evaluations.get(compared.evaluation or "")
        return evaluation is not None and (bool(evaluation.missing) or not missing)

    return _without(compared, has)
