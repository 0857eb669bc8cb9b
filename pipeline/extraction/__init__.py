"""From a manifest to features: plan a run, extract clips in workers, keep the ledger."""

from typing import TYPE_CHECKING

from bmlpipe.manifests.common.lazy import lazy_exports

if TYPE_CHECKING:
    from bmlpipe.pipeline.extraction.clip import extract_clip
    from bmlpipe.pipeline.extraction.plan import ExtractionPlan, make_plan
    from bmlpipe.pipeline.extraction.request import ExtractionRequest
    from bmlpipe.pipeline.extraction.run import run_extraction

__all__ = ["ExtractionPlan", "ExtractionRequest", "extract_clip", "make_plan", "run_extraction"]

__getattr__ = lazy_exports(
    __name__,
    {
        "clip": ["extract_clip"],
        "plan": ["ExtractionPlan", "make_plan"],
        "request": ["ExtractionRequest"],
        "run": ["run_extraction"],
    },
)
