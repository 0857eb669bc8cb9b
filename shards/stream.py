"""Read shards with a stock webdataset pipeline, for training loops that are not bmlpipe's.

`bmlpipe.train` reads shards at random and needs none of this. A loop that is built on webdataset gets the same samples
here, in webdataset's form: a dictionary per sample, keyed by member name. All stages are webdataset's own (shard list,
split over nodes and workers, tar iteration, grouping by key, shuffle buffer) except opening and checking, because stock
webdataset reports none of the following (observed with version 1.0.2):

- A tar that is cut between two members, or whose header is damaged, ends early without an error. Here the samples of
  each shard are compared with the index: key, label, order and number. Members are compared with the size and CRC-32
  that the sample's JSON lists. The JSON itself has no checksum in this reader; `bmlpipe verify` covers it.
- A remote shard whose download breaks off is read up to that point. Here remote shards come through bmlpipe's cache,
  which compares each with its SHA-256 before it is read.

Limits of webdataset by design, and remedies:

- **Whole shards are dealt out to ranks and workers.** 10 shards on 8 ranks give some ranks twice as many batches as
  others, and distributed training hangs at the first collective that a rank does not join. `equal=True` makes every
  worker of every rank yield the same number of samples; `ShardPipeline.shares` tells how many each would have.
- **Fewer shards than ranks × workers** leave a worker without data. This raises ShardError here.
- **The order repeats in every epoch** unless workers persist. Here the order is a function of `seed` and `epoch`: make
  the pipeline of each epoch with its own `epoch`. It does depend on the number of ranks and workers, unlike the order
  of `bmlpipe.shards.order`.
- **The position inside an epoch cannot be restored.** Resume at the beginning of an epoch, or use `ShardReader` with
  `bmlpipe.shards.order.EpochOrder`.
- **`resampled=True` draws shards with replacement**: 173 of 255 samples were seen in one "epoch". It is not offered.
"""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Collection, Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any, BinaryIO

import numpy as np
import simplejpeg
import webdataset as wds
from isal.isal_zlib import crc32
from webdataset.compat import FluidInterface
from webdataset.tariterators import group_by_keys, tar_file_expander
from webdataset.utils import pytorch_worker_info

from bmlpipe.shards.errors import ShardError
from bmlpipe.shards.kinds import kind_of
from bmlpipe.shards.order import keyed_bits
from bmlpipe.shards.reader import ShardReader
from bmlpipe.shards.sample import JSON_MEMBER
from bmlpipe.shards.targets import CLASS

_Sample = dict[str, Any]


class ShardPipeline(wds.DataPipeline, FluidInterface):  # type: ignore[misc]  # webdataset has no types
    """A webdataset pipeline over one split; `map`, `to_tuple`, `batched`, `compose` … work as on `wds.WebDataset`.

    Attributes:
        sizes: Number of samples of each shard, in the order in which shards are dealt out.
    """

    def __init__(self, *stages: Any, sizes: tuple[int, ...]) -> None:
        super().__init__(*stages)
        self.sizes = sizes

    def shares(self, ranks: int = 1, workers: int = 1) -> list[list[int]]:
        """Compute the number of samples that each worker reads in one epoch without `equal`.

        Args:
            ranks: Number of processes that train together.
            workers: DataLoader workers per rank; 1 also stands for a DataLoader without workers.

        Returns:
            One row per rank with one number per worker.
        """
        return _shares(self.sizes, ranks, workers)


