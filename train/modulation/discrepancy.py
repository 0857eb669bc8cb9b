"""The discrepancy between modalities: batch scores S^m to ρ^m (Eq. 7), and the function z of ρ (Table 15)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

#: Form of ρ: `ratio` is Eq. 7, `difference` the variant of Table 15, a sum that grows with the batch size.
Form = Literal["ratio", "difference"]
#: z(ρ): `tanh` of the distance from the neutral point, or plain `sigmoid` (Table 15).
Shape = Literal["tanh", "sigmoid"]

#: The value of ρ at which a modality is neither more nor less discriminative than the others.
NEUTRAL: dict[Form, float] = {"ratio": 1.0, "difference": 0.0}

# Lower bound of a denominator: a batch score of exactly 0 (float32 underflow) would make the ratio infinite.
_SMALLEST = torch.finfo(torch.float32).tiny


def discrepancy(sums: Tensor, form: Form = "ratio") -> Tensor:
    """Compute ρ^m from the batch scores (Eq. 7, Table 15).

    ratio: ρ^m = 1/(M−1) · Σ_{j≠m} S^m / S^j; difference: ρ^m = 1/(M−1) · Σ_{j≠m} (S^m − S^j). Equal scores give the
    neutral point exactly. If one S is NaN, every ρ is NaN, which rules treat as neutral.

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


def z(rho: Tensor, shape: Shape, neutral: float) -> Tensor:
    """Apply z to ρ: tanh(ρ − neutral), which is tanh(ρ − 1) for the ratio form, or sigmoid(ρ) (Table 15).

    Args:
        rho: ρ^m, (M,).
        shape: See `Shape`.
        neutral: Neutral point of ρ, from `NEUTRAL`.

    Returns:
        (M,), in (−1, 1) for `tanh` and (0, 1) for `sigmoid`.
    """
    return torch.tanh(rho - neutral) if shape == "tanh" else torch.sigmoid(rho)
