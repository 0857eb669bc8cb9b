"""Batches of work on Dask, on this machine or on a cluster."""

from typing import TYPE_CHECKING

from bmlpipe.manifests.common.lazy import lazy_exports

if TYPE_CHECKING:
    from bmlpipe.pipeline.cluster.batches import map_batches
    from bmlpipe.pipeline.cluster.worker_pool import ClusterError

__all__ = ["ClusterError", "map_batches"]

__getattr__ = lazy_exports(
    __name__,
    {
        "batches": ["map_batches"],
        "worker_pool": ["ClusterError"],
    },
)
