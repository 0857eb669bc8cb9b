"""GBlending: weights from reference runs against NumPy, the head and its loss, unusable references."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from sklearn.datasets import load_digits
from sklearn.metrics import log_loss
from torch import Tensor, nn

from bmlpipe.train.config.options import ConfigError
from bmlpipe.train.config.parsing import parse
from bmlpipe.train.engine.gblending_references import reference_weights
from bmlpipe.train.engine.step import loss_of
from bmlpipe.train.modulation import Modulation
from bmlpipe.train.modulation.names import JOINT
from bmlpipe.train.modulation.rules.gblending import BlendedHead, GBlending, Losses, blend_weights
from bmlpipe.train.modulation.scores import unimodal_logits
from bmlpipe.train.runs.journal import Journal
from bmlpipe.train.tasks.classification import Classification

NAMES = ("audio", "visual")
DIMS = {"audio": 5, "visual": 3}
CLASSES = 4
TASK = Classification(tuple("abcd"))


class Split(nn.Module):
    """Concatenation, with the exact split."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, CLASSES)

    def forward(self, features: Mapping[str, Tensor]) -> Tensor:
        return self.linear(torch.cat([features[m] for m in NAMES], dim=1))

    def split_logits(self, features: Mapping[str, Tensor], gamma: Any = None) -> dict[str, Tensor]:
        parts = self.linear.weight.split([5, 3], dim=1)
        return {m: features[m] @ part.T + self.linear.bias / 2 for m, part in zip(NAMES, parts, strict=True)}


