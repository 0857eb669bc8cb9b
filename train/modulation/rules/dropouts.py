"""Dropout of single neurons of the features.

Srivastava, Hinton, Krizhevsky, Sutskever, Salakhutdinov, "Dropout: a simple way to prevent neural networks from
overfitting", JMLR 15, 2014. Annealed and curriculum dropout are the same with a probability that changes in time
(`annealed.py`, `curriculum.py`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bmlpipe.manifests.common.errors import OptionError
from bmlpipe.train.modulation import keyed
from bmlpipe.train.modulation.rule import Rule, Step


@dataclass(frozen=True, kw_only=True)
class Dropout(Rule):
    """Set each neuron of the features to 0 with a fixed probability, and multiply the others by 1/(1 − p).

    Attributes:
        drop_p: p, in [0, 1).
    """

    drop_p: float = 0.5

    def __post_init__(self) -> None:
        check_below_one("drop_p", self.drop_p)

    def forward(self, features: dict[str, Tensor], step: Step) -> dict[str, Tensor]:
        """Drop."""
        return drop_neurons(features, step, self.drop_p)


def drop_neurons(features: dict[str, Tensor], step: Step, p: float) -> dict[str, Tensor]:
    """Each neuron 0 with probability p, else times 1/(1 − p), so that its mean stays (Sec. 10, inverted scaling).

    A neuron's fate is a function of (seed, epoch, sample id, modality, neuron).

    Args:
        features: {m: (B, D_m)}.
        step: Of the batch; p is noted as its `q`.
        p: In [0, 1).

    Returns:
        {m: (B, D_m)}.
    """
    step.q = torch.full_like(step.ratio, p)
    if p == 0:
        return features
    dropped = {}
    for m, feature in features.items():
        numbers = numbers_of(step, feature, feature.shape[1], keyed.key(step.seed, "neurons", step.epoch, m))
        dropped[m] = feature.masked_fill(numbers < p, 0) * (1 / (1 - p))
    return dropped


def numbers_of(step: Step, feature: Tensor, each: int, stream: int) -> Tensor:
    """Uniform numbers, `each` for every sample: (B, each), float64 in [0, 1), on the feature's device."""
    assert step.ids is not None
    ids = step.ids.to(feature.device, non_blocking=True)
    return keyed.uniform(ids[:, None] * each + torch.arange(each, device=feature.device), stream)


def check_below_one(name: str, value: float) -> None:
    """Refuse a probability by which nothing would be left.

    Raises:
        OptionError: Names the option, its value and the range.
    """
    if not 0 <= value < 1:
        raise OptionError(f"{name} must be in [0, 1), not {value}")
