"""Predictions for a split: each sample once, whatever the number of ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from torch import Tensor

from bmlpipe.train.data.normalise import Normaliser
from bmlpipe.train.evaluation.missing_modalities import logits_without, subsets
from bmlpipe.train.models.multimodal import MultimodalModel
from bmlpipe.train.modulation.scores import unimodal_logits


@dataclass(frozen=True)
class Predictions:
    """Predictions in the order of sample numbers.

    Attributes:
        numbers: (N,), sample numbers of the index.
        labels: (N,), class ids.
        logits: (N, K), of all modalities together.
        branches: Modality → (N, K), of that modality alone (`bmlpipe.train.modulation.scores`).
        features: Modality → (N, D_m), what the encoder gives; empty where it was not asked for.
        without: Modalities → (N, K), of all together where these modalities' inputs are zeros, for every subset of
            those that may be absent (`bmlpipe.train.evaluation.missing_modalities`).
    """

    numbers: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int64]
    logits: npt.NDArray[np.float32]
    branches: Mapping[str, npt.NDArray[np.float32]]
    features: Mapping[str, npt.NDArray[np.float32]] = field(default_factory=dict)
    without: Mapping[frozenset[str], npt.NDArray[np.float32]] = field(default_factory=dict)


@torch.no_grad()
def predict(
    model: MultimodalModel,
    inputs: Normaliser,
    batches: Iterable[dict[str, Any]],
    classes: int,
    device: torch.device,
    *,
    gamma: Sequence[float] | None = None,
    features: bool = False,
    absent: Sequence[str] = (),
    progress: Callable[[int], None] | None = None,
) -> Predictions:
    """Run the model over this rank's share of a split and gather all ranks' predictions.

    Args:
        model: The model itself, not its data-parallel wrapper; put into evaluation mode and left there.
        inputs: Normalises raw batches.
        batches: This rank's batches (`evaluation_batches`); ranks may have different numbers.
        classes: K.
        device: Where to compute.
        gamma: Share of the head's bias in each branch, as in training; None: the head's default.
        features: Also keep the features.
        absent: Modalities that may be missing: also predict without every subset of them.
        progress: Told how many of this rank's samples each batch had.

    Returns:
        The same on every rank.
    """
    model.eval()
    modalities = tuple(model.encoders)
    widths = {m: int(encoder.features) for m, encoder in model.encoders.items()} if features else {}  # type: ignore[arg-type]
    gone = subsets(absent)
    parts: list[Tensor] = []
    numbers: list[Tensor] = []
    for batch in batches:
        seen = inputs({m: batch[m].to(device, non_blocking=True) for m in modalities})
        found = model.encode(seen)
        alone = unimodal_logits(model.head, found, gamma)
        columns = [model.head(found), *(alone[m] for m in modalities), *(found[m] for m in widths)]
        columns += logits_without(model, seen, found, gone)
        parts.append(torch.cat([column.float() for column in columns], dim=1))
        numbers.append(torch.stack([batch["number"], batch["label"]], dim=1))
        if progress is not None:
            progress(len(batch["number"]))
    sizes = [classes] * (1 + len(modalities)) + list(widths.values()) + [classes] * len(gone)
    values = torch.cat(parts) if parts else torch.empty(0, sum(sizes), device=device)
    about = torch.cat(numbers).to(device) if numbers else torch.empty(0, 2, dtype=torch.int64, device=device)
    rows, ids = _gathered(values).cpu().numpy(), _gathered(about).cpu().numpy()
    order = np.argsort(ids[:, 0], kind="stable")
    joint, *others = np.split(rows[order], np.cumsum(sizes)[:-1], axis=1)
    names = [*modalities, *widths]
    named = list(zip(names, others, strict=False))
    return Predictions(
        ids[order, 0],
        ids[order, 1],
        joint,
        dict(named[: len(modalities)]),
        dict(named[len(modalities) :]),
        dict(zip(gone, others[len(names) :], strict=True)),
    )


def _gathered(mine: Tensor) -> Tensor:
    """All ranks' rows one after the other, though their numbers differ."""
    if not (dist.is_available() and dist.is_initialized()):
        return mine
    world = dist.get_world_size()
    counts = [torch.zeros(1, dtype=torch.int64, device=mine.device) for _ in range(world)]
    dist.all_gather(counts, torch.tensor([len(mine)], device=mine.device))
    most = max(int(count) for count in counts)
    padded = torch.cat([mine, mine.new_zeros(most - len(mine), *mine.shape[1:])])
    gathered = [torch.empty_like(padded) for _ in range(world)]
    dist.all_gather(gathered, padded)
    return torch.cat([part[: int(count)] for part, count in zip(gathered, counts, strict=True)])
