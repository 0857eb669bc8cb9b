"""Runs grouped into experiments: their names, the options in which they differ, and their references."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bmlpipe.train.config.options import MAY_CHANGE
from bmlpipe.train.report.read_evaluation import Evaluation, RunEvaluations
from bmlpipe.train.report.series import Series
from bmlpipe.train.runs.run_reader import Run

#: Options that do not make two runs different experiments.
_IGNORED = MAY_CHANGE - {"epochs"} | {"seed"}

_NONE = "–"


def group_runs(runs: Iterable[Run]) -> dict[str, list[Run]]:
    """Group runs that differ in the seed only; each group is named by the options in which the groups differ."""
    groups: dict[frozenset[tuple[str, Any]], list[Run]] = {}
    for run in runs:
        groups.setdefault(frozenset(_options(run)), []).append(run)
    options = [dict(_options(group[0])) for group in groups.values()]
    differing = _differing(options)
    named: dict[str, list[Run]] = {}
    for option, group in zip(options, groups.values(), strict=True):
        title = ", ".join(_label(name, option[name]) for name in differing if name in option) or "all"
        if title in named:
            title = f"{title} ({group[0].folder})"
        named[title] = group
    return named


def series_of(runs: Iterable[Run]) -> dict[Series, list[Run]]:
    """Return the groups of `group_runs`, each with its look in figures."""
    return {Series(index, name): group for index, (name, group) in enumerate(group_runs(runs).items())}


def modalities_of(runs: Iterable[Run]) -> list[str]:
    """Return the modalities of all runs, in order of first appearance."""
    return list(dict.fromkeys(modality for run in runs for modality in run.modalities))


def option_differences(groups: Mapping[str, Sequence[Run]]) -> tuple[dict[str, list[str]], dict[str, str]]:
    """Compare the options of experiments.

    Returns:
        Option → its value in each experiment, for options that differ; and option → value, for options that all
        experiments share.
    """
    options = [dict(_options(group[0])) for group in groups.values()]
    differing = {name: [_text(option.get(name)) for option in options] for name in _differing(options)}
    equal = {name: _text(value) for name, value in options[0].items() if name not in differing} if options else {}
    return differing, equal


def references(groups: Mapping[str, Sequence[Run]], chosen: str | None = None) -> dict[str, str]:
    """Choose the reference of each experiment: the same training without modulation, or `chosen` for all.

    Args:
        groups: From `group_runs`.
        chosen: Name of an experiment.

    Returns:
        Experiment → its reference. Experiments without one, and the references themselves, are left out.
    """
    if chosen is not None:
        return {name: chosen for name in groups if name != chosen}
    unmodulated = {_but_modulation(group[0]): name for name, group in groups.items() if group[0].modulation == "none"}
    found = {name: unmodulated.get(_but_modulation(group[0])) for name, group in groups.items()}
    return {name: reference for name, reference in found.items() if reference is not None and reference != name}


@dataclass(frozen=True)
class Comparison:
    """Experiments with all that their runs have written.

    Attributes:
        groups: Experiment → its runs.
        evaluations: Experiment → the evaluations of each of its runs.
        evaluation: Name of the evaluation that the page shows, the one that most runs have; None without any.
        against: Experiment → its reference.
    """

    groups: Mapping[Series, Sequence[Run]]
    evaluations: Mapping[Series, Sequence[RunEvaluations]]
    evaluation: str | None
    against: Mapping[Series, Series]

    @property
    def runs(self) -> list[Run]:
        """All runs."""
        return [run for group in self.groups.values() for run in group]

    @property
    def modalities(self) -> list[str]:
        """Modalities of all runs."""
        return modalities_of(self.runs)

    @property
    def named(self) -> dict[str, Sequence[Run]]:
        """Name of the experiment → its runs."""
        return {series.name: runs for series, runs in self.groups.items()}

    def runs_without(self, has: Callable[[RunEvaluations], bool]) -> list[Run]:
        """Return the runs for whose evaluations `has` is false."""
        return [
            run
            for series, runs in self.groups.items()
            for run, found in zip(runs, self.evaluations[series], strict=True)
            if not has(found)
        ]

    def shown_evaluations(self) -> dict[Series, list[Evaluation]]:
        """Map each experiment to the evaluation `evaluation` of its runs; experiments that lack it are left out."""
        name = self.evaluation or ""
        found = {
            series: [run.splits[name] for run in runs if name in run.splits]
            for series, runs in self.evaluations.items()
        }
        return {series: evaluations for series, evaluations in found.items() if evaluations}


def compare(runs: Sequence[Run], evaluations: Sequence[RunEvaluations], reference: Run | None = None) -> Comparison:
    """Group runs into experiments and choose the reference of each.

    Args:
        runs: All runs.
        evaluations: Evaluations of each run.
        reference: One of the runs; its experiment becomes the reference of all others. None: the same training without
            modulation.
    """
    own = {id(run): one for run, one in zip(runs, evaluations, strict=True)}
    groups = series_of(runs)
    by_name = {series.name: series for series in groups}
    chosen = next((series.name for series, group in groups.items() if any(run is reference for run in group)), None)
    pairs = references({series.name: group for series, group in groups.items()}, chosen)
    return Comparison(
        groups,
        {series: [own[id(run)] for run in group] for series, group in groups.items()},
        _most_common(evaluations),
        {by_name[name]: by_name[other] for name, other in pairs.items()},
    )


def _most_common(evaluations: Iterable[RunEvaluations]) -> str | None:
    """Return the evaluation that most runs have; in a tie that of the test split, then that of the best epoch."""
    names = [name for one in evaluations for name in one.splits]

    def rank(name: str) -> tuple[int, bool, bool, str]:
        split, _, checkpoint = name.partition("-")
        return names.count(name), split == "test", checkpoint == "best", name

    return max(names, key=rank, default=None)


def _differing(options: Sequence[Mapping[str, Any]]) -> list[str]:
    names = dict.fromkeys(name for option in options for name in option)
    return [name for name in names if len({option[name] for option in options if name in option}) > 1]


def _options(run: Run) -> Iterator[tuple[str, Any]]:
    """Yield the options that make the experiment, with values that can be hashed."""
    for name, value in run.config.items():
        if name not in _IGNORED:
            plain = tuple(map(str, value)) if isinstance(value, list) else value
            yield name, plain if isinstance(plain, Hashable) else str(plain)


def _but_modulation(run: Run) -> frozenset[tuple[str, Any]]:
    """Return the options that a run shares with the same training without modulation."""
    return frozenset((name, value) for name, value in _options(run) if name != "modulation")


def _label(name: str, value: Any) -> str:
    """Write an option as part of the name of an experiment."""
    if isinstance(value, tuple):
        return "+".join(value)
    return value if isinstance(value, str) else f"{name} {value}"


def _text(value: Any) -> str:
    """Write an option's value for tables."""
    if isinstance(value, tuple):
        return ", ".join(value) or _NONE
    return _NONE if value is None else str(value)
