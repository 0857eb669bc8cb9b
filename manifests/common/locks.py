"""Exclusive locks on files (flock). The system releases them when the process ends, however it ends."""

from __future__ import annotations

import fcntl
import logging
import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bmlpipe.manifests.common.errors import BmlpipeError

_logger = logging.getLogger(__name__)

FOLDER_LOCK = ".lock"

_POLL = 0.05  # seconds between two attempts


class LockError(BmlpipeError):
    """Another process holds a lock. The message names the lock and the remedy."""


def refers_to(descriptor: int, path: Path) -> bool:
    """Return whether `path` leads to the file that `descriptor` has open."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat(follow_symlinks=False))
    except FileNotFoundError:
        return False


def try_lock(path: Path, *, create: bool = True) -> int | None:
    """Lock a file without waiting.

    Args:
        path: The file to lock.
        create: Create the file if it does not exist.

    Returns:
        A descriptor that holds the lock, for `release`. None if another process holds it, or if the file was renamed
        or removed meanwhile; without `create` also if the file does not exist or may not be opened.

    Raises:
        OSError: The file cannot be opened, or its file system has no locks (then the error states no file name).
    """
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
    except OSError:
        os.close(descriptor)
        raise
    if refers_to(descriptor, path):
        return descriptor
    release(descriptor)  # it was renamed or removed between the two calls
    return None


def release(descriptor: int) -> None:
    """Release a lock. Closing the descriptor is not enough, since a forked child may share it, and with it the lock."""
    fcntl.flock(descriptor, fcntl.LOCK_UN)
    os.close(descriptor)


@contextmanager
def locked(path: Path, *, patience: float = math.inf) -> Iterator[None]:
    """Hold the lock on a file for the length of a block.

    Args:
        path: The file to lock; it is created if it does not exist.
        patience: Seconds to wait for another process that holds the lock.

    Raises:
        LockError: Another process holds the lock for longer than `patience`.
    """
    if (descriptor := _wait(path, patience)) is None:
        raise LockError(f"{path} was held by another process for {patience:g} s: end that process (fuser -v {path})")
    try:
        yield
    finally:
        release(descriptor)


def lock_folder(folder: Path, work: str, *, patience: float = 0.0) -> int | None:
    """Take a folder for this process alone.

    Args:
        folder: The folder; it is created if it does not exist.
        work: Name of the work, for the message: `extraction`.
        patience: Seconds to wait for another process that holds it.

    Returns:
        A descriptor that holds the lock, for `release`; child processes that inherit it hold the lock too. None, with
        a warning, if the file system has no locks, as is the case for some network file systems.

    Raises:
        LockError: Another process holds the folder.
        OSError: The folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / FOLDER_LOCK
    try:
        descriptor = _wait(path, patience)
    except OSError as error:
        if error.filename is not None:
            raise
        _logger.warning("%s cannot be locked (%s): start no second %s into it", folder, error.strerror, work)
        return None
    if descriptor is None:
        raise LockError(
            f"another {work} is writing into {folder}: wait until it ends, or choose another --out "
            f"(`fuser -v {path}` lists its processes)"
        )
    return descriptor


@contextmanager
def exclusive_folder(folder: Path, work: str) -> Iterator[int | None]:
    """Hold a folder for the length of a block; see `lock_folder`."""
    descriptor = lock_folder(folder, work)
    try:
        yield descriptor
    finally:
        if descriptor is not None:
            release(descriptor)


def _wait(path: Path, patience: float) -> int | None:
    end = time.monotonic() + patience
    while (descriptor := try_lock(path)) is None and time.monotonic() < end:
        time.sleep(_POLL)
    return descriptor
