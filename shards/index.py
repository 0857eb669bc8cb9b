"""The index beside the shards: what is in them and where, so that any sample is one `pread`.

Two files: `index.json` (format, classes, front-end parameters, shards) and `samples.npy`, one fixed-size record a
sample, memory-mapped and so shared by all processes of a machine. `index.json` is written last and holds the hash
of the other and its own: a folder without it is not a set of shards.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bmlpipe.manifests.common.files import sha256_of
from bmlpipe.shards.errors import ShardError
from bmlpipe.shards.sample import FORMAT, VERSION, digest
from bmlpipe.shards.targets import CLASS

INDEX_FILE = "index.json"
SAMPLES_FILE = "samples.npy"

_UNSIGNED = "0" * 64  # stands for the index's own SHA-256 while that is computed
_PATIENCE = 200  # times 10 ms that a reader waits for a writer between its two renamings

#: One record a sample, little-endian and packed: 88 bytes.
SAMPLE_DTYPE = np.dtype(
    [
        ("key", "S64"),
        ("offset", "<u8"),  # of the sample's first tar header in its shard
        ("length", "<u4"),  # bytes up to the end of its last member's padding
        ("crc32", "<u4"),  # of these bytes
        ("shard", "<u4"),  # number of the shard in index.json
        (CLASS.field, CLASS.dtype),  # class id
    ]
)


@dataclass(frozen=True)
class Shard:
    """One tar file of a set: name, split, number of samples, size and SHA-256."""

    file: str
    split: str
    samples: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Index:
    """The index of a set of shards.

    Attributes:
        dataset: Data set name.
        classes: Class names by class id.
        features: Feature kind → the parameters it was made with.
        shards: Shards, split by split.
        samples: Structured array of `SAMPLE_DTYPE`, in the order of the shards.
        seed: Seed of the order in which samples were written.
        statistics: Feature kind → `mean` and `std` of each channel over training samples.
        samples_sha256: Hash of the samples' records, and so of every sample's key, place and CRC-32: what a checkpoint
            remembers of the samples. Empty before it is written.
        sha256: Hash of `index.json`, and so of the whole set. Empty before it is written.
        flags: Split → flag → samples that carry it. None in a set that does not say.
        dropped: Flag → clips that were left out for it; a clip with several counts for each.
    """

    dataset: str
    classes: tuple[str, ...]
    features: Mapping[str, Mapping[str, Any]]
    shards: tuple[Shard, ...]
    samples: npt.NDArray[np.void]
    seed: int
    statistics: Mapping[str, Mapping[str, list[float]]]
    samples_sha256: str = ""
    sha256: str = ""
    flags: Mapping[str, Mapping[str, int]] | None = None
    dropped: Mapping[str, int] = field(default_factory=dict)

    @property
    def features_sha256(self) -> str:
        """Hash of the front ends' parameters: what a checkpoint remembers and an evaluation insists on."""
        return digest(self.features)

    def split_shards(self, split: str) -> list[Shard]:
        """Shards of one split.

        Raises:
            ShardError: The set has no such split.
        """
        found = [shard for shard in self.shards if shard.split == split]
        if not found:
            there = ", ".join(sorted({shard.split for shard in self.shards})) or "none"
            raise ShardError(f"there are no samples of split {split!r} in these shards (splits: {there})")
        return found

    def split_range(self, split: str) -> range:
        """Sample numbers of one split: a contiguous range."""
        self.split_shards(split)
        first = sum(s.samples for s in self.shards[: next(i for i, s in enumerate(self.shards) if s.split == split)])
        return range(first, first + sum(s.samples for s in self.split_shards(split)))


def write_index(folder: Path, index: Index) -> None:
    """Write both files into the folder, `index.json` last."""
    with (folder / SAMPLES_FILE).open("wb") as file:
        np.save(file, index.samples, allow_pickle=False)
    content = {
        "format": FORMAT,
        "version": VERSION,
        "dataset": index.dataset,
        "classes": list(index.classes),
        "features": index.features,
        "features_sha256": index.features_sha256,
        "statistics": index.statistics,
        **({} if index.flags is None else {"flags": index.flags}),
        **({"dropped": index.dropped} if index.dropped else {}),
        "seed": index.seed,
        "samples": {"file": SAMPLES_FILE, "count": len(index.samples), "sha256": sha256_of(folder / SAMPLES_FILE)},
        "shards": [asdict(shard) for shard in index.shards],
        "sha256": _UNSIGNED,
    }
    text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    text = text[: text.rindex(_UNSIGNED)] + hashlib.sha256(text.encode()).hexdigest() + '"\n}\n'
    (folder / INDEX_FILE).write_text(text, encoding="utf-8")


