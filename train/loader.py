"""Shards → batches: a map-style data set over the index, a resumable batch sampler, torch's own DataLoader.

A batch is a slice of the epoch's order and a rank's part a slice of that, so what is trained on does not depend on
the number of ranks or workers, and the position in a run is one integer: its step. The last, incomplete batch of an
epoch is dropped; the order being another one each epoch, no sample is left out for good.

Shapes: B samples of a rank's batch, T frames, H = W the picture size, F frequency bins, N windows, L flow fields.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from bmlpipe.shards.order import EpochOrder, rank_slice
from bmlpipe.shards.reader import ShardReader, StoredSample
from bmlpipe.shards.spec import MODALITY_KIND, SPECTROGRAM_MEMBER, ShardError, flow_member, frame_member
from bmlpipe.train import views

#: (epoch, sample number): all that a worker needs to know; epoch −1 is evaluation.
Item = tuple[int, int]


class ClipDataset(Dataset[dict[str, Any]]):
    """Samples as an encoder's raw input: pictures as uint8, spectrograms as stored (float16).

    Args:
        shards: A set of shards.
        modalities: What to load.
        frames: T, frames (and flow stacks) of a sample.
        image_size: H and W.
        augment: Random views in training.
        seed: Seed of the run.

    Raises:
        ShardError: The shards lack the feature of a modality.
    """

    def __init__(
        self, shards: Path, modalities: Sequence[str], *, frames: int, image_size: int, augment: bool, seed: int
    ) -> None:
        self.reader = ShardReader(shards)
        self._modalities, self._frames, self._size = tuple(modalities), frames, image_size
        self._augment, self._seed = augment, seed
        there = self.reader.index.features
        for modality in modalities:
            if MODALITY_KIND[modality] not in there:
                raise ShardError(
                    f"modality {modality} needs {MODALITY_KIND[modality]}, and {shards} holds only {', '.join(there)}: "
                    "choose other --modalities, or extract and shard with --modalities "
                    + ",".join([*there, MODALITY_KIND[modality]])
                )

    def __len__(self) -> int:
        return len(self.reader)

    def __getitem__(self, item: Item) -> dict[str, Any]:
        epoch, number = item
        sample = self.reader[number]
        random = self._augment and epoch >= 0
        numbers = views.uniform_numbers(self._seed, epoch, number, 5 + self._frames) if random else None
        loaded: dict[str, Any] = {"label": sample.label, "number": number}
        for modality in self._modalities:
            if modality == "audio":
                loaded[modality] = torch.from_numpy(views.spectrogram(sample.members[SPECTROGRAM_MEMBER]))[None]
            elif modality == "visual":
                loaded[modality] = self._pictures(sample, numbers)
            else:
                loaded[modality] = self._flow(sample, numbers)
        return loaded

    def _view(self, about: Mapping[str, int], numbers: Sequence[float] | None) -> views.View:
        height, width = about["height"], about["width"]
        return views.random_view(height, width, numbers) if numbers else views.centre_view(height, width)

    def _pictures(self, sample: StoredSample, numbers: Sequence[float] | None) -> Tensor:
        about = sample.meta["frames"]
        view = self._view(about, numbers)
        chosen = views.choose(len(about["times"]), self._frames, numbers and numbers[5:])
        images = [views.picture(sample.members[frame_member(i)], view, self._size) for i in chosen]
        return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)

    def _flow(self, sample: StoredSample, numbers: Sequence[float] | None) -> Tensor:
        about = sample.meta["flow"]
        view = self._view(about, numbers)
        chosen = views.choose(len(about["times"]), self._frames, numbers and numbers[5:])
        stack = sum(name.startswith("flow_000_") for name in sample.members) // 2
        fields = [
            np.concatenate(
                [
                    views.flow_field(
                        sample.members[flow_member(i, step, "x")],
                        sample.members[flow_member(i, step, "y")],
                        view,
                        self._size,
                    )
                    for step in range(stack)
                ],
                axis=2,
            )
            for i in chosen
        ]
        return torch.from_numpy(np.stack(fields)).permute(0, 3, 1, 2)


class TrainBatches:
    """A rank's batches from one step to the end of training: a batch sampler whose state is one integer.

    Args:
        sizes: Samples of each training shard.
        batch_size: Global batch.
        epochs: Epochs of the whole training.
        seed: Seed of the run.
        window: Shards mixed at a time.
        rank: This process.
        world: Number of processes.
        first_step: Step to begin with, counted over all epochs.

    Raises:
        ValueError: The batch cannot be shared out, or there are fewer samples than one batch.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        *,
        batch_size: int,
        epochs: int,
        seed: int,
        window: int,
        rank: int = 0,
        world: int = 1,
        first_step: int = 0,
    ) -> None:
        if batch_size % world:
            raise ValueError(
                f"batch_size is {batch_size}, which {world} ranks cannot share evenly: choose a multiple of {world}"
            )
        if batch_size > sum(sizes):
            raise ValueError(
                f"batch_size is {batch_size}, and there are only {sum(sizes)} training samples: choose a smaller one"
            )
        self._sizes, self._batch, self._seed, self._window = list(sizes), batch_size, seed, window
        self._rank, self._world, self._first = rank, world, first_step
        self.steps_per_epoch = sum(sizes) // batch_size
        self.steps = self.steps_per_epoch * epochs

    def __len__(self) -> int:
        return self.steps - self._first

    def __iter__(self) -> Iterator[list[Item]]:
        order: EpochOrder | None = None
        current = -1
        for step in range(self._first, self.steps):
            epoch, position = divmod(step, self.steps_per_epoch)
            if order is None or epoch != current:
                order = EpochOrder(self._sizes, seed=self._seed, epoch=epoch, window=self._window)
                current = epoch
            batch = order.slice(position * self._batch, (position + 1) * self._batch)
            yield [(epoch, int(number)) for number in rank_slice(batch, self._rank, self._world)]


def evaluation_batches(numbers: range, *, batch_size: int, rank: int = 0, world: int = 1) -> list[list[Item]]:
    """A rank's share of a split, each sample once; ranks may differ by one sample, and by one batch."""
    mine = numbers[rank::world]
    return [[(-1, n) for n in mine[start : start + batch_size]] for start in range(0, len(mine), batch_size)]


def make_loader(
    dataset: ClipDataset, batches: Iterable[list[Item]], *, workers: int, pin_memory: bool = False
) -> DataLoader[dict[str, Any]]:
    """A DataLoader over batches of items; workers keep nothing between samples but open files."""
    return DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=workers,
        pin_memory=pin_memory,
        prefetch_factor=4 if workers else None,
        worker_init_fn=_one_thread if workers else None,
    )


def _one_thread(worker: int) -> None:
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
