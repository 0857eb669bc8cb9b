"""Greedy: learning speeds against NumPy, when it re-balances, and that only one encoder is updated then."""

from __future__ import annotations

import io
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from bmlpipe.manifests.common.errors import OptionError
from bmlpipe.train.models.encoders.cnn4 import CNN4
from bmlpipe.train.models.intermediate import MMTM, TransferUnit
from bmlpipe.train.models.multimodal import MultimodalModel
from bmlpipe.train.modulation import Modulation, Rule
from bmlpipe.train.modulation.rules.greedy import Greedy
from bmlpipe.train.modulation.scores import unimodal_logits, unimodal_scores

NAMES = ("audio", "visual")


class Head(nn.Module):
    """Concatenation and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(16, 3)

    def forward(self, features: dict[str, Tensor]) -> Tensor:
        return self.linear(torch.cat([features[m] for m in NAMES], dim=1))


def make_model(mmtm: bool = True) -> MultimodalModel:
    torch.manual_seed(0)
    encoders = {"audio": CNN4(1, width=2), "visual": CNN4(3, width=2)}
    channels = {m: encoder.stage_channels for m, encoder in encoders.items()}
    return MultimodalModel(encoders, Head(), MMTM(channels) if mmtm else None)


def batch(number: int) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    generator = torch.Generator().manual_seed(number)
    labels = torch.randint(3, (8,), generator=generator)
    inputs = {m: torch.randn(8, 1, c, 16, 16, generator=generator) for m, c in (("audio", 1), ("visual", 3))}
    inputs["audio"] += labels[:, None, None, None, None]
    return inputs, labels, torch.arange(8) + 8 * number


class Run:
    """A training loop; `alone` is what MMTM was set to in each step's forward pass."""

    def __init__(self, *rules: Rule, steps_per_epoch: int = 4) -> None:
        self.model = make_model()
        for rule in rules:
            if isinstance(rule, Greedy):
                rule.bind(self.model)
        self.balance = Modulation(NAMES, *rules, seed=1)
        self.optimizer = torch.optim.SGD(self.model.parameters(), 0.05, momentum=0.9, weight_decay=1e-3)
        self.per_epoch = steps_per_epoch
        self.alone: list[str | None] = []

    def step(self, micro: int = 1) -> None:
        model, balance = self.model, self.balance
        balance.epoch = balance.index // self.per_epoch
        inputs, labels, ids = batch(balance.index)
        self.optimizer.zero_grad()
        for part in torch.arange(len(labels)).chunk(micro):

            def feature_hook(features: dict[str, Tensor], part: Tensor = part) -> dict[str, Tensor]:
                self.alone.append(self.unit.solo)
                alone = unimodal_scores(unimodal_logits(model.head, features), labels[part])
                return balance.forward(features, alone, ids[part])

            given = balance.inputs({m: value[part] for m, value in inputs.items()}, ids[part])
            (cross_entropy(model(given, feature_hook), labels[part]) / micro).backward()
        balance.backward(model.encoders)
        self.before = {name: p.detach().clone() for name, p in model.named_parameters()}
        self.optimizer.step()

    @property
    def unit(self) -> TransferUnit:
        mmtm: Any = self.model.intermediate
        return mmtm.units[0]

    def moved(self) -> set[str]:
        return {name for name, p in self.model.named_parameters() if not torch.equal(p, self.before[name])}


def sums(state: dict[str, Any]) -> np.ndarray:
    return state["effort"].numpy()


# Speeds


def test_the_speeds_match_the_paper() -> None:
    rule = Greedy(greedy_warmup=99)
    run = Run(rule)
    expected = np.zeros((2, 2))
    for _ in range(4):
        weights = {name: p.detach().clone() for name, p in run.model.named_parameters()}
        run.step()
        gradients = {name: p.grad for name, p in run.model.named_parameters()}
        for i, m in enumerate(NAMES):
            own = [name for name in weights if name.startswith(f"encoders.{m}.")]
            crossing = [name for name in weights if "excite" in name and f".{m}." in name]
            crossing += [name for name in weights if "squeeze" in name]  # what acts on both modalities
            assert (len(own), len(crossing)) == (12, 4 * 3)
            for j, group in enumerate((own, crossing)):
                g = sum(float((gradients[name].double().numpy() ** 2).sum()) for name in group)
                expected[j, i] += g / sum(float((weights[name].double().numpy() ** 2).sum()) for name in group)
        np.testing.assert_allclose(sums(rule.state_dict()), expected, rtol=1e-5)
    arriving = rule.state_dict()["arriving"]
    assert [index for index, _ in arriving] == [2, 3]
    np.testing.assert_allclose(arriving[-1][1], np.log10(expected[1] / expected[0]), rtol=1e-5)


