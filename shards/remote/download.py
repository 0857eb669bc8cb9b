"""Download one remote file through fsspec: checked, resumed, retried, and with a limit on every wait."""

from __future__ import annotations

import hashlib
import logging
import os
import random
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from bmlpipe.manifests.common.errors import BmlpipeError
from bmlpipe.shards.errors import ShardError
from bmlpipe.shards.remote.cache import CacheEntry, write_all

_logger = logging.getLogger(__name__)

_EXTRA = {"http": "http", "https": "http", "s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs"}
_BLOCK = 1 << 20  # bytes read from a stream at once
_RANGE = (1 << 16, 1 << 23)  # smallest and largest number of bytes of one ranged request
_MAX_WRONG = 3  # complete downloads with the wrong content after which a file is given up
_MAX_PAUSE = 30.0  # seconds
_RETRIED = (408, 425, 429)  # statuses 4xx that may change with another attempt


@dataclass(frozen=True)
class RetryPolicy:
    """When to retry and when to give up.

    Attributes:
        stall: Seconds without progress after which a connection is dropped. HTTP: without a byte from the server. Other
            filesystems: without an answer to a ranged request, of 8 MiB at first and of fewer after a failure.
        attempts: Number of consecutive failures without a new byte after which the file is given up.
        pause: Seconds before the second attempt, doubled for each further one up to 30 s. The actual pause is drawn
            between half of this and all of it.
    """

    stall: float = 30.0
    attempts: int = 8
    pause: float = 0.5


class DownloadStoppedError(BmlpipeError):
    """A download was asked to stop."""


class _BrokenError(Exception):
    """Reading from the remote filesystem failed; `__cause__` is the exception of the filesystem."""


def redacted(url: str) -> str:
    """Remove user names and passwords from an address or message.

    Examples:
        >>> redacted("https://me:secret@host/set/")
        'https://host/set/'
    """
    return re.sub(r"//[^/@]*@", "//", url)


