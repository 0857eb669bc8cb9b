"""The command `bmlpipe sweep`: a whole comparison over seeds."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from bmlpipe.manifests.common.command import Program
from bmlpipe.manifests.datasets import DATASETS
from bmlpipe.pipeline.cli.options import FOLDER, PICTURE
from bmlpipe.pipeline.cli.report import show

if TYPE_CHECKING:
    from bmlpipe.train.runs.journal import Row
    from bmlpipe.train.sweep.recipe import Job, Recipe

_logger = logging.getLogger(__name__)


def _list(context: click.Context, parameter: click.Parameter, value: bool) -> None:
    """Print the bundled recipes and end."""
    if not value:
        return
    from bmlpipe.train.sweep.recipe_file import bundled, read_recipe

    for name, path in bundled().items():
        recipe = read_recipe(path)
        only = f" ({', '.join(recipe.datasets)})" if recipe.datasets else ""
        click.echo(f"{name:18} {recipe.about}{only}")
    context.exit()


def _page(context: click.Context, parameter: click.Parameter, value: Path | None) -> Path | None:
    if value is not None and value.suffix.lower() not in (".html", ".htm"):
        raise click.BadParameter(f"{value}: the report is a page, name it .html (pictures: --picture)")
    return value


@click.command(cls=Program, on_interrupt="run the same command again: it continues where it stopped")
@click.argument("recipe")
@click.option("--list", is_flag=True, is_eager=True, expose_value=False, callback=_list, help="List bundled recipes.")
@click.option("--dataset", type=click.Choice(list(DATASETS)), help="Replaces the recipe's.")
@click.option("--shards", help="Replaces the recipe's.")
@click.option("--out", type=FOLDER, help="Folder of all runs, OUT/<name>/seed-<seed>.  [runs/<recipe>-<dataset>]")
@click.option("--set", "pairs", multiple=True, metavar="OPTION=VALUE", help="Replaces an option of the recipe's base.")
@click.option("--seeds", metavar="N,…", help="Replaces the recipe's.")
@click.option("--jobs", type=click.IntRange(1), help="Runs at a time.  [one a GPU, or one on the processor]")
@click.option("--devices", metavar="GPU,…", help="GPUs as CUDA_VISIBLE_DEVICES names them.  [all that are visible]")
@click.option("--nproc-per-node", type=click.IntRange(1), help="Start each run by torchrun, with so many processes.")
@click.option("--dry-run", is_flag=True, help="Only say what would run.")
@click.option("--picture", type=PICTURE, help="Picture to write at the end: .png, .svg or .pdf.")
@click.option("--report", "page", type=PICTURE, callback=_page, help="Page to write at the end: .html.")
def sweep(
    recipe: str,
    dataset: str | None,
    shards: str | None,
    out: Path | None,
    pairs: tuple[str, ...],
    seeds: str | None,
    jobs: int | None,
    devices: str | None,
    nproc_per_node: int | None,
    dry_run: bool,
    picture: Path | None,
    page: Path | None,
) -> None:
    """Run what a comparison lacks, then print its table.

    RECIPE is a YAML file, or the name of a bundled recipe (--list). After a stop or a kill the same command goes on.
    """
    from bmlpipe.manifests.common.locks import exclusive_folder
    from bmlpipe.train.runs.trackers import check_installed
    from bmlpipe.train.sweep.devices import make_slots, visible_gpus
    from bmlpipe.train.sweep.folder import check_shards, state_of
    from bmlpipe.train.sweep.recipe_file import find_recipe, overrides, read_recipe, whole_numbers
    from bmlpipe.train.sweep.run_jobs import run_jobs

    plan = read_recipe(find_recipe(recipe))
    given = {key: value for key, value in {"dataset": dataset, "shards": shards}.items() if value is not None}
    base = overrides(pairs)
    set_name = dataset or base.get("dataset") or plan.base.get("dataset") or "folder"
    out = out or Path("runs") / f"{plan.path.stem}-{set_name}"
    planned = plan.jobs(out, given=given, base=base, seeds=whole_numbers(seeds) if seeds else ())
    plan.numbers(planned)
    on_cpu = all(job.config.device == "cpu" for job in planned)
    gpus = devices.split(",") if devices else [] if on_cpu else visible_gpus()
    slots = make_slots(gpus, jobs=jobs, processes=nproc_per_node or 0)
    check_installed(planned[0].config.trackers)
    check_shards(planned)
    states = [state_of(job) for job in planned]
    counts = ", ".join(f"{states.count(state)} {state}" for state in ("finished", "begun", "missing"))
    _logger.info("%d runs in %s: %s; %d at a time", len(planned), out, counts, len(slots))
    if dry_run:
        for job, state in zip(planned, states):
            click.echo(f"{state:9} {job}")
        return
    with exclusive_folder(out, "sweep") as lock:
        failed = run_jobs(planned, slots, inherit=[] if lock is None else [lock])
    _tell(plan, planned, failed, out=out, pairs=pairs, picture=picture, page=page)
    if failed:
        names = "; ".join(map(str, failed))
        raise click.ClickException(
            f"{len(failed)} of {len(planned)} runs failed, see log.txt in their folders: {names}. The same command "
            "tries them again"
        )


def _tell(
    plan: Recipe,
    jobs: Sequence[Job],
    failed: Sequence[Job],
    *,
    out: Path,
    pairs: Sequence[str],
    picture: Path | None,
    page: Path | None,
) -> None:
    """Print the tables and the commands to go on with, and write what was asked for."""
    from bmlpipe.manifests.common.tables import print_table
    from bmlpipe.train.sweep.folder import result_of
    from bmlpipe.train.sweep.paper_table import side_by_side

    succeeded = [job for job in jobs if job not in failed]
    if not succeeded:
        return
    show([job.folder for job in succeeded], picture, page)
    if paper := plan.numbers(jobs):
        rows: dict[str, list[Row]] = {job.name: [] for job in jobs}
        for job in succeeded:
            rows[job.name] += filter(None, [result_of(job.folder)])
        click.echo(f"\nThe paper on {DATASETS[jobs[0].config.dataset].title}, and these runs, test split, %:\n")
        print_table(*side_by_side(paper, rows))
        if pairs:
            click.echo(f"\nThese runs are not in the paper's setting: {', '.join(pairs)}.")
    if lines := plan.commands(out, jobs):
        click.echo("\nTo go on:\n" + "\n".join(f"  {line}" for line in lines))
