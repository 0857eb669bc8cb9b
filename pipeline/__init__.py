"""From clips to features to shards: decoding, front ends, feature store, Dask, the command line.

Examples:
    >>> from bmlpipe.manifests.common import exclusive_folder
    >>> from bmlpipe.pipeline import ExtractionRequest, make_plan, run_extraction, write_shards
    >>> from bmlpipe.pipeline.front_ends import FrameOptions, SpectrogramOptions
    >>> request = ExtractionRequest((FrameOptions(), SpectrogramOptions()))
    >>> with exclusive_folder(features, "extraction"):  # doctest: +SKIP
    ...     run_extraction(make_plan(manifest, videos, features, request), workers=8)
    >>> write_shards(manifest.dataset, features, shards)  # doctest: +SKIP
"""

from typing import TYPE_CHECKING

from bmlpipe.manifests.common.lazy import lazy_exports

if TYPE_CHECKING:
    from bmlpipe.pipeline.extraction.clip import extract_clip
    from bmlpipe.pipeline.extraction.plan import ExtractionPlan, make_plan
    from bmlpipe.pipeline.extraction.request import ExtractionRequest
    from bmlpipe.pipeline.extraction.run import run_extraction
    from bmlpipe.pipeline.front_ends.features import ClipFeatures
    from bmlpipe.pipeline.media.errors import ClipError
    from bmlpipe.pipeline.sharding.write import write_shards
    from bmlpipe.pipeline.store.errors import ExtractionError, StoreError
    from bmlpipe.pipeline.store.feature_file import FeatureStore, StoredClip
    from bmlpipe.pipeline.store.folder import FeatureFolder
    from bmlpipe.pipeline.store.ledger import LedgerRow, read_ledger

__all__ = [
    "ClipError",
    "ClipFeatures",
    "ExtractionError",
    "ExtractionPlan",
    "ExtractionRequest",
    "FeatureFolder",
    "FeatureStore",
    "LedgerRow",
    "StoreError",
    "StoredClip",
    "extract_clip",
    "make_plan",
    "read_ledger",
    "run_extraction",
    "write_shards",
]

__getattr__ = lazy_exports(
    __name__,
    {
        "extraction.clip": ["extract_clip"],
        "extraction.plan": ["ExtractionPlan", "make_plan"],
        "extraction.request": ["ExtractionRequest"],
        "extraction.run": ["run_extraction"],
        "front_ends.features": ["ClipFeatures"],
        "media.errors": ["ClipError"],
        "sharding.write": ["write_shards"],
        "store.errors": ["ExtractionError", "StoreError"],
        "store.feature_file": ["FeatureStore", "StoredClip"],
        "store.folder": ["FeatureFolder"],
        "store.ledger": ["LedgerRow", "read_ledger"],
    },
)
