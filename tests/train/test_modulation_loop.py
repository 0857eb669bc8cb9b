"""The modulation in a training loop: steps, accumulation, state, names, advice, and a custom rule."""

from __future__ import annotations

import io
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils._python_dispatch import TorchDispatchMode

from bmlpipe.manifests.common.errors import OptionError
from bmlpipe.train.models.fusion import make_fusion
from bmlpipe.train.models.multimodal import MultimodalModel
from bmlpipe.train.modulation import (
    OGM,
    OPM,
    Modulation,
    Rule,
    StepContext,
    make_modulation,
    row_advice,
)
from bmlpipe.train.modulation.discrepancy import discrepancy
from bmlpipe.train.modulation.scores import unimodal_logits, unimodal_scores

NAMES = ("audio", "visual")
BATCH = 16


def make_model(fusion: str = "concat") -> MultimodalModel:
    torch.manual_seed(0)
    encoders = {m: nn.Sequential(nn.Flatten(), nn.Linear(6, 8), nn.Tanh()) for m in NAMES}
    return MultimodalModel(encoders, make_fusion(fusion, dict.fromkeys(NAMES, 8), 3))


def batches(count: int, size: int = BATCH) -> Iterator[tuple[dict[str, Tensor], Tensor, Tensor]]:
    """Both modalities determine the class, but the numbers of visual are small, so its encoder learns late."""
    generator = torch.Generator().manual_seed(1)
    for i in range(count):
        labels = torch.randint(3, (size,), generator=generator)
        inputs = {m: torch.randn(size, 6, generator=generator) for m in NAMES}
        for m, scale in (("audio", 1.0), ("visual", 0.2)):
            inputs[m][torch.arange(size), labels] += 3
            inputs[m] *= scale
        yield inputs, labels, torch.arange(size) + i * size


class Run:
    """A plain training loop."""

    def __init__(self, modulation: Modulation, fusion: str = "concat") -> None:
        self.model = make_model(fusion)
        self.optimizer = torch.optim.SGD(self.model.parameters(), 0.1, momentum=0.9)
        self.modulation = modulation
        self.rows: list[dict[str, float]] = []

    def step(self, inputs: dict[str, Tensor], labels: Tensor, ids: Tensor, micro: int = 1) -> None:
        self.optimizer.zero_grad()
        for part in torch.arange(len(labels)).chunk(micro):

            def feature_hook(features: dict[str, Tensor], part: Tensor = part) -> dict[str, Tensor]:
                alone = unimodal_scores(unimodal_logits(self.model.head, features), labels[part])
                return self.modulation.forward(features, alone, ids[part])

            logits = self.model({m: value[part] for m, value in inputs.items()}, feature_hook)
            (cross_entropy(logits, labels[part]) / micro).backward()
        self.modulation.backward(self.model.encoders)
        self.optimizer.step()
        self.rows.append({name: value.item() for name, value in self.modulation.telemetry().items()})

    def steps(self, count: int, micro: int = 1) -> Run:
        for batch in batches(count):
            self.step(*batch, micro=micro)
        return self

    def parameters(self) -> list[Tensor]:
        return [p.detach().clone() for p in self.model.parameters()]


def both(**options: Any) -> Modulation:
    return Modulation(NAMES, OPM(**options), OGM(alpha=0.8))


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("fusion", ["concat", "sum", "film", "gated"])
def test_the_row_describes_what_was_done(fusion: str) -> None:
    run = Run(both(), fusion).steps(6)
    opm, ogm = OPM(), OGM(alpha=0.8)
    for t, row in enumerate(run.rows):
        S = torch.tensor([row[f"score/{m}"] * BATCH for m in NAMES], dtype=torch.float64)
        rho = discrepancy(S)
        assert [row[f"rho/{m}"] for m in NAMES] == pytest.approx(rho.tolist())
        assert [row[f"k/{m}"] for m in NAMES] == pytest.approx(ogm.coefficient(rho).tolist())
        q = opm.probability(torch.tensor([run.rows[t - 1][f"rho/{m}"] for m in NAMES])).tolist() if t else [0, 0]
        assert [row[f"q/{m}"] for m in NAMES] == pytest.approx(q, rel=1e-5)  # driven by the last step
        for m, share in zip(NAMES, q, strict=True):
            assert (row[f"dropped/{m}"] > 0) == (share > 0)
    assert list(run.rows[0]) == [f"{k}/{m}" for k in ("score", "rho", "q", "k", "dropped", "grad_norm") for m in NAMES]


