"""The command line. Imports of anything heavy stand inside the commands, so that `--help` answers at once."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from bmlpipe.manifests.datasets import DATASETS

_FOLDER = click.Path(file_okay=False, path_type=Path)
_EXISTING = click.Path(exists=True, file_okay=False, path_type=Path)
_DATASET = click.option("--dataset", required=True, type=click.Choice(list(DATASETS)), help="See `bmlpipe datasets`.")
_KINDS = ("frames", "spectrogram", "flow")


class FeatureKinds(click.ParamType):
    """Feature kinds separated by commas."""

    name = "names"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        """`frames,flow` → ("frames", "flow")."""
        if isinstance(value, tuple):
            return value
        names = tuple(part.strip() for part in str(value).split(",") if part.strip())
        if not names or set(names) - set(_KINDS):
            self.fail(f"{value!r}: choose among {', '.join(_KINDS)}, separated by commas", param, ctx)
        return names


@contextmanager
def _errors_explained() -> Iterator[None]:
    """Errors that are the user's to mend end the command with their message and exit status 1."""
    from bmlpipe.manifests.schema import ManifestError
    from bmlpipe.pipeline.extract import ExtractionError
    from bmlpipe.pipeline.store import StoreError, StoreWriteError
    from bmlpipe.shards.spec import ShardError

    try:
        yield
    except (ManifestError, ExtractionError, StoreError, StoreWriteError, ShardError, ValueError, RuntimeError) as error:
        raise click.ClickException(str(error)) from error
    except KeyboardInterrupt as error:
        raise click.ClickException("interrupted: run the same command again, it goes on where it stopped") from error


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.version_option(package_name="bmlpipe")
def main() -> None:
    """From raw audio-visual clips to a balanced multimodal model: extract, shard, then torchrun train/run.py."""


@main.command()
def datasets() -> None:
    """List the data sets: what each is, and what you must supply."""
    for name, dataset in DATASETS.items():
        length = f"{dataset.seconds} s" if dataset.seconds else "the whole clip"
        click.echo(f"{click.style(name, bold=True)}: {dataset.title}. {dataset.summary}")
        click.echo(f"    --annotations   {dataset.annotations}")
        click.echo(f"    --videos        {dataset.videos}")
        click.echo(
            f"    paper's setting {' + '.join(dataset.modalities)} from {' and '.join(dataset.kinds)} of {length}, "
            f"{dataset.train_frames} frames a sample{', ImageNet weights' if dataset.pretrained else ''}\n"
        )


