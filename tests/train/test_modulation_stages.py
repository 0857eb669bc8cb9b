"""The stages around encoders and optimiser: dropped inputs, factors of the learning rate, padded samples."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils._python_dispatch import TorchDispatchMode

from bmlpipe.manifests.common.errors import OptionError
from bmlpipe.train.modulation import OGM, OPM, Modulation, OGMStar, Rule, StepContext
from bmlpipe.train.modulation.scores import unimodal_scores

NAMES = ("audio", "visual")


class NoHostReads(TorchDispatchMode):
    """Fails where a tensor's value is brought to the host, which on a GPU waits for the device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func not in {torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default}, func
        return func(*args, **(kwargs or {}))


# k as a factor of the learning rate


def encoders(names: tuple[str, ...] = NAMES) -> dict[str, nn.Module]:
    torch.manual_seed(0)
    return {m: nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Conv2d(3, 2, 1)) for m in names}


def weights(modules: dict[str, nn.Module]) -> dict[str, list[Tensor]]:
    return {m: [p.detach().clone() for p in module.parameters()] for m, module in modules.items()}


def train(
    rule: Rule, make: Callable[..., torch.optim.Optimizer], steps: int = 4, form: str = "ratio"
) -> tuple[dict[str, list[Tensor]], dict[str, list[Tensor]], Tensor]:
    """Steps with the same gradients and scores each; weights before and after, and k."""
    modules = encoders()
    start = weights(modules)
    optimizer = make([p for module in modules.values() for p in module.parameters()])
    modulation = Modulation(NAMES, rule, form=form)
    for _ in range(steps):
        generator = torch.Generator().manual_seed(2)
        for module in modules.values():
            for parameter in module.parameters():
                parameter.grad = torch.randn(parameter.shape, generator=generator)
        features = {m: torch.zeros(4, 1) for m in NAMES}
        modulation.forward(features, {"audio": torch.full((4,), 0.9), "visual": torch.full((4,), 0.6)}, torch.arange(4))
        modulation.backward(modules)
        modulation.update(optimizer.step, modules)
    k = torch.stack([modulation.telemetry()[f"k/{m}"] for m in NAMES])
    return start, weights(modules), k