class Product(nn.Module):
    """A head that does not split, with a batch norm that zero-out must not touch."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(8)
        self.linear = nn.Linear(8, CLASSES)

    def forward(self, features: Mapping[str, Tensor]) -> Tensor:
        return self.linear(self.norm(torch.cat([features[m] for m in NAMES], dim=1)).square())


WEIGHTS = {JOINT: 0.5, "audio": 0.2, "visual": 0.3}


def blended(inner: nn.Module, weights: Mapping[str, float] | None = WEIGHTS) -> BlendedHead:
    torch.manual_seed(0)
    return BlendedHead(inner, DIMS, CLASSES, weights)


def features(count: int = 7) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {m: torch.randn(count, dim, generator=generator) for m, dim in DIMS.items()}


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


# Weights


def test_weights_match_the_paper() -> None:
    losses = {JOINT: Losses(2.0, 0.3, 1.1), "audio": Losses(2.1, 0.9, 1.3), "visual": Losses(1.9, 0.4, 1.6)}
    start, train, val = np.array([[2.0, 2.1, 1.9], [0.3, 0.9, 0.4], [1.1, 1.3, 1.6]])
    raw = (start - val) / ((val - train) - (start - start)) ** 2
    weights = blend_weights(losses)
    assert list(weights) == [JOINT, *NAMES]
    np.testing.assert_allclose(list(weights.values()), raw / raw.sum(), rtol=1e-12)


def test_a_run_that_did_not_generalise_has_weight_zero() -> None:
    losses = {JOINT: Losses(2, 0.5, 1), "audio": Losses(2, 1.5, 2.5), "visual": Losses(2, 1.0, 1.5)}
    weights = blend_weights(losses)
    assert weights["audio"] == 0
    np.testing.assert_allclose([weights[JOINT], weights["visual"]], np.array([4, 2]) / 6)


def test_a_gap_is_at_least_a_tenth_of_the_largest() -> None:
    without = {JOINT: Losses(2, 0.5, 1.5), "audio": Losses(2, 1.0, 1.0), "visual": Losses(2, 1.9, 1.8)}
    raw = np.array([0.5 / 1**2, 1 / 0.1**2, 0.2 / 0.1**2])  # O of 0 and of −0.1 both count as 0.1
    np.testing.assert_allclose(list(blend_weights(without).values()), raw / raw.sum())
    none = {JOINT: Losses(2, 1, 1), "audio": Losses(2, 1.5, 1.5)}
    assert blend_weights(none) == pytest.approx({JOINT: 2 / 3, "audio": 1 / 3})


@pytest.mark.parametrize("val", [2.5, 2.0, float("nan")])
def test_runs_without_any_generalisation_are_refused(val: float) -> None:
    with pytest.raises(ValueError, match=r"no reference run lowered its validation loss.*blend_until=lowest"):
        blend_weights({JOINT: Losses(2, 0.5, val), "audio": Losses(2, 0.5, val)})


# Head and objective


def test_training_returns_all_logits_and_evaluation_the_joint_logits() -> None:
    head, given = blended(Split()), features()
    out = head(given)
    assert out.shape == (7, 3, CLASSES)
    assert torch.equal(out[:, 0], head.joint(given))
    for i, m in enumerate(NAMES):
        torch.testing.assert_close(out[:, 1 + i], given[m] @ head.branches[m].weight.T + head.branches[m].bias)
    head.eval()
    assert torch.equal(head(given), head.joint(given))


def test_the_objective_is_the_weighted_sum_of_each_samples_losses() -> None:
    head, given = blended(Split()), features()
    labels = torch.tensor([0, 3, 2, 1, 1, 0, 2])
    out = head(given)
    found = loss_of(head, TASK)(out.bfloat16().float(), labels)
    truth = softmax(out.detach().bfloat16().double().numpy())[np.arange(7), :, labels.numpy()]
    np.testing.assert_allclose(found.detach(), -np.log(truth) @ [0.5, 0.2, 0.3], rtol=1e-5)
    assert loss_of(head, TASK)(out.bfloat16(), labels).dtype == torch.float32


def test_each_part_learns_from_its_own_loss() -> None:
    head = blended(Split())
    given = {m: value.requires_grad_() for m, value in features().items()}
    labels = torch.tensor([0, 3, 2, 1, 1, 0, 2])
    head.objective(head(given), labels).mean().backward()
    truth = np.eye(CLASSES)[labels.numpy()]
    with torch.no_grad():
        out = head(given).double().numpy()
    error = (softmax(out) - truth[:, None]) / 7  # of each mean loss, by its logits
    for i, m in enumerate(NAMES):
        linear, x = head.branches[m], given[m].detach().double().numpy()
        np.testing.assert_allclose(linear.weight.grad, WEIGHTS[m] * error[:, 1 + i].T @ x, rtol=1e-4, atol=1e-7)
        part = head.joint.linear.weight.detach().double().split([5, 3], dim=1)[i].numpy()
        by_joint, by_own = error[:, 0] @ part, error[:, 1 + i] @ linear.weight.detach().double().numpy()
        expected = WEIGHTS[JOINT] * by_joint + WEIGHTS[m] * by_own
        np.testing.assert_allclose(given[m].grad, expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("inner", [Split, Product])
def test_scores_are_read_from_the_fusion_head(inner: type[nn.Module]) -> None:
    torch.manual_seed(3)
    fusion, given = inner(), features()
    fusion(given)
    head = blended(fusion)
    before = {name: value.clone() for name, value in head.state_dict().items()}
    for m, value in unimodal_logits(head, given).items():
        torch.testing.assert_close(value, unimodal_logits(fusion, given)[m])
    assert hasattr(head, "split_logits") == (inner is Split)
    assert head.training
    assert all(torch.equal(value, before[name]) for name, value in head.state_dict().items())


def test_weights_are_part_of_the_state() -> None:
    head = blended(Split(), None)
    assert head.weights.isnan().all()
    head.load_state_dict(blended(Split()).state_dict())
    torch.testing.assert_close(head.weights, torch.tensor([0.5, 0.2, 0.3]))
    assert not any(parameter is head.weights for parameter in head.parameters())
    with pytest.raises(ValueError, match="weights are of joint, audio, but the losses of joint, audio, visual"):
        blended(Split(), {JOINT: 0.5, "audio": 0.5})


def test_a_plain_head_is_trained_by_cross_entropy() -> None:
    logits, labels = torch.randn(6, CLASSES), torch.arange(6) % CLASSES
    found = loss_of(Split(), TASK)(logits, labels)
    np.testing.assert_allclose(found, -np.log(softmax(logits.numpy())[np.arange(6), labels]), rtol=1e-5)


def test_gblending_modulates_neither_features_nor_gradients() -> None:
    balance, given = Modulation(NAMES, GBlending()), features()
    out = balance.forward(given, {m: torch.full((7,), 0.5) for m in NAMES}, torch.arange(7))
    assert all(torch.equal(out[m], given[m]) for m in NAMES)
    encoders = {m: nn.Linear(2, 2) for m in NAMES}
    for encoder in encoders.values():
        for parameter in encoder.parameters():
            parameter.grad = torch.ones_like(parameter)
    balance.backward(encoders)
    assert all((p.grad == 1).all() for encoder in encoders.values() for p in encoder.parameters())
    with pytest.raises(ValueError, match="blend_until must be one of last, lowest, not 'best'"):
        GBlending(blend_until="best")


# Reference runs

VAL = {"audio": [1.2, 1.0, 1.1], "visual": [1.3, 1.2, 1.25], "joint": [1.0, 0.7, 0.9]}
TRAIN = {"audio": [1.3, 0.9, 0.6], "visual": [1.35, 1.1, 0.8], "joint": [1.1, 0.6, 0.2]}


def write_run(
    folder: Path, name: str, *, modulation: str = "none", epochs: int = 3, until: int = 3, lost: str | None = None
) -> str:
    """A run of `epochs` epochs of two steps, of which it came to epoch `until`; the first batch's loss is 1.4."""
    modalities = list(NAMES) if name == "joint" else [name]
    given = {"dataset": "folder", "shards": "s", "out": str(folder), "modalities": modalities}
    given |= {"modulation": modulation, "epochs": epochs}
    folder.mkdir(parents=True)
    config = parse(given, "test").resolved().as_dict()
    (folder / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    steps, metrics = [], []
    for epoch in range(until):
        mean = TRAIN[name][epoch]
        pair = (1.4, 2 * mean - 1.4) if epoch == 0 else (mean + 0.1, mean - 0.1)
        steps += [{"step": 2 * epoch + i, "epoch": epoch, "loss": loss} for i, loss in enumerate(pair)]
        row = {"epoch": epoch, "step": 2 * epoch + 2, "split": "val", "accuracy": 0.5, "loss": VAL[name][epoch]}
        metrics.append(row)
    if lost:
        del (steps if lost == "steps" else metrics)[-1]["loss"]
    if until == epochs:
        metrics.append({"epoch": 1, "step": 6, "split": "test", "accuracy": 0.5, "loss": 9.0})
    for file, rows in (("steps.jsonl", steps), ("metrics.jsonl", metrics)):
        (folder / file).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(folder)


@pytest.mark.parametrize(("until", "epoch"), [("last", 2), ("lowest", 1)])
def test_weights_come_from_the_journals(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, until: Any, epoch: int
) -> None:
    folders = [write_run(tmp_path / name, name) for name in ("visual", "joint", "audio")]
    with caplog.at_level(logging.INFO, "bmlpipe"):
        weights = reference_weights(folders, NAMES, until)
    val = np.array([VAL[name][epoch] for name in ("joint", *NAMES)])
    train = np.array([TRAIN[name][epoch] for name in ("joint", *NAMES)])
    raw = (1.4 - val) / (val - train) ** 2
    assert set(weights) == {JOINT, *NAMES}
    np.testing.assert_allclose([weights[name] for name in (JOINT, *NAMES)], raw / raw.sum(), rtol=1e-9)
    for name in (JOINT, *NAMES):
        assert f"weight of {name} {weights[name]:.3f}" in caplog.text
    blended(Split(), weights)  # their order does not matter


def test_unusable_references_are_refused(tmp_path: Path) -> None:
    made = {name: write_run(tmp_path / name, name) for name in ("joint", *NAMES)}
    good = list(made.values())

    def refused(folders: list[str], message: str, modalities: tuple[str, ...] = NAMES) -> None:
        with pytest.raises(ConfigError, match=f"(?s){message}"):
            reference_weights(folders, modalities)

    refused([], "no run of joint, audio, visual .*train these first")
    refused(good[:2], r"no run of visual \(joint: audio, visual together, modulation none\)")
    refused([*good, write_run(tmp_path / "again", "audio")], "again is a second run of audio")
    refused([*good, str(tmp_path / "nowhere")], "nowhere holds no run")
    refused(
        good[1:], "visual is a run of visual with modulation none, neither of one of audio, flow", ("audio", "flow")
    )
    opm = write_run(tmp_path / "opm", "joint", modulation="opm")
    refused([opm, *good[1:]], "opm is a run of audio, visual with modulation opm, neither")
    half = write_run(tmp_path / "half", "audio", until=2)
    refused([good[0], half, good[2]], "half has not been trained to the end of its 3 epochs: finish it")
    for lost in ("steps", "metrics"):
        old = write_run(tmp_path / f"old {lost}", "audio", lost=lost)
        refused([good[0], old, good[2]], f"old {lost} has rows without a finite loss: train it again")


def test_references_without_any_generalisation_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VAL:
        monkeypatch.setitem(VAL, name, [1.0, 1.5, 2.0])
    folders = [write_run(tmp_path / name, name) for name in ("joint", *NAMES)]
    with pytest.raises(ConfigError, match="references: no reference run lowered its validation loss"):
        reference_weights(folders, NAMES)
    assert reference_weights(folders, NAMES, "lowest")[JOINT] > 0


# Real trainings


class Trained:
    """A training on the upper and the lower half of real digits, journalled as runs are."""

    def __init__(self, folder: Path, modalities: tuple[str, ...], weights: Mapping[str, float] | None = None) -> None:
        pixels, labels = load_digits(return_X_y=True)
        halves = {"audio": pixels[:, :32], "visual": pixels[:, 32:]}
        inputs = {m: torch.tensor(halves[m] / 16, dtype=torch.float32) for m in modalities}
        truth = torch.tensor(labels)
        torch.manual_seed(0)
        encoders = nn.ModuleDict({m: nn.Sequential(nn.Linear(32, 16), nn.ReLU()) for m in modalities})
        head: nn.Module = _Linear(modalities)
        if weights:
            head = BlendedHead(head, dict.fromkeys(modalities, 16), 10, weights)
        optimizer = torch.optim.SGD([*encoders.parameters(), *head.parameters()], 0.2, momentum=0.9)
        objective = loss_of(head, TASK)
        name = "joint" if len(modalities) > 1 else modalities[0]
        with Journal(Path(write_run(folder, name, until=0)), tensorboard=False) as journal:
            for step in range(3 * 10):
                at = torch.arange(60) + 60 * (step % 10)
                optimizer.zero_grad()
                loss = objective(head({m: encoders[m](inputs[m][at]) for m in modalities}), truth[at]).mean()
                loss.backward()
                optimizer.step()
                journal.step({"step": step, "epoch": step // 10, "loss": loss.item()})
                if step % 10 == 9:
                    head.eval()
                    with torch.no_grad():
                        found = head({m: encoders[m](inputs[m][600:1200]) for m in modalities}).numpy()
                    head.train()
                    self.metrics = TASK.summary(found, {}, labels[600:1200])
                    journal.metrics({"epoch": step // 10, "step": step + 1, "split": "val", **self.metrics})
        self.validation = found, labels[600:1200]


class _Linear(nn.Module):
    def __init__(self, modalities: tuple[str, ...]) -> None:
        super().__init__()
        self.modalities = modalities
        self.linear = nn.Linear(16 * len(modalities), 10)

    def forward(self, features: Mapping[str, Tensor]) -> Tensor:
        return self.linear(torch.cat([features[m] for m in self.modalities], dim=1))


def test_reference_trainings_lead_to_a_blended_training(tmp_path: Path) -> None:
    runs = {m: Trained(tmp_path / m, (m,)) for m in NAMES} | {JOINT: Trained(tmp_path / "joint", NAMES)}
    logits, labels = runs[JOINT].validation
    expected = log_loss(labels, softmax(logits.astype(np.float64)), labels=range(10))
    assert runs[JOINT].metrics["loss"] == pytest.approx(expected, rel=1e-9)
    weights = reference_weights([str(tmp_path / name) for name in runs], NAMES)
    assert sum(weights.values()) == pytest.approx(1)
    assert all(0 < weight < 1 for weight in weights.values())
    after = Trained(tmp_path / "blended", NAMES, weights)
    assert after.metrics["accuracy"] > max(runs[m].metrics["accuracy"] for m in NAMES) > 0.5
    assert after.validation[0].shape == (600, 10)
