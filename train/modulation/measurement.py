"""From the uni-modal scores of a global batch to ρ: what is summed, and what is kept from step to step."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from bmlpipe.train.modulation.discrepancy import NEUTRAL, Form, discrepancy


class Meter:
    """The sums behind ρ, and the last ρ.

    S^m is the sum of the scores of modality m. Where rules drop inputs, a sample that lost its input of m says nothing
    about m: S^m is then the mean score of the samples that kept it, times the number of all samples. A modality of
    which no input was kept keeps its last mean.

    Args:
        modalities: M names, the order of all (M,) tensors.
        form: Of ρ.
        lossy: Whether inputs may be dropped.

    Attributes:
        ratio: ρ^m of the last step, (M,), float64; the neutral point before the first one.
        means: Mean score of each modality in the last step, (M,), float64; NaN before the first one.
        width: Length of the vectors of sums: M + 1, or 2M + 1 where inputs may be dropped.
    """

    def __init__(self, modalities: tuple[str, ...], form: Form, lossy: bool) -> None:
        size = len(modalities)
        self.modalities, self.form, self.lossy = modalities, form, lossy
        self.ratio = torch.full((size,), NEUTRAL[form], dtype=torch.float64)
        self.means = torch.full((size,), torch.nan, dtype=torch.float64)
        self.width = 2 * size + 1 if lossy else size + 1

    def to(self, device: torch.device) -> None:
        """Bring what is kept to the device of the step, without waiting for it."""
        self.ratio = self.ratio.to(device, non_blocking=True)
        self.means = self.means.to(device, non_blocking=True)

    def sums(self, scores: Mapping[str, Tensor], weights: Tensor | None, lost: Tensor | None) -> Tensor:
        """What a (micro-)batch of this rank adds; vectors of several batches and ranks add up.

        Args:
            scores: {m: (B,)}.
            weights: (B,), 0 for samples that count for nothing, else 1; None: all count.
            lost: Whether sample i lost its input of m, (M, B), bool; None: none did.

        Returns:
            (width,), float64: Σ_i s_i^m over the samples that count and kept m, their number, and, where inputs may be
            dropped, how many samples lost their input of m.
        """
        stacked = torch.stack([scores[m] for m in self.modalities])
        if weights is None:
            samples = stacked.new_full((1,), stacked.shape[1], dtype=torch.float64)
        else:
            samples = weights.sum(dim=0, keepdim=True, dtype=torch.float64)
            stacked = stacked.masked_fill(weights == 0, 0)
        if lost is not None:
            stacked = stacked.masked_fill(lost, 0)
        sums = torch.cat([stacked.sum(dim=1, dtype=torch.float64), samples])
        if self.lossy:
            sums = torch.cat([sums, torch.zeros_like(sums[:-1]) if lost is None else count(lost, weights)])
        return sums

    def take(self, sums: Tensor) -> None:
        """Form the means and ρ of the global batch's sums, (width,)."""
        size = len(self.modalities)
        batch, samples = sums[:size], sums[size]
        if self.lossy:
            kept = samples - sums[size + 1 :]
            self.means = torch.where(kept > 0, batch / kept, self.means)
            batch = self.means * samples
        else:
            self.means = batch / samples
        self.ratio = discrepancy(batch, self.form)


def count(mask: Tensor, weights: Tensor | None) -> Tensor:
    """How many samples that count are marked: (M, B), bool → (M,), float64."""
    return (mask if weights is None else mask & (weights > 0)).sum(dim=1, dtype=torch.float64)


def union(masks: Iterable[Tensor | None]) -> Tensor | None:
    """What any of the masks marks; None where there is none."""
    whole: Tensor | None = None
    for mask in masks:
        whole = mask if whole is None else whole if mask is None else whole | mask
    return whole
