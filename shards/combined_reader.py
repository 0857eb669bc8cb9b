"""Several sets of shards, read as one: with one numbering of samples, one list of classes, and common statistics."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
from bisect import bisect_right
from collections.abc import Collection, Iterable, Mapping, Sequence

import numpy as np

from bmlpipe.shards.errors import ShardError
from bmlpipe.shards.index import SAMPLE_DTYPE, Index, Shard
from bmlpipe.shards.mixture_order import Mixture
from bmlpipe.shards.reader import ShardReader, StoredSample
from bmlpipe.shards.remote.prefetch import RemoteShard
from bmlpipe.shards.remote.shard_set import check_cache_size
from bmlpipe.shards.sample import differences

_Statistics = Mapping[str, Mapping[str, list[float]]]


class CombinedReader:
    """A reader of several sets of shards with one numbering of their samples.

    Samples are numbered split by split, and set by set within a split. So each split of all sets together is one range
    of numbers, and an evaluation covers the split of every set.

    Args:
        readers: The sets. Class ids are those of the first set; labels of the other sets are translated by class name.
        kinds: Feature kinds that will be used. All sets must have them, made with the same parameters. None: the kinds
            of the first set.
        weights: Relative frequency in training of each set that has training samples, in any unit; None: each sample
            once per epoch.

    Attributes:
        index: Index of all sets together, with the kinds that they have in common. It holds no records of samples
            (`samples` is empty). For one set alone, the index of that set.
        mixture: The training samples, for `bmlpipe.train.data.sampler.TrainBatches`; None if no set has any.

    Raises:
        ShardError: The sets have different classes, or lack a kind, or made one with different parameters.
        OptionError: The weights are not one positive number per set.
    """

    def __init__(
        self,
        readers: Sequence[ShardReader],
        *,
        kinds: Collection[str] | None = None,
        weights: Sequence[float] | None = None,
    ) -> None:
        self._readers = list(readers)
        first = self._readers[0]
        for other in self._readers[1:]:
            _check_pair(first, other, first.index.features if kinds is None else kinds)
        classes = first.index.classes
        self._labels = [[classes.index(name) for name in reader.index.classes] for reader in self._readers]

        splits = dict.fromkeys(shard.split for reader in self._readers for shard in reader.index.shards)
        shards: list[Shard] = []
        sizes, firsts = list[list[int]](), list[int]()
        self._starts, self._blocks, self._length = list[int](), list[tuple[int, int]](), 0
        for split, (number, reader) in itertools.product(splits, enumerate(self._readers)):
            own = [shard for shard in reader.index.shards if shard.split == split]
            if not own:
                continue
            if split == "train":
                sizes.append([shard.samples for shard in own])
                firsts.append(self._length)
            self._starts.append(self._length)
            self._blocks.append((number, reader.index.split_range(split).start))
            self._length += sum(shard.samples for shard in own)
            shards += own
        self.mixture = Mixture.of(sizes, firsts=firsts, weights=weights) if sizes else None
        self.index = first.index if len(self._readers) == 1 else self._merged(shards)

    def _merged(self, shards: Sequence[Shard]) -> Index:
        indices = [reader.index for reader in self._readers]
        features = {
            kind: made
            for kind, made in indices[0].features.items()
            if all(index.features.get(kind) == made for index in indices)
        }
        trained = [index for index in indices if index.has_split("train")]
        shares = self.mixture.shares if self.mixture else ()
        return Index(
            dataset="+".join(dict.fromkeys(index.dataset for index in indices)),
            classes=indices[0].classes,
            features=features,
            shards=tuple(shards),
            samples=np.empty(0, SAMPLE_DTYPE),
            seed=indices[0].seed,
            statistics=merged_statistics([index.statistics for index in trained], shares),
            samples_sha256=_joined(index.samples_sha256 for index in indices),
            sha256=_joined(index.sha256 for index in indices),
        )

    def __len__(self) -> int:
        """Return the number of samples of all sets."""
        return self._length

    def locate(self, number: int) -> tuple[int, int]:
        """Find the number of the set that a sample belongs to, and the number of the sample in that set."""
        if not 0 <= number < self._length:
            raise IndexError(f"sample {number} of {self._length}")
        block = bisect_right(self._starts, number) - 1
        part, first = self._blocks[block]
        return part, first + number - self._starts[block]

    def __getitem__(self, number: int) -> StoredSample:
        """Read one sample, with the class id of the first set.

        Args:
            number: Number of the sample, from 0.

        Raises:
            ShardError: The shard is missing, damaged or cannot be downloaded.
            IndexError: There is no such sample.
        """
        part, local = self.locate(number)
        sample = self._readers[part][local]
        return dataclasses.replace(sample, label=self._labels[part][sample.label]) if part else sample

    @property
    def folder(self) -> str:
        """Folders or addresses of the sets, for messages."""
        return ", ".join(str(reader.folder) for reader in self._readers)

    @property
    def remote(self) -> bool:
        """Whether any set is at an address."""
        return any(reader.remote is not None for reader in self._readers)

    def check_cache_size(self, shards: int) -> None:
        """Check that this number of shards of each remote set fits into the cache together.

        Raises:
            ShardError: It does not.
        """
        check_cache_size([reader.remote for reader in self._readers if reader.remote is not None], shards)

    def remote_shards_of(self, numbers: Sequence[int]) -> list[RemoteShard]:
        """Return the remote shards that hold these samples, for `PrefetchingBatches`."""
        own: dict[int, list[int]] = {}
        for part, local in map(self.locate, numbers):
            own.setdefault(part, []).append(local)
        return [shard for part, locals_ in own.items() for shard in self._readers[part].remote_shards_of(locals_)]

    def close(self) -> None:
        """Close all files."""
        for reader in self._readers:
            reader.close()


def _check_pair(first: ShardReader, other: ShardReader, kinds: Collection[str]) -> None:
    one, two = set(first.index.classes), set(other.index.classes)
    if one != two:
        only = [
            f"only {reader.folder} has {', '.join(sorted(names)[:5])}{' …' if len(names) > 5 else ''}"
            for reader, names in ((first, one - two), (other, two - one))
            if names
        ]
        raise ShardError(
            f"{first.folder} and {other.folder} have different classes and cannot be mixed: {'; '.join(only)}"
        )
    for kind in kinds:
        for reader in (first, other):
            if kind not in reader.index.features:
                available = ", ".join(reader.index.features)
                raise ShardError(
                    f"{reader.folder} has no {kind}, only {available}: mix sets that all have the kinds in use"
                )
    one_made, other_made = ({kind: reader.index.features[kind] for kind in kinds} for reader in (first, other))
    if changed := differences(one_made, other_made):
        raise ShardError(
            f"{first.folder} and {other.folder} were made with different front-end parameters and cannot be mixed "
            f"({'; '.join(changed)}): extract and shard one of them again"
        )


def merged_statistics(parts: Sequence[_Statistics], shares: Sequence[int]) -> dict[str, dict[str, list[float]]]:
    """Compute the means and standard deviations of a mixture of sets.

    Args:
        parts: For each set, feature kind → `mean` and `std` of each channel.
        shares: Share of each set in the mixture, in any unit.

    Returns:
        The same for the mixture, for the kinds that all sets have: the weighted means of the sets' means and of their
        mean squares give its mean and standard deviation.
    """
    merged = {}
    for kind in [kind for kind in (parts[0] if parts else ()) if all(kind in part for part in parts)]:
        means = np.array([part[kind]["mean"] for part in parts])
        squares = np.array([part[kind]["std"] for part in parts]) ** 2 + means**2
        mean = np.average(means, axis=0, weights=shares)
        std = np.sqrt(np.maximum(np.average(squares, axis=0, weights=shares) - mean**2, 0))
        merged[kind] = {"mean": mean.tolist(), "std": std.tolist()}
    return merged


def _joined(hashes: Iterable[str]) -> str:
    return hashlib.sha256(" ".join(hashes).encode()).hexdigest()
