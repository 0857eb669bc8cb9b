"""Sections about training, from configurations and journals."""

from __future__ import annotations

from collections.abc import Sequence

from bmlpipe.train.report.content import Absent, Comparison, Section, lacking
from bmlpipe.train.report.curves import over_epochs, over_steps
from bmlpipe.train.report.plot import Figure
from bmlpipe.train.report.tables import (
    evaluations_table,
    headline,
    options_in_common,
    options_that_differ,
    runs_table,
)

_TRAIN = "python -m bmlpipe.train.run --shards SHARDS --out RUN"


def training_sections(compared: Comparison) -> list[Section]:
    """All sections about training, in the order of the page."""
    return [
        _options(compared),
        _results(compared),
        _balance(compared),
        _losses(compared),
        _norms(compared),
        _speed(compared),
        _accuracies(compared),
    ]


def _options(compared: Comparison) -> Section:
    section = Section("options", "Configuration")
    differing = options_that_differ(compared.named)
    if differing:
        section.tables.append(differing)
    elif len(compared.groups) == 1:
        section.lead = "The runs differ by seed only, or there is a single one: one experiment."
    section.folded += [options_in_common(compared.named), runs_table(compared.named)]
    return section


def _results(compared: Comparison) -> Section:
    section = Section("results", "Results")
    runs = [run for group in compared.groups.values() for run in group]
    section.tables.append(headline(runs))
    unfinished = [run for run in runs if not run.finished]
    if unfinished:
        folders = ", ".join(str(run.folder) for run in unfinished)
        section.lead = f"Not finished, so their row is of validation so far: {folders}."
    evaluated = {s.name: one for s, one in compared.evaluated.items()}
    names = dict.fromkeys(name for group in evaluated.values() for one in group for name in one.evaluations)
    if compared.evaluation:
        section.tables.append(evaluations_table(evaluated, [compared.evaluation], "evaluation"))
    if len(names) > 1:
        section.folded.append(evaluations_table(evaluated, list(names), "evaluations"))
    bare = [
        r for s, group in compared.groups.items() for r, e in zip(group, compared.evaluated[s]) if not e.evaluations
    ]
    section.absent += lacking("F1, mAP of each branch and numbers of single classes", bare)
    return section


def _balance(compared: Comparison) -> Section:
    section = Section("balance", "Balance of the modalities")
    widths: list[int] = []
    kinds = (("rho", "ρ", None), ("q", "q", None), ("k", "k", 1.0), ("score", "score", None))
    sums = any(run.config.get("discrepancy") == "difference" for group in compared.groups.values() for run in group)
    for kind, name, neutral in kinds:
        at = (0.0 if sums else 1.0) if kind == "rho" else neutral
        for m in compared.modalities:
            found = over_steps(f"{kind}/{m}", f"{name} of {m}", compared.groups, neutral=at, log=kind == "rho")
            _add(section, found, widths)
    section.lead = (
        f"ρ is the discrepancy ratio ({'0 in the difference form' if sums else '1'}: balanced; above, the modality is "
        "ahead), q the probability that its feature is dropped, k the factor of its encoder's gradient, the score the "
        f"mean softmax probability of the true class from that modality alone. {_points(widths)}"
    )
    return _or_absent(section, "No run has a journal of its steps.")


def _losses(compared: Comparison) -> Section:
    section = Section("losses", "Losses")
    widths: list[int] = []
    _add(section, over_steps("loss", "training loss", compared.groups), widths)
    validation = over_epochs("loss", "validation loss", compared.groups, percent=False)
    section.figures += [validation] if validation else []
    section.lead = f"{_points(widths)} Over epochs: mean and standard deviation over seeds."
    return _or_absent(section, "No run has a loss.")


def _norms(compared: Comparison) -> Section:
    section = Section("gradients", "Gradient norms")
    widths: list[int] = []
    for m in compared.modalities:
        _add(section, over_steps(f"grad_norm/{m}", f"gradient norm of {m}", compared.groups, log=True), widths)
    section.lead = f"Of each modality's encoder, before modulation. {_points(widths)}"
    return _or_absent(section, "No run has gradient norms.")


def _speed(compared: Comparison) -> Section:
    section = Section("speed", "Throughput and data wait")
    widths: list[int] = []
    _add(section, over_steps("samples_per_s", "samples a second", compared.groups), widths)
    _add(section, over_steps("waiting", "waiting for data, % of a step", compared.groups, percent=True), widths)
    section.lead = f"Comparable only between runs on the same machine, equally busy. {_points(widths)}"
    return _or_absent(section, "No run has times.")


def _accuracies(compared: Comparison) -> Section:
    section = Section("accuracies", "Accuracies over epochs")
    titles = {"accuracy": "accuracy, %", "mAP": "mAP, %"}
    titles |= {f"accuracy/{m}": f"accuracy of the {m} branch, %" for m in compared.modalities}
    figures = [over_epochs(column, title, compared.groups) for column, title in titles.items()]
    section.figures += [figure for figure in figures if figure]
    section.lead = "On validation, mean and standard deviation over seeds. A branch is read from the joint model."
    return _or_absent(section, "No run has been evaluated on validation yet: that comes at the end of each epoch.")


def _add(section: Section, found: tuple[Figure, int] | None, widths: list[int]) -> None:
    if found:
        section.figures.append(found[0])
        widths.append(found[1])


def _points(widths: Sequence[int]) -> str:
    """How much a point of the figures over steps stands for."""
    if not widths:
        return ""
    if max(widths) == 1:
        return "Every step is a point; with several seeds it is their mean, in a band from the lowest to the highest."
    some = f"{min(widths):,}" if min(widths) == max(widths) else f"{min(widths):,} to {max(widths):,}"
    return (
        f"A point stands for {some} steps: the line is their mean over all seeds, the band goes from the lowest to the "
        "highest value among them, so that no extreme is lost."
    )


def _or_absent(section: Section, text: str) -> Section:
    if not section.figures:
        section.lead = ""
        section.absent.append(Absent(f"{text} Training writes it:", _TRAIN))
    return section
