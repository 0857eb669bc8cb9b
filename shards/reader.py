"""Random access to samples: one `pread` each, checked against the index."""

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
from bmlpipe.shards.index import Index, read_index, replaced
from bmlpipe.shards.remote.cache import Cache
from bmlpipe.shards.remote.download import Patience, shown
from bmlpipe.shards.remote.shard_set import RemoteShards, is_remote
from bmlpipe.shards.sample import JSON_MEMBER

_BLOCK = 512
_REPLACED = "the set was written again or removed after it was opened here: start again, on the new one"


def members_of(data: bytes | memoryview, where: str = "sample") -> dict[str, memoryview]:
    """Split the bytes of one sample (USTAR headers and contents) into members.

    Args:
        data: Whole tar blocks from the sample's first header to the padding of its last member.
        where: What to call it in an error.

    Returns:
        Member suffix (name after the first dot) → contents, a view into `data`.

    Raises:
        ShardError: A header is not one, a member is cut, occurs twice, or belongs to another key.
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
                f"{where}: no tar header at byte {position}: the shard is damaged, run bmlpipe verify"
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
    """A sample as read.

    Attributes:
        key: Sample key.
        label: Class id.
        members: Member suffix → contents.
    """

    key: str
    label: int
    members: dict[str, memoryview]

    @cached_property
    def meta(self) -> dict[str, Any]:
        """The JSON member."""
        return cast("dict[str, Any]", json.loads(bytes(self.members[JSON_MEMBER])))


class ShardReader:
    """Reads samples by number; safe to share with forked workers and to pickle for spawned ones.

    Args:
        folder: A set of shards: a folder, or an address of fsspec (`s3://bucket/set/`, `https://host/set/` …).
        check: Compare each sample with its CRC-32 in the index.
        cache: Where shards from an address are kept; None: `bmlpipe.shards.remote.shard_set.open_cache()`.
        patience: When to give up fetching them.

    Attributes:
        remote: The set where it is at an address, else None.
        index: The index.

    Raises:
        ShardError: The index cannot be read.
    """

    def __init__(
        self, folder: Path | str, *, check: bool = True, cache: Cache | None = None, patience: Patience | None = None
    ) -> None:
        if isinstance(folder, Path) and re.match(r"[a-z][a-z0-9+]+:/[^/]", str(folder)) and not folder.exists():
            raise ShardError(f"{folder} was an address, before it was made a Path: give it as text")
        remote = RemoteShards(str(folder), cache, patience=patience) if is_remote(folder) else None
        self._open(folder, check, remote)

    def _open(self, folder: Path | str, check: bool, remote: RemoteShards | None) -> None:
        self.folder = shown(str(folder)) if remote else Path(folder)
        self.check = check
        self.remote = remote
        self.index: Index = remote.index if remote else read_index(Path(folder))
        self._descriptors: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self.index.samples)

    def __getstate__(self) -> tuple[Path | str, bool, RemoteShards | None, str]:
        return (self.folder, self.check, self.remote, self.index.sha256)

    def __setstate__(self, state: tuple[Path | str, bool, RemoteShards | None, str]) -> None:
        self._open(*state[:3])
        if self.index.sha256 != state[3]:
            raise ShardError(f"{self.folder}: {_REPLACED}")

    def __getitem__(self, number: int) -> StoredSample:
        record = self.index.samples[number]
        name = self.index.shards[int(record["shard"])].file
        where = f"{self.folder}/{name}, key {record['key'].decode()}"
        data, sound = self._read(record)
        if not sound:
            if self.remote is None and replaced(Path(self.folder), self.index):
                raise ShardError(f"{where}: {_REPLACED}")
            raise ShardError(
                f"{where}: {len(data)} of {int(record['length'])} bytes read, and not those that were written: "
                + (f"the index of {self.folder} is damaged" if self.remote else f"run bmlpipe verify {self.folder}")
            )
        return StoredSample(record["key"].decode(), int(record["label"]), members_of(data, where))

    def _read(self, record: np.void) -> tuple[bytes, bool]:
        """The bytes of a sample, and whether they are those that were written.

        A remote shard is opened for this one read, so that it can go from the cache at any time; one that is damaged
        there is fetched again, once: all of it is compared with its SHA-256 then.
        """
        shard, offset, length = int(record["shard"]), int(record["offset"]), int(record["length"])
        data, sound = b"", False
        for _ in range(2 if self.remote else 1):
            descriptor = self.remote.open(shard) if self.remote else self._descriptor(shard)
            try:
                data = os.pread(descriptor, length, offset)
                sound = len(data) == length and (not self.check or crc32(data) == int(record["crc32"]))
                if self.remote and not sound:
                    self.remote.cache.forget(self.remote.entries[shard], descriptor)
            finally:
                if self.remote:
                    os.close(descriptor)
            if sound:
                break
        return data, sound

    def _descriptor(self, shard: int) -> int:
        """A local shard, open."""
        if shard not in self._descriptors:
            if len(self._descriptors) >= 64:  # windows of the epoch's order move on; old shards are not read again
                os.close(self._descriptors.pop(next(iter(self._descriptors))))
            self._descriptors[shard] = self._open_local(Path(self.folder) / self.index.shards[shard].file)
        return self._descriptors[shard]

    def _open_local(self, path: Path) -> int:
        for _ in range(2):  # again where the same set was being put in its place
            try:
                return os.open(path, os.O_RDONLY)
            except FileNotFoundError:
                if replaced(Path(self.folder), self.index):
                    raise ShardError(f"{path}: {_REPLACED}") from None
        raise ShardError(f"{path} is missing: write the shards again")

    def check_room(self, shards: int) -> None:
        """Check that so many shards fit into the cache at the same time; a folder needs none.

        Raises:
            ShardError: They do not.
        """
        if self.remote is not None:
            self.remote.check_room(shards)

    def needs(self, numbers: Sequence[int]) -> list[tuple[RemoteShards, int]]:
        """The remote shards that samples are in, for `FetchAhead`; none in a folder."""
        return [(self.remote, shard) for shard in self.remote.shards_of(numbers)] if self.remote else []

    def close(self) -> None:
        """Close all files."""
        while self._descriptors:
            os.close(self._descriptors.popitem()[1])
        if self.remote is not None:
            self.remote.close()
