"""The command `bmlpipe sweep`: a whole comparison over seeds."""

from __future__ import annotations

from pathlib import Path

import click

from bmlpipe.manifests.datasets import DATASETS
from bmlpipe.pipeline.cli_report import show
from bmlpipe.pipeline.commands import FOLDER, PICTURE, errors_explained


@click.command()
@click.argument("recipe", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--dataset", type=click.Choice(list(DATASETS)), help="Replaces the recipe's.")
@click.option("--shards", help="Replaces the recipe's.")
@click.option("--out", required=True, type=FOLDER, help="Folder of all runs: OUT/<name>/seed-<seed>.")
@click.option("--jobs", default=1, show_default=True, type=click.IntRange(1), help="Runs at a time.")
@click.option("--picture", type=PICTURE, help="Picture to write at the end.")
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
            show(succeeded, picture)
    if failed:
        names = ", ".join(job.name for job in failed)
        raise click.ClickException(
            f"{len(failed)} of {len(planned)} runs failed, see log.txt in their folders: {names}"
        )
