"""The index beside the shards: what is in them and where, so that any sample is one `pread`.

Two files: `index.json` (format, classes, front-end parameters, shards) and `samples.npy`, one fixed-size record a
sample, memory-mapped and so shared by all processes of a machine. `index.json` is written last and holds the hash
of the other: a folder without it is not a set of shards.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bmlpipe.shards.spec import FORMAT, VERSION, ShardError, digest

INDEX_FILE = "index.json"
SAMPLES_FILE = "samples.npy"

#: One record a sample, little-endian and packed: 88 bytes.
SAMPLE_DTYPE = np.dtype(
    [
        ("key", "S64"),
        ("offset", "<u8"),  # of the sample's first tar header in its shard
        ("length", "<u4"),  # bytes up to the end of its last member's padding
        ("crc32", "<u4"),  # of these bytes
        ("shard", "<u4"),  # number of the shard in index.json
        ("label", "<i4"),  # class id
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
    """

    dataset: str
    classes: tuple[str, ...]
    features: Mapping[str, Mapping[str, Any]]
    shards: tuple[Shard, ...]
    samples: npt.NDArray[np.void]
    seed: int
    statistics: Mapping[str, Mapping[str, list[float]]]

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
        "seed": index.seed,
        "samples": {
            "file": SAMPLES_FILE,
            "count": len(index.samples),
            "sha256": hashlib.sha256((folder / SAMPLES_FILE).read_bytes()).hexdigest(),
        },
        "shards": [asdict(shard) for shard in index.shards],
    }
    text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    (folder / INDEX_FILE).write_text(text, encoding="utf-8")


def read_index(folder: Path) -> Index:
    """Open the index of a set of shards; the samples stay on disk, memory-mapped.

    Raises:
        ShardError: There is no index, it is of another format or version, or its parts do not belong together.
    """
    path = folder / INDEX_FILE
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ShardError(
            f"no {INDEX_FILE} in {folder}: not a set of shards, or one whose writing did not finish (bmlpipe shard)"
        ) from error
    except ValueError as error:
        raise ShardError(f"{path} is not JSON ({error}): it is damaged; write the shards again") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ShardError(f"{path} is not an index of {FORMAT}")
    if content.get("version") != VERSION:
        raise ShardError(
            f"{path} has format version {content.get('version')!r}, this program reads version {VERSION}: "
            "use the bmlpipe that wrote it, or write the shards again"
        )
    try:
        shards = tuple(Shard(**shard) for shard in content["shards"])
        count = content["samples"]["count"]
        samples = np.load(folder / SAMPLES_FILE, mmap_mode="r" if count else None, allow_pickle=False)
        index = Index(
            content["dataset"],
            tuple(content["classes"]),
            content["features"],
            shards,
            samples,
            content["seed"],
            content["statistics"],
        )
    except (KeyError, TypeError, ValueError, OSError) as error:
        raise ShardError(
            f"the index in {folder} is damaged ({type(error).__name__}: {error}): write the shards again"
        ) from error
    if samples.dtype != SAMPLE_DTYPE or len(samples) != count or count != sum(shard.samples for shard in shards):
        raise ShardError(f"{INDEX_FILE} and {SAMPLES_FILE} in {folder} do not belong together: write the shards again")
    return index
