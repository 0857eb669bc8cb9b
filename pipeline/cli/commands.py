"""The command line. Imports of anything heavy stand inside the commands, so that `--help` answers at once."""

from __future__ import annotations

import click

from bmlpipe.manifests.common.command import ProgramGroup
from bmlpipe.manifests.datasets import DATASETS
from bmlpipe.pipeline.cli.demo import demo
from bmlpipe.pipeline.cli.evaluate import evaluate
from bmlpipe.pipeline.cli.extract import extract
from bmlpipe.pipeline.cli.inspect import inspect
from bmlpipe.pipeline.cli.report import report
from bmlpipe.pipeline.cli.shard import shard, stats, verify
from bmlpipe.pipeline.cli.sweep import sweep


@click.group(cls=ProgramGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.version_option(package_name="bmlpipe")
def main() -> None:
    """From raw audio-visual clips to a balanced multimodal model: extract, shard, then torchrun train/run.py."""


for _command in (extract, shard, verify, stats, inspect, evaluate, report, sweep, demo):
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


if __name__ == "__main__":
    main()
