"""Configuration → the sets of shards to read."""

from __future__ import annotations

from collections.abc import Sequence

from bmlpipe.shards.combined_reader import MixedReader
from bmlpipe.shards.errors import ShardError
from bmlpipe.shards.mixture_order import Mixture
from bmlpipe.shards.reader import ShardReader
from bmlpipe.shards.remote.shard_set import is_remote, open_cache
from bmlpipe.train.config.options import TrainConfig


def open_reader(config: TrainConfig, *, weights: Sequence[float] | None = None) -> MixedReader:
    """The configured sets of shards, read as one.

    Args:
        config: Resolved configuration.
        weights: How often each set is drawn from in training; None: each sample once.

    Raises:
        ShardError: One cannot be read, or they do not fit together.
    """
    cache = open_cache(config.cache, config.cache_bytes) if any(map(is_remote, config.shards)) else None
    readers = [ShardReader(place, cache=cache) for place in config.shards]
    return MixedReader(readers, kinds=set(config.kinds.values()), weights=weights)


def open_shards(config: TrainConfig) -> tuple[MixedReader, Mixture]:
    """The configured sets of shards, read as one, and their training samples.

    Raises:
        ShardError: One cannot be read, they do not fit together, or the cache has no room for a window of them.
    """
    reader = open_reader(config, weights=config.shard_weights or None)
    if reader.mixture is None:
        raise ShardError(f"{reader.folder} has no training samples: see bmlpipe stats")
    reader.check_room(config.shuffle_shards)
    return reader, reader.mixture
