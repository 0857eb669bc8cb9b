"""Memory of batches that is used again, in the training process and between it and its workers.

New memory is dear: the kernel clears each page of it. A batch of 64 samples is tens of megabytes, and torch's
DataLoader copies each one that comes from a worker into new shared memory, at half the cost of the loading itself. Here
an array of a batch lies in a block that is used again when nobody holds the array, or a part of it, any more. The first
byte of a block says whether somebody does. Where all blocks are in use another one is made, so nothing ever waits, and
a batch may be kept for any time. Only one who forks must copy what the new process is to keep.

Shared blocks are torch's own shared memory: they have no name that could be left behind when processes are killed.
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

#: Makes an array of this name, shape and type, with any contents.
Allocate = Callable[[str, tuple[int, ...], npt.DTypeLike], Array]

_HEAD = 64  # bytes before the array: whether the block is in use, and alignment
_SHM = "/dev/shm"  # noqa: S108  (only asked for its size)


class Blocks:
    """Blocks of memory for arrays; safe to use from several threads, to fork and to pickle (copies begin empty).

    Args:
        keep: Blocks that are kept for later use.
        shared: Make them of shared memory.
    """

    def __init__(self, keep: int, *, shared: bool = False) -> None:
        self._keep, self._shared = keep, shared
        self._owner, self._lock, self._blocks = os.getpid(), threading.Lock(), list[Tensor]()

    def __getstate__(self) -> tuple[int, bool]:
        return self._keep, self._shared

    def __setstate__(self, state: tuple[int, bool]) -> None:
        self.__init__(state[0], shared=state[1])  # type: ignore[misc]

    def take(self, shape: tuple[int, ...], kind: npt.DTypeLike) -> Tensor:
        """A block for such an array, marked as in use.

        Raises:
            RuntimeError: There is not enough shared memory.
        """
        size = _HEAD + math.prod(shape) * np.dtype(kind).itemsize
        if self._owner != os.getpid():  # those in use are the other process's, and it will not say when they are free
            self.__setstate__(self.__getstate__())
        with self._lock:
            fitting = [block for block in self._blocks if not block[0] and size <= len(block) <= 2 * size]
            if fitting:
                block = min(fitting, key=len)
            else:
                block = self._new(size)
                self._blocks.append(block)
            block[0] = 1
            if len(self._blocks) > self._keep:  # the oldest one that is free goes, or the new one as soon as it is
                del self._blocks[next((n for n, one in enumerate(self._blocks) if not one[0]), -1)]
        return block

    def _new(self, size: int) -> Tensor:
        block = torch.empty(size, dtype=torch.uint8)
        if self._shared:
            _check_room(size)
            block.share_memory_()  # type: ignore[no-untyped-call]
        return block

    def array(self, _name: str, shape: tuple[int, ...], kind: npt.DTypeLike) -> Array:
        """An array in a block that becomes free with the last reference to its memory; an `Allocate`."""
        return _lent(self.take(shape, kind), shape, kind)


class InWorkers(Dataset[Any]):
    """What workers of a DataLoader read instead of a data set; the DataLoader yields what `finish` returns.

    Args:
        load: Items of a batch and where to make the large ones of its arrays → all its arrays.
        finish: Arrays → batch, in the process that gets it, in the same memory. A function of a module.
        keep: Blocks that a worker keeps for later batches.
    """

    def __init__(
        self,
        load: Callable[[Sequence[Any], Allocate], dict[str, Array]],
        finish: Callable[[dict[str, Array]], Any],
        *,
        keep: int,
    ) -> None:
        self._load, self._finish, self._blocks = load, finish, Blocks(keep, shared=True)

    def __getitems__(self, items: Sequence[Any]) -> _Sent:
        lent: dict[str, tuple[Tensor, tuple[int, ...], str]] = {}
        with contextlib.ExitStack() as undo:

            def allocate(name: str, shape: tuple[int, ...], kind: npt.DTypeLike) -> Array:
                block = self._blocks.take(shape, kind)
                undo.callback(block.__setitem__, 0, 0)
                lent[name] = block, shape, np.dtype(kind).str
                return np.ndarray(shape, kind, block.numpy(), _HEAD)

            arrays = self._load(items, allocate)
            undo.pop_all()
        return _Sent(self._finish, {name: array for name, array in arrays.items() if name not in lent}, lent)


class _Sent:
    """A batch on its way: it is pickled as what makes it in the process that gets it."""

    def __init__(self, *parts: Any) -> None:
        self._parts = parts

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return _received, self._parts


def _received(
    finish: Callable[[dict[str, Array]], Any],
    arrays: Mapping[str, Array],
    lent: Mapping[str, tuple[Tensor, tuple[int, ...], str]],
) -> Any:
    return finish({**arrays, **{name: _lent(*parts) for name, parts in lent.items()}})


def _lent(block: Tensor, shape: tuple[int, ...], kind: npt.DTypeLike) -> Array:
    memory = block.numpy()  # what every view of the array, and every tensor made of one, keeps alive
    weakref.finalize(memory, _give_back, block, os.getpid()).atexit = False
    return np.ndarray(shape, kind, memory, _HEAD)


def _give_back(block: Tensor, holder: int) -> None:
    if os.getpid() == holder:  # a forked process has copies of arrays that its parent goes on using
        block[0] = 0


def _check_room(size: int) -> None:
    """Who writes to shared memory that is not there is ended by the system, without an error."""
    if sys.platform == "linux" and (free := shutil.disk_usage(_SHM).free) < size:
        raise RuntimeError(
            f"{_SHM} has {free} bytes left, and the next part of a batch takes {size}: give the container more shared "
            "memory (docker run --ipc=host, or --shm-size), or choose fewer --workers or a smaller --batch-size"
        )
