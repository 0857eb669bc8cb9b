"""Annealed dropout: dropout of neurons whose probability falls linearly to 0.

Rennie, Goel, Thomas, "Annealed dropout training of deep networks", IEEE SLT 2014.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from bmlpipe.train.modulation.discrepancy import check_choice
from bmlpipe.train.modulation.rule import Rule, Step
from bmlpipe.train.modulation.rules.dropout import check_below_one, drop_neurons

Unit = Literal["epoch", "step"]


@dataclass(frozen=True, kw_only=True)
class AnnealedDropout(Rule):
    """Dropout of neurons with p_t = p_0 · max(0, 1 − t/N); from t = N on nothing is dropped.

    Attributes:
        drop_p: p_0, in [0, 1).
        anneal_length: N, 1 or more.
        anneal_unit: What t and N count, from 0: each `epoch` or each optimiser `step`.
    """

    drop_p: float = 0.5
    anneal_length: int = 50
    anneal_unit: Unit = "epoch"

    def __post_init__(self) -> None:
        check_below_one("drop_p", self.drop_p)
        check_choice("anneal_unit", self.anneal_unit, Unit)
        if self.anneal_length < 1:
            raise ValueError(f"anneal_length must be at least 1, not {self.anneal_length}")

    def probability(self, time: int) -> float:
        """p_t of epoch or step t."""
        return self.drop_p * max(0.0, 1 - time / self.anneal_length)

    def forward(self, features: dict[str, Tensor], step: Step) -> dict[str, Tensor]:
        """Drop."""
        return drop_neurons(features, step, self.probability(step.epoch if self.anneal_unit == "epoch" else step.index))
