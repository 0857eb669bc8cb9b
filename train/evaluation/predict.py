"""Predictions of a split: every sample once, whatever the number of ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from torch import Tensor

from bmlpipe.shards.index import Index
from bmlpipe.train.config.options import TrainConfig
from bmlpipe.train.data.dataset import ClipDataset, make_loader, reading
from bmlpipe.train.data.normalise import Normaliser
from bmlpipe.train.data.sampler import evaluation_batches
from bmlpipe.train.distributed.group import ProcessInfo
from bmlpipe.train.evaluation.missing_modalities import logits_without, subsets
from bmlpipe.train.models.multimodal import MultimodalModel
from bmlpipe.train.modulation.scores import unimodal_logits
from bmlpipe.train.tasks.registry import Task


@dataclass(frozen=True)
class Predictions:
    """Predictions of N samples, sorted by sample number.

    Attributes:
        numbers: Sample numbers of the index, (N,).
        labels: Targets, (N,).
        logits: Joint prediction from all modalities, (N, K).
        branches: Modality → prediction of that modality alone, (N, K) (`bmlpipe.train.modulation.scores`).
        features: Modality → output of its encoder, (N, D_m); empty if not requested.
        without: Modalities → joint prediction with the inputs of these modalities set to zeros, (N, K), for every
            subset of the modalities that may be missing (`bmlpipe.train.evaluation.missing_modalities`).
    """

    numbers: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int64]
    logits: npt.NDArray[np.float32]
    branches: Mapping[str, npt.NDArray[np.float32]]
    features: Mapping[str, npt.NDArray[np.float32]] = field(default_factory=dict)
    without: Mapping[frozenset[str], npt.NDArray[np.float32]] = field(default_factory=dict)


@dataclass(frozen=True)
class PredictOptions:
    """Options of a prediction: results beside the joint prediction and the branches, and how to load.

    Attributes:
        features: Also return the features.
        missing: Modalities that may be missing: also predict without every subset of them.
        batch_size: Samples per batch of a rank; None: the rank's part of the training's global batch.
        workers: Loader processes per rank; None: as in training.
        progress: Called with the number of samples of each batch of this rank.
    """

    features: bool = False
    missing: Sequence[str] = ()
    batch_size: int | None = None
    workers: int | None = None
    progress: Callable[[int], None] | None = None


@dataclass(frozen=True)
class Predictor:
    """A model and everything it needs to predict the splits of a set of shards.

    Attributes:
        config: Resolved options of the run.
        model: The model itself, not its data-parallel wrapper, on the device.
        normaliser: Normalises raw batches, on the device.
        data: Samples of the shards.
        index: Index of the shards.
        task: Task of the predictions: their length, loss and metrics.
        process: This process.
    """

    config: TrainConfig
    model: MultimodalModel
    normaliser: Normaliser
    data: ClipDataset
    index: Index
    task: Task
    process: ProcessInfo

    def predict(self, split: str, options: PredictOptions | None = None) -> Predictions:
        """Predict a split on all ranks; every rank calls it and gets the same result.

        Args:
            split: `train` (with centre crops), `val` or `test`.
            options: Further results, batch size and workers; None: the defaults.

        Raises:
            ShardError: The shards have no such split, or a sample is damaged.
        """
        process, config, options = self.process, self.config, options or PredictOptions()
        batches = evaluation_batches(
            self.index.split_range(split),
            batch_size=options.batch_size or max(1, config.batch_size // process.world_size),
            rank=process.rank,
            world_size=process.world_size,
        )
        loader = make_loader(
            self.data,
            batches,
            workers=config.workers if options.workers is None else options.workers,
            pin_memory=process.device.type == "cuda",
        )
        with reading(loader) as iterator:
            return predict(
                self.model,
                self.normaliser,
                iterator,
                outputs=self.task.outputs,
                device=process.device,
                gamma=config.gamma,
                options=options,
            )


@torch.no_grad()
def predict(
    model: MultimodalModel,
    normaliser: Normaliser,
    batches: Iterable[dict[str, Any]],
    *,
    outputs: int,
    device: torch.device,
    gamma: Sequence[float] | None = None,
    options: PredictOptions | None = None,
) -> Predictions:
    """Run the model over this rank's share of a split and gather the predictions of all ranks.

    Args:
        model: The model itself, not its data-parallel wrapper; it is put into evaluation mode and left there.
        normaliser: Normalises raw batches.
        batches: Batches of this rank (`evaluation_batches`); their number may differ between ranks.
        outputs: K, the length of a prediction.
        device: Device of the model.
        gamma: Share of the head's bias in each branch, as in training; None: the head's default.
        options: Further results; None: none of them.

    Returns:
        The same predictions on every rank.
    """
    options = options or PredictOptions()
    model.eval()
    modalities = tuple(model.encoders)
    widths = {m: int(encoder.feature_dim) for m, encoder in model.encoders.items()} if options.features else {}  # type: ignore[arg-type]
    missing = subsets(options.missing)
    parts: list[Tensor] = []
    numbers: list[Tensor] = []
    for batch in batches:
        inputs = normaliser({m: batch[m].to(device, non_blocking=True) for m in modalities})
        features = model.encode(inputs)
        branches = unimodal_logits(model.head, features, gamma)
        columns = [model.head(features), *(branches[m] for m in modalities), *(features[m] for m in widths)]
        columns += logits_without(model, inputs, features, missing)
        parts.append(torch.cat([column.float() for column in columns], dim=1))
        numbers.append(torch.stack([batch["number"], batch["label"]], dim=1))
        if options.progress is not None:
            options.progress(len(batch["number"]))
    sizes = [outputs] * (1 + len(modalities)) + list(widths.values()) + [outputs] * len(missing)
    values = torch.cat(parts) if parts else torch.empty(0, sum(sizes), device=device)
    ids = torch.cat(numbers).to(device) if numbers else torch.empty(0, 2, dtype=torch.int64, device=device)
    all_values, all_ids = _gather(values).cpu().numpy(), _gather(ids).cpu().numpy()
    order = np.argsort(all_ids[:, 0], kind="stable")
    joint, *others = np.split(all_values[order], np.cumsum(sizes)[:-1], axis=1)
    first_feature, first_missing = len(modalities), len(modalities) + len(widths)
    return Predictions(
        numbers=all_ids[order, 0],
        labels=all_ids[order, 1],
        logits=joint,
        branches=dict(zip(modalities, others[:first_feature], strict=True)),
        features=dict(zip(widths, others[first_feature:first_missing], strict=True)),
        without=dict(zip(missing, others[first_missing:], strict=True)),
    )


def _gather(mine: Tensor) -> Tensor:
    """Concatenate the rows of all ranks, whose numbers may differ."""
    if not (dist.is_available() and dist.is_initialized()):
        return mine
    world_size = dist.get_world_size()
    counts = [torch.zeros(1, dtype=torch.int64, device=mine.device) for _ in range(world_size)]
    dist.all_gather(counts, torch.tensor([len(mine)], device=mine.device))
    most = max(int(count) for count in counts)
    padded = torch.cat([mine, mine.new_zeros(most - len(mine), *mine.shape[1:])])
    gathered = [torch.empty_like(padded) for _ in range(world_size)]
    dist.all_gather(gathered, padded)
    return torch.cat([part[: int(count)] for part, count in zip(gathered, counts, strict=True)])
