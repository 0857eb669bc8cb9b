"""The command `bmlpipe train`: train a model, in one process or in several by torchrun's own machinery."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from bmlpipe.manifests.common.command import Program
from bmlpipe.manifests.common.help_texts import option
from bmlpipe.train.config.options import GROUPS
from bmlpipe.train.config.parsing import read_options, train_options

_PROCESSES = "--nproc-per-node"


class _Train(Program):
    """A command that keeps its arguments as they were typed, to pass them on to torchrun."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the arguments."""
        ctx.obj = list(args)
        return super().parse_args(ctx, args)


@click.command(
    cls=_Train,
    on_interrupt="continue the run from its last checkpoint with --resume",
    examples=(
        "bmlpipe train",
        "bmlpipe train --modulation opm --shards shards/cremad --epochs 50",
        'bmlpipe train --nproc-per-node 2 --modulation "opm(q_base=0.5)+ogm(alpha=0.5)"',
    ),
)
@option(
    _PROCESSES,
    "processes",
    group=GROUPS[0],
    type=click.IntRange(1),
    help="Number of training processes, one per GPU. torchrun starts them.",
    shown="1, without torchrun",
)
@train_options
@click.pass_context
def train(context: click.Context, /, processes: int | None, file: Path | None, **given: Any) -> None:
    """Train a model from shards.

    Without --shards, the only shards in shards/ are taken, with the paper's setting of their data set. On several
    hosts, start the same program by torchrun: torchrun … -m bmlpipe.train OPTIONS
    """
    config = read_options(file, given)
    if processes is None:
        from bmlpipe.train.run import train as run

        sys.exit(run(config))
    launcher = ["-m", "torch.distributed.run", "--standalone", _PROCESSES, str(processes), "-m", "bmlpipe.train"]
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, *launcher, *without_processes(context.obj)])  # noqa: S606


def without_processes(arguments: Sequence[str]) -> list[str]:
    """Remove `--nproc-per-node N` from the arguments.

    Examples:
        >>> without_processes(["--epochs", "3", "--nproc-per-node", "2", "--resume"])
        ['--epochs', '3', '--resume']
    """
    left, skip = [], False
    for argument in arguments:
        if skip or argument == _PROCESSES:
            skip = not skip
        elif not argument.startswith(f"{_PROCESSES}="):
            left.append(argument)
    return left
