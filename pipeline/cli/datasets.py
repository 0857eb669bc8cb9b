"""The command `bmlpipe datasets`: the data sets that bmlpipe knows."""

from __future__ import annotations

import click

from bmlpipe.manifests import places
from bmlpipe.manifests.common.command import Program
from bmlpipe.manifests.datasets import DATASETS, Dataset
from bmlpipe.pipeline.cli.options import log_next


@click.command(cls=Program, examples=("bmlpipe datasets",))
def datasets() -> None:
    """List the data sets, and the files that each needs."""
    for dataset in DATASETS.values():
        _print(dataset)
    log_next("bmlpipe extract --dataset NAME")


def _print(dataset: Dataset) -> None:
    folder = places.DATA / dataset.clips_of
    length = f"{dataset.seconds} s" if dataset.seconds else "the whole clip"
    weights = ", ImageNet weights" if dataset.pretrained else ""
    click.echo(f"{click.style(dataset.name, bold=True)}: {dataset.title}. {dataset.summary}")
    click.echo(f"    {folder / 'videos'}: {dataset.videos}")
    click.echo(f"    {folder / 'annotations'}: {dataset.annotations}")
    if dataset.origin:
        click.echo(f"    download from {dataset.origin}")
    click.echo(
        f"    paper's setting: {' + '.join(dataset.modalities)} from {' and '.join(dataset.kinds)} of {length}, "
        f"frames per sample: {dataset.train_frames}{weights}\n"
    )