def test_the_gradient_norm_is_of_the_raw_gradient() -> None:
    plain, modulated = Run(Modulation(NAMES)), Run(Modulation(NAMES, OGM(alpha=2.0)))
    batch = next(batches(1))
    for run in (plain, modulated):
        run.step(*batch)
    for m in NAMES:
        gradients = [p.grad.flatten() for p in plain.model.encoders[m].parameters()]
        assert plain.rows[0][f"grad_norm/{m}"] == pytest.approx(torch.cat(gradients).norm().item(), rel=1e-6)
        assert modulated.rows[0][f"grad_norm/{m}"] == plain.rows[0][f"grad_norm/{m}"]


def test_without_rules_the_modulation_only_measures() -> None:
    run = Run(make_modulation("none", NAMES)).steps(5)
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    for inputs, labels, _ in batches(5):
        optimizer.zero_grad()
        cross_entropy(model(inputs), labels).backward()
        optimizer.step()
    assert same(run.parameters(), list(model.parameters()))
    assert run.rows[-1]["rho/audio"] > 1.1


def test_ogm_scales_the_update_of_the_stronger_encoder_only() -> None:
    batch = next(batches(1))
    plain, modulated = Run(Modulation(NAMES)), Run(Modulation(NAMES, OGM(alpha=0.8, noise="off")))
    before = plain.parameters()
    for run in (plain, modulated):
        run.step(*batch)
    row = modulated.rows[0]
    strong = max(NAMES, key=lambda m: row[f"rho/{m}"])
    assert row[f"k/{strong}"] < 1
    names = [name for name, _ in plain.model.named_parameters()]
    for name, start, a, b in zip(names, before, plain.parameters(), modulated.parameters(), strict=True):
        factor = row[f"k/{strong}"] if name.startswith(f"encoders.{strong}") else 1.0
        torch.testing.assert_close(b - start, (a - start) * factor, rtol=1e-4, atol=1e-7)


def test_opm_lowers_the_ratio_of_the_stronger_modality() -> None:
    plain, opm = Run(Modulation(NAMES)).steps(60), Run(Modulation(NAMES, OPM())).steps(60)

    def late(run: Run) -> float:
        return sum(row["rho/audio"] for row in run.rows[-20:]) / 20

    assert late(opm) < late(plain) - 0.2


