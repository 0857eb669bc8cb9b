"""The program `bmlpipe`. Heavy modules are imported inside the commands, so that `--help` answers at once."""

from __future__ import annotations

import click

from bmlpipe.manifests.common.command import ProgramGroup
from bmlpipe.manifests.common.help_texts import GENERAL, GroupedOption
from bmlpipe.pipeline.cli.datasets import datasets
from bmlpipe.pipeline.cli.demo import demo
from bmlpipe.pipeline.cli.evaluate import evaluate
from bmlpipe.pipeline.cli.extract import extract
from bmlpipe.pipeline.cli.inspect import inspect
from bmlpipe.pipeline.cli.report import report
from bmlpipe.pipeline.cli.shard import shard
from bmlpipe.pipeline.cli.stats import stats
from bmlpipe.pipeline.cli.sweep import sweep
from bmlpipe.pipeline.cli.train import train
from bmlpipe.pipeline.cli.verify import verify


@click.group(
    cls=ProgramGroup,
    examples=("bmlpipe extract --dataset vggsound", "bmlpipe shard", "bmlpipe train --modulation opm"),
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120, "show_default": True},
)
@click.version_option(package_name="bmlpipe", cls=GroupedOption, group=GENERAL)
def main() -> None:
    """From raw audio-visual clips to a balanced multimodal model.

    The commands stand in the order of the work. They take files from conventional places under the current folder,
    data/<dataset>/videos, data/<dataset>/annotations, features/<dataset>, shards/<dataset> and runs/, unless an option
    names another place.
    """


#: In the order of the work.
for _command in (datasets, extract, shard, verify, stats, inspect, train, evaluate, report, sweep, demo):
    main.add_command(_command)


if __name__ == "__main__":
    main()
