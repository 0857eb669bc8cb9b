"""The order of samples drawn from one or several sets of shards, as pure functions of the position.

Positions count samples through the whole training, over all epochs. Each belongs to one set, in the proportion of the
sets' weights and evenly spread (`interleave`); the samples of a set come in its own endless order, one shuffled epoch
of it (`EpochOrder`) after the other. So any position can be had without those before it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from bmlpipe.manifests.common.errors import OptionError
from bmlpipe.shards.order import EpochOrder, Integers, keyed_bits

_MOST = 2**31  # sum of shares: products of two numbers below it fit 64 bits


def interleave(start: int, stop: int, shares: Sequence[int]) -> tuple[Integers, Integers]:
    """Deal positions out to sets in the proportion of their shares, evenly spread.

    A row of two sets of shares a and b gives the first of them floor((n + 1) a / (a + b)) of its first n + 1 positions
    (Bresenham's line); more sets are halved, and each half is such a row again. Of the first n positions a set
    has its exact share but for less than one a halving, and exactly its share where n is a multiple of their sum.

    Args:
        start: First position.
        stop: Position after the last.
        shares: A positive integer a set.

    Returns:
        For each position the number of its set, and how many positions before it that set has had.

    >>> interleave(0, 6, [2, 1])
    (array([1, 0, 0, 1, 0, 0]), array([0, 0, 1, 1, 2, 3]))
    """
    sets, counts = np.empty(stop - start, np.int64), np.empty(stop - start, np.int64)
    _deal(np.arange(start, stop), np.arange(stop - start), shares, 0, sets, counts)
    return sets, counts


def _deal(
    turns: Integers, places: Integers, shares: Sequence[int], first: int, sets: Integers, counts: Integers
) -> None:
    """Deal these turns of a row of sets, the first of which is number `first`; results go to `places`."""
    if len(shares) == 1:
        sets[places], counts[places] = first, turns
        return
    half = len(shares) // 2
    left, whole = sum(shares[:half]), sum(shares)
    before, after = _part(turns, left, whole), _part(turns + 1, left, whole)
    goes_left = after > before
    _deal(before[goes_left], places[goes_left], shares[:half], first, sets, counts)
    _deal((turns - before)[~goes_left], places[~goes_left], shares[half:], first + half, sets, counts)


def _part(turns: Integers, left: int, whole: int) -> Integers:
    """floor(turns × left / whole) without overflow."""
    return turns // whole * left + turns % whole * left // whole


@dataclass(frozen=True)
class Mixture:
    """The training samples of one or several sets of shards, and how often each set is drawn from.

    Attributes:
        sizes: For each set the samples of each of its training shards.
        firsts: For each set the number of its first training sample.
        shares: For each set its share of all positions, in lowest terms.
    """

    sizes: tuple[tuple[int, ...], ...]
    firsts: tuple[int, ...]
    shares: tuple[int, ...]

    @classmethod
    def of(
        cls,
        sizes: Sequence[Sequence[int]],
        *,
        firsts: Sequence[int] | None = None,
        weights: Sequence[float] | None = None,
    ) -> Mixture:
        """Check and complete.

        Args:
            sizes: For each set the samples of each of its training shards.
            firsts: For each set the number of its first training sample; None: one set after the other, from 0.
            weights: How often each set is drawn from, in any unit; None: by its size, so that each sample comes once an
                epoch.

        Raises:
            OptionError: A set is empty, or the weights are not one positive number a set.
        """
        totals = [sum(counts) for counts in sizes]
        if not totals or min(totals) == 0:
            raise OptionError(f"the sets have {totals} training samples: leave out the empty ones")
        if weights is not None and len(weights) != len(sizes):
            raise OptionError(f"{len(weights)} weights ({_listed(weights)}) for {len(sizes)} sets: give one a set")
        if weights is not None and not all(math.isfinite(weight) and weight > 0 for weight in weights):
            raise OptionError(f"weights are {_listed(weights)}: each must be above 0; leave out what is not wanted")
        exact = [Fraction(str(weight)) for weight in weights or totals]  # 0.1 is a tenth, not its nearest double
        scale = math.lcm(*(weight.denominator for weight in exact))
        shares = [int(weight * scale) for weight in exact]
        shares = [share // math.gcd(*shares) for share in shares]
        if sum(shares) >= _MOST:
            raise OptionError(
                f"weights are {_listed(weights or totals)}, in whole numbers {_listed(shares)}: too fine; "
                "give fewer digits"
            )
        starts = np.concatenate([[0], np.cumsum(totals)])[:-1].tolist()
        return cls(tuple(map(tuple, sizes)), tuple(firsts or starts), tuple(shares))

    def __len__(self) -> int:
        """Samples of an epoch: as many as all sets together have."""
        return sum(map(sum, self.sizes))

    def order(self, *, seed: int, shuffle_shards: int) -> MixtureOrder:
        """The order in which a run with this seed takes them."""
        return MixtureOrder(self, seed=seed, shuffle_shards=shuffle_shards)


class MixtureOrder:
    """The samples at any positions of a training.

    Args:
        mixture: What is drawn from.
        seed: Seed of the run. The first set is shuffled as it would be alone; each set has its own order.
        shuffle_shards: Shards of a set that are mixed with each other.
    """

    def __init__(self, mixture: Mixture, *, seed: int, shuffle_shards: int) -> None:
        self._mixture, self._shuffle_shards = mixture, shuffle_shards
        seeds = [int(keyed_bits(seed, number)[0] >> np.uint64(1)) for number in range(len(mixture.sizes))]
        self._seeds = [seed, *seeds[1:]]
        self._totals = [sum(sizes) for sizes in mixture.sizes]
        self._orders: dict[int, tuple[int, EpochOrder]] = {}

    def slice(self, start: int, stop: int) -> tuple[Integers, Integers]:
        """Samples at positions start … stop−1.

        Returns:
            For each position the epoch of its set that it belongs to, and the sample's number.
        """
        sets, counts = interleave(start, stop, self._mixture.shares)
        epochs, numbers = np.empty_like(sets), np.empty_like(sets)
        for number, (total, first) in enumerate(zip(self._totals, self._mixture.firsts, strict=True)):
            mine = np.flatnonzero(sets == number)
            if len(mine):
                samples = counts[mine]  # consecutive, of one or more epochs of the set
                epochs[mine] = samples // total
                numbers[mine] = first + self._drawn(number, int(samples[0]), int(samples[-1]) + 1)
        return epochs, numbers

    def _drawn(self, number: int, start: int, stop: int) -> Integers:
        """Samples start … stop−1 of a set's endless order, numbered within the set."""
        size = self._totals[number]
        parts = []
        while start < stop:
            epoch, position = divmod(start, size)
            end = min(size, position + stop - start)
            parts.append(self._epoch(number, epoch).slice(position, end))
            start += end - position
        return np.concatenate(parts)

    def _epoch(self, number: int, epoch: int) -> EpochOrder:
        if number not in self._orders or self._orders[number][0] != epoch:
            sizes = self._mixture.sizes[number]
            order = EpochOrder(sizes, seed=self._seeds[number], epoch=epoch, shuffle_shards=self._shuffle_shards)
            self._orders[number] = (epoch, order)
        return self._orders[number][1]


def _listed(numbers: Sequence[float]) -> str:
    return ", ".join(f"{number:g}" for number in numbers)
