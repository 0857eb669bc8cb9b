"""Fetch one remote file through fsspec: checked, resumed, retried, and never waiting without an end."""

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
from bmlpipe.shards.remote.cache import Entry, write_all

_logger = logging.getLogger(__name__)

_EXTRA = {"http": "http", "https": "http", "s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs"}
_PIECE = 1 << 20  # bytes read from a stream at once
_RANGE = (1 << 16, 1 << 23)  # least and most bytes of one ranged request
_WRONG = 3  # times that wrong bytes may come
_RETRIED = (408, 425, 429)  # of the 4xx, those that another attempt may change


@dataclass(frozen=True)
class Patience:
    """When to give up.

    Attributes:
        stall: Seconds without progress after which a connection is dropped: without a byte of an HTTP server, without
            an answer to a ranged request (8 MiB at first, smaller ones after that) elsewhere.
        attempts: Failures one after the other, with nothing gained between them, after which the file is given up.
        pause: Seconds before the second attempt; doubled each time up to 30, and drawn between half and all of it.
    """

    stall: float = 30.0
    attempts: int = 8
    pause: float = 0.5


class StoppedError(BmlpipeError):
    """A fetch was asked to stop."""


class _BrokenError(Exception):
    """Reading from the other side failed; its cause is whatever that raised."""


def shown(url: str) -> str:
    """An address without the user's name and password."""
    return re.sub(r"//[^/@]*@", "//", url)


def fetch(
    url: str,
    into: int,
    entry: Entry | None = None,
    *,
    patience: Patience | None = None,
    stop: threading.Event | None = None,
) -> None:
    """Write a remote file.

    Args:
        url: Its address.
        into: Descriptor of the file to write, from its start.
        entry: What it must be; None: whatever is there.
        patience: When to give up.
        stop: Ends the fetch soon after it is set.

    Raises:
        ShardError: The file is not there, is not what it must be, or does not come; the message names the address, the
            attempts and the last cause.
        StoppedError: `stop` was set.
        OSError: The file cannot be written.
    """
    patience, stop = patience or Patience(), stop or threading.Event()
    most = entry.bytes + entry.slack if entry else None
    hashed, position, furthest, failures, wrong, step = hashlib.sha256(), 0, 0, 0, 0, _RANGE[1]
    while True:
        try:
            for start, piece in _pieces(url, position, most, step, patience.stall):
                if stop.is_set():
                    raise StoppedError
                if start != position:  # the server does not know ranges, and begins again
                    hashed, position = hashlib.sha256(), 0
                    os.lseek(into, 0, os.SEEK_SET)
                write_all(into, piece)
                hashed.update(piece)
                position += len(piece)
                if most is not None and position > most:
                    break
            if entry is None or (entry.fits(position) and hashed.hexdigest() == entry.sha256):
                return
            problem = (
                f"{position} bytes with SHA-256 {hashed.hexdigest()} came, and the index says {entry.bytes} with "
                f"{entry.sha256}: the set is damaged, or was written again"
            )
            wrong += 1
            final = wrong == _WRONG
            hashed, position = hashlib.sha256(), 0
            os.lseek(into, 0, os.SEEK_SET)
        except _BrokenError as error:
            problem, final = _explained(error.__cause__)
            step = max(_RANGE[0], step // 4)
            if position > furthest:
                furthest, failures = position, 0
        failures += 1
        if final or failures == patience.attempts:
            raise ShardError(f"{shown(url)}: given up at attempt {failures}: {problem}")
        pause = min(30.0, patience.pause * 2 ** (failures - 1)) * random.uniform(0.5, 1)
        _logger.warning(
            "%s: attempt %d of %d failed, the next in %.1f s: %s",
            shown(url),
            failures,
            patience.attempts,
            pause,
            problem,
        )
        if stop.wait(pause):
            raise StoppedError


def _explained(error: BaseException | None) -> tuple[str, bool]:
    """What went wrong, in words, and whether another attempt is useless."""
    status = getattr(error, "status", None)
    useless = isinstance(status, int) and 400 <= status < 500 and status not in _RETRIED
    useless |= isinstance(error, FileNotFoundError | PermissionError)
    return f"{type(error).__name__}: {shown(str(error)) or 'nothing came in time'}", useless


def _pieces(url: str, start: int, most: int | None, step: int, stall: float) -> Iterator[tuple[int, bytes]]:
    """A remote file from byte `start` on (or from 0, where the server knows no ranges), as (position, bytes).

    Raises:
        ShardError: There is no package for such addresses.
        _BrokenError: Anything else.
    """
    filesystem, path = _filesystem(url, stall)
    try:
        if url.startswith(("http://", "https://")):
            yield from _stream(filesystem, path, start)
        else:
            yield from _ranges(filesystem, path, start, most, step, stall)
    except Exception as error:  # each filesystem of fsspec raises exceptions of its own
        raise _BrokenError from error


def _stream(filesystem: Any, path: str, start: int) -> Iterator[tuple[int, bytes]]:
    """One request; its time limits are the session's."""
    headers = {**filesystem.kwargs.get("headers", {}), **({"Range": f"bytes={start}-"} if start else {})}
    with filesystem.open(path, "rb", block_size=0, size=1, headers=headers) as file:  # any size: spares a request
        position = start if file.r.status == 206 else 0
        while piece := file.read(_PIECE):
            yield position, piece
            position += len(piece)


def _ranges(
    filesystem: Any, path: str, start: int, most: int | None, step: int, stall: float
) -> Iterator[tuple[int, bytes]]:
    """Ranged requests one after the other, each with a time limit where the filesystem can be interrupted."""
    limit = {"timeout": stall} if filesystem.async_impl else {}
    while most is None or start < most:
        end = start + step if most is None else min(start + step, most)
        piece = filesystem.cat_file(path, start=start, end=end, **limit)
        yield start, piece
        start += len(piece)
        if start < end:
            return


def _filesystem(url: str, stall: float) -> tuple[Any, str]:
    """The filesystem that an address belongs to, and the address as it wants it."""
    base, _, name = url.rpartition("/")
    filesystem, path = _opened(base, stall, os.getpid())
    return filesystem, f"{path.rstrip('/')}/{name}"


@lru_cache(maxsize=16)
def _opened(base: str, stall: float, process: int) -> tuple[Any, str]:
    """Kept for each process: connections do not survive a fork."""
    import fsspec

    protocol = base.partition("://")[0]
    options: dict[str, Any] = {}
    try:
        if protocol in ("http", "https"):
            import aiohttp

            time = aiohttp.ClientTimeout(total=None, connect=stall, sock_connect=stall, sock_read=stall)
            plain = {"Accept-Encoding": "identity"}  # a range is one of the file's own bytes
            given = fsspec.config.conf.get(protocol, {}).get("client_kwargs", {})
            options["client_kwargs"] = {
                "timeout": time,
                "headers": plain,
                "trust_env": True,
                "read_bufsize": _PIECE,
                **given,
            }
        return fsspec.core.url_to_fs(base, **options)  # type: ignore[no-any-return]
    except ImportError as error:
        extra = _EXTRA.get(protocol)
        remedy = f"pip install 'bmlpipe[{extra}]'" if extra else "install the package that fsspec names"
        raise ShardError(f"{protocol}:// needs a package that is not installed ({error}): {remedy}") from error
    except ValueError as error:
        raise ShardError(f"{shown(base)}/ is no address that can be read: {error}") from error