def fake_step(balance: Modulation, model: nn.Module, effort: dict[str, float], moment: float = 1.0) -> str | None:
    """One step whose gradients make |g|²/|θ|² of each encoder, and of MMTM as a whole, what is given."""
    unit: Any = model.intermediate.units[0]
    alone = {m: torch.full((2,), 0.5) for m in NAMES}
    balance.inputs({m: torch.zeros(2) for m in NAMES}, torch.arange(2))
    solo = unit.solo
    balance.forward({m: torch.zeros(2, 2) for m in NAMES}, alone, torch.arange(2))
    for name, parameter in model.named_parameters():
        group = next((m for m in NAMES if name.startswith(f"encoders.{m}.")), "crossing")
        parameter.grad = parameter.detach() * math.sqrt(effort[group]) * moment
    balance.backward(model.encoders)
    return solo


def scripted(rule: Greedy, efforts: list[dict[str, float]], per_epoch: int = 4) -> list[str | None]:
    model = make_model()
    rule.bind(model)
    balance = Modulation(NAMES, rule)
    seen = []
    for effort in efforts:
        balance.epoch = balance.index // per_epoch
        seen.append(fake_step(balance, model, effort))
    return seen


FAST_AUDIO = {"audio": 4.0, "visual": 1.0, "crossing": 1.0}  # s = log10(1/4) and 0: visual lives on audio
FAST_VISUAL = {"audio": 1.0, "visual": 4.0, "crossing": 1.0}
EQUAL = {"audio": 1.0, "visual": 1.0, "crossing": 1.0}


@pytest.mark.parametrize(("effort", "slow"), [(FAST_AUDIO, "visual"), (FAST_VISUAL, "audio")])
def test_re_balancing_trains_the_slower_encoder_after_the_warm_up(effort: dict[str, float], slow: str) -> None:
    rule = Greedy(greedy_tolerance=0.5, greedy_window=3, greedy_warmup=1)
    seen = scripted(rule, [effort] * 17)
    # A step of epoch 1 decides first; between two windows there is one regular step.
    assert seen == [None] * 5 + ([slow] * 3 + [None]) * 3
    # Only regular steps are summed: 8 of them.
    np.testing.assert_allclose(sums(rule.state_dict()), 8 * np.array([[effort[m] for m in NAMES], [1, 1]]), rtol=1e-5)


def test_the_tolerance_is_a_difference_of_logarithms() -> None:
    for tolerance, acts in ((0.60, True), (0.61, False)):  # log10(4) = 0.602
        seen = scripted(Greedy(greedy_tolerance=tolerance, greedy_warmup=0), [FAST_AUDIO] * 8)
        assert (seen.count("visual") > 0) == acts
    assert scripted(Greedy(greedy_tolerance=0.0, greedy_warmup=0), [EQUAL] * 8) == [None] * 8


def test_decisions_use_the_numbers_of_two_steps_before() -> None:
    rule = Greedy(greedy_tolerance=0.5, greedy_window=2, greedy_warmup=0)
    # Sums after step 0: (4, 1). Known after step 2; step 3 is the first to act on it.
    assert scripted(rule, [FAST_AUDIO] + [EQUAL] * 5)[:5] == [None, None, None, "visual", "visual"]
    late = scripted(
        Greedy(greedy_tolerance=0.5, greedy_window=2, greedy_warmup=0), [EQUAL, EQUAL, FAST_AUDIO, *[EQUAL] * 4]
    )
    assert late == [None] * 7  # (6, 3): log10(2) is below the tolerance


def test_gradients_that_are_not_finite_do_not_count() -> None:
    model, rule = make_model(), Greedy(greedy_warmup=9)
    rule.bind(model)
    balance = Modulation(NAMES, rule)
    for moment in (1.0, math.inf, math.nan, 2.0):
        fake_step(balance, model, FAST_AUDIO, moment)
    np.testing.assert_allclose(sums(rule.state_dict()), [[20, 5], [5, 5]], rtol=1e-5)


def test_an_encoder_without_gradient_causes_no_re_balancing() -> None:
    rule = Greedy(greedy_tolerance=0.0, greedy_warmup=0)
    run = Run(rule)
    run.model.encoders["visual"].requires_grad_(False)
    for _ in range(5):
        run.step()
    assert run.alone == [None] * 5


# In training


