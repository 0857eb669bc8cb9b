"""Write a set of shards: the same samples give the same bytes, and a set appears as a whole or not at all.

All files are written into a folder beside the target, flushed to disk, and renamed into place at the end. A reader sees
the old set or the new one, and a process that is killed leaves nothing that looks like a set.
"""

from __future__ import annotations

import glob
import hashlib
import io
import os
import shutil
import tarfile
import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
from isal.isal_zlib import crc32

from bmlpipe.manifests.common.errors import OptionError
from bmlpipe.shards.errors import ShardError
from bmlpipe.shards.index import INDEX_FILE, SAMPLE_DTYPE, SAMPLES_FILE, Index, Shard, write_index
from bmlpipe.shards.sample import Sample


class _Recorder(io.RawIOBase):
    """A file that is written, with the SHA-256 of all bytes and the CRC-32 of those since `crc32` was set to 0."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.sha256 = hashlib.sha256()
        self.crc32 = 0
        self.position = 0

    def write(self, data: Any) -> int:  # the signature of RawIOBase
        self._file.write(data)
        self.sha256.update(data)
        self.crc32 = crc32(data, self.crc32)
        self.position += len(data)
        return len(data)

    def tell(self) -> int:
        return self.position


class ShardWriter:
    """A writer of the shards `{split}-000000.tar`, … and their index; use it as a context manager.

    The samples of one split must be written one after the other. When the block ends without an exception, the set is
    put in place. When it ends with one, the new files are removed and an earlier set stays.

    Args:
        out: Folder of the set. An earlier set in it is replaced.
        dataset: Name of the data set.
        classes: Class names by class id.
        features: Feature kind → parameters of its front end, as JSON values.
        samples_per_shard: Number of samples per shard; the last shard of a split may have fewer.
        seed: Seed of the order of the samples, recorded in the index.
        dropped: Flag → number of clips that were left out because of it, recorded in the index.

    Attributes:
        statistics: Feature kind → `mean` and `std` of each channel, recorded in the index; set it before the block
            ends.

    Raises:
        OptionError: `samples_per_shard` is less than 1.
        ShardError: `out` holds other files than a set of shards.

    Examples:
        >>> with ShardWriter(Path("shards"), dataset="mine", classes=["a", "b"], features={}) as writer:
        ...     writer.write("train", Sample("clip-1", 0, {"text.txt": b"hello"}))  # doctest: +SKIP
    """

    def __init__(
        self,
        out: Path,
        *,
        dataset: str,
        classes: Sequence[str],
        features: Mapping[str, Mapping[str, Any]],
        samples_per_shard: int = 1000,
        seed: int = 0,
        dropped: Mapping[str, int] | None = None,
    ) -> None:
        if samples_per_shard < 1:
            raise OptionError(f"samples_per_shard is {samples_per_shard}: must be at least 1")
        if out.is_dir() and any(out.iterdir()) and not (out / INDEX_FILE).is_file():
            raise ShardError(
                f"{out} exists and is not a set of shards: choose an empty or new folder (nothing was changed)"
            )
        self.out = out.absolute()
        nothing = np.empty(0, SAMPLE_DTYPE)
        self._index = Index(dataset, tuple(classes), dict(features), (), nothing, seed, {}, dropped=dict(dropped or {}))
        self._flags: dict[str, Counter[str]] = {}
        self.statistics: Mapping[str, Mapping[str, list[float]]] = {}
        self._per_shard = samples_per_shard
        self._shards: list[Shard] = []
        self._records: list[tuple[bytes, int, int, int, int, int]] = []
        self._keys: set[str] = set()
        self._splits: list[str] = []
        self._tar: tarfile.TarFile | None = None
        self._in_shard = 0

    def __enter__(self) -> ShardWriter:
        self.out.parent.mkdir(parents=True, exist_ok=True)
        for leftover in self.out.parent.glob(
            f".{glob.escape(self.out.name)}.writing-*"
        ):  # of a process that was killed
            if leftover.name.endswith("-old") and not self.out.exists():  # it was killed between its two renamings
                leftover.rename(self.out)
            else:
                shutil.rmtree(leftover)
        self._folder = self.out.parent / f".{self.out.name}.writing-{uuid.uuid4().hex[:8]}"
        self._folder.mkdir()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._finish()
            elif self._tar is not None:
                self._file.close()
        finally:
            shutil.rmtree(self._folder, ignore_errors=True)

    def write(self, split: str, sample: Sample) -> None:
        """Append one sample.

        Args:
            split: Split of the sample.
            sample: The sample.

        Raises:
            ShardError: The key occurs twice, or the split was followed by another one before.
        """
        if sample.key in self._keys:
            raise ShardError(f"key {sample.key!r} occurs twice: keys must be unique in a set of shards")
        if not self._splits or self._splits[-1] != split:
            if split in self._splits:
                raise ShardError(
                    f"split {split!r} comes again after {self._splits[-1]!r}: write all samples of "
                    "one split before the next"
                )
            self._close_shard()
            self._splits.append(split)
        elif self._in_shard == self._per_shard:
            self._close_shard()
        if self._tar is None:
            self._open_shard(split)
        assert self._tar is not None
        start, self._recorder.crc32 = self._recorder.position, 0
        for name, data in sample.files():
            member = tarfile.TarInfo(name)  # with mtime, uid and gid 0 and mode 0644: the same bytes on every machine
            member.size = len(data)
            self._tar.addfile(member, io.BytesIO(data))
        self._keys.add(sample.key)
        self._flags.setdefault(split, Counter()).update(sample.meta.get("flags", ()))
        length = self._recorder.position - start
        self._records.append(
            (sample.key.encode(), start, length, self._recorder.crc32, len(self._shards), sample.label)
        )
        self._in_shard += 1

    def _open_shard(self, split: str) -> None:
        number = sum(shard.split == split for shard in self._shards)
        self._name = f"{split}-{number:06d}.tar"
        self._file = (self._folder / self._name).open("wb")
        self._recorder = _Recorder(self._file)
        self._tar = tarfile.open(fileobj=self._recorder, mode="w", format=tarfile.USTAR_FORMAT)  # noqa: SIM115
        self._in_shard = 0

    def _close_shard(self) -> None:
        if self._tar is None:
            return
        self._tar.close()
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        sha256 = self._recorder.sha256.hexdigest()
        self._shards.append(Shard(self._name, self._splits[-1], self._in_shard, self._recorder.position, sha256))
        self._tar = None

    def _finish(self) -> None:
        self._close_shard()
        index = replace(
            self._index,
            shards=tuple(self._shards),
            samples=np.array(self._records, dtype=SAMPLE_DTYPE),
            statistics=self.statistics,
            flags={split: dict(sorted(counts.items())) for split, counts in self._flags.items()},
        )
        write_index(self._folder, index)
        for name in (SAMPLES_FILE, INDEX_FILE, "."):
            _sync(self._folder / name)
        old = self._folder.with_name(self._folder.name + "-old")
        if self.out.exists():
            self.out.rename(old)
        self._folder.rename(self.out)
        _sync(self.out.parent)
        shutil.rmtree(old, ignore_errors=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
