"""Low-rank multimodal fusion: the products of features of different modalities, with weights of low rank."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from bmlpipe.train.models.fusion.classifier import check_layers, make_classifier, modalities_of


class LowRank(nn.Module):
    """Low-rank multimodal fusion (Liu et al., ACL 2018, Eqs. 6 to 8).

    logits = Σ_r v_r · Π_m (W_r^m [φ^m; 1]) + b, where the product over modalities is taken entry by entry. W^m has the
    shape (R, K, D_m + 1); here it is one linear layer, whose bias is the column that meets the appended 1.

    That column is initialised to 1 and v to 1/R: the logits start as 1 + Σ_m (a linear layer on φ^m) + products, so
    that every modality learns from the first step. If it started near 0, the logits would be products of M small
    numbers, and hardly any modality would learn.

    Args:
        dims: Modality → length D_m of its feature; two or more modalities.
        classes: Number of classes K.
        rank: Rank R.
        classifier_layers: 1 for the formula above. With L > 1 the fusion has as many outputs as the longest feature has
            entries, and L − 1 linear layers, each after a ReLU, lead to the logits.

    Raises:
        OptionError: There are fewer than two modalities.
    """

    def __init__(self, dims: Mapping[str, int], classes: int, *, rank: int = 4, classifier_layers: int = 1) -> None:
        super().__init__()
        self.modalities = modalities_of(dims, at_least=2)
        self.rank = rank
        width = max(dims.values())
        outputs = classes if check_layers(classifier_layers) == 1 else width
        self.factors = nn.ModuleDict({m: nn.Linear(dim, rank * outputs) for m, dim in dims.items()})
        for factor in self.factors.values():
            assert isinstance(factor, nn.Linear)
            nn.init.ones_(factor.bias)
        self.rank_weights = nn.Parameter(torch.full((rank,), 1 / rank))
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.classifier: nn.Module = nn.Identity()
        if classifier_layers != 1:
            deeper = make_classifier(width, classes, layers=classifier_layers - 1, hidden=width)
            self.classifier = nn.Sequential(nn.ReLU(), deeper)

    def forward(self, features: Mapping[str, Tensor]) -> Tensor:
        """Compute logits: {m: (B, D_m)} → (B, K)."""
        product, *others = (self.factors[m](features[m]).unflatten(1, (self.rank, -1)) for m in self.modalities)
        for other in others:
            product = product * other
        logits: Tensor = self.classifier(torch.einsum("r,brk->bk", self.rank_weights, product) + self.bias)
        return logits
