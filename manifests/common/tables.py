"""Tables: written as CSV that reads back exactly, and printed for people."""

from __future__ import annotations

import csv
import io
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TextIO

import click

from bmlpipe.manifests.common.files import open_atomically

Row = Sequence[str]

_NUMBER = re.compile(r"[-−–+]?(\d|$)")


def write_csv_rows(file: TextIO, rows: Iterable[Row]) -> None:
    """Write rows as CSV. They read back exactly, unless a cell holds a NUL character; lines end with a line feed."""
    plain = csv.writer(file, lineterminator="\n")
    quoted = csv.writer(file, lineterminator="\n", quoting=csv.QUOTE_ALL)  # csv leaves a lone "\r" unquoted
    for row in rows:
        (quoted if "\r" in "".join(row) else plain).writerow(row)


def write_csv(path: Path, rows: Iterable[Row], *, sync: bool = False) -> None:
    """Write a CSV file atomically, in UTF-8. Undecodable bytes of file names (surrogate escapes) are kept.

    Args:
        path: The file to create or replace.
        rows: Rows of cells, the header first.
        sync: Flush the file to the disk before it is renamed.
    """
    with open_atomically(path, sync=sync) as file:
        text = io.TextIOWrapper(file, encoding="utf-8", errors="surrogateescape", newline="")
        write_csv_rows(text, rows)
        text.flush()
        text.detach()


def markdown_table(header: Row, rows: Iterable[Row]) -> str:
    """Format a table as Markdown; `|` in a cell is escaped.

    Examples:
        >>> print(markdown_table(["run", "accuracy"], [["opm", "61.2"]]), end="")
        | run | accuracy |
        | --- | --- |
        | opm | 61.2 |
    """
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)


def print_table(header: Row, rows: Iterable[Row], *, caption: str = "") -> None:
    """Print a table to stdout: with lines and aligned columns on a terminal, as Markdown elsewhere."""
    rows = list(rows)
    if not sys.stdout.isatty():
        click.echo((f"\n{caption}\n\n" if caption else "") + markdown_table(header, rows), nl=False)
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=escape(caption) or None, title_justify="left")
    for number, title in enumerate(header):
        numeric = all(_NUMBER.match(row[number]) for row in rows)
        table.add_column(escape(title), justify="right" if numeric else "left")
    for row in rows:
        table.add_row(*map(escape, row))
    Console(highlight=False).print(table)
