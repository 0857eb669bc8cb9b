"""On-the-fly gradient modulation: damp the gradient of the dominant encoder, or enlarge those of the others.

OGM is Alg. 2 (Eqs. 11–17), OGM* Sec. 4.4.2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from bmlpipe.train.modulation.checks import Epochs, check_choice
from bmlpipe.train.modulation.discrepancy import z
from bmlpipe.train.modulation.rules.gradient_factor import Apply, GradientFactor, Noise

OGMForm = Literal["paper", "cvpr"]
OGMStarForm = Literal["adaptive", "constant"]


@dataclass(frozen=True, kw_only=True)
class OGM(GradientFactor):
    """OGM: multiplies the gradient of the dominant encoders by k^m < 1 and adds Gaussian noise (Alg. 2, Eqs. 11–17).

    g ← k^m · g + h with h ~ N(0, std(g)²). The other attributes are those of `GradientFactor`. With α ≥ 1 a large
    discrepancy makes k 0, and that encoder stops learning.

    Attributes:
        form: k where ρ is above the neutral point: `paper` max(0, 1 − α·z(ρ)); `cvpr` 1 − tanh(α·ρ) (OGM-GE, CVPR
            2022). The `cvpr` form does not use `z`.
    """

    form: OGMForm = "paper"

    def __post_init__(self) -> None:
        check_choice("form", self.form, OGMForm)
        super().__post_init__()

    def coefficient(self, rho: Tensor, neutral: float = 1.0) -> Tensor:
        """Compute k^m, (M,) → (M,): 1 where ρ^m ≤ neutral or is NaN."""
        damping = self.alpha * z(rho, self.z, neutral) if self.form == "paper" else torch.tanh(self.alpha * rho)
        return torch.where(rho > neutral, (1 - damping).clamp(min=0), 1.0)


@dataclass(frozen=True, kw_only=True)
class OGMStar(GradientFactor):
    """OGM*, the opposite of OGM: k^m > 1 for the weaker modalities, 1 for the dominant (Sec. 4.4.2).

    g ← k^m · g + h as in OGM. The other attributes are those of `GradientFactor`; k is at most 1 + α.

    How much weaker a modality is, is measured by the mirrored discrepancy, with the roles swapped: 1/ρ^m for the ratio,
    −ρ^m for the difference. With two modalities that is the ρ of the other one. With more, 1/ρ^m is the harmonic mean
    of S^j / S^m over the other modalities, which is above 1 exactly where ρ^m is below 1, so a modality is never both
    dominant and weaker; the strongest one always has ρ ≥ 1 and is never enlarged.

    Attributes:
        form: k where ρ is below the neutral point: `adaptive` 1 + α·z(mirrored ρ), or `constant` 1 + α.
    """

    form: OGMStarForm = "adaptive"

    def __post_init__(self) -> None:
        check_choice("form", self.form, OGMStarForm)
        super().__post_init__()

    def coefficient(self, rho: Tensor, neutral: float = 1.0) -> Tensor:
        """Compute k^m, (M,) → (M,): 1 where ρ^m ≥ neutral or is NaN."""
        mirrored = rho.reciprocal() if neutral else -rho
        strength = torch.ones_like(rho) if self.form == "constant" else z(mirrored, self.z, neutral)
        return torch.where(rho < neutral, 1 + self.alpha * strength, 1.0)


def ogm_ge(*, alpha: float = 0.8, noise: Noise = "all", apply: Apply = "gradient", epochs: Epochs = (0, None)) -> OGM:
    """Make OGM-GE (CVPR 2022): OGM with k = 1 − tanh(α·ρ), with factor and noise on convolution weights only.

    Args:
        alpha: α ≥ 0, the strength.
        noise: Which encoders get noise (`GradientFactor`).
        apply: Whether k multiplies the gradient or the learning rate.
        epochs: Range (first, end) of epochs in which the rule acts.

    Raises:
        OptionError: An option is outside its range.
    """
    return OGM(form="cvpr", parameters="convolutions", alpha=alpha, noise=noise, apply=apply, epochs=epochs)
