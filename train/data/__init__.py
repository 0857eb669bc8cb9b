"""From shards to normalised batches."""

from typing import TYPE_CHECKING

from bmlpipe.manifests.common.lazy import lazy_exports

if TYPE_CHECKING:
    from bmlpipe.train.data.dataset import ClipDataset, make_loader, reading
    from bmlpipe.train.data.normalise import Normaliser
    from bmlpipe.train.data.sampler import BatchItem, TrainBatches, evaluation_batches
    from bmlpipe.train.data.shard_sets import open_shards

__all__ = [
    "BatchItem",
    "ClipDataset",
    "Normaliser",
    "TrainBatches",
    "evaluation_batches",
    "make_loader",
    "open_shards",
    "reading",
]

__getattr__ = lazy_exports(
    __name__,
    {
        "dataset": ["ClipDataset", "make_loader", "reading"],
        "normalise": ["Normaliser"],
        "sampler": ["BatchItem", "TrainBatches", "evaluation_batches"],
        "shard_sets": ["open_shards"],
    },
)
