"""Warnings about combinations that cannot work, and about measured values that indicate a fault."""

from __future__ import annotations

import math
import re
from collections.abc import Callable

import pytest
import torch
from torch import nn

from bmlpipe.train.modulation import OGM, OPM, Modulation, OGMStar, Rule, optimizer_advice, row_advice, rule_advice
from bmlpipe.train.modulation.discrepancy import NEUTRAL

NAMES = ("audio", "visual")


@pytest.mark.parametrize(
    ("make", "rules", "warned"),
    [
        (torch.optim.AdamW, (OGM(),), "OGM"),
        (torch.optim.RMSprop, (OPM(), OGM()), "OGM"),
        (torch.optim.Adam, (OGMStar(),), "OGMStar"),
        (torch.optim.Adam, (OGM(apply="lr"), OPM()), ""),
        (torch.optim.Adam, (OPM(),), ""),
        (lambda p: torch.optim.SGD(p, 0.1, momentum=0.9), (OGM(),), ""),
    ],
)
def test_advice_on_optimisers(make: Callable[..., torch.optim.Optimizer], rules: tuple[Rule, ...], warned: str) -> None:
    advice = optimizer_advice(Modulation(NAMES, *rules), make(nn.Linear(1, 1).parameters()))
    assert (advice is not None) == bool(warned)
    assert advice is None or (f"k cancels: {warned} will" in advice and "apply=lr" in advice)


@pytest.mark.parametrize("form", ["ratio", "difference"])
@pytest.mark.parametrize("shape", ["tanh", "sigmoid"])
def test_advice_on_alpha_says_from_which_ratio_on_k_is_zero(form: str, shape: str) -> None:
    neutral = NEUTRAL[form]
    for alpha in (1.05, 1.5, 4.0):
        rule = OGM(alpha=alpha, z=shape)
        (advice,) = rule_advice(Modulation(NAMES, OPM(), rule, form=form))
        start = float(re.search(r"k is 0 for ρ ≥ (\S+?)[.,] ", advice)[1])
        at = rule.coefficient(torch.tensor([start * 1.01 + 1e-3, max(neutral + 1e-9, start * 0.99 - 1e-3)]), neutral)
        assert at[0] == 0
        assert at[1] > 0 or start == neutral
        assert ("sum over the batch" in advice) == (form == "difference")
    (advice,) = rule_advice(Modulation(NAMES, OGM(alpha=1, z=shape), form=form))
    assert "k tends to 0" in advice
    for rule in (OGM(alpha=0.99, z=shape), OGMStar(alpha=3, z=shape), OPM()):
        assert rule_advice(Modulation(NAMES, rule, form=form)) == []


def test_advice_on_the_form_of_2022_and_on_full_drops() -> None:
    (advice,) = rule_advice(Modulation(NAMES, OGM(form="cvpr", alpha=3)))
    assert "alpha is 3: k = 1 − tanh(α·ρ) is at most 0.005" in advice
    assert rule_advice(Modulation(NAMES, OGM(form="cvpr", alpha=0.8))) == []
    assert rule_advice(Modulation(NAMES, OGM(form="cvpr", alpha=3), form="difference")) == []  # k begins at 1 there
    (advice,) = rule_advice(Modulation(NAMES, OPM(q_base=0.8, lam=0.5)))
    assert "q reaches 1" in advice
    assert rule_advice(Modulation(NAMES)) == []


GOOD = {"score/audio": 0.4, "rho/audio": 1.2, "rho/visual": 0.8, "grad_norm/audio": 1.0, "k/audio": 0.2}


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("rho/audio", math.nan, "not finite"),
        ("score/visual", 0.0, "this branch has collapsed"),
        ("k/audio", 0.0, "the encoder of audio learns nothing"),
        ("grad_norm/visual", math.inf, "the encoder of visual is not finite"),
        ("grad_norm/visual", 0.0, "no gradient reaches the encoder of visual"),
    ],
)
def test_advice_on_rows(name: str, value: float, message: str) -> None:
    assert row_advice(GOOD) == []
    (found,) = row_advice({**GOOD, name: value})
    assert message in found
    assert found.startswith(name)


def test_there_is_no_advice_on_sound_options() -> None:
    dropped = {**GOOD, "dropped/visual": 16.0, "grad_norm/visual": 0.0}  # the whole batch went without
    assert row_advice(dropped) == []
    assert row_advice({**GOOD, "k/audio": 0.0}, Modulation(NAMES, OPM())) == []  # not a k of OGM's
    assert len(row_advice({**GOOD, "k/audio": 0.0}, Modulation(NAMES, OGM()))) == 1
