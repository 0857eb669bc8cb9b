"""Keep memory that one clip has freed in the process, for the next clip.

The C library returns freed memory to the system early, and the system clears each page that it hands out again. On a
virtual machine this is a tenth of the cost of extracting a clip, and more in Dask's workers, which request that memory
is returned at once. Each clip needs about as much as the one before, so a worker keeps it.
"""

from __future__ import annotations

import ctypes
from contextlib import suppress
from functools import cache

#: Freed memory that a process keeps, in bytes.
KEPT = 128 << 20

_LARGE = 32 << 20  # blocks from this size on come from the system one by one and go back to it; the C library's limit
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # parameter numbers of mallopt(3)


@cache
def keep_freed_memory() -> None:
    """Keep up to `KEPT` bytes of freed memory in this process, whatever `MALLOC_TRIM_THRESHOLD_` says.

    With a C library other than glibc, nothing changes.
    """
    with suppress(OSError, AttributeError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_THRESHOLD, _LARGE)
        mallopt(_M_TRIM_THRESHOLD, KEPT)
