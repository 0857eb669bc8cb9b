"""The sections about training, from configurations and journals."""

from __future__ import annotations

from collections.abc import Sequence

from bmlpipe.train.report.curves import balanced_ratio, over_epochs, over_steps
from bmlpipe.train.report.experiments import Comparison
from bmlpipe.train.report.figure import Figure
from bmlpipe.train.report.section import Hint, Section, evaluation_hints
from bmlpipe.train.report.tables import (
    common_options_table,
    differing_options_table,
    evaluations_table,
    results_table,
    runs_table,
)

_TRAIN = "bmlpipe train"


def training_sections(compared: Comparison) -> list[Section]:
    """Make all sections about training, in the order of the page."""
    return [
        _options(compared),
        _results(compared),
        _balance(compared),
        _losses(compared),
        _gradient_norms(compared),
        _speed(compared),
        _accuracies(compared),
    ]


def _options(compared: Comparison) -> Section:
    section = Section("options", "Configuration")
    differing = differing_options_table(compared.named)
    if differing:
        section.tables.append(differing)
    elif len(compared.groups) == 1:
        section.lead = "There is a single experiment: its runs differ in the seed only."
    section.folded_tables += [common_options_table(compared.named), runs_table(compared.named)]
    return section


def _results(compared: Comparison) -> Section:
    section = Section("results", "Results")
    section.tables.append(results_table(compared.runs))
    unfinished = [run for run in compared.runs if not run.finished]
    if unfinished:
        folders = ", ".join(str(run.folder) for run in unfinished)
        section.lead = f"Not finished, so the table shows their best validation results so far: {folders}."
    found = {series.name: runs for series, runs in compared.evaluations.items()}
    names = dict.fromkeys(name for group in found.values() for run in group for name in run.splits)
    if compared.evaluation:
        section.tables.append(evaluations_table(found, [compared.evaluation], "evaluation"))
    if len(names) > 1:
        section.folded_tables.append(evaluations_table(found, list(names), "evaluations"))
    without = compared.runs_without(lambda found: bool(found.splits))
    section.hints += evaluation_hints("F1, mAP of each branch, and metrics of each class", without)
    return section


def _balance(compared: Comparison) -> Section:
    section = Section("balance", "Balance of the modalities")
    widths: list[int] = []
    balanced = balanced_ratio(compared.runs)
    for kind, name, neutral in (("rho", "ρ", balanced), ("q", "q", None), ("k", "k", 1.0), ("score", "score", None)):
        for m in compared.modalities:
            found = over_steps(f"{kind}/{m}", f"{name} of {m}", compared.groups, neutral=neutral, log=kind == "rho")
            _add(section, found, widths)
    section.lead = (
        f"ρ is the discrepancy ratio of a modality ({balanced:g} if the modalities are balanced, higher if it is "
        "ahead). q is the probability that its feature is dropped. k is the factor of its encoder's gradient. The "
        f"score is the mean softmax probability of the true class from that modality alone. {_points(widths)}"
    )
    return _or_hint(section, "No run has written a journal of its steps.")


def _losses(compared: Comparison) -> Section:
    section = Section("losses", "Losses")
    widths: list[int] = []
    _add(section, over_steps("loss", "training loss", compared.groups), widths)
    validation = over_epochs("loss", "validation loss", compared.groups, percent=False)
    section.figures += [validation] if validation else []
    section.lead = f"{_points(widths)} Over the epochs: mean and standard deviation over seeds."
    return _or_hint(section, "No run has written a loss.")


def _gradient_norms(compared: Comparison) -> Section:
    section = Section("gradients", "Gradient norms")
    widths: list[int] = []
    for m in compared.modalities:
        _add(section, over_steps(f"grad_norm/{m}", f"gradient norm of {m}", compared.groups, log=True), widths)
    section.lead = f"Norm of the gradient of each modality's encoder, before modulation. {_points(widths)}"
    return _or_hint(section, "No run has written gradient norms.")


def _speed(compared: Comparison) -> Section:
    section = Section("speed", "Throughput")
    widths: list[int] = []
    _add(section, over_steps("samples_per_s", "samples per second", compared.groups), widths)
    _add(section, over_steps("waiting", "waiting for data, % of the step", compared.groups, percent=True), widths)
    section.lead = f"Compare only runs on the same machine under the same load. {_points(widths)}"
    return _or_hint(section, "No run has written times.")


def _accuracies(compared: Comparison) -> Section:
    section = Section("accuracies", "Validation accuracy")
    titles = {"accuracy": "accuracy, %", "mAP": "mAP, %"}
    titles |= {f"accuracy/{m}": f"accuracy of the {m} branch, %" for m in compared.modalities}
    figures = [over_epochs(column, title, compared.groups) for column, title in titles.items()]
    section.figures += [figure for figure in figures if figure]
    section.lead = (
        "Mean and standard deviation over seeds, at the end of each epoch (from 0). A branch is the prediction of one "
        "modality alone, read from the joint model."
    )
    return _or_hint(section, "No run has been evaluated on validation yet, which is done at the end of each epoch.")


def _add(section: Section, found: tuple[Figure, int] | None, widths: list[int]) -> None:
    if found:
        section.figures.append(found[0])
        widths.append(found[1])


def _points(widths: Sequence[int]) -> str:
    """Explain the points of the figures over steps."""
    if not widths:
        return ""
    if max(widths) == 1:
        return "Each point is one step: the mean over seeds, in a band from the lowest to the highest seed."
    count = f"{min(widths):,}" if min(widths) == max(widths) else f"{min(widths):,} to {max(widths):,}"
    return (
        f"Each point stands for {count} steps: the line is their mean over all seeds, the band reaches from the lowest "
        "to the highest value among them."
    )


def _or_hint(section: Section, text: str) -> Section:
    if not section.figures:
        section.lead = ""
        section.hints.append(Hint(f"{text} Training writes it:", _TRAIN))
    return section
