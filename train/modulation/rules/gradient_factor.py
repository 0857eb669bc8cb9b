"""The base of OGM and OGM*: a factor k^m on the gradient or the update of each encoder, and Gaussian noise."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from bmlpipe.train.modulation import keyed
from bmlpipe.train.modulation.checks import Epochs, check_choice, check_epochs, check_range, is_within
from bmlpipe.train.modulation.discrepancy import Shape
from bmlpipe.train.modulation.rule import Rule, StepContext

Noise = Literal["all", "damped", "off"]
Parameters = Literal["all", "convolutions"]
Apply = Literal["gradient", "lr"]


@dataclass(frozen=True, kw_only=True)
class GradientFactor(Rule):
    """Base class of the rules that make g ← k^m · g + h for the parameters of encoder m, h ~ N(0, std(g)²).

    std(g) is one number per parameter tensor, of its gradient before it is multiplied by k^m (Eq. 17). Subclasses
    define `coefficient`.

    Optimisers such as Adam divide a gradient by its own running size, so a constant k cancels. For them `apply="lr"`
    makes k^m a factor of the learning rate of encoder m: the optimiser makes its step with g + h, then the whole change
    of θ^m, weight decay included, is multiplied by k^m: θ_{t+1} = θ_t + k^m · (θ' − θ_t). The running averages of the
    optimiser are not changed. This costs a copy of the encoders' parameters during the step, and needs
    `Modulation.update`.

    Attributes:
        alpha: α ≥ 0, the strength.
        z: Function of ρ (`bmlpipe.train.modulation.discrepancy.Shape`).
        noise: Which encoders get noise: `all`, only those with k ≠ 1 (`damped`), or none (`off`). Parameter tensors of
            fewer than 2 dimensions (biases, batch norm) never get noise.
        parameters: Which parameters of the encoder get the factor and the noise: `all`, or the weights of
            `convolutions` only (release).
        apply: Whether k multiplies the `gradient` or the learning rate (`lr`).
        epochs: Range (first, end) of epochs in which the rule acts, counted from 0, `end` excluded; end None: to the
            last epoch.

    Raises:
        OptionError: An option is outside its range.
    """

    alpha: float = 0.8
    z: Shape = "tanh"
    noise: Noise = "all"
    parameters: Parameters = "all"
    apply: Apply = "gradient"
    epochs: Epochs = (0, None)

    def __post_init__(self) -> None:
        check_range("alpha", self.alpha, 0)
        check_choice("z", self.z, Shape)
        check_choice("noise", self.noise, Noise)
        check_choice("parameters", self.parameters, Parameters)
        check_choice("apply", self.apply, Apply)
        check_epochs(self.epochs)

    @property
    def acts_on_update(self) -> bool:  # type: ignore[override]
        """Whether k is a factor of the learning rate."""
        return self.apply == "lr"

    def coefficient(self, rho: Tensor, neutral: float = 1.0) -> Tensor:
        """Compute k^m from ρ^m, (M,) → (M,); 1 where ρ^m is NaN."""
        raise NotImplementedError

    def backward(self, encoders: Mapping[str, nn.Module], step: StepContext) -> None:
        """Multiply the gradients by k, unless the update is multiplied, and add noise, in place."""
        if is_within(self.epochs, step.epoch):
            step.k = self.coefficient(step.rho, step.neutral)
            self._modulate(encoders, step, step.k)

    def update(self, encoders: Mapping[str, nn.Module], step: StepContext) -> Callable[[], None] | None:
        """Multiply the optimiser's update by k, with `apply="lr"`."""
        if not self.acts_on_update or step.k is None:
            return None
        return scaled_update(encoders, step.modalities, step.k, self.parameters)

    def _modulate(self, encoders: Mapping[str, nn.Module], step: StepContext, k: Tensor) -> None:
        for i, m in enumerate(step.modalities):
            selected = select_parameters(encoders[m], self.parameters)
            gradients = {name: parameter.grad for name, parameter in selected if parameter.grad is not None}
            if not gradients:
                continue
            stds = {} if self.noise == "off" else gradient_stds(gradients)
            if self.apply == "gradient":
                torch._foreach_mul_(list(gradients.values()), k[i].to(next(iter(gradients.values())).dtype))
            if self.noise == "damped":
                stds = {name: std * (k[i] != 1) for name, std in stds.items()}
            targets = {name: (gradients[name], std) for name, std in stds.items()}
            _add_noise(targets, (step.seed, "noise", step.index, m))


def scaled_update(
    encoders: Mapping[str, nn.Module], modalities: Iterable[str], k: Tensor, parameters: Parameters
) -> Callable[[], None]:
    """Copy the parameters θ_t of the encoders; the returned function sets each to θ_t + k^m · (θ' − θ_t).

    The result is exact for k = 1 (θ' to the last bit) and k = 0 (θ_t).

    Args:
        encoders: Modality → encoder.
        modalities: Names in the order of `k`.
        k: Factors, (M,).
        parameters: Which parameters of the encoders to scale.
    """
    tensors, before, weights = [], [], []
    for i, m in enumerate(modalities):
        own = [parameter for _, parameter in select_parameters(encoders[m], parameters) if parameter.requires_grad]
        shares = {parameter.dtype: (1 - k[i]).to(parameter.dtype) for parameter in own}
        tensors += own
        before += [parameter.clone() for parameter in own]
        weights += [shares[parameter.dtype] for parameter in own]
    return lambda: torch._foreach_lerp_(tensors, before, weights) if tensors else None


def select_parameters(encoder: nn.Module, parameters: Parameters) -> Iterable[tuple[str, Tensor]]:
    """Select the parameters that are modulated, as names and tensors."""
    if parameters == "all":
        return encoder.named_parameters()
    modules = encoder.named_modules()
    return [(f"{name}.weight", module.weight) for name, module in modules if isinstance(module, _ConvNd)]


def gradient_stds(gradients: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Compute the standard deviation of each gradient of 2 or more dimensions (0 for a single number).

    It is computed from (n − 1)·std² = ‖g‖² − (Σg)²/n, which on a CPU takes a third of the time of `Tensor.std` and is
    as exact unless the mean is hundreds of times the deviation. The norm is taken row by row, because torch's norm of a
    whole tensor on a CPU adds without pairing: its error is 4·10⁻⁵ for 2 million numbers.

    Args:
        gradients: Name → gradient, of any shape.

    Returns:
        Name → tensor without dimensions, only for gradients of 2 or more dimensions.
    """
    matrices = {name: gradient for name, gradient in gradients.items() if gradient.ndim >= 2}
    if not matrices:
        return {}
    rows, sums, norm_scales, sum_scales = [], [], [], []
    for gradient in matrices.values():
        dtype, free = torch.promote_types(gradient.dtype, torch.float32), max(1, gradient.numel() - 1)
        rows.append(torch.linalg.vector_norm(gradient, dim=tuple(range(1, gradient.ndim)), dtype=dtype))
        sums.append(gradient.sum(dtype=dtype))
        norm_scales.append(free**-0.5)
        sum_scales.append((free * gradient.numel()) ** -0.5)
    norm = torch.stack(torch._foreach_mul(torch._foreach_norm(rows), norm_scales))
    mean = torch.stack(torch._foreach_mul(sums, sum_scales))
    stds = ((norm - mean) * (norm + mean)).clamp(min=0).sqrt()
    return dict(zip(matrices, stds.unbind(), strict=True))


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
