"""The fusion heads against their formulas in NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bmlpipe.train.encoders import CNN4
from bmlpipe.train.fusion import FUSIONS, Concatenation, FiLM, Gated, Summation, make_fusion, split_linear
from bmlpipe.train.model import MultimodalModel

DIMS = {"audio": 5, "visual": 7, "flow": 3}
CLASSES = 4


def features(names: tuple[str, ...] = tuple(DIMS)) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {m: torch.randn(6, DIMS[m], generator=generator, dtype=torch.float64) for m in names}


def linear(layer: nn.Module, x: np.ndarray) -> np.ndarray:
    assert isinstance(layer, nn.Linear)
    return x @ layer.weight.detach().numpy().T + layer.bias.detach().numpy()


def check(head: nn.Module, given: dict[str, Tensor], expected: np.ndarray) -> None:
    np.testing.assert_allclose(head(given).detach().numpy(), expected, rtol=1e-12)


@pytest.mark.parametrize("names", [("audio",), ("audio", "visual"), ("visual", "flow", "audio")])
def test_concatenation(names: tuple[str, ...]) -> None:
    head = Concatenation({m: DIMS[m] for m in names}, CLASSES).double()
    given = features()
    check(head, given, linear(head.classifier, np.concatenate([given[m].numpy() for m in names], axis=1)))


@pytest.mark.parametrize("names", [("audio",), ("audio", "visual"), ("visual", "flow", "audio")])
def test_summation(names: tuple[str, ...]) -> None:
    head = Summation({m: DIMS[m] for m in names}, CLASSES).double()
    given = features()
    check(head, given, sum(linear(head.classifiers[m], given[m].numpy()) for m in names))


@pytest.mark.parametrize("names", [("audio", "visual"), ("visual", "audio", "flow")])
def test_film(names: tuple[str, ...]) -> None:
    head = FiLM({m: DIMS[m] for m in names}, CLASSES).double()
    given = features()
    x = given[names[0]].numpy()
    hidden = [linear(head.scale[m], x) * given[m].numpy() + linear(head.shift[m], x) for m in names[1:]]
    check(head, given, linear(head.classifier, np.concatenate(hidden, axis=1)))


@pytest.mark.parametrize("names", [("audio", "visual"), ("visual", "audio", "flow")])
def test_gated(names: tuple[str, ...]) -> None:
    head = Gated({m: DIMS[m] for m in names}, CLASSES).double()
    given = features()
    gate, *others = (linear(head.projections[m], given[m].numpy()) for m in names)
    check(head, given, linear(head.classifier, sum(others) / (1 + np.exp(-gate))))


@pytest.mark.parametrize("gamma", [None, (0.2, 0.7, 0.1)])
@pytest.mark.parametrize("head", [Concatenation(DIMS, CLASSES), Summation(DIMS, CLASSES)], ids=["concat", "sum"])
def test_the_split_adds_up_to_the_logits(head: Concatenation | Summation, gamma: tuple[float, ...] | None) -> None:
    head = head.double()
    given = features()
    terms = head.split_logits(given, gamma)
    assert list(terms) == list(DIMS)
    if isinstance(head, Concatenation) or gamma is None:
        torch.testing.assert_close(sum(terms.values()), head(given), rtol=1e-12, atol=1e-12)
    else:  # with γ a branch gets a share of its own bias
        biases = [g * head.classifiers[m].bias for g, m in zip(gamma, DIMS, strict=True)]
        without = [given[m] @ head.classifiers[m].weight.T for m in DIMS]
        torch.testing.assert_close(list(terms.values()), [a + b for a, b in zip(without, biases, strict=True)])


def test_each_term_of_the_split_is_eq_6() -> None:
    head = Concatenation(DIMS, CLASSES).double()
    given = features()
    weight, bias = head.classifier.weight.detach().numpy(), head.classifier.bias.detach().numpy()
    begin = 0
    for m, share in zip(DIMS, (0.2, 0.7, 0.1), strict=True):
        own = weight[:, begin : begin + DIMS[m]]
        begin += DIMS[m]
        for gamma, part in ((None, 1 / 3), ((0.2, 0.7, 0.1), share)):
            got = head.split_logits(given, gamma)[m].detach().numpy()
            np.testing.assert_allclose(got, given[m].numpy() @ own.T + part * bias, rtol=1e-12)


def test_split_of_a_bare_linear_layer_without_bias() -> None:
    layer = nn.Linear(12, CLASSES, bias=False).double()
    given = features(("audio", "visual"))
    terms = split_linear(layer, given)
    torch.testing.assert_close(sum(terms.values()), layer(torch.cat(list(given.values()), dim=1)))


def test_refusals_name_the_value() -> None:
    with pytest.raises(ValueError, match=r"'mean'.*concat, film, gated, sum"):
        make_fusion("mean", DIMS, CLASSES)
    for name in ("film", "gated"):
        with pytest.raises(ValueError, match=r"at least 2 modalities.*\['audio'\].*'concat'"):
            make_fusion(name, {"audio": 5}, CLASSES)
    with pytest.raises(ValueError, match="2 shares for the 3 modalities"):
        Concatenation(DIMS, CLASSES).double().split_logits(features(), (0.5, 0.5))
    with pytest.raises(ValueError, match=r"5 \+ 7 entries, the layer takes 15"):
        split_linear(nn.Linear(15, CLASSES).double(), features(("audio", "visual")))


@pytest.mark.parametrize("name", sorted(FUSIONS))
def test_the_model_joins_encoders_and_head_and_between_sits_between(name: str) -> None:
    torch.manual_seed(0)
    encoders = {"audio": CNN4(1, width=2), "visual": CNN4(3, width=3)}
    model = MultimodalModel(encoders, make_fusion(name, {m: e.features for m, e in encoders.items()}, CLASSES)).eval()
    inputs = {"audio": torch.randn(2, 1, 1, 20, 20), "visual": torch.randn(2, 3, 3, 16, 16)}
    alone = {m: encoders[m](inputs[m]) for m in encoders}
    torch.testing.assert_close(model(inputs), model.head(alone))
    seen = {}

    def between(given: dict[str, Tensor]) -> dict[str, Tensor]:
        seen.update(given)
        return {**given, "audio": torch.zeros_like(given["audio"])}

    dropped = model(inputs, between)
    assert {m: value.shape for m, value in seen.items()} == {"audio": (2, 8), "visual": (2, 12)}
    torch.testing.assert_close(dropped, model.head({**alone, "audio": torch.zeros_like(alone["audio"])}))
    assert not torch.allclose(dropped, model(inputs))
