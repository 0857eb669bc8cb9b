"""A set of shards at an address (`s3://`, `gs://`, `https://` …), read through a local cache."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
import threading
import weakref
from collections.abc import Collection, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from bmlpipe.manifests.common.errors import OptionError
from bmlpipe.shards.errors import ShardError
from bmlpipe.shards.index import INDEX_FILE, SAMPLE_DTYPE, SAMPLES_FILE, Index, read_index
from bmlpipe.shards.remote.cache import Cache, CacheEntry, Fill, write_all
from bmlpipe.shards.remote.download import RetryPolicy, download, redacted

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}
_MAX_HEADER = 4096  # bytes of the header of samples.npy


def is_remote(shards: Path | str) -> bool:
    """Return whether `shards` is an address rather than a folder.

    Examples:
        >>> is_remote("s3://bucket/set/"), is_remote("shards/vggsound")
        (True, False)
    """
    return "://" in str(shards)


def parse_bytes(text: str) -> int:
    """Parse a number of bytes with an optional unit (kB, MB, GB, TB; KiB, MiB, GiB, TiB).

    Raises:
        OptionError: The text is not a number of bytes.

    Examples:
        >>> parse_bytes("50GB"), parse_bytes("1.5 GiB"), parse_bytes("2000000")
        (50000000000, 1610612736, 2000000)
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*((?:[KMGT]I?)?)B?", text.strip().upper())
    if not match:
        raise OptionError(f"{text!r} is not a number of bytes: write it like 50GB, 1.5TB or 20GiB")
    return int(float(match[1]) * _UNITS[match[2]])