OPTIMIZERS = {
    "adamw": lambda p: torch.optim.AdamW(p, 0.01, weight_decay=0.0),
    "sgd": lambda p: torch.optim.SGD(p, 0.01, momentum=0.9),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("rule", [OGM, OGMStar])
@pytest.mark.parametrize("form", ["ratio", "difference"])
def test_the_whole_update_is_multiplied_by_k(rule: type[OGM | OGMStar], optimizer: str, form: str) -> None:
    make = OPTIMIZERS[optimizer]
    start, plain, _ = train(OPM(q_base=0), make)
    _, scaled, k = train(rule(alpha=0.5, noise="off", apply="lr"), make, form=form)
    changed = {OGM: "audio", OGMStar: "visual"}[rule]
    other = "visual" if changed == "audio" else "audio"
    assert (k == 1).tolist() == [other == m for m in NAMES]
    factor = float(k[NAMES.index(changed)])
    for before, a, b in zip(start[changed], plain[changed], scaled[changed], strict=True):
        torch.testing.assert_close(b - before, (a - before) * factor, rtol=1e-4, atol=1e-7)
    assert all(torch.equal(a, b) for a, b in zip(plain[other], scaled[other], strict=True))  # to the last bit


def test_adam_cancels_k_in_the_gradient_but_not_in_the_update() -> None:
    start, plain, _ = train(OPM(q_base=0), OPTIMIZERS["adamw"])
    moved = []
    for apply in ("gradient", "lr"):
        _, after, k = train(OGM(alpha=0.9, noise="off", apply=apply), OPTIMIZERS["adamw"])
        numbers = zip(start["audio"], plain["audio"], after["audio"], strict=True)
        moved.append([float((b - s).norm() / (a - s).norm()) for s, a, b in numbers])
    assert moved[0] == pytest.approx([1] * 6, rel=1e-4)
    assert moved[1] == pytest.approx([float(k[0])] * 6, rel=1e-4)
    assert float(k[0]) < 0.7


def test_weight_decay_is_part_of_the_update() -> None:
    def decay(p: Any) -> torch.optim.Optimizer:
        return torch.optim.AdamW(p, 0.01, weight_decay=0.5)

    start, plain, _ = train(OPM(q_base=0), decay, steps=1)
    _, scaled, k = train(OGM(alpha=0.5, noise="off", apply="lr"), decay, steps=1)
    for before, a, b in zip(start["audio"], plain["audio"], scaled["audio"], strict=True):
        torch.testing.assert_close(b - before, (a - before) * float(k[0]), rtol=1e-4, atol=1e-7)


def test_a_k_of_zero_leaves_the_encoder_exactly() -> None:
    start, after, k = train(OGM(alpha=50, noise="off", apply="lr"), OPTIMIZERS["adamw"])
    assert k.tolist() == [0, 1]
    assert all(torch.equal(a, b) for a, b in zip(start["audio"], after["audio"], strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(start["visual"], after["visual"], strict=True))


def test_convolutions_only_in_a_range_of_epochs() -> None:
    _, plain, _ = train(OPM(q_base=0), OPTIMIZERS["adamw"])
    _, scaled, _ = train(OGM(noise="off", apply="lr", parameters="convolutions"), OPTIMIZERS["adamw"])
    equal = [torch.equal(a, b) for a, b in zip(plain["audio"], scaled["audio"], strict=True)]
    assert equal == [False, True, True, True, False, True]
    _, outside, k = train(OGM(apply="lr", epochs=(3, None)), OPTIMIZERS["adamw"])
    assert k.tolist() == [1, 1]
    assert all(torch.equal(a, b) for m in NAMES for a, b in zip(plain[m], outside[m], strict=True))


def test_update_skips_a_step_and_returns_its_result() -> None:
    modules = encoders()
    start = weights(modules)
    modulation = Modulation(NAMES, OGM(apply="lr", noise="off"))
    one_step(modulation, modules)
    assert modulation.update(lambda: "skipped", modules) == "skipped"
    assert all(torch.equal(a, b) for m in NAMES for a, b in zip(start[m], weights(modules)[m], strict=True))
    assert (
        Modulation(NAMES, OGM()).update(lambda: 7, modules) == 7
    )  # no rule acts there: any time, nothing but the call


def one_step(modulation: Modulation, modules: dict[str, nn.Module]) -> None:
    features = {m: torch.zeros(4, 1) for m in modulation.modalities}
    modulation.forward(features, {m: torch.full((4,), 0.3) for m in modulation.modalities}, torch.arange(4))
    modulation.backward(modules)


def test_a_missing_update_is_an_error() -> None:
    modules = encoders()
    modulation = Modulation(NAMES, OGM(apply="lr"))
    with pytest.raises(RuntimeError, match=r"after backward\(\)"):
        modulation.update(lambda: None, modules)
    one_step(modulation, modules)
    with pytest.raises(RuntimeError, match=r"call update\(optimizer.step, encoders\)"):
        one_step(modulation, modules)
    with pytest.raises(RuntimeError, match=r"call update\(optimizer.step, encoders\)"):
        modulation.inputs({m: torch.zeros(4, 1) for m in NAMES}, torch.arange(4))
    modulation.update(lambda: None, modules)
    one_step(modulation, modules)


# Inputs


class Loop:
    """Two linear encoders on inputs of which audio's are much easier."""

    def __init__(self, *rules: Rule, names: tuple[str, ...] = NAMES) -> None:
        torch.manual_seed(0)
        self.encoders = nn.ModuleDict({m: nn.Sequential(nn.Linear(6, 8), nn.Tanh()) for m in names})
        self.heads = nn.ModuleDict({m: nn.Linear(8, 3) for m in names})
        self.optimizer = torch.optim.SGD([*self.encoders.parameters(), *self.heads.parameters()], 0.1, momentum=0.9)
        self.modulation = Modulation(names, *rules, seed=1)
        self.rows: list[dict[str, float]] = []

    def step(self, index: int, micro: int = 1) -> None:
        generator = torch.Generator().manual_seed(index)
        labels = torch.randint(3, (16,), generator=generator)
        inputs = {m: torch.randn(16, 6, generator=generator) for m in self.modulation.modalities}
        for i, value in enumerate(inputs.values()):
            value[torch.arange(16), labels] += 3 / (i + 1)
        self.optimizer.zero_grad()
        for part in torch.arange(16).chunk(micro):
            ids = part + 16 * index
            with NoHostReads():
                given = self.modulation.inputs({m: value[part] for m, value in inputs.items()}, ids)
                features = {m: encoder(given[m]) for m, encoder in self.encoders.items()}
                alone = unimodal_scores({m: self.heads[m](features[m]) for m in features}, labels[part])
                features = self.modulation.forward(features, alone, ids)
            logits = torch.stack([self.heads[m](features[m]) for m in features]).sum(dim=0)
            (cross_entropy(logits, labels[part]) / micro).backward()
        with NoHostReads():
            self.modulation.backward(self.encoders)
            self.modulation.update(self.optimizer.step, self.encoders)
        self.rows.append({name: value.item() for name, value in self.modulation.telemetry().items()})

    def steps(self, *numbers: int, micro: int = 1) -> Loop:
        for number in numbers:
            self.step(number, micro)
        return self

    def weights(self) -> list[Tensor]:
        return [p.detach().clone() for module in (self.encoders, self.heads) for p in module.parameters()]


def test_dropped_inputs_in_a_loop() -> None:
    loop = Loop(OPM(target="input"), OGM(apply="lr"), names=("audio", "visual", "flow")).steps(*range(20))
    assert sum(row["dropped/audio"] for row in loop.rows) > 40
    for before, row in zip(loop.rows, loop.rows[1:]):
        rho = torch.tensor([before[f"rho/{m}"] for m in loop.modulation.modalities], dtype=torch.float64)
        q = [row[f"q/{m}"] for m in loop.modulation.modalities]
        assert q == OPM().probability(rho).tolist()
    assert all(math.isfinite(value) for row in loop.rows for value in row.values())


@pytest.mark.parametrize("unit", ["sample", "batch"])
def test_dropped_inputs_with_accumulation(unit: str) -> None:
    whole, split = (Loop(OPM(target="input", unit=unit)).steps(*range(10), micro=micro) for micro in (1, 4))
    assert any(row["dropped/audio"] for row in whole.rows)
    for a, b in zip(whole.rows, split.rows, strict=True):
        assert b == pytest.approx(a, rel=2e-5)
        assert b["dropped/audio"] == a["dropped/audio"]


def test_a_batch_without_a_modality_keeps_its_last_score() -> None:
    loop = Loop(OPM(target="input", unit="batch")).steps(*range(40))
    lost = [row["dropped/audio"] for row in loop.rows]
    assert set(lost) == {0, 16}
    assert 0.3 < sum(value > 0 for value in lost) / 40 < 0.95
    for before, row in zip(loop.rows, loop.rows[1:]):
        for m in NAMES:
            assert (row[f"score/{m}"] == before[f"score/{m}"]) == (row[f"dropped/{m}"] > 0)


def test_dropped_inputs_resume_bit_for_bit() -> None:
    rules = (OPM(target="input", unit="batch"), OGM(apply="lr"))
    undisturbed = Loop(*rules).steps(*range(9))
    for cut in range(1, 8):  # also where the last score of audio is one that was kept
        first, second = Loop(*rules).steps(*range(cut)), Loop(*rules)
        file = io.BytesIO()
        torch.save([part.state_dict() for part in parts(first)], file)
        file.seek(0)
        for part, state in zip(parts(second), torch.load(file, weights_only=True), strict=True):
            part.load_state_dict(state)
        second.steps(*range(cut, 9))
        assert second.rows == undisturbed.rows[cut:]
        assert all(torch.equal(a, b) for a, b in zip(second.weights(), undisturbed.weights(), strict=True))


def parts(loop: Loop) -> list[Any]:
    return [loop.encoders, loop.heads, loop.optimizer, loop.modulation]


def test_missing_inputs_are_an_error() -> None:
    modulation = Modulation(NAMES, OPM(target="input"))
    given = {m: torch.ones(4, 2) for m in NAMES}
    with pytest.raises(RuntimeError, match=r"call inputs\(\) before the encoders, in each micro-batch"):
        modulation.forward(given, {m: torch.ones(4) for m in NAMES}, torch.arange(4))
    with pytest.raises(OptionError, match=r"inputs are of \['audio'\]"):
        modulation.inputs({"audio": torch.ones(4, 2)}, torch.arange(4))
    out = Modulation(NAMES, OPM()).inputs(given, torch.arange(4))
    assert all(out[m] is given[m] for m in NAMES)


# Padding


@pytest.mark.parametrize("rule", [OPM(q_base=0.6), OPM(q_base=0.6, target="input")])
@pytest.mark.parametrize("same", [False, True])
def test_padded_samples_count_for_nothing(rule: OPM, same: bool) -> None:
    """Whatever their scores are; and the others are treated as without them."""
    if same and rule.target == "input":
        rule = OGM()
    elif same:
        rule = OPM(q_base=0.6, same_step=True)
    modules = {m: nn.Linear(1, 1) for m in NAMES}
    plain, padded = Modulation(NAMES, rule), Modulation(NAMES, rule)
    generator = torch.Generator().manual_seed(0)
    for index in range(3):
        alone = {"audio": torch.rand(10, generator=generator), "visual": torch.rand(10, generator=generator) / 3}
        ids, given = torch.arange(10) + 10 * index, {m: torch.ones(10, 2) for m in NAMES}
        plain.inputs(given, ids)
        kept = plain.forward(given, alone, ids)
        weight = torch.tensor([1.0] * 10 + [0.0] * 3)
        more = {m: torch.cat([value, torch.tensor([math.nan, 0.9, 0.1])]) for m, value in alone.items()}
        larger = {m: torch.ones(13, 2) for m in NAMES}
        padded.inputs(larger, torch.cat([ids, ids[:3]]))
        also = padded.forward(larger, more, torch.cat([ids, ids[:3]]), weight)
        assert all(torch.equal(kept[m], also[m][:10]) for m in NAMES)
        for modulation in (plain, padded):
            modulation.backward(modules)
        assert torch.equal(plain.row, padded.row)
    assert not isinstance(rule, OPM) or plain.telemetry()["dropped/audio"] > 0


# Several rules


def test_the_records_of_several_rules_are_combined() -> None:
    class Note(Rule):
        def __init__(self, q: float, k: float, mask: list[bool]) -> None:
            self.q, self.k, self.mask = q, k, torch.tensor([mask, [False] * 4])

        def forward(self, features: dict[str, Tensor], step: StepContext) -> dict[str, Tensor]:
            assert step.q is None  # each rule has a step of its own
            step.q, step.dropped = torch.full_like(step.rho, self.q), self.mask
            return features

        def backward(self, given: Any, step: StepContext) -> None:
            step.k = torch.full_like(step.rho, self.k)

    rules = (Note(0.5, 0.2, [True, True, False, False]), Note(0.2, 0.5, [False, True, True, False]), OPM(q_base=0))
    modulation = Modulation(NAMES, *rules)
    one_step(modulation, {m: nn.Linear(1, 1) for m in NAMES})
    row = {name: value.item() for name, value in modulation.telemetry().items()}
    assert (row["q/audio"], row["k/audio"], row["dropped/audio"]) == (pytest.approx(0.6), pytest.approx(0.1), 3)


# State


class Count(Rule):
    """A rule with a memory."""

    def __init__(self) -> None:
        self.seen = 0
        self.model: nn.Module | None = None

    def bind(self, model: nn.Module) -> None:
        self.model = model

    def backward(self, given: Any, step: StepContext) -> None:
        self.seen += 1

    def state_dict(self) -> dict[str, Any]:
        return {"seen": self.seen}

    def load_state_dict(self, state: Any) -> None:
        self.seen = state["seen"]


def test_rules_save_their_state_and_receive_the_model() -> None:
    modules = {m: nn.Linear(1, 1) for m in NAMES}
    modulation = Modulation(NAMES, OPM(), Count())
    model = nn.Identity()
    modulation.bind(model)
    assert modulation.rules[1].model is model
    for _ in range(3):
        one_step(modulation, modules)
    state = modulation.state_dict()
    other = Modulation(NAMES, OPM(), Count())
    other.load_state_dict(state)
    assert (other.rules[1].seen, other.index) == (3, 3)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Modulation(("audio", "flow"), OPM()), r"modalities \['audio', 'visual'\]"),
        (lambda: Modulation(NAMES, OPM(), form="difference"), "form ratio"),
        (lambda: Modulation(NAMES, OGM()), r"rules \['OPM'\], .* \['OGM'\]"),
        (lambda: Modulation(NAMES), r"rules \['OPM'\], .* \[\]"),
    ],
)
def test_the_state_of_another_modulation_is_refused(make: Callable[[], Modulation], message: str) -> None:
    state = Modulation(NAMES, OPM()).state_dict()
    with pytest.raises(OptionError, match=message):
        make().load_state_dict(state)


def test_states_that_do_not_fit_are_refused() -> None:
    modulation = Modulation(NAMES, OPM())
    state = modulation.state_dict()
    with pytest.raises(OptionError, match="another version"):
        modulation.load_state_dict({name: value for name, value in state.items() if name != "means"})
    with pytest.raises(OptionError, match="OPM keeps no state"):
        modulation.load_state_dict({**state, "memories": [{"seen": 1}]})
