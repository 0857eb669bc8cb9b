"""Fusion in which the first modality x conditions the others: FiLM and the sigmoid gate."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from bmlpipe.train.models.fusion.classifier import make_classifier, modalities_of


class FiLM(nn.Module):
    """Feature-wise linear modulation (Perez et al. 2018).

    h^m = g^m(φ^x) ⊙ φ^m + f^m(φ^x) for m ≠ x, with linear g^m and f^m; logits = W [h^m]_{m ≠ x} + b.

    Args:
        dims: Modality → length D_m of its feature; two or more modalities, of which the first is x.
        classes: Number of classes K.
        classifier_layers: Number of linear layers from [h^m] to the logits; hidden layers have as many units as the
            longest h^m has entries.

    Raises:
        OptionError: There are fewer than two modalities.
    """

    def __init__(self, dims: Mapping[str, int], classes: int, *, classifier_layers: int = 1) -> None:
        super().__init__()
        self.modalities = modalities_of(dims, at_least=2)
        by, *others = self.modalities
        self.scale = nn.ModuleDict({m: nn.Linear(dims[by], dims[m]) for m in others})
        self.shift = nn.ModuleDict({m: nn.Linear(dims[by], dims[m]) for m in others})
        widths = [dims[m] for m in others]
        self.classifier = make_classifier(sum(widths), classes, layers=classifier_layers, hidden=max(widths))

    def forward(self, features: Mapping[str, Tensor]) -> Tensor:
        """Compute logits: {m: (B, D_m)} → (B, K)."""
        by, *others = self.modalities
        x = features[by]
        hidden = [self.scale[m](x) * features[m] + self.shift[m](x) for m in others]
        logits: Tensor = self.classifier(torch.cat(hidden, dim=1))
        return logits


class Gated(nn.Module):
    """Sigmoid gate (Kiela et al. 2018): x gates the sum of the other modalities.

    logits = W (σ(U^x φ^x + c^x) ⊙ Σ_{m ≠ x} (U^m φ^m + c^m)) + b; every U^m maps to max D_m entries.

    Args:
        dims: Modality → length D_m of its feature; two or more modalities, of which the first is x.
        classes: Number of classes K.
        classifier_layers: Number of linear layers from the gated sum to the logits; hidden layers are as wide as it is.

    Raises:
        OptionError: There are fewer than two modalities.
    """

    def __init__(self, dims: Mapping[str, int], classes: int, *, classifier_layers: int = 1) -> None:
        super().__init__()
        self.modalities = modalities_of(dims, at_least=2)
        width = max(dims.values())
        self.projections = nn.ModuleDict({m: nn.Linear(dim, width) for m, dim in dims.items()})
        self.classifier = make_classifier(width, classes, layers=classifier_layers, hidden=width)

    def forward(self, features: Mapping[str, Tensor]) -> Tensor:
        """Compute logits: {m: (B, D_m)} → (B, K)."""
        gate, *others = (self.projections[m](features[m]) for m in self.modalities)
        logits: Tensor = self.classifier(torch.sigmoid(gate) * torch.stack(others).sum(dim=0))
        return logits
