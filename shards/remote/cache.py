"""A folder of bounded size that keeps files by their content, shared by all processes of a machine.

A file that is complete is named by its SHA-256; one that is being fetched has `.part` behind it and is locked (flock)
by the process that fetches it, so that the others wait, and so that a killed one leaves nothing but a lock-free rest.
Room is made under one more lock by removing what was used longest ago. Nothing is remembered between two calls: the
folder itself is the state.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import shutil
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from bmlpipe.manifests.common.files import sha256_of
from bmlpipe.manifests.common.locks import locked, refers_to, release, try_lock
from bmlpipe.shards.errors import ShardError

_PART = ".part"
_POLL = 0.05  # seconds between two looks at a lock that another process holds
_TOUCH = 10.0  # seconds after which a use is recorded again

#: Writes the bytes of an entry, checked, from the start of an empty file of which it gets the descriptor.
Fill = Callable[[int], None]


@dataclass(frozen=True)
class Entry:
    """What a cached file must be.

    Attributes:
        sha256: Hash of its bytes, 64 hexadecimal digits; its name in the cache.
        bytes: Its size.
        slack: Bytes that it may be larger, where the size is not known exactly.
    """

    sha256: str
    bytes: int
    slack: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.sha256, str) or not re.fullmatch("[0-9a-f]{64}", self.sha256):
            raise ShardError(f"{self.sha256!r} is no SHA-256: the index is damaged")
        if not isinstance(self.bytes, int) or self.bytes < 0:
            raise ShardError(f"{self.bytes!r} is no size in bytes: the index is damaged")

    def fits(self, size: int) -> bool:
        """Whether a file of this size can be it."""
        return self.bytes <= size <= self.bytes + self.slack


class Cache:
    """Keeps at most so many bytes; safe to use from several threads and processes, to fork and to pickle.

    Args:
        folder: Where; on a local disk.
        limit: Bytes that its files may have together, those in the making at their full size.
        patience: Seconds to wait for another process while nothing at all moves.
    """

    def __init__(self, folder: Path, limit: int, *, patience: float = 600.0) -> None:
        self.folder, self.limit, self.patience = folder.absolute(), limit, patience

    def used(self) -> int:
        """Bytes of all files in the cache, those in the making at their full size."""
        return sum(size for _, size, _ in self._files())

    def find(self, entry: Entry) -> int | None:
        """A descriptor for reading the entry, or None if it is not there; records the use."""
        try:
            descriptor = os.open(self.path(entry), os.O_RDONLY | os.O_NOFOLLOW)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._unusable(error) from error
        about = os.fstat(descriptor)
        if not entry.fits(about.st_size):
            self.forget(entry, descriptor)
            os.close(descriptor)
            return None
        if time.time() - about.st_mtime > _TOUCH:
            with suppress(PermissionError):  # of another user, who records uses himself
                os.utime(descriptor)
        return descriptor

    def get(self, entry: Entry, fill: Fill) -> int:
        """A descriptor for reading the entry, made now if it is not there, or waited for if another process makes it.

        Args:
            entry: What is wanted.
            fill: Called in one thread of all processes at a time.

        Raises:
            ShardError: `fill` failed, the limit is too low, the disk is full, or another process does not go on.
        """
        seen, since = -1, time.monotonic()
        while (found := self.offer(entry, fill)) is None:
            try:
                now = self._part(entry).stat().st_mtime_ns
            except FileNotFoundError:  # there was no room: look at all that are being fetched
                now = sum(changed for changed, _, name in self._files() if name.endswith(_PART))
            if now != seen:
                seen, since = now, time.monotonic()
            if time.monotonic() - since > self.patience:
                raise ShardError(
                    f"{self.path(entry)}: waited {self.patience:g} s for another process that fetches it, or takes up "
                    f"the cache of {self.limit} bytes, and nothing moved: stop that process, or use another --cache"
                )
            time.sleep(_POLL)
        return found

    def offer(self, entry: Entry, fill: Fill, keep: Collection[str] = ()) -> int | None:
        """Like `get`, but without waiting.

        Args:
            entry: What is wanted.
            fill: See `get`.
            keep: Names (SHA-256) that must not be removed to make room for it.

        Returns:
            The descriptor, or None where another process makes it now, or where there is no room without `keep`.
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

    def hold(self, entry: Entry, fill: Fill, *, check: bool = False) -> int:
        """Like `get`; the entry is not removed as long as the descriptor is open.

        Args:
            entry: What is wanted.
            fill: See `get`.
            check: Read it all and compare its SHA-256; a wrong one is removed and made again.
        """
        wrong = 0
        while wrong < 2:
            descriptor = self.get(entry, fill)
            with suppress(BlockingIOError):
                fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
                if os.fstat(descriptor).st_nlink:
                    if not check or sha256_of(descriptor) == entry.sha256:
                        return descriptor
                    self.forget(entry, descriptor)
                    wrong += 1
            os.close(descriptor)
        raise ShardError(f"{self.path(entry)} changes by itself: the disk is damaged, use another --cache")

    def forget(self, entry: Entry, descriptor: int) -> None:
        """Remove an entry whose bytes, read through the descriptor, are wrong; a newer one of that name stays."""
        if refers_to(descriptor, self.path(entry)):
            self.path(entry).unlink(missing_ok=True)

    def touch(self, entry: Entry, place: int = 0) -> bool:
        """Record that an entry is needed; of several, in the order of their places.

        Returns:
            Whether it is there.
        """
        when = time.time_ns() - place * 10**6
        with suppress(PermissionError):
            try:
                os.utime(self.path(entry), ns=(when, when))
            except FileNotFoundError:
                return False
        return True

    def path(self, entry: Entry) -> Path:
        """Where the entry is, if it is there."""
        return self.folder / entry.sha256

    def _part(self, entry: Entry) -> Path:
        return self.folder / f"{entry.sha256}{_PART}"

    def _files(self) -> list[tuple[int, int, str]]:
        """Time of last use (ns), size and name of each file, those used longest ago first."""
        found: list[tuple[int, int, str]] = []
        with suppress(FileNotFoundError), os.scandir(self.folder) as files:
            for file in files:
                if re.fullmatch(rf"[0-9a-f]{{64}}({_PART})?", file.name):
                    with suppress(FileNotFoundError):
                        about = file.stat(follow_symlinks=False)
                        found.append((about.st_mtime_ns, about.st_size, file.name))
        return sorted(found)

    def _make_room(self, entry: Entry, part: int, keep: Collection[str]) -> bool:
        """Give a part its size, and with it its share of the limit; False where it has to wait."""
        own, room = f"{entry.sha256}{_PART}", entry.bytes + entry.slack
        if room > self.limit:
            raise ShardError(
                f"the cache {self.folder} may hold {self.limit} bytes, and one file of {room} has to fit: raise "
                "--cache-bytes (BMLPIPE_CACHE_BYTES)"
            )
        with self._alone():
            files = [(size, name) for _, size, name in self._files() if name != own]
            excess = sum(size for size, _ in files) + room - self.limit
            for size, name in files:
                if excess > 0 and name not in keep and self._remove(name):
                    excess -= size
            if excess <= 0:
                os.ftruncate(part, room)
        return excess <= 0

    def _fill(self, entry: Entry, part: int, fill: Fill, keep: Collection[str]) -> None:
        """Have the bytes written and put in place; on a full disk, make space for another try."""
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
                    f"{entry.bytes} needed, nothing left to remove): use another --cache (BMLPIPE_CACHE), or make space"
                ) from error
            return
        if not entry.fits(size):
            raise ShardError(f"{self.path(entry)}: {size} bytes were written, {entry.bytes} expected")
        with self._alone():  # one who lists the folder meanwhile would perhaps see neither name
            self._part(entry).rename(self.path(entry))

    def _free(self, size: int, keep: Collection[str]) -> int:
        """Remove files until so many bytes are gone; returns how many went."""
        freed = 0
        with self._alone():
            for _, bytes_, name in self._files():
                if freed < size and name not in keep and bytes_ and self._remove(name):
                    freed += bytes_
        return freed

    def _remove(self, name: str) -> bool:
        """Remove a file unless a process holds it."""
        path = self.folder / name
        descriptor = try_lock(path, create=False)
        if descriptor is None:
            return not path.exists()
        with suppress(PermissionError):
            path.unlink(missing_ok=True)
        release(descriptor)
        return not path.exists()

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Only one process at a time makes room: they would all count on the same free bytes."""
        with locked(self.folder / "lock", patience=self.patience):
            yield

    def _unusable(self, error: OSError) -> ShardError:
        return ShardError(f"the cache {self.folder} cannot be used ({error}): choose another --cache (BMLPIPE_CACHE)")


def write_all(descriptor: int, data: bytes | memoryview) -> None:
    """`os.write` until all is written."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
