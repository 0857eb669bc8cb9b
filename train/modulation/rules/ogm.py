"""On-the-fly gradient modulation: damp the encoder of the more discriminative modality (Alg. 2, Eqs. 11–17)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from bmlpipe.train.modulation import keyed
from bmlpipe.train.modulation.discrepancy import Shape, check_choice, check_range, z
from bmlpipe.train.modulation.rule import Epochs, Rule, Step, check_epochs, within

Noise = Literal["all", "damped", "off"]
Parameters = Literal["all", "convolutions"]
Apply = Literal["gradient", "lr"]


@dataclass(frozen=True, kw_only=True)
class OGM(Rule):
    """Multiply the gradient of encoder m by k^m and add Gaussian noise: g ← k^m · g + h, h ~ N(0, std(g)²).

    std(g) is one number a parameter tensor, of the gradient before it is damped.

    Optimisers of Adam's kind divide a gradient by its own running size, so that a constant k cancels. For them
    `apply="lr"` makes k^m a factor of the learning rate of encoder m: the optimiser makes its step with g + h, then all
    that it did to θ^m, weight decay included, is multiplied by k^m: θ_{t+1} = θ_t + k · (θ' − θ_t). Its running
    averages are left alone. Costs a copy of the encoders' parameters during the step; needs `Modulation.update`.

    Attributes:
        alpha: α ≥ 0, how strongly. From α ≥ 1 on a large discrepancy makes k 0: that encoder stops learning.
        form: Of k where ρ is above the neutral point: `paper` max(0, 1 − α·z(ρ)); `cvpr` 1 − tanh(α·ρ) (OGM-GE, 2022).
        z: Function of ρ in the paper's form, see `bmlpipe.train.modulation.discrepancy`.
        noise: `all` encoders get it, or only the `damped` ones (k < 1), or it is `off`. Tensors of fewer than 2
            dimensions (biases, batch norm) never do.
        parameters: `all` of the encoder, or weights of `convolutions` only (release), for the factor and the noise.
        apply: k to the `gradient`, or as a factor of the learning rate (`lr`).
        epochs: Window (first, end) in which it acts (release: to epoch 50 or 60).
    """

    alpha: float = 0.8
    form: Literal["paper", "cvpr"] = "paper"
    z: Shape = "tanh"
    noise: Noise = "all"
    parameters: Parameters = "all"
    apply: Apply = "gradient"
    epochs: Epochs = (0, None)

    def __post_init__(self) -> None:
        check_choice("form", self.form, Literal["paper", "cvpr"])
        check_common(self.alpha, self.z, self.noise, self.parameters, self.apply, self.epochs)

    @property
    def acts_on_update(self) -> bool:  # type: ignore[override]
        """Whether k is a factor of the learning rate."""
        return self.apply == "lr"

    def coefficient(self, ratio: Tensor, neutral: float = 1.0) -> Tensor:
        """k^m, (M,) → (M,): 1 where ρ^m ≤ neutral or is NaN."""
        damping = self.alpha * z(ratio, self.z, neutral) if self.form == "paper" else torch.tanh(self.alpha * ratio)
        return torch.where(ratio > neutral, (1 - damping).clamp(min=0), 1.0)

    def backward(self, encoders: Mapping[str, nn.Module], step: Step) -> None:
        """Damp, except where the update is damped, and add noise: in place, the same on all ranks."""
        if within(self.epochs, step.epoch):
            step.k = self.coefficient(step.ratio, step.neutral)
            modulate(encoders, step, noise=self.noise, parameters=self.parameters, apply=self.apply)

    def update(self, encoders: Mapping[str, nn.Module], step: Step) -> Callable[[], None] | None:
        """Damp the update, where that is what is damped."""
        return scaled_update(encoders, step, self.parameters) if self.acts_on_update else None


def check_common(
    alpha: float, shape: Shape, noise: Noise, parameters: Parameters, apply: Apply, epochs: Epochs
) -> None:
    """Check the options that OGM and OGM* share.

    Raises:
        OptionError: Names the option, its value and what it must be.
    """
    check_range("alpha", alpha, 0)
    check_choice("z", shape, Shape)
    check_choice("noise", noise, Noise)
    check_choice("parameters", parameters, Parameters)
    check_choice("apply", apply, Apply)
    check_epochs(epochs)


def modulate(
    encoders: Mapping[str, nn.Module], step: Step, *, noise: Noise, parameters: Parameters, apply: Apply
) -> None:
    """Make g ← k^m · g + h in place for each encoder m, k^m as noted in `step`; without the factor for `apply="lr"`."""
    assert step.k is not None
    for i, m in enumerate(step.modalities):
        chosen = _chosen(encoders[m], parameters)
        gradients = {name: parameter.grad for name, parameter in chosen if parameter.grad is not None}
        if not gradients:
            continue
        stds = {} if noise == "off" else _stds(gradients)
        if apply == "gradient":
            torch._foreach_mul_(list(gradients.values()), step.k[i].to(next(iter(gradients.values())).dtype))
        if noise == "damped":
            stds = {name: std * (step.k[i] != 1) for name, std in stds.items()}
        _add_noise({name: (gradients[name], std) for name, std in stds.items()}, (step.seed, "noise", step.index, m))


def scaled_update(encoders: Mapping[str, nn.Module], step: Step, parameters: Parameters) -> Callable[[], None] | None:
    """Remember the encoders' parameters; what is returned puts each at θ_t + k^m · (θ' − θ_t).

    Exact for k = 1 (θ' to the last bit) and k = 0 (θ_t).
    """
    if step.k is None:
        return None
    tensors, before, weights = [], [], []
    for i, m in enumerate(step.modalities):
        own = [parameter for _, parameter in _chosen(encoders[m], parameters) if parameter.requires_grad]
        shares = {parameter.dtype: (1 - step.k[i]).to(parameter.dtype) for parameter in own}
        tensors += own
        before += [parameter.clone() for parameter in own]
        weights += [shares[parameter.dtype] for parameter in own]
    return lambda: torch._foreach_lerp_(tensors, before, weights) if tensors else None


def _chosen(encoder: nn.Module, parameters: Parameters) -> Iterable[tuple[str, Tensor]]:
    """(name, parameter) of those to modulate."""
    if parameters == "all":
        return encoder.named_parameters()
    modules = encoder.named_modules()
    return [(f"{name}.weight", module.weight) for name, module in modules if isinstance(module, _ConvNd)]


def _stds(gradients: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The standard deviation of each gradient of 2 or more dimensions (of a single number: 0).

    From (n − 1)·std² = ‖g‖² − (Σg)²/n, which on a CPU costs a third of `Tensor.std` and is as exact unless the mean is
    hundreds of times the deviation. The norm is taken row by row, since torch's norm of a whole tensor on a CPU adds
    up without pairing: 4·10⁻⁵ off for 2 million numbers.
    """
    chosen = {name: gradient for name, gradient in gradients.items() if gradient.ndim >= 2}
    if not chosen:
        return {}
    rows, sums, norm_scales, sum_scales = [], [], [], []
    for gradient in chosen.values():
        exact, free = torch.promote_types(gradient.dtype, torch.float32), max(1, gradient.numel() - 1)
        rows.append(torch.linalg.vector_norm(gradient, dim=tuple(range(1, gradient.ndim)), dtype=exact))
        sums.append(gradient.sum(dtype=exact))
        norm_scales.append(free**-0.5)
        sum_scales.append((free * gradient.numel()) ** -0.5)
    norm = torch.stack(torch._foreach_mul(torch._foreach_norm(rows), norm_scales))
    mean = torch.stack(torch._foreach_mul(sums, sum_scales))
    stds = ((norm - mean) * (norm + mean)).clamp(min=0).sqrt()
    return dict(zip(chosen, stds.unbind(), strict=True))


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
