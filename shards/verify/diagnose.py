"""Find out what is wrong with a damaged sample or shard, and name the members concerned."""

from __future__ import annotations

import json
import re
import tarfile
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np
import numpy.typing as npt
from isal.isal_zlib import crc32

from bmlpipe.shards.index import Shard
from bmlpipe.shards.kinds import kind_of
from bmlpipe.shards.sample import JSON_MEMBER
from bmlpipe.shards.targets import CLASS

_INSTANT = re.compile(r"_\d{3}")  # in a member's name
_BLOCK = 512


@dataclass(frozen=True)
class Fault:
    """One difference between the shards and their index.

    Attributes:
        shard: File name.
        key: Key of the sample; empty if the fault concerns the whole file.
        member: Member of the sample; empty if the fault concerns the whole sample.
        message: What is wrong.
    """

    shard: str
    key: str
    member: str
    message: str


@dataclass(frozen=True)
class ExpectedSample:
    """The properties of every sample that the index states.

    Attributes:
        kinds: Feature kinds that each sample has.
        classes: Number of classes.
    """

    kinds: Collection[str]
    classes: int


def sample_faults(
    shard: str, record: np.void, members: Mapping[str, memoryview], expected: ExpectedSample
) -> Iterator[Fault]:
    """Compare the members of a sample with its own list of members and with the index.

    Args:
        shard: File name of the shard.
        record: Record of the sample in the index.
        members: Member name → contents.
        expected: Properties that each sample must have.
    """
    key = record["key"].decode()
    stored, target = bytes(members.get(CLASS.member, b"")), int(record[CLASS.field])
    if stored != CLASS.encode(target) or not CLASS.in_range(target, expected.classes):
        message = f"is {stored.decode(errors='replace')!r}, the index states {target} of {expected.classes} classes"
        yield Fault(shard, key, CLASS.member, message if CLASS.member in members else _GONE)
    if JSON_MEMBER not in members:
        yield Fault(shard, key, JSON_MEMBER, _GONE)
        return
    try:
        meta = json.loads(bytes(members[JSON_MEMBER]))
        listed = {str(name): (int(size), int(crc)) for name, (size, crc) in meta["members"].items()}
        instants = {kind: len(meta[kind]["times"]) for kind in expected.kinds if kind in meta}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        yield Fault(shard, key, JSON_MEMBER, f"cannot be read ({type(error).__name__}: {error}): it is damaged")
        return
    for name in sorted(listed.keys() | (members.keys() - {CLASS.member, JSON_MEMBER})):
        if name not in members:
            yield Fault(shard, key, name, _GONE)
        elif name not in listed:
            yield Fault(shard, key, name, "is not in the sample's own list")
        elif (len(members[name]), crc32(members[name])) != listed[name]:
            yield Fault(shard, key, name, "its contents are not those that were written")
    for kind in expected.kinds:
        have = sorted(name for name in listed if kind_of(name) == kind)
        if not have:
            yield Fault(shard, key, "", f"has no {kind}, which the index states")
            continue
        for instant in range(instants.get(kind, 0)):
            name = _INSTANT.sub(f"_{instant:03d}", have[0], 1)
            if name not in have:
                yield Fault(shard, key, name, f"is missing: the sample states that it has {instants[kind]} {kind}")


_GONE = "is missing, or its tar header is damaged"