def read_index(folder: Path) -> Index:
    """Open the index of a set of shards; the samples stay on disk, memory-mapped.

    Where the set is replaced at this very moment, the old or the new index is read, never parts of both.

    Raises:
        ShardError: There is no index, it is of another format or version, or damaged; the message begins with the path
            of the file that is.
    """
    text = _index_bytes(folder)
    while True:
        found = _parsed(folder, text)
        again = _index_bytes(folder)
        if again == text:
            break
        text = again
    if isinstance(found, ShardError):
        raise found
    return found


def _index_bytes(folder: Path) -> bytes:
    path, absent = folder / INDEX_FILE, 0
    for _ in range(_PATIENCE):
        try:
            return path.read_bytes()
        except FileNotFoundError:
            # The writer renames the old folder away and the new one into its place: wait for the second renaming.
            if any(folder.absolute().parent.glob(f".{glob.escape(folder.name)}.writing-*-old")):
                time.sleep(0.01)
                continue
            absent += 1  # it may have come at this moment: look again
            if absent == 3:
                break
    raise ShardError(
        f"no {INDEX_FILE} in {folder}: not a set of shards, or one whose writing did not finish (bmlpipe shard)"
    )


def _parsed(folder: Path, text: bytes) -> Index | ShardError:
    """The index in this text and the samples beside it, or what is wrong with them."""
    path, records = folder / INDEX_FILE, folder / SAMPLES_FILE
    try:
        content = json.loads(text)
    except ValueError as error:
        return ShardError(f"{path} is not JSON ({error}): it is damaged; write the shards again")
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        return ShardError(f"{path} is not an index of {FORMAT}")
    if content.get("version") != VERSION:
        return ShardError(
            f"{path} has format version {content.get('version')!r}, this program reads version {VERSION}: "
            "use the bmlpipe that wrote it, or write the shards again"
        )
    own = str(content.get("sha256", ""))
    unsigned = text.replace(own.encode(), _UNSIGNED.encode()) if len(own) == 64 else b""
    if "sha256" in content and own != hashlib.sha256(unsigned).hexdigest():
        return ShardError(f"{path} is damaged: its SHA-256 is not the one that it states; write the shards again")
    try:
        count = int(content["samples"]["count"])
        shards = tuple(Shard(**shard) for shard in content["shards"])
        about = (content["dataset"], tuple(content["classes"]), content["features"], shards)
        rest = (content["seed"], content["statistics"], content["samples"]["sha256"], own)
        flags, dropped = content.get("flags"), dict(content.get("dropped", {}))
    except (KeyError, TypeError, ValueError) as error:
        return ShardError(f"{path} is damaged ({type(error).__name__}: {error}): write the shards again")
    samples = _records(records, count)
    if samples is None or count != sum(shard.samples for shard in shards):
        return ShardError(
            f"{records} is damaged, or it and {INDEX_FILE} do not belong together: write the shards again"
        )
    return Index(*about, samples, *rest, flags, dropped)


def _records(path: Path, count: int) -> npt.NDArray[np.void] | None:
    """The records of a NumPy file (version 1.0), memory-mapped; None where it is not one of so many of them.

    Its header is compared, not evaluated: nothing in a damaged or foreign file is ever parsed.
    """
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size - count * SAMPLE_DTYPE.itemsize
            header = file.read(size) if 10 <= size < 4096 else b""
            told = header[:8] == b"\x93NUMPY\x01\x00" and int.from_bytes(header[8:10], "little") == size - 10
            wanted = (f"'descr': {SAMPLE_DTYPE.descr}", "'fortran_order': False", f"'shape': ({count},)")
            if not told or not all(part.encode() in header for part in wanted):
                return None
            return np.memmap(file, SAMPLE_DTYPE, "r", size, (count,)) if count else np.empty(0, SAMPLE_DTYPE)
    except OSError:
        return None


def replaced(folder: Path, index: Index) -> bool:
    """Whether the set in the folder is another one than this index was read from: it was written again meanwhile."""
    try:
        now = read_index(folder)
    except ShardError:
        return True
    return (now.sha256, now.samples_sha256) != (index.sha256, index.samples_sha256)