def download(
    url: str,
    into: int,
    entry: CacheEntry | None = None,
    *,
    retry: RetryPolicy | None = None,
    stop: threading.Event | None = None,
) -> None:
    """Download a remote file into an open file.

    Args:
        url: Address of the file.
        into: Descriptor of the file to write, from its start.
        entry: Size and SHA-256 that the content must have; None: accept any content.
        retry: When to retry and when to give up.
        stop: Ends the download soon after it is set.

    Raises:
        ShardError: The file does not exist, has the wrong content, or cannot be downloaded. The message states the
            address, the number of attempts and the last cause.
        DownloadStoppedError: `stop` was set.
        OSError: The file cannot be written.
    """
    retry, stop = retry or RetryPolicy(), stop or threading.Event()
    target, step = _Target(into, entry), _RANGE[1]
    furthest, failures, wrong = 0, 0, 0
    while True:
        try:
            for start, block in _blocks(url, target.position, target.limit, step, retry.stall):
                if stop.is_set():
                    raise DownloadStoppedError(f"the download of {redacted(url)} was stopped")
                if start != target.position:  # the server does not support ranges and sends everything again
                    target.restart()
                target.write(block)
                if target.is_too_long:
                    break
            if target.is_right:
                return
            problem, wrong = target.mismatch(), wrong + 1
            final = wrong == _MAX_WRONG
            target.restart()
        except _BrokenError as error:
            problem, final = _explained(error.__cause__)
            step = max(_RANGE[0], step // 4)
            if target.position > furthest:
                furthest, failures = target.position, 0
        failures += 1
        if final or failures == retry.attempts:
            raise ShardError(f"{redacted(url)}: given up at attempt {failures}: {problem}")
        pause = min(_MAX_PAUSE, retry.pause * 2 ** (failures - 1)) * random.uniform(0.5, 1)
        text = "%s: attempt %d of %d failed, next attempt in %.1f s: %s"
        _logger.warning(text, redacted(url), failures, retry.attempts, pause, problem)
        if stop.wait(pause):
            raise DownloadStoppedError(f"the download of {redacted(url)} was stopped")


class _Target:
    """The file that is written, with the hash of its content so far.

    Args:
        descriptor: Descriptor of the file, at its start.
        entry: Size and SHA-256 that the content must have; None: accept any content.

    Attributes:
        position: Number of bytes written.
        limit: Largest number of bytes that the content can have; None: unknown.
    """

    def __init__(self, descriptor: int, entry: CacheEntry | None) -> None:
        self._descriptor, self._entry = descriptor, entry
        self._hash = hashlib.sha256()
        self.position = 0
        self.limit = entry.bytes + entry.slack if entry else None

    def restart(self) -> None:
        """Begin again at the start of the file."""
        self._hash, self.position = hashlib.sha256(), 0
        os.lseek(self._descriptor, 0, os.SEEK_SET)

    def write(self, block: bytes) -> None:
        """Append a block."""
        write_all(self._descriptor, block)
        self._hash.update(block)
        self.position += len(block)

    @property
    def is_too_long(self) -> bool:
        """Whether more was written than the content can have."""
        return self.limit is not None and self.position > self.limit

    @property
    def is_right(self) -> bool:
        """Whether the content has the expected size and SHA-256."""
        entry = self._entry
        return entry is None or (entry.fits(self.position) and self._hash.hexdigest() == entry.sha256)

    def mismatch(self) -> str:
        """Describe how the content differs from the expected one."""
        assert self._entry is not None
        return (
            f"{self.position} bytes with SHA-256 {self._hash.hexdigest()} were received, but the index states "
            f"{self._entry.bytes} bytes with {self._entry.sha256}: the set is damaged, or was overwritten"
        )


def _explained(error: BaseException | None) -> tuple[str, bool]:
    """Describe a failure, and whether another attempt is useless."""
    status = getattr(error, "status", None)
    useless = isinstance(status, int) and 400 <= status < 500 and status not in _RETRIED
    useless |= isinstance(error, FileNotFoundError | PermissionError)
    return f"{type(error).__name__}: {redacted(str(error)) or 'no answer in time'}", useless


def _blocks(url: str, start: int, limit: int | None, step: int, stall: float) -> Iterator[tuple[int, bytes]]:
    """Yield blocks of a remote file as (position, bytes), from byte `start` on, or from 0 without support for ranges.

    Raises:
        ShardError: The package for such addresses is not installed.
        _BrokenError: The filesystem raised an exception.
    """
    filesystem, path = _filesystem(url, stall)
    try:
        if url.startswith(("http://", "https://")):
            yield from _stream(filesystem, path, start)
        else:
            yield from _ranges(filesystem, path, start, limit, step, stall)
    except Exception as error:  # each filesystem of fsspec raises exceptions of its own
        raise _BrokenError from error


def _stream(filesystem: Any, path: str, start: int) -> Iterator[tuple[int, bytes]]:
    """Stream the file by one HTTP request; its time limits are those of the session."""
    headers = {**filesystem.kwargs.get("headers", {}), **({"Range": f"bytes={start}-"} if start else {})}
    with filesystem.open(path, "rb", block_size=0, size=1, headers=headers) as file:  # any size saves a request for it
        position = start if file.r.status == 206 else 0
        while block := file.read(_BLOCK):
            yield position, block
            position += len(block)


def _ranges(
    filesystem: Any, path: str, start: int, limit: int | None, step: int, stall: float
) -> Iterator[tuple[int, bytes]]:
    """Request consecutive ranges, each with a time limit if the filesystem can be interrupted."""
    timeout = {"timeout": stall} if filesystem.async_impl else {}
    while limit is None or start < limit:
        end = start + step if limit is None else min(start + step, limit)
        block = filesystem.cat_file(path, start=start, end=end, **timeout)
        yield start, block
        start += len(block)
        if start < end:
            return


def _filesystem(url: str, stall: float) -> tuple[Any, str]:
    """Open the filesystem of an address; return it with the file's path in it."""
    base, _, name = url.rpartition("/")
    filesystem, path = _opened(base, stall, os.getpid())
    return filesystem, f"{path.rstrip('/')}/{name}"


@lru_cache(maxsize=16)
def _opened(base: str, stall: float, process: int) -> tuple[Any, str]:
    """Open a filesystem. It is kept per process, because connections do not survive a fork."""
    import fsspec

    protocol = base.partition("://")[0]
    options: dict[str, Any] = {}
    try:
        if protocol in ("http", "https"):
            import aiohttp

            timeout = aiohttp.ClientTimeout(total=None, connect=stall, sock_connect=stall, sock_read=stall)
            uncompressed = {"Accept-Encoding": "identity"}  # positions of ranges count the bytes of the file itself
            given = fsspec.config.conf.get(protocol, {}).get("client_kwargs", {})
            options["client_kwargs"] = {
                "timeout": timeout,
                "headers": uncompressed,
                "trust_env": True,
                "read_bufsize": _BLOCK,
                **given,
            }
        return fsspec.core.url_to_fs(base, **options)  # type: ignore[no-any-return]
    except ImportError as error:
        extra = _EXTRA.get(protocol)
        remedy = f"pip install 'bmlpipe[{extra}]'" if extra else "install the package that fsspec names"
        raise ShardError(f"{protocol}:// needs a package that is not installed ({error}): {remedy}") from error
    except ValueError as error:
        raise ShardError(
            f"{redacted(base)}/ is not an address that fsspec can read ({error}): correct --shards"
        ) from error