def webdataset_pipeline(
    shards: Path | str | ShardReader,
    split: str,
    *,
    kinds: Collection[str] | None = None,
    decode: bool = True,
    shuffle: int = 0,
    seed: int = 0,
    epoch: int = 0,
    equal: bool = False,
) -> ShardPipeline:
    """Make a webdataset pipeline over one split of a set of shards.

    Ranks are taken from `RANK` and `WORLD_SIZE` or from `torch.distributed`, workers from the DataLoader.

    Args:
        shards: A set of shards: its folder, its address, or a `ShardReader` (for a cache of your own).
        split: `train`, `val` or `test`.
        kinds: Feature kinds whose members are kept; None: all kinds of the set. `cls` and `json` are always kept.
        decode: Decode members (see `decode_member`); False: leave them as bytes.
        shuffle: Size of the shuffle buffer in samples; with a buffer the order of shards is shuffled, too. 0: keep the
            order of the index.
        seed: Seed of both shuffles.
        epoch: Epoch, from 0. Another epoch has another order.
        equal: Let every worker of every rank yield the same number of samples, the smallest of `shares`. Samples beyond
            that number are left out in this epoch.

    Returns:
        A pipeline that yields one dictionary per sample: `__key__`, `__url__`, and each member by its name after the
        key, for example `frame_000.jpg`, `spectrogram.npy`, `waveform.flac`, `cls`, `json`.

    Raises:
        ShardError: The set cannot be read, or has no such split or kind. While iterating: there are fewer shards than
            ranks × workers, or a shard is missing or damaged.

    Examples:
        >>> pipeline = webdataset_pipeline("shards/vggsound", "train", shuffle=2000, epoch=epoch)  # doctest: +SKIP
        >>> batches = pipeline.to_tuple("frame_000.jpg", "spectrogram.npy", "cls").batched(64)  # doctest: +SKIP
        >>> loader = wds.WebLoader(batches, batch_size=None, num_workers=4)  # doctest: +SKIP
    """
    reader = shards if isinstance(shards, ShardReader) else ShardReader(shards)
    index = reader.index
    if missing := sorted(set(kinds or ()) - set(index.features)):
        raise ShardError(
            f"{reader.folder} has no {', '.join(missing)}: choose kinds from {', '.join(index.features)}, "
            "or extract and shard them"
        )
    chosen = index.split_shards(split)
    numbers = [number for number, shard in enumerate(index.shards) if shard in chosen]
    if shuffle:
        order = np.argsort(keyed_bits(seed, epoch, 0, np.arange(len(numbers))), kind="stable")
        numbers = [numbers[place] for place in order]
    urls = {f"{reader.folder}/{index.shards[number].file}": number for number in numbers}
    sizes = tuple(index.shards[number].samples for number in numbers)
    return ShardPipeline(
        wds.SimpleShardList(list(urls)),
        _EnoughShards(f"{reader.folder}, split {split!r}", len(urls)),
        wds.split_by_node,
        wds.split_by_worker,
        _ReadShards(reader, urls, tuple(index.features if kinds is None else kinds)),
        _Shuffle(shuffle, int(keyed_bits(seed, epoch, 3)[0])) if shuffle else None,
        wds.map(_decoded) if decode else None,
        _Equal(sizes) if equal else None,
        sizes=sizes,
    )


def decode_member(name: str, data: bytes | memoryview) -> Any:
    """Decode one member of a sample by the suffix of its name.

    Args:
        name: Member name after the key, for example `frame_000.jpg`.
        data: Its contents.

    Returns:
        `.jpg`: uint8 array, (height, width, 3) RGB, or (height, width) for a grey picture. `.npy`: the array. `.flac`:
        int16 samples, (n,) mono. `.txt`: text. `json`: dictionary. `cls`: int. Everything else: bytes.

    Raises:
        ValueError: The contents are not of this type.
    """
    suffix = name.rpartition(".")[2]
    if suffix == "jpg":
        grey = simplejpeg.decode_jpeg_header(data)[2] == "Gray"
        picture = simplejpeg.decode_jpeg(data, "GRAY" if grey else "RGB")
        return picture[..., 0] if grey else picture
    if suffix == "npy":
        return np.load(io.BytesIO(data), allow_pickle=False)
    if suffix == "flac":
        import soundfile  # only sound needs it

        return soundfile.read(io.BytesIO(data), dtype="int16")[0]
    if suffix == "txt":
        return bytes(data).decode()
    if suffix == JSON_MEMBER:
        return json.loads(bytes(data))
    return int(bytes(data)) if suffix == CLASS.member else bytes(data)


def _decoded(sample: _Sample) -> _Sample:
    return {name: value if name.startswith("__") else decode_member(name, value) for name, value in sample.items()}


def _shares(sizes: tuple[int, ...], ranks: int, workers: int) -> list[list[int]]:
    """Count the samples per worker, dealt out as `split_by_node` and `split_by_worker` deal out shards."""
    return [[sum(sizes[rank::ranks][worker::workers]) for worker in range(workers)] for rank in range(ranks)]


