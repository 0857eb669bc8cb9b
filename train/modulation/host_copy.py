"""Copy numbers from the device to the host without making the device wait."""

from __future__ import annotations

import torch
from torch import Tensor

#: Number of steps between the computation of a number and its reading; its copy has finished long before.
LAG = 2


class HostCopy:
    """Numbers on their way to the host.

    Args:
        values: (N,), on any device; the copy starts now.
    """

    def __init__(self, values: Tensor) -> None:
        self._values, self._arrived = values, None
        if values.is_cuda:
            self._values = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            self._values.copy_(values, non_blocking=True)
            self._arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._arrived.record()

    def read(self) -> list[float]:
        """Wait for the copy, and return the N numbers."""
        if self._arrived is not None:
            self._arrived.synchronize()
        found: list[float] = self._values.tolist()
        return found
