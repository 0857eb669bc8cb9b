"""The folder of a sweep: the states of its runs, and the check that they are runs of this recipe."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import yaml

from bmlpipe.manifests.datasets import DATASETS
from bmlpipe.train.config.options import MAY_CHANGE, ConfigError
from bmlpipe.train.data.shard_sets import make_dataset, open_shards
from bmlpipe.train.runs.folder import LAST, RunFolder
from bmlpipe.train.runs.journal_reader import Row, read_rows
from bmlpipe.train.sweep.recipe import Job

_logger = logging.getLogger(__name__)

State = Literal["finished", "unfinished", "new"]


def check_shards(jobs: Sequence[Job]) -> None:
    """Open the shards that the jobs will train on.

    Raises:
        ShardError: The shards cannot be read, or lack the feature kind of a modality or the validation split.
    """
    found: dict[str, str] = {}
    for job in {(job.config.shards, job.config.shard_weights, *job.config.kinds.items()): job for job in jobs}.values():
        config = job.config
        reader, _ = open_shards(config)
        make_dataset(config, reader, augment=False)
        reader.index.split_shards("val")
        found[str(reader.folder)] = reader.index.dataset
    setting = DATASETS[jobs[0].config.dataset]
    for folder, dataset in found.items():
        if dataset != setting.clips_of:
            _logger.warning("%s holds shards of %s, but the runs have the setting of %s", folder, dataset, setting.name)


def final_metrics(folder: Path) -> Row | None:
    """Read the metrics of a run on the test split; None if there are none yet."""
    path = RunFolder(folder).metrics
    rows = [row for row in read_rows(path) if row["split"] == "test"] if path.is_file() else []
    return rows[-1] if rows else None


def state_of(job: Job) -> State:
    """Return `finished` (evaluated on the test split), `unfinished` (it has a checkpoint) or `new`.

    A run on shards without a test split stays `unfinished`. If it is started again, it finds nothing to do.

    Raises:
        ConfigError: The folder holds a run with other options, or with more epochs.
    """
    run = RunFolder(job.folder)
    has_checkpoint, tested = run.checkpoint(LAST).is_file(), final_metrics(job.folder) is not None
    if not (has_checkpoint or tested):
        return "new"
    try:
        before = yaml.safe_load(run.config.read_text(encoding="utf-8"))
        epochs = int(before["epochs"])
    except (OSError, UnicodeDecodeError, yaml.YAMLError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(
            f"{run.config} is damaged ({error}), so the options of the run in this folder are unknown. Delete "
            f"{job.folder}, or choose another --out."
        ) from error
    after = job.config.as_dict()
    changed = [name for name in after if name not in MAY_CHANGE and name in before and before[name] != after[name]]
    if job.config.epochs < epochs:
        changed.append("epochs")
    if changed:
        listed = "; ".join(f"{name}: {before[name]!r} there, {after[name]!r} in the recipe" for name in changed)
        raise ConfigError(
            f"{job.folder} holds a run with other options ({listed}). Use the same options, or choose another --out."
        )
    return "finished" if tested and epochs == job.config.epochs else "unfinished" if has_checkpoint else "new"
