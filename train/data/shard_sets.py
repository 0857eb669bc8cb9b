"""Open the sets of shards that the options of a run name."""

from __future__ import annotations

from collections.abc import Sequence

from bmlpipe.shards.combined_reader import CombinedReader
from bmlpipe.shards.errors import ShardError
from bmlpipe.shards.mixture_order import Mixture
from bmlpipe.shards.reader import ShardReader
from bmlpipe.shards.remote.shard_set import is_remote, open_cache
from bmlpipe.train.config.options import TrainConfig


def open_reader(config: TrainConfig, *, weights: Sequence[float] | None = None) -> CombinedReader:
    """Open the sets of shards of a run as one.

    Args:
        config: Resolved options.
        weights: Relative frequency of each set in training; None: every sample once per epoch.

    Raises:
        ShardError: A set cannot be read, or the sets do not fit together.
    """
    cache = open_cache(config.cache, config.cache_bytes) if any(map(is_remote, config.shards)) else None
    readers = [ShardReader(place, cache=cache) for place in config.shards]
    return CombinedReader(readers, kinds=set(config.kinds.values()), weights=weights)


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
