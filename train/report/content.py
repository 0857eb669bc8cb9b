"""What a page is made of: the runs that it compares, and sections of figures and tables."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from bmlpipe.train.report.evaluations import Evaluated, Evaluation
from bmlpipe.train.report.experiments import experiments, references
from bmlpipe.train.report.plot import Figure, Series
from bmlpipe.train.report.tables import Table, modalities_of
from bmlpipe.train.runs.read_run import Run

_COMMANDS = 4  # runs that a command names before it says "…"


@dataclass(frozen=True)
class Absent:
    """What a section cannot show, and the command that makes it."""

    text: str
    command: str


@dataclass
class Section:
    """A part of the page.

    Attributes:
        key: Its anchor.
        title: Its heading.
        lead: What is to be seen, and how it was made.
        figures: Side by side.
        tables: Below the figures.
        more: Figures that are folded away.
        unshown: Figures of which only the files are written.
        folded: Tables that are folded away.
        files: Tables that are too large for the page: only their CSV is written.
        absent: What is not there.
    """

    key: str
    title: str
    lead: str = ""
    figures: list[Figure] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    more: list[Figure] = field(default_factory=list)
    unshown: list[Figure] = field(default_factory=list)
    folded: list[Table] = field(default_factory=list)
    files: list[Table] = field(default_factory=list)
    absent: list[Absent] = field(default_factory=list)


@dataclass(frozen=True)
class Comparison:
    """Runs, grouped into experiments.

    Attributes:
        groups: Experiment → its runs.
        evaluated: Experiment → what was found about each of its runs.
        evaluation: Name of the evaluation that most runs have; None where none has any.
        against: Experiment → its reference.
    """

    groups: Mapping[Series, Sequence[Run]]
    evaluated: Mapping[Series, Sequence[Evaluated]]
    evaluation: str | None
    against: Mapping[Series, Series]

    @property
    def modalities(self) -> list[str]:
        """Of all runs."""
        return modalities_of(run for runs in self.groups.values() for run in runs)

    @property
    def named(self) -> dict[str, Sequence[Run]]:
        """Experiments by name."""
        return {series.name: runs for series, runs in self.groups.items()}

    def chosen(self) -> dict[Series, list[Evaluation]]:
        """`evaluation` of each experiment's runs, of those that have it."""
        name = self.evaluation or ""
        found = {
            series: [one.evaluations[name] for one in runs if name in one.evaluations]
            for series, runs in self.evaluated.items()
        }
        return {series: evaluations for series, evaluations in found.items() if evaluations}


def compare(runs: Sequence[Run], evaluated: Sequence[Evaluated], reference: Run | None = None) -> Comparison:
    """Group runs, choose what is compared with what.

    Args:
        runs: All runs.
        evaluated: What was found about each.
        reference: One of the runs, whose experiment all others are compared with; None: each with the same training
            without modulation.
    """
    found = {id(run): one for run, one in zip(runs, evaluated, strict=True)}
    named = experiments(runs)
    series = {name: Series(index, name) for index, name in enumerate(named)}
    chosen = next((name for name, group in named.items() if any(run is reference for run in group)), None)
    return Comparison(
        {series[name]: group for name, group in named.items()},
        {series[name]: [found[id(run)] for run in group] for name, group in named.items()},
        _commonest(evaluated),
        {series[name]: series[other] for name, other in references(named, chosen).items()},
    )


def _commonest(evaluated: Iterable[Evaluated]) -> str | None:
    """The evaluation that most runs have; of equals the test split's, of the best epoch."""
    names = [name for one in evaluated for name in one.evaluations]

    def worth(name: str) -> tuple[int, bool, bool, str]:
        split, _, checkpoint = name.partition("-")
        return names.count(name), split == "test", checkpoint == "best", name

    return max(names, key=worth, default=None)


def lacking(what: str, runs: Sequence[Run], *options: str) -> list[Absent]:
    """That some runs lack what `bmlpipe evaluate` makes; empty where none does."""
    if not runs:
        return []
    names = [str(run.folder) for run in runs]
    more = f" # and {len(names) - _COMMANDS} more" if len(names) > _COMMANDS else ""
    command = shlex.join(["bmlpipe", "evaluate", *names[:_COMMANDS], *options])
    count = "1 run" if len(names) == 1 else f"{len(names)} runs"
    return [Absent(f"{what}: not there for {count}. Make them with", command + more)]
