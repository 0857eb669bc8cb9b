"""The command `bmlpipe report`: runs side by side."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import click

from bmlpipe.pipeline.commands import EXISTING_FOLDER, PICTURE, errors_explained


def show(folders: Sequence[Path], picture_file: Path | None) -> None:
    """Print the table of runs and draw their picture."""
    from bmlpipe.train.config import ConfigError
    from bmlpipe.train.report import markdown, picture, read_run, table

    try:
        runs = [read_run(folder) for folder in folders]
    except ConfigError as error:
        raise click.ClickException(str(error)) from error
    titles, rows = table(runs)
    if sys.stdout.isatty():
        from rich.console import Console
        from rich.table import Table

        shown = Table(*titles)
        for row in rows:
            shown.add_row(*row)
        Console().print(shown)
    else:
        click.echo(markdown(titles, rows), nl=False)
    if picture_file is not None:
        picture(runs, picture_file)
        click.echo(f"picture: {picture_file}")


@click.command()
@click.argument("runs", nargs=-1, required=True, type=EXISTING_FOLDER)
@click.option("--out", type=PICTURE, help="Picture to write: .png, .svg or .pdf.")
def report(runs: tuple[Path, ...], out: Path | None) -> None:
    """Runs side by side: a table, and a picture of ρ and accuracies."""
    with errors_explained("run the same command again"):
        show(runs, out)
