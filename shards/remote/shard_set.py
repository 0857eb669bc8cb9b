"""A set of shards at an address (`s3://`, `gs://`, `https://` …): its index and its shards by way of a local cache."""

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
from bmlpipe.shards.remote.cache import Cache, Entry, Fill, write_all
from bmlpipe.shards.remote.download import Patience, fetch, shown

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}
_HEADER = 4096  # bytes that the header of samples.npy has at most


def is_remote(shards: Path | str) -> bool:
    """Whether shards are named by an address, not by a folder.

    >>> is_remote("s3://bucket/set/"), is_remote("shards/vggsound")
    (True, False)
    """
    return "://" in str(shards)


def parse_bytes(text: str) -> int:
    """Number of bytes as people write it.

    Raises:
        OptionError: It is not one.

    >>> parse_bytes("50GB"), parse_bytes("1.5 GiB"), parse_bytes("2000000")
    (50000000000, 1610612736, 2000000)
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*((?:[KMGT]I?)?)B?", text.strip().upper())
    if not match:
        raise OptionError(f"{text!r} is not a number of bytes: write it like 50GB, 1.5TB or 20GiB")
    return int(float(match[1]) * _UNITS[match[2]])


def open_cache(folder: Path | str | None = None, limit: int | str | None = None) -> Cache:
    """The cache that is asked for, or that the environment asks for, or the usual one.

    Args:
        folder: Where; None: BMLPIPE_CACHE, else `bmlpipe` in the user's cache folder (XDG_CACHE_HOME).
        limit: Bytes; None: BMLPIPE_CACHE_BYTES, else 50 GB, or half of what the disk has for it if that is less.

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
    """A remote set; safe to share with forked workers and to pickle for spawned ones.

    The index is read from the address when this is made; a pickled copy has that index and no later one. `index.json`
    and `samples.npy` are entries of the cache, locked there as long as a process has the set open.

    Args:
        url: Where `index.json` is.
        cache: Where files are kept; None: `open_cache()`.
        patience: When to give up.
        index: SHA-256 of the `index.json` to read; None: the one that is there now.

    Attributes:
        url: The address, with a slash at its end.
        index: The index.
        entries: Of each shard, its entry in the cache.

    Raises:
        ShardError: The index cannot be fetched or read, names what is no shard, or the cache is too small.
    """

    def __init__(
        self, url: str, cache: Cache | None = None, *, patience: Patience | None = None, index: Entry | None = None
    ) -> None:
        if "?" in url or "#" in url:
            raise ShardError(f"{shown(url)} is no address of a folder: leave out what follows the path")
        self.url, self.cache, self.patience = url.rstrip("/") + "/", cache or open_cache(), patience
        self._held: list[int] = []
        weakref.finalize(self, _close, self._held)
        self._index = index or self._newest()
        self.index = self._open_index(check=index is None)
        self._bytes = sum(os.fstat(descriptor).st_size for descriptor in self._held)
        self.entries = tuple(Entry(shard.sha256, shard.bytes) for shard in self.index.shards)
        for shard in self.index.shards:
            if not plain(shard.file):
                raise ShardError(f"the index of {shown(self.url)} names a shard {shard.file!r}: not a plain file name")
        self.check_room(1)
        self._ends = np.cumsum([shard.samples for shard in self.index.shards])

    def __getstate__(self) -> tuple[str, Cache, Patience | None, Entry]:
        return self.url, self.cache, self.patience, self._index

    def __setstate__(self, state: tuple[str, Cache, Patience | None, Entry]) -> None:
        url, cache, patience, index = state
        self.__init__(url, cache, patience=patience, index=index)  # type: ignore[misc]

    def address(self, shard: int) -> str:
        """Where a shard is, to be shown."""
        return shown(self.url + self.index.shards[shard].file)

    def open(self, shard: int) -> int:
        """A descriptor for reading a shard, fetched now if it is not in the cache; the caller closes it.

        Raises:
            ShardError: It cannot be had; the message says where it is and why.
        """
        entry = self.entries[shard]
        found = self.cache.find(entry)
        return self.cache.get(entry, self._fill(self.index.shards[shard].file, entry)) if found is None else found

    def fetch(self, shard: int, keep: Collection[str] = (), stop: threading.Event | None = None) -> bool:
        """Have a shard in the cache, without waiting for other processes.

        Args:
            shard: Its number.
            keep: Entries (SHA-256) that must not go for it.
            stop: Ends the fetch soon after it is set.

        Returns:
            Whether it is there; False: another process fetches it, or there is no room.

        Raises:
            ShardError: It cannot be had.
            StoppedError: `stop` was set.
        """
        entry = self.entries[shard]
        found = self.cache.offer(entry, self._fill(self.index.shards[shard].file, entry, stop), keep)
        if found is not None:
            os.close(found)
        return found is not None

    def shards_of(self, numbers: Sequence[int]) -> list[int]:
        """The shards that samples are in."""
        found: list[int] = np.unique(np.searchsorted(self._ends, numbers, side="right")).tolist()
        return found

    def check_room(self, shards: int) -> None:
        """Check that so many shards fit into the cache at a time: those that an order mixes with each other.

        Raises:
            ShardError: They do not.
        """
        check_room([self], shards)

    def room(self, shards: int) -> tuple[int, int]:
        """Bytes of so many of the largest shards, and of the index."""
        return sum(sorted(entry.bytes for entry in self.entries)[-shards:]), self._bytes

    def close(self) -> None:
        """Let go of the index."""
        _close(self._held)

    def _fill(self, name: str, entry: Entry, stop: threading.Event | None = None) -> Fill:
        return lambda into: fetch(self.url + name, into, entry, patience=self.patience, stop=stop)

    def _newest(self) -> Entry:
        """Read `index.json` as it is now, and put it into the cache."""
        with tempfile.TemporaryFile() as file:
            fetch(self.url + INDEX_FILE, file.fileno(), patience=self.patience)
            text = os.pread(file.fileno(), os.lseek(file.fileno(), 0, os.SEEK_CUR), 0)
        entry = Entry(hashlib.sha256(text).hexdigest(), len(text))
        self._held.append(self.cache.hold(entry, lambda into: write_all(into, text), check=True))
        return entry

    def _open_index(self, *, check: bool) -> Index:
        """Have both files of the index in the cache, and read them through links that bear their names.

        Args:
            check: Compare cached files with their SHA-256 before use.
        """
        if not self._held:
            self._held.append(self.cache.hold(self._index, self._fill(INDEX_FILE, self._index)))
        folder = self.cache.folder / "sets" / self._index.sha256
        _link(folder / INDEX_FILE, self._index)
        try:
            about = json.loads(self.cache.path(self._index).read_bytes())["samples"]
            samples = Entry(about["sha256"], about["count"] * SAMPLE_DTYPE.itemsize, _HEADER)
        except (ValueError, LookupError, TypeError):
            pass  # not an index of this version: read_index says what is wrong with it
        else:
            self._held.append(self.cache.hold(samples, self._fill(SAMPLES_FILE, samples), check=check))
            _link(folder / SAMPLES_FILE, samples)
        try:
            return read_index(folder)
        except ShardError as error:
            raise ShardError(f"{shown(self.url)}: {error}") from error