@pytest.mark.parametrize("micro", [2, 4])
def test_accumulated_micro_batches_are_one_batch(micro: int) -> None:
    whole, split = Run(both()).steps(8), Run(both()).steps(8, micro)
    for a, b in zip(whole.rows, split.rows, strict=True):
        assert b == pytest.approx(a, rel=2e-5)
        assert [b[f"dropped/{m}"] for m in NAMES] == [a[f"dropped/{m}"] for m in NAMES]
    for a, b in zip(whole.parameters(), split.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_a_restored_modulation_continues_bit_for_bit() -> None:
    undisturbed = Run(both())
    first, second = Run(both()), Run(both())
    data = list(batches(10))
    for batch in data:
        undisturbed.step(*batch)
    for batch in data[:4]:
        first.step(*batch)
    file = io.BytesIO()
    torch.save([first.modulation.state_dict(), first.model.state_dict(), first.optimizer.state_dict()], file)
    file.seek(0)
    balance, model, optimizer = torch.load(file, weights_only=True)
    second.modulation.load_state_dict(balance)
    second.model.load_state_dict(model)
    second.optimizer.load_state_dict(optimizer)
    for batch in data[4:]:
        second.step(*batch)
    assert second.rows == undisturbed.rows[4:]
    assert same(second.parameters(), undisturbed.parameters())


def test_same_step_drops_by_the_rho_of_this_step() -> None:
    run = Run(Modulation(NAMES, OPM(same_step=True))).steps(6)
    for row in run.rows:
        q = OPM().probability(torch.tensor([row[f"rho/{m}"] for m in NAMES], dtype=torch.float64))
        assert [row[f"q/{m}"] for m in NAMES] == q.tolist()
    with pytest.raises(RuntimeError, match="same_step"):
        run.steps(1, micro=2)


def test_other_rules_use_the_last_rho_beside_one_with_same_step() -> None:
    class Watch(Rule):
        def __init__(self) -> None:
            self.seen: list[list[float]] = []

        def forward(self, features: dict[str, Tensor], step: StepContext) -> dict[str, Tensor]:
            self.seen.append(step.rho.tolist())
            return features

    watch = Watch()
    run = Run(Modulation(NAMES, OPM(same_step=True), watch)).steps(4)
    rho = [[row[f"rho/{m}"] for m in NAMES] for row in run.rows]
    assert watch.seen == [[1.0, 1.0], *rho[:-1]]


@pytest.mark.parametrize("same_step", [False, True])
def test_numbers_of_the_loop_are_reduced_and_returned(same_step: bool) -> None:
    modulation = both(same_step=same_step)
    model = make_model()
    inputs, labels, ids = next(batches(1))
    features = model.encode(inputs)
    modulation.forward(features, unimodal_scores(unimodal_logits(model.head, features), labels), ids)
    modulation.reduce(torch.tensor([3.5, 1.0], requires_grad=True))
    modulation.backward(model.encoders)
    assert modulation.extra.tolist() == [3.5, 1.0]
    modulation.forward(features, unimodal_scores(unimodal_logits(model.head, features), labels), ids)
    modulation.backward(model.encoders)
    assert modulation.extra.shape == (0,)


def test_the_epoch_keys_the_drops() -> None:
    lost = []
    for epoch in (0, 0, 1):
        run = Run(Modulation(NAMES, OPM(q_base=0.6))).steps(3)
        run.modulation.epoch = epoch
        features = {m: torch.ones(BATCH, 8) for m in NAMES}
        alone = {m: torch.full((BATCH,), 0.5) for m in NAMES}
        lost.append(run.modulation.forward(features, alone, torch.arange(BATCH))["audio"][:, 0].tolist())
    assert lost[0] == lost[1] != lost[2]


def test_nothing_on_the_path_reads_a_value(no_host_reads: type[TorchDispatchMode]) -> None:
    modulation = both(rescale=True)
    model = make_model()
    for inputs, labels, ids in batches(3):
        features = model.encode(inputs)
        with no_host_reads():
            alone = unimodal_scores(unimodal_logits(model.head, features), labels)
            changed = modulation.forward(features, alone, ids)
            modulation.reduce()
        cross_entropy(model.head(changed), labels).backward()
        with no_host_reads():
            modulation.backward(model.encoders)
    assert modulation.row.isfinite().all()
    with no_host_reads(), pytest.raises(AssertionError):
        modulation.row[0].item()  # the guard itself works


def test_one_modality_is_measured_but_not_modulated() -> None:
    modulation = make_modulation("none", ["audio"])
    modulation.forward({"audio": torch.ones(4, 2)}, {"audio": torch.full((4,), 0.25)}, torch.arange(4))
    modulation.backward({"audio": nn.Linear(2, 2)})
    row = {name: value.item() for name, value in modulation.telemetry().items()}
    assert row == {"score/audio": 0.25, "q/audio": 0, "k/audio": 1, "dropped/audio": 0, "grad_norm/audio": 0}
    with pytest.raises(OptionError, match="OPM balances two or more modalities"):
        make_modulation("opm", ["audio"])


def test_calls_out_of_order_are_refused() -> None:
    modulation = both()
    features, alone, ids = ({m: torch.ones(4, 2) for m in NAMES}, {m: torch.ones(4) for m in NAMES}, torch.arange(4))
    encoders = {m: nn.Linear(2, 2) for m in NAMES}
    for call in (modulation.reduce, lambda: modulation.backward(encoders)):
        with pytest.raises(RuntimeError, match=r"after forward\(\)"):
            call()
    modulation.forward(features, alone, ids)
    modulation.reduce()
    with pytest.raises(RuntimeError, match="once per step"):
        modulation.reduce()
    with pytest.raises(RuntimeError, match="were reduced"):
        modulation.forward(features, alone, ids)
    modulation.backward(encoders)
    modulation.forward(features, alone, ids)  # the next step
    with pytest.raises(OptionError, match=r"scores are of \['audio'\]"):
        modulation.forward(features, {"audio": torch.ones(4)}, ids)
    with pytest.raises(OptionError, match="different names"):
        Modulation(("audio", "audio"))
    with pytest.raises(OptionError, match="form must be one of"):
        Modulation(NAMES, form="quotient")


@pytest.mark.parametrize("where", ["docs/methods.md", "train/modulation/__init__.py"])
def test_the_examples_in_the_documentation_run(where: str) -> None:
    text = (Path(__file__).parents[2] / where).read_text(encoding="utf-8")
    block = re.search(r"```python\n(.*?)```", text, re.DOTALL) or re.search(
        r"\n\n(    balance = .*?)\n\n", text, re.DOTALL
    )
    model = make_model()
    names = {
        "Modulation": Modulation,
        "OPM": OPM,
        "OGM": OGM,
        "unimodal_scores": unimodal_scores,
        "unimodal_logits": unimodal_logits,
        "cross_entropy": cross_entropy,
        "encoders": model.encoders,
        "head": model.head,
        "epochs": 2,
        "loader": list(batches(3)),
        "optimizer": torch.optim.SGD(model.parameters(), 0.1),
    }
    before = [p.clone() for p in model.parameters()]
    exec(textwrap.dedent(block[1]), names)
    assert names["balance"].index == 6
    assert names["balance"].row.isfinite().all()
    assert not same(before, list(model.parameters()))


def test_the_custom_rule_in_the_documentation_acts() -> None:
    text = (Path(__file__).parents[2] / "docs" / "methods.md").read_text(encoding="utf-8")
    (block,) = [block for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "(Rule)" in block]
    names: dict[str, Any] = {"__name__": "own"}
    exec(compile(block, "methods.md", "exec", dont_inherit=True), names)
    modulation = Modulation(NAMES, names["Quieten"](strength=0.25))
    features = {m: torch.ones(4, 2) for m in NAMES}
    alone = {"audio": torch.full((4,), 0.9), "visual": torch.full((4,), 0.5)}
    for expected in (1.0, 0.25):  # the first step's ratio acts in the second
        out = modulation.forward(features, alone, torch.arange(4))
        modulation.backward({m: nn.Identity() for m in NAMES})
        assert out["audio"].unique().tolist() == [expected]
        assert out["visual"].unique().tolist() == [1.0]


@pytest.mark.parametrize("form", ["ratio", "difference"])
def test_a_too_large_alpha_is_reported_from_the_rows_of_a_run(form: str) -> None:
    run = Run(Modulation(NAMES, OGM(alpha=50), form=form)).steps(3)
    said = {message.partition(" ")[0] for row in run.rows for message in row_advice(row, run.modulation)}
    assert said & {"k/audio", "k/visual"}
