"""The places that a training takes when no option names them: its shards, its data set and its folder."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from bmlpipe.manifests import places
from bmlpipe.manifests.datasets import DATASETS
from bmlpipe.shards.index import INDEX_FILE, read_index
from bmlpipe.shards.reader import ShardReader
from bmlpipe.shards.remote.shard_set import is_remote, open_cache
from bmlpipe.train.config.options import ConfigError, TrainConfig


def located(config: TrainConfig) -> TrainConfig:
    """Fill in `shards`, `dataset` and `out` where they are not given.

    The shards are `shards/<dataset>`, or the only ones in `shards/`. The data set is that of the shards' index.

    Raises:
        ConfigError: The shards are of several data sets, or of an unknown one.
        PlaceError: There are no shards, or several sets to choose from.
        ShardError: The index of the shards cannot be read.
    """
    shards = config.shards or (str(_default_shards(config.dataset)),)
    dataset = config.dataset or _dataset_of(shards, config)
    out = config.out or str(places.run_folder(dataset, config.modulation, config.seed))
    return dataclasses.replace(config, shards=shards, dataset=dataset, out=out)


def _default_shards(dataset: str) -> Path:
    if dataset and (folder := places.shards_folder(dataset)).is_dir():
        return folder
    folder = places.the_only(places.SHARDS, INDEX_FILE, option="--shards", command="bmlpipe shard")
    if dataset and read_index(folder).dataset != DATASETS[dataset].clips_of:
        raise ConfigError(
            f"there is no folder {places.shards_folder(dataset)}, only {folder}. Run bmlpipe shard for {dataset} "
            "first, or name the shards with --shards."
        )
    return folder


def _dataset_of(shards: Sequence[str], config: TrainConfig) -> str:
    found = {place: _index_dataset(place, config) for place in shards}
    names = sorted(set(found.values()))
    if len(names) > 1:
        listed = ", ".join(f"{place} of {name}" for place, name in found.items())
        raise ConfigError(f"the shards are of several data sets ({listed}). Choose the setting with --dataset.")
    if names[0] not in DATASETS:
        raise ConfigError(
            f"{shards[0]} holds shards of {names[0]!r}, which has no setting of its own. Choose one with --dataset: "
            f"{', '.join(DATASETS)}."
        )
    return names[0]


def _index_dataset(place: str, config: TrainConfig) -> str:
    if is_remote(place):
        return ShardReader(place, cache=open_cache(config.cache, config.cache_bytes)).index.dataset
    return read_index(Path(place)).dataset
