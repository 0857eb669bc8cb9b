"""Evolutional dropout: a multinomial draw keeps neurons, the more likely the larger they are in the batch.

Li, Gong, Yang, "Improved dropout for shallow and deep learning", NeurIPS 2016, its evolutional dropout.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from bmlpipe.train.modulation import keyed
from bmlpipe.train.modulation.rule import Rule, Step
from bmlpipe.train.modulation.rules.dropout import numbers_of

# Stands for a second moment of 0, so that a feature that is 0 throughout has probabilities (all the same).
_SMALLEST = 1e-30


@dataclass(frozen=True, kw_only=True)
class EvolutionalDropout(Rule):
    """Draw k of the D neurons of a modality with replacement, with probabilities p_i, and multiply each by n_i/(k·p_i).

    p_i = √E[φ_i²] / Σ_j √E[φ_j²], the mean taken over the batch; n_i is how often neuron i was drawn for the sample,
    so that the factor is 1 on average and 0 for a neuron that was not drawn.

    The batch is the micro-batch of all ranks: under data parallelism this costs a second collective, of Σ D_m numbers,
    for which the forward pass waits. Without it each rank would draw by probabilities of its own, and what is
    trained would depend on their number.

    Attributes:
        draws: k over D, above 0; the paper compares ½ with dropout of p = ½.
    """

    draws: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.draws < float("inf"):
            raise ValueError(f"draws must be finite and above 0, not {self.draws}")

    def forward(self, features: dict[str, Tensor], step: Step) -> dict[str, Tensor]:
        """Drop and rescale."""
        sizes = [features[m].shape[1] for m in step.modalities]
        moments = torch.cat([_second_moments(features[m], step.weights) for m in step.modalities])
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(moments)
        changed, missed = dict(features), []
        for m, own in zip(step.modalities, torch.split(moments, sizes), strict=True):
            k = max(1, round(self.draws * len(own)))
            p = probabilities(own)
            counts = drawn(p, numbers_of(step, features[m], k, keyed.key(step.seed, "evolutional", step.epoch, m)))
            changed[m] = features[m] * (counts / (k * p)).to(features[m].dtype)
            missed.append(((1 - p) ** k).mean())
        step.q = torch.stack(missed)
        return changed


def probabilities(moments: Tensor) -> Tensor:
    """p_i ∝ √ of the second moment, of their means or their sums alike; (D,) ≥ 0 → (D,), sum 1."""
    roots = moments.sqrt().clamp(min=_SMALLEST)
    return roots / roots.sum()


def drawn(p: Tensor, numbers: Tensor) -> Tensor:
    """How often each neuron is drawn: one draw a uniform number, by the inverse of the distribution function.

    Args:
        p: (D,), float64, sum 1.
        numbers: (B, k), float64 in [0, 1).

    Returns:
        (B, D), float64; each row sums to k.
    """
    ends = p.cumsum(dim=0)
    chosen = torch.searchsorted(ends, numbers * ends[-1], right=True).clamp(max=len(p) - 1)
    return torch.zeros(len(numbers), len(p), dtype=p.dtype, device=p.device).scatter_add_(
        1, chosen, torch.ones_like(numbers)
    )


def _second_moments(feature: Tensor, weights: Tensor | None) -> Tensor:
    """Σ over the samples of φ², without those that only pad the batch; (B, D) → (D,), float64, detached."""
    squares = feature.detach().double().square()
    if weights is not None:
        squares = squares * weights.to(squares)[:, None]
    return squares.sum(dim=0)