@main.command()
@_DATASET
@click.option("--videos", required=True, type=_EXISTING, help="Folder of the clips.")
@click.option("--annotations", type=click.Path(exists=True, path_type=Path), help="Official annotation file or folder.")
@click.option("--out", required=True, type=_FOLDER, help="Feature folder; a second run does only what is missing.")
@click.option("--modalities", "kinds", type=FeatureKinds(), help="frames,spectrogram,flow  [the paper's setting]")
@click.option("--seconds", type=click.IntRange(1), help="Length taken of each clip.  [the data set's]")
@click.option("--short-side", type=int, default=256, show_default=True, help="Short side of frames and flow, pixels.")
@click.option(
    "--preset", default="vggsound", show_default=True, type=click.Choice(["vggsound", "magnitude"]), help="Spectrogram."
)
@click.option("--flow-algorithm", default="dis", show_default=True, type=click.Choice(["dis", "farneback", "tvl1"]))
@click.option(
    "--flow-stack", default=1, show_default=True, type=click.IntRange(1, 10), help="Consecutive fields an instant."
)
@click.option("--fold", default=1, show_default=True, type=click.IntRange(1, 3), help="UCF-101's split.")
@click.option("--val-fraction", default=0.1, show_default=True, help="Share of train, for a set without val.")
@click.option("--val-by-group", is_flag=True, help="By group (CREMA-D: actors).")
@click.option("--workers", type=click.IntRange(0), help="Processes; 0: in this one, without Dask.  [all cores]")
@click.option("--scheduler", help="Address of an existing Dask scheduler, tcp://…, instead.")
@click.option("--batch", default=8, show_default=True, type=click.IntRange(1), help="Clips a task.")
@click.option("--retry-failed", is_flag=False, flag_value="all", help="Take failed clips again: all, or one reason's.")
@click.option(
    "--max-failed",
    default=0.05,
    show_default=True,
    type=click.FloatRange(0, 1),
    help="Share of failed clips above which the exit status is 1.",
)
@click.option("--dry-run", is_flag=True, help="Say what would be done.")
def extract(
    dataset: str,
    videos: Path,
    annotations: Path | None,
    out: Path,
    kinds: tuple[str, ...] | None,
    seconds: int | None,
    short_side: int,
    preset: str,
    flow_algorithm: str,
    flow_stack: int,
    fold: int,
    val_fraction: float,
    val_by_group: bool,
    workers: int | None,
    scheduler: str | None,
    batch: int,
    retry_failed: str | None,
    max_failed: float,
    dry_run: bool,
) -> None:
    """Clips → features: 1-fps frames, spectrograms, optical flow, from one decode of each clip."""
    from bmlpipe.manifests.datasets import read_manifest
    from bmlpipe.pipeline.extract import available_cores, claimed, make_plan, run
    from bmlpipe.pipeline.flow import FlowOptions
    from bmlpipe.pipeline.frames import FrameOptions
    from bmlpipe.pipeline.progress import Meter
    from bmlpipe.pipeline.spectrogram import SpectrogramOptions
    from bmlpipe.pipeline.work import Recipe

    with _errors_explained():
        wanted = kinds or DATASETS[dataset].kinds
        recipe = Recipe(
            seconds or DATASETS[dataset].seconds,
            FrameOptions(short_side=short_side) if "frames" in wanted else None,
            SpectrogramOptions(preset=preset) if "spectrogram" in wanted else None,
            FlowOptions(algorithm=flow_algorithm, stack=flow_stack, short_side=short_side)
            if "flow" in wanted
            else None,
        )
        manifest = read_manifest(
            dataset, annotations, videos=videos, fold=fold, val_fraction=val_fraction, group_val=val_by_group
        )
        for note in manifest.notes:
            click.echo(note, err=True)
        with claimed(out):
            plan = make_plan(manifest, videos, out, recipe, retry_failed=retry_failed)
            click.echo(
                f"{dataset}: {len(manifest.clips)} clips ({', '.join(f'{s} {n}' for s, n in manifest.counts().items())})"
                f"; {len(plan.tasks)} to do, {len(plan.done)} done before, {len(plan.failed)} failed before, "
                f"{len(plan.absent)} without a file",
                err=True,
            )
            if dry_run:
                return
            with Meter("clips", len(plan.tasks)) as meter:
                counts = run(
                    manifest,
                    videos,
                    out,
                    recipe,
                    plan,
                    workers=available_cores() if workers is None else workers,
                    scheduler=scheduler,
                    batch=batch,
                    progress=lambda rows: meter.advance(len(rows), Counter(r.reason for r in rows if r.reason)),
                )
    found = counts["ok"] + counts["failed"]
    click.echo(f"ok {counts['ok']}, failed {counts['failed']}, absent {counts['absent']}: see {out / 'ledger.csv'}")
    if not found:
        raise click.ClickException(f"no clip has a file below {videos}: see `bmlpipe datasets` for file names")
    if counts["failed"] > max_failed * found:
        raise click.ClickException(
            f"{counts['failed']} of {found} clips failed, more than --max-failed {max_failed:g}: "
            f"see the reasons in {out / 'ledger.csv'}"
        )


@main.command()
@_DATASET
@click.option("--features", required=True, type=_EXISTING, help="Feature folder (bmlpipe extract).")
@click.option("--out", required=True, type=_FOLDER, help="Folder of the shards; an old set is replaced as a whole.")
@click.option("--modalities", "kinds", type=FeatureKinds(), help="Feature kinds to take.  [all that were extracted]")
@click.option("--samples-per-shard", default=1000, show_default=True, type=click.IntRange(1))
@click.option("--seed", default=0, show_default=True, help="Seed of the written order.")
def shard(
    dataset: str, features: Path, out: Path, kinds: tuple[str, ...] | None, samples_per_shard: int, seed: int
) -> None:
    """Features → WebDataset tar shards with an index."""
    from bmlpipe.pipeline.progress import Meter
    from bmlpipe.pipeline.shard import write_shards

    with _errors_explained():
        meters: list[Meter] = []

        def start(total: int) -> None:
            meters.append(Meter("samples", total).__enter__())

        try:
            counts = write_shards(
                dataset,
                features,
                out,
                kinds=kinds,
                samples_per_shard=samples_per_shard,
                seed=seed,
                start=start,
                progress=lambda: meters[0].advance(),  # noqa: PLW0108  (made by start)
            )
        finally:
            for meter in meters:
                meter.__exit__(None, None, None)
    click.echo(f"{sum(counts.values())} samples ({', '.join(f'{s} {n}' for s, n in counts.items())}) in {out}")


