"""The command `bmlpipe report`: runs side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from bmlpipe.manifests.common.command import Program
from bmlpipe.pipeline.cli.options import EXISTING_FOLDER, PICTURE

_PAGES = (".html", ".htm")


def show(folders: Sequence[Path], *files: Path | None, reference: Path | None = None) -> None:
    """Print the table of runs, then write a page or a picture to each of the files, as its ending says.

    Args:
        folders: Of the runs.
        files: .html: the page; anything else: the picture of ρ and accuracies. None: nothing.
        reference: Folder of the run that the page compares classes with; None: the same without modulation.
    """
    from bmlpipe.manifests.common.tables import print_table
    from bmlpipe.train.report import picture, read_run, table

    runs = [read_run(folder) for folder in folders]
    print_table(*table(runs))
    for file in filter(None, files):
        if file.suffix.lower() in _PAGES:
            from bmlpipe.train.report.page import write_page

            chosen = next((run for run in runs if reference and run.folder.resolve() == reference.resolve()), None)
            folder = write_page(runs, file, chosen)
            click.echo(f"page: {file}, with figures and tables in {folder}")
        else:
            picture(runs, file)
            click.echo(f"picture: {file}")


@click.command(cls=Program)
@click.argument("runs", nargs=-1, required=True, type=EXISTING_FOLDER)
@click.option("--out", type=PICTURE, help="Page (.html) or picture (.png, .svg, .pdf) to write.")
@click.option(
    "--reference",
    type=EXISTING_FOLDER,
    help="Which of the runs the page compares classes with.  [the same training without modulation]",
)
def report(runs: tuple[Path, ...], out: Path | None, reference: Path | None) -> None:
    """Runs side by side: a table, and a page about everything that they wrote.

    The page (--out report.html) needs no network and opens from disk; its figures and tables also lie beside it, in
    report_files/. With --out report.png, .svg or .pdf: a picture of ρ and accuracies only.
    """
    if reference is not None and reference.resolve() not in {run.resolve() for run in runs}:
        raise click.BadParameter(f"{reference} is not among the runs: name it there too", param_hint="--reference")
    show(runs, out, reference=reference)
