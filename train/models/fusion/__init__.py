"""Fusion heads: from the features of the modalities to the logits of the classes.

φ^m is the feature of modality m, (B, D_m); K is the number of classes and M that of modalities. A head takes a mapping
from modality to feature, {m: (B, D_m)}, and returns (B, K). If its logits are a sum of one term per modality, its
method `split_logits` returns the terms, and the score of a modality is computed from them; any other head is read by
zero-out (`bmlpipe.train.modulation.scores`). Formulas and sources: docs/models.md.
"""

from typing import TYPE_CHECKING

from bmlpipe.manifests.common.lazy import lazy_exports

if TYPE_CHECKING:
    from bmlpipe.train.models.fusion.centralnet import CentralNet
    from bmlpipe.train.models.fusion.classifier import DeepConcatenation
    from bmlpipe.train.models.fusion.conditional import FiLM, Gated
    from bmlpipe.train.models.fusion.linear import Concatenation, Summation, split_linear
    from bmlpipe.train.models.fusion.lowrank import LowRank
    from bmlpipe.train.models.fusion.registry import make_fusion, needs_all_stages

__all__ = [
    "CentralNet",
    "Concatenation",
    "DeepConcatenation",
    "FiLM",
    "Gated",
    "LowRank",
    "Summation",
    "make_fusion",
    "needs_all_stages",
    "split_linear",
]

__getattr__ = lazy_exports(
    __name__,
    {
        "centralnet": ("CentralNet",),
        "classifier": ("DeepConcatenation",),
        "conditional": ("FiLM", "Gated"),
        "linear": ("Concatenation", "Summation", "split_linear"),
        "lowrank": ("LowRank",),
        "registry": ("make_fusion", "needs_all_stages"),
    },
)
