"""One self-contained HTML page about runs, and a folder beside it with every figure and table as a file."""

from __future__ import annotations

import base64
import hashlib
import importlib.metadata
from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import datetime
from importlib import resources
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from bmlpipe.manifests.common.files import write_atomically
from bmlpipe.manifests.common.tables import write_csv
from bmlpipe.train.report.evaluation_sections import evaluation_sections
from bmlpipe.train.report.experiments import Comparison, compare
from bmlpipe.train.report.figure import Figure, write_figure
from bmlpipe.train.report.read_evaluation import read_evaluations
from bmlpipe.train.report.section import Section
from bmlpipe.train.report.tables import Table
from bmlpipe.train.report.training_sections import training_sections
from bmlpipe.train.runs.run_reader import Note, Run

_FILE_LIST = ".written"  # names of the files beside the page, so that the next page removes them

_Item = TypeVar("_Item", Figure, Table)


def write_page(runs: Sequence[Run], path: Path, reference: Run | None = None) -> Path:
    """Write a page, and its files into a folder beside it (for report.html: report_files).

    Args:
        runs: Runs to compare; those that differ in the seed only become one experiment.
        path: HTML file to write.
        reference: One of the runs, with whose classes those of all others are compared; None: the same training
            without modulation.

    Returns:
        The folder.
    """
    evaluations = [read_evaluations(run) for run in runs]
    compared = compare(runs, evaluations, reference)
    sections = [*training_sections(compared), *evaluation_sections(compared)]
    _make_names_unique(sections)
    folder = path.with_name(f"{path.stem}_files")
    folder.mkdir(parents=True, exist_ok=True)
    _remove_files(folder)
    tables = [table for s in sections for table in (*s.tables, *s.folded_tables, *s.linked_tables)]
    figures = [figure for s in sections for figure in (*s.figures, *s.folded_figures, *s.linked_figures)]
    names = [f"{table.name}.csv" for table in tables]
    names += [f"{figure.name}.{suffix}" for figure in figures for suffix in ("png", "svg")]
    (folder / _FILE_LIST).write_text("\n".join(names), encoding="utf-8")
    for table in tables:
        write_csv(folder / f"{table.name}.csv", [table.header, *table.rows])
    drawn = {figure.name: Markup(write_figure(figure, folder)) for figure in figures}  # noqa: S704 - text is escaped
    notes = [note for run, found in zip(runs, evaluations, strict=True) for note in (*run.notes, *found.notes)]
    write_atomically(path, _html(compared, sections, drawn, notes, folder.name))
    return folder


def _html(
    compared: Comparison, sections: Sequence[Section], drawn: dict[str, Markup], notes: Sequence[Note], folder: str
) -> str:
    files = resources.files("bmlpipe.train.report")
    template, style, script = (
        (files / f"page.{suffix}").read_text(encoding="utf-8") for suffix in ("html", "css", "js")
    )
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(template).render(
        compared=compared,
        sections=sections,
        drawn=drawn,
        notes=notes,
        files=quote(folder),
        style=Markup(style),  # noqa: S704 - the package's own
        script=Markup(script),  # noqa: S704 - the package's own
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        version=importlib.metadata.version("bmlpipe"),
        made=f"{datetime.now():%Y-%m-%d %H:%M}",
    )


def _make_names_unique(sections: Sequence[Section]) -> None:
    """Number the figures and tables whose names are equal, since names of experiments may differ in signs only."""
    figures: set[str] = set()
    tables: set[str] = set()
    for section in sections:
        for some in (section.figures, section.folded_figures, section.linked_figures):
            some[:] = _numbered(some, figures)
        for others in (section.tables, section.folded_tables, section.linked_tables):
            others[:] = _numbered(others, tables)


def _numbered(items: Iterable[_Item], taken: set[str]) -> list[_Item]:
    named = []
    for item in items:
        name, count = item.name, 1
        while name in taken:
            count += 1
            name = f"{item.name}-{count}"
        taken.add(name)
        named.append(replace(item, name=name))
    return named


def _remove_files(folder: Path) -> None:
    """Remove the files of an earlier page, and no others."""
    listed = folder / _FILE_LIST
    for name in listed.read_text(encoding="utf-8").splitlines() if listed.is_file() else ():
        if name == Path(name).name:
            (folder / name).unlink(missing_ok=True)
