"""The error of everything that reads or writes shards."""

from __future__ import annotations

from bmlpipe.manifests.common.errors import BmlpipeError


class ShardError(BmlpipeError):
    """A shard, index or sample that is not what it should be; the message names file, key and member."""
