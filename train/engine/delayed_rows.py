"""Rows of the journal whose numbers are still on their way from the device to the host."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence

from torch import Tensor

from bmlpipe.train.modulation.host_copy import LAG, HostCopy
from bmlpipe.train.runs.journal_reader import Row


class DelayedRows:
    """A queue of rows whose numbers are still being computed or copied.

    Every rank reads the same rows, because their numbers were summed over the ranks. Decisions that depend on them,
    such as to stop, are therefore the same on every rank.

    Args:
        columns: Names of the entries of the device's vectors.
    """

    def __init__(self, columns: Sequence[str]) -> None:
        self._columns = tuple(columns)
        self._pending: deque[tuple[Row, HostCopy]] = deque()

    def push(self, host_values: Row, device_values: Tensor) -> Row | None:
        """Add the row of a step; return the row of two steps before, if there is one.

        Args:
            host_values: Numbers that the host knows: step, epoch, times.
            device_values: (len(columns),), on the device.
        """
        self._pending.append((host_values, HostCopy(device_values)))
        return self._pop() if len(self._pending) > LAG else None

    def flush(self) -> Iterator[Row]:
        """Yield all rows that are left, in order."""
        while self._pending:
            yield self._pop()

    def _pop(self) -> Row:
        host_values, copy = self._pending.popleft()
        return {**host_values, **dict(zip(self._columns, copy.read(), strict=True))}
