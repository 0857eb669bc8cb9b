"""Train a model from shards: `torchrun --nproc-per-node N train/run.py …`, or without torchrun.

Exit status: 0 finished, 1 an error that the message explains, 2 wrong usage, 130 interrupted (go on with --resume from
the last checkpoint), 143 stopped by SIGTERM after saving (go on with --resume).
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__" and sys.path[:1] == [str(Path(__file__).resolve().parent)]:
    del sys.path[0]  # `torchrun train/run.py` puts this folder first: `import config` anywhere would find ours

import dataclasses
import logging
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import click
import yaml

from bmlpipe.manifests.common.command import Program, log_options
from bmlpipe.manifests.common.logs import configure_for_rank
from bmlpipe.train.config.options import ConfigError, TrainConfig
from bmlpipe.train.config.parsing import flags, parse, read_file

if TYPE_CHECKING:
    from bmlpipe.train.distributed.process_group import ProcessInfo
    from bmlpipe.train.runs.journal import Row

_logger = logging.getLogger("bmlpipe.train")


@click.command(
    cls=Program,
    on_interrupt="go on with --resume, from the last checkpoint",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
)
@click.option(
    "--config",
    "file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="YAML of options; flags go before it.",
)
@flags
@log_options
def main(file: Path | None, **given: Any) -> None:
    """Train a multimodal model from shards, with on-the-fly modulation (OPM, OGM) and a journal row every step."""
    flags_given = {name: value for name, value in given.items() if value is not None}
    try:
        values = {**(read_file(file) if file else {}), **flags_given}
        config = parse(values, str(file) if file else "the command line").resolved()
    except ConfigError as error:
        raise click.UsageError(str(error)) from error
    sys.exit(train(config))


def train(config: TrainConfig) -> int:
    """Train with a resolved configuration on this rank.

    Returns:
        Exit status: 0, or 143 where SIGTERM ended the training after saving.

    Raises:
        BmlpipeError: The configuration, the shards or the run's folder do not fit together, another rank is lost, or
            the loss is no longer finite.
    """
    from datetime import timedelta

    import torch

    from bmlpipe.train.distributed.process_group import process_group

    torch.backends.cudnn.benchmark = True
    with process_group(config.device, timeout=timedelta(seconds=config.group_timeout)) as process:
        configure_for_rank(process.rank)
        if process.is_main:
            prepare(config)
        if process.world_size > 1:
            torch.distributed.barrier()
        metrics = _run(config, process)
    if metrics is None:
        _logger.info("stopped on request, everything is saved: go on with --resume")
        return 143
    if metrics:
        about = (metrics["split"], metrics["epoch"], metrics["accuracy"], config.out)
        _logger.info("finished: %s of epoch %d, accuracy %.3f, in %s", *about)
    else:
        _logger.info("nothing was left to do: all %d epochs of %s are trained", config.epochs, config.out)
    return 0


def _run(config: TrainConfig, process: ProcessInfo) -> Row | None:
    """Train; what holds the process group is gone with this call."""
    from bmlpipe.train.engine.trainer import Trainer
    from bmlpipe.train.runs.status import run_status

    training = Trainer(config, process)
    with run_status(config, training.batches.steps) if process.is_main else nullcontext() as status:
        metrics = training.run()
        if status is not None and metrics is None:
            status.state = "stopped"
    return metrics


def prepare(config: TrainConfig) -> None:
    """Make the run's folder and write the resolved configuration into it.

    Raises:
        ConfigError: The folder holds another run's checkpoint and `resume` is off.
    """
    folder = Path(config.out)
    if (folder / "checkpoints").is_dir() and not config.resume:
        raise ConfigError(f"{folder} holds a run already: go on with --resume, or choose another --out")
    folder.mkdir(parents=True, exist_ok=True)
    text = yaml.safe_dump(dataclasses.replace(config, resume=False).as_dict(), sort_keys=False, allow_unicode=True)
    (folder / "config.yaml").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
