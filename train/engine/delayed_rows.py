"""Copy the numbers of each step from the device to the host without making the device wait."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bmlpipe.train.runs.journal_reader import Row

_LAG = 2  # steps between the computation of a row and its reading; its copy has finished long before


@dataclass
class _Pending:
    host_values: Row
    device_values: Tensor
    copied: torch.cuda.Event | None


class DelayedRows:
    """A queue of rows whose numbers are still being computed or copied.

    Every rank reads the same rows, because their numbers were summed over the ranks. Decisions that depend on them,
    such as to stop, are therefore the same on every rank.

    Args:
        columns: Names of the entries of the device's vectors.
    """

    def __init__(self, columns: Sequence[str]) -> None:
        self._columns = tuple(columns)
        self._pending: deque[_Pending] = deque()

    def push(self, host_values: Row, device_values: Tensor) -> Row | None:
        """Add the row of a step; return the row of two steps before, if there is one.

        Args:
            host_values: Numbers that the host knows: step, epoch, times.
            device_values: (len(columns),), on the device.
        """
        copied = None
        if device_values.is_cuda:
            pinned = torch.empty(device_values.shape, dtype=device_values.dtype, pin_memory=True)
            pinned.copy_(device_values, non_blocking=True)
            copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            copied.record()
            device_values = pinned
        self._pending.append(_Pending(host_values, device_values, copied))
        return self._pop() if len(self._pending) > _LAG else None

    def flush(self) -> Iterator[Row]:
        """Yield all rows that are left, in order."""
        while self._pending:
            yield self._pop()

    def _pop(self) -> Row:
        oldest = self._pending.popleft()
        if oldest.copied is not None:
            oldest.copied.synchronize()
        return {**oldest.host_values, **dict(zip(self._columns, oldest.device_values.tolist(), strict=True))}
