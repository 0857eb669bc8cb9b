"""Load batches from shards: a map-style data set over the index, and torch's DataLoader.

Symbols of shapes: B samples of a rank's batch, T instants (frames), H = W the image size, F frequency bins, N windows,
n sound samples, L the stack (number of flow fields or RGB differences per instant).
"""

from __future__ import annotations

import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from bmlpipe.manifests.common.signals import signals_blocked
from bmlpipe.shards.combined_reader import CombinedReader
from bmlpipe.shards.errors import ShardError
from bmlpipe.shards.kinds import KINDS, MODALITY_KIND, Storage, kind_named
from bmlpipe.shards.reader import ShardReader, StoredSample
from bmlpipe.shards.remote.prefetch import BatchSampler, PrefetchingBatches
from bmlpipe.train.data import decode
from bmlpipe.train.data.sampler import BatchItem
from bmlpipe.train.data.shared_memory import Allocate, MemoryPool, SharedMemoryDataset

Array = npt.NDArray[Any]

_DECODE = {Storage.NPY: decode.spectrogram, Storage.FLAC: decode.waveform}
_PER_SAMPLE = {"label", "number", "weight"}  # entries of a batch that are one number per sample
_PREFETCH = 4  # batches that a loader process loads ahead

#: A batch; see `ClipDataset.__getitems__`.
Batch = dict[str, Tensor]


class ClipDataset(Dataset[Batch]):
    """The raw inputs of the encoders: pictures as uint8, spectrograms as stored (float16), sound as int16.

    Args:
        shards: Folder or address of a set of shards, or its reader.
        modalities: Modalities to load.
        kinds: Modality → feature kind that it reads.
        frames: T, the number of instants per sample.
        image_size: H = W, in pixels.
        augment: Whether training gets random crops, flips and frames; evaluation never does.
        seed: Seed of the run.

    Attributes:
        reader: Reader of the shards.

    Raises:
        ShardError: The shards lack the feature of a modality.
    """

    def __init__(
        self,
        shards: Path | str | ShardReader | CombinedReader,
        modalities: Sequence[str],
        *,
        kinds: Mapping[str, str] = MODALITY_KIND,
        frames: int,
        image_size: int,
        augment: bool,
        seed: int,
    ) -> None:
        self.reader = ShardReader(shards) if isinstance(shards, Path | str) else shards
        self._kinds = {modality: kind_named(kinds[modality]) for modality in modalities}
        self._modalities, self._frames, self._size = tuple(modalities), frames, image_size
        self._augment, self._seed = augment, seed
        self._pool = MemoryPool(self.pool_size)
        features = self.reader.index.features
        for modality, kind in self._kinds.items():
            if kind.name not in features:
                raise ShardError(
                    f"modality {modality} needs {kind.name}, but the shards hold only {', '.join(features)}: choose "
                    f"other --modalities, or extract and shard with --kinds {','.join([*features, kind.name])}"
                )
        self._stacks = {modality: int(features[kind.name].get("stack", 1)) for modality, kind in self._kinds.items()}

    @property
    def pool_size(self) -> int:
        """Number of memory blocks that a process needs: for batches loaded ahead, batches in use, and the next one."""
        return len(self._modalities) * (_PREFETCH + 3)

    def __len__(self) -> int:
        return len(self.reader)

    def __getitem__(self, item: BatchItem) -> Batch:
        """Load one sample: a batch of one, without its first axis."""
        return {name: value[0] for name, value in self.__getitems__([item]).items()}

    def __getitems__(self, items: Sequence[BatchItem]) -> Batch:
        """Load a batch; the DataLoader calls this. Every sample is decoded directly into the batch.

        Args:
            items: The samples to load.

        Returns:
            `label` and `number`, (B,), int64; `weight`, (B,), float32, 0 for padding, else 1; and one entry per
            modality: `audio` (B, 1, F, N), float16, or as sound (B, 1, n), int16; `visual` (B, T, 3, H, W), `flow`
            (B, T, 2L, H, W) and `rgb_diff` (B, T, 3L, H, W), uint8. The channels of pictures are last in memory, as
            they are decoded.

        Raises:
            ShardError: A sample is damaged or incomplete, or its spectrogram is not as long as those of the batch.
        """
        return _as_batch(self.arrays(items, self._pool.array))

    def arrays(self, items: Sequence[BatchItem], allocate: Allocate) -> dict[str, Array]:
        """Load the arrays of a batch as they are decoded; those of modalities lie in memory from `allocate`.

        Raises:
            ShardError: As `__getitems__`.
        """
        epochs, numbers, padding = np.array(items, dtype=np.int64).T.copy()
        random = decode.uniform_numbers(self._seed, epochs, numbers, 5 + self._frames).tolist()
        labels = np.empty(len(items), dtype=np.int64)
        arrays = dict[str, Array]()
        for row, number in enumerate(numbers.tolist()):
            sample = self.reader[number]
            labels[row] = sample.label
            try:
                if row == 0:
                    arrays = {m: allocate(m, *self._layout(m, len(items), sample)) for m in self._modalities}
                self._load(sample, random[row] if self._augment and epochs[row] >= 0 else None, arrays, row)
            except decode.DamagedMemberError as error:
                raise ShardError(f"sample {sample.key}: {error}: run bmlpipe verify") from error
        return {
            "label": labels,
            "number": numbers,
            "weight": (padding == 0).astype(np.float32),
            **arrays,
        }

    def _layout(self, modality: str, count: int, first: StoredSample) -> tuple[tuple[int, ...], npt.DTypeLike]:
        """Return shape and type of a batch: pictures (B, T, planes, H, W, C); an array or sound (B, *its own shape)."""
        kind = self._kinds[modality]
        if not kind.is_pictures:
            values = self._values(modality, first)
            return (count, *values.shape), values.dtype
        planes = len(kind.members_at(0, self._stacks[modality]))
        return (count, self._frames, planes, self._size, self._size, kind.picture_channels), np.uint8

    def _values(self, modality: str, sample: StoredSample) -> Array:
        """Decode the array or sound of a modality that does not read pictures."""
        kind = self._kinds[modality]
        return _DECODE[kind.storage](_member(sample, kind.member))

    def _load(
        self, sample: StoredSample, random: Sequence[float] | None, arrays: Mapping[str, Array], row: int
    ) -> None:
        """Decode one sample into its row of the batch."""
        crop: decode.Crop | None = None
        for modality, array in arrays.items():
            kind = self._kinds[modality]
            if not kind.is_pictures:
                values = self._values(modality, sample)
                if values.shape != array.shape[1:]:
                    raise ShardError(
                        f"sample {sample.key}: its {kind.name} has the shape {values.shape}, but another sample of the "
                        f"batch has {array.shape[1:]}: extract all clips with the same --seconds"
                    )
                array[row] = values
                continue
            if kind.name not in sample.meta:
                raise decode.DamagedMemberError(f"it has no {kind.name}")
            crop = crop or _crop(sample, random)
            instants = len(sample.meta[kind.name]["times"])
            chosen = decode.choose_instants(instants, self._frames, random and random[5:])
            for planes, instant in zip(array[row], chosen):
                for out, member in zip(planes, kind.members_at(instant, self._stacks[modality])):
                    decode.picture(_member(sample, member), crop, out)
                    if crop.flip and kind.changes_sign(member):
                        decode.mirror_motion(out)


