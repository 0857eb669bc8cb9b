"""The index of a set of shards: the place of each sample, so that any one can be read with one `pread`.

It consists of two files. `index.json` holds format, classes, front-end parameters and shards. `samples.npy` holds one
record of fixed size per sample; it is memory-mapped, and so shared by all processes of a machine. `index.json` is
written last and holds the hash of both files: a folder without it is not a set of shards.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
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

_UNSIGNED = "0" * 64  # in place of the SHA-256 of the index while that is computed
_WAITS = 200  # of 10 ms, for a writer between its two renamings

#: The record of a sample, little-endian and packed: 88 bytes.
SAMPLE_DTYPE = np.dtype(
    [
        ("key", "S64"),
        ("offset", "<u8"),  # of the sample's first tar header in its shard
        ("length", "<u4"),  # in bytes, to the end of the padding of its last member
        ("crc32", "<u4"),  # of these bytes
        ("shard", "<u4"),  # number of the shard in index.json
        (CLASS.field, CLASS.dtype),  # class id
    ]
)


@dataclass(frozen=True)
class Shard:
    """One tar file of a set.

    Attributes:
        file: File name.
        split: Split of all its samples.
        samples: Number of samples.
        bytes: Size of the file.
        sha256: SHA-256 of the file.
    """

    file: str
    split: str
    samples: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Index:
    """The index of a set of shards.

    Attributes:
        dataset: Name of the data set.
        classes: Class names by class id.
        features: Feature kind → parameters of its front end.
        shards: Shards, split by split.
        samples: Structured array of `SAMPLE_DTYPE`, in the order of the shards.
        seed: Seed of the order in which samples were written.
        statistics: Feature kind → `mean` and `std` of each channel over training samples.
        samples_sha256: SHA-256 of `samples.npy`, and so of the key, place and CRC-32 of every sample; checkpoints hold
            it. Empty before the index is written.
        sha256: SHA-256 of `index.json`, and so of the whole set. Empty before the index is written.
        flags: Split → flag → number of samples with it; None if it was not counted.
        dropped: Flag → number of clips that were left out because of it; a clip with several flags counts for each.
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
        """SHA-256 of the front-end parameters."""
        return digest(self.features)

    def has_split(self, split: str) -> bool:
        """Whether the set has samples of a split."""
        return any(shard.split == split for shard in self.shards)

    def split_shards(self, split: str) -> list[Shard]:
        """Return the shards of one split, in order.

        Args:
            split: `train`, `val` or `test`.

        Raises:
            ShardError: The set has no samples of this split.
        """
        found = [shard for shard in self.shards if shard.split == split]
        if not found:
            available = ", ".join(sorted({shard.split for shard in self.shards})) or "none"
            raise ShardError(f"these shards have no samples of split {split!r}: choose among {available}")
        return found

    def split_range(self, split: str) -> range:
        """Return the sample numbers of one split, which are contiguous.

        Args:
            split: `train`, `val` or `test`.

        Raises:
            ShardError: The set has no samples of this split.
        """
        shards = self.split_shards(split)
        first = sum(shard.samples for shard in self.shards[: self.shards.index(shards[0])])
        return range(first, first + sum(shard.samples for shard in shards))


def write_index(folder: Path, index: Index) -> None:
    """Write both files of an index into a folder, `index.json` last."""
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
    }
    (folder / INDEX_FILE).write_text(index_text(content), encoding="utf-8")


