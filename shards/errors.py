"""The exception of reading and writing shards."""

from __future__ import annotations

from bmlpipe.manifests.common.errors import BmlpipeError


class ShardError(BmlpipeError):
    """A shard, an index or a sample is missing, damaged or does not fit; the message names file, key and member."""
