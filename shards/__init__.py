"""The sample format: write, index, verify, order and read shards. It depends on neither videos nor models.

Examples:
    >>> from bmlpipe.shards import ShardReader
    >>> reader = ShardReader("shards/vggsound")  # doctest: +SKIP
    >>> sample = reader[reader.index.split_range("train")[0]]  # doctest: +SKIP
    >>> sample.label, sorted(sample.members)  # doctest: +SKIP
"""

from typing import TYPE_CHECKING

from bmlpipe.manifests.common.lazy import lazy_exports

if TYPE_CHECKING:
    from bmlpipe.shards.combined_reader import CombinedReader
    from bmlpipe.shards.errors import ShardError
    from bmlpipe.shards.index import Index, Shard, read_index
    from bmlpipe.shards.kinds import KINDS, MODALITY_KIND, FeatureKind, Storage, kind_of
    from bmlpipe.shards.mixture_order import Mixture, MixtureOrder
    from bmlpipe.shards.order import EpochOrder
    from bmlpipe.shards.reader import ShardReader, StoredSample
    from bmlpipe.shards.sample import Sample, key_of
    from bmlpipe.shards.stats import describe
    from bmlpipe.shards.stream import ShardPipeline, decode_member, webdataset_pipeline
    from bmlpipe.shards.targets import TARGETS, Target
    from bmlpipe.shards.writer import ShardWriter

__all__ = [
    "KINDS",
    "MODALITY_KIND",
    "TARGETS",
    "CombinedReader",
    "EpochOrder",
    "FeatureKind",
    "Index",
    "Mixture",
    "MixtureOrder",
    "Sample",
    "Shard",
    "ShardError",
    "ShardPipeline",
    "ShardReader",
    "ShardWriter",
    "Storage",
    "StoredSample",
    "Target",
    "decode_member",
    "describe",
    "key_of",
    "kind_of",
    "read_index",
    "webdataset_pipeline",
]

__getattr__ = lazy_exports(
    __name__,
    {
        "combined_reader": ["CombinedReader"],
        "errors": ["ShardError"],
        "index": ["Index", "Shard", "read_index"],
        "kinds": ["KINDS", "MODALITY_KIND", "FeatureKind", "Storage", "kind_of"],
        "mixture_order": ["Mixture", "MixtureOrder"],
        "order": ["EpochOrder"],
        "reader": ["ShardReader", "StoredSample"],
        "sample": ["Sample", "key_of"],
        "stats": ["describe"],
        "stream": ["ShardPipeline", "decode_member", "webdataset_pipeline"],
        "targets": ["TARGETS", "Target"],
        "writer": ["ShardWriter"],
    },
)