def index_text(content: Mapping[str, Any]) -> str:
    """Format `index.json`: this content, and as last key the SHA-256 of the text.

    Args:
        content: All other keys, as JSON values.
    """
    text = json.dumps({**content, "sha256": _UNSIGNED}, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    return text[: text.rindex(_UNSIGNED)] + hashlib.sha256(text.encode()).hexdigest() + '"\n}\n'


def read_index(folder: Path) -> Index:
    """Read the index of a set of shards; the records of the samples stay on disk, memory-mapped.

    If the set is being replaced at this moment, the result is the old or the new index, never a part of each.

    Args:
        folder: Folder of the set.

    Raises:
        ShardError: There is no index, or it has another format or version, or it is damaged. The message begins with
            the path of the file.
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
    for _ in range(_WAITS):
        try:
            return path.read_bytes()
        except FileNotFoundError:
            # A writer renames the old folder away and the new one into its place: wait for its second renaming.
            if any(folder.absolute().parent.glob(f".{glob.escape(folder.name)}.writing-*-old")):
                time.sleep(0.01)
                continue
            absent += 1  # the second renaming may just have happened: look again
            if absent == 3:
                break
    raise ShardError(
        f"no {INDEX_FILE} in {folder}: it is not a set of shards, or writing it did not finish; run bmlpipe shard"
    )


def _parsed(folder: Path, text: bytes) -> Index | ShardError:
    """Parse the text of `index.json` and open `samples.npy`; return the error if either is damaged."""
    path, records = folder / INDEX_FILE, folder / SAMPLES_FILE
    try:
        content = json.loads(text)
    except ValueError as error:
        return ShardError(f"{path} is not JSON ({error}): it is damaged, run bmlpipe shard again")
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        return ShardError(f"{path} is not an index of the format {FORMAT}: choose a set of shards of bmlpipe")
    if content.get("version") != VERSION:
        return ShardError(
            f"{path} has format version {content.get('version')!r}, this program reads version {VERSION}: "
            "use the bmlpipe that wrote it, or run bmlpipe shard again"
        )
    own = str(content.get("sha256", ""))
    unsigned = text.replace(own.encode(), _UNSIGNED.encode()) if len(own) == 64 else b""
    if own != hashlib.sha256(unsigned).hexdigest():
        return ShardError(f"{path} is damaged: its SHA-256 is not the one that it states; run bmlpipe shard again")
    try:
        count = int(content["samples"]["count"])
        index = Index(
            dataset=content["dataset"],
            classes=tuple(content["classes"]),
            features=content["features"],
            shards=tuple(Shard(**shard) for shard in content["shards"]),
            samples=np.empty(0, SAMPLE_DTYPE),
            seed=content["seed"],
            statistics=content["statistics"],
            samples_sha256=content["samples"]["sha256"],
            sha256=own,
            flags=content.get("flags"),
            dropped=dict(content.get("dropped", {})),
        )
    except (KeyError, TypeError, ValueError) as error:
        return ShardError(f"{path} is damaged ({type(error).__name__}: {error}): run bmlpipe shard again")
    samples = _records(records, count)
    if samples is None or count != sum(shard.samples for shard in index.shards):
        return ShardError(f"{records} is damaged, or does not belong to {INDEX_FILE}: run bmlpipe shard again")
    return replace(index, samples=samples)


def _records(path: Path, count: int) -> npt.NDArray[np.void] | None:
    """Memory-map the records of `samples.npy`; None if the file does not hold exactly `count` of them.

    The header of the file (NumPy format 1.0) is compared and not evaluated, so that nothing in a damaged or foreign
    file is parsed.
    """
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size - count * SAMPLE_DTYPE.itemsize
            header = file.read(size) if 10 <= size < 4096 else b""
            valid = header[:8] == b"\x93NUMPY\x01\x00" and int.from_bytes(header[8:10], "little") == size - 10
            expected = (f"'descr': {SAMPLE_DTYPE.descr}", "'fortran_order': False", f"'shape': ({count},)")
            if not valid or not all(part.encode() in header for part in expected):
                return None
            return np.memmap(file, SAMPLE_DTYPE, "r", size, (count,)) if count else np.empty(0, SAMPLE_DTYPE)
    except OSError:
        return None


def was_replaced(folder: Path, index: Index) -> bool:
    """Return whether the set in a folder is no longer the one that this index was read from."""
    try:
        now = read_index(folder)
    except ShardError:
        return True
    return now.sha256 != index.sha256
