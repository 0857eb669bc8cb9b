"""What OPM does to features and inputs, and the keyed random numbers that it draws.

Each statistical test rejects a correct implementation with probability ERROR (exact binomial, χ², normal,
Kolmogorov–Smirnov and Fisher-z tests, two-sided). The numbers are keyed, so a test that passes once passes always.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from bmlpipe.manifests.common.errors import OptionError
from bmlpipe.train.modulation import OPM, Rule, StepContext, keyed
from bmlpipe.train.modulation.discrepancy import NEUTRAL, discrepancy

NAMES = ("audio", "visual")
ERROR = 1e-6


def assert_share(count: float, of: int, share: float) -> None:
    """An exact binomial test."""
    assert stats.binomtest(int(count), of, share).pvalue > ERROR, (count, of, share)


def assert_uncorrelated(a: np.ndarray, b: np.ndarray) -> None:
    """Fisher's z of the correlation, normal with deviation 1/√(n − 3) where there is none."""
    z = math.atanh(np.corrcoef(a, b)[0, 1]) * math.sqrt(len(a) - 3)
    assert 2 * stats.norm.sf(abs(z)) > ERROR


def step(rho: list[float], *, ids: Tensor | None = None, seed: int = 0, epoch: int = 0, index: int = 0) -> StepContext:
    names = ("audio", "visual", "flow", "rgb_diff")[: len(rho)]
    return StepContext(names, seed, epoch, index, torch.tensor(rho, dtype=torch.float64), 1.0, ids)


def ones(samples: int, dims: tuple[int, ...] = (2, 3)) -> dict[str, Tensor]:
    names = ("audio", "visual", "flow", "rgb_diff")
    return {names[i]: torch.ones(samples, dim) for i, dim in enumerate(dims)}


def dropped(features: Tensor) -> np.ndarray:
    """Which samples lost the feature; a feature is lost whole or not at all."""
    zero = (features == 0).numpy()
    assert (zero.all(axis=1) == zero.any(axis=1)).all()
    return zero[:, 0]


# Keyed numbers


