"""Random access to samples: one `pread` each, checked against the index."""

from __future__ import annotations

import json
import os
import zlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

from bmlpipe.shards.index import Index, read_index
from bmlpipe.shards.spec import JSON_MEMBER, ShardError

_BLOCK = 512


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
        folder: A set of shards.
        check: Compare each sample with its CRC-32 in the index.
    """

    def __init__(self, folder: Path, *, check: bool = True) -> None:
        self.folder = folder
        self.check = check
        self.index: Index = read_index(folder)
        self._descriptors: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self.index.samples)

    def __getstate__(self) -> tuple[Path, bool]:
        return (self.folder, self.check)

    def __setstate__(self, state: tuple[Path, bool]) -> None:
        self.__init__(state[0], check=state[1])  # type: ignore[misc]

    def __getitem__(self, number: int) -> StoredSample:
        record = self.index.samples[number]
        shard, length = int(record["shard"]), int(record["length"])
        name = self.index.shards[shard].file
        where = f"{self.folder / name}, key {record['key'].decode()}"
        if shard not in self._descriptors:
            if len(self._descriptors) >= 64:  # windows of the epoch's order move on; old shards are not read again
                os.close(self._descriptors.pop(next(iter(self._descriptors))))
            self._descriptors[shard] = os.open(self.folder / name, os.O_RDONLY)
        data = os.pread(self._descriptors[shard], length, int(record["offset"]))
        if len(data) != length or (self.check and zlib.crc32(data) != int(record["crc32"])):
            raise ShardError(
                f"{where}: {len(data)} of {length} bytes read, and not those that were written: "
                f"run bmlpipe verify {self.folder}"
            )
        return StoredSample(record["key"].decode(), int(record["label"]), members_of(data, where))

    def close(self) -> None:
        """Close all files."""
        while self._descriptors:
            os.close(self._descriptors.popitem()[1])
