"""What a user should be told: a combination that cannot work, a number that shows something is wrong."""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch.optim import Optimizer

from bmlpipe.train.modulation.discrepancy import NEUTRAL, Form
from bmlpipe.train.modulation.modulation import Modulation
from bmlpipe.train.modulation.rules.gradient_factor import GradientFactor
from bmlpipe.train.modulation.rules.ogm import OGM
from bmlpipe.train.modulation.rules.opm import OPM

# Optimisers that divide each gradient by its own size, by a word in the name of the class.
_ADAPTIVE = ("adam", "adagrad", "adadelta", "rmsprop", "adafactor", "lion", "lamb")

# A mean score below this is of a branch that has collapsed (float32 underflow), not of data.
_COLLAPSED = 1e-30

# A factor below this is as good as 0.
_NOTHING = 0.01


def optimizer_advice(modulation: Modulation, optimizer: Optimizer) -> str | None:
    """A warning where the optimiser undoes OGM, else None."""
    names = [base.__name__ for base in type(optimizer).__mro__]
    adaptive = any(word in name.lower() for name in names for word in _ADAPTIVE)
    undone = [rule for rule in modulation.rules if isinstance(rule, GradientFactor) and rule.apply == "gradient"]
    if not adaptive or not undone:
        return None
    return (
        f"{names[0]} divides a gradient by its own running size, so a constant factor k cancels: "
        f"{type(undone[0]).__name__} will hardly change anything. Make k a factor of the encoder's learning rate "
        "(apply=lr), or use SGD with momentum (the paper's), or OPM"
    )


def rule_advice(modulation: Modulation) -> list[str]:
    """Warnings about options with which a modality may stop learning; one sentence each."""
    found = []
    for rule in modulation.rules:
        if isinstance(rule, OGM) and (message := _zero_k(rule, modulation.form)):
            found.append(message)
        if isinstance(rule, OPM) and rule.q_base * (1 + rule.lam) >= 1 and rule.lam > 0:
            found.append(
                f"q_base is {rule.q_base:g} and lam {rule.lam:g}: q reaches 1, and the encoder ahead then gets no "
                "gradient at all; choose them so that q_base · (1 + lam) is below 1"
            )
    return found


def _zero_k(rule: OGM, form: Form) -> str | None:
    """From which ρ on k is 0, if it is; z tends to 1 for large ρ in both shapes."""
    neutral, alpha = NEUTRAL[form], rule.alpha
    if rule.form == "cvpr":
        largest = 1 - math.tanh(alpha * neutral)
        if largest >= _NOTHING:
            return None
        return f"alpha is {alpha:g}: k = 1 − tanh(α·ρ) is at most {largest:.1g} for every modality ahead; lower alpha"
    if alpha < 1:
        return None
    if alpha == 1:
        start = "tends to 0 as ρ grows"
    else:
        start_at = neutral + math.atanh(1 / alpha) if rule.z == "tanh" else max(neutral, -math.log(alpha - 1))
        start = f"is 0 from ρ = {start_at:.3g} on"
    grows = ", which as a sum over the batch is soon that large" if form == "difference" else ""
    return (
        f"alpha is {alpha:g}: k {start}{grows}, and that encoder then learns nothing (but its noise); below 1, α keeps "
        "k above 1 − α"
    )


def row_advice(row: Mapping[str, float], modulation: Modulation | None = None) -> list[str]:
    """Warnings about one step's numbers.

    Args:
        row: `Modulation.telemetry` as floats on the host, of one step.
        modulation: What made the row: a k of 0 is a fault of OGM's only. None: OGM, for all that is known.

    Returns:
        One sentence a fault, its first word the number's name, so that it can be said once; empty where all is well.
    """
    ogm = modulation is None or any(isinstance(rule, OGM) for rule in modulation.rules)
    found = []
    for name, value in row.items():
        kind, _, modality = name.partition("/")
        if kind == "rho" and not math.isfinite(value):
            found.append(f"{name} is {value}: features or logits are not finite; no modulation at this step")
        elif kind == "score" and value < _COLLAPSED:
            found.append(
                f"{name} is {value:.3g}: this branch has collapsed, and every other modality is far ahead of it"
            )
        elif kind == "k" and value == 0 and ogm:
            found.append(
                f"{name} is 0: {modality}'s encoder learns nothing at this step; a smaller alpha keeps k above 0"
            )
        elif kind == "grad_norm" and not math.isfinite(value):
            found.append(f"{name} is {value}: the gradient of {modality}'s encoder is not finite")
        elif kind == "grad_norm" and value == 0 and not row.get(f"dropped/{modality}"):
            found.append(f"{name} is 0: no gradient reaches {modality}'s encoder")
    return found
