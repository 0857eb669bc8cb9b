"""From shards to normalised batches."""

from typing import TYPE_CHECKING

from bmlpipe.manifests.common.lazy import lazy_exports

if TYPE_CHECKING:
    from bmlpipe.train.data.dataset import ClipDataset, make_loader
    from bmlpipe.train.data.normalise import Normaliser
    from bmlpipe.train.data.open_shards import open_shards
    from bmlpipe.train.data.sampler import BatchItem, TrainBatches, evaluation_batches

__all__ = ["BatchItem", "ClipDataset", "Normaliser", "TrainBatches", "evaluation_batches", "make_loader", "open_shards"]

__getattr__ = lazy_exports(
    __name__,
    {
        "dataset": ["ClipDataset", "make_loader"],
        "normalise": ["Normaliser"],
        "open_shards": ["open_shards"],
        "sampler": ["BatchItem", "TrainBatches", "evaluation_batches"],
    },
)
