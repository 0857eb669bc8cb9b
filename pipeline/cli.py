"""The command line. Imports of anything heavy stand inside the commands, so that `--help` answers at once."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from bmlpipe.manifests.datasets import DATASETS
from bmlpipe.pipeline.cli_extract import extract
from bmlpipe.pipeline.cli_runs import demo, report, sweep
from bmlpipe.pipeline.commands import EXISTING_FOLDER, FOLDER, dataset_option, errors_explained, kinds_option


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.version_option(package_name="bmlpipe")
def main() -> None:
    """From raw audio-visual clips to a balanced multimodal model: extract, shard, then torchrun train/run.py."""


for _command in (extract, report, sweep, demo):
    main.add_command(_command)


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
@dataset_option
@click.option("--features", required=True, type=EXISTING_FOLDER, help="Feature folder (bmlpipe extract).")
@click.option("--out", required=True, type=FOLDER, help="Folder of the shards; an old set is replaced as a whole.")
@kinds_option("Feature kinds to take.  [all that were extracted]")
@click.option(
    "--samples-per-shard", default=1000, show_default=True, type=click.IntRange(1), help="Samples of one tar file."
)
@click.option("--seed", default=0, show_default=True, help="Seed of the written order.")
def shard(
    dataset: str, features: Path, out: Path, kinds: tuple[str, ...] | None, samples_per_shard: int, seed: int
) -> None:
    """Features → WebDataset tar shards with an index."""
    from bmlpipe.pipeline.progress import Meter
    from bmlpipe.pipeline.shard import write_shards

    with errors_explained("nothing was changed; run the same command again"), Meter("samples") as meter:
        counts = write_shards(
            dataset,
            features,
            out,
            kinds=kinds,
            samples_per_shard=samples_per_shard,
            seed=seed,
            start=meter.expect,
            progress=meter.advance,
        )
    click.echo(f"{sum(counts.values())} samples ({', '.join(f'{s} {n}' for s, n in counts.items())}) in {out}")


@main.command()
@click.argument("shards", type=EXISTING_FOLDER)
def verify(shards: Path) -> None:
    """Reread shards and compare every byte with the index; exit status 1 and a row for each fault."""
    from bmlpipe.pipeline.progress import Meter
    from bmlpipe.shards.index import read_index
    from bmlpipe.shards.verify import verify as compare

    faults = 0
    with errors_explained("run the same command again"):
        index = read_index(shards)
        with Meter("samples", len(index.samples)) as meter:
            for fault in compare(shards, lambda _: meter.advance()):
                faults += 1
                click.echo("\t".join([fault.shard, fault.key or "-", fault.member or "-", fault.message]))
    click.echo(f"{len(index.shards)} shards, {len(index.samples)} samples, {faults} faults", err=True)
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
