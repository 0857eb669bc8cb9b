"""OGM*: leave the dominant modality's gradient and enlarge that of the weaker ones (Sec. 4.4.2)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from bmlpipe.train.modulation.discrepancy import Shape, check_choice, z
from bmlpipe.train.modulation.rule import Epochs, Rule, Step, within
from bmlpipe.train.modulation.rules.ogm import Apply, Noise, Parameters, check_common, modulate, scaled_update

Form = Literal["adaptive", "constant"]


@dataclass(frozen=True, kw_only=True)
class OGMStar(Rule):
    """The opposite of OGM: g ← k^m · g + h with k^m > 1 for the modalities behind, 1 for those ahead.

    How far a modality is behind is told by the mirrored discrepancy, which is ρ of the roles exchanged: 1/ρ^m for the
    ratio, −ρ^m for the difference. With two modalities that is the other one's ρ. With more, 1/ρ^m is the harmonic
    mean of S^j / S^m over the others, which is above 1 exactly where ρ^m is below 1, so that a modality is never
    ahead and behind at once; the strongest one always has ρ ≥ 1 and is never enlarged.

    Attributes:
        alpha: α ≥ 0, how strongly; k is at most 1 + α.
        form: Of k where ρ is below the neutral point: `adaptive` 1 + α·z(mirrored ρ), or `constant` 1 + α.
        z: Function of the mirrored ρ, see `bmlpipe.train.modulation.discrepancy`.
        noise: As of OGM, `damped` meaning those with k ≠ 1.
        parameters: As of OGM.
        apply: As of OGM.
        epochs: Window (first, end) in which it acts.
    """

    alpha: float = 0.8
    form: Form = "adaptive"
    z: Shape = "tanh"
    noise: Noise = "all"
    parameters: Parameters = "all"
    apply: Apply = "gradient"
    epochs: Epochs = (0, None)

    def __post_init__(self) -> None:
        check_choice("form", self.form, Form)
        check_common(self.alpha, self.z, self.noise, self.parameters, self.apply, self.epochs)

    @property
    def acts_on_update(self) -> bool:  # type: ignore[override]
        """Whether k is a factor of the learning rate."""
        return self.apply == "lr"

    def coefficient(self, ratio: Tensor, neutral: float = 1.0) -> Tensor:
        """k^m, (M,) → (M,): 1 where ρ^m ≥ neutral or is NaN."""
        mirrored = ratio.reciprocal() if neutral else -ratio
        strength = torch.ones_like(ratio) if self.form == "constant" else z(mirrored, self.z, neutral)
        return torch.where(ratio < neutral, 1 + self.alpha * strength, 1.0)

    def backward(self, encoders: Mapping[str, nn.Module], step: Step) -> None:
        """Enlarge, except where the update is enlarged, and add noise: in place, the same on all ranks."""
        if within(self.epochs, step.epoch):
            step.k = self.coefficient(step.ratio, step.neutral)
            modulate(encoders, step, noise=self.noise, parameters=self.parameters, apply=self.apply)

    def update(self, encoders: Mapping[str, nn.Module], step: Step) -> Callable[[], None] | None:
        """Enlarge the update, where that is what is enlarged."""
        return scaled_update(encoders, step, self.parameters) if self.acts_on_update else None