@main.command()
@click.argument("shards", type=_EXISTING)
def verify(shards: Path) -> None:
    """Reread shards and compare every byte with the index; exit status 1 and a row for each fault."""
    from bmlpipe.shards.index import read_index
    from bmlpipe.shards.verify import verify as compare

    with _errors_explained():
        faults = list(compare(shards))
        index = read_index(shards)
    for fault in faults:
        click.echo("\t".join([fault.shard, fault.key or "-", fault.member or "-", fault.message]))
    click.echo(f"{len(index.shards)} shards, {len(index.samples)} samples, {len(faults)} faults", err=True)
    sys.exit(1 if faults else 0)


def _print_table(runs: list[Path], out: Path | None) -> None:
    from rich.console import Console
    from rich.table import Table

    from bmlpipe.train.report import markdown, picture, read_run, table

    found = [read_run(folder) for folder in runs]
    titles, rows = table(found)
    if sys.stdout.isatty():
        shown = Table(*titles)
        for row in rows:
            shown.add_row(*row)
        Console().print(shown)
    else:
        click.echo(markdown(titles, rows), nl=False)
    if out is not None:
        picture(found, out)
        click.echo(f"picture: {out}")


@main.command()
@click.argument("runs", nargs=-1, required=True, type=_EXISTING)
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="Picture to write: .png, .svg or .pdf.")
def report(runs: tuple[Path, ...], out: Path | None) -> None:
    """Runs side by side: a table, and a picture of ρ and accuracies."""
    with _errors_explained():
        _print_table(list(runs), out)


@main.command()
@click.argument("recipe", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--dataset", type=click.Choice(list(DATASETS)), help="Replaces the recipe's.")
@click.option("--shards", type=_EXISTING, help="Replaces the recipe's.")
@click.option("--out", required=True, type=_FOLDER, help="Folder of all runs: OUT/<name>/seed-<seed>.")
@click.option("--jobs", default=1, show_default=True, type=click.IntRange(1), help="Runs at a time.")
@click.option("--picture", type=click.Path(dir_okay=False, path_type=Path), help="Picture to write at the end.")
def sweep(recipe: Path, dataset: str | None, shards: Path | None, out: Path, jobs: int, picture: Path | None) -> None:
    """Run what a recipe's comparison lacks, then print its table; killed sweeps go on."""
    from bmlpipe.train.sweep import read_recipe, run_jobs

    with _errors_explained():
        planned = read_recipe(recipe, out, dataset=dataset, shards=str(shards) if shards else None)
        click.echo(f"{len(planned)} runs, {sum(job.finished for job in planned)} finished before", err=True)
        failed = run_jobs(planned, parallel=jobs, say=lambda line: click.echo(line, err=True))
        _print_table([job.folder for job in planned if job.finished], picture)
    if failed:
        raise click.ClickException(
            f"{len(failed)} of {len(planned)} runs failed: {', '.join(job.name for job in failed)}"
        )


@main.command()
@click.option("--out", default="demo", show_default=True, type=_FOLDER, help="Folder for everything the demo makes.")
@click.option("--clips", default=500, show_default=True, type=click.IntRange(50, 1500), help="Clips to make.")
@click.option("--epochs", default=10, show_default=True, type=click.IntRange(1))
@click.option("--processes", default=2, show_default=True, type=click.IntRange(1), help="Training processes.")
def demo(out: Path, clips: int, epochs: int, processes: int) -> None:
    """Make a small synthetic data set of video files; extract, shard and train with and without OPM."""
    import shlex

    from bmlpipe.pipeline.demo import commands, make_clips, run_command
    from bmlpipe.pipeline.progress import Meter

    with _errors_explained():
        if out.exists() and any(out.iterdir()):
            raise click.ClickException(f"{out} is not empty: remove it, or choose another --out")
        click.echo(
            f"Making {clips} short video files in {out / 'clips'}: handwritten digits that drift among clutter, and "
            "keypad tones in noise. The data is synthetic: sound is easy here and pictures are hard, on purpose."
        )
        part = clips // 5
        with Meter("clips", clips) as meter:
            counts = {"train": clips - 2 * part, "val": part, "test": part}
            annotation = make_clips(out / "clips", counts, meter.advance)
        for words in commands(out, annotation, epochs=epochs, processes=processes):
            click.secho(f"\n$ {shlex.join(words)}", bold=True)
            run_command(words)
    click.echo(
        "\nρ of audio far above 1 means that sound dominates the joint training, and the visual branch learns little. "
        "OPM drops the dominant feature now and then, which brings ρ down and lets the visual branch learn. "
        "(Synthetic data: these numbers say nothing about any real task.)"
    )


if __name__ == "__main__":
    main()
