"""Data parallelism: the process group, and replicas that must stay equal."""

from typing import TYPE_CHECKING

from bmlpipe.manifests.common.lazy import lazy_exports

if TYPE_CHECKING:
    from bmlpipe.train.distributed.group import (
        LostRankError,
        ProcessInfo,
        all_equal,
        broadcast_buffers,
        process_group,
        unequal_tensors,
    )

__all__ = ["LostRankError", "ProcessInfo", "all_equal", "broadcast_buffers", "process_group", "unequal_tensors"]

__getattr__ = lazy_exports(
    __name__,
    {
        "group": ["LostRankError", "ProcessInfo", "all_equal", "broadcast_buffers", "process_group", "unequal_tensors"],
    },
)
