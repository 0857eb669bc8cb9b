"""OGM's noise in large tensors: the deviation to float32's rounding, and independence of the other parameters."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from bmlpipe.train.modulation import OGM, StepContext
from bmlpipe.train.modulation.rules.gradient_factor import gradient_stds


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("offset", [0.0, 10.0])
def test_the_deviation_is_exact_to_rounding(layout: torch.memory_format, offset: float) -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = {"large": (512, 512, 3, 3), "first": (64, 3, 7, 7), "pair": (2, 1, 1, 1)}
    gradients = {n: 1e-3 * (offset + torch.randn(shape, generator=generator)) for n, shape in shapes.items()}
    gradients = {name: gradient.contiguous(memory_format=layout) for name, gradient in gradients.items()}
    found = gradient_stds({**gradients, "bias": torch.randn(512)})
    assert list(found) == list(shapes)
    for name, gradient in gradients.items():
        assert found[name].item() == pytest.approx(gradient.double().std().item(), rel=3e-5 if offset else 1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_deviation_of_other_precisions_neither_underflows_nor_overflows(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    for size in (1e-6, 1e3):
        gradient = (size * torch.randn(300, 300, generator=generator)).to(dtype)
        found = gradient_stds({"weight": gradient})["weight"]
        assert found.item() == pytest.approx(gradient.double().std().item(), rel=1e-5)


def test_the_noise_of_a_parameter_does_not_depend_on_the_others() -> None:
    def noise(encoder: nn.Module) -> dict[str, Tensor]:
        for parameter in encoder.parameters():
            parameter.grad = torch.linspace(-1, 1, parameter.numel()).view_as(parameter)
        rho = torch.tensor([0.5, 0.5], dtype=torch.float64)  # nothing is damped
        step = StepContext(("audio", "visual"), 0, 0, 3, rho, 1.0)
        OGM().backward({"audio": encoder, "visual": nn.Identity()}, step)
        return {
            name: parameter.grad - torch.linspace(-1, 1, parameter.numel()).view_as(parameter)
            for name, parameter in encoder.named_parameters()
        }

    whole = noise(nn.Sequential(nn.Linear(40, 30), nn.Linear(30, 20)))
    part = noise(nn.Sequential(nn.Identity(), nn.Linear(30, 20)))
    assert whole["1.weight"].std() > 0.4
    assert torch.equal(whole["1.weight"], part["1.weight"])
    assert not whole["1.bias"].any()
