"""The command `bmlpipe report`: compare runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from bmlpipe.manifests import places
from bmlpipe.manifests.common.command import Program
from bmlpipe.manifests.common.help_texts import option
from bmlpipe.pipeline.cli.options import EXISTING_FOLDER, PICTURE, log_next, log_places

_PAGES = (".html", ".htm")


def show(folders: Sequence[Path], *files: Path | None, reference: Path | None = None) -> None:
    """Print the table of runs, then write a page or a picture.

    Args:
        folders: Folders of the runs.
        files: Files to write: `.html` is the page, any other ending a picture of ρ and accuracies. None is skipped.
        reference: Folder of the run that the page compares classes with; None: the same run without modulation.
    """
    from bmlpipe.manifests.common.tables import print_table
    from bmlpipe.train.report.tables import results_table
    from bmlpipe.train.runs.run_reader import read_run

    runs = [read_run(folder) for folder in folders]
    results = results_table(runs)
    print_table(results.header, results.rows)
    for file in filter(None, files):
        if file.suffix.lower() in _PAGES:
            from bmlpipe.train.report.page import write_page

            compared_with = next(
                (run for run in runs if reference and run.folder.resolve() == reference.resolve()), None
            )
            folder = write_page(runs, file, compared_with)
            click.echo(f"page: {file}, with figures and tables in {folder}")
        else:
            from bmlpipe.train.report.picture import write_picture

            write_picture(runs, file)
            click.echo(f"picture: {file}")


@click.command(
    cls=Program,
    examples=("bmlpipe report", "bmlpipe report runs/cremad/none-seed0 runs/cremad/opm-seed0 --out report.html"),
)
@click.argument("runs", nargs=-1, type=EXISTING_FOLDER)
@option(
    "--out", type=PICTURE, help="File to write: a page (.html), or a picture of ρ and accuracies (.png, .svg, .pdf)."
)
@option(
    "--reference",
    type=EXISTING_FOLDER,
    help="Run that the page compares classes with; one of RUNS.",
    shown="the same training without modulation",
)
def report(runs: tuple[Path, ...], out: Path | None, reference: Path | None) -> None:
    """Compare runs in a table, and in a page with all their results.

    RUNS are folders of runs. Without them, all runs in runs/ are taken.

    The page (--out report.html) opens from disk and needs no network. Its figures and tables are also written to
    report_files/ beside it.
    """
    named = " ".join(["bmlpipe report", *map(str, runs)])
    runs = runs or _all_runs()
    if reference is not None and reference.resolve() not in {run.resolve() for run in runs}:
        raise click.BadParameter(f"{reference} must be one of RUNS.", param_hint="--reference")
    show(runs, out, reference=reference)
    if out is None:
        log_next(f"{named} --out report.html")
    else:
        log_next(f"open {out}")


def _all_runs() -> tuple[Path, ...]:
    from bmlpipe.train.runs.folder import CONFIG_FILE

    found = tuple(sorted(path.parent for path in places.RUNS.rglob(CONFIG_FILE)))
    if not found:
        raise places.PlaceError(f"there is no run in {places.RUNS}/. Run bmlpipe train first, or name folders of runs.")
    log_places(runs=", ".join(map(str, found)))
    return found
