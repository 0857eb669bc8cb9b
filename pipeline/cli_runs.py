"""The commands about trained runs: report, sweep and demo. The one place where pipeline meets train."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import click

from bmlpipe.manifests.datasets import DATASETS
from bmlpipe.pipeline.commands import EXISTING_FOLDER, FOLDER, errors_explained

_PICTURE = click.Path(dir_okay=False, path_type=Path)


def _show(folders: Sequence[Path], picture_file: Path | None) -> None:
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
@click.option("--out", type=_PICTURE, help="Picture to write: .png, .svg or .pdf.")
def report(runs: tuple[Path, ...], out: Path | None) -> None:
    """Runs side by side: a table, and a picture of ρ and accuracies."""
    with errors_explained("run the same command again"):
        _show(runs, out)


@click.command()
@click.argument("recipe", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--dataset", type=click.Choice(list(DATASETS)), help="Replaces the recipe's.")
@click.option("--shards", help="Replaces the recipe's.")
@click.option("--out", required=True, type=FOLDER, help="Folder of all runs: OUT/<name>/seed-<seed>.")
@click.option("--jobs", default=1, show_default=True, type=click.IntRange(1), help="Runs at a time.")
@click.option("--picture", type=_PICTURE, help="Picture to write at the end.")
def sweep(recipe: Path, dataset: str | None, shards: str | None, out: Path, jobs: int, picture: Path | None) -> None:
    """Run what a recipe's comparison lacks, then print its table; a killed sweep goes on."""
    from bmlpipe.train.config import ConfigError
    from bmlpipe.train.sweep import read_recipe, run_jobs

    with errors_explained("run the same command again, it goes on where it stopped"):
        try:
            planned = read_recipe(recipe, out, dataset=dataset, shards=shards)
        except ConfigError as error:
            raise click.ClickException(str(error)) from error
        click.echo(f"{len(planned)} runs, {sum(job.finished for job in planned)} finished before", err=True)
        failed = run_jobs(planned, parallel=jobs, say=lambda line: click.echo(line, err=True))
        succeeded = [job.folder for job in planned if job not in failed]
        if succeeded:
            _show(succeeded, picture)
    if failed:
        names = ", ".join(job.name for job in failed)
        raise click.ClickException(
            f"{len(failed)} of {len(planned)} runs failed, see log.txt in their folders: {names}"
        )


@click.command()
@click.option("--out", default="demo", show_default=True, type=FOLDER, help="Folder for everything the demo makes.")
@click.option("--clips", default=800, show_default=True, type=click.IntRange(100, 1500), help="Clips to make.")
@click.option("--epochs", default=16, show_default=True, type=click.IntRange(1))
@click.option("--processes", default=2, show_default=True, type=click.IntRange(1), help="Training processes.")
def demo(out: Path, clips: int, epochs: int, processes: int) -> None:
    """Make a small synthetic data set of video files; extract, shard, train with and without OPM."""
    from bmlpipe.pipeline.demo import DemoError, commands, make_clips, run_command, start_afresh
    from bmlpipe.pipeline.progress import Meter

    with errors_explained("run the same command again"):
        part = clips // 6
        try:
            start_afresh(out)
            click.echo(
                f"Making {clips} short video files in {out / 'clips'}: handwritten digits that drift among clutter, "
                "and keypad tones in noise. The data is synthetic: on purpose, sound is easy here, but fainter in the "
                "test split, and pictures are hard."
            )
            with Meter("clips", clips) as meter:
                counts = {"train": clips - 2 * part, "val": part, "test": part}
                annotation = make_clips(out / "clips", counts, meter.advance)
            for words in commands(out, annotation, epochs=epochs, processes=processes):
                click.secho(f"\n$ {shlex.join(words)}", bold=True)
                run_command(words)
        except DemoError as error:
            raise click.ClickException(str(error)) from error
    click.echo(
        "\nρ of audio far above 1 means that sound dominates the joint training, and the visual branch learns little. "
        "OPM drops the dominant feature now and then, which brings ρ down and lets the visual branch learn: when the "
        "sound is faint, in the test split, that is what the model can fall back on. "
        "(Synthetic data: these numbers say nothing about any real task.)"
    )
