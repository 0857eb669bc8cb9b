"""What a user should be told: a combination that cannot work, a number that shows something is wrong."""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch.optim import Optimizer

from bmlpipe.train.modulation.combine import Modulation
from bmlpipe.train.modulation.ogm import OGM

# Optimisers that divide each gradient by its own size, by a word in the name of the class.
_ADAPTIVE = ("adam", "adagrad", "adadelta", "rmsprop", "adafactor", "lion", "lamb")

# A ratio above this comes from a batch score of (almost) zero, not from data.
_ABSURD = 1e30


def optimizer_advice(modulation: Modulation, optimizer: Optimizer) -> str | None:
    """A warning where the optimiser undoes OGM, else None."""
    names = [base.__name__ for base in type(optimizer).__mro__]
    adaptive = any(word in name.lower() for name in names for word in _ADAPTIVE)
    if not adaptive or not any(isinstance(rule, OGM) for rule in modulation.rules):
        return None
    return (
        f"{names[0]} divides a gradient by its own running size, so a constant factor k cancels: OGM will hardly damp "
        "anything. Use SGD with momentum (the paper's), or OPM"
    )


def row_advice(row: Mapping[str, float]) -> list[str]:
    """Warnings about one step's numbers.

    Args:
        row: `Modulation.telemetry` as floats on the host, of one step.

    Returns:
        One sentence a fault; empty where all is well.
    """
    found = []
    for name, value in row.items():
        kind, _, modality = name.partition("/")
        if kind == "rho" and not math.isfinite(value):
            found.append(f"{name} is {value}: features or logits are not finite; no modulation at this step")
        elif kind == "rho" and abs(value) > _ABSURD:
            found.append(f"{name} is {value:.3g}: another modality's batch score is 0, its branch has collapsed")
        elif kind == "grad_norm" and not math.isfinite(value):
            found.append(f"{name} is {value}: the gradient of {modality}'s encoder is not finite")
        elif kind == "grad_norm" and value == 0:
            found.append(f"{name} is 0: no gradient reaches {modality}'s encoder")
    return found
