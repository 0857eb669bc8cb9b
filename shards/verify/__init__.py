"""Compare a set of shards with its index, and name the damaged parts."""

from typing import TYPE_CHECKING

from bmlpipe.manifests.common.lazy import lazy_exports

if TYPE_CHECKING:
    from bmlpipe.shards.verify.compare import verify
    from bmlpipe.shards.verify.diagnose import Fault

__all__ = ["Fault", "verify"]

__getattr__ = lazy_exports(
    __name__,
    {
        "compare": ["verify"],
        "diagnose": ["Fault"],
    },
)
