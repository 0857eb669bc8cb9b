"""Batches of work on Dask, on this machine or on a cluster."""

from typing import TYPE_CHECKING

from bmlpipe.manifests.common.lazy import lazy_exports

if TYPE_CHECKING:
    from bmlpipe.pipeline.cluster.batches import map_batches
    from bmlpipe.pipeline.cluster.worker_checks import UnfitWorkerError
    from bmlpipe.pipeline.cluster.worker_pool import ClusterError, ExistingScheduler, LocalWorkers

__all__ = ["ClusterError", "ExistingScheduler", "LocalWorkers", "UnfitWorkerError", "map_batches"]

__getattr__ = lazy_exports(
    __name__,
    {
        "batches": ["map_batches"],
        "worker_checks": ["UnfitWorkerError"],
        "worker_pool": ["ClusterError", "ExistingScheduler", "LocalWorkers"],
    },
)
