"""Classifiers of one or several linear layers, which the heads share, and concatenation with several."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from bmlpipe.manifests.common.errors import OptionError


class DeepConcatenation(nn.Module):
    """A classifier of several layers on the concatenated features (Sec. 4.3.7).

    logits = W_L ReLU(… ReLU(W_1 [φ^1 … φ^M] + b_1) …) + b_L. The logits do not split into one term per modality, so
    the prediction of a modality is read by zero-out.

    Args:
        dims: Modality → length D_m of its feature.
        classes: Number of classes K.
        classifier_layers: Number of linear layers L, two or more; hidden layers have as many units as the longest
            feature has entries.
    """

    def __init__(self, dims: Mapping[str, int], classes: int, *, classifier_layers: int) -> None:
        super().__init__()
        self.modalities = modalities_of(dims, at_least=1)
        self.classifier = make_classifier(
            sum(dims.values()), classes, layers=classifier_layers, hidden=max(dims.values())
        )

    def forward(self, features: Mapping[str, Tensor]) -> Tensor:
        """Compute logits: {m: (B, D_m)} → (B, K)."""
        logits: Tensor = self.classifier(torch.cat([features[m] for m in self.modalities], dim=1))
        return logits


def make_classifier(inputs: int, classes: int, *, layers: int, hidden: int) -> nn.Linear | nn.Sequential:
    """Make a classifier of linear layers with ReLUs between them; a single layer is a bare `nn.Linear`.

    Args:
        inputs: Length of the input.
        classes: Number of classes K.
        layers: Number of linear layers, 1 or more.
        hidden: Units of each hidden layer.

    Raises:
        OptionError: `layers` is below 1.
    """
    if check_layers(layers) == 1:
        return nn.Linear(inputs, classes)
    return nn.Sequential(
        nn.Linear(inputs, hidden), nn.ReLU(), *_flat(make_classifier(hidden, classes, layers=layers - 1, hidden=hidden))
    )


def check_layers(classifier_layers: int) -> int:
    """Return the number of layers, if it is at least 1.

    Raises:
        OptionError: It is below 1.
    """
    if classifier_layers < 1:
        raise OptionError(f"classifier_layers must be at least 1, not {classifier_layers}")
    return classifier_layers


def _flat(classifier: nn.Linear | nn.Sequential) -> list[nn.Module]:
    return [classifier] if isinstance(classifier, nn.Linear) else list(classifier)


def modalities_of(dims: Mapping[str, int], *, at_least: int) -> tuple[str, ...]:
    """Return the names of the modalities of a head, if there are enough of them.

    Raises:
        OptionError: There are fewer than `at_least`.
    """
    if len(dims) < at_least:
        raise OptionError(
            f"this fusion needs at least {at_least} modalities, but was given {list(dims)}; use 'concat' for one"
        )
    return tuple(dims)
