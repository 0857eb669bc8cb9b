"""The discrepancy between modalities: batch scores S^m to ratios ρ^m, and the function z of them (Eq. 7, Table 15)."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

#: `ratio` is Eq. 7; `difference` the variant of Table 15, a sum over the batch (report it with the batch size).
Form = Literal["ratio", "difference"]
#: z(ρ): `tanh` of the distance to the neutral point, or the plain `sigmoid` (Table 15).
Shape = Literal["tanh", "sigmoid"]

#: The value of ρ at which a modality is neither more nor less discriminative than the others.
NEUTRAL: dict[Form, float] = {"ratio": 1.0, "difference": 0.0}

# A batch score of exactly 0 (float32 underflow) would make the ratio infinite: it is divided by this instead.
_SMALLEST = torch.finfo(torch.float32).tiny


def discrepancy(sums: Tensor, form: Form = "ratio") -> Tensor:
    """ρ^m of the batch scores.

    ratio: ρ^m = 1/(M−1) · Σ_{j≠m} S^m / S^j; difference: ρ^m = 1/(M−1) · Σ_{j≠m} (S^m − S^j). Equal scores give the
    neutral point exactly. One S that is NaN makes every ρ NaN, which the rules take as neutral.

    Args:
        sums: S^m over the global batch, (M,), float64, ≥ 0.
        form: See `Form`.

    Returns:
        (M,), float64; NaN for M = 1.
    """
    rows, columns = sums[:, None], sums[None, :]
    pairs = rows / columns.clamp(min=_SMALLEST) if form == "ratio" else rows - columns
    others = len(sums) - 1
    return pairs.fill_diagonal_(0).sum(dim=1) / others if others else torch.full_like(sums, torch.nan)


def z(ratio: Tensor, shape: Shape, neutral: float) -> Tensor:
    """tanh(ρ − neutral), which is tanh(ρ − 1) for the ratio, or sigmoid(ρ)."""
    return torch.tanh(ratio - neutral) if shape == "tanh" else torch.sigmoid(ratio)


def check_choice(name: str, value: str, choices: object) -> None:
    """Refuse an option that is not one of a Literal's values.

    Raises:
        ValueError: Names the option, its value and the choices.
    """
    known = get_args(choices)
    if value not in known:
        raise ValueError(f"{name} must be one of {', '.join(known)}, not {value!r}")


def check_flag(name: str, value: bool) -> None:
    """Refuse anything but true or false (a word such as `off` would count as true).

    Raises:
        ValueError: Names the option and its value.
    """
    if value is not True and value is not False:
        raise ValueError(f"{name} must be true or false, not {value!r}")


def check_range(name: str, value: float, low: float, high: float = float("inf")) -> None:
    """Refuse what is not a number in [low, high], or not finite.

    Raises:
        ValueError: Names the option, its value and the range.
    """
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not low <= value <= high or value == float("inf"):
        bounds = f"in [{low:g}, {high:g}]" if high < float("inf") else f"finite and at least {low:g}"
        raise ValueError(f"{name} must be {bounds}, not {value!r}")
