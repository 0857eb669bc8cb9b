"""Scores, ρ, q and k against a reference written straight from the paper's equations in float64 NumPy."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bmlpipe.train.models.fusion import make_fusion
from bmlpipe.train.modulation import OGM, OPM, Modulation, OGMStar, Rule, StepContext, make_modulation
from bmlpipe.train.modulation.discrepancy import NEUTRAL, discrepancy
from bmlpipe.train.modulation.scores import unimodal_logits, unimodal_scores

NAMES = ("audio", "visual", "flow", "rgb_diff")
DIMS = (3, 5, 4, 6)
FORMS = ("ratio", "difference")
SHAPES = ("tanh", "sigmoid")
SAMPLES, CLASSES = 20, 7


def reference_scores(
    phi: list[np.ndarray], W: list[np.ndarray], b: list[np.ndarray], gamma: list[float], y: np.ndarray
) -> np.ndarray:
    """s_i^m = softmax(W^m φ_i^m + γ^m b^m)[y_i] (Eq. 6; b^m is b for a single linear layer), (M, B)."""
    rows = []
    for m in range(len(phi)):
        row = []
        for i in range(len(y)):
            exponentials = [math.exp(v) for v in W[m] @ phi[m][i] + gamma[m] * b[m]]
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


def reference_k_star(rho: np.ndarray, alpha: float, form: str, shape: str, neutral: float) -> np.ndarray:
    """k of OGM* (Sec. 4.4.2): only weaker modalities are enlarged, by the discrepancy with the roles swapped."""
    enlarged = {
        "adaptive": lambda r: 1 + alpha * reference_z(1 / r if neutral else -r, shape, neutral),
        "constant": lambda r: 1 + alpha,
    }[form]
    return np.array([enlarged(r) if r < neutral else 1 for r in rho.tolist()])


def problem(fusion: str, modalities: int) -> tuple[nn.Module, dict[str, Tensor], Tensor, Callable[..., np.ndarray]]:
    """A head, features, labels, and the reference's scores as a function of γ."""
    rng = np.random.default_rng(modalities)
    dims = dict(zip(NAMES, DIMS[:modalities]))
    phi, W = (
        [rng.normal(size=(SAMPLES, d)) for d in dims.values()],
        [rng.normal(size=(CLASSES, d)) for d in dims.values()],
    )
    b, y = [rng.normal(size=CLASSES) for _ in dims], rng.integers(CLASSES, size=SAMPLES)
    head = make_fusion(fusion, dims, CLASSES)
    with torch.no_grad():
        if fusion == "concat":
            b = [b[0]] * modalities
            head.classifier.weight.copy_(torch.from_numpy(np.concatenate(W, axis=1)))
            head.classifier.bias.copy_(torch.from_numpy(b[0]))
        else:
            for m, weight, bias in zip(dims, W, b, strict=True):
                linear = next(layer for layer in head.classifiers[m].modules() if isinstance(layer, nn.Linear))
                linear.weight.copy_(torch.from_numpy(weight))
                linear.bias.copy_(torch.from_numpy(bias))
    features = {m: torch.from_numpy(value).float() for m, value in zip(dims, phi, strict=True)}
    return head, features, torch.from_numpy(y), lambda gamma: reference_scores(phi, W, b, gamma, y)


@pytest.mark.parametrize("modalities", [2, 3, 4])
@pytest.mark.parametrize("fusion", ["concat", "sum"])
@pytest.mark.parametrize("shares", ["default", "half", "own"])
def test_scores(fusion: str, modalities: int, shares: str) -> None:
    head, features, y, reference = problem(fusion, modalities)
    gamma = {
        "default": [1 / modalities if fusion == "concat" else 1.0] * modalities,
        "half": [0.5] * modalities,
        "own": [1.5, -0.25, 0.0, 0.7][:modalities],
    }[shares]
    got = unimodal_scores(unimodal_logits(head, features, None if shares == "default" else gamma), y)
    np.testing.assert_allclose(np.stack([got[m].numpy() for m in features]), reference(gamma), rtol=3e-5)