def open_cache(folder: Path | str | None = None, limit: int | str | None = None) -> Cache:
    """Open the cache of remote shards.

    Args:
        folder: Its folder; None: the environment variable BMLPIPE_CACHE, else `bmlpipe` in the user's cache folder
            (XDG_CACHE_HOME, ~/.cache).
        limit: Its largest size in bytes, or a text such as `50GB`; None: the environment variable
            BMLPIPE_CACHE_BYTES, else 50 GB or half of the disk space available to the cache, whichever is less.

    Raises:
        ShardError: The limit is no number of bytes.
    """
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    place = Path(folder or os.environ.get("BMLPIPE_CACHE") or home / "bmlpipe").absolute()
    limit = limit or os.environ.get("BMLPIPE_CACHE_BYTES")
    if not limit:
        existing = next(path for path in (place, *place.parents) if path.exists())
        limit = min(50 * 10**9, (shutil.disk_usage(existing).free + Cache(place, 1).used()) // 2)
    try:
        return Cache(place, parse_bytes(limit) if isinstance(limit, str) else limit)
    except OptionError as error:
        raise ShardError(f"--cache-bytes (BMLPIPE_CACHE_BYTES): {error}") from error


class RemoteShards:
    """A set of shards at an address; safe to share with forked workers and to pickle for spawned ones.

    The index is downloaded when an instance is made. A pickled copy has the same index, even if the set was overwritten
    meanwhile. `index.json` and `samples.npy` are entries of the cache, and stay there as long as a process has the set
    open.

    Args:
        url: Address of the folder that holds `index.json`.
        cache: Cache of the files; None: `open_cache()`.
        retry: When to retry downloads and when to give up.
        index: Cache entry of the `index.json` to read; None: the present one at the address.

    Attributes:
        url: The address, with a slash at its end.
        index: The index.
        entries: Cache entry of each shard.

    Raises:
        ShardError: The index cannot be downloaded or read, it states file names that are not plain, or the cache is too
            small.
    """

    def __init__(
        self, url: str, cache: Cache | None = None, *, retry: RetryPolicy | None = None, index: CacheEntry | None = None
    ) -> None:
        if "?" in url or "#" in url:
            raise ShardError(f"{redacted(url)} is not the address of a folder: remove the part after the path")
        self.url, self.cache, self.retry = url.rstrip("/") + "/", cache or open_cache(), retry
        self._locked: list[int] = []
        weakref.finalize(self, _close, self._locked)
        self._index = index or self._newest()
        self.index = self._open_index(check=index is None)
        self._bytes = sum(os.fstat(descriptor).st_size for descriptor in self._locked)
        self.entries = tuple(CacheEntry(shard.sha256, shard.bytes) for shard in self.index.shards)
        for shard in self.index.shards:
            if not is_plain_name(shard.file):
                raise ShardError(
                    f"the index of {redacted(self.url)} names a shard {shard.file!r}: not a plain file name"
                )
        self.check_cache_size(1)
        self._ends = np.cumsum([shard.samples for shard in self.index.shards])

    def __getstate__(self) -> tuple[str, Cache, RetryPolicy | None, CacheEntry]:
        return self.url, self.cache, self.retry, self._index

    def __setstate__(self, state: tuple[str, Cache, RetryPolicy | None, CacheEntry]) -> None:
        url, cache, retry, index = state
        self.__init__(url, cache, retry=retry, index=index)  # type: ignore[misc]

    def address(self, shard: int) -> str:
        """Return the address of a shard, for messages."""
        return redacted(self.url + self.index.shards[shard].file)

    def open(self, shard: int) -> int:
        """Open a shard for reading; it is downloaded first if it is not in the cache.

        Returns:
            A descriptor, which the caller closes.

        Raises:
            ShardError: The shard cannot be downloaded; the message states its address and the cause.
        """
        entry = self.entries[shard]
        found = self.cache.find(entry)
        return self.cache.get(entry, self._fill(self.index.shards[shard].file, entry)) if found is None else found

    def prefetch(self, shard: int, keep: Collection[str] = (), stop: threading.Event | None = None) -> bool:
        """Bring a shard into the cache without waiting for other processes.

        Args:
            shard: Number of the shard in the index.
            keep: Names (SHA-256) of cache entries that must not be removed to make room.
            stop: Ends the download soon after it is set.

        Returns:
            Whether the shard is in the cache; False if another process is downloading it or there is no room.

        Raises:
            ShardError: The shard cannot be downloaded.
            DownloadStoppedError: `stop` was set.
        """
        entry = self.entries[shard]
        found = self.cache.try_get(entry, self._fill(self.index.shards[shard].file, entry, stop), keep)
        if found is not None:
            os.close(found)
        return found is not None

    def shards_of(self, numbers: Sequence[int]) -> list[int]:
        """Return the numbers of the shards that hold these samples, sorted."""
        found: list[int] = np.unique(np.searchsorted(self._ends, numbers, side="right")).tolist()
        return found

    def check_cache_size(self, shards: int) -> None:
        """Check that this number of shards fits into the cache at the same time.

        Raises:
            ShardError: It does not.
        """
        check_cache_size([self], shards)

    def cache_bytes(self, shards: int) -> tuple[int, int]:
        """Return the total size in bytes of this number of the largest shards, and that of the index."""
        return sum(sorted(entry.bytes for entry in self.entries)[-shards:]), self._bytes

    def close(self) -> None:
        """Release the index, so that the cache may remove it."""
        _close(self._locked)

    def _fill(self, name: str, entry: CacheEntry, stop: threading.Event | None = None) -> Fill:
        return lambda into: download(self.url + name, into, entry, retry=self.retry, stop=stop)

    def _newest(self) -> CacheEntry:
        """Download the newest `index.json` into the cache."""
        with tempfile.TemporaryFile() as file:
            download(self.url + INDEX_FILE, file.fileno(), retry=self.retry)
            text = os.pread(file.fileno(), os.lseek(file.fileno(), 0, os.SEEK_CUR), 0)
        entry = CacheEntry(hashlib.sha256(text).hexdigest(), len(text))
        self._locked.append(self.cache.hold(entry, lambda into: write_all(into, text), check=True))
        return entry

    def _open_index(self, *, check: bool) -> Index:
        """Bring both files of the index into the cache, and read them through links with their own names.

        Args:
            check: Compare cached files with their SHA-256 before use.
        """
        if not self._locked:
            self._locked.append(self.cache.hold(self._index, self._fill(INDEX_FILE, self._index)))
        folder = self.cache.folder / "sets" / self._index.sha256
        _link(folder / INDEX_FILE, self._index)
        try:
            listed = json.loads(self.cache.path(self._index).read_bytes())["samples"]
            samples = CacheEntry(listed["sha256"], listed["count"] * SAMPLE_DTYPE.itemsize, _MAX_HEADER)
        except (ValueError, LookupError, TypeError):
            pass  # not an index of this version: read_index states the error
        else:
            self._locked.append(self.cache.hold(samples, self._fill(SAMPLES_FILE, samples), check=check))
            _link(folder / SAMPLES_FILE, samples)
        try:
            return read_index(folder)
        except ShardError as error:
            raise ShardError(f"{redacted(self.url)}: {error}") from error


def check_cache_size(sets: Sequence[RemoteShards], shards: int) -> None:
    """Check that this number of shards of each of the sets fits into their cache at the same time.

    Raises:
        ShardError: It does not; the message states all sizes.
    """
    for folder in dict.fromkeys(remote.cache.folder for remote in sets):
        sharing = [remote for remote in sets if remote.cache.folder == folder]
        limit, sizes = min(remote.cache.limit for remote in sharing), [remote.cache_bytes(shards) for remote in sharing]
        if (whole := sum(map(sum, sizes))) > limit:
            needed = "; ".join(
                f"{min(shards, len(remote.entries))} shards of {redacted(remote.url)}, read at the same time, "
                f"have up to {largest} and its index {index}"
                for remote, (largest, index) in zip(sharing, sizes, strict=True)
            )
            together = (
                f"; all sets of the mixture are in use at once, {whole} bytes together" if len(sharing) > 1 else ""
            )
            raise ShardError(
                f"the cache {folder} may hold {limit} bytes; {needed}{together}: raise --cache-bytes "
                "(BMLPIPE_CACHE_BYTES)" + (", or lower --shuffle-shards" if shards > 1 else "")
            )


def is_plain_name(name: str) -> bool:
    """Return whether a shard's name in an index names a file in the same folder."""
    return ".." not in name and re.fullmatch(r"[\w+=,@-][\w+=,@. -]*", name) is not None


def _link(path: Path, entry: CacheEntry) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with suppress(FileExistsError):
        path.symlink_to(Path("..") / ".." / entry.sha256)


def _close(descriptors: list[int]) -> None:
    while descriptors:
        os.close(descriptors.pop())
