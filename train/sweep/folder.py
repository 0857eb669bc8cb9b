"""The folder of a sweep: who may write into it, what its runs have come to, and whether they are the wanted ones."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import yaml

from bmlpipe.manifests.datasets import DATASETS
from bmlpipe.train.config.options import ConfigError
from bmlpipe.train.data.dataset import ClipDataset
from bmlpipe.train.data.open_shards import open_shards
from bmlpipe.train.runs.checkpoint import MAY_CHANGE
from bmlpipe.train.runs.folder import LAST, RunFolder
from bmlpipe.train.runs.journal_reader import Row, read_rows
from bmlpipe.train.sweep.recipe import Job

_logger = logging.getLogger(__name__)

State = Literal["finished", "begun", "missing"]


def check_shards(jobs: Sequence[Job]) -> None:
    """Open the shards that the jobs will train on.

    Raises:
        ShardError: They cannot be read, or lack the feature of a modality or the validation split.
    """
    held: dict[str, str] = {}
    for job in {(job.config.shards, job.config.shard_weights, *job.config.kinds.items()): job for job in jobs}.values():
        config = job.config
        reader, _ = open_shards(config)
        ClipDataset(
            reader,
            config.resolved_modalities,
            kinds=config.kinds,
            frames=config.frames or 1,
            image_size=16,
            augment=False,
            seed=0,
        )
        reader.index.split_shards("val")
        held[str(reader.folder)] = reader.index.dataset
    setting = DATASETS[jobs[0].config.dataset]
    for folder, dataset in held.items():
        if dataset != setting.clips_of:
            _logger.warning("%s holds shards of %s, the setting is that of %s", folder, dataset, setting.name)


def result_of(folder: Path) -> Row | None:
    """A run's row of the test split; None where it has none (yet)."""
    path = RunFolder(folder).metrics
    rows = [row for row in read_rows(path) if row["split"] == "test"] if path.is_file() else []
    return rows[-1] if rows else None


def state_of(job: Job) -> State:
    """`finished` (its test row is written), `begun` (it has a checkpoint) or `missing`.

    A run on shards without a test split stays `begun`; started again, it finds nothing to do.

    Raises:
        ConfigError: The folder holds a run with other options, or of more epochs.
    """
    run = RunFolder(job.folder)
    path, begun = run.config, run.checkpoint(LAST).is_file()
    tested = result_of(job.folder) is not None
    if not (begun or tested):
        return "missing"
    try:
        before = yaml.safe_load(path.read_text(encoding="utf-8"))
        epochs = int(before["epochs"])
    except (OSError, UnicodeDecodeError, yaml.YAMLError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(
            f"{path} is damaged ({error}), so nobody knows what was trained there: delete {job.folder}, or choose "
            "another --out"
        ) from error
    wanted = job.config.as_dict()
    changed = [name for name in wanted if name not in MAY_CHANGE and name in before and before[name] != wanted[name]]
    if job.config.epochs < epochs:
        changed.append("epochs")
    if changed:
        listed = "; ".join(f"{name}: {before[name]!r} there, {wanted[name]!r} wanted" for name in changed)
        raise ConfigError(f"{job.folder} holds a run with other options ({listed}): use those, or another --out")
    return "finished" if tested and epochs == job.config.epochs else "begun" if begun else "missing"
