"""On-the-fly prediction modulation: drop the feature of the more discriminative modality (Alg. 1, Eq. 8)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from bmlpipe.train.modulation import keyed
from bmlpipe.train.modulation.ratio import Shape, check_choice, check_range, z
from bmlpipe.train.modulation.rule import Epochs, Rule, Step, check_epochs, within


@dataclass(frozen=True, kw_only=True)
class OPM(Rule):
    """Set the feature of modality m to 0 with probability q^m, for each sample on its own.

    Attributes:
        q_base: Probability at the neutral point, in [0, 1].
        lam: λ ≥ 0, how much the probability grows with the discrepancy.
        z: Function of ρ, see `bmlpipe.train.modulation.ratio`.
        same_step: Driven by this step's ratio instead of the last one's (release). Costs a second collective, which
            the forward pass waits for, and excludes gradient accumulation.
        p_exe: Probability that a batch is modulated at all, one draw a batch (release: 0.7).
        rescale: Multiply all features by 1/(1 − θ), θ = Σ d_m q^m / Σ d_m with feature lengths d_m (release).
        unit: Whether each `sample` or the whole (micro-)`batch` draws (release: batch).
        epochs: Window (first, end) in which it acts (release: from epoch 6).
    """

    q_base: float = 0.5
    lam: float = 0.5
    z: Shape = "tanh"
    same_step: bool = False
    p_exe: float = 1.0
    rescale: bool = False
    unit: Literal["sample", "batch"] = "sample"
    epochs: Epochs = (0, None)

    def __post_init__(self) -> None:
        check_range("q_base", self.q_base, 0, 1)
        check_range("lam", self.lam, 0)
        check_choice("z", self.z, Shape)
        check_range("p_exe", self.p_exe, 0, 1)
        check_choice("unit", self.unit, Literal["sample", "batch"])
        check_epochs(self.epochs)

    def probability(self, ratio: Tensor, neutral: float = 1.0) -> Tensor:
        """q^m = min(1, q_base · (1 + λ · z(ρ^m))) if ρ^m > neutral, else 0 (Eq. 8); (M,) → (M,)."""
        q = (self.q_base * (1 + self.lam * z(ratio, self.z, neutral))).clamp(max=1)
        return torch.where(ratio > neutral, q, 0.0)

    def forward(self, features: dict[str, Tensor], step: Step) -> dict[str, Tensor]:
        """Drop; a sample that would lose every modality loses none."""
        acts = within(self.epochs, step.epoch) and keyed.chance(step.seed, "p_exe", step.index) < self.p_exe
        if not acts:
            step.q = torch.zeros_like(step.ratio)
            return features
        step.q = self.probability(step.ratio, step.neutral)
        drop = self._numbers(step) < step.q[:, None]
        drop &= ~drop.all(dim=0)
        step.dropped = drop.sum(dim=1, dtype=torch.float64)
        kept = {m: features[m].masked_fill(drop[i, :, None], 0) for i, m in enumerate(step.modalities)}
        return self._rescaled(kept, step.q) if self.rescale else kept

    def _numbers(self, step: Step) -> Tensor:
        """One uniform number a modality and sample, (M, B), or for the batch unit a modality and step."""
        assert step.ids is not None
        ids = step.ids.to(step.ratio.device, non_blocking=True)
        scope = step.epoch
        if self.unit == "batch":
            ids, scope = torch.zeros_like(ids), step.index
        return torch.stack([keyed.uniform(ids, keyed.key(step.seed, "drop", scope, m)) for m in step.modalities])

    @staticmethod
    def _rescaled(features: dict[str, Tensor], q: Tensor) -> dict[str, Tensor]:
        total = sum(feature.shape[1] for feature in features.values())
        shares = [q[i] * (feature.shape[1] / total) for i, feature in enumerate(features.values())]
        scale = 1 / (1 - torch.stack(shares).sum())
        return {m: feature * scale.to(feature.dtype) for m, feature in features.items()}
