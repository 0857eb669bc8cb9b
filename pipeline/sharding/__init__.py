"""From features to shards."""

from typing import TYPE_CHECKING

from bmlpipe.manifests.common.lazy import lazy_exports

if TYPE_CHECKING:
    from bmlpipe.pipeline.sharding.write import write_shards

__all__ = ["write_shards"]

__getattr__ = lazy_exports(
    __name__,
    {
        "write": ["write_shards"],
    },
)
