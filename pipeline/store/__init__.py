"""The feature folder: one HDF5 file per clip, and the ledger of all clips."""

from typing import TYPE_CHECKING

from bmlpipe.manifests.common.lazy import lazy_exports

if TYPE_CHECKING:
    from bmlpipe.pipeline.store.errors import ExtractionError, StoreError, StoreWriteError
    from bmlpipe.pipeline.store.feature_file import FeatureStore, StoredClip
    from bmlpipe.pipeline.store.folder import FeatureFolder
    from bmlpipe.pipeline.store.ledger import Ledger, LedgerRow, read_ledger
    from bmlpipe.pipeline.store.reasons import FLAGS, REASONS

__all__ = [
    "FLAGS",
    "REASONS",
    "ExtractionError",
    "FeatureFolder",
    "FeatureStore",
    "Ledger",
    "LedgerRow",
    "StoreError",
    "StoreWriteError",
    "StoredClip",
    "read_ledger",
]

__getattr__ = lazy_exports(
    __name__,
    {
        "errors": ["ExtractionError", "StoreError", "StoreWriteError"],
        "feature_file": ["FeatureStore", "StoredClip"],
        "folder": ["FeatureFolder"],
        "ledger": ["Ledger", "LedgerRow", "read_ledger"],
        "reasons": ["FLAGS", "REASONS"],
    },
)
