"""Fusion by linear layers: concatenation and summation, whose logits are a sum of one term per modality.

Their method `split_logits` returns these terms, from which the score of each modality is computed exactly.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from bmlpipe.manifests.common.errors import OptionError
from bmlpipe.train.models.fusion.classifier import make_classifier, modalities_of


class Concatenation(nn.Module):
    """One linear layer on the concatenated features: logits = Σ_m W^m φ^m + b.

    Args:
        dims: Modality → length D_m of its feature; one modality or more (one: uni-modal training).
        classes: Number of classes K.
    """

    def __init__(self, dims: Mapping[str, int], classes: int) -> None:
        super().__init__()
        self.modalities = modalities_of(dims, at_least=1)
        self.dims = tuple(dims.values())
        self.classifier = nn.Linear(sum(self.dims), classes)

    def forward(self, features: Mapping[str, Tensor]) -> Tensor:
        """Compute logits: {m: (B, D_m)} → (B, K)."""
        logits: Tensor = self.classifier(torch.cat([features[m] for m in self.modalities], dim=1))
        return logits

    def split_logits(self, features: Mapping[str, Tensor], gamma: Sequence[float] | None = None) -> dict[str, Tensor]:
        """Split the logits into the terms W^m φ^m + γ^m b (Eq. 6): {m: (B, D_m)} → {m: (B, K)}.

        With Σ γ = 1 they add up to the logits. γ^m is 1/M if `gamma` is None.
        """
        return split_linear(self.classifier, {m: features[m] for m in self.modalities}, gamma)


class Summation(nn.Module):
    """One classifier per modality: logits = Σ_m c^m(φ^m), with c^m(φ) = W^m φ + b^m, or of several layers.

    Args:
        dims: Modality → length D_m of its feature.
        classes: Number of classes K.
        classifier_layers: Number of linear layers of each c^m, with ReLUs between them; hidden layers have D_m units.
    """

    def __init__(self, dims: Mapping[str, int], classes: int, *, classifier_layers: int = 1) -> None:
        super().__init__()
        self.modalities = modalities_of(dims, at_least=1)
        self.classifiers = nn.ModuleDict(
            {m: make_classifier(dim, classes, layers=classifier_layers, hidden=dim) for m, dim in dims.items()}
        )

    def forward(self, features: Mapping[str, Tensor]) -> Tensor:
        """Compute logits: {m: (B, D_m)} → (B, K)."""
        return torch.stack([self.classifiers[m](features[m]) for m in self.modalities]).sum(dim=0)

    def split_logits(self, features: Mapping[str, Tensor], gamma: Sequence[float] | None = None) -> dict[str, Tensor]:
        """Split the logits into the terms c^m(φ^m), with the last bias times γ^m: {m: (B, D_m)} → {m: (B, K)}.

        γ^m is 1, the whole bias, if `gamma` is None (the release uses 0.5).
        """
        share = _shares(gamma, self.modalities, default=1.0)
        logits = {}
        for m in self.modalities:
            *hidden, last = [layer for layer in self.classifiers[m].modules() if not list(layer.children())]
            assert isinstance(last, nn.Linear)
            x = features[m]
            for layer in hidden:
                x = layer(x)
            logits[m] = x @ last.weight.T + share[m] * last.bias
        return logits


def split_linear(
    linear: nn.Linear, features: Mapping[str, Tensor], gamma: Sequence[float] | None = None
) -> dict[str, Tensor]:
    """Split the logits of one linear layer on concatenated features into its terms (Eq. 6), exactly.

    Args:
        linear: (K, Σ D_m), applied to the features concatenated in the order of the mapping.
        features: {m: (B, D_m)}.
        gamma: Share γ^m of the bias in each term, in the order of `features`. None: 1/M each.

    Returns:
        {m: W^m φ^m + γ^m b}, (B, K) each.

    Raises:
        OptionError: The lengths of the features do not add up to the input of the layer, or γ does not have M entries.
    """
    sizes = [feature.shape[1] for feature in features.values()]
    if sum(sizes) != linear.in_features:
        raise OptionError(
            f"the features have {' + '.join(map(str, sizes))} entries, but the layer takes {linear.in_features}"
        )
    share = _shares(gamma, tuple(features), default=1 / len(sizes))
    parts = torch.split(linear.weight, sizes, dim=1)
    logits = {m: feature @ part.T for (m, feature), part in zip(features.items(), parts, strict=True)}
    bias: Tensor | None = linear.bias
    return logits if bias is None else {m: term + share[m] * bias for m, term in logits.items()}


def _shares(gamma: Sequence[float] | None, modalities: tuple[str, ...], *, default: float) -> dict[str, float]:
    if gamma is None:
        return dict.fromkeys(modalities, default)
    if len(gamma) != len(modalities):
        raise OptionError(f"gamma has {len(gamma)} entries for {len(modalities)} modalities: {list(modalities)}")
    return dict(zip(modalities, gamma, strict=True))
