"""Exclusive locks of files, which processes lose when they end, however they end (flock)."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path


def same(descriptor: int, path: Path) -> bool:
    """Whether the path leads to the file that the descriptor has open."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat(follow_symlinks=False))
    except FileNotFoundError:
        return False


def locked(path: Path, *, create: bool = True) -> int | None:
    """A descriptor of the file at a path with the exclusive lock on it; None where another one has it or it is gone."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | (os.O_CREAT if create else 0), 0o666)
    except (FileNotFoundError, PermissionError):
        if create:
            raise
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    if same(descriptor, path):
        return descriptor
    unlock(descriptor)  # it was renamed or removed between the two calls
    return None


def unlock(descriptor: int) -> None:
    """Close it, and unlock it before: a forked child may have the descriptor, and so the lock, too."""
    fcntl.flock(descriptor, fcntl.LOCK_UN)
    os.close(descriptor)