#: Notation → (q of this step from the last step's ρ, k from this step's ρ), by the reference.
VARIANTS: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "none": (lambda r, n: 0 * r, lambda r, n: 0 * r + 1),
    "opm": (lambda r, n: reference_q(r, 0.5, 0.5, "tanh", n), lambda r, n: 0 * r + 1),
    "opm(q_base=0.3, lam=2, z=sigmoid)": (lambda r, n: reference_q(r, 0.3, 2, "sigmoid", n), lambda r, n: 0 * r + 1),
    "ogm": (lambda r, n: 0 * r, lambda r, n: reference_k(r, 0.8, "paper", "tanh", n)),
    "ogm(alpha=1.7, z=sigmoid)": (lambda r, n: 0 * r, lambda r, n: reference_k(r, 1.7, "paper", "sigmoid", n)),
    "ogm-ge(alpha=0.3)": (lambda r, n: 0 * r, lambda r, n: reference_k(r, 0.3, "cvpr", "tanh", n)),
    "ogm-star": (lambda r, n: 0 * r, lambda r, n: reference_k_star(r, 0.8, "adaptive", "tanh", n)),
    "ogm-star(form=constant, alpha=0.5)": (
        lambda r, n: 0 * r,
        lambda r, n: reference_k_star(r, 0.5, "constant", "tanh", n),
    ),
    "opm+ogm+ogm-star(z=sigmoid)": (
        lambda r, n: reference_q(r, 0.5, 0.5, "tanh", n),
        lambda r, n: reference_k(r, 0.8, "paper", "tanh", n) * reference_k_star(r, 0.8, "adaptive", "sigmoid", n),
    ),
}


@pytest.mark.parametrize("text", VARIANTS)
@pytest.mark.parametrize("modalities", [2, 3, 4])
@pytest.mark.parametrize("form", FORMS)
def test_a_step_from_features_to_coefficients(text: str, modalities: int, form: str) -> None:
    """Features → the journal's row, for two steps: the first one's ρ drives the second one's q."""
    head, features, y, reference = problem("concat", modalities)
    s = reference([1 / modalities] * modalities)
    modulation = make_modulation(text, tuple(features), form=form)
    encoders = {m: nn.Identity() for m in features}
    q_of, k_of = VARIANTS[text]
    last = None
    for part in (slice(0, 8), slice(8, SAMPLES)):
        own = {m: value[part] for m, value in features.items()}
        modulation.forward(own, unimodal_scores(unimodal_logits(head, own), y[part]), torch.arange(SAMPLES)[part])
        modulation.backward(encoders)
        row = {name: value.item() for name, value in modulation.telemetry().items()}
        S = s[:, part].sum(axis=1)
        rho = reference_ratio(S, form)
        q = np.zeros(modalities) if last is None else q_of(last, NEUTRAL[form])
        for name, expected in (
            ("score", s[:, part].mean(axis=1)),
            ("rho", rho),
            ("q", q),
            ("k", k_of(rho, NEUTRAL[form])),
        ):
            got = [row[f"{name}/{m}"] for m in features]
            np.testing.assert_allclose(got, expected, rtol=2e-6, atol=1e-6, err_msg=name)
        last = rho


@pytest.mark.parametrize("modalities", [2, 3, 4])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", SHAPES)
def test_rho_q_and_k(modalities: int, form: str, shape: str) -> None:
    rng = np.random.default_rng(modalities)
    neutral = NEUTRAL[form]
    options = [(0.5, 0.5, 0.8), (0.9, 1.5, 2.5), (0.0, 0.3, 0.0), (1.0, 0.0, 1.0)]  # q_base, λ, α
    for trial in range(40):
        S = rng.uniform(0.01, 1, size=modalities) * 10.0 ** rng.integers(-3, 3)
        expected = reference_ratio(S, form)
        rho = discrepancy(torch.from_numpy(S), form)
        np.testing.assert_allclose(rho.numpy(), expected, rtol=1e-12)
        q_base, lam, alpha = options[trial % len(options)]
        q = OPM(q_base=q_base, lam=lam, z=shape).probability(rho, neutral)
        np.testing.assert_allclose(q.numpy(), reference_q(expected, q_base, lam, shape, neutral), rtol=1e-12)
        for k_form in ("paper", "cvpr"):
            k = OGM(alpha=alpha, form=k_form, z=shape).coefficient(rho, neutral)
            np.testing.assert_allclose(
                k.numpy(), reference_k(expected, alpha, k_form, shape, neutral), rtol=1e-11, atol=1e-13
            )
            assert ((k >= 0) & (k <= 1)).all()
        for k_form in ("adaptive", "constant"):
            k = OGMStar(alpha=alpha, form=k_form, z=shape).coefficient(rho, neutral)
            np.testing.assert_allclose(k.numpy(), reference_k_star(expected, alpha, k_form, shape, neutral), rtol=1e-11)
            assert ((k >= 1) & (k <= 1 + alpha)).all()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", SHAPES)
