"""ModDrop: drop every modality with the same fixed probability, whatever the balance.

Neverova, Wolf, Taylor, Nebout, "ModDrop: adaptive multi-modal gesture recognition", T-PAMI 38(8), 2016.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bmlpipe.train.modulation import keyed
from bmlpipe.train.modulation.checks import check_below_one
from bmlpipe.train.modulation.rule import Rule, StepContext


@dataclass(frozen=True, kw_only=True)
class ModDrop(Rule):
    """ModDrop: sets the feature of each modality to 0 with probability p, independently per sample and modality.

    A sample that would lose every modality loses none, so the share of samples without modality m is p − p^M. The rest
    is not rescaled.

    Attributes:
        moddrop_p: p, in [0, 1).
    """

    moddrop_p: float = 0.5

    def __post_init__(self) -> None:
        check_below_one("moddrop_p", self.moddrop_p)

    def forward(self, features: dict[str, Tensor], step: StepContext) -> dict[str, Tensor]:
        """Drop features."""
        assert step.ids is not None
        ids = step.ids.to(step.rho.device, non_blocking=True)
        streams = [keyed.key(step.seed, "moddrop", step.epoch, m) for m in step.modalities]
        drop = torch.stack([keyed.uniform(ids, stream) for stream in streams]) < self.moddrop_p
        drop &= ~drop.all(dim=0)
        step.q = torch.full_like(step.rho, self.moddrop_p - self.moddrop_p ** len(streams))
        step.dropped = drop
        return {m: features[m].masked_fill(drop[i, :, None], 0) for i, m in enumerate(step.modalities)}
