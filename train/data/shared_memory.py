"""Memory of batches that is reused, within the training process and between it and its loader processes.

New memory is expensive, because the kernel clears every page. A batch of 64 samples is tens of megabytes, and
torch's DataLoader copies each batch of a loader process into new shared memory, at half the cost of the loading itself.
Here the arrays of a batch live in blocks of a pool. The first byte of a block says whether it is in use; a block is
reused when nothing refers to its array, or to a part of it, any more. If all blocks are in use a new one is created, so
nothing ever waits, and a batch may be kept for any time. Only a process that forks must copy the arrays that its child
needs.

Shared blocks are torch's own shared memory. They have no name in the file system, so killed processes leave nothing
behind.
"""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import sys
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset

Array = npt.NDArray[Any]

#: Creates an array of a name, shape and type, with any content.
Allocate = Callable[[str, tuple[int, ...], npt.DTypeLike], Array]

_HEAD = 64  # bytes before the array: the first says whether the block is in use, the others align the array
_SHM = "/dev/shm"  # noqa: S108  (only its size is read)


class MemoryPool:
    """Blocks of memory for arrays, safe to use from several threads, to fork and to pickle; copies start empty.

    Args:
        keep: Number of blocks that are kept for reuse.
        shared: Whether the blocks are shared memory.
    """

    def __init__(self, keep: int, *, shared: bool = False) -> None:
        self._keep, self._shared = keep, shared
        self._owner, self._lock, self._blocks = os.getpid(), threading.Lock(), list[Tensor]()

    def __getstate__(self) -> tuple[int, bool]:
        return self._keep, self._shared

    def __setstate__(self, state: tuple[int, bool]) -> None:
        self.__init__(state[0], shared=state[1])  # type: ignore[misc]

    def take(self, shape: tuple[int, ...], kind: npt.DTypeLike) -> Tensor:
        """Take a block that is large enough for an array, and mark it as in use.

        Raises:
            RuntimeError: There is not enough shared memory.
        """
        size = _HEAD + math.prod(shape) * np.dtype(kind).itemsize
        if self._owner != os.getpid():  # blocks in use belong to the parent, and their first bytes are not shared
            self.__setstate__(self.__getstate__())
        with self._lock:
            fitting = [block for block in self._blocks if not block[0] and size <= len(block) <= 2 * size]
            if fitting:
                block = min(fitting, key=len)
            else:
                block = self._new(size)
                self._blocks.append(block)
            block[0] = 1
            if len(self._blocks) > self._keep:  # forget the oldest free block, or else the new one
                del self._blocks[next((n for n, one in enumerate(self._blocks) if not one[0]), -1)]
        return block

    def _new(self, size: int) -> Tensor:
        block = torch.empty(size, dtype=torch.uint8)
        if self._shared:
            _check_room(size)
            block.share_memory_()  # type: ignore[no-untyped-call]
        return block

    def array(self, _name: str, shape: tuple[int, ...], kind: npt.DTypeLike) -> Array:
        """Make an array in a block that becomes free with the last reference to its memory; an `Allocate`."""
        return _array_in(self.take(shape, kind), shape, kind)


class SharedMemoryDataset(Dataset[Any]):
    """Batches loaded in the processes of a DataLoader and passed on in shared memory, without a copy.

    Args:
        load: Items of a batch, and an `Allocate` for its large arrays → all arrays of the batch.
        finish: Arrays → batch; called in the process that receives them, on the same memory. It must be a function of a
            module, since it is pickled.
        keep: Number of blocks that a loader process keeps for later batches.
    """

    def __init__(
        self,
        load: Callable[[Sequence[Any], Allocate], dict[str, Array]],
        finish: Callable[[dict[str, Array]], Any],
        *,
        keep: int,
    ) -> None:
        self._load, self._finish, self._pool = load, finish, MemoryPool(keep, shared=True)

    def __getitems__(self, items: Sequence[Any]) -> _SharedBatch:
        shared: dict[str, tuple[Tensor, tuple[int, ...], str]] = {}
        with contextlib.ExitStack() as undo:

            def allocate(name: str, shape: tuple[int, ...], kind: npt.DTypeLike) -> Array:
                block = self._pool.take(shape, kind)
                undo.callback(block.__setitem__, 0, 0)
                shared[name] = block, shape, np.dtype(kind).str
                return np.ndarray(shape, kind, block.numpy(), _HEAD)

            arrays = self._load(items, allocate)
            undo.pop_all()
        return _SharedBatch(self._finish, {name: array for name, array in arrays.items() if name not in shared}, shared)


class _SharedBatch:
    """A batch on its way to another process: it is pickled as the call that makes the batch there."""

    def __init__(self, *parts: Any) -> None:
        self._parts = parts

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return _receive, self._parts


def _receive(
    finish: Callable[[dict[str, Array]], Any],
    arrays: Mapping[str, Array],
    shared: Mapping[str, tuple[Tensor, tuple[int, ...], str]],
) -> Any:
    return finish({**arrays, **{name: _array_in(*parts) for name, parts in shared.items()}})


def _array_in(block: Tensor, shape: tuple[int, ...], kind: npt.DTypeLike) -> Array:
    memory = block.numpy()  # every slice of the array, and every tensor made of one, keeps this object alive
    weakref.finalize(memory, _free, block, os.getpid()).atexit = False
    return np.ndarray(shape, kind, memory, _HEAD)


def _free(block: Tensor, holder: int) -> None:
    if os.getpid() == holder:  # a forked process has copies of arrays that its parent still uses
        block[0] = 0


def _check_room(size: int) -> None:
    """Raise an error before shared memory runs out: a process that writes beyond it is killed without one."""
    if sys.platform == "linux" and (free := shutil.disk_usage(_SHM).free) < size:
        raise RuntimeError(
            f"{_SHM} has {free} bytes left, but the next part of a batch takes {size}: give the container more shared "
            "memory (docker run --ipc=host, or --shm-size), or choose fewer --workers or a smaller --batch-size"
        )
