"""Columns of a journal, reduced for drawing to the mean, minimum and maximum of buckets of consecutive steps.

A bucket holds 2^n steps, so that the buckets of runs of different lengths can be merged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bmlpipe.train.runs.journal_reader import Values

_MOST_BUCKETS = 1024  # per run


@dataclass(frozen=True)
class Trace:
    """A column in B buckets of `width` steps each; the first bucket starts with step 0.

    Attributes:
        width: Number of steps per bucket, a power of two.
        count: Number of finite values in each bucket, (B,).
        total: Their sum, (B,).
        low: The lowest of them, (B,); inf in a bucket without a finite value.
        high: The highest of them, (B,); −inf in a bucket without a finite value.
    """

    width: int
    count: Values
    total: Values
    low: Values
    high: Values

    @property
    def steps(self) -> Values:
        """Middle of each bucket in steps, (B,); the step itself if the width is 1."""
        return np.arange(len(self.count), dtype=np.float64) * self.width + (self.width - 1) / 2

    @property
    def means(self) -> Values:
        """Mean of each bucket, (B,); NaN in a bucket without a finite value."""
        means = np.full(len(self.count), np.nan)
        np.divide(self.total, self.count, out=means, where=self.count > 0)
        return means

    @property
    def ranges(self) -> tuple[Values, Values]:
        """Lowest and highest value of each bucket, (B,) each; NaN in a bucket without a finite value."""
        empty = self.count == 0
        return np.where(empty, np.nan, self.low), np.where(empty, np.nan, self.high)

    def coarsened(self, width: int) -> Trace:
        """Merge buckets to `width` steps each, a power of two not below the present width."""
        times = width // self.width
        size = -(-len(self.count) // times) * times

        def merged(values: Values, rest: float) -> Values:
            return np.pad(values, (0, size - len(values)), constant_values=rest).reshape(-1, times)

        return Trace(
            width,
            merged(self.count, 0).sum(axis=1),
            merged(self.total, 0).sum(axis=1),
            merged(self.low, np.inf).min(axis=1),
            merged(self.high, -np.inf).max(axis=1),
        )


def width_for(last_step: int, buckets: int) -> int:
    """Find the smallest power of two as bucket width with which steps 0 to `last_step` fill at most `buckets`."""
    return 1 << max(0, int(last_step // buckets).bit_length())


def trace(steps: npt.NDArray[np.int64], values: Values) -> Trace:
    """Reduce a column to buckets; values that are not finite are left out.

    Args:
        steps: Steps, (N,), 0 or more, in any order.
        values: Value at each step, (N,).
    """
    width = width_for(int(steps.max(initial=0)), _MOST_BUCKETS)
    size = int(steps.max(initial=-1)) // width + 1
    finite = np.isfinite(values)
    buckets, kept = steps[finite] // width, values[finite]
    low, high = np.full(size, np.inf), np.full(size, -np.inf)
    np.minimum.at(low, buckets, kept)
    np.maximum.at(high, buckets, kept)
    count, total = (np.bincount(buckets, weights, size).astype(np.float64) for weights in (None, kept))
    return Trace(width, count, total, low, high)


def merge_traces(traces: Sequence[Trace], buckets: int) -> Trace | None:
    """Merge the same column of several runs into one trace; the values of all runs have equal weight.

    Args:
        traces: Trace of each run.
        buckets: Maximum number of buckets.

    Returns:
        None if no run has a finite value.
    """
    last = max((len(one.count) * one.width - 1 for one in traces), default=0)
    width = max([width_for(last, buckets), *(one.width for one in traces)])
    coarse = [one.coarsened(width) for one in traces]
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
