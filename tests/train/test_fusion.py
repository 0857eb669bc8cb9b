"""The fusion heads against their formulas in NumPy."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bmlpipe.manifests.common.errors import OptionError
from bmlpipe.train.config.registries import FUSIONS
from bmlpipe.train.models.encoders.cnn4 import CNN4
from bmlpipe.train.models.fusion import (
    CentralNet,
    Concatenation,
    DeepConcatenation,
    FiLM,
    Gated,
    LowRank,
    Summation,
    make_fusion,
    needs_all_stages,
    split_linear,
)
from bmlpipe.train.models.multimodal import MultimodalModel
from bmlpipe.train.modulation.scores import unimodal_logits

DIMS = {"audio": 5, "visual": 7, "flow": 3}
CLASSES = 4
#: Lengths of the parts of the features above that come from two stages of an encoder.
CHANNELS = {"audio": (2, 3), "visual": (3, 4), "flow": (1, 2)}


def features(names: tuple[str, ...] = tuple(DIMS)) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {m: torch.randn(6, DIMS[m], generator=generator, dtype=torch.float64) for m in names}


def linear(layer: nn.Module, x: np.ndarray) -> np.ndarray:
    assert isinstance(layer, nn.Linear)
    return x @ layer.weight.detach().numpy().T + layer.bias.detach().numpy()


def check(head: nn.Module, given: dict[str, Tensor], expected: np.ndarray) -> None:
    np.testing.assert_allclose(head(given).detach().numpy(), expected, rtol=1e-12, atol=1e-12)


def layers(classifier: nn.Module, x: np.ndarray) -> np.ndarray:
    """Linear layers with ReLUs between."""
    *hidden, last = [layer for layer in classifier.modules() if isinstance(layer, nn.Linear)]
    for layer in hidden:
        x = np.maximum(linear(layer, x), 0)
    return linear(last, x)


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


@pytest.mark.parametrize("names", [("audio", "visual"), ("visual", "audio", "flow")])
def test_low_rank_is_a_sum_over_ranks_of_products_over_modalities(names: tuple[str, ...]) -> None:
    head = LowRank({m: DIMS[m] for m in names}, CLASSES, rank=3).double()
    for parameter in (head.rank_weights, head.bias, *(head.factors[m].bias for m in names)):
        nn.init.normal_(parameter)
    given = features()
    expected = np.zeros((6, CLASSES))
    for r in range(3):
        product = np.ones((6, CLASSES))
        for m in names:
            layer = head.factors[m]
            weight = layer.weight.detach().numpy().reshape(3, CLASSES, DIMS[m])[r]
            column = layer.bias.detach().numpy().reshape(3, CLASSES)[r]
            factor = np.concatenate([weight, column[:, None]], axis=1)  # (K, D_m + 1)
            product *= np.concatenate([given[m].numpy(), np.ones((6, 1))], axis=1) @ factor.T
        expected += head.rank_weights[r].item() * product
    check(head, given, expected + head.bias.detach().numpy())


def test_low_rank_starts_near_a_linear_head_so_that_every_modality_learns() -> None:
    dims = dict.fromkeys(DIMS, 400)
    given = {m: (torch.randn(8, 400) * 0.05).requires_grad_() for m in dims}
    head = LowRank(dims, CLASSES)
    linear_part = 1 + sum(
        torch.stack([head.factors[m].weight.view(4, CLASSES, 400)[r] for r in range(4)]).mean(0) @ given[m].T
        for m in dims
    )
    torch.testing.assert_close(head(given), linear_part.T, rtol=0, atol=0.02)
    head(given).square().sum().backward()
    assert all(given[m].grad.norm() > 0.05 for m in dims)


def test_centralnet_by_hand() -> None:
    head = CentralNet(DIMS, CLASSES, stage_channels=CHANNELS).double()
    assert [len(alpha) for alpha in head.alphas] == [3, 4]
    torch.testing.assert_close(head.alphas[1].detach(), torch.full((4,), 0.25).double())
    for alpha in head.alphas:
        nn.init.normal_(alpha)
    given = features()
    alphas = [alpha.detach().numpy() for alpha in head.alphas]

    def matched(stage: int, m: str) -> np.ndarray:
        begin = 0 if stage == 0 else CHANNELS[m][0]
        part = given[m].numpy()[:, begin : begin + CHANNELS[m][stage]]
        if m == "visual":  # the widest at both stages: as it is
            return part
        layer = head.projections[stage][m]
        assert layer.bias is None
        return part @ layer.weight.detach().numpy().T

    h = sum(alphas[0][i] * matched(0, m) for i, m in enumerate(DIMS))
    h = np.maximum(linear(head.layers[0], h), 0)
    h = alphas[1][3] * h + sum(alphas[1][i] * matched(1, m) for i, m in enumerate(DIMS))
    check(head, given, linear(head.classifier, h))


def test_a_feature_of_zeros_removes_the_modality_from_every_stage_of_the_central_branch() -> None:
    head = CentralNet(DIMS, CLASSES, stage_channels=CHANNELS).double()
    given = {m: value.requires_grad_() for m, value in features().items()}
    off = given["visual"] * 0
    head({**given, "visual": off}).sum().backward()
    assert given["visual"].grad.count_nonzero() == 0
    with torch.no_grad():
        alone = head({**given, "visual": off, "flow": given["flow"] * 0})
        removed = CentralNet(
            {"audio": 5, "flow": 3}, CLASSES, stage_channels={m: CHANNELS[m] for m in ("audio", "flow")}
        ).double()
        # The same weights without visual's terms: nothing of it is left, neither a projection nor a constant.
        for stage in (0, 1):
            keep = [0, 2] if stage == 0 else [0, 2, 3]
            removed.alphas[stage] = nn.Parameter(head.alphas[stage][keep])
            removed.projections[stage] = head.projections[stage]
        removed.layers, removed.classifier = head.layers, head.classifier
        torch.testing.assert_close(alone, removed({"audio": given["audio"], "flow": given["flow"] * 0}))


@pytest.mark.parametrize("depth", [2, 3])
def test_classifiers_of_several_layers(depth: int) -> None:
    given = features()
    stacked = np.concatenate([given[m].numpy() for m in DIMS], axis=1)
    head = make_fusion("concat", DIMS, CLASSES, classifier_layers=depth).double()
    check(head, given, layers(head.classifier, stacked))
    assert [layer.out_features for layer in head.modules() if isinstance(layer, nn.Linear)] == [7] * (depth - 1) + [4]
    head = make_fusion("sum", DIMS, CLASSES, classifier_layers=depth).double()
    check(head, given, sum(layers(head.classifiers[m], given[m].numpy()) for m in DIMS))
    head = make_fusion("film", DIMS, CLASSES, classifier_layers=depth).double()
    x = given["audio"].numpy()
    hidden = [linear(head.scale[m], x) * given[m].numpy() + linear(head.shift[m], x) for m in ("visual", "flow")]
    check(head, given, layers(head.classifier, np.concatenate(hidden, axis=1)))
    head = make_fusion("gated", DIMS, CLASSES, classifier_layers=depth).double()
    gate, *others = (linear(head.projections[m], given[m].numpy()) for m in DIMS)
    check(head, given, layers(head.classifier, sum(others) / (1 + np.exp(-gate))))
    head = make_fusion("lowrank", DIMS, CLASSES, classifier_layers=depth).double()
    product = np.prod([linear(head.factors[m], given[m].numpy()).reshape(6, 4, 7) for m in DIMS], axis=0)
    check(head, given, layers(head.classifier, np.maximum(product.mean(axis=1), 0)))
    head = make_fusion("centralnet", DIMS, CLASSES, classifier_layers=depth).double()
    matched = [
        given[m].numpy() if m == "visual" else given[m].numpy() @ head.projections[0][m].weight.detach().numpy().T
        for m in DIMS
    ]
    check(head, given, layers(head.classifier, sum(matched) * head.alphas[0][0].item()))


def test_a_single_layer_splits_exactly_and_several_are_read_by_zero_out() -> None:
    given = features()
    assert isinstance(make_fusion("concat", DIMS, CLASSES), Concatenation)
    deep = make_fusion("concat", DIMS, CLASSES, classifier_layers=2).double()
    assert isinstance(deep, DeepConcatenation)
    zeros = {m: np.zeros_like(value) for m, value in given.items()}
    for m, logits in unimodal_logits(deep, given).items():
        only = np.concatenate(list({**zeros, m: given[m].numpy()}.values()), axis=1)
        np.testing.assert_allclose(logits.numpy(), layers(deep.classifier, only), rtol=1e-5, atol=1e-6)


def test_summation_of_deep_branches_still_splits_into_its_branches() -> None:
    given = features()
    head = make_fusion("sum", DIMS, CLASSES, classifier_layers=3).double()
    terms = head.split_logits(given)
    for m in DIMS:
        np.testing.assert_allclose(terms[m].detach().numpy(), layers(head.classifiers[m], given[m].numpy()), rtol=1e-12)
    half = head.split_logits(given, (0.5, 0.5, 0.5))
    torch.testing.assert_close(terms["flow"] - half["flow"], (head.classifiers["flow"][-1].bias / 2).expand(6, -1))


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("name", sorted(FUSIONS))
@pytest.mark.parametrize("names", [("audio", "visual"), ("visual", "audio", "flow")])
def test_gradients_reach_every_parameter_and_every_modality(name: str, depth: int, names: tuple[str, ...]) -> None:
    head = make_fusion(
        name,
        {m: DIMS[m] for m in names},
        CLASSES,
        classifier_layers=depth,
        stage_channels={m: CHANNELS[m] for m in names},
    ).double()
    given = {m: value.requires_grad_() for m, value in features(names).items()}
    nn.functional.cross_entropy(head(given), torch.tensor([0, 1, 2, 3, 0, 1])).backward()
    for parameter in [*head.parameters(), *given.values()]:
        assert parameter.grad is not None
        assert parameter.grad.count_nonzero() > 0


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


def test_errors_name_the_value() -> None:
    with pytest.raises(OptionError, match=r"'mean'.*centralnet, concat, film, gated, lowrank, sum"):
        make_fusion("mean", DIMS, CLASSES)
    with pytest.raises(OptionError, match=r"stages of 'audio' have 2 \+ 2 channels"):
        CentralNet(DIMS, CLASSES, stage_channels={**CHANNELS, "audio": (2, 2)})
    with pytest.raises(OptionError, match=r"same number of stages.*audio 1, visual 2, flow 2"):
        CentralNet(DIMS, CLASSES, stage_channels={**CHANNELS, "audio": (5,)})
    for name in FUSIONS:
        with pytest.raises(OptionError, match="classifier_layers must be at least 1, not 0"):
            make_fusion(name, DIMS, CLASSES, classifier_layers=0)
    for name in ("film", "gated", "lowrank", "centralnet"):
        with pytest.raises(OptionError, match=r"at least 2 modalities.*\['audio'\].*'concat'"):
            make_fusion(name, {"audio": 5}, CLASSES)
    with pytest.raises(OptionError, match="2 entries for 3 modalities"):
        Concatenation(DIMS, CLASSES).double().split_logits(features(), (0.5, 0.5))
    with pytest.raises(OptionError, match=r"5 \+ 7 entries"):
        split_linear(nn.Linear(15, CLASSES).double(), features(("audio", "visual")))


@pytest.mark.parametrize("name", sorted(FUSIONS))
def test_the_feature_hook_sits_between_encoders_and_head(name: str) -> None:
    torch.manual_seed(0)
    encoders = {"audio": CNN4(1, width=2), "visual": CNN4(3, width=3)}
    model = MultimodalModel(
        encoders, make_fusion(name, {m: e.feature_dim for m, e in encoders.items()}, CLASSES)
    ).eval()
    inputs = {"audio": torch.randn(2, 1, 1, 20, 20), "visual": torch.randn(2, 3, 3, 16, 16)}
    alone = {m: encoders[m](inputs[m]) for m in encoders}
    torch.testing.assert_close(model(inputs), model.head(alone))
    seen = {}

    def feature_hook(given: dict[str, Tensor]) -> dict[str, Tensor]:
        seen.update(given)
        return {**given, "audio": torch.zeros_like(given["audio"])}

    dropped = model(inputs, feature_hook)
    assert {m: value.shape for m, value in seen.items()} == {"audio": (2, 8), "visual": (2, 12)}
    torch.testing.assert_close(dropped, model.head({**alone, "audio": torch.zeros_like(alone["audio"])}))
    assert not torch.allclose(dropped, model(inputs))


class Mean(nn.Module):
    """Another package's head: one linear layer on the mean of features of equal length."""

    def __init__(self, dims: Mapping[str, int], classes: int) -> None:
        super().__init__()
        (self.length,) = set(dims.values())
        self.classifier = nn.Linear(self.length, classes)

    def forward(self, given: Mapping[str, Tensor]) -> Tensor:
        return self.classifier(torch.stack(list(given.values())).mean(dim=0))


def test_a_head_of_another_package_is_made_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FUSIONS, "plugins", lambda: {"mean": SimpleNamespace(load=lambda: Mean)})
    dims = {"audio": 4, "visual": 4}
    head = make_fusion("mean", dims, CLASSES, stage_channels={"audio": (4,), "visual": (4,)})
    assert isinstance(head, Mean)
    given = {m: torch.randn(2, 4) for m in dims}
    zeroed = head({"audio": given["audio"], "visual": torch.zeros(2, 4)})
    torch.testing.assert_close(unimodal_logits(head, given)["audio"], zeroed.detach())
    with pytest.raises(OptionError, match="'mean' has no keyword `classifier_layers`"):
        make_fusion("mean", dims, CLASSES, classifier_layers=2)
    assert [name for name in FUSIONS if needs_all_stages(name)] == ["centralnet"]
