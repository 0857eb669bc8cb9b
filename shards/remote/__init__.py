"""Shards at an address (HTTP, S3, GCS): download, cache, prefetch."""

from typing import TYPE_CHECKING

from bmlpipe.manifests.common.lazy import lazy_exports

if TYPE_CHECKING:
    from bmlpipe.shards.remote.cache import Cache
    from bmlpipe.shards.remote.download import RetryPolicy
    from bmlpipe.shards.remote.prefetch import PrefetchingBatches
    from bmlpipe.shards.remote.shard_set import RemoteShards, open_cache

__all__ = ["Cache", "PrefetchingBatches", "RemoteShards", "RetryPolicy", "open_cache"]

__getattr__ = lazy_exports(
    __name__,
    {
        "cache": ["Cache"],
        "download": ["RetryPolicy"],
        "prefetch": ["PrefetchingBatches"],
        "shard_set": ["RemoteShards", "open_cache"],
    },
)
