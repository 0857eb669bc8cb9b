"""The order of samples that are drawn from one or several sets of shards, as a pure function of the position.

Positions count samples through all epochs of a training. Each position belongs to one set; sets alternate evenly, in
proportion to their weights (`interleave`). The samples of a set come in its own endless order: one shuffled epoch of
the set (`EpochOrder`) after the other. So the sample at any position can be computed without those before it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from bmlpipe.manifests.common.errors import OptionError
from bmlpipe.shards.order import EpochOrder, Integers, keyed_bits

_SHARES_BELOW = 2**31  # bound of their sum: products of two numbers below it fit 64 bits


def interleave(start: int, stop: int, shares: Sequence[int]) -> tuple[Integers, Integers]:
    """Assign positions to sets in proportion to their shares, evenly spread.

    Of two sets with shares a and b, the first one gets floor((n + 1) a / (a + b)) of the first n + 1 positions
    (Bresenham's line). More sets are split into two halves, which share positions in the same way. Among the first n
    positions, the number that a set has differs from its exact share by less than 1 for each split, and not at all
    where n is a multiple of the sum of the shares.

    Args:
        start: First position.
        stop: Position after the last.
        shares: One positive integer per set.

    Returns:
        For each position the number of its set, and the number of positions before it that belong to the same set.

    Examples:
        >>> interleave(0, 6, [2, 1])
        (array([1, 0, 0, 1, 0, 0]), array([0, 0, 1, 1, 2, 3]))
    """
    return _deal(np.arange(start, stop), shares)


def _deal(turns: Integers, shares: Sequence[int]) -> tuple[Integers, Integers]:
    """Assign turns to sets: for each turn the number of its set, and the number of earlier turns of the same set."""
    if len(shares) == 1:
        return np.zeros_like(turns), turns
    half = len(shares) // 2
    left, total = sum(shares[:half]), sum(shares)
    before, after = _part(turns, left, total), _part(turns + 1, left, total)
    goes_left = after > before
    sets, counts = np.empty_like(turns), np.empty_like(turns)
    sets[goes_left], counts[goes_left] = _deal(before[goes_left], shares[:half])
    sets[~goes_left], counts[~goes_left] = _deal((turns - before)[~goes_left], shares[half:])
    sets[~goes_left] += half
    return sets, counts


def _part(turns: Integers, left: int, total: int) -> Integers:
    """Compute floor(turns · left / total) without overflow."""
    return turns // total * left + turns % total * left // total


@dataclass(frozen=True)
class Mixture:
    """The training samples of one or several sets of shards, and how often each set is drawn from.

    Attributes:
        sizes: For each set the numbers of samples of its training shards.
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
        """Make a mixture from the sets' sizes and weights.

        Args:
            sizes: For each set the numbers of samples of its training shards.
            firsts: For each set the number of its first training sample; None: one set after the other, from 0.
            weights: Relative frequency of each set, in any unit; None: the sets' sizes, so that each sample comes once
                per epoch.

        Raises:
            OptionError: A set is empty, or the weights are not one positive number per set.
        """
        totals = [sum(counts) for counts in sizes]
        if not totals or min(totals) == 0:
            raise OptionError(f"the sets have {totals} training samples: leave out the empty ones")
        if weights is not None and len(weights) != len(sizes):
            raise OptionError(
                f"{len(weights)} weights ({_listed(weights)}) for {len(sizes)} sets: give one weight per set"
            )
        if weights is not None and not all(math.isfinite(weight) and weight > 0 for weight in weights):
            raise OptionError(
                f"weights are {_listed(weights)}: each must be above 0; leave out sets that are not to be used"
            )
        exact = [Fraction(str(weight)) for weight in weights or totals]  # 0.1 is a tenth, not its nearest double
        scale = math.lcm(*(weight.denominator for weight in exact))
        shares = [int(weight * scale) for weight in exact]
        shares = [share // math.gcd(*shares) for share in shares]
        if sum(shares) >= _SHARES_BELOW:
            raise OptionError(
                f"weights are {_listed(weights or totals)}, in whole numbers {_listed(shares)}; the sum must be below "
                f"{_SHARES_BELOW}; give fewer digits"
            )
        starts = np.concatenate([[0], np.cumsum(totals)])[:-1].tolist()
        return cls(tuple(map(tuple, sizes)), tuple(firsts or starts), tuple(shares))

    def __len__(self) -> int:
        """Return the number of samples of an epoch, which is that of all sets together."""
        return sum(map(sum, self.sizes))

    def order(self, *, seed: int, shuffle_shards: int) -> MixtureOrder:
        """Return the order in which a run draws samples; see `MixtureOrder`."""
        return MixtureOrder(self, seed=seed, shuffle_shards=shuffle_shards)


class MixtureOrder:
    """The order in which a training draws samples from the sets of a mixture.

    Args:
        mixture: The sets to draw from.
        seed: Seed of the run. The first set has the order that it would have alone; the other sets have orders of their
            own.
        shuffle_shards: Number of shards of a set whose samples are shuffled together.
    """

    def __init__(self, mixture: Mixture, *, seed: int, shuffle_shards: int) -> None:
        self._mixture, self._shuffle_shards = mixture, shuffle_shards
        seeds = [int(keyed_bits(seed, number)[0] >> np.uint64(1)) for number in range(len(mixture.sizes))]
        self._seeds = [seed, *seeds[1:]]
        self._totals = [sum(sizes) for sizes in mixture.sizes]
        self._orders: dict[int, tuple[int, EpochOrder]] = {}

    def slice(self, start: int, stop: int) -> tuple[Integers, Integers]:
        """Return the samples at positions start … stop−1 of the training.

        Args:
            start: First position, from 0, through all epochs.
            stop: Position after the last.

        Returns:
            For each position the epoch of its set that it falls into, and the number of its sample; (stop − start,)
            each.
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
        """Return the samples start … stop−1 of the endless order of a set, numbered within the set."""
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
