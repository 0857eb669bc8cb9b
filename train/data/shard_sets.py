"""The shards and samples of a run, as its options name them."""

from __future__ import annotations

from collections.abc import Sequence

from bmlpipe.shards.combined_reader import CombinedReader
from bmlpipe.shards.errors import ShardError
from bmlpipe.shards.mixture_order import Mixture
from bmlpipe.shards.reader import ShardReader
from bmlpipe.shards.remote.shard_set import is_remote, open_cache
from bmlpipe.train.config.options import TrainConfig
from bmlpipe.train.data.dataset import ClipDataset


def open_reader(config: TrainConfig, *, weights: Sequence[float] | None = None) -> CombinedReader:
    """Open the sets of shards of a run as one.

    Args:
        config: Resolved options.
        weights: Relative frequency of each set in training; None: every sample once per epoch.

    Raises:
        ShardError: A set cannot be read, or the sets do not fit together.
    """
    cache = open_cache(config.cache, config.cache_bytes) if any(map(is_remote, config.shards)) else None
    readers = [ShardReader(shards, cache=cache) for shards in config.shards]
    return CombinedReader(readers, kinds=set(config.kinds.values()), weights=weights)


def make_dataset(config: TrainConfig, reader: CombinedReader, *, augment: bool) -> ClipDataset:
    """Make the data set of a run: its modalities of the samples of these shards.

    Args:
        config: Resolved options.
        reader: The shards.
        augment: Whether training gets random crops, flips and frames.

    Raises:
        ShardError: The shards lack the feature of a modality.
    """
    return ClipDataset(
        reader,
        config.resolved_modalities,
        kinds=config.kinds,
        frames=config.frames or 1,
        image_size=config.image_size,
        augment=augment,
        seed=config.seed,
    )


def open_shards(config: TrainConfig) -> tuple[CombinedReader, Mixture]:
    """Open the sets of shards of a run as one, for training; return them and their training samples.

    Raises:
        ShardError: A set cannot be read, the sets do not fit together, or have no training samples, or the cache is too
            small for the shards that are shuffled at a time.
    """
    reader = open_reader(config, weights=config.shard_weights or None)
    if reader.mixture is None:
        raise ShardError(f"{reader.folder} has no training samples: see bmlpipe stats")
    reader.check_cache_size(config.shuffle_shards)
    return reader, reader.mixture
