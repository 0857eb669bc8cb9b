"""Encoders, fusion, and the multimodal model made of them."""

from typing import TYPE_CHECKING

from bmlpipe.manifests.common.lazy import lazy_exports

if TYPE_CHECKING:
    from bmlpipe.train.models.build import build_model
    from bmlpipe.train.models.intermediate import MMTM, CrossModalAttention, make_intermediate
    from bmlpipe.train.models.multimodal import MultimodalModel, freeze_batch_norm

__all__ = ["MMTM", "CrossModalAttention", "MultimodalModel", "build_model", "freeze_batch_norm", "make_intermediate"]

__getattr__ = lazy_exports(
    __name__,
    {
        "build": ["build_model"],
        "intermediate": ["MMTM", "CrossModalAttention", "make_intermediate"],
        "multimodal": ["MultimodalModel", "freeze_batch_norm"],
    },
)
