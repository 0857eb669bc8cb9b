"""Scores, ρ, q and k against a reference written straight from the paper's equations in float64 NumPy."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

from bmlpipe.train.fusion import Concatenation
from bmlpipe.train.modulation import OGM, OPM, Modulation
from bmlpipe.train.modulation.ratio import NEUTRAL, discrepancy
from bmlpipe.train.scores import scores, unimodal_logits

NAMES = ("audio", "visual", "flow", "rgb_diff")
FORMS = ("ratio", "difference")


def reference_scores(
    phi: list[np.ndarray], W: list[np.ndarray], b: np.ndarray, gamma: list[float], y: np.ndarray
) -> np.ndarray:
    """s_i^m = softmax(W^m φ_i^m + γ^m b)[y_i] (Eq. 6), (M, B)."""
    rows = []
    for m in range(len(phi)):
        row = []
        for i in range(len(y)):
            exponentials = [math.exp(v) for v in W[m] @ phi[m][i] + gamma[m] * b]
            row.append(exponentials[y[i]] / sum(exponentials))
        rows.append(row)
    return np.array(rows)


def reference_ratio(S: np.ndarray, form: str) -> np.ndarray:
    """ρ^m = 1/(M−1) Σ_{j≠m} S^m / S^j (Eq. 7), or of the differences (Table 15)."""
    pair: Callable[[float, float], float] = (lambda a, c: a / c) if form == "ratio" else (lambda a, c: a - c)
    M = len(S)
    return np.array([sum(pair(S[m], S[j]) for j in range(M) if j != m) / (M - 1) for m in range(M)])


def reference_z(rho: float, shape: str, neutral: float) -> float:
    return math.tanh(rho - neutral) if shape == "tanh" else 1 / (1 + math.exp(-rho))


def reference_q(rho: np.ndarray, q_base: float, lam: float, shape: str, neutral: float) -> np.ndarray:
    """Eq. 8."""
    return np.array(
        [min(1, q_base * (1 + lam * reference_z(r, shape, neutral))) if r > neutral else 0 for r in rho.tolist()]
    )


def reference_k(rho: np.ndarray, alpha: float, form: str, shape: str, neutral: float) -> np.ndarray:
    """Of Alg. 2, and OGM-GE's."""
    damped = {
        "paper": lambda r: max(0, 1 - alpha * reference_z(r, shape, neutral)),
        "cvpr": lambda r: 1 - math.tanh(alpha * r),
    }[form]
    return np.array([damped(r) if r > neutral else 1 for r in rho.tolist()])


@pytest.mark.parametrize("modalities", [2, 3, 4])
@pytest.mark.parametrize("equal_shares", [True, False])
def test_scores_and_their_mean(modalities: int, equal_shares: bool) -> None:
    rng = np.random.default_rng(modalities)
    names = NAMES[:modalities]
    dims = [3, 5, 4, 6][:modalities]
    phi, W = [rng.normal(size=(20, d)) for d in dims], [rng.normal(size=(7, d)) for d in dims]
    b, y = rng.normal(size=7), rng.integers(7, size=20)
    gamma = [1 / modalities] * modalities if equal_shares else rng.dirichlet(np.ones(modalities)).tolist()
    expected = reference_scores(phi, W, b, gamma, y)

    head = Concatenation(dict(zip(names, dims, strict=True)), 7)
    with torch.no_grad():
        head.classifier.weight.copy_(torch.from_numpy(np.concatenate(W, axis=1)))
        head.classifier.bias.copy_(torch.from_numpy(b))
    given = {m: torch.from_numpy(value) for m, value in zip(names, phi, strict=True)}
    got = scores(unimodal_logits(head, given, None if equal_shares else gamma), torch.from_numpy(y))
    np.testing.assert_allclose(np.stack([got[m].numpy() for m in names]), expected, rtol=2e-5)

    modulation = Modulation(names)
    modulation.forward(given, got, torch.arange(20))
    modulation.backward({m: torch.nn.Identity() for m in names})
    row = {name: value.item() for name, value in modulation.telemetry().items()}
    rho = reference_ratio(expected.sum(axis=1), "ratio")
    for i, m in enumerate(names):
        assert row[f"score/{m}"] == pytest.approx(expected[i].mean(), rel=1e-6)
        assert row[f"rho/{m}"] == pytest.approx(rho[i], rel=1e-6)


