"""Fixtures of the tests of training."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode


@pytest.fixture(autouse=True)
def _one_thread_and_seed() -> None:
    """Make results reproducible: the order of float additions depends on the number of threads."""
    torch.set_num_threads(1)
    torch.manual_seed(0)


@pytest.fixture
def no_host_reads() -> type[TorchDispatchMode]:
    """A context in which reading a tensor's value on the host fails, since on a GPU that waits for the device."""

    class NoHostReads(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            assert func not in {torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default}, func
            return func(*args, **(kwargs or {}))

    return NoHostReads