@dataclass(frozen=True)
class _Member:
    """A member found in a tar.

    Attributes:
        key: Key of its sample.
        suffix: Its name after the key.
        header: Position of its tar header in bytes.
        start: Position of its contents.
        end: Position after its contents.
        as_written: Whether the header is exactly the one that `ShardWriter` writes.
    """

    key: str
    suffix: str
    header: int
    start: int
    end: int
    as_written: bool

    @property
    def next(self) -> int:
        return -(-self.end // _BLOCK) * _BLOCK


def diagnose(path: Path, shard: Shard, records: npt.NDArray[np.void], expected: ExpectedSample) -> list[Fault]:
    """Find out what is wrong with a shard whose content is not the one that was written.

    Members are searched in the whole file, wherever there is an intact tar header. So a member that is missing, moved
    or foreign is distinguished from one whose contents are damaged.

    Args:
        path: Path of the shard.
        shard: The entry of the shard in the index.
        records: Records of its samples.
        expected: Properties that each sample must have.

    Returns:
        At least one fault.
    """
    size = path.stat().st_size
    data = np.asarray(np.memmap(path, np.uint8, "r")) if size else np.empty(0, np.uint8)
    found = list(_members(data))
    runs: dict[str, list[list[_Member]]] = {}
    for key, run in groupby(found, lambda member: member.key):
        runs.setdefault(key, []).append(list(run))
    faults: list[Fault] = []
    moved: list[Fault] = []
    cut: list[str] = []
    for record in records:
        key = record["key"].decode()
        mine = runs.pop(key, [])
        if not mine and int(record["offset"]) + _BLOCK > size:
            cut.append(key)
        elif not mine:
            faults.append(Fault(shard.file, key, "", "is missing"))
        else:
            own = list(_key_faults(data, shard.file, record, mine, expected))
            faults += own
            if not own and mine[0][0].header != record["offset"]:
                message = f"begins at byte {mine[0][0].header}, the index states {int(record['offset'])}"
                moved.append(Fault(shard.file, key, "", message))
    faults += [Fault(shard.file, key, "", "is not among the index's samples of this shard") for key in runs]
    if cut:
        others = f", and so are the {len(cut) - 1} samples after it" if len(cut) > 1 else ""
        message = f"is cut off{others}: the shard ends at byte {size} of {shard.bytes}"
        faults.append(Fault(shard.file, cut[0], "", message))
    faults = faults or moved
    if size != shard.bytes and not cut:
        faults.append(Fault(shard.file, "", "", f"has {size} bytes, the index states {shard.bytes}"))
    ends = [member.next for member in found[-1:]] + [int(r["offset"]) + int(r["length"]) for r in records[-1:]]
    if data[max(ends) :].any():
        faults.append(Fault(shard.file, "", "", "other bytes than zeros follow its last member"))
    return faults or [
        Fault(shard.file, "", "", "its SHA-256 is not the one in the index, which belongs to another shard")
    ]


def _members(data: npt.NDArray[np.uint8]) -> Iterator[_Member]:
    """Find the members of a tar by their headers; anything between them may be damaged."""
    blocks = data[: len(data) // _BLOCK * _BLOCK].reshape(-1, _BLOCK)
    behind = 0
    for block in np.flatnonzero((blocks[:, 257:262] == np.frombuffer(b"ustar", np.uint8)).all(axis=1)):
        header = int(block) * _BLOCK
        if header < behind:
            continue  # inside the contents of an intact member
        raw = blocks[block].tobytes()
        try:
            info = tarfile.TarInfo.frombuf(raw, "utf-8", "replace")
        except tarfile.HeaderError:
            continue
        written = tarfile.TarInfo(info.name)
        written.size = info.size
        key, _, suffix = info.name.partition(".")
        as_written = written.tobuf(tarfile.USTAR_FORMAT, "utf-8", "replace") == raw
        member = _Member(key, suffix, header, header + _BLOCK, header + _BLOCK + info.size, as_written)
        behind = member.end
        yield member


def _key_faults(
    data: npt.NDArray[np.uint8], shard: str, record: np.void, runs: list[list[_Member]], expected: ExpectedSample
) -> Iterator[Fault]:
    """Find out what is wrong with the members of one key, which were found in these runs of adjacent members."""
    key, found = record["key"].decode(), 0
    contents: dict[str, memoryview] = {}
    if len(runs) > 1 and {m.suffix for m in runs[0]} == {m.suffix for m in runs[1]}:
        found += 1
        yield Fault(shard, key, "", f"occurs {len(runs)} times in this shard")
    elif len(runs) > 1:
        found += 1
        yield Fault(shard, key, runs[1][0].suffix, "is apart from the other members of its sample")
    before = ""
    for member in (member for run in runs for member in run):
        message = ""
        if member.end > len(data):
            message = f"is cut off at byte {len(data) - member.start} of {member.end - member.start}"
        elif not member.as_written:
            message = "its tar header is damaged"
        elif data[member.end : member.next].any():
            message = "the padding behind it is damaged"
        elif member.suffix in contents and len(runs) == 1:
            message = "occurs twice"
        elif member.suffix < before and len(runs) == 1:
            message = "is out of order"
        before = member.suffix
        if message:
            found += 1
            yield Fault(shard, key, member.suffix, message)
        if member.end <= len(data):
            contents.setdefault(member.suffix, data[member.start : member.end].data)
    for fault in sample_faults(shard, record, contents, expected):
        found += 1
        yield fault
    written = data[runs[0][0].header : runs[0][-1].next]
    if not found and crc32(written.data) != int(record["crc32"]):  # and everything else is intact
        yield Fault(shard, key, JSON_MEMBER, "its contents are not those that were written")