def _member(sample: StoredSample, name: str) -> bytes | memoryview:
    if name not in sample.members:
        raise decode.DamagedMemberError(f"it has no {name}")
    return sample.members[name]


def _crop(sample: StoredSample, random: Sequence[float] | None) -> decode.Crop:
    """Choose the crop of all pictures of a sample, whichever modalities are loaded."""
    stored = next(sample.meta[kind.name] for kind in KINDS.values() if kind.is_pictures and kind.name in sample.meta)
    height, width = stored["height"], stored["width"]
    return decode.random_crop(height, width, random) if random else decode.centre_crop(height, width)


def _as_batch(arrays: Mapping[str, Array]) -> Batch:
    """Turn arrays into tensors of the documented shapes, in the same memory."""
    batch = {name: torch.from_numpy(array) for name, array in arrays.items()}
    for name, memory in batch.items():
        if memory.ndim == 6:  # pictures (B, T, planes, H, W, C)
            batch[name] = memory.permute(0, 1, 2, 5, 3, 4).flatten(2, 3)
        elif name not in _PER_SAMPLE:
            batch[name] = memory[:, None]
    return batch


def make_loader(
    dataset: ClipDataset, batches: BatchSampler[list[BatchItem]], *, workers: int, pin_memory: bool = False
) -> DataLoader[Batch]:
    """Make a DataLoader. Shards at an address are downloaded ahead of the batches that need them.

    Args:
        dataset: The samples.
        batches: Batches of items.
        workers: Number of loader processes; 0: load in this process.
        pin_memory: Whether to copy batches to pinned memory, for asynchronous copies to CUDA devices.
    """
    if dataset.reader.remote:
        in_flight = max(1, _PREFETCH * workers)
        batches = PrefetchingBatches(
            batches, lambda batch: dataset.reader.remote_shards_of(_numbers(batch)), in_flight=in_flight
        )
    return DataLoader(
        SharedMemoryDataset(dataset.arrays, _as_batch, keep=dataset.pool_size) if workers else dataset,
        batch_sampler=batches,
        collate_fn=_unchanged,
        num_workers=workers,
        pin_memory=pin_memory,
        prefetch_factor=_PREFETCH if workers else None,
        worker_init_fn=_one_thread if workers else None,
    )


@contextmanager
def reading(loader: DataLoader[Batch]) -> Iterator[Iterator[Batch]]:
    """Iterate over the batches of a loader; its loader processes end with the block.

    Without the block the traceback of an error would keep the iterator alive, and with it the loader processes, beyond
    the end of the program.

    SLURM and container engines send SIGTERM to all processes of a job. The loader processes never receive it, even
    while they start, so that this process can still save a checkpoint; it ends them itself.
    """
    with signals_blocked(signal.SIGTERM):
        batches = iter(loader)
    try:
        yield batches
    finally:
        if loader.num_workers:
            batches._shutdown_workers()  # type: ignore[attr-defined]


def _numbers(batch: Sequence[BatchItem]) -> list[int]:
    return [item.number for item in batch]


def _unchanged(batch: Any) -> Any:
    return batch  # the data set has collated it already


def _one_thread(worker: int) -> None:
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
