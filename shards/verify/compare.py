"""Read a set of shards and compare all of it with its index; each difference is one row.

Every byte is read once and compared with the SHA-256 of its file, the CRC-32 of its sample and of its member, and the
sample's own list of members. A shard that differs is read again to find out what is wrong
(`bmlpipe.shards.verify.diagnose`).
"""

from __future__ import annotations

import hashlib
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
from isal.isal_zlib import crc32

from bmlpipe.manifests.common.files import sha256_of
from bmlpipe.shards.errors import ShardError
from bmlpipe.shards.index import INDEX_FILE, SAMPLES_FILE, Index, read_index
from bmlpipe.shards.order import splitmix64
from bmlpipe.shards.reader import members_of
from bmlpipe.shards.remote.download import download, redacted
from bmlpipe.shards.remote.shard_set import is_plain_name, is_remote
from bmlpipe.shards.verify.diagnose import ExpectedSample, Fault, diagnose, sample_faults

_CHUNK = 1 << 20  # records


def verify(
    shards: Path | str,
    progress: Callable[[int], None] = lambda samples: None,
    *,
    start: Callable[[Index], None] = lambda index: None,
    workers: int = 1,
) -> Iterator[Fault]:
    """Compare every byte of a set of shards with its index.

    Args:
        shards: A set of shards: its folder, or its address for fsspec. Remote shards are downloaded into temporary
            files, one at a time per worker, and not into the cache, which refuses damaged files.
        progress: Called after each shard with its number of samples.
        start: Called once with the index, if it can be read.
        workers: Number of threads, each of which reads one shard at a time and holds one of its samples in memory.
            (Computing checksums releases Python's global lock.)

    Yields:
        One fault per difference; none for an intact set. Hidden files in a folder are ignored. At an address, only
        files that the index names are read.

    Raises:
        ShardError: The index cannot be downloaded, or there is no disk space for a temporary file.
    """
    if not is_remote(shards):
        yield from _compared(Path(shards), None, progress, start, workers)
        return
    with tempfile.TemporaryDirectory(prefix="bmlpipe-verify-") as folder:
        try:
            yield from _compared(Path(folder), str(shards).rstrip("/") + "/", progress, start, workers)
        except OSError as error:
            raise ShardError(
                f"{folder} cannot be used ({error.strerror}): remote shards are downloaded into it, one for each of "
                f"{workers} workers at a time; set TMPDIR to a folder with more space, or use fewer --workers"
            ) from error


def _compared(
    folder: Path, url: str | None, progress: Callable[[int], None], start: Callable[[Index], None], workers: int
) -> Iterator[Fault]:
    """Verify a folder, into which the files of a remote set are downloaded from `url` as they are needed."""
    if url is not None:
        _download(url, folder / INDEX_FILE)
        try:
            _download(url, folder / SAMPLES_FILE)
        except ShardError as error:
            yield Fault(SAMPLES_FILE, "", "", f"cannot be downloaded: {error}")
            return
    try:
        index = read_index(folder)
    except ShardError as error:
        if not (folder / INDEX_FILE).is_file():
            raise
        damaged = SAMPLES_FILE if str(error).startswith(str(folder / SAMPLES_FILE)) else INDEX_FILE
        yield Fault(damaged, "", "", str(error).replace(f"{folder}/", redacted(url)) if url else str(error))
        return
    start(index)
    listed = {INDEX_FILE, SAMPLES_FILE, *(shard.file for shard in index.shards)}
    for stray in sorted(path.name for path in folder.iterdir() if path.name[0] != "." and path.name not in listed):
        yield Fault(stray, "", "", "is not in the index")
    records = np.asarray(index.samples)
    if sha256_of(folder / SAMPLES_FILE) == index.samples_sha256:
        yield from _repeated(index)
    else:
        yield Fault(SAMPLES_FILE, "", "", f"its SHA-256 is not the one in {INDEX_FILE}: its records are not used")
        records = records[:0]
    firsts = np.cumsum([0, *(shard.samples for shard in index.shards)])

    def compare(number: int) -> list[Fault]:
        part = records[firsts[number] : firsts[number + 1]]
        return _shard(folder, index, number, part) if url is None else _remote_shard(url, folder, index, number, part)

    pool = ThreadPoolExecutor(workers) if workers > 1 else None
    try:
        compared = (pool.map if pool else map)(compare, range(len(index.shards)))
        for shard, faults in zip(index.shards, compared, strict=True):
            yield from faults
            progress(shard.samples)
    finally:
        if pool:
            pool.shutdown(cancel_futures=True)


