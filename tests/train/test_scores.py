"""Uni-modal logits and scores: the exact split, zero-out, and no side effects on the head."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bmlpipe.train.config.registries import FUSIONS
from bmlpipe.train.models.fusion import Concatenation, Gated, Summation, make_fusion
from bmlpipe.train.modulation.scores import unimodal_logits, unimodal_scores, zero_out

DIMS = {"audio": 5, "visual": 7}
CLASSES = 4


def features() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {m: torch.randn(6, dim, generator=generator) for m, dim in DIMS.items()}


class DeepHead(nn.Module):
    """A classifier of several layers, with everything that a reading could disturb."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(12, 8)
        self.norm = nn.BatchNorm1d(8)
        self.drop = nn.Dropout(0.5)
        self.last = nn.Linear(8, CLASSES)

    def forward(self, given: dict[str, Tensor]) -> Tensor:
        x = torch.cat([given["audio"], given["visual"]], dim=1)
        return self.last(self.drop(self.norm(self.first(x)).relu()))


@pytest.mark.parametrize("name", ["concat", "sum"])
def test_heads_that_split_are_read_exactly(name: str) -> None:
    head, given = make_fusion(name, DIMS, CLASSES), features()
    terms = unimodal_logits(head, given)
    torch.testing.assert_close(terms["audio"] + terms["visual"], head(given))
    assert not any(value.requires_grad for value in terms.values())


def test_gamma_moves_the_bias_and_is_refused_where_nothing_is_split() -> None:
    head, given = Concatenation(DIMS, CLASSES), features()
    all_audio, none = unimodal_logits(head, given, (1.0, 0.0)), unimodal_logits(head, given, (0.0, 0.0))
    torch.testing.assert_close(all_audio["audio"] - none["audio"], head.classifier.bias.expand(6, CLASSES).detach())
    torch.testing.assert_close(all_audio["visual"], none["visual"])
    with pytest.raises(ValueError, match="Gated is read by zero-out"):
        unimodal_logits(Gated(DIMS, CLASSES), given, (0.5, 0.5))


@pytest.mark.parametrize("name", ["film", "gated", "lowrank", "centralnet"])
def test_other_heads_are_read_by_zero_out(name: str) -> None:
    head, given = make_fusion(name, DIMS, CLASSES), features()
    for m, other in (("audio", "visual"), ("visual", "audio")):
        by_hand = head({m: given[m], other: torch.zeros(6, DIMS[other])})
        torch.testing.assert_close(unimodal_logits(head, given)[m], by_hand.detach(), rtol=0, atol=0)


def test_zero_out_of_concatenation_is_its_split_with_the_whole_bias_for_each() -> None:
    head, given = Concatenation(DIMS, CLASSES), features()
    split, cut = unimodal_logits(head, given, (1.0, 1.0)), zero_out(head, given)
    for m in DIMS:
        torch.testing.assert_close(split[m], cut[m])


def test_zero_out_of_a_deep_classifier_by_hand() -> None:
    torch.manual_seed(1)
    head, given = DeepHead(), features()
    head(given)  # gives batch norm statistics of its own
    weights = {k: v.double().numpy() for k, v in head.state_dict().items()}
    x = np.concatenate([np.zeros((6, 5)), given["visual"].double().numpy()], axis=1)
    x = x @ weights["first.weight"].T + weights["first.bias"]
    x = (x - weights["norm.running_mean"]) / np.sqrt(weights["norm.running_var"] + 1e-5)
    x = np.maximum(x * weights["norm.weight"] + weights["norm.bias"], 0)  # evaluation: nothing is dropped
    expected = x @ weights["last.weight"].T + weights["last.bias"]
    np.testing.assert_allclose(unimodal_logits(head, given)["visual"].numpy(), expected, rtol=1e-4, atol=1e-5)


def test_reading_leaves_the_head_unchanged() -> None:
    head = DeepHead()
    head.norm.eval()  # a frozen layer stays frozen
    before = {k: v.clone() for k, v in head.state_dict().items()}
    given = {m: value.requires_grad_() for m, value in features().items()}
    state = torch.get_rng_state()
    logits = unimodal_logits(head, given)
    assert all(torch.equal(before[k], v) for k, v in head.state_dict().items())
    assert (head.training, head.norm.training, head.drop.training, head.last.training) == (True, False, True, True)
    assert torch.equal(state, torch.get_rng_state())
    assert not any(value.requires_grad for value in logits.values())


def test_modes_are_restored_after_an_error() -> None:
    head = DeepHead()
    with pytest.raises(RuntimeError):
        zero_out(head, {"audio": torch.zeros(6, 1), "visual": torch.zeros(6, 1)})
    assert all(module.training for module in head.modules())


@pytest.mark.parametrize("name", sorted(FUSIONS))
def test_scores_are_float32_under_autocast(name: str) -> None:
    head, given = make_fusion(name, DIMS, CLASSES), features()
    labels = torch.tensor([0, 1, 2, 3, 0, 1])
    plain, logits = unimodal_scores(unimodal_logits(head, given), labels), head(given)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not torch.equal(head(given).float(), logits)  # the head itself does compute in bfloat16
        inside = unimodal_scores(unimodal_logits(head, given), labels)
    for m in DIMS:
        assert inside[m].dtype == torch.float32
        assert torch.equal(inside[m], plain[m])


def test_a_head_in_bfloat16_can_be_read() -> None:
    for head in (Summation(DIMS, CLASSES), Gated(DIMS, CLASSES)):
        plain = unimodal_logits(head, features())
        low = unimodal_logits(head.bfloat16(), {m: value.bfloat16() for m, value in features().items()})
        assert low["audio"].dtype == torch.float32
        torch.testing.assert_close(low["audio"], plain["audio"], rtol=0.05, atol=0.05)


def test_a_score_is_the_probability_of_the_right_class() -> None:
    logits = {
        "audio": torch.tensor([[0.0, np.log(3.0)], [1.0, 1.0]]),
        "visual": torch.tensor([[5.0, 5.0], [200.0, 0.0]]),
    }
    got = unimodal_scores(logits, torch.tensor([1, 0]))
    torch.testing.assert_close(got, {"audio": torch.tensor([0.75, 0.5]), "visual": torch.tensor([0.5, 1.0])})
    assert unimodal_scores({"audio": logits["audio"].bfloat16().requires_grad_()}, torch.tensor([1, 0]))[
        "audio"
    ].dtype == (torch.float32)