def test_of_two_modalities_ogm_star_enlarges_by_what_ogm_damps(form: str, shape: str) -> None:
    rho = discrepancy(torch.tensor([3.0, 1.3], dtype=torch.float64), form)
    damped = OGM(alpha=0.6, z=shape).coefficient(rho, NEUTRAL[form])
    enlarged = OGMStar(alpha=0.6, z=shape).coefficient(rho, NEUTRAL[form])
    assert (damped[1], enlarged[0]) == (1, 1)
    assert (enlarged[1] - 1).item() == pytest.approx((1 - damped[0]).item(), rel=1e-12)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("modalities", [2, 3, 4])
def test_equal_scores_are_neutral_exactly(modalities: int, form: str) -> None:
    rho = discrepancy(torch.full((modalities,), 0.1 + 0.2, dtype=torch.float64), form)
    assert rho.tolist() == [NEUTRAL[form]] * modalities
    assert OPM().probability(rho, NEUTRAL[form]).tolist() == [0.0] * modalities
    for rule in (OGM(), OGMStar(), OGMStar(form="constant")):
        assert rule.coefficient(rho, NEUTRAL[form]).tolist() == [1.0] * modalities


def test_the_weakest_is_never_damped_and_the_strongest_never_enlarged() -> None:
    rng = np.random.default_rng(0)
    for form in FORMS:
        for modalities in (2, 3, 4):
            for _ in range(100):
                S = torch.from_numpy(rng.uniform(0, 1, size=modalities))
                rho, neutral = discrepancy(S, form), NEUTRAL[form]
                weakest, strongest = int(S.argmin()), int(S.argmax())
                q, damped = OPM().probability(rho, neutral), OGM().coefficient(rho, neutral)
                enlarged = OGMStar().coefficient(rho, neutral)
                assert (q[weakest], damped[weakest], enlarged[strongest]) == (0, 1, 1)
                assert q[strongest] > 0
                assert damped[strongest] < 1
                assert enlarged[weakest] > 1
                assert ((damped == 1) | (enlarged == 1)).all()  # no modality is dominant and weaker at once


def test_scores_that_are_zero_or_not_finite() -> None:
    nothing = discrepancy(torch.zeros(3, dtype=torch.float64))
    assert nothing.tolist() == [0, 0, 0]
    collapsed = discrepancy(torch.tensor([2.0, 0.0], dtype=torch.float64))
    assert collapsed.isfinite().all()
    assert OPM(q_base=0.4, lam=0.5).probability(collapsed).tolist() == pytest.approx([0.6, 0])
    assert OGM(alpha=0.3).coefficient(collapsed).tolist() == pytest.approx([0.7, 1])
    assert OGMStar(alpha=0.3).coefficient(collapsed).tolist() == pytest.approx([1, 1.3])
    broken = discrepancy(torch.tensor([2.0, math.nan, 1.0], dtype=torch.float64))
    assert broken.isnan().all()
    assert OPM().probability(broken).tolist() == [0, 0, 0]
    for rule in (OGM(), OGMStar(), OGMStar(form="constant")):
        assert rule.coefficient(broken).tolist() == [1, 1, 1]


