"""Which samples a rank loads at each step: a batch sampler whose state is one integer, and the evaluation's shares.

A global batch is a slice of the order (`bmlpipe.shards.mixture_order`), a micro-batch a slice of that and a rank's part
a slice of that: what is trained on does not depend on the number of ranks, micro-batches or workers, and the position
in a run is its step. Epochs are whole numbers of steps: the last, incomplete batch of an epoch is dropped (the order being
another one each epoch, no sample is left out for good) or padded.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Literal

from bmlpipe.manifests.common.errors import OptionError
from bmlpipe.shards.mixture_order import Mixture, MixtureOrder

#: (epoch, sample number): all that a worker needs to know. Epoch −1 is evaluation; a sample that only fills up a
#: batch, and has weight 0, is written with ~number, which is below 0.
Item = tuple[int, int]


class TrainBatches:
    """A rank's batches from one step to the end of training: a batch sampler whose state is one integer.

    Args:
        samples: Samples of each training shard of a set, or a mixture of sets.
        batch_size: Global batch.
        epochs: Epochs of the whole training.
        seed: Seed of the run.
        shuffle_shards: Shards mixed at a time.
        rank: This process.
        world_size: Number of processes.
        first_step: Optimiser step to begin with, counted over all epochs.
        accumulate: Micro-batches that a rank goes through for one optimiser step.
        last_batch: What becomes of an epoch's last, incomplete batch: `drop` it, or `pad` it with samples that it has
            already, at weight 0. All ranks take equal steps either way.

    Attributes:
        steps_per_epoch: Optimiser steps of an epoch.
        steps: Optimiser steps of the whole training.
        dropped: Samples left out at the end of each epoch.
        padded: Samples of weight 0 at the end of each epoch.

    Raises:
        OptionError: The batch cannot be shared out, or there are fewer samples than one batch.
    """

    def __init__(
        self,
        samples: Sequence[int] | Mixture,
        *,
        batch_size: int,
        epochs: int,
        seed: int,
        shuffle_shards: int,
        rank: int = 0,
        world_size: int = 1,
        first_step: int = 0,
        accumulate: int = 1,
        last_batch: Literal["drop", "pad"] = "drop",
    ) -> None:
        if last_batch not in ("drop", "pad"):
            raise OptionError(f"last_batch is {last_batch!r}: must be drop or pad")
        if accumulate < 1:
            raise OptionError(f"accumulate is {accumulate}: must be at least 1")
        parts = world_size * accumulate
        if batch_size < 1 or batch_size % parts:
            above = max(1, math.ceil(batch_size / parts)) * parts
            nearest = f"{above - parts} or {above}" if above > parts else f"{above}"
            raise OptionError(
                f"batch_size is {batch_size}, which {world_size} ranks with {accumulate} micro-batches each cannot share "
                f"evenly: choose a multiple of {parts} ({nearest})"
            )
        self._mixture = samples if isinstance(samples, Mixture) else Mixture.of([samples])
        self._total = len(self._mixture)
        if batch_size > self._total and last_batch == "drop":
            raise OptionError(
                f"batch_size is {batch_size}, and there are only {self._total} training samples: choose a smaller one, "
                "or pad the last batch"
            )
        self._batch, self._seed, self._shuffle_shards, self._accumulate = batch_size, seed, shuffle_shards, accumulate
        self._rank, self._world_size, self._first = rank, world_size, first_step
        whole, rest = divmod(self._total, batch_size)
        self.dropped = rest if last_batch == "drop" else 0
        self.padded = -self._total % batch_size if last_batch == "pad" else 0
        self.steps_per_epoch = whole + (self.padded > 0)
        self.steps = self.steps_per_epoch * epochs

    def __len__(self) -> int:
        """Micro-batches that iterating yields."""
        return max(0, self.steps - self._first) * self._accumulate

    def real(self, step: int) -> int:
        """Samples of weight 1 in a step's global batch."""
        last = (step + 1) % self.steps_per_epoch == 0
        return self._batch - self.padded if last else self._batch

    def __iter__(self) -> Iterator[list[Item]]:
        order = self._mixture.order(seed=self._seed, shuffle_shards=self._shuffle_shards)
        share = self._batch // (self._accumulate * self._world_size)
        for step in range(self._first, self.steps):
            batch = self._global(order, step)
            for micro in range(self._accumulate):
                first = (micro * self._world_size + self._rank) * share
                yield batch[first : first + share]

    def global_batch(self, step: int) -> list[Item]:
        """All ranks' samples of a step."""
        return self._global(self._mixture.order(seed=self._seed, shuffle_shards=self._shuffle_shards), step)

    def _global(self, order: MixtureOrder, step: int) -> list[Item]:
        epoch, position = divmod(step, self.steps_per_epoch)
        start, real = epoch * self._total + position * self._batch, self.real(step)
        epochs, numbers = (values.tolist() for values in order.slice(start, start + real))
        items = list(zip(epochs, numbers, strict=True))
        return items + [(epoch, ~number) for epoch, number in (items[i % real] for i in range(self._batch - real))]


def evaluation_batches(numbers: Sequence[int], *, batch_size: int, rank: int = 0, world_size: int = 1) -> list[list[Item]]:
    """A rank's share of a split, each sample once; ranks may differ by one sample, and by one batch."""
    mine = numbers[rank::world_size]
    return [[(-1, n) for n in mine[start : start + batch_size]] for start in range(0, len(mine), batch_size)]
