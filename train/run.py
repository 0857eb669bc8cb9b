"""Train a model from shards: `torchrun --nproc-per-node N train/run.py …`, or without torchrun.

`bmlpipe train` and `torchrun -m bmlpipe.train` start the same program from an installed package.

Exit status: 0 finished, 1 an error that the message explains, 2 wrong usage, 130 interrupted, 143 stopped by SIGTERM
after saving. A run that was interrupted or stopped continues with --resume.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__" and sys.path[:1] == [str(Path(__file__).resolve().parent)]:
    del sys.path[0]  # `torchrun train/run.py` puts this folder first, so `import config` anywhere would find ours

import dataclasses
import logging
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import click
import yaml

from bmlpipe.manifests.common.command import Program, log_options
from bmlpipe.manifests.common.logs import configure_for_rank
from bmlpipe.train.config.options import ConfigError, TrainConfig
from bmlpipe.train.config.parsing import read_options, train_options
from bmlpipe.train.runs.folder import RunFolder

if TYPE_CHECKING:
    from bmlpipe.train.distributed.group import ProcessInfo
    from bmlpipe.train.runs.journal_reader import Row

_logger = logging.getLogger("bmlpipe.train")


#: Help of this program and of `bmlpipe train`.
SUMMARY = "Train a multimodal model from shards, with a modulation rule if one is chosen."

ON_INTERRUPT = "continue the run from its last checkpoint with --resume"


@click.command(
    cls=Program,
    on_interrupt=ON_INTERRUPT,
    help=SUMMARY,
    examples=(
        "torchrun train/run.py",
        "torchrun --nproc-per-node 2 train/run.py --modulation opm --shards shards/cremad --epochs 50",
    ),
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
)
@train_options
@log_options
def main(file: Path | None, **given: Any) -> None:
    """Run the command line."""
    sys.exit(train(read_options(file, given)))


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

    from bmlpipe.train.distributed.group import process_group

    torch.backends.cudnn.benchmark = True
    with process_group(config.device, timeout=timedelta(seconds=config.group_timeout)) as process:
        configure_for_rank(process.rank)
        if process.is_main:
            shards, modulation = ", ".join(config.shards), config.modulation
            _logger.info(
                "data set %s, shards %s, modulation %s, run %s", config.dataset, shards, modulation, config.out
            )
            prepare(config)
        if process.world_size > 1:
            torch.distributed.barrier()
        metrics = _run(config, process)
    if metrics is None:
        _logger.info("stopped on request after saving: continue with --resume")
        return 143
    if metrics:
        _logger.info("finished: %s of epoch %d, in %s", metrics["split"], metrics["epoch"], config.out)
    else:
        _logger.info("nothing is left to do: all %d epochs of %s are trained", config.epochs, config.out)
    _logger.info("Next: bmlpipe report %s", config.out)
    return 0


def _run(config: TrainConfig, process: ProcessInfo) -> Row | None:
    """Train. Everything that holds the process group is released when this function returns."""
    from bmlpipe.train.engine.trainer import Trainer
    from bmlpipe.train.runs.status import run_status

    trainer = Trainer(config, process)
    with run_status(config, trainer.batches.steps) if process.is_main else nullcontext() as status:
        metrics = trainer.train()
        if status is not None and metrics is None:
            status.state = "stopped"
    return metrics


def prepare(config: TrainConfig) -> None:
    """Create the run's folder and write the resolved options into it.

    Raises:
        ConfigError: The folder holds the checkpoints of a run, and `resume` is off.
    """
    folder = RunFolder(Path(config.out))
    if folder.checkpoints.is_dir() and not config.resume:
        raise ConfigError(f"{folder.path} holds a run already: continue it with --resume, or choose another --out")
    folder.path.mkdir(parents=True, exist_ok=True)
    text = yaml.safe_dump(dataclasses.replace(config, resume=False).as_dict(), sort_keys=False, allow_unicode=True)
    folder.config.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
