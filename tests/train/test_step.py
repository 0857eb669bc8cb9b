"""One optimiser step: accumulation, padding, loss scaling, clipping and compilation do not change the result."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from bmlpipe.train.config.options import TrainConfig
from bmlpipe.train.data.normalise import Normaliser
from bmlpipe.train.distributed.group import ProcessInfo
from bmlpipe.train.engine.optimizers import make_optimizer, set_lr
from bmlpipe.train.engine.step import StepOptions, TrainStep
from bmlpipe.train.models.multimodal import MultimodalModel
from bmlpipe.train.modulation import OGM, OPM, Modulation, Rule
from bmlpipe.train.tasks.classification import Classification

NAMES = ("audio", "visual")
TASK = Classification(("a", "b", "c"))
ALONE = ProcessInfo(0, 1, 0, torch.device("cpu"))
STATISTICS = {"spectrogram": {"mean": [0.0], "std": [1.0]}, "frames": {"mean": [0.0] * 3, "std": [1.0] * 3}}


class Head(nn.Module):
    """Concatenation of two features of 8, 3 classes, split exactly."""

    def __init__(self) -> None:
        super().__init__()
        self.modalities = NAMES
        self.linear = nn.Linear(16, 3)

    def forward(self, features: dict[str, Tensor]) -> Tensor:
        return self.linear(torch.cat([features[m] for m in NAMES], dim=1))

    def split_logits(self, features: dict[str, Tensor], gamma: Any = None) -> dict[str, Tensor]:
        share = gamma or (0.5, 0.5)
        weights = self.linear.weight.split(8, dim=1)
        return {
            m: features[m] @ weight.T + part * self.linear.bias
            for m, weight, part in zip(NAMES, weights, share, strict=True)
        }


def made(
    *rules: Rule, optimizer: str = "sgd", max_grad_norm: float = 0.0, **options: Any
) -> tuple[MultimodalModel, Modulation, TrainStep]:
    torch.manual_seed(0)
    encoders = {
        "audio": nn.Sequential(nn.Flatten(), nn.Linear(20, 8), nn.Tanh()),
        "visual": nn.Sequential(nn.Flatten(), nn.Linear(24, 8), nn.Tanh()),
    }
    model = MultimodalModel(encoders, Head())
    balance = Modulation(NAMES, *rules, seed=5)
    config = TrainConfig(optimizer=optimizer, lr=0.1, precision=options.get("precision", "fp32"))
    normaliser = Normaliser(NAMES, STATISTICS)
    step_options = StepOptions(max_grad_norm=max_grad_norm, **options)
    return (
        model,
        balance,
        TrainStep(model, normaliser, balance, make_optimizer(config, model.parameters()), TASK, ALONE, step_options),
    )


def data(count: int, seed: int = 1, size: int = 1) -> dict[str, Tensor]:
    """A raw batch as the loader gives it."""
    generator = torch.Generator().manual_seed(seed)
    return {
        "audio": torch.randn(count, 1, 4, 5, generator=generator).half(),
        "visual": torch.randint(0, 3, (count, 2, 3, 2, 2), generator=generator, dtype=torch.uint8) * size,
        "label": torch.randint(3, (count,), generator=generator),
        "number": torch.arange(count) + 100 * seed,
        "weight": torch.ones(count),
    }


def part(batch: dict[str, Tensor], which: slice) -> dict[str, Tensor]:
    return {name: value[which] for name, value in batch.items()}


def weights(model: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def test_the_loss_is_the_mean_of_the_batch_and_the_step_is_sgd() -> None:
    model, balance, step = made()
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    batch = data(6)
    logits = model({"audio": batch["audio"].float().unsqueeze(1), "visual": batch["visual"].float()})
    loss = cross_entropy(logits, batch["label"])
    gradients = dict(zip(before, torch.autograd.grad(loss, list(model.parameters()))))
    row = step([batch], samples=6, sum_over_ranks=[3.0])
    assert len(row) == len(balance.columns) + 2
    assert row[-2].item() == pytest.approx(loss.item(), rel=1e-6)
    assert row[-1].item() == 3.0
    for name, value in model.named_parameters():
        torch.testing.assert_close(value.detach(), before[name] - 0.1 * gradients[name])


@pytest.mark.parametrize("rules", [(), (OPM(),), (OGM(),), (OPM(), OGM())], ids=["none", "opm", "ogm", "both"])
def test_accumulation_equals_one_large_batch(rules: tuple[Rule, ...]) -> None:
    (whole, _, one), (parted, _, several) = made(*rules), made(*rules)
    for seed in range(1, 6):
        batch = data(12, seed)
        micro = [part(batch, slice(start, start + 4)) for start in (0, 4, 8)]
        a, b = one([batch], samples=12, sum_over_ranks=[1.0]), several(micro, samples=12, sum_over_ranks=[1.0])
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7, equal_nan=True)
    torch.testing.assert_close(weights(whole), weights(parted), rtol=1e-5, atol=1e-6)


def test_padding_has_no_effect() -> None:
    (padded, balance, one), (plain, reference, other) = made(OPM(), OGM()), made(OPM(), OGM())
    for seed in range(1, 6):
        batch = data(8, seed)
        batch["weight"][5:] = 0
        a, b = one([batch], samples=5), other([part(batch, slice(0, 5))], samples=5)
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7, equal_nan=True)
    assert balance.columns == reference.columns
    torch.testing.assert_close(weights(padded), weights(plain), rtol=1e-5, atol=1e-6)


def test_gradients_are_clipped_after_modulation() -> None:
    model, balance, step = made(OGM(noise="off"), max_grad_norm=0.01)
    before = weights(model)
    step([data(6)], samples=6)
    assert torch.linalg.vector_norm(weights(model) - before).item() == pytest.approx(0.1 * 0.01, rel=1e-4)
    assert balance.telemetry()["grad_norm/audio"] > 0.01


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_stays_near_single(precision: str) -> None:
    (half, _, one), (single, _, other) = made(OGM(), precision=precision), made(OGM())
    for seed in range(1, 5):
        a, b = one([data(8, seed)], samples=8), other([data(8, seed)], samples=8)
        torch.testing.assert_close(a, b, rtol=0.05, atol=0.02, equal_nan=True)
    torch.testing.assert_close(weights(half), weights(single), rtol=0.05, atol=0.05)


def test_infinite_gradients_skip_the_step_and_lower_the_loss_scale() -> None:
    model, balance, step = made(OPM(), OGM(), precision="fp16", max_grad_norm=1.0)
    step([data(6)], samples=6)
    before, scale = weights(model), step.scaler.get_scale()
    with torch.no_grad():
        model.encoders["audio"][1].weight.register_hook(lambda gradient: gradient * torch.inf)
    batch = data(6, 2)
    step([batch], samples=6)
    assert torch.equal(weights(model), before)
    assert step.scaler.get_scale() == scale / 2
    assert not torch.isfinite(balance.telemetry()["grad_norm/audio"])
    assert torch.isfinite(balance.telemetry()["rho/audio"])


def test_scores_use_the_given_share_of_the_bias() -> None:
    model, balance, step = made(gamma=(1.0, 0.0))
    batch = data(6)
    with torch.no_grad():
        features = model.encode({"audio": batch["audio"].float().unsqueeze(1), "visual": batch["visual"].float()})
        logits = model.head.split_logits(features, (1.0, 0.0))
        expected = logits["audio"].softmax(1)[torch.arange(6), batch["label"]].mean()
    step([batch], samples=6)
    assert balance.telemetry()["score/audio"].item() == pytest.approx(expected.item(), rel=1e-6)


def test_the_learning_rate_falls_in_steps() -> None:
    config = TrainConfig(optimizer="adamw", lr=1.0, lr_step=40)
    optimizer = make_optimizer(config, [nn.Parameter(torch.ones(1))])
    assert [set_lr(optimizer, config, epoch) for epoch in (0, 39, 40, 80)] == pytest.approx([1, 1, 0.1, 0.01])
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.01)
    assert set_lr(optimizer, TrainConfig(lr=0.5), 99) == 0.5


@pytest.mark.slow
def test_a_compiled_model_equals_a_plain_one() -> None:
    (compiled, _, one), (plain, _, other) = made(OPM(), OGM(), compiled=True), made(OPM(), OGM())
    for seed in range(1, 4):
        a, b = one([data(8, seed)], samples=8), other([data(8, seed)], samples=8)
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6, equal_nan=True)
    torch.testing.assert_close(weights(compiled), weights(plain), rtol=1e-4, atol=1e-5)
    assert compiled.state_dict().keys() == plain.state_dict().keys()