def test_only_one_encoder_is_updated_while_re_balancing() -> None:
    run = Run(Greedy(greedy_tolerance=0.0, greedy_window=3, greedy_warmup=1))
    for index in range(14):
        averages = run.unit.average.clone()
        run.step()
        alone = run.alone[index]
        own = {name for name in run.before if alone is None or name.startswith(f"encoders.{alone}.")}
        assert run.moved() == own  # by momentum and weight decay neither
        assert torch.equal(run.unit.average, averages) == (alone is not None)
        k = [run.balance.telemetry()[f"k/{m}"].item() for m in NAMES]
        assert k == [1.0 if alone in (None, m) else 0.0 for m in NAMES]
        assert run.unit.solo is None  # evaluation sees MMTM as ever
    assert run.alone[:5] == [None] * 5
    assert run.alone[5] in NAMES
    assert run.alone[5:8] == [run.alone[5]] * 3
    assert run.alone[8] is None


def test_micro_batches_share_the_mode_of_their_step() -> None:
    run = Run(Greedy(greedy_tolerance=0.0, greedy_window=2, greedy_warmup=0))
    for _ in range(8):
        run.step(micro=2)
    assert run.alone[0::2] == run.alone[1::2]
    assert set(run.alone) > {None}


@pytest.mark.parametrize("at", [2, 4, 6, 8])
def test_a_resumed_training_continues_bit_for_bit(at: int) -> None:
    def fresh() -> Run:
        return Run(Greedy(greedy_tolerance=0.0, greedy_window=3, greedy_warmup=0))

    straight, first, second = fresh(), fresh(), fresh()
    for _ in range(12):
        straight.step()
    for _ in range(at):
        first.step()
    saved = io.BytesIO()
    states = [part.state_dict() for part in (first.model, first.optimizer, first.balance)]
    torch.save(states, saved)
    saved.seek(0)
    restored = torch.load(saved, weights_only=True)
    for part, state in zip((second.model, second.optimizer, second.balance), restored, strict=True):
        part.load_state_dict(state)
    for _ in range(12 - at):
        second.step()
    assert straight.alone == first.alone + second.alone
    assert set(straight.alone) > {None}
    for name, value in straight.model.state_dict().items():
        assert torch.equal(value, second.model.state_dict()[name]), name
    np.testing.assert_array_equal(*(sums(run.balance.rules[0].state_dict()) for run in (straight, second)))


def test_all_ranks_decide_alike() -> None:
    rules = [Greedy(greedy_tolerance=0.1, greedy_window=2, greedy_warmup=0) for _ in range(2)]
    models = [make_model() for _ in rules]
    balances = [Modulation(NAMES, rule) for rule in rules]
    for rule, model in zip(rules, models, strict=True):
        rule.bind(model)
    optimizers = [torch.optim.SGD(model.parameters(), 0.05) for model in models]
    seen = []
    for index in range(10):
        inputs, labels, ids = batch(index)
        for rank, (model, balance) in enumerate(zip(models, balances, strict=True)):
            mine = slice(rank, None, 2)
            given = balance.inputs({m: value[mine] for m, value in inputs.items()}, ids[mine])
            seen.append(model.intermediate.units[0].solo)
            model.zero_grad()
            features = model.encode(given)
            alone = unimodal_scores(unimodal_logits(model.head, features), labels[mine])
            cross_entropy(model.head(balance.forward(features, alone, ids[mine])), labels[mine]).backward()
        for pair in zip(*(model.parameters() for model in models), strict=True):
            mean = torch.stack([p.grad for p in pair]).mean(dim=0)
            for parameter in pair:
                parameter.grad.copy_(mean)
        for model, balance, optimizer in zip(models, balances, optimizers, strict=True):
            balance.backward(model.encoders)
            optimizer.step()
    assert seen[0::2] == seen[1::2]
    assert set(seen) > {None}
    for a, b in zip(*(model.parameters() for model in models), strict=True):
        assert torch.equal(a, b)


# Refusals


def test_a_model_without_mmtm_is_refused() -> None:
    with pytest.raises(OptionError, match="--intermediate mmtm"):
        Greedy().bind(make_model(mmtm=False))


def test_a_missing_bind_is_an_error() -> None:
    balance = Modulation(NAMES, Greedy())
    with pytest.raises(RuntimeError, match=r"call bind\(model\)"):
        balance.inputs({m: torch.zeros(2) for m in NAMES}, torch.arange(2))


def test_the_state_of_another_rule_is_refused() -> None:
    with pytest.raises(OptionError, match="does not belong to greedy"):
        Greedy().load_state_dict({})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"greedy_tolerance": -0.1}, "greedy_tolerance must be finite and at least 0, not -0.1"),
        ({"greedy_window": 0}, "greedy_window must be at least 1, not 0"),
        ({"greedy_warmup": -1}, "greedy_warmup must be at least 0, not -1"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        Greedy(**options)