class _EnoughShards:
    """A stage that refuses to leave a worker without a shard."""

    def __init__(self, where: str, shards: int) -> None:
        self._where, self._shards = where, shards

    def __call__(self, sources: Iterable[_Sample]) -> Iterator[_Sample]:
        _, ranks, _, workers = pytorch_worker_info()
        if self._shards < ranks * workers:
            raise ShardError(
                f"{self._where} has {self._shards} shards, and {ranks} ranks with {workers} workers each need at least "
                f"{ranks * workers}: use fewer workers, or shard again with a smaller --samples-per-shard"
            )
        yield from sources


class _Shuffle:
    """webdataset's shuffle buffer with the same random numbers in every iteration."""

    def __init__(self, size: int, seed: int) -> None:
        self._size, self._seed = size, seed

    def __call__(self, samples: Iterable[_Sample]) -> Iterator[_Sample]:
        shuffled: Iterator[_Sample] = wds.shuffle(self._size, rng=Random(self._seed))(samples)
        return shuffled


class _Equal:
    """A stage that limits each worker to the number of samples of the worker with the fewest."""

    def __init__(self, sizes: tuple[int, ...]) -> None:
        self._sizes = sizes

    def __call__(self, samples: Iterable[_Sample]) -> Iterator[_Sample]:
        _, ranks, _, workers = pytorch_worker_info()
        return islice(samples, min(map(min, _shares(self._sizes, ranks, workers))))


class _ReadShards:
    """A stage that turns shard names into checked samples, by webdataset's own tar iteration."""

    def __init__(self, reader: ShardReader, numbers: Mapping[str, int], kinds: tuple[str, ...]) -> None:
        self._reader, self._numbers, self._kinds = reader, numbers, kinds

    def __call__(self, sources: Iterable[_Sample]) -> Iterator[_Sample]:
        for source in sources:
            yield from self._read(source["url"])

    def _read(self, url: str) -> Iterator[_Sample]:
        number = self._numbers[url]
        index = self._reader.index
        first = sum(shard.samples for shard in index.shards[:number])
        records = index.samples[first : first + index.shards[number].samples]
        damaged = f"the shard is damaged or was replaced, run bmlpipe verify {self._reader.folder}"
        with self._open(number) as stream:
            files = tar_file_expander([{"url": url, "stream": stream}], select_files=self._selects)
            samples, count = group_by_keys(files), 0
            while True:
                try:
                    sample = next(samples, None)
                except (tarfile.TarError, OSError, ValueError) as error:
                    raise ShardError(f"{url}: sample {count} cannot be read ({error}): {damaged}") from error
                if sample is None:
                    break
                if count == len(records) or not self._agrees(sample, records[count]):
                    raise ShardError(f"{url}: sample {count} is not the one that was written: {damaged}")
                count += 1
                yield sample
        if count < len(records):
            raise ShardError(f"{url}: ends after {count} of {len(records)} samples: {damaged}")

    def _open(self, number: int) -> BinaryIO:
        if self._reader.remote is not None:
            return os.fdopen(self._reader.remote.open(number), "rb")
        return (Path(self._reader.folder) / self._reader.index.shards[number].file).open("rb")

    def _selects(self, name: str) -> bool:
        suffix = name.partition(".")[2]
        return suffix in (CLASS.member, JSON_MEMBER) or kind_of(suffix) in self._kinds

    def _agrees(self, sample: _Sample, record: np.void) -> bool:
        """Return whether a sample has the key, label and members that the index and its own JSON state."""
        if sample["__key__"].encode() != record["key"] or sample.get(CLASS.member) != CLASS.encode(
            int(record[CLASS.field])
        ):
            return False
        try:
            listed = json.loads(sample[JSON_MEMBER])["members"]
        except (KeyError, ValueError, TypeError):
            return False
        expected = {name: tuple(listed[name]) for name in listed if kind_of(name) in self._kinds}
        found = {
            name: (len(data), crc32(data))
            for name, data in sample.items()
            if not name.startswith("__") and name not in (CLASS.member, JSON_MEMBER)
        }
        return found == expected
