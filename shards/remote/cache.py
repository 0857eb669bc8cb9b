"""A folder of bounded size that keeps files by their content, shared by all processes of a machine.

A complete file has its SHA-256 as its name. A file that is being written has the suffix `.part` and is locked (flock)
by the process that writes it: other processes wait for it, and after a process that was killed only an unlocked `.part`
file remains. Room is made by removing the files that were used longest ago, by one process at a time, which holds
the file `lock`. No state is kept between calls: the folder itself is the state.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import shutil
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from bmlpipe.manifests.common.files import sha256_of
from bmlpipe.manifests.common.locks import locked, refers_to, release, try_lock
from bmlpipe.shards.errors import ShardError

_PART = ".part"
_POLL = 0.05  # seconds between two attempts to get a lock that another process holds
_TOUCH = 10.0  # seconds after which a use is recorded again

#: Writes the content of an entry, which it has checked, to the start of an empty file. It gets the file's descriptor.
Fill = Callable[[int], None]


@dataclass(frozen=True)
class CacheEntry:
    """The identity of a cached file.

    Attributes:
        sha256: SHA-256 of its content, 64 hexadecimal digits; its name in the cache.
        bytes: Its size.
        slack: Number of bytes by which it may be larger, if its exact size is not known.

    Raises:
        ShardError: The hash is no SHA-256, or the size is no size.
    """

    sha256: str
    bytes: int
    slack: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.sha256, str) or not re.fullmatch("[0-9a-f]{64}", self.sha256):
            raise ShardError(f"{self.sha256!r} is not a SHA-256: the index is damaged, publish the set again")
        if not isinstance(self.bytes, int) or self.bytes < 0:
            raise ShardError(f"{self.bytes!r} is not a size in bytes: the index is damaged, publish the set again")

    def fits(self, size: int) -> bool:
        """Return whether a file of this size can be the entry."""
        return self.bytes <= size <= self.bytes + self.slack


class Cache:
    """A cache of bounded size. It is safe to use from several threads and processes, to fork, and to pickle.

    Args:
        folder: Folder of the cache, on a local disk.
        limit: Largest total size of its files in bytes. Files that are being written count with their full size.
        patience: Seconds to wait for another process while no file of the cache changes.
    """

    def __init__(self, folder: Path, limit: int, *, patience: float = 600.0) -> None:
        self.folder, self.limit, self.patience = folder.absolute(), limit, patience

    def used(self) -> int:
        """Return the total size of the files in the cache in bytes; files being written count with their full size."""
        return sum(size for _, size, _ in self._files())

    def find(self, entry: CacheEntry) -> int | None:
        """Open an entry that is in the cache, and record the use.

        Returns:
            A descriptor for reading, which the caller closes; None if the entry is not in the cache.

        Raises:
            ShardError: The cache cannot be read.
        """
        try:
            descriptor = os.open(self.path(entry), os.O_RDONLY | os.O_NOFOLLOW)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._unusable(error) from error
        status = os.fstat(descriptor)
        if not entry.fits(status.st_size):
            self.discard(entry, descriptor)
            os.close(descriptor)
            return None
        if time.time() - status.st_mtime > _TOUCH:
            with suppress(PermissionError):  # the file of another user, whose own processes record their uses
                os.utime(descriptor)
        return descriptor

    def get(self, entry: CacheEntry, fill: Fill) -> int:
        """Open an entry. If it is not in the cache, write it, or wait for the process that is writing it.

        Args:
            entry: The entry to open.
            fill: Writes its content. It runs in one thread of all processes at a time.

        Returns:
            A descriptor for reading, which the caller closes.

        Raises:
            ShardError: `fill` failed, the entry is larger than the cache, the disk is full, or the process that writes
                the entry makes no progress.
        """
        seen, since = -1, time.monotonic()
        while (found := self.try_get(entry, fill)) is None:
            try:
                now = self._part(entry).stat().st_mtime_ns
            except FileNotFoundError:  # there was no room: look at all files that are being written
                now = sum(changed for changed, _, name in self._files() if name.endswith(_PART))
            if now != seen:
                seen, since = now, time.monotonic()
            if time.monotonic() - since > self.patience:
                raise ShardError(
                    f"{self.path(entry)}: waited {self.patience:g} s for another process that downloads this file or "
                    f"takes up the cache of {self.limit} bytes, and it made no progress: end that process, or use "
                    "another --cache"
                )
            time.sleep(_POLL)
        return found

    def try_get(self, entry: CacheEntry, fill: Fill, keep: Collection[str] = ()) -> int | None:
        """Open an entry, and write it if it is not in the cache; do not wait for other processes.

        Args:
            entry: The entry to open.
            fill: Writes its content.
            keep: Names (SHA-256) of entries that must not be removed to make room.

        Returns:
            A descriptor for reading, which the caller closes. None if another process is writing the entry, or if
            there is no room without removing entries of `keep`.

        Raises:
            ShardError: `fill` failed, the entry is larger than the cache, or the disk is full.
        """
        if (found := self.find(entry)) is not None:
            return found
        path = self._part(entry)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if (part := try_lock(path)) is None:
                return None
            try:
                while (found := self.find(entry)) is None and self._make_room(entry, part, keep):
                    self._fill(entry, part, fill, keep)
                return found
            finally:
                if refers_to(part, path):
                    path.unlink(missing_ok=True)
                release(part)
        except OSError as error:
            raise self._unusable(error) from error

    def hold(self, entry: CacheEntry, fill: Fill, *, check: bool = False) -> int:
        """Like `get`, but the entry stays in the cache as long as the descriptor is open.

        Args:
            entry: The entry to open.
            fill: Writes its content.
            check: Read all of it and compare its SHA-256; a damaged file is removed and written again.

        Raises:
            ShardError: As for `get`, or the file is damaged again.
        """
        damaged = 0
        while damaged < 2:
            descriptor = self.get(entry, fill)
            with suppress(BlockingIOError):
                fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
                if os.fstat(descriptor).st_nlink:
                    if not check or sha256_of(descriptor) == entry.sha256:
                        return descriptor
                    self.discard(entry, descriptor)
                    damaged += 1
            os.close(descriptor)
        raise ShardError(f"{self.path(entry)} was damaged twice after it was written: use a --cache on another disk")

    def discard(self, entry: CacheEntry, descriptor: int) -> None:
        """Remove an entry whose content, read through this descriptor, is damaged; a newer file of its name stays."""
        if refers_to(descriptor, self.path(entry)):
            self.path(entry).unlink(missing_ok=True)

    def mark_needed(self, entry: CacheEntry, place: int = 0) -> bool:
        """Record that an entry will be used, so that it is removed later than entries used before.

        Args:
            entry: The entry.
            place: Position among several entries, in the order of their use; later ones are removed first.

        Returns:
            Whether the entry is in the cache.
        """
        when = time.time_ns() - place * 10**6
        with suppress(PermissionError):
            try:
                os.utime(self.path(entry), ns=(when, when))
            except FileNotFoundError:
                return False
        return True

    def path(self, entry: CacheEntry) -> Path:
        """Return the path of an entry that is in the cache."""
        return self.folder / entry.sha256

    def _part(self, entry: CacheEntry) -> Path:
        return self.folder / f"{entry.sha256}{_PART}"

    def _files(self) -> list[tuple[int, int, str]]:
        """List time of last use (ns), size and name of each file, in the order of their use."""
        found: list[tuple[int, int, str]] = []
        with suppress(FileNotFoundError), os.scandir(self.folder) as files:
            for file in files:
                if re.fullmatch(rf"[0-9a-f]{{64}}({_PART})?", file.name):
                    with suppress(FileNotFoundError):
                        status = file.stat(follow_symlinks=False)
                        found.append((status.st_mtime_ns, status.st_size, file.name))
        return sorted(found)

    def _make_room(self, entry: CacheEntry, part: int, keep: Collection[str]) -> bool:
        """Give a `.part` file its full size, which reserves its share of the limit; False if there is no room yet."""
        own, room = f"{entry.sha256}{_PART}", entry.bytes + entry.slack
        if room > self.limit:
            raise ShardError(
                f"the cache {self.folder} may hold {self.limit} bytes, and one file has {room}: raise --cache-bytes "
                "(BMLPIPE_CACHE_BYTES)"
            )
        with locked(
            self.folder / "lock", patience=self.patience
        ):  # one process at a time, so that no two count on the same free bytes
            files = [(size, name) for _, size, name in self._files() if name != own]
            excess = sum(size for size, _ in files) + room - self.limit
            for size, name in files:
                if excess > 0 and name not in keep and self._remove(name):
                    excess -= size
            if excess <= 0:
                os.ftruncate(part, room)
        return excess <= 0

    def _fill(self, entry: CacheEntry, part: int, fill: Fill, keep: Collection[str]) -> None:
        """Write the content and rename the file. If the disk is full, remove files for another attempt."""
        try:
            os.lseek(part, 0, os.SEEK_SET)
            fill(part)
            size = os.lseek(part, 0, os.SEEK_CUR)
            os.ftruncate(part, size)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            os.ftruncate(part, 0)
            if not self._free(entry.bytes, keep):
                raise ShardError(
                    f"the disk of the cache {self.folder} is full ({shutil.disk_usage(self.folder).free} bytes free, "
                    f"{entry.bytes} needed, no cached file left to remove): free space, or use another --cache "
                    "(BMLPIPE_CACHE)"
                ) from error
            return
        if not entry.fits(size):
            raise ShardError(f"{self.path(entry)}: {size} bytes were written, {entry.bytes} expected")
        # Without the lock, a process that lists the folder could miss both names.
        with locked(self.folder / "lock", patience=self.patience):
            self._part(entry).rename(self.path(entry))

    def _free(self, size: int, keep: Collection[str]) -> int:
        """Remove files until `size` bytes are freed; return the number of bytes that were freed."""
        freed = 0
        with locked(self.folder / "lock", patience=self.patience):
            for _, bytes_, name in self._files():
                if freed < size and name not in keep and bytes_ and self._remove(name):
                    freed += bytes_
        return freed

    def _remove(self, name: str) -> bool:
        """Remove a file unless a process holds it; return whether it is gone."""
        path = self.folder / name
        descriptor = try_lock(path, create=False)
        if descriptor is None:
            return not path.exists()
        with suppress(PermissionError):
            path.unlink(missing_ok=True)
        release(descriptor)
        return not path.exists()

    def _unusable(self, error: OSError) -> ShardError:
        return ShardError(f"the cache {self.folder} cannot be used ({error}): choose another --cache (BMLPIPE_CACHE)")


def write_all(descriptor: int, data: bytes | memoryview) -> None:
    """Write all of `data`; `os.write` may write only a part of it."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
