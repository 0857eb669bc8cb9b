"""Warnings: combinations of options that cannot work, and measured values that indicate a fault."""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch.optim import Optimizer

from bmlpipe.train.modulation.discrepancy import NEUTRAL, Form
from bmlpipe.train.modulation.modulation import Modulation
from bmlpipe.train.modulation.rules.gradient_factor import GradientFactor
from bmlpipe.train.modulation.rules.ogm import OGM
from bmlpipe.train.modulation.rules.opm import OPM

# Words in the class names of optimisers that divide each gradient by its own running size.
_ADAPTIVE = ("adam", "adagrad", "adadelta", "rmsprop", "adafactor", "lion", "lamb")

# A mean score below this comes from a collapsed branch (float32 underflow), not from data.
_COLLAPSED = 1e-30

# A factor k below this is practically 0.
_PRACTICALLY_ZERO = 0.01


def optimizer_advice(modulation: Modulation, optimizer: Optimizer) -> str | None:
    """Return a warning if the optimiser cancels the factor of OGM or OGM*, else None."""
    names = [base.__name__ for base in type(optimizer).__mro__]
    adaptive = any(word in name.lower() for name in names for word in _ADAPTIVE)
    cancelled = [rule for rule in modulation.rules if isinstance(rule, GradientFactor) and rule.apply == "gradient"]
    if not adaptive or not cancelled:
        return None
    return (
        f"{names[0]} divides a gradient by its own running size, so a constant factor k cancels: "
        f"{type(cancelled[0]).__name__} will hardly change anything. Make k a factor of the encoder's learning rate "
        "(apply=lr), use SGD with momentum as the paper does, or use OPM"
    )


def rule_advice(modulation: Modulation) -> list[str]:
    """Return warnings about options with which an encoder may stop learning, one sentence each."""
    found = []
    for rule in modulation.rules:
        if isinstance(rule, OGM) and (message := _zero_k(rule, modulation.form)):
            found.append(message)
        if isinstance(rule, OPM) and rule.q_base * (1 + rule.lam) >= 1 and rule.lam > 0:
            found.append(
                f"q_base is {rule.q_base:g} and lam is {rule.lam:g}: q reaches 1, and the dominant encoder then gets "
                "no gradient at all. Choose them so that q_base · (1 + lam) is below 1"
            )
    return found


def _zero_k(rule: OGM, form: Form) -> str | None:
    """Return a warning that names the ρ from which k is 0, if there is one; z tends to 1 for large ρ in both shapes."""
    neutral, alpha = NEUTRAL[form], rule.alpha
    if rule.form == "cvpr":
        largest = 1 - math.tanh(alpha * neutral)
        if largest >= _PRACTICALLY_ZERO:
            return None
        return f"alpha is {alpha:g}: k = 1 − tanh(α·ρ) is at most {largest:.1g} for dominant modalities; lower alpha"
    if alpha < 1:
        return None
    if alpha == 1:
        start = "tends to 0 as ρ grows"
    else:
        start_at = neutral + math.atanh(1 / alpha) if rule.z == "tanh" else max(neutral, -math.log(alpha - 1))
        start = f"is 0 for ρ ≥ {start_at:.3g}"
    grows = ", and ρ is a sum over the batch that easily gets that large" if form == "difference" else ""
    return (
        f"alpha is {alpha:g}: k {start}{grows}. That encoder then learns nothing, apart from its noise. With α below "
        "1, k stays above 1 − α"
    )


def row_advice(row: Mapping[str, float], modulation: Modulation | None = None) -> list[str]:
    """Return warnings about the measured values of one step.

    Args:
        row: `Modulation.telemetry` of one step, as floats on the host.
        modulation: The modulation that made the row; k = 0 is a fault only with OGM. None: OGM is assumed.

    Returns:
        One sentence per fault, which begins with the name of the value, so that it can be logged once per name. Empty
        if there is no fault.
    """
    ogm = modulation is None or any(isinstance(rule, OGM) for rule in modulation.rules)
    found = []
    for name, value in row.items():
        kind, _, modality = name.partition("/")
        if kind == "rho" and not math.isfinite(value):
            found.append(f"{name} is {value}: features or logits are not finite, so this step is not modulated")
        elif kind == "score" and value < _COLLAPSED:
            found.append(f"{name} is {value:.3g}: this branch has collapsed, and every other modality dominates it")
        elif kind == "k" and value == 0 and ogm:
            found.append(
                f"{name} is 0: the encoder of {modality} learns nothing at this step; a smaller alpha keeps k above 0"
            )
        elif kind == "grad_norm" and not math.isfinite(value):
            found.append(f"{name} is {value}: the gradient of the encoder of {modality} is not finite")
        elif kind == "grad_norm" and value == 0 and not row.get(f"dropped/{modality}"):
            found.append(f"{name} is 0: no gradient reaches the encoder of {modality}")
    return found
