"""Fusion heads: the features of the modalities to the logits of the classes.

φ^m is the feature of modality m, (B, D_m); K classes; M modalities. A head is called with a mapping from modality to
feature. One whose logits are a sum of a term a modality has the method `split_logits`, from which the modality's score
is read; any other head is read by zero-out (`bmlpipe.train.modulation.scores`). Formulas and sources: docs/models.md.
"""

from bmlpipe.train.models.fusion.centralnet import CentralNet
from bmlpipe.train.models.fusion.classifier import DeepConcatenation
from bmlpipe.train.models.fusion.conditional import FiLM, Gated
from bmlpipe.train.models.fusion.linear import Concatenation, Summation, split_linear
from bmlpipe.train.models.fusion.lowrank import LowRank
from bmlpipe.train.models.fusion.registry import FUSIONS, make_fusion, reads_pyramid

__all__ = [
    "FUSIONS",
    "CentralNet",
    "Concatenation",
    "DeepConcatenation",
    "FiLM",
    "Gated",
    "LowRank",
    "Summation",
    "make_fusion",
    "reads_pyramid",
    "split_linear",
]
