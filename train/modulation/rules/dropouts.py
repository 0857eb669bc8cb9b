"""Dropout of single neurons of the features: plain, annealed, curriculum and evolutional dropout.

None of them reads ρ. All keep the mean of a neuron by rescaling the kept values.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor

from bmlpipe.manifests.common.errors import OptionError
from bmlpipe.train.modulation import keyed
from bmlpipe.train.modulation.checks import check_below_one, check_choice, check_count, check_range
from bmlpipe.train.modulation.rule import Rule, StepContext

Unit = Literal["epoch", "step"]

# Lower bound of the root of a second moment, so that a feature that is 0 throughout has (equal) probabilities.
_SMALLEST = 1e-30


@dataclass(frozen=True, kw_only=True)
class Dropout(Rule):
    """Dropout: sets each neuron of the features to 0 with probability p, and multiplies the others by 1/(1 − p).

    Srivastava, Hinton, Krizhevsky, Sutskever, Salakhutdinov, "Dropout: a simple way to prevent neural networks from
    overfitting", JMLR 15, 2014.

    Attributes:
        drop_p: p, in [0, 1).
    """

    drop_p: float = 0.5

    def __post_init__(self) -> None:
        check_below_one("drop_p", self.drop_p)

    def forward(self, features: dict[str, Tensor], step: StepContext) -> dict[str, Tensor]:
        """Drop neurons."""
        return drop_neurons(features, step, self.drop_p)


@dataclass(frozen=True, kw_only=True)
class AnnealedDropout(Rule):
    """Dropout with p_t = p_0 · max(0, 1 − t/N): the probability falls linearly, and is 0 from t = N on.

    Rennie, Goel, Thomas, "Annealed dropout training of deep networks", IEEE SLT 2014.

    Attributes:
        drop_p: p_0, in [0, 1).
        anneal_length: N, 1 or more.
        anneal_unit: Whether t and N count epochs (`epoch`) or optimiser steps (`step`), from 0.
    """

    drop_p: float = 0.5
    anneal_length: int = 50
    anneal_unit: Unit = "epoch"

    def __post_init__(self) -> None:
        check_below_one("drop_p", self.drop_p)
        check_choice("anneal_unit", self.anneal_unit, Unit)
        check_count("anneal_length", self.anneal_length, 1)

    def probability(self, time: int) -> float:
        """Return p_t at epoch or step t."""
        return self.drop_p * max(0.0, 1 - time / self.anneal_length)

    def forward(self, features: dict[str, Tensor], step: StepContext) -> dict[str, Tensor]:
        """Drop neurons."""
        return drop_neurons(features, step, self.probability(step.epoch if self.anneal_unit == "epoch" else step.index))


@dataclass(frozen=True, kw_only=True)
class CurriculumDropout(Rule):
    """Dropout that keeps each neuron with probability θ(t) = (1 − θ̄) · exp(−γ·t) + θ̄ at optimiser step t.

    Nothing is dropped at first; the probability of a drop then rises to 1 − θ̄.

    Morerio, Cavazza, Volpi, Vidal, Murino, "Curriculum dropout", ICCV 2017.

    Attributes:
        retain: θ̄, in (0, 1], the limit of θ(t).
        curriculum_gamma: γ ≥ 0, per step; the paper uses 10/T for T steps in total.
    """

    retain: float = 0.5
    curriculum_gamma: float = 1e-3

    def __post_init__(self) -> None:
        if not 0 < self.retain <= 1:
            raise OptionError(f"retain must be in (0, 1], not {self.retain}")
        check_range("curriculum_gamma", self.curriculum_gamma, 0)

    def probability(self, time: int) -> float:
        """Return 1 − θ(t), the probability of a drop at step t."""
        return (1 - self.retain) * -math.expm1(-self.curriculum_gamma * time)

    def forward(self, features: dict[str, Tensor], step: StepContext) -> dict[str, Tensor]:
        """Drop neurons."""
        return drop_neurons(features, step, self.probability(step.index))


@dataclass(frozen=True, kw_only=True)
class EvolutionalDropout(Rule):
    """Dropout that draws k of a modality's D neurons with replacement, and multiplies neuron i by n_i/(k·p_i).

    The probabilities are p_i = √E[φ_i²] / Σ_j √E[φ_j²], with the mean over the batch; n_i is how often neuron i was
    drawn for the sample. The factor is 1 on average, and 0 for a neuron that was not drawn.

    Under data parallelism the mean is taken over the micro-batch of all ranks, because otherwise the result
    would depend on their number. This costs a second collective of Σ D_m numbers, for which the forward pass waits.

    Li, Gong, Yang, "Improved dropout for shallow and deep learning", NeurIPS 2016.

    Attributes:
        draws: k/D, finite and above 0; the paper compares ½ with dropout of p = ½.
    """

    draws: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.draws < math.inf:
            raise OptionError(f"draws must be finite and above 0, not {self.draws}")

    def forward(self, features: dict[str, Tensor], step: StepContext) -> dict[str, Tensor]:
        """Drop and rescale neurons."""
        sizes = [features[m].shape[1] for m in step.modalities]
        moments = torch.cat([_second_moments(features[m], step.weights) for m in step.modalities])
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(moments)
        changed, missed = dict(features), []
        for m, own in zip(step.modalities, torch.split(moments, sizes), strict=True):
            k = max(1, round(self.draws * len(own)))
            p = draw_probabilities(own)
            numbers = uniform_per_sample(step, features[m], k, keyed.key(step.seed, "evolutional", step.epoch, m))
            changed[m] = features[m] * (draw_counts(p, numbers) / (k * p)).to(features[m].dtype)
            missed.append(((1 - p) ** k).mean())
        step.q = torch.stack(missed)
        return changed


def drop_neurons(features: dict[str, Tensor], step: StepContext, p: float) -> dict[str, Tensor]:
    """Set each neuron to 0 with probability p, and multiply the others by 1/(1 − p) (inverted dropout).

    Whether a neuron is dropped is a function of (seed, epoch, sample id, modality, neuron).

    Args:
        features: {m: (B, D_m)}.
        step: Context of the batch; p is recorded as its `q`.
        p: In [0, 1).

    Returns:
        {m: (B, D_m)}.
    """
    step.q = torch.full_like(step.rho, p)
    if p == 0:
        return features
    dropped = {}
    for m, feature in features.items():
        stream = keyed.key(step.seed, "neurons", step.epoch, m)
        numbers = uniform_per_sample(step, feature, feature.shape[1], stream)
        dropped[m] = feature.masked_fill(numbers < p, 0) * (1 / (1 - p))
    return dropped


def uniform_per_sample(step: StepContext, feature: Tensor, count: int, stream: int) -> Tensor:
    """Draw `count` uniform numbers per sample: (B, count), float64 in [0, 1), on the device of `feature`."""
    assert step.ids is not None
    ids = step.ids.to(feature.device, non_blocking=True)
    return keyed.uniform(ids[:, None] * count + torch.arange(count, device=feature.device), stream)


def draw_probabilities(moments: Tensor) -> Tensor:
    """Compute p_i ∝ √moment_i, the same for means and sums of squares: (D,), ≥ 0 → (D,), which sum to 1."""
    roots = moments.sqrt().clamp(min=_SMALLEST)
    return roots / roots.sum()


def draw_counts(p: Tensor, numbers: Tensor) -> Tensor:
    """Count how often each neuron is drawn, once per uniform number, by inverting the distribution function.

    Args:
        p: (D,), float64, which sum to 1.
        numbers: (B, k), float64 in [0, 1).

    Returns:
        (B, D), float64; each row sums to k.
    """
    ends = p.cumsum(dim=0)
    drawn = torch.searchsorted(ends, numbers * ends[-1], right=True).clamp(max=len(p) - 1)
    return torch.zeros(len(numbers), len(p), dtype=p.dtype, device=p.device).scatter_add_(
        1, drawn, torch.ones_like(numbers)
    )


def _second_moments(feature: Tensor, weights: Tensor | None) -> Tensor:
    """Sum φ² over the samples that are not padding: (B, D) → (D,), float64, detached."""
    squares = feature.detach().double().square()
    if weights is not None:
        squares = squares * weights.to(squares)[:, None]
    return squares.sum(dim=0)
