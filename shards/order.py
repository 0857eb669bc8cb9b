"""The order of samples as pure functions, independent of the number of ranks and workers.

Random numbers are SplitMix64 (Steele, Lea, Flood 2014) hashes of (seed, epoch, position) and come from no library's
generator. So an order stays the same with every version of every library, and any part of it can be computed alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from bmlpipe.manifests.common.errors import OptionError

Integers = npt.NDArray[np.int64]


def splitmix64(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Apply one SplitMix64 step to each value: a bijective mix of 64 bits, with the overflow of its definition.

    Examples:
        >>> hex(int(splitmix64(np.array([0], np.uint64))[0]))
        '0xe220a8397b1dcdaf'
    """
    mixed = values + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(mixed ^ (mixed >> np.uint64(31)), dtype=np.uint64)


def keyed_bits(*key: int | Integers) -> npt.NDArray[np.uint64]:
    """Hash a key into random 64-bit words, which depend on all parts of the key and on nothing else.

    Args:
        key: Integers or integer arrays, which are broadcast together: for example seed, epoch, sample numbers.

    Returns:
        uint64 array of the broadcast shape, at least one-dimensional.
    """
    state = np.zeros(1, dtype=np.uint64)
    for part in key:
        state = splitmix64(state ^ splitmix64(np.atleast_1d(np.asarray(part)).astype(np.int64).view(np.uint64)))
    return state


def keyed_uniform(*key: int | Integers) -> npt.NDArray[np.float64]:
    """Hash a key into uniform float64 numbers in [0, 1) with 53 random bits each; see `keyed_bits`."""
    return np.asarray((keyed_bits(*key) >> np.uint64(11)) * 2.0**-53)


def shuffled(ids: Iterable[str], seed: int) -> list[str]:
    """Sort ids into the order in which they are written into shards: by the SHA-256 of seed and id.

    The result does not depend on the order of `ids`, and one more id does not change the order of the others.
    """
    return sorted(ids, key=lambda id_: hashlib.sha256(f"{seed}\0{id_}".encode("utf-8", "surrogatepass")).digest())


class EpochOrder:
    """The order of the training samples in one epoch.

    Shards are shuffled and cut into groups of `shuffle_shards`; samples are shuffled inside each group. So only the
    shards of one group are in use at a time. The order is a pure function of the arguments: it does not depend on
    ranks, on workers, or on the position at which reading starts.

    Args:
        sizes: Number of samples of each shard of the split, in the order of the index. Sample numbers count through
            all shards.
        seed: Seed of the run.
        epoch: Epoch, from 0.
        shuffle_shards: Number of shards whose samples are shuffled together.

    Raises:
        OptionError: `shuffle_shards` is less than 1.
    """

    def __init__(self, sizes: Sequence[int], *, seed: int, epoch: int, shuffle_shards: int = 16) -> None:
        if shuffle_shards < 1:
            raise OptionError(f"shuffle_shards is {shuffle_shards}: must be at least 1")
        counts = np.asarray(sizes, dtype=np.int64)
        self._starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        self._shards = np.argsort(keyed_bits(seed, epoch, 0, np.arange(len(counts))), kind="stable")
        self._ends = np.cumsum(counts[self._shards])[shuffle_shards - 1 :: shuffle_shards]
        if not len(self._ends) or self._ends[-1] != self._starts[-1]:
            self._ends = np.append(self._ends, self._starts[-1])
        self._key = (seed, epoch)
        self._shuffle_shards = shuffle_shards
        self._cache: tuple[int, Integers] | None = None

    def __len__(self) -> int:
        """Return the number of samples of the epoch."""
        return int(self._starts[-1])

    def _group_order(self, number: int) -> Integers:
        if self._cache is None or self._cache[0] != number:
            shards = self._shards[number * self._shuffle_shards : (number + 1) * self._shuffle_shards]
            inside = np.concatenate([np.arange(self._starts[s], self._starts[s + 1]) for s in shards])
            mixed = inside[np.argsort(keyed_bits(*self._key, 1, inside), kind="stable")]
            self._cache = (number, mixed)
        return self._cache[1]

    def slice(self, start: int, stop: int) -> Integers:
        """Return the sample numbers at positions start … stop−1 of the epoch, (stop − start,).

        Only the groups of shards that these positions fall into are computed.

        Args:
            start: First position, from 0.
            stop: Position after the last.

        Raises:
            IndexError: The positions are not inside the epoch.
        """
        if not 0 <= start <= stop <= len(self):
            raise IndexError(f"positions {start}…{stop} of an epoch of {len(self)} samples")
        parts = [np.empty(0, np.int64)]
        number = int(np.searchsorted(self._ends, start, side="right"))
        while start < stop:
            first = int(self._ends[number - 1]) if number else 0
            end = min(stop, int(self._ends[number]))
            parts.append(self._group_order(number)[start - first : end - first])
            start, number = end, number + 1
        return np.concatenate(parts)
