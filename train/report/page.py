"""One self-contained page about runs, and a folder beside it with every figure and table as files of their own."""

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
from bmlpipe.train.report.content import Comparison, Section, compare
from bmlpipe.train.report.evaluated import evaluated_sections
from bmlpipe.train.report.evaluations import read_evaluated
from bmlpipe.train.report.plot import Figure, render
from bmlpipe.train.report.tables import Table
from bmlpipe.train.report.training import training_sections
from bmlpipe.train.runs.read_run import Note, Run

_WRITTEN = ".written"  # names of the files that a page has beside it, so that the next one leaves none behind

_Item = TypeVar("_Item", Figure, Table)


def write_page(runs: Sequence[Run], path: Path, reference: Run | None = None) -> Path:
    """Write the page, and its files into a folder beside it (report.html: report_files/).

    Args:
        runs: What to compare; those that differ by seed only become one experiment.
        path: The page.
        reference: Which of the runs the others' classes are compared with; None: the same without modulation.

    Returns:
        The folder.
    """
    evaluated = [read_evaluated(run) for run in runs]
    compared = compare(runs, evaluated, reference)
    sections = _named([*training_sections(compared), *evaluated_sections(compared)])
    folder = path.with_name(f"{path.stem}_files")
    folder.mkdir(parents=True, exist_ok=True)
    _clear(folder)
    tables = [table for s in sections for table in (*s.tables, *s.folded, *s.files)]
    figures = [figure for s in sections for figure in (*s.figures, *s.more, *s.unshown)]
    names = [f"{table.name}.csv" for table in tables]
    names += [f"{figure.name}.{ending}" for figure in figures for ending in ("png", "svg")]
    (folder / _WRITTEN).write_text("\n".join(names), encoding="utf-8")
    for table in tables:
        (folder / f"{table.name}.csv").write_text(table.as_csv(), encoding="utf-8", newline="")
    drawn = {figure.name: Markup(render(figure, folder)) for figure in figures}  # noqa: S704 - matplotlib escapes text
    notes = [note for run, one in zip(runs, evaluated, strict=True) for note in (*run.notes, *one.notes)]
    write_atomically(path, _html(compared, sections, drawn, notes, folder.name))
    return folder


def _html(
    compared: Comparison, sections: Sequence[Section], drawn: dict[str, Markup], notes: Sequence[Note], folder: str
) -> str:
    files = resources.files("bmlpipe.train.report")
    template, style, script = (
        (files / f"page.{ending}").read_text(encoding="utf-8") for ending in ("html", "css", "js")
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


def _named(sections: Sequence[Section]) -> Sequence[Section]:
    """Give figures, and tables, names that differ, where those of modalities or experiments differ by signs only."""
    figures: set[str] = set()
    tables: set[str] = set()
    for section in sections:
        for part in (section.figures, section.more, section.unshown):
            part[:] = _apart(part, figures)
        for one in (section.tables, section.folded, section.files):
            one[:] = _apart(one, tables)
    return sections


def _apart(items: Iterable[_Item], taken: set[str]) -> list[_Item]:
    named = []
    for item in items:
        name, count = item.name, 1
        while name in taken:
            count += 1
            name = f"{item.name}-{count}"
        taken.add(name)
        named.append(replace(item, name=name))
    return named


def _clear(folder: Path) -> None:
    """Remove what an earlier page left in its folder, and nothing else."""
    listed = folder / _WRITTEN
    for name in listed.read_text(encoding="utf-8").splitlines() if listed.is_file() else ():
        if name == Path(name).name:
            (folder / name).unlink(missing_ok=True)
