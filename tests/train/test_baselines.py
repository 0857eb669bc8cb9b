"""ModDrop and the neuron dropouts: formulas against NumPy, frequencies, and masks that do not depend on the ranks.

Statistical tests accept at 5 standard deviations (two-sided error rate 6e-7 each) or at p > 1e-6; the numbers are
keyed, so that a test that passes once passes always.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from scipy import stats
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from bmlpipe.train.modulation import Modulation, Rule, StepContext
from bmlpipe.train.modulation.rules.dropouts import (
    AnnealedDropout,
    CurriculumDropout,
    Dropout,
    EvolutionalDropout,
    draw_counts,
    draw_probabilities,
)
from bmlpipe.train.modulation.rules.moddrop import ModDrop

NAMES = ("audio", "visual", "flow")
SIGMAS = 5
EVERY: list[Rule] = [
    ModDrop(),
    Dropout(),
    AnnealedDropout(anneal_length=10),
    CurriculumDropout(curriculum_gamma=0.1),
    EvolutionalDropout(),
]


def step(count: int, *, names: int = 2, ids: Tensor | None = None, **key: Any) -> StepContext:
    given = {"seed": 0, "epoch": 0, "index": 7} | key
    ids = torch.arange(count) if ids is None else ids
    return StepContext(NAMES[:names], rho=torch.ones(names, dtype=torch.float64), neutral=1.0, ids=ids, **given)


def features(count: int, dims: tuple[int, ...] = (6, 4)) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(2)
    scale = {m: torch.linspace(0.2, 3, dim) for m, dim in zip(NAMES, dims)}
    return {m: torch.randn(count, len(scale[m]), generator=generator) * scale[m] for m in scale}


def named(rule: Rule) -> str:
    return type(rule).__name__


# ModDrop


@pytest.mark.parametrize(("p", "modalities"), [(0.5, 2), (0.3, 2), (0.6, 3)])
def test_moddrop_drops_whole_features_with_its_probability_and_never_all(p: float, modalities: int) -> None:
    count = 50_000
    now = step(count, names=modalities)
    out = ModDrop(moddrop_p=p).forward({m: torch.ones(count, 3) for m in NAMES[:modalities]}, now)
    lost = np.stack([(out[m] == 0).numpy() for m in NAMES[:modalities]])
    assert (lost.all(axis=2) == lost.any(axis=2)).all()
    lost = lost[:, :, 0]
    assert not lost.all(axis=0).any()
    assert np.array_equal(lost, now.dropped.numpy())
    share = p - p**modalities
    np.testing.assert_allclose(now.q, share)
    assert (abs(lost.mean(axis=1) - share) < SIGMAS * math.sqrt(share * (1 - share) / count)).all()
    # The number of modalities lost is binomial, but for those that would lose all and lose none.
    expected = stats.binom.pmf(range(modalities), modalities, p)
    expected[0] += p**modalities
    found = np.bincount(lost.sum(axis=0), minlength=modalities)
    assert stats.chisquare(found, expected * count).pvalue > 1e-6


def test_moddrop_neither_rescales_nor_reads_rho() -> None:
    given = features(200)
    outs = []
    for ratio in (1.0, 9.0):
        now = step(200)
        now.rho = torch.tensor([ratio, 1 / ratio], dtype=torch.float64)
        outs.append(ModDrop().forward(given, now))
    for m, out in outs[0].items():
        assert torch.equal(out, outs[1][m])
        kept = (out != 0).any(dim=1)
        assert 0 < kept.sum() < 200
        assert torch.equal(out[kept], given[m][kept])


# Dropout of neurons


@pytest.mark.parametrize("p", [0.1, 0.5, 0.8])
def test_dropout_of_single_neurons(p: float) -> None:
    count, dim = 5000, 16
    now = step(count)
    out = Dropout(drop_p=p).forward({m: torch.ones(count, dim) for m in NAMES[:2]}, now)
    assert now.q.tolist() == [p, p]
    assert now.dropped is None  # no sample loses a modality
    zeros = np.stack([(out[m] == 0).numpy() for m in NAMES[:2]])
    for m in NAMES[:2]:
        assert set(out[m].unique().tolist()) == {0.0, float(torch.tensor(1 / (1 - p)))}
    deviation = math.sqrt(p * (1 - p))
    assert abs(zeros.mean() - p) < SIGMAS * deviation / math.sqrt(zeros.size)
    assert (abs(zeros.mean(axis=1) - p) < SIGMAS * deviation / math.sqrt(count)).all()  # each neuron
    # A neuron's fate says nothing about its neighbour's, the next sample's or the other modality's.
    a = zeros[0].astype(float)
    for b, c in ((a[:, :-1], a[:, 1:]), (a[:-1], a[1:]), (a, zeros[1].astype(float))):
        assert abs(np.corrcoef(b.ravel(), c.ravel())[0, 1]) < SIGMAS / math.sqrt(b.size)


def test_dropout_keeps_the_mean_and_passes_gradient_through_what_is_kept() -> None:
    given = {m: value.requires_grad_() for m, value in features(20_000).items()}
    out = Dropout(drop_p=0.4).forward(given, step(20_000))
    for m, value in out.items():
        error = SIGMAS * (value - given[m]).detach().std(dim=0) / math.sqrt(len(value))
        assert (abs((value - given[m]).mean(dim=0)) < error).all()
        value.sum().backward()
        expected = torch.where(value == 0, 0.0, torch.tensor(1 / 0.6))
        torch.testing.assert_close(given[m].grad, expected)


def test_a_neuron_that_is_not_finite_is_dropped_to_zero() -> None:
    out = Dropout(drop_p=0.5).forward({m: torch.full((40, 5), math.nan) for m in NAMES[:2]}, step(40))
    assert set(torch.nan_to_num(out["audio"], nan=7.0).unique().tolist()) == {0.0, 7.0}


def test_annealed_dropout_falls_linearly_to_zero() -> None:
    rule = AnnealedDropout(drop_p=0.6, anneal_length=4)
    assert [rule.probability(t) for t in range(6)] == pytest.approx([0.6, 0.45, 0.3, 0.15, 0, 0])
    by_step = AnnealedDropout(drop_p=0.6, anneal_length=4, anneal_unit="step")
    for key, p in (({"epoch": 1, "index": 3}, (0.45, 0.15)), ({"epoch": 9, "index": 0}, (0.0, 0.6))):
        for one, expected in zip((rule, by_step), p):
            now = step(30_000, **key)
            out = one.forward(features(30_000), now)
            assert now.q.tolist() == pytest.approx([expected] * 2)
            share = float((out["audio"] == 0).double().mean())
            assert abs(share - expected) <= SIGMAS * math.sqrt(expected * (1 - expected) / out["audio"].numel())


def test_annealed_dropout_at_its_end_is_the_identity() -> None:
    given = features(10)
    out = AnnealedDropout(anneal_length=3).forward(given, step(10, epoch=3))
    assert all(torch.equal(out[m], given[m]) for m in given)


def test_curriculum_dropout_retains_by_its_equation() -> None:
    rule = CurriculumDropout(retain=0.7, curriculum_gamma=0.01)
    times = np.array([0, 1, 10, 100, 10_000])
    theta = (1 - 0.7) * np.exp(-0.01 * times) + 0.7
    np.testing.assert_allclose([1 - rule.probability(int(t)) for t in times], theta, rtol=1e-12)
    assert rule.probability(0) == 0
    now = step(30_000, index=100)
    out = rule.forward(features(30_000), now)
    p = 1 - theta[3]
    share = float((out["visual"] == 0).double().mean())
    assert abs(share - p) < SIGMAS * math.sqrt(p * (1 - p) / out["visual"].numel())
    assert now.q.tolist() == pytest.approx([p, p])


# Evolutional dropout


def test_evolutional_probabilities_match_the_paper() -> None:
    x = features(500)["audio"].numpy().astype(np.float64)
    roots = np.sqrt((x**2).mean(axis=0))
    p = draw_probabilities(torch.from_numpy((x**2).sum(axis=0)))  # sums and means give the same
    np.testing.assert_allclose(p, roots / roots.sum(), rtol=1e-12)
    np.testing.assert_allclose(draw_probabilities(torch.zeros(5, dtype=torch.float64)), 0.2)


def test_the_draws_are_multinomial() -> None:
    p = np.array([0.5, 0.3, 0.15, 0.05])
    numbers = torch.from_numpy(np.random.default_rng(0).random((20_000, 6)))
    counts = draw_counts(torch.from_numpy(p), numbers).numpy()
    assert (counts.sum(axis=1) == 6).all()
    assert stats.chisquare(counts.sum(axis=0), p * counts.sum()).pvalue > 1e-6
    for i in range(4):  # each neuron's count is binomial
        expected = stats.binom.pmf(range(7), 6, p[i])
        found = np.bincount(counts[:, i].astype(int), minlength=7)
        tail = 1 + np.flatnonzero(expected * len(counts) > 50)[-1]  # counts above that go into one bin
        found, expected = (np.append(values[:tail], values[tail:].sum()) for values in (found, expected))
        assert stats.chisquare(found[expected > 0], expected[expected > 0] * len(counts)).pvalue > 1e-6
    edges = draw_counts(
        torch.from_numpy(p), torch.tensor([[0.0, np.nextafter(1, 0)], [0.5, 0.4999]], dtype=torch.float64)
    )
    assert edges.tolist() == [[1, 0, 0, 1], [1, 1, 0, 0]]


def test_evolutional_dropout_multiplies_by_how_often_each_neuron_was_drawn() -> None:
    count = 20_000
    given = features(count, (8, 5))
    now = step(count)
    out = EvolutionalDropout(draws=0.5).forward(given, now)
    for i, (m, k) in enumerate((("audio", 4), ("visual", 2))):
        x = given[m].double().numpy()
        p = np.sqrt((x**2).mean(axis=0)) / np.sqrt((x**2).mean(axis=0)).sum()
        factor = out[m].double().numpy() / x
        counts = factor * k * p
        np.testing.assert_allclose(counts, counts.round(), atol=1e-4)
        np.testing.assert_allclose(counts.round().sum(axis=1), k)
        np.testing.assert_allclose(now.q[i], ((1 - p) ** k).mean(), rtol=1e-9)
        missed = (counts.round() == 0).mean(axis=0)
        error = SIGMAS * np.sqrt(np.maximum((1 - p) ** k * (1 - (1 - p) ** k), 1e-9) / count)
        assert (abs(missed - (1 - p) ** k) < error).all()
        deviation = np.sqrt((1 - p) / (k * p))  # of the factor, whose mean is 1
        assert (abs(factor.mean(axis=0) - 1) < SIGMAS * deviation / math.sqrt(count)).all()


def test_evolutional_dropout_takes_the_second_moments_of_all_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    given, ids = features(32), torch.arange(32)
    whole = EvolutionalDropout().forward(given, step(32))
    halves = []
    for own, other in ((slice(0, 12), slice(12, 32)), (slice(12, 32), slice(0, 12))):

        def all_reduce(moments: Tensor, other: slice = other) -> None:
            squares = [given[m][other].double().square().sum(dim=0) for m in ("audio", "visual")]
            moments += torch.cat(squares)

        monkeypatch.setattr(dist, "is_initialized", lambda: True)
        monkeypatch.setattr(dist, "all_reduce", all_reduce)
        part = {m: value[own] for m, value in given.items()}
        halves.append(EvolutionalDropout().forward(part, step(0, ids=ids[own])))
    for m in given:
        torch.testing.assert_close(torch.cat([half[m] for half in halves]), whole[m])


def test_padding_adds_nothing_to_the_second_moments() -> None:
    given = features(20)
    padded = {m: torch.cat([value, 100 * value[:3]]) for m, value in given.items()}
    now = step(23)
    now.weights = torch.cat([torch.ones(20), torch.zeros(3)])
    out = EvolutionalDropout().forward(padded, now)
    for m, value in EvolutionalDropout().forward(given, step(20)).items():
        torch.testing.assert_close(out[m][:20], value)


# All of them


@pytest.mark.parametrize("rule", [r for r in EVERY if not isinstance(r, EvolutionalDropout)], ids=named)
def test_masks_depend_on_seed_epoch_and_sample_only(rule: Rule) -> None:
    given, ids = features(64), torch.arange(64) + 1000

    def out(which: Tensor, **key: int) -> dict[str, Tensor]:
        return rule.forward({m: value[which] for m, value in given.items()}, step(0, ids=ids[which], **key))

    every = torch.arange(64)
    whole = out(every)
    first, second = out(every[:20]), out(every[20:])  # two ranks, or two micro-batches
    backwards = out(every.flip(0))
    for m in given:
        assert torch.equal(whole[m], torch.cat([first[m], second[m]]))
        assert torch.equal(whole[m], backwards[m].flip(0))
        for other in (out(every, epoch=1), out(every, seed=1)):
            assert not torch.equal(whole[m] == 0, other[m] == 0)
    assert not torch.equal((whole["audio"] == 0)[:, :4], whole["visual"] == 0)


@pytest.mark.parametrize("rule", EVERY, ids=named)
def test_a_resumed_loop_drops_the_same_neurons(rule: Rule) -> None:
    given = features(16)
    alone = {m: torch.full((16,), 0.5) for m in given}

    def steps(modulation: Modulation, count: int) -> list[dict[str, Tensor]]:
        outs = []
        for _ in range(count):
            modulation.epoch = modulation.index // 3
            outs.append(modulation.forward(given, alone, torch.arange(16) + 16 * modulation.index))
            modulation.backward({m: torch.nn.Linear(1, 1) for m in given})
        return outs

    straight = Modulation(NAMES[:2], rule, seed=4)
    expected = steps(straight, 8)
    first = Modulation(NAMES[:2], rule, seed=4)
    steps(first, 5)
    second = Modulation(NAMES[:2], rule, seed=4)
    second.load_state_dict(first.state_dict())
    for a, b in zip(expected[5:], steps(second, 3), strict=True):
        assert all(torch.equal(a[m], b[m]) for m in given)
    assert torch.equal(straight.row, second.row)


@pytest.mark.parametrize("rule", EVERY, ids=named)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_types_are_kept_and_no_value_is_read(
    rule: Rule, dtype: torch.dtype, no_host_reads: type[TorchDispatchMode]
) -> None:
    given = {m: value.to(dtype) for m, value in features(12).items()}
    with no_host_reads():
        out = rule.forward(dict(given), step(12))
    assert list(out) == list(given)
    for m, value in out.items():
        assert value.dtype == dtype
        assert value.shape == given[m].shape
        assert value.isfinite().all()
        assert (value == 0).any()


@pytest.mark.parametrize(
    ("rule", "options", "message"),
    [
        (ModDrop, {"moddrop_p": 1.0}, r"moddrop_p must be in \[0, 1\), not 1.0"),
        (Dropout, {"drop_p": -0.1}, r"drop_p must be in \[0, 1\), not -0.1"),
        (Dropout, {"drop_p": math.nan}, r"drop_p must be in \[0, 1\), not nan"),
        (AnnealedDropout, {"drop_p": 1}, r"drop_p must be in \[0, 1\), not 1"),
        (AnnealedDropout, {"anneal_length": 0}, "anneal_length must be at least 1, not 0"),
        (AnnealedDropout, {"anneal_unit": "hour"}, "anneal_unit must be one of epoch, step, not 'hour'"),
        (CurriculumDropout, {"retain": 0.0}, r"retain must be in \(0, 1\], not 0.0"),
        (CurriculumDropout, {"curriculum_gamma": -1.0}, "curriculum_gamma must be finite and at least 0, not -1.0"),
        (EvolutionalDropout, {"draws": 0.0}, "draws must be finite and above 0, not 0.0"),
        (EvolutionalDropout, {"draws": math.inf}, "draws must be finite and above 0, not inf"),
    ],
)
def test_options_out_of_range_are_refused(rule: type, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rule(**options)
