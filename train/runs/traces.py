"""A journal's columns made small enough to draw, honestly: the mean, the lowest and the highest of every few steps.

A bucket holds 2^n consecutive steps, so that buckets of runs of other lengths can be joined.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bmlpipe.train.runs.journal_reader import Values

_FINEST = 1024  # buckets kept of a run at most


@dataclass(frozen=True)
class Trace:
    """A column, B buckets of `width` steps each; the first one begins with step 0.

    Attributes:
        width: Steps in a bucket, a power of two.
        count: (B,), finite values in each bucket.
        total: (B,), their sum.
        low: (B,), the lowest one; inf in a bucket without any.
        high: (B,), the highest one; −inf in a bucket without any.
    """

    width: int
    count: Values
    total: Values
    low: Values
    high: Values

    @property
    def steps(self) -> Values:
        """(B,), the middle of each bucket; its only step where the width is 1."""
        return np.arange(len(self.count), dtype=np.float64) * self.width + (self.width - 1) / 2

    @property
    def means(self) -> Values:
        """(B,), NaN in a bucket without any finite value."""
        means = np.full(len(self.count), np.nan)
        np.divide(self.total, self.count, out=means, where=self.count > 0)
        return means

    @property
    def ranges(self) -> tuple[Values, Values]:
        """(B,) twice, the lowest and the highest value; NaN in a bucket without any finite one."""
        empty = self.count == 0
        return np.where(empty, np.nan, self.low), np.where(empty, np.nan, self.high)

    def coarser(self, width: int) -> Trace:
        """The same in buckets of `width` steps, a power of two that is no smaller than before."""
        times = width // self.width
        size = -(-len(self.count) // times) * times

        def joined(values: Values, rest: float) -> Values:
            return np.pad(values, (0, size - len(values)), constant_values=rest).reshape(-1, times)

        return Trace(
            width,
            joined(self.count, 0).sum(axis=1),
            joined(self.total, 0).sum(axis=1),
            joined(self.low, np.inf).min(axis=1),
            joined(self.high, -np.inf).max(axis=1),
        )


def width_for(last_step: int, buckets: int) -> int:
    """The smallest power of two with which steps 0 to `last_step` need at most so many buckets."""
    return 1 << max(0, int(last_step // buckets).bit_length())


def trace(steps: npt.NDArray[np.int64], values: Values) -> Trace:
    """Put a column into buckets; values that are not finite are left out.

    Args:
        steps: (N,), 0 or more, in any order.
        values: (N,).
    """
    width = width_for(int(steps.max(initial=0)), _FINEST)
    size = int(steps.max(initial=-1)) // width + 1
    finite = np.isfinite(values)
    places, kept = steps[finite] // width, values[finite]
    low, high = np.full(size, np.inf), np.full(size, -np.inf)
    np.minimum.at(low, places, kept)
    np.maximum.at(high, places, kept)
    count, total = (np.bincount(places, weights, size).astype(np.float64) for weights in (None, kept))
    return Trace(width, count, total, low, high)


def together(traces: Sequence[Trace], buckets: int) -> Trace | None:
    """Several runs' column as one, in at most so many buckets: all values of a bucket, of whichever run, alike.

    Returns:
        None where no run has a finite value.
    """
    last = max((len(one.count) * one.width - 1 for one in traces), default=0)
    width = max([width_for(last, buckets), *(one.width for one in traces)])
    coarse = [one.coarser(width) for one in traces]
    size = max((len(one.count) for one in coarse), default=0)
    if not any(one.count.any() for one in coarse):
        return None

    def stacked(name: str, rest: float) -> Values:
        padded = [np.pad(getattr(one, name), (0, size - len(one.count)), constant_values=rest) for one in coarse]
        return np.array(padded)

    return Trace(
        width,
        stacked("count", 0).sum(axis=0),
        stacked("total", 0).sum(axis=0),
        stacked("low", np.inf).min(axis=0),
        stacked("high", -np.inf).max(axis=0),
    )