class Lose(Rule):
    """A rule that drops inputs by a given mask per step."""

    acts_on_inputs = True

    def __init__(self, masks: list[Tensor]) -> None:
        self.masks = masks

    def inputs(self, inputs: dict[str, Tensor], step: StepContext) -> dict[str, Tensor]:
        step.dropped = self.masks[step.index]
        return inputs


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("modalities", [2, 3, 4])
@pytest.mark.parametrize("micro", [1, 3])
def test_scores_of_samples_that_kept_their_input(form: str, modalities: int, micro: int) -> None:
    """S^m = B · mean over the kept samples; the last mean where there is none; padding counts for nothing."""
    rng = np.random.default_rng(modalities)
    names, B, steps = NAMES[:modalities], 12, 4
    s = rng.uniform(0.1, 1, size=(steps, modalities, B))
    lost = rng.uniform(size=(steps, modalities, B)) < 0.4
    lost[2, 0] = True  # the whole batch without the first modality
    real = np.ones((steps, B), bool)
    real[1, -2:] = False
    means = np.full(modalities, np.nan)
    parts = [np.arange(B)[i::micro] for i in range(micro)]
    modulation = Modulation(names, Lose([]), form=form)
    for t in range(steps):
        masks = [[torch.from_numpy(lost[i][:, part]) for i in range(steps)] for part in parts]
        for part, own in zip(parts, masks, strict=True):
            modulation.rules[0].masks = own
            ids = torch.from_numpy(part)
            modulation.inputs({m: torch.zeros(len(part), 1) for m in names}, ids)
            given = {m: torch.from_numpy(s[t, i, part]) for i, m in enumerate(names)}
            weights = torch.from_numpy(real[t, part]).float()
            modulation.forward({m: torch.zeros(len(part), 1) for m in names}, given, ids, weights)
        modulation.backward({m: nn.Identity() for m in names})
        for m in range(modalities):
            kept = s[t, m][real[t] & ~lost[t, m]]
            means[m] = kept.mean() if len(kept) else means[m]
        row = modulation.telemetry()
        np.testing.assert_allclose([row[f"score/{m}"].item() for m in names], means, rtol=1e-12)
        rho = reference_ratio(means * real[t].sum(), form)
        np.testing.assert_allclose([row[f"rho/{m}"].item() for m in names], rho, rtol=1e-10)
        assert [row[f"dropped/{m}"].item() for m in names] == [(lost[t, m] & real[t]).sum() for m in range(modalities)]


def test_the_examples_of_the_documentation() -> None:
    """docs/methods.md, section "An example by hand": every number in it."""
    head = make_fusion("concat", {"audio": 1, "visual": 1}, 2)
    with torch.no_grad():
        head.classifier.weight.copy_(torch.tensor([[1.0, 0.5], [0.0, 0.0]]))
        head.classifier.bias.zero_()
    log4 = math.log(4)
    features = {"audio": torch.tensor([[log4], [-log4]]), "visual": torch.tensor([[0.0], [2 * log4]])}
    labels = torch.tensor([0, 1])
    alone = unimodal_scores(unimodal_logits(head, features), labels)
    assert alone["audio"].tolist() == pytest.approx([0.8, 0.8])
    assert alone["visual"].tolist() == pytest.approx([0.5, 0.2])
    modulation = Modulation(("audio", "visual"))
    modulation.forward(features, alone, torch.arange(2))
    modulation.backward({"audio": nn.Identity(), "visual": nn.Identity()})
    row = {name: value.item() for name, value in modulation.telemetry().items()}
    assert (row["score/audio"], row["score/visual"]) == pytest.approx((0.8, 0.35))
    assert (row["rho/audio"], row["rho/visual"]) == pytest.approx((2.2857, 0.4375), abs=5e-5)
    rho = torch.tensor([row["rho/audio"], row["rho/visual"]], dtype=torch.float64)
    assert OPM(q_base=0.5, lam=0.5).probability(rho).tolist() == pytest.approx([0.7145, 0], abs=5e-5)
    assert OGM(alpha=0.8).coefficient(rho).tolist() == pytest.approx([0.3136, 1], abs=5e-5)
    assert OGM(alpha=0.8, form="cvpr").coefficient(rho).tolist() == pytest.approx([0.0503, 1], abs=5e-5)
    assert OGMStar(alpha=0.8).coefficient(rho).tolist() == pytest.approx([1, 1.6864], abs=5e-5)
    sums = torch.tensor([1.6, 0.7], dtype=torch.float64)
    difference = discrepancy(sums, "difference")
    assert difference.tolist() == pytest.approx([0.9, -0.9])
    assert OGM(alpha=0.8).coefficient(difference, 0.0).tolist() == pytest.approx([0.4270, 1], abs=5e-5)
    third = discrepancy(torch.tensor([1.6, 0.7, 1.0], dtype=torch.float64))
    assert third.tolist() == pytest.approx([1.9429, 0.5688, 1.0268], abs=5e-5)
    kept = discrepancy(torch.tensor([2 * 0.8, 2 * 0.2], dtype=torch.float64))
    assert kept.tolist() == pytest.approx([4, 0.25])
