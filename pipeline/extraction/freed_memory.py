"""Memory that one clip gives back stays with the process for the next one.

The C library returns freed memory to the system early, and the system clears each page that it hands out again: on a
virtual machine that is a tenth of what extracting a clip costs, in Dask's workers more, which ask for it to be returned
at once. A clip needs what the one before needed, so a worker keeps it.
"""

from __future__ import annotations

import ctypes
from contextlib import suppress
from functools import cache

#: Freed memory that a process keeps, in bytes.
KEPT = 128 << 20

_LARGE = 32 << 20  # bytes from which on memory comes from the system for itself, and goes back; the C library's limit
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # numbers of mallopt(3)


@cache
def keep_freed_memory() -> None:
    """Keep up to `KEPT` bytes of freed memory in this process, whatever `MALLOC_TRIM_THRESHOLD_` says.

    Where the C library is another one than glibc, all works as before, a little slower.
    """
    with suppress(OSError, AttributeError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_THRESHOLD, _LARGE)
        mallopt(_M_TRIM_THRESHOLD, KEPT)
