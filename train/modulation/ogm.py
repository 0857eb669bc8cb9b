"""On-the-fly gradient modulation: damp the encoder of the more discriminative modality (Alg. 2, Eqs. 11–17)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from bmlpipe.train.modulation import keyed
from bmlpipe.train.modulation.ratio import Shape, check_choice, check_range, z
from bmlpipe.train.modulation.rule import Epochs, Rule, Step, check_epochs, within

Noise = Literal["all", "damped", "off"]
Parameters = Literal["all", "convolutions"]


@dataclass(frozen=True, kw_only=True)
class OGM(Rule):
    """Multiply the gradient of encoder m by k^m and add Gaussian noise: g ← k^m · g + h, h ~ N(0, std(g)²).

    std(g) is one number a parameter tensor, of the gradient before it is damped.

    Attributes:
        alpha: α ≥ 0, how strongly. From α > 1 on a large discrepancy makes k 0: that encoder stops learning.
        form: Of k where ρ is above the neutral point: `paper` max(0, 1 − α·z(ρ)); `cvpr` 1 − tanh(α·ρ) (OGM-GE, 2022).
        z: Function of ρ in the paper's form, see `bmlpipe.train.modulation.ratio`.
        noise: `all` encoders get it, or only the `damped` ones (k < 1), or it is `off`. Tensors of fewer than 2
            dimensions (biases, batch norm) never do.
        parameters: `all` of the encoder, or weights of `convolutions` only (release), for the factor and the noise.
        epochs: Window (first, end) in which it acts (release: to epoch 50 or 60).
    """

    alpha: float = 0.8
    form: Literal["paper", "cvpr"] = "paper"
    z: Shape = "tanh"
    noise: Noise = "all"
    parameters: Parameters = "all"
    epochs: Epochs = (0, None)

    def __post_init__(self) -> None:
        check_range("alpha", self.alpha, 0)
        check_choice("form", self.form, Literal["paper", "cvpr"])
        check_choice("z", self.z, Shape)
        check_choice("noise", self.noise, Noise)
        check_choice("parameters", self.parameters, Parameters)
        check_epochs(self.epochs)

    def coefficient(self, ratio: Tensor, neutral: float = 1.0) -> Tensor:
        """k^m, (M,) → (M,): 1 where ρ^m ≤ neutral or is NaN."""
        damping = self.alpha * z(ratio, self.z, neutral) if self.form == "paper" else torch.tanh(self.alpha * ratio)
        return torch.where(ratio > neutral, (1 - damping).clamp(min=0), 1.0)

    def backward(self, encoders: Mapping[str, nn.Module], step: Step) -> None:
        """Damp and add noise, in place, the same on all ranks."""
        if not within(self.epochs, step.epoch):
            step.k = torch.ones_like(step.ratio)
            return
        step.k = self.coefficient(step.ratio, step.neutral)
        for i, m in enumerate(step.modalities):
            gradients = _gradients(encoders[m], self.parameters)
            if not gradients:
                continue
            stds = {} if self.noise == "off" else _stds(gradients)
            torch._foreach_mul_(list(gradients.values()), step.k[i].to(next(iter(gradients.values())).dtype))
            if self.noise == "damped":
                stds = {name: std * (step.k[i] < 1) for name, std in stds.items()}
            _add_noise(
                {name: (gradients[name], std) for name, std in stds.items()}, (step.seed, "noise", step.index, m)
            )


def _gradients(encoder: nn.Module, parameters: Parameters) -> dict[str, Tensor]:
    """{name: gradient} of the parameters to modulate that have one."""
    named: Iterable[tuple[str, Tensor]] = encoder.named_parameters()
    if parameters == "convolutions":
        modules = encoder.named_modules()
        named = ((f"{name}.weight", module.weight) for name, module in modules if isinstance(module, _ConvNd))
    return {name: parameter.grad for name, parameter in named if parameter.grad is not None}


def _stds(gradients: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The standard deviation of each gradient of 2 or more dimensions (of a single number: 0)."""
    return {
        name: gradient.std(correction=min(1, gradient.numel() - 1))
        for name, gradient in gradients.items()
        if gradient.ndim >= 2
    }


def _add_noise(targets: Mapping[str, tuple[Tensor, Tensor]], stream: tuple[int | str, ...]) -> None:
    """Add N(0, std²) to each {name: (gradient, std)}, from a generator seeded by the stream and the name."""
    if not targets:
        return
    some = next(iter(targets.values()))[0]
    generator = torch.Generator(some.device)
    buffer = some.new_empty(max(gradient.numel() for gradient, _ in targets.values()))
    for name, (gradient, std) in targets.items():
        generator.manual_seed(keyed.key(*stream, name))
        normal = buffer[: gradient.numel()].normal_(generator=generator).view(gradient.shape)
        gradient.addcmul_(normal, std)
