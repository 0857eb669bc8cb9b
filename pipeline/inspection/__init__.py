"""Contact sheets: look at the samples of a feature folder or of shards."""

from typing import TYPE_CHECKING

from bmlpipe.manifests.common.lazy import lazy_exports

if TYPE_CHECKING:
    from bmlpipe.pipeline.inspection.contact_sheet import draw_sample, write_contact_sheet
    from bmlpipe.pipeline.inspection.html import write_html_page
    from bmlpipe.pipeline.inspection.samples import (
        InspectedSample,
        SampleSelection,
        samples_from_features,
        samples_from_shards,
    )

__all__ = [
    "InspectedSample",
    "SampleSelection",
    "draw_sample",
    "samples_from_features",
    "samples_from_shards",
    "write_contact_sheet",
    "write_html_page",
]

__getattr__ = lazy_exports(
    __name__,
    {
        "contact_sheet": ["draw_sample", "write_contact_sheet"],
        "html": ["write_html_page"],
        "samples": ["InspectedSample", "SampleSelection", "samples_from_features", "samples_from_shards"],
    },
)