def test_uniform_is_splitmix64() -> None:
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]  # seed 1234567
    got = keyed.uniform(torch.arange(4), 1234567)
    assert got.tolist() == [(value >> 11) / 2**53 for value in published]
    with np.errstate(over="ignore"):
        ids = np.array([-(2**63), -1, 0, 7, 2**40, 2**63 - 1])
        stream = 2**63 - 25
        z = (ids.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(stream)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z ^= z >> np.uint64(31)
    expected = (z >> np.uint64(11)).astype(np.float64) / 2**53
    assert keyed.uniform(torch.from_numpy(ids), stream).tolist() == expected.tolist()


def test_uniform_numbers_are_uniform_and_streams_independent() -> None:
    ids = torch.arange(100_000)
    streams = [keyed.uniform(ids, keyed.key(0, "drop", epoch, m)).numpy() for epoch in (0, 1) for m in NAMES]
    for numbers in streams:
        assert stats.kstest(numbers, "uniform").pvalue > ERROR
        assert_uncorrelated(numbers[1:], numbers[:-1])
    for i in range(4):
        for j in range(i):
            assert_uncorrelated(streams[i], streams[j])


def test_keys_of_different_parts_differ() -> None:
    keys = [(0, "1"), (0, 1), ("0", 1), (0, "1", ""), (1, 0), (10,), (1, "0")]
    assert len({keyed.key(*parts) for parts in keys}) == len(keys)
    assert all(0 <= keyed.key(*parts) < 2**63 for parts in keys)
    chances = [keyed.chance(0, "p_exe", i) for i in range(20_000)]
    assert stats.kstest(chances, "uniform").pvalue > ERROR


# OPM


@pytest.mark.parametrize("target", ["feature", "input"])
@pytest.mark.parametrize("ratio", [[1.2, 0.9], [3.0, 0.4], [2.0, 1.5, 0.3], [0.9, 1.4, 1.1, 0.7]])
def test_the_share_of_dropped_samples_is_q(ratio: list[float], target: str) -> None:
    samples = 50_000
    rule = OPM(q_base=0.4, lam=0.5, target=target)
    now = step(ratio, ids=torch.arange(samples))
    given = ones(samples, (2, 3, 1, 2)[: len(ratio)])
    out = rule.forward(given, now) if target == "feature" else rule.inputs(given, now)
    q = rule.probability(now.rho)
    assert torch.equal(now.q, q)
    for i, m in enumerate(now.modalities):
        lost = dropped(out[m])
        assert now.dropped[i].tolist() == lost.tolist()
        assert (float(q[i]) > 0) == (ratio[i] > 1)
        assert_share(lost.sum(), samples, float(q[i]))
        assert set(out[m].unique().tolist()) <= {0.0, 1.0}  # the others are as they were


def test_drops_of_two_modalities_are_independent() -> None:
    now = step([2.0, 2.0, 0.1], ids=torch.arange(100_000))
    out = OPM().forward(ones(100_000, (1, 1, 1)), now)
    assert_uncorrelated(dropped(out["audio"]), dropped(out["visual"]))


@pytest.mark.parametrize("modalities", [2, 3, 4])
@pytest.mark.parametrize("unit", ["sample", "batch"])
@pytest.mark.parametrize("target", ["feature", "input"])
def test_no_sample_ever_loses_every_modality(modalities: int, unit: str, target: str) -> None:
    """For ρ of any scores, in both forms, and even if a custom rule made every ρ high."""
    rng = np.random.default_rng(modalities)
    extreme = OPM(q_base=0.5, lam=1.0, unit=unit) if target == "feature" else OPM(q_base=0.99, lam=0, target=target)
    ratios = [torch.full((modalities,), 9.0, dtype=torch.float64)] * 20
    neutrals = [1.0] * 20
    for form in ("ratio", "difference"):
        ratios += [discrepancy(torch.from_numpy(rng.uniform(size=modalities)), form) for _ in range(20)]
        neutrals += [NEUTRAL[form]] * 20
    some = False
    for index, (ratio, neutral) in enumerate(zip(ratios, neutrals, strict=True)):
        now = step(ratio.tolist(), ids=torch.arange(200), index=index)
        now.neutral = neutral
        given = ones(200, (1, 2, 1, 1)[:modalities])
        out = extreme.forward(given, now) if target == "feature" else extreme.inputs(given, now)
        lost = np.stack([dropped(out[m]) for m in now.modalities])
        assert not lost.all(axis=0).any()
        some |= bool(lost.any())
    assert some


def test_inputs_of_any_shape_are_dropped_whole() -> None:
    inputs = {"audio": torch.ones(60, 1, 1, 5, 4), "visual": torch.ones(60, 2, 3, 4, 4)}
    now = step([2.0, 0.5], ids=torch.arange(60))
    rule = OPM(target="input", rescale=True)
    out = rule.inputs(inputs, now)
    assert 0 < now.dropped[0].sum() < 60
    assert dropped(out["audio"].flatten(1)).tolist() == now.dropped[0].tolist()
    assert torch.equal(out["visual"], inputs["visual"])
    features = rule.forward(ones(60), now)  # nothing more is dropped, but everything rescaled
    theta = 2 * float(now.q[0]) / 5
    assert features["audio"].unique().tolist() == pytest.approx([1 / (1 - theta)])
    assert OPM().inputs(inputs, now) is inputs


def test_masks_depend_on_seed_epoch_and_sample_only() -> None:
    ids = torch.arange(64)

    def lost(order: Tensor, **key: int) -> set[int]:
        out = OPM().forward(ones(len(order)), step([2.0, 0.5], ids=order, **key))
        return set(order[torch.from_numpy(dropped(out["audio"]))].tolist())

    whole = lost(ids)
    assert whole == lost(ids.flip(0), index=7)
    assert whole == lost(ids[:20]) | lost(ids[20:])  # however it is split into ranks and micro-batches
    assert len({frozenset(s) for s in (whole, lost(ids, epoch=1), lost(ids, seed=1))}) == 3


def test_the_batch_unit_drops_all_or_none() -> None:
    steps = 2000
    lost = []
    for index in range(steps):
        now = step([1.7, 0.5], ids=torch.arange(4), index=index)
        lost.append(dropped(OPM(q_base=0.3, unit="batch").forward(ones(4), now)["audio"]).mean())
    q = float(OPM(q_base=0.3).probability(now.rho)[0])
    assert set(lost) == {0.0, 1.0}
    assert_share(sum(lost), steps, q)


def test_p_exe_is_drawn_once_per_batch() -> None:
    acted = []
    for index in range(2000):
        now = step([2.0, 0.5], ids=torch.arange(32), index=index)
        OPM(p_exe=0.7).forward(ones(32), now)
        acted.append(float(now.q[0]) > 0)
        assert (now.dropped is not None) == acted[-1]
    assert_share(sum(acted), 2000, 0.7)


def test_rescaling_divides_by_the_expected_share_that_is_kept() -> None:
    now = step([2.0, 0.5], ids=torch.arange(50))
    rule = OPM(q_base=0.4, lam=0.5, rescale=True)
    out = rule.forward(ones(50, (2, 6)), now)
    theta = (2 * float(now.q[0]) + 6 * 0) / 8
    kept = out["audio"][~torch.from_numpy(dropped(out["audio"]))]
    torch.testing.assert_close(kept, torch.full_like(kept, 1 / (1 - theta)))
    torch.testing.assert_close(out["visual"], torch.full((50, 6), 1 / (1 - theta)))


@pytest.mark.parametrize(("epoch", "acts"), [(0, False), (5, False), (6, True), (9, True), (10, False)])
def test_rules_act_only_in_their_range_of_epochs(epoch: int, acts: bool) -> None:
    now = step([2.0, 0.5], ids=torch.arange(32), epoch=epoch)
    out = OPM(epochs=(6, 10)).forward(ones(32), now)
    assert (float(now.q[0]) > 0) == acts == dropped(out["audio"]).any()


def test_a_dropped_sample_gives_its_encoder_no_gradient() -> None:
    features = {m: value.requires_grad_() for m, value in ones(40).items()}
    out = OPM().forward(features, step([2.0, 0.5], ids=torch.arange(40)))
    sum(value.sum() for value in out.values()).backward()
    lost = torch.from_numpy(dropped(out["audio"].detach()))
    assert 0 < lost.sum() < 40
    torch.testing.assert_close(features["audio"].grad, (~lost).float()[:, None].expand(-1, 2))
    torch.testing.assert_close(features["visual"].grad, torch.ones(40, 3))


def test_a_feature_that_is_not_finite_is_dropped_to_zero() -> None:
    features = ones(40)
    features["audio"][:] = math.nan
    out = OPM(q_base=1.0).forward(features, step([2.0, 0.5], ids=torch.arange(40)))
    assert (out["audio"] == 0).all()


@pytest.mark.parametrize(
    ("rule", "options", "message"),
    [
        (OPM, {"q_base": 1.2}, r"q_base must be in \[0, 1\], not 1.2"),
        (OPM, {"lam": -0.1}, "lam must be finite and at least 0, not -0.1"),
        (OPM, {"p_exe": math.nan}, r"p_exe must be in \[0, 1\], not nan"),
        (OPM, {"z": "relu"}, "z must be one of tanh, sigmoid, not 'relu'"),
        (OPM, {"unit": "clip"}, "unit must be one of sample, batch, not 'clip'"),
        (OPM, {"target": "image"}, "target must be one of feature, input, not 'image'"),
        (OPM, {"target": "input", "same_step": True}, "not known before the encoders"),
        (OPM, {"target": "input", "q_base": 0.5, "lam": 1}, r"q_base · \(1 \+ lam\) is 1 .* never measured again"),
        (OPM, {"same_step": "off"}, "same_step must be true or false, not 'off'"),
        (OPM, {"rescale": 1}, "rescale must be true or false, not 1"),
        (OPM, {"q_base": True}, "q_base must be .* not True"),
        (OPM, {"lam": "high"}, "lam must be .* not 'high'"),
        (OPM, {"epochs": 5}, r"epochs must be a pair \(first, end\), not 5"),
        (OPM, {"epochs": (5, 5)}, r"epochs must be .* not \(5, 5\)"),
    ],
)
def test_options_out_of_range_are_refused(rule: type[Rule], options: dict, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        rule(**options)
