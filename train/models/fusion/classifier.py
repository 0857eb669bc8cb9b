"""What the heads share: the classifier of one or several layers, and concatenation with several."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from bmlpipe.manifests.common.errors import OptionError


class DeepConcatenation(nn.Module):
    """A classifier of several layers on the concatenated features (Sec. 4.3.7).

    logits = W_L ReLU(… ReLU(W_1 [φ^1 … φ^M] + b_1) …) + b_L. It does not split into terms, so a modality is
    read from it by zero-out.

    Args:
        dims: Modality → length D_m of its feature.
        classes: K.
        classifier_layers: Linear layers L, two or more; the hidden ones have as many units as the longest feature.
    """

    def __init__(self, dims: Mapping[str, int], classes: int, *, classifier_layers: int) -> None:
        super().__init__()
        self.modalities = modalities_of(dims, at_least=1)
        self.classifier = make_classifier(
            sum(dims.values()), classes, layers=classifier_layers, hidden=max(dims.values())
        )

    def forward(self, features: Mapping[str, Tensor]) -> Tensor:
        """{m: (B, D_m)} → (B, K)."""
        logits: Tensor = self.classifier(torch.cat([features[m] for m in self.modalities], dim=1))
        return logits


def make_classifier(inputs: int, classes: int, *, layers: int, hidden: int) -> nn.Linear | nn.Sequential:
    """Linear layers with ReLUs between them; one layer is a bare `nn.Linear`.

    Raises:
        OptionError: No layer.
    """
    if check_layers(layers) == 1:
        return nn.Linear(inputs, classes)
    return nn.Sequential(
        nn.Linear(inputs, hidden), nn.ReLU(), *_flat(make_classifier(hidden, classes, layers=layers - 1, hidden=hidden))
    )


def check_layers(classifier_layers: int) -> int:
    """The number of a classifier's layers.

    Raises:
        OptionError: Below 1.
    """
    if classifier_layers < 1:
        raise OptionError(f"classifier_layers must be at least 1, not {classifier_layers}")
    return classifier_layers


def _flat(classifier: nn.Linear | nn.Sequential) -> list[nn.Module]:
    return [classifier] if isinstance(classifier, nn.Linear) else list(classifier)


def modalities_of(dims: Mapping[str, int], *, at_least: int) -> tuple[str, ...]:
    """The modalities of a head.

    Raises:
        OptionError: Fewer than it joins.
    """
    if len(dims) < at_least:
        raise OptionError(
            f"this fusion joins at least {at_least} modalities, it was given {list(dims)}; one alone goes with 'concat'"
        )
    return tuple(dims)
