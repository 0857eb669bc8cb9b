"""Which samples a rank loads: a batch sampler whose state is one integer, and the shares of an evaluation.

A global batch is a slice of the order of samples (`bmlpipe.shards.mixture_order`), a micro-batch is a slice of the
global batch, and the part of a rank is a slice of the micro-batch. So the samples of a step do not depend on the number
of ranks, micro-batches or workers, and the position of a run is its step. An epoch has a whole number of steps: its
last, incomplete batch is dropped or padded. The order differs between epochs, so the dropped samples differ too.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from bmlpipe.manifests.common.errors import OptionError
from bmlpipe.shards.mixture_order import Mixture, MixtureOrder
from bmlpipe.train.config.options import TrainConfig

#: Epoch of items that are evaluated: their crops are not random.
EVALUATION = -1


class BatchItem(NamedTuple):
    """One sample of a batch, with everything that a loader process needs to load it.

    Attributes:
        epoch: Epoch, from 0, which the random crop depends on; `EVALUATION` for the centre crop.
        number: Sample number.
        padding: Whether the sample only fills up the batch, with weight 0.
    """

    epoch: int
    number: int
    padding: bool = False


class TrainBatches:
    """The batches of a rank, from one step to the end of training; a batch sampler for the DataLoader.

    The last, incomplete batch of an epoch is dropped, or padded with samples that it already contains, at weight 0.
    Either way all ranks take the same number of steps.

    Args:
        samples: Number of samples of each training shard of a set, or a mixture of sets.
        config: Its `batch_size` (of the global batch), `epochs`, `seed`, `shuffle_shards`, `accumulate` and
            `last_batch`.
        rank: Number of this process.
        world_size: Number of processes.
        first_step: Optimiser step to start with, counted over all epochs.

    Attributes:
        steps_per_epoch: Number of optimiser steps per epoch.
        steps: Number of optimiser steps of the whole training.
        dropped: Number of samples left out at the end of each epoch.
        padded: Number of samples of weight 0 at the end of each epoch.

    Raises:
        OptionError: The batch cannot be split evenly, or there are fewer samples than one batch.
    """

    def __init__(
        self,
        samples: Sequence[int] | Mixture,
        config: TrainConfig,
        *,
        rank: int = 0,
        world_size: int = 1,
        first_step: int = 0,
    ) -> None:
        batch_size, accumulate = config.batch_size, config.accumulate
        parts = world_size * accumulate
        if batch_size % parts:
            above = math.ceil(batch_size / parts) * parts
            nearest = f"{above - parts} or {above}" if above > parts else f"{above}"
            raise OptionError(
                f"batch_size is {batch_size}, which cannot be split evenly among {world_size} ranks with {accumulate} "
                f"micro-batches each: choose a multiple of {parts} ({nearest})"
            )
        self._mixture = samples if isinstance(samples, Mixture) else Mixture.of([samples])
        self._total = len(self._mixture)
        if batch_size > self._total and config.last_batch == "drop":
            raise OptionError(
                f"batch_size is {batch_size}, but there are only {self._total} training samples: choose a smaller "
                "batch, or pad the last batch"
            )
        self._seed, self._shuffle_shards = config.seed, config.shuffle_shards
        self._batch, self._accumulate = batch_size, accumulate
        self._rank, self._world_size, self._first = rank, world_size, first_step
        whole, rest = divmod(self._total, batch_size)
        self.dropped = rest if config.last_batch == "drop" else 0
        self.padded = -rest % batch_size if config.last_batch == "pad" else 0
        self.steps_per_epoch = whole + (self.padded > 0)
        self.steps = self.steps_per_epoch * config.epochs

    def __len__(self) -> int:
        """Return the number of micro-batches that iterating yields."""
        return max(0, self.steps - self._first) * self._accumulate

    def samples_in(self, step: int) -> int:
        """Return the number of samples of weight 1 in the global batch of a step."""
        last = (step + 1) % self.steps_per_epoch == 0
        return self._batch - self.padded if last else self._batch

    def __iter__(self) -> Iterator[list[BatchItem]]:
        order = self._mixture.order(seed=self._seed, shuffle_shards=self._shuffle_shards)
        share = self._batch // (self._accumulate * self._world_size)
        for step in range(self._first, self.steps):
            batch = self._slice(order, step)
            for micro in range(self._accumulate):
                first = (micro * self._world_size + self._rank) * share
                yield batch[first : first + share]

    def _slice(self, order: MixtureOrder, step: int) -> list[BatchItem]:
        epoch, position = divmod(step, self.steps_per_epoch)
        start, count = epoch * self._total + position * self._batch, self.samples_in(step)
        epochs, numbers = (values.tolist() for values in order.slice(start, start + count))
        items = [BatchItem(*item) for item in zip(epochs, numbers, strict=True)]
        return items + [items[i % count]._replace(padding=True) for i in range(self._batch - count)]


def evaluation_batches(
    numbers: Sequence[int], *, batch_size: int, rank: int = 0, world_size: int = 1
) -> list[list[BatchItem]]:
    """Return the share of a rank in a split, each sample once. The shares of ranks differ by one sample at most.

    Args:
        numbers: Sample numbers of the split.
        batch_size: Number of samples per batch of the rank.
        rank: Number of this process.
        world_size: Number of processes.
    """
    mine = [BatchItem(EVALUATION, number) for number in numbers[rank::world_size]]
    return [mine[start : start + batch_size] for start in range(0, len(mine), batch_size)]
