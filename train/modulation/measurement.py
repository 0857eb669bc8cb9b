"""From the uni-modal scores of a global batch to ρ: the sums of one step, and ρ from step to step."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
import torch.distributed as dist
from torch import Tensor

from bmlpipe.train.modulation.discrepancy import NEUTRAL, Form, discrepancy


class DiscrepancyMeter:
    """Discrepancy ρ, computed from the score sums of each step and kept until the next.

    S^m is the sum of the scores of modality m over the global batch. Where rules drop inputs, a sample that lost its
    input of m says nothing about m: S^m is then the mean score of the samples that kept it, times the number of all
    samples. A modality of which every input was dropped keeps its last mean.

    Args:
        modalities: M names, in the order of all (M,) tensors.
        form: Form of ρ.
        drops_inputs: Whether a rule may drop inputs.

    Attributes:
        rho: ρ^m of the last step, (M,), float64; the neutral point before the first step.
        means: Mean score of each modality in the last step, (M,), float64; NaN before the first step.
    """

    def __init__(self, modalities: tuple[str, ...], form: Form, drops_inputs: bool) -> None:
        size = len(modalities)
        self.modalities, self.form, self.drops_inputs = modalities, form, drops_inputs
        self.rho = torch.full((size,), NEUTRAL[form], dtype=torch.float64)
        self.means = torch.full((size,), torch.nan, dtype=torch.float64)

    def to(self, device: torch.device) -> None:
        """Move `rho` and `means` to the device of the step, without waiting for it."""
        self.rho = self.rho.to(device, non_blocking=True)
        self.means = self.means.to(device, non_blocking=True)

    def sums(self, scores: Mapping[str, Tensor], weights: Tensor | None, dropped: Tensor | None) -> Tensor:
        """Compute the sums of one (micro-)batch of this rank; those of several batches and ranks add up.

        Args:
            scores: {m: (B,)}.
            weights: (B,), 0 for samples that only pad the batch, else 1. None: no sample is padding.
            dropped: Whether sample i lost its input of m, (M, B), bool. None: no sample did.

        Returns:
            Float64: Σ_i s_i^m over the samples that count and kept m, (M,); their number, (1,); and, where rules may
            drop inputs, how many samples lost their input of m, (M,).
        """
        stacked = torch.stack([scores[m] for m in self.modalities])
        if weights is None:
            samples = stacked.new_full((1,), stacked.shape[1], dtype=torch.float64)
        else:
            samples = weights.sum(dim=0, keepdim=True, dtype=torch.float64)
            stacked = stacked.masked_fill(weights == 0, 0)
        if dropped is not None:
            stacked = stacked.masked_fill(dropped, 0)
        sums = torch.cat([stacked.sum(dim=1, dtype=torch.float64), samples])
        if self.drops_inputs:
            lost = torch.zeros_like(sums[:-1]) if dropped is None else count_samples(dropped, weights)
            sums = torch.cat([sums, lost])
        return sums

    def measure(self, sums: Tensor) -> None:
        """Compute `means` and `rho` from the sums of the global batch."""
        size = len(self.modalities)
        batch_scores, samples = sums[:size], sums[size]
        if self.drops_inputs:
            kept = samples - sums[size + 1 :]
            self.means = torch.where(kept > 0, batch_scores / kept, self.means)
            batch_scores = self.means * samples
        else:
            self.means = batch_scores / samples
        self.rho = discrepancy(batch_scores, self.form)


class StepTotals:
    """The sums of a step in progress, over its micro-batches and, by one small collective, over the ranks.

    Args:
        like: Result of `DiscrepancyMeter.sums`; only its length and device are used.
        size: Number of modalities M.

    Attributes:
        sums: Score sums over the micro-batches so far; over all ranks after `reduce_scores` or `wait`.
        dropped: Number of dropped samples, (M,), float64; over all ranks after `wait`.
        q: Drop probabilities that the rules recorded for the last micro-batch, (M,), float64.
    """

    def __init__(self, like: Tensor, size: int) -> None:
        self.sums = torch.zeros_like(like)
        self.dropped, self.q = like.new_zeros(size), like.new_zeros(size)
        self._scores_reduced = False
        self._reduced: Tensor | None = None
        self._collective: dist.Work | None = None

    @property
    def closed(self) -> bool:
        """Whether a reduction has started, after which no micro-batch can be added."""
        return self._scores_reduced or self._reduced is not None

    def reduce_scores(self, group: dist.ProcessGroup | None) -> None:
        """Sum the scores over the ranks now, for a rule that needs this step's ρ before the loss."""
        if _distributed():
            dist.all_reduce(self.sums, group=group)
        self._scores_reduced = True

    def reduce(self, extra: Tensor | None, group: dist.ProcessGroup | None) -> None:
        """Start to sum everything that is not summed yet, and `extra`, over the ranks.

        Args:
            extra: Further numbers of the training loop to sum, (E,). None: there are none.
            group: Process group; None: the default one.

        Raises:
            RuntimeError: It was called before in this step.
        """
        if self._reduced is not None:
            raise RuntimeError("reduce() may be called at most once per step")
        own = [self.dropped] if self._scores_reduced else [self.sums, self.dropped]
        self._reduced = torch.cat(own if extra is None else [*own, extra.detach().to(self.sums)])
        if _distributed():
            self._collective = dist.all_reduce(self._reduced, group=group, async_op=True)

    def wait(self, group: dist.ProcessGroup | None) -> Tensor:
        """Finish the reduction, which is started here if `reduce` was not called.

        Returns:
            `extra` summed over the ranks, (E,), float64; empty if there was none.
        """
        if self._reduced is None:
            self.reduce(None, group)
        assert self._reduced is not None
        if self._collective is not None:
            self._collective.wait()
        whole = torch.cat([self.sums, self._reduced]) if self._scores_reduced else self._reduced
        width, end = len(self.sums), len(self.sums) + len(self.dropped)
        self.sums, self.dropped = whole[:width], whole[width:end]
        return whole[end:]


def count_samples(mask: Tensor, weights: Tensor | None) -> Tensor:
    """Count the marked samples that are not padding: (M, B), bool, and weights (B,) → (M,), float64."""
    return (mask if weights is None else mask & (weights > 0)).sum(dim=1, dtype=torch.float64)


def union(masks: Iterable[Tensor | None]) -> Tensor | None:
    """Return the logical OR of the masks; None if all are None."""
    joined: Tensor | None = None
    for mask in masks:
        joined = mask if joined is None else joined if mask is None else joined | mask
    return joined


def _distributed() -> bool:
    return dist.is_available() and dist.is_initialized()
