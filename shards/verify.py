"""Reread a set of shards and compare it with its index; every difference is one row."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bmlpipe.shards.index import INDEX_FILE, SAMPLES_FILE, Index, Shard, read_index
from bmlpipe.shards.reader import members_of
from bmlpipe.shards.spec import CLASS_MEMBER, JSON_MEMBER, SPECTROGRAM_MEMBER, ShardError

_KIND_PREFIX = {"frames": "frame_", "spectrogram": SPECTROGRAM_MEMBER, "flow": "flow_"}


@dataclass(frozen=True)
class Fault:
    """One difference between shards and index; `key` and `member` are empty where it concerns a whole file."""

    shard: str
    key: str
    member: str
    message: str


def verify(folder: Path, progress: Callable[[int], None] | None = None) -> Iterator[Fault]:
    """Compare every byte of the shards with the index.

    Args:
        folder: A set of shards.
        progress: Called with the number of bytes read since the last call.

    Yields:
        Faults, none for a sound set.

    Raises:
        ShardError: There is no readable index to compare with.
    """
    index = read_index(folder)
    samples_hash = json.loads((folder / INDEX_FILE).read_text(encoding="utf-8"))["samples"]["sha256"]
    if hashlib.sha256((folder / SAMPLES_FILE).read_bytes()).hexdigest() != samples_hash:
        yield Fault(SAMPLES_FILE, "", "", f"its SHA-256 is not the one in {INDEX_FILE}")
    listed = {shard.file for shard in index.shards}
    for stray in sorted(path.name for path in folder.glob("*.tar") if path.name not in listed):
        yield Fault(stray, "", "", "is not in the index")
    first = 0
    for number, shard in enumerate(index.shards):
        yield from _shard(folder, index, number, shard, first, progress)
        first += shard.samples


def _shard(
    folder: Path, index: Index, number: int, shard: Shard, first: int, progress: Callable[[int], None] | None
) -> Iterator[Fault]:
    path = folder / shard.file
    if not path.is_file():
        yield Fault(shard.file, "", "", "is missing")
        return
    if path.stat().st_size != shard.bytes:
        yield Fault(shard.file, "", "", f"has {path.stat().st_size} bytes, the index says {shard.bytes}")
    records = index.samples[first : first + shard.samples]
    ends = np.concatenate([[0], (records["offset"] + records["length"])])
    if (records["shard"] != number).any() or (records["offset"] != ends[:-1]).any():
        yield Fault(
            shard.file,
            "",
            "",
            "its samples in the index do not follow one another: the index does not belong to it",
        )
    whole = hashlib.sha256()
    found = False
    with path.open("rb") as file:
        for record in records:
            data = file.read(int(record["length"]))
            whole.update(data)
            if progress:
                progress(len(data))
            for fault in _sample(index, shard.file, record, data):
                found = True
                yield fault
        while rest := file.read(1 << 20):
            whole.update(rest)
    if not found and whole.hexdigest() != shard.sha256:
        yield Fault(
            shard.file,
            "",
            "",
            "its SHA-256 is not the one in the index, and the samples are sound: damage is in its end",
        )


def _sample(index: Index, shard: str, record: np.void, data: bytes) -> Iterator[Fault]:
    key = record["key"].decode()
    sound = zlib.crc32(data) == int(record["crc32"])
    if len(data) != int(record["length"]):
        yield Fault(shard, key, "", f"only {len(data)} of {int(record['length'])} bytes are there: the shard is cut")
        return
    try:
        members = members_of(data, key)
        meta = json.loads(bytes(members[JSON_MEMBER]))
        expected: dict[str, list[int]] = meta["members"]
        label = int(bytes(members[CLASS_MEMBER]))
    except (ShardError, KeyError, ValueError, TypeError) as error:
        yield Fault(shard, key, "", f"cannot be read as a sample: {type(error).__name__}: {error}")
        return
    faults = [
        Fault(shard, key, name, "is missing" if name not in members else "is not in the sample's own list")
        for name in sorted(expected.keys() ^ (members.keys() - {CLASS_MEMBER, JSON_MEMBER}))
    ]
    faults += [
        Fault(shard, key, name, "its contents are not those that were written")
        for name, (size, crc) in sorted(expected.items())
        if name in members and (len(members[name]) != size or zlib.crc32(members[name]) != crc)
    ]
    faults += [
        Fault(shard, key, "", f"has no {kind}, which the index promises")
        for kind in index.features
        if not any(name.startswith(_KIND_PREFIX[kind]) for name in members)
    ]
    if bytes(data[: len(key) + 1]) != f"{key}.".encode():
        faults.append(Fault(shard, key, "", f"another sample stands here: {bytes(data[:100]).split(b'.')[0]!r}"))
    if label != int(record["label"]) or not 0 <= label < len(index.classes):
        faults.append(
            Fault(
                shard,
                key,
                CLASS_MEMBER,
                f"is {label}, the index says {int(record['label'])} of {len(index.classes)} classes",
            )
        )
    if not faults and not sound:
        faults.append(
            Fault(
                shard,
                key,
                f"{CLASS_MEMBER}, {JSON_MEMBER} or a header",
                "its CRC-32 is not the one in the index",
            )
        )
    yield from faults
