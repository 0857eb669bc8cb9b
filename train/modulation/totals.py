"""What a step adds up over its micro-batches and, in one small collective, over the ranks."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


class Totals:
    """The numbers of a step in progress.

    Args:
        like: A vector of sums (`bmlpipe.train.modulation.measurement`), (width,), float64; nothing is added up yet.
        size: M.

    Attributes:
        sums: Of all micro-batches so far; of all ranks after `reduce_sums` or `wait`.
        dropped: Dropped samples, (M,), float64; of all ranks after `wait`.
        q: Noted by the rules for the last micro-batch, (M,), float64.
        closed: Whether a reduction was started: no more micro-batches.
    """

    def __init__(self, like: Tensor, size: int) -> None:
        self.sums = torch.zeros_like(like)
        self.dropped, self.q = like.new_zeros(size), like.new_zeros(size)
        self.closed = False
        self._sums_known = False
        self._reduced: Tensor | None = None
        self._work: dist.Work | None = None

    def reduce_sums(self, group: dist.ProcessGroup | None) -> None:
        """Sum the scores over the ranks at once, where a rule needs them before the loss."""
        if _distributed():
            dist.all_reduce(self.sums, group=group)
        self.closed = self._sums_known = True

    def reduce(self, extra: Tensor | None, group: dist.ProcessGroup | None) -> None:
        """Start to sum everything that is not yet, and the loop's own numbers, over the ranks.

        Raises:
            RuntimeError: A second time.
        """
        if self._reduced is not None:
            raise RuntimeError("reduce() comes at most once a step")
        own = [self.dropped] if self._sums_known else [self.sums, self.dropped]
        self._reduced = torch.cat(own if extra is None else [*own, extra.detach().to(self.sums)])
        if _distributed():
            self._work = dist.all_reduce(self._reduced, group=group, async_op=True)
        self.closed = True

    def wait(self, group: dist.ProcessGroup | None) -> Tensor:
        """Take in what `reduce` sums, which is started where it was not; returns the loop's own numbers."""
        if self._reduced is None:
            self.reduce(None, group)
        assert self._reduced is not None
        if self._work is not None:
            self._work.wait()
        whole = torch.cat([self.sums, self._reduced]) if self._sums_known else self._reduced
        width, end = len(self.sums), len(self.sums) + len(self.dropped)
        self.sums, self.dropped = whole[:width], whole[width:end]
        return whole[end:]


def _distributed() -> bool:
    return dist.is_available() and dist.is_initialized()
