"""What OGM and OGM* do to gradients: the factor, the noise and its standard deviation.

Each statistical test rejects a correct implementation with probability ERROR (exact binomial, χ², normal,
Kolmogorov–Smirnov and Fisher-z tests, two-sided). The numbers are keyed, so a test that passes once passes always.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from bmlpipe.manifests.common.errors import OptionError
from bmlpipe.train.modulation import OGM, OGMStar, Rule, StepContext
from bmlpipe.train.modulation.rules.gradient_factor import gradient_stds

NAMES = ("audio", "visual")
ERROR = 1e-6


def assert_uncorrelated(a: np.ndarray, b: np.ndarray) -> None:
    """Fisher's z of the correlation, normal with deviation 1/√(n − 3) where there is none."""
    z = math.atanh(np.corrcoef(a, b)[0, 1]) * math.sqrt(len(a) - 3)
    assert 2 * stats.norm.sf(abs(z)) > ERROR


def assert_normal(numbers: np.ndarray, deviation: float) -> None:
    """Mean 0, this deviation and the normal shape: a z test, a χ² test and Kolmogorov–Smirnov's."""
    n, scaled = len(numbers), numbers / deviation
    assert 2 * stats.norm.sf(abs(scaled.mean()) * math.sqrt(n)) > ERROR
    below = stats.chi2.cdf((scaled**2).sum(), n)
    assert 2 * min(below, 1 - below) > ERROR
    assert stats.kstest(scaled, "norm").pvalue > ERROR


def step(rho: list[float], *, ids: Tensor | None = None, seed: int = 0, epoch: int = 0, index: int = 0) -> StepContext:
    names = ("audio", "visual", "flow", "rgb_diff")[: len(rho)]
    return StepContext(names, seed, epoch, index, torch.tensor(rho, dtype=torch.float64), 1.0, ids)


def encoders_with_gradients(size: int = 30) -> dict[str, nn.Module]:
    """Encoders with a convolution, a batch norm and a linear layer, and a gradient in each parameter."""
    generator = torch.Generator().manual_seed(1)
    encoders = {m: nn.Sequential(nn.Conv2d(size, size, 3), nn.BatchNorm2d(size), nn.Linear(size, 40)) for m in NAMES}
    for i, encoder in enumerate(encoders.values()):
        for parameter in encoder.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator) * (i + 1) * 1e-3 + 2e-4
    return encoders


def gradients(encoders: dict[str, nn.Module]) -> list[Tensor]:
    return [p.grad.clone() for encoder in encoders.values() for p in encoder.parameters()]


def assert_times(encoders: dict[str, nn.Module], before: dict[str, list[Tensor]], factors: dict[str, float]) -> None:
    for m, factor in factors.items():
        for parameter, raw in zip(encoders[m].parameters(), before[m], strict=True):
            torch.testing.assert_close(parameter.grad, raw * factor)


@pytest.mark.parametrize("form", ["adaptive", "constant"])
def test_ogm_star_enlarges_the_weaker_gradient(form: str) -> None:
    encoders = encoders_with_gradients()
    before = {m: [p.grad.clone() for p in encoder.parameters()] for m, encoder in encoders.items()}
    now = step([1.8, 0.6])
    OGMStar(alpha=0.5, form=form, noise="off").backward(encoders, now)
    k = 1.5 if form == "constant" else 1 + 0.5 * math.tanh(1 / 0.6 - 1)
    assert now.k.tolist() == pytest.approx([1, k])
    assert_times(encoders, before, {"audio": 1.0, "visual": k})


def test_without_noise_the_gradient_is_multiplied_by_k() -> None:
    encoders = encoders_with_gradients()
    before = {m: [p.grad.clone() for p in encoder.parameters()] for m, encoder in encoders.items()}
    storages = [p.grad.data_ptr() for encoder in encoders.values() for p in encoder.parameters()]
    now = step([1.8, 0.6])
    OGM(alpha=0.8, noise="off").backward(encoders, now)
    k = 1 - 0.8 * math.tanh(0.8)
    assert now.k.tolist() == pytest.approx([k, 1])
    assert_times(encoders, before, {"audio": k, "visual": 1.0})
    assert storages == [p.grad.data_ptr() for encoder in encoders.values() for p in encoder.parameters()]


@pytest.mark.parametrize("rule", [OGM, OGMStar])
@pytest.mark.parametrize("noise", ["all", "damped"])
@pytest.mark.parametrize("apply", ["gradient", "lr"])
def test_noise_is_normal_with_the_deviation_of_the_raw_gradient(
    rule: type[OGM | OGMStar], noise: str, apply: str
) -> None:
    encoders = encoders_with_gradients()
    before = {m: dict(encoder.named_parameters()) for m, encoder in encoders.items()}
    raw = {m: {name: p.grad.double() for name, p in named.items()} for m, named in before.items()}
    now = step([1.8, 0.6])
    rule(alpha=0.8, noise=noise, apply=apply).backward(encoders, now)
    assert (now.k != 1).tolist() == [rule is OGM, rule is OGMStar]
    for i, m in enumerate(NAMES):
        factor = now.k[i] if apply == "gradient" else 1.0
        for name, parameter in encoders[m].named_parameters():
            added = (parameter.grad.double() - raw[m][name] * factor).numpy().ravel()
            expected = np.std(raw[m][name].numpy(), ddof=1)  # of the gradient before it was changed
            if parameter.ndim < 2 or (noise == "damped" and now.k[i] == 1):
                np.testing.assert_allclose(added, 0, atol=1e-9)
                continue
            assert_normal(added, expected)
            assert_uncorrelated(added, raw[m][name].numpy().ravel())


