"""The sections that a page consists of."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field

from bmlpipe.train.report.figure import Figure
from bmlpipe.train.report.tables import Table
from bmlpipe.train.runs.run_reader import Run

_LISTED = 4  # runs that a command lists


@dataclass(frozen=True)
class Hint:
    """A missing part of a section, and the command that produces it.

    Attributes:
        text: Description of the missing part.
        command: Command.
    """

    text: str
    command: str


@dataclass
class Section:
    """A section of the page.

    Attributes:
        key: Anchor.
        title: Heading.
        lead: Introduction: the content of the section and how it was made.
        figures: Figures, side by side.
        folded_figures: Figures that are folded away.
        linked_figures: Figures of which only the files are written.
        tables: Tables, below the figures.
        folded_tables: Tables that are folded away.
        linked_tables: Tables of which only the CSV file is written, since they are too large for the page.
        hints: Missing parts of the section.
    """

    key: str
    title: str
    lead: str = ""
    figures: list[Figure] = field(default_factory=list)
    folded_figures: list[Figure] = field(default_factory=list)
    linked_figures: list[Figure] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    folded_tables: list[Table] = field(default_factory=list)
    linked_tables: list[Table] = field(default_factory=list)
    hints: list[Hint] = field(default_factory=list)


def evaluation_hints(what: str, runs: Sequence[Run], *options: str) -> list[Hint]:
    """Make the hint that `bmlpipe evaluate` computes missing results; empty if no run lacks them.

    Args:
        what: Name of the missing results.
        runs: Runs that lack them.
        options: Options of the command.
    """
    if not runs:
        return []
    names = [str(run.folder) for run in runs]
    more = f" # and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    command = shlex.join(["bmlpipe", "evaluate", *names[:_LISTED], *options])
    count = "1 run" if len(names) == 1 else f"{len(names)} runs"
    return [Hint(f"{what}: not available for {count}. This command computes it:", command + more)]
