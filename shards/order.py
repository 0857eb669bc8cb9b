"""The order of samples, as pure functions: which sample comes when, whatever the number of ranks and workers.

Random numbers come from SplitMix64 (Steele, Lea, Flood 2014) used as a hash of (seed, epoch, position), not from a
library's generator: an order must be the same in ten years, and any part of it can be had without the rest.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from bmlpipe.manifests.common.errors import OptionError

Integers = npt.NDArray[np.int64]


def splitmix64(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """One SplitMix64 step of each value: a bijective mix of 64 bits, wrapping around as defined.

    >>> hex(int(splitmix64(np.array([0], np.uint64))[0]))
    '0xe220a8397b1dcdaf'
    """
    mixed = values + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(mixed ^ (mixed >> np.uint64(31)), dtype=np.uint64)


def keyed_bits(*key: int | Integers) -> npt.NDArray[np.uint64]:
    """Random 64-bit words that depend on every part of the key and on nothing else.

    Args:
        key: Integers or integer arrays (broadcast together), for example seed, epoch, sample numbers.

    Returns:
        uint64 array of the broadcast shape, at least one-dimensional.
    """
    state = np.zeros(1, dtype=np.uint64)
    for part in key:
        state = splitmix64(state ^ splitmix64(np.atleast_1d(np.asarray(part)).astype(np.int64).view(np.uint64)))
    return state


def keyed_uniform(*key: int | Integers) -> npt.NDArray[np.float64]:
    """Uniform numbers in [0, 1) keyed like `keyed_bits` (53 random bits each)."""
    return np.asarray((keyed_bits(*key) >> np.uint64(11)) * 2.0**-53)


def shuffled(ids: Iterable[str], seed: int) -> list[str]:
    """Ids in the order in which they are written into shards: by SHA-256 of seed and id.

    It does not depend on the order of the annotation, and one more clip does not move the others.
    """
    return sorted(ids, key=lambda id_: hashlib.sha256(f"{seed}\0{id_}".encode("utf-8", "surrogatepass")).digest())


class EpochOrder:
    """The order of one epoch's training samples: shards shuffled, then samples shuffled inside windows of shards.

    Reads stay local (a window's shards are the only ones open at a time), and the order is a pure function of the
    arguments: independent of ranks, workers and of where reading starts.

    Args:
        sizes: Samples of each shard of the split, in index order; sample numbers count through them.
        seed: Seed of the run.
        epoch: Epoch, from 0.
        shuffle_shards: Shards that are mixed with each other.
    """

    def __init__(self, sizes: Sequence[int], *, seed: int, epoch: int, shuffle_shards: int = 16) -> None:
        if shuffle_shards < 1:
            raise OptionError(f"shuffle_shards is {shuffle_shards}: at least one shard must be open at a time")
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
        return int(self._starts[-1])

    def _window_order(self, number: int) -> Integers:
        if self._cache is None or self._cache[0] != number:
            shards = self._shards[number * self._shuffle_shards : (number + 1) * self._shuffle_shards]
            inside = np.concatenate([np.arange(self._starts[s], self._starts[s + 1]) for s in shards])
            mixed = inside[np.argsort(keyed_bits(*self._key, 1, inside), kind="stable")]
            self._cache = (number, mixed)
        return self._cache[1]

    def slice(self, start: int, stop: int) -> Integers:
        """Sample numbers at positions start … stop−1 of the epoch; only the windows touched are computed."""
        if not 0 <= start <= stop <= len(self):
            raise IndexError(f"positions {start}…{stop} of an epoch of {len(self)} samples")
        parts = [np.empty(0, np.int64)]
        number = int(np.searchsorted(self._ends, start, side="right"))
        while start < stop:
            first = int(self._ends[number - 1]) if number else 0
            end = min(stop, int(self._ends[number]))
            parts.append(self._window_order(number)[start - first : end - first])
            start, number = end, number + 1
        return np.concatenate(parts)
