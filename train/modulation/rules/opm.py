"""On-the-fly prediction modulation: drop the feature of the more discriminative modality (Alg. 1, Eq. 8)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from bmlpipe.manifests.common.errors import OptionError
from bmlpipe.train.modulation import keyed
from bmlpipe.train.modulation.checks import Epochs, check_choice, check_epochs, check_flag, check_range, is_within
from bmlpipe.train.modulation.discrepancy import Shape, z
from bmlpipe.train.modulation.rule import Rule, StepContext

Unit = Literal["sample", "batch"]
Target = Literal["feature", "input"]


@dataclass(frozen=True, kw_only=True)
class OPM(Rule):
    """OPM: sets the feature of modality m to 0 with probability q^m, independently per sample (Alg. 1, Eq. 8).

    With `target="input"` (release) the input of the modality is set to 0 instead, before its encoder. A sample that
    lost its input says nothing about the modality, so S^m is then the mean score of the samples that kept it, times
    the number of all samples. The kept samples are a random part of the batch, so the mean is not biased. If no sample
    kept its input (`unit="batch"`), the last mean is used again. The batch norm of the encoder sees the zeros.

    Attributes:
        q_base: Drop probability at the neutral point, in [0, 1].
        lam: λ ≥ 0, how strongly the probability grows with the discrepancy.
        z: Function of ρ (`bmlpipe.train.modulation.discrepancy.Shape`).
        same_step: Use the ρ of this step instead of the last one (release). This costs a second collective, for which
            the forward pass waits, and excludes gradient accumulation and dropped inputs.
        p_exe: Probability that a batch is modulated at all, in [0, 1], with one draw per batch (release: 0.7).
        rescale: Multiply all features by 1/(1 − θ), θ = Σ d_m q^m / Σ d_m, with d_m the length of the feature
            (release).
        unit: Draw once per `sample`, or once for the whole global `batch` (release).
        target: Set the `feature` to 0, or the `input` of the encoder (release). With `input`, q_base · (1 + λ) must be
            below 1, because a modality that is always dropped would never be measured again.
        epochs: Range (first, end) of epochs in which the rule acts, counted from 0, `end` excluded; end None: to the
            last epoch (release: from epoch 6).

    Raises:
        OptionError: An option is outside its range, or `target="input"` is combined with `same_step` or with
            q_base · (1 + λ) ≥ 1.
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
                "same_step is true and target is 'input': the ρ of this step is not known before the encoders have "
                "run. Use the ρ of the last step (same_step=false), or drop the feature (target=feature)"
            )
        if self.target == "input" and self.q_base * (1 + self.lam) >= 1:
            raise OptionError(
                f"q_base · (1 + lam) is {self.q_base * (1 + self.lam):g} and target is 'input': a modality whose "
                "inputs are all dropped is never measured again. Choose q_base and lam so that it is below 1"
            )

    @property
    def acts_on_inputs(self) -> bool:  # type: ignore[override]
        """Whether inputs are dropped."""
        return self.target == "input"

    def probability(self, rho: Tensor, neutral: float = 1.0) -> Tensor:
        """Compute q^m = min(1, q_base · (1 + λ · z(ρ^m))) where ρ^m > neutral, else 0 (Eq. 8): (M,) → (M,)."""
        q = (self.q_base * (1 + self.lam * z(rho, self.z, neutral))).clamp(max=1)
        return torch.where(rho > neutral, q, 0.0)

    def inputs(self, inputs: dict[str, Tensor], step: StepContext) -> dict[str, Tensor]:
        """Drop inputs, with `target="input"`."""
        return self._drop(inputs, step) if self.target == "input" else inputs

    def forward(self, features: dict[str, Tensor], step: StepContext) -> dict[str, Tensor]:
        """Drop features, with `target="feature"`, and rescale."""
        kept = self._drop(features, step) if self.target == "feature" else features
        return self._rescale(kept, step) if self.rescale and step.dropped is not None else kept

    def _drop(self, given: dict[str, Tensor], step: StepContext) -> dict[str, Tensor]:
        """Set dropped samples to 0 in {m: (B, …)}; a sample that would lose every modality loses none."""
        acts = is_within(self.epochs, step.epoch) and keyed.chance(step.seed, "p_exe", step.index) < self.p_exe
        if not acts:
            step.q = torch.zeros_like(step.rho)
            return given
        step.q = self.probability(step.rho, step.neutral)
        drop = self._numbers(step) < step.q[:, None]
        drop &= ~drop.all(dim=0)
        step.dropped = drop
        masks = zip(step.modalities, drop.unbind(), strict=True)
        return {m: given[m].masked_fill(mask.view(-1, *[1] * (given[m].ndim - 1)), 0) for m, mask in masks}

    def _numbers(self, step: StepContext) -> Tensor:
        """Draw uniform numbers, (M, B): one per modality and sample, or per modality and step for `unit="batch"`."""
        assert step.ids is not None
        ids = step.ids.to(step.rho.device, non_blocking=True)
        scope = step.epoch
        if self.unit == "batch":
            ids, scope = torch.zeros_like(ids), step.index
        return torch.stack([keyed.uniform(ids, keyed.key(step.seed, "drop", scope, m)) for m in step.modalities])

    @staticmethod
    def _rescale(features: dict[str, Tensor], step: StepContext) -> dict[str, Tensor]:
        assert step.q is not None
        total = sum(feature.shape[1] for feature in features.values())
        shares = [step.q[i] * (features[m].shape[1] / total) for i, m in enumerate(step.modalities)]
        scale = 1 / (1 - torch.stack(shares).sum())
        return {m: feature * scale.to(feature.dtype) for m, feature in features.items()}
