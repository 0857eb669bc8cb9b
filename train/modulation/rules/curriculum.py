"""Curriculum dropout: dropout of neurons that begins with nothing and tends to its full rate.

Morerio, Cavazza, Volpi, Vidal, Murino, "Curriculum dropout", ICCV 2017.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from bmlpipe.train.modulation.discrepancy import check_range
from bmlpipe.train.modulation.rule import Rule, Step
from bmlpipe.train.modulation.rules.dropout import drop_neurons


@dataclass(frozen=True, kw_only=True)
class CurriculumDropout(Rule):
    """Dropout of neurons that retains each with probability θ(t) = (1 − θ̄) · exp(−γ·t) + θ̄, t in optimiser steps.

    Attributes:
        retain: θ̄, in (0, 1], the probability that θ(t) tends to.
        curriculum_gamma: γ ≥ 0, how fast; the paper takes 10/T for T steps in all.
    """

    retain: float = 0.5
    curriculum_gamma: float = 1e-3

    def __post_init__(self) -> None:
        if not 0 < self.retain <= 1:
            raise ValueError(f"retain must be in (0, 1], not {self.retain}")
        check_range("curriculum_gamma", self.curriculum_gamma, 0)

    def probability(self, time: int) -> float:
        """1 − θ(t), of a drop at step t."""
        return (1 - self.retain) * -math.expm1(-self.curriculum_gamma * time)

    def forward(self, features: dict[str, Tensor], step: Step) -> dict[str, Tensor]:
        """Drop."""
        return drop_neurons(features, step, self.probability(step.index))
