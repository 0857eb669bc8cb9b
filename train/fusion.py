"""Fusion heads: the features of the modalities to the logits of the classes.

φ^m is the feature of modality m, (B, D_m); K classes; M modalities. A head is called with a mapping from modality to
feature and names its modalities in `modalities`. One whose logits are a sum of a term a modality has the method
`split_logits`, from which the modality's score is read; any other head is read by zero-out (`bmlpipe.train.scores`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn


class Concatenation(nn.Module):
    """One linear layer on the concatenated features: logits = Σ_m W^m φ^m + b.

    Args:
        dims: Modality → length D_m of its feature; one modality is allowed (uni-modal training).
        classes: K.
    """

    def __init__(self, dims: Mapping[str, int], classes: int) -> None:
        super().__init__()
        self.modalities = _modalities(dims, at_least=1)
        self.dims = tuple(dims.values())
        self.classifier = nn.Linear(sum(self.dims), classes)

    def forward(self, features: Mapping[str, Tensor]) -> Tensor:
        """{m: (B, D_m)} → (B, K)."""
        logits: Tensor = self.classifier(torch.cat([features[m] for m in self.modalities], dim=1))
        return logits

    def split_logits(self, features: Mapping[str, Tensor], gamma: Sequence[float] | None = None) -> dict[str, Tensor]:
        """{m: W^m φ^m + γ^m b} (Eq. 6); with Σ γ = 1 they add up to the logits. γ^m = 1/M where None."""
        return split_linear(self.classifier, {m: features[m] for m in self.modalities}, gamma)


class Summation(nn.Module):
    """One linear layer a modality: logits = Σ_m (W^m φ^m + b^m).

    Args:
        dims: Modality → length D_m of its feature.
        classes: K.
    """

    def __init__(self, dims: Mapping[str, int], classes: int) -> None:
        super().__init__()
        self.modalities = _modalities(dims, at_least=1)
        self.classifiers = nn.ModuleDict({m: nn.Linear(dim, classes) for m, dim in dims.items()})

    def forward(self, features: Mapping[str, Tensor]) -> Tensor:
        """{m: (B, D_m)} → (B, K)."""
        return torch.stack([self.classifiers[m](features[m]) for m in self.modalities]).sum(dim=0)

    def split_logits(self, features: Mapping[str, Tensor], gamma: Sequence[float] | None = None) -> dict[str, Tensor]:
        """{m: W^m φ^m + γ^m b^m}; γ^m = 1 where None, each branch's own bias (the release's form is 0.5)."""
        share = _shares(gamma, self.modalities, default=1.0)
        logits = {}
        for m in self.modalities:
            linear = self.classifiers[m]
            assert isinstance(linear, nn.Linear)
            logits[m] = features[m] @ linear.weight.T + share[m] * linear.bias
        return logits


class FiLM(nn.Module):
    """Feature-wise linear modulation (Perez et al. 2018): the first modality x conditions each other one.

    h^m = g^m(φ^x) ⊙ φ^m + f^m(φ^x) for m ≠ x, with linear g^m and f^m; logits = W [h^m]_{m ≠ x} + b.

    Args:
        dims: Modality → length of its feature, two or more; the first one is x.
        classes: K.
    """

    def __init__(self, dims: Mapping[str, int], classes: int) -> None:
        super().__init__()
        self.modalities = _modalities(dims, at_least=2)
        by, *others = self.modalities
        self.scale = nn.ModuleDict({m: nn.Linear(dims[by], dims[m]) for m in others})
        self.shift = nn.ModuleDict({m: nn.Linear(dims[by], dims[m]) for m in others})
        self.classifier = nn.Linear(sum(dims[m] for m in others), classes)

    def forward(self, features: Mapping[str, Tensor]) -> Tensor:
        """{m: (B, D_m)} → (B, K)."""
        by, *others = self.modalities
        x = features[by]
        hidden = [self.scale[m](x) * features[m] + self.shift[m](x) for m in others]
        logits: Tensor = self.classifier(torch.cat(hidden, dim=1))
        return logits


class Gated(nn.Module):
    """Sigmoid gate (Kiela et al. 2018): the first modality x gates the sum of the others.

    logits = W (σ(U^x φ^x + c^x) ⊙ Σ_{m ≠ x} (U^m φ^m + c^m)) + b; every U^m maps to the largest D_m.

    Args:
        dims: Modality → length of its feature, two or more; the first one is x.
        classes: K.
    """

    def __init__(self, dims: Mapping[str, int], classes: int) -> None:
        super().__init__()
        self.modalities = _modalities(dims, at_least=2)
        width = max(dims.values())
        self.projections = nn.ModuleDict({m: nn.Linear(dim, width) for m, dim in dims.items()})
        self.classifier = nn.Linear(width, classes)

    def forward(self, features: Mapping[str, Tensor]) -> Tensor:
        """{m: (B, D_m)} → (B, K)."""
        gate, *others = (self.projections[m](features[m]) for m in self.modalities)
        logits: Tensor = self.classifier(torch.sigmoid(gate) * torch.stack(others).sum(dim=0))
        return logits


#: Name → head.
FUSIONS: dict[str, Callable[[Mapping[str, int], int], nn.Module]] = {
    "concat": Concatenation,
    "sum": Summation,
    "film": FiLM,
    "gated": Gated,
}


def make_fusion(name: str, dims: Mapping[str, int], classes: int) -> nn.Module:
    """A new head.

    Args:
        name: A key of `FUSIONS`.
        dims: Modality → length of its feature, in the order of the modalities.
        classes: K.

    Raises:
        ValueError: Unknown name, or fewer modalities than the head needs.
    """
    if name not in FUSIONS:
        raise ValueError(f"unknown fusion {name!r}; known: {', '.join(sorted(FUSIONS))}")
    return FUSIONS[name](dims, classes)


def split_linear(
    linear: nn.Linear, features: Mapping[str, Tensor], gamma: Sequence[float] | None = None
) -> dict[str, Tensor]:
    """The terms of one linear layer on concatenated features (Eq. 6), exact.

    Args:
        linear: (K, Σ D_m), applied to the features concatenated in the order of the mapping.
        features: {m: (B, D_m)}.
        gamma: Share γ^m of the bias that each term gets, in the order of `features`; 1/M each where None.

    Returns:
        {m: W^m φ^m + γ^m b}, (B, K) each.

    Raises:
        ValueError: The features are not as long as the layer is wide, or γ has another length than M.
    """
    sizes = [feature.shape[1] for feature in features.values()]
    if sum(sizes) != linear.in_features:
        raise ValueError(
            f"the features have {' + '.join(map(str, sizes))} entries, the layer takes {linear.in_features}"
        )
    share = _shares(gamma, tuple(features), default=1 / len(sizes))
    parts = torch.split(linear.weight, sizes, dim=1)
    logits = {m: feature @ part.T for (m, feature), part in zip(features.items(), parts, strict=True)}
    bias: Tensor | None = linear.bias
    return logits if bias is None else {m: term + share[m] * bias for m, term in logits.items()}


def _modalities(dims: Mapping[str, int], *, at_least: int) -> tuple[str, ...]:
    if len(dims) < at_least:
        raise ValueError(
            f"this fusion joins at least {at_least} modalities, it was given {list(dims)}; one alone goes with 'concat'"
        )
    return tuple(dims)


def _shares(gamma: Sequence[float] | None, modalities: tuple[str, ...], *, default: float) -> dict[str, float]:
    if gamma is None:
        return dict.fromkeys(modalities, default)
    if len(gamma) != len(modalities):
        raise ValueError(f"gamma has {len(gamma)} shares for the {len(modalities)} modalities {list(modalities)}")
    return dict(zip(modalities, gamma, strict=True))
