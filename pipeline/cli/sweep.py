"""The command `bmlpipe sweep`: train the runs of a recipe over several seeds."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from bmlpipe.manifests import places
from bmlpipe.manifests.common.command import Program
from bmlpipe.manifests.common.help_texts import option
from bmlpipe.manifests.datasets import DATASETS
from bmlpipe.pipeline.cli.options import DATASET, FOLDER, PICTURE, log_next, log_places
from bmlpipe.pipeline.cli.report import show

if TYPE_CHECKING:
    from bmlpipe.train.runs.journal_reader import Row
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
        raise click.BadParameter(f"{value} must end in .html; --picture writes pictures.")
    return value


@click.command(
    cls=Program,
    on_interrupt="run the same command again: it continues where it stopped",
    examples=("bmlpipe sweep --list", "bmlpipe sweep table-2 --shards shards/cremad --report table-2.html"),
)
@click.argument("name", metavar="RECIPE")
@option("--list", is_flag=True, is_eager=True, expose_value=False, callback=_list, help="List the bundled recipes.")
@option("--dataset", type=DATASET, help="Data set, overrides the recipe.", shown="the data set of the shards")
@option("--shards", help="Shards, overrides the recipe.", shown="shards/<dataset>, or the only ones in shards/")
@option(
    "--out",
    type=FOLDER,
    help="Folder of the sweep; each run is in OUT/<name>/seed-<seed>.",
    shown="runs/<dataset>/<recipe>",
)
@option(
    "--set", "pairs", multiple=True, metavar="OPTION=VALUE", help="Override an option of the recipe's base; repeatable."
)
@option("--seeds", metavar="LIST", help="Seeds, separated by commas; overrides the recipe.")
@option("--dry-run", is_flag=True, help="List the runs and do nothing.")
@option("--report", "page", type=PICTURE, callback=_page, help="Page to write at the end, .html.")
@option("--picture", type=PICTURE, help="Picture to write at the end: .png, .svg or .pdf.")
@option(
    "--jobs",
    "at_once",
    type=click.IntRange(1),
    help="Number of runs at the same time.",
    shown="one per GPU, one without GPUs",
)
@option("--devices", metavar="LIST", help="GPUs, as in CUDA_VISIBLE_DEVICES.", shown="all visible GPUs")
@option(
    "--nproc-per-node",
    type=click.IntRange(1),
    help="Number of processes per run, started by torchrun.",
    shown="1, without torchrun",
)
def sweep(
    name: str,
    dataset: str | None,
    shards: str | None,
    out: Path | None,
    pairs: tuple[str, ...],
    seeds: str | None,
    at_once: int | None,
    devices: str | None,
    nproc_per_node: int | None,
    dry_run: bool,
    picture: Path | None,
    page: Path | None,
) -> None:
    """Train the runs of a recipe, and compare them.

    RECIPE is a YAML file or the name of a bundled recipe (--list). Finished runs are kept: after an interruption the
    same command continues.
    """
    from bmlpipe.manifests.common.locks import exclusive_folder
    from bmlpipe.train.config.parsing import parse
    from bmlpipe.train.config.places import located
    from bmlpipe.train.runs.trackers import check_installed
    from bmlpipe.train.sweep.devices import share_devices, visible_gpus
    from bmlpipe.train.sweep.folder import check_shards, state_of
    from bmlpipe.train.sweep.recipe_file import find_recipe, parse_overrides, parse_seeds, read_recipe
    from bmlpipe.train.sweep.run_jobs import run_jobs

    recipe = read_recipe(find_recipe(name))
    given = {key: value for key, value in {"dataset": dataset, "shards": shards}.items() if value is not None}
    base = parse_overrides(pairs)
    common = located(parse({**recipe.base, **base, **given}, f"{recipe.path}, base"))
    given = {"dataset": common.dataset, "shards": ",".join(common.shards)}
    out = out or places.RUNS / common.dataset / recipe.path.stem
    log_places(shards=", ".join(common.shards), runs=out)
    jobs = recipe.jobs(out, given=given, base=base, seeds=parse_seeds(seeds) if seeds else ())
    recipe.published(jobs)  # an error in the published results shows before anything is trained
    on_cpu = all(job.config.device == "cpu" for job in jobs)
    gpus = devices.split(",") if devices else [] if on_cpu else visible_gpus()
    groups = share_devices(gpus, jobs=at_once, processes=nproc_per_node or 0)
    check_installed(jobs[0].config.trackers)
    check_shards(jobs)
    states = [state_of(job) for job in jobs]
    counts = ", ".join(f"{states.count(state)} {state}" for state in ("finished", "unfinished", "new"))
    _logger.info("%d runs in %s: %s; %d at a time", len(jobs), out, counts, len(groups))
    if dry_run:
        for job, state in zip(jobs, states):
            click.echo(f"{state:10} {job}")
        log_next("the same command without --dry-run")
        return
    with exclusive_folder(out, "sweep") as lock:
        failed = run_jobs(jobs, groups, inherit=[] if lock is None else [lock])
    _show_results(recipe, jobs, failed, out=out, pairs=pairs, picture=picture, page=page)
    if failed:
        names = "; ".join(map(str, failed))
        raise click.ClickException(
            f"{len(failed)} of {len(jobs)} runs failed; see log.txt in their folders: {names}. The same command "
            "tries them again"
        )


def _show_results(
    recipe: Recipe,
    jobs: Sequence[Job],
    failed: Sequence[Job],
    *,
    out: Path,
    pairs: Sequence[str],
    picture: Path | None,
    page: Path | None,
) -> None:
    """Print the tables and the next commands, and write the page and the picture."""
    from bmlpipe.manifests.common.tables import print_table
    from bmlpipe.train.sweep.folder import final_metrics
    from bmlpipe.train.sweep.paper_table import paper_table

    succeeded = [job for job in jobs if job not in failed]
    if not succeeded:
        return
    show([job.folder for job in succeeded], picture, page)
    if paper := recipe.published(jobs):
        rows: dict[str, list[Row]] = {job.name: [] for job in jobs}
        for job in succeeded:
            rows[job.name] += filter(None, [final_metrics(job.folder)])
        table = paper_table(paper, rows)
        print_table(table.header, table.rows, caption=f"{DATASETS[jobs[0].config.dataset].title}. {table.caption}")
        if pairs:
            click.echo(f"\nThese runs are not in the paper's setting: {', '.join(pairs)}.")
    for line in recipe.commands(out, jobs) or [f"bmlpipe report {out}/*/seed-* --out report.html"]:
        log_next(line)
