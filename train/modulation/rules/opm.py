"""On-the-fly prediction modulation: drop the feature of the more discriminative modality (Alg. 1, Eq. 8)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from bmlpipe.manifests.common.errors import OptionError
from bmlpipe.train.modulation import keyed
from bmlpipe.train.modulation.discrepancy import Shape, check_choice, check_flag, check_range, z
from bmlpipe.train.modulation.rule import Epochs, Rule, Step, check_epochs, within

Unit = Literal["sample", "batch"]
Target = Literal["feature", "input"]


@dataclass(frozen=True, kw_only=True)
class OPM(Rule):
    """Set the feature of modality m to 0 with probability q^m, for each sample on its own.

    With `target="input"` (release) the modality's input becomes 0 instead, before its encoder. A sample that lost its
    input says nothing about the modality, so S^m is then the mean score of the samples that kept it, times the
    number of all samples; each of them stands for a random part of the batch, so the mean is not biased. Where no
    sample kept it (`unit="batch"`), the last mean is used once more. And the encoder's batch norm sees the zeros.

    Attributes:
        q_base: Probability at the neutral point, in [0, 1].
        lam: λ ≥ 0, how much the probability grows with the discrepancy.
        z: Function of ρ, see `bmlpipe.train.modulation.discrepancy`.
        same_step: Driven by this step's ratio instead of the last one's (release). Costs a second collective, which
            the forward pass waits for, and excludes gradient accumulation and dropped inputs.
        p_exe: Probability that a batch is modulated at all, one draw a batch (release: 0.7).
        rescale: Multiply all features by 1/(1 − θ), θ = Σ d_m q^m / Σ d_m with feature lengths d_m (release).
        unit: Whether each `sample` or the whole global `batch` draws (release: batch).
        target: What becomes 0: the `feature`, or the `input` of the encoder (release); then q_base · (1 + λ) must be
            below 1, since a modality that is always dropped would never be measured again.
        epochs: Window (first, end) in which it acts (release: from epoch 6).
    """

    q_base: float = 0.5
    lam: float = 0.5
    z: Shape = "tanh"
    same_step: bool = False
    p_exe: float = 1.0
    rescale: bool = False
    unit: Unit = "sample"
    target: Target = "feature"
    epochs: Epochs = (0, None)

    def __post_init__(self) -> None:
        check_range("q_base", self.q_base, 0, 1)
        check_range("lam", self.lam, 0)
        check_choice("z", self.z, Shape)
        check_flag("same_step", self.same_step)
        check_range("p_exe", self.p_exe, 0, 1)
        check_flag("rescale", self.rescale)
        check_choice("unit", self.unit, Unit)
        check_choice("target", self.target, Target)
        check_epochs(self.epochs)
        if self.target == "input" and self.same_step:
            raise OptionError(
                "same_step is true and target is 'input': this step's ratio is not known before the encoders have run; "
                "take the last step's (same_step false), or drop the feature"
            )
        if self.target == "input" and self.q_base * (1 + self.lam) >= 1:
            raise OptionError(
                f"q_base · (1 + lam) is {self.q_base * (1 + self.lam):g} and target is 'input': a modality of which "
                "every input is dropped is not measured any more; choose them so that it is below 1"
            )

    @property
    def acts_on_inputs(self) -> bool:  # type: ignore[override]
        """Whether inputs are dropped."""
        return self.target == "input"

    def probability(self, ratio: Tensor, neutral: float = 1.0) -> Tensor:
        """q^m = min(1, q_base · (1 + λ · z(ρ^m))) if ρ^m > neutral, else 0 (Eq. 8); (M,) → (M,)."""
        q = (self.q_base * (1 + self.lam * z(ratio, self.z, neutral))).clamp(max=1)
        return torch.where(ratio > neutral, q, 0.0)

    def inputs(self, inputs: dict[str, Tensor], step: Step) -> dict[str, Tensor]:
        """Drop inputs, where they are what is dropped."""
        return self._dropped(inputs, step) if self.target == "input" else inputs

    def forward(self, features: dict[str, Tensor], step: Step) -> dict[str, Tensor]:
        """Drop features, where they are what is dropped, and rescale."""
        kept = self._dropped(features, step) if self.target == "feature" else features
        return self._rescaled(kept, step) if self.rescale and step.dropped is not None else kept

    def _dropped(self, given: dict[str, Tensor], step: Step) -> dict[str, Tensor]:
        """{m: (B, …)} with zeros; a sample that would lose every modality loses none."""
        acts = within(self.epochs, step.epoch) and keyed.chance(step.seed, "p_exe", step.index) < self.p_exe
        if not acts:
            step.q = torch.zeros_like(step.ratio)
            return given
        step.q = self.probability(step.ratio, step.neutral)
        drop = self._numbers(step) < step.q[:, None]
        drop &= ~drop.all(dim=0)
        step.dropped = drop
        masks = zip(step.modalities, drop.unbind(), strict=True)
        return {m: given[m].masked_fill(mask.view(-1, *[1] * (given[m].ndim - 1)), 0) for m, mask in masks}

    def _numbers(self, step: Step) -> Tensor:
        """One uniform number a modality and sample, (M, B), or for the batch unit a modality and step."""
        assert step.ids is not None
        ids = step.ids.to(step.ratio.device, non_blocking=True)
        scope = step.epoch
        if self.unit == "batch":
            ids, scope = torch.zeros_like(ids), step.index
        return torch.stack([keyed.uniform(ids, keyed.key(step.seed, "drop", scope, m)) for m in step.modalities])

    @staticmethod
    def _rescaled(features: dict[str, Tensor], step: Step) -> dict[str, Tensor]:
        assert step.q is not None
        total = sum(feature.shape[1] for feature in features.values())
        shares = [step.q[i] * (features[m].shape[1] / total) for i, m in enumerate(step.modalities)]
        scale = 1 / (1 - torch.stack(shares).sum())
        return {m: feature * scale.to(feature.dtype) for m, feature in features.items()}
