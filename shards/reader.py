"""Random access to samples: one `pread` per sample, compared with the index."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
from isal.isal_zlib import crc32

from bmlpipe.shards.errors import ShardError
from bmlpipe.shards.index import Index, read_index, was_replaced
from bmlpipe.shards.remote.cache import Cache
from bmlpipe.shards.remote.download import RetryPolicy, redacted
from bmlpipe.shards.remote.prefetch import RemoteShard
from bmlpipe.shards.remote.shard_set import RemoteShards, is_remote
from bmlpipe.shards.sample import JSON_MEMBER

_BLOCK = 512
_REPLACED = "the set was overwritten or removed after it was opened: start again with the present one"


def members_of(data: bytes | memoryview, where: str = "sample") -> dict[str, memoryview]:
    """Split the bytes of one sample (USTAR headers and contents) into members.

    Args:
        data: The sample from its first header to the padding of its last member.
        where: Name of the sample in error messages.

    Returns:
        Member name (after the first dot of the tar name) → contents, a view into `data`.

    Raises:
        ShardError: A tar header is damaged, or a member is incomplete, occurs twice, or belongs to another key.
    """
    view = memoryview(data)
    members: dict[str, memoryview] = {}
    owner: bytes | None = None
    position = 0
    while position < len(view):
        header = bytes(view[position : position + _BLOCK])
        name, _, _ = header[:100].partition(b"\0")
        key, _, suffix = name.partition(b".")
        try:
            size = int(header[124:136].rstrip(b" \0") or b"-", 8)
        except ValueError:
            raise ShardError(
                f"{where}: no tar header at byte {position}: the shard is damaged; run bmlpipe verify"
            ) from None
        end = position + _BLOCK + size
        if not suffix or (owner is not None and key != owner) or suffix.decode() in members or end > len(view):
            raise ShardError(f"{where}: member {name!r} at byte {position} does not belong here: run bmlpipe verify")
        owner = key
        members[suffix.decode()] = view[position + _BLOCK : end]
        position = -(-end // _BLOCK) * _BLOCK
    return members


@dataclass(frozen=True)
class StoredSample:
    """A sample as it is stored.

    Attributes:
        key: Key of the sample.
        label: Class id.
        members: Member name → contents.
    """

    key: str
    label: int
    members: dict[str, memoryview]

    @cached_property
    def meta(self) -> dict[str, Any]:
        """Content of the member `json`."""
        return cast("dict[str, Any]", json.loads(bytes(self.members[JSON_MEMBER])))


class ShardReader:
    """A reader of the samples of a set of shards by number.

    A reader can be shared with forked processes, and pickled for spawned ones.

    Args:
        folder: A set of shards: its folder, or its address for fsspec (`s3://bucket/set/`, `https://host/set/` …).
        check: Compare each sample with its CRC-32 in the index.
        cache: Cache of remote shards; None: that of `bmlpipe.shards.remote.open_cache()`.
        retry: When to retry downloads and when to give up.

    Attributes:
        index: The index.
        folder: The folder, or the address without user name and password.
        remote: The set, if it is at an address; otherwise None.

    Raises:
        ShardError: The index cannot be read.

    Examples:
        >>> reader = ShardReader("shards/vggsound")  # doctest: +SKIP
        >>> reader[17].members["frame_000.jpg"]  # doctest: +SKIP
    """

    def __init__(
        self, folder: Path | str, *, check: bool = True, cache: Cache | None = None, retry: RetryPolicy | None = None
    ) -> None:
        if isinstance(folder, Path) and re.match(r"[a-z][a-z0-9+]+:/[^/]", str(folder)) and not folder.exists():
            raise ShardError(f"{folder} was an address before it was converted to a Path: pass it as a string")
        remote = RemoteShards(str(folder), cache, retry=retry) if is_remote(folder) else None
        self._open(folder, check, remote)

    def _open(self, folder: Path | str, check: bool, remote: RemoteShards | None) -> None:
        self.folder = redacted(str(folder)) if remote else Path(folder)
        self.check = check
        self.remote = remote
        self.index: Index = remote.index if remote else read_index(Path(folder))
        self._descriptors: dict[int, int] = {}

    def __len__(self) -> int:
        """Return the number of samples of all splits."""
        return len(self.index.samples)

    def __getstate__(self) -> tuple[Path | str, bool, RemoteShards | None, str]:
        return (self.folder, self.check, self.remote, self.index.sha256)

    def __setstate__(self, state: tuple[Path | str, bool, RemoteShards | None, str]) -> None:
        self._open(*state[:3])
        if self.index.sha256 != state[3]:
            raise ShardError(f"{self.folder}: {_REPLACED}")

    def __getitem__(self, number: int) -> StoredSample:
        """Read one sample.

        Args:
            number: Number of the sample, from 0, through all splits; see `Index.split_range`.

        Raises:
            ShardError: The shard is missing, damaged or cannot be downloaded.
            IndexError: There is no such sample.
        """
        record = self.index.samples[number]
        name = self.index.shards[int(record["shard"])].file
        where = f"{self.folder}/{name}, key {record['key'].decode()}"
        data, intact = self._read(record)
        if not intact:
            if self.remote is None and was_replaced(Path(self.folder), self.index):
                raise ShardError(f"{where}: {_REPLACED}")
            raise ShardError(
                f"{where}: {len(data)} of {int(record['length'])} bytes were read, and they are damaged: "
                + (f"the index of {self.folder} is damaged" if self.remote else f"run bmlpipe verify {self.folder}")
            )
        return StoredSample(record["key"].decode(), int(record["label"]), members_of(data, where))

    def _read(self, record: np.void) -> tuple[bytes, bool]:
        """Read the bytes of a sample, and return whether they agree with the index.

        A remote shard is opened for this one read, so that the cache can remove it at any time. A damaged one is
        downloaded again, once, and compared with its SHA-256.
        """
        shard, offset, length = int(record["shard"]), int(record["offset"]), int(record["length"])
        data, intact = b"", False
        for _ in range(2 if self.remote else 1):
            descriptor = self.remote.open(shard) if self.remote else self._descriptor(shard)
            try:
                data = os.pread(descriptor, length, offset)
                intact = len(data) == length and (not self.check or crc32(data) == int(record["crc32"]))
                if self.remote and not intact:
                    self.remote.cache.discard(self.remote.entries[shard], descriptor)
            finally:
                if self.remote:
                    os.close(descriptor)
            if intact:
                break
        return data, intact

    def _descriptor(self, shard: int) -> int:
        """Return the descriptor of a local shard, opened at its first use."""
        if shard not in self._descriptors:
            if len(self._descriptors) >= 64:  # the order of an epoch does not come back to old shards
                os.close(self._descriptors.pop(next(iter(self._descriptors))))
            self._descriptors[shard] = self._open_local(Path(self.folder) / self.index.shards[shard].file)
        return self._descriptors[shard]

    def _open_local(self, path: Path) -> int:
        for _ in range(2):  # try twice, in case the same set was just being rewritten
            try:
                return os.open(path, os.O_RDONLY)
            except FileNotFoundError:
                if was_replaced(Path(self.folder), self.index):
                    raise ShardError(f"{path}: {_REPLACED}") from None
        raise ShardError(f"{path} is missing: run bmlpipe shard again")

    def check_cache_size(self, shards: int) -> None:
        """Check that this number of shards fits into the cache at the same time; a local set needs no cache.

        Raises:
            ShardError: It does not.
        """
        if self.remote is not None:
            self.remote.check_cache_size(shards)

    def remote_shards_of(self, numbers: Sequence[int]) -> list[RemoteShard]:
        """Return the remote shards that hold these samples, for `PrefetchingBatches`; empty for a local set."""
        return [RemoteShard(self.remote, shard) for shard in self.remote.shards_of(numbers)] if self.remote else []

    def close(self) -> None:
        """Close all files."""
        while self._descriptors:
            os.close(self._descriptors.popitem()[1])
        if self.remote is not None:
            self.remote.close()