def check_room(sets: Sequence[RemoteShards], shards: int) -> None:
    """Check that so many shards of each of the sets fit into their cache at the same time.

    Raises:
        ShardError: They do not.
    """
    for folder in dict.fromkeys(remote.cache.folder for remote in sets):
        mine = [remote for remote in sets if remote.cache.folder == folder]
        limit, rooms = min(remote.cache.limit for remote in mine), [remote.room(shards) for remote in mine]
        if (whole := sum(map(sum, rooms))) > limit:
            needed = "; ".join(
                f"{min(shards, len(remote.entries))} shards of {shown(remote.url)}, needed at the same time, have "
                f"up to {largest} and its index {index}"
                for remote, (largest, index) in zip(mine, rooms, strict=True)
            )
            together = f"; all sets of the mixture are in use at once, {whole} bytes together" if len(mine) > 1 else ""
            raise ShardError(
                f"the cache {folder} may hold {limit} bytes; {needed}{together}: raise --cache-bytes "
                "(BMLPIPE_CACHE_BYTES)" + (", or lower --shuffle-shards" if shards > 1 else "")
            )


def plain(name: str) -> bool:
    """Whether a shard's name in an index is that of a file in the same folder."""
    return ".." not in name and re.fullmatch(r"[\w+=,@-][\w+=,@. -]*", name) is not None


def _link(path: Path, entry: Entry) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with suppress(FileExistsError):
        path.symlink_to(Path("..") / ".." / entry.sha256)


def _close(descriptors: list[int]) -> None:
    while descriptors:
        os.close(descriptors.pop())