def _remote_shard(url: str, folder: Path, index: Index, number: int, records: npt.NDArray[np.void]) -> list[Fault]:
    """Download a remote shard, compare it, and remove it."""
    path = folder / index.shards[number].file
    if not is_plain_name(path.name) or path.parent != folder:
        message = f"names a shard {index.shards[number].file!r}: not a plain file name"
        return [Fault(INDEX_FILE, "", "", message)]
    try:
        _download(url, path)
        return _shard(folder, index, number, records)
    except ShardError as error:
        return [Fault(path.name, "", "", f"cannot be downloaded: {error}")]
    finally:
        path.unlink(missing_ok=True)


def _download(url: str, into: Path) -> None:
    """Download a file of the set as it is, intact or not."""
    with into.open("wb", buffering=0) as file:
        download(url + into.name, file.fileno())
        file.truncate(file.tell())  # an attempt before may have been longer


def _shard(folder: Path, index: Index, number: int, records: npt.NDArray[np.void]) -> list[Fault]:
    shard, expected = index.shards[number], ExpectedSample(index.features, len(index.classes))
    path, faults = folder / shard.file, list[Fault]()
    ends = np.concatenate([np.zeros(1, "u8"), records["offset"] + records["length"]])
    if (records["shard"] != number).any() or (records["offset"] != ends[:-1]).any():
        message = "its samples in the index do not follow one another: the index belongs to other shards"
        return [Fault(shard.file, "", "", message)]
    digest, intact, readable = hashlib.sha256(), True, True
    buffer = memoryview(bytearray(max(1 << 16, int(records["length"].max(initial=0)))))
    try:
        with path.open("rb") as file:
            for record in records:
                data = buffer[: file.readinto(buffer[: int(record["length"])])]
                digest.update(data)
                intact &= crc32(data) == int(record["crc32"])
                members = _members(record, data) if intact else None
                if members is not None:
                    faults += sample_faults(shard.file, record, members, expected)
                readable &= members is not None
            while count := file.readinto(buffer):
                digest.update(buffer[:count])
    except OSError as error:
        message = "is missing" if isinstance(error, FileNotFoundError) else f"cannot be read: {error.strerror}"
        return [Fault(shard.file, "", "", message)]
    if digest.hexdigest() == shard.sha256 and readable:
        return faults
    if digest.hexdigest() == shard.sha256 and not intact:
        return [
            Fault(shard.file, "", "", f"holds other samples than {SAMPLES_FILE} states: they do not belong together")
        ]
    for other in index.shards:
        if other.sha256 == digest.hexdigest() and other != shard:
            return [
                Fault(shard.file, "", "", f"has the content that the index states for {other.file}: files were swapped")
            ]
    if not len(records):
        return [Fault(shard.file, "", "", f"its SHA-256 is not the one in {INDEX_FILE}")]
    return diagnose(path, shard, records, expected)


def _members(record: np.void, data: memoryview) -> dict[str, memoryview] | None:
    """Split a sample into members; None if these bytes are not this sample."""
    if not bytes(data[:65]).startswith(record["key"] + b"."):
        return None
    try:
        return members_of(data)
    except ShardError:
        return None


def _repeated(index: Index) -> Iterator[Fault]:
    """Yield faults of keys that the index has more than once. It holds 8 bytes per sample in memory."""
    chunks = range(0, len(index.samples), _CHUNK)
    hashes = np.concatenate([np.empty(0, np.uint64), *(_hashes(index.samples[at : at + _CHUNK]) for at in chunks)])
    values, counts = np.unique(hashes, return_counts=True)
    twice = values[counts > 1]
    if not len(twice):
        return
    suspects = [number for at in chunks for number in at + np.flatnonzero(np.isin(hashes[at : at + _CHUNK], twice))]
    count = Counter(index.samples[number]["key"] for number in suspects)
    for number in suspects:
        key = index.samples[number]["key"]
        if count[key] > 1:
            file = index.shards[int(index.samples[number]["shard"])].file
            yield Fault(file, key.decode(), "", f"occurs {count[key]} times in the index: keys must be unique")


def _hashes(records: npt.NDArray[np.void]) -> npt.NDArray[np.uint64]:
    """Compute a 64-bit hash of the key of each record."""
    words = np.ascontiguousarray(records["key"]).view("<u8").reshape(len(records), -1)
    found = np.zeros(len(records), np.uint64)
    for column in words.T:
        found = splitmix64(found ^ column)
    return found