@pytest.mark.parametrize("modalities", [2, 3, 4])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", ["tanh", "sigmoid"])
def test_rho_q_and_k(modalities: int, form: str, shape: str) -> None:
    rng = np.random.default_rng(modalities)
    options = [(0.5, 0.5, 0.8), (0.9, 1.5, 2.5), (0.0, 0.3, 0.0), (1.0, 0.0, 1.0)]  # q_base, λ, α
    for trial in range(50):
        S = rng.uniform(0.01, 1, size=modalities) * 10.0 ** rng.integers(-3, 3)
        expected = reference_ratio(S, form)
        rho = discrepancy(torch.from_numpy(S), form)
        np.testing.assert_allclose(rho.numpy(), expected, rtol=1e-12)
        q_base, lam, alpha = options[trial % len(options)]
        q = OPM(q_base=q_base, lam=lam, z=shape).probability(rho, NEUTRAL[form])
        np.testing.assert_allclose(q.numpy(), reference_q(expected, q_base, lam, shape, NEUTRAL[form]), rtol=1e-12)
        for k_form in ("paper", "cvpr"):
            k = OGM(alpha=alpha, form=k_form, z=shape).coefficient(rho, NEUTRAL[form])
            expected_k = reference_k(expected, alpha, k_form, shape, NEUTRAL[form])
            np.testing.assert_allclose(k.numpy(), expected_k, rtol=1e-11, atol=1e-13)
            assert ((k >= 0) & (k <= 1)).all()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("modalities", [2, 3, 4])
def test_equal_scores_are_neutral_exactly(modalities: int, form: str) -> None:
    rho = discrepancy(torch.full((modalities,), 0.1 + 0.2, dtype=torch.float64), form)
    assert rho.tolist() == [NEUTRAL[form]] * modalities
    assert OPM().probability(rho, NEUTRAL[form]).tolist() == [0.0] * modalities
    assert OGM().coefficient(rho, NEUTRAL[form]).tolist() == [1.0] * modalities


def test_the_weakest_modality_is_never_dropped_or_damped() -> None:
    rng = np.random.default_rng(0)
    for form in FORMS:
        for modalities in (2, 3, 4):
            for _ in range(200):
                S = torch.from_numpy(rng.uniform(0, 1, size=modalities))
                rho = discrepancy(S, form)
                weakest = int(S.argmin())
                assert OPM().probability(rho, NEUTRAL[form])[weakest] == 0
                assert OGM().coefficient(rho, NEUTRAL[form])[weakest] == 1
                assert OPM().probability(rho, NEUTRAL[form])[int(S.argmax())] > 0


def test_scores_that_are_zero_or_not_finite() -> None:
    nothing = discrepancy(torch.zeros(3, dtype=torch.float64))
    assert nothing.tolist() == [0, 0, 0]
    collapsed = discrepancy(torch.tensor([2.0, 0.0], dtype=torch.float64))
    assert collapsed.isfinite().all()
    assert OPM(q_base=0.4, lam=0.5).probability(collapsed).tolist() == pytest.approx([0.6, 0])
    assert OGM(alpha=0.3).coefficient(collapsed).tolist() == pytest.approx([0.7, 1])
    broken = discrepancy(torch.tensor([2.0, math.nan, 1.0], dtype=torch.float64))
    assert broken.isnan().all()
    assert OPM().probability(broken).tolist() == [0, 0, 0]
    assert OGM().coefficient(broken).tolist() == [1, 1, 1]


def test_the_two_samples_worked_out_in_the_documentation() -> None:
    """docs/methods.md, section "Two samples by hand": every number that stands there."""
    head = Concatenation({"audio": 1, "visual": 1}, 2)
    with torch.no_grad():
        head.classifier.weight.copy_(torch.tensor([[1.0, 0.5], [0.0, 0.0]]))
        head.classifier.bias.zero_()
    log4 = math.log(4)
    features = {"audio": torch.tensor([[log4], [-log4]]), "visual": torch.tensor([[0.0], [2 * log4]])}
    labels = torch.tensor([0, 1])
    alone = scores(unimodal_logits(head, features), labels)
    assert alone["audio"].tolist() == pytest.approx([0.8, 0.8])
    assert alone["visual"].tolist() == pytest.approx([0.5, 0.2])
    modulation = Modulation(("audio", "visual"))
    modulation.forward(features, alone, torch.arange(2))
    modulation.backward({"audio": torch.nn.Identity(), "visual": torch.nn.Identity()})
    row = {name: value.item() for name, value in modulation.telemetry().items()}
    assert (row["score/audio"], row["score/visual"]) == pytest.approx((0.8, 0.35))
    assert (row["rho/audio"], row["rho/visual"]) == pytest.approx((2.2857, 0.4375), abs=5e-5)
    rho = torch.tensor([row["rho/audio"], row["rho/visual"]], dtype=torch.float64)
    assert OPM(q_base=0.5, lam=0.5).probability(rho).tolist() == pytest.approx([0.7145, 0], abs=5e-5)
    assert OGM(alpha=0.8).coefficient(rho).tolist() == pytest.approx([0.3136, 1], abs=5e-5)
    assert OGM(alpha=0.8, form="cvpr").coefficient(rho).tolist() == pytest.approx([0.0503, 1], abs=5e-5)
    sums = torch.tensor([1.6, 0.7], dtype=torch.float64)
    assert discrepancy(sums, "difference").tolist() == pytest.approx([0.9, -0.9])
