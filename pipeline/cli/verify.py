"""The command `bmlpipe verify`: compare shards with their index."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from bmlpipe.manifests.common.command import Program
from bmlpipe.manifests.common.help_texts import option
from bmlpipe.pipeline.cli.options import log_next, shards_argument

if TYPE_CHECKING:
    from bmlpipe.shards.index import Index

_logger = logging.getLogger(__name__)


@click.command(cls=Program, examples=("bmlpipe verify", "bmlpipe verify s3://bucket/shards/vggsound"))
@shards_argument
@option("--workers", type=click.IntRange(1), help="Number of shards to read at the same time.", shown="all cores")
def verify(shards: Path | str, workers: int | None) -> None:
    """Compare every byte of shards with their index.

    SHARDS is a folder or an address (s3://, gs://, https://). Without it, the only shards in shards/ are taken.

    Each fault is one row on stdout, separated by tabs: shard, key, member, message. The exit status is 0 if there is no
    fault, 1 if there are faults or no index, 2 for wrong usage and 130 after Ctrl-C.
    """
    from dask.system import CPU_COUNT  # this process's affinity and its container's quota

    from bmlpipe.manifests.common.progress import ProgressMeter
    from bmlpipe.shards.verify.compare import verify as compare

    faults, size = 0, ""
    with ProgressMeter("samples") as meter:

        def start(index: Index) -> None:
            nonlocal size
            size = f"{len(index.shards)} shards, {len(index.samples)} samples, "
            meter.expect(len(index.samples))

        for fault in compare(shards, meter.advance, start=start, workers=workers or int(CPU_COUNT)):
            faults += 1
            click.echo("\t".join([fault.shard, fault.key or "-", fault.member or "-", fault.message]))
    _logger.info("%s%d faults", size, faults)
    log_next("bmlpipe shard (writes the shards again)" if faults else "bmlpipe train")
    sys.exit(1 if faults else 0)
