"""The error of everything that reads or writes shards."""

from __future__ import annotations


class ShardError(ValueError):
    """A shard, index or sample that is not what it should be; the message names file, key and member."""