def test_noise_is_a_function_of_seed_step_modality_and_parameter() -> None:
    def drawn(**key: int) -> list[Tensor]:
        encoders = encoders_with_gradients()
        for encoder in encoders.values():
            for parameter in encoder.parameters():
                parameter.grad = torch.ones_like(parameter)
                parameter.grad.view(-1)[0] = 2.0  # a deviation of its own, the same in both encoders
        torch.manual_seed(torch.seed())  # the global generator has no part in it
        OGM(noise="all").backward(encoders, step([0.5, 0.5], **key))
        return [g for g in gradients(encoders) if g.ndim >= 2]

    first = drawn()
    assert all(torch.equal(a, b) for a, b in zip(first, drawn(), strict=True))
    for other in (drawn(seed=1), drawn(index=1)):
        assert not any(torch.equal(a, b) for a, b in zip(first, other, strict=True))
    audio, visual = first[: len(first) // 2], first[len(first) // 2 :]
    assert not any(torch.equal(a, b) for a, b in zip(audio, visual, strict=True))


def test_convolutions_only() -> None:
    encoders = encoders_with_gradients()
    before = gradients(encoders)
    OGM(parameters="convolutions").backward(encoders, step([1.8, 0.6]))
    changed = [not torch.equal(a, b) for a, b in zip(before, gradients(encoders), strict=True)]
    assert changed == [True, False, False, False, False, False] * 2  # only the convolutions' weights


def test_parameters_without_gradient_are_left_alone() -> None:
    encoders = encoders_with_gradients()
    encoders["audio"][0].weight.grad = None
    for parameter in encoders["visual"].parameters():
        parameter.grad = None
    OGM().backward(encoders, step([1.8, 0.6]))
    assert encoders["audio"][0].weight.grad is None
    assert all(p.grad is None for p in encoders["visual"].parameters())


def test_a_weight_of_one_number_gets_no_noise() -> None:
    encoders = {m: nn.Linear(1, 1) for m in NAMES}
    for encoder in encoders.values():
        for parameter in encoder.parameters():
            parameter.grad = torch.ones_like(parameter)
    OGM().backward(encoders, step([0.5, 0.5]))
    assert encoders["audio"].weight.grad.item() == 1


def test_channels_last_gradients_keep_their_layout() -> None:
    encoders = encoders_with_gradients()
    reference = encoders_with_gradients()
    for encoder in encoders.values():
        encoder[0].weight.grad = encoder[0].weight.grad.contiguous(memory_format=torch.channels_last)
    for given in (encoders, reference):
        OGM().backward(given, step([1.8, 0.6]))
    for a, b in zip(gradients(encoders), gradients(reference), strict=True):
        torch.testing.assert_close(a, b)
    assert encoders["audio"][0].weight.grad.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(("epoch", "acts"), [(0, False), (5, False), (6, True), (9, True), (10, False)])
def test_rules_act_only_in_their_range_of_epochs(epoch: int, acts: bool) -> None:
    now = step([1.5, 0.5], epoch=epoch)
    encoders = encoders_with_gradients()
    before = gradients(encoders)
    OGM(epochs=(6, 10)).backward(encoders, now)
    assert (now.k is not None and float(now.k[0]) < 1) == acts
    assert all(torch.equal(a, b) for a, b in zip(before, gradients(encoders), strict=True)) == (not acts)


# The standard deviation of a gradient, and the noise of large tensors


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


@pytest.mark.parametrize(
    ("rule", "options", "message"),
    [
        (OGM, {"alpha": math.inf}, "alpha must be finite and at least 0, not inf"),
        (OGM, {"form": "tpami"}, "form must be one of paper, cvpr, not 'tpami'"),
        (OGM, {"noise": "on"}, "noise must be one of all, damped, off, not 'on'"),
        (OGM, {"parameters": "bias"}, "parameters must be one of all, convolutions, not 'bias'"),
        (OGM, {"epochs": (-1, None)}, "epochs must be"),
        (OGM, {"apply": "adam"}, "apply must be one of gradient, lr, not 'adam'"),
        (OGMStar, {"form": "paper"}, "form must be one of adaptive, constant, not 'paper'"),
        (OGMStar, {"alpha": -1}, "alpha must be finite and at least 0, not -1"),
    ],
)
def test_options_out_of_range_are_refused(rule: type[Rule], options: dict, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        rule(**options)
