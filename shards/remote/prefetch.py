"""Download remote shards before they are needed, in the order in which the coming batches need them."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Iterator
from typing import Generic, NamedTuple, Protocol, TypeVar

from bmlpipe.manifests.common.errors import BmlpipeError
from bmlpipe.shards.remote.download import DownloadStoppedError
from bmlpipe.shards.remote.shard_set import RemoteShards

_logger = logging.getLogger(__name__)

Batch = TypeVar("Batch")
Batch_co = TypeVar("Batch_co", covariant=True)

_MAX_AHEAD = 1024  # batches
_PORTION = 16  # batches examined per call of `_look_ahead`
_SHARE = 0.75  # of the cache, for the shards of batches that are not due yet
_RETRY_SOON = 0.2  # seconds, for a shard that another process downloads or that had no room
_RETRY_LATER = 10.0  # seconds, for a shard whose download failed; also between two records of needed shards


class RemoteShard(NamedTuple):
    """One shard of a set at an address.

    Attributes:
        shards: The set.
        number: Number of the shard in its index.
    """

    shards: RemoteShards
    number: int


class BatchSampler(Protocol[Batch_co]):
    """A batch sampler as the DataLoader expects it. Two iterations at the same time must yield the same batches."""

    def __iter__(self) -> Iterator[Batch_co]: ...

    def __len__(self) -> int: ...


class PrefetchingBatches(Generic[Batch]):
    """A batch sampler that yields the batches of another one, while threads download the shards that later ones need.

    A shard that cannot be downloaded is logged. The reader tries again when it needs the shard, and raises the error.

    Args:
        batches: The other batch sampler.
        shards_of: Maps a batch to the remote shards that it needs.
        in_flight: Largest number of batches that have been yielded and whose samples are not read yet, including the
            last one.
        threads: Number of shards that are downloaded at the same time.
    """

    def __init__(
        self,
        batches: BatchSampler[Batch],
        shards_of: Callable[[Batch], Collection[RemoteShard]],
        *,
        in_flight: int = 1,
        threads: int = 4,
    ) -> None:
        self._batches, self._shards_of, self._in_flight, self._threads = batches, shards_of, in_flight, threads

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[Batch]:
        queue = _DownloadQueue(iter(self._batches), self._shards_of, self._in_flight)
        end = queue.stopped
        try:
            for number in range(self._threads):
                threading.Thread(target=queue.run, name=f"prefetch-{number}", daemon=True).start()
            for number, batch in enumerate(self._batches):
                queue.finish(number - self._in_flight)
                yield batch
            end = queue.complete  # the samples of the last batches are still to be read
        finally:
            end.set()


class _DownloadQueue(Generic[Batch]):
    """The shards that coming batches need and those that are still to be downloaded, shared by the threads.

    Attributes:
        stopped: Set to end the threads immediately.
        complete: Set to end the threads when all shards that are known to be needed are downloaded.
    """

    def __init__(
        self, coming: Iterator[Batch], shards_of: Callable[[Batch], Collection[RemoteShard]], in_flight: int
    ) -> None:
        self.stopped = threading.Event()
        self.complete = threading.Event()
        self._coming, self._shards_of, self._in_flight = coming, shards_of, in_flight
        self._lock = threading.Lock()
        self._seen = 0  # batches examined
        self._finished = -1  # last batch whose samples are read
        self._last_batch: dict[RemoteShard, int] = {}  # needed shards in the order of need → last batch that needs each
        self._waiting: set[RemoteShard] = set()  # needed shards that are neither in the cache nor being downloaded
        self._active: set[RemoteShard] = set()  # shards that a thread is downloading
        self._recorded = 0.0  # time of the last record of needed shards

    def finish(self, batch: int) -> None:
        """Note that the samples of this batch and of all before it are read."""
        with self._lock:
            self._finished = batch
            for shard in [shard for shard, last in self._last_batch.items() if last <= batch]:
                del self._last_batch[shard]
                self._waiting.discard(shard)

    def run(self) -> None:
        """Download shards until stopped; each thread runs this."""
        while not self.stopped.is_set():
            self._look_ahead()
            self._record()
            shard, keep = self._take()
            if shard is None:
                if self.complete.is_set() or self.stopped.wait(_RETRY_SOON):
                    return
                continue
            try:
                done, pause = shard.shards.prefetch(shard.number, keep, self.stopped), _RETRY_SOON
            except DownloadStoppedError:
                return
            except BmlpipeError as error:
                _logger.warning("a shard was not prefetched: %s", error)
                done, pause = False, _RETRY_LATER
            if not done and not self.complete.is_set():
                self.stopped.wait(pause)
            with self._lock:
                self._active.discard(shard)
                if not done and shard in self._last_batch and not self.complete.is_set():
                    self._waiting.add(shard)

    def _look_ahead(self) -> None:
        """Examine the next batches while the cache has room for their shards."""
        with self._lock:
            for _ in range(_PORTION):
                size = sum(shards.entries[number].bytes for shards, number in self._last_batch)
                limit = min((shards.cache.limit for shards, _ in self._last_batch), default=1)
                ahead = self._seen - self._finished
                if ahead > self._in_flight and (size >= _SHARE * limit or ahead > _MAX_AHEAD):
                    break
                batch = next(self._coming, None)
                if batch is None:
                    break
                for shard in self._shards_of(batch):
                    if shard not in self._last_batch and shard not in self._active:
                        self._waiting.add(shard)
                    self._last_batch[shard] = self._seen
                self._seen += 1

    def _take(self) -> tuple[RemoteShard | None, frozenset[str]]:
        """Choose the shard to download next, and the names of the cache entries that must not be removed for it."""
        with self._lock:
            shard = next((shard for shard in self._last_batch if shard in self._waiting), None)
            if shard is not None:
                self._waiting.discard(shard)
                self._active.add(shard)
            return shard, frozenset(shards.entries[number].sha256 for shards, number in self._last_batch)

    def _record(self) -> None:
        """Record needed shards in the cache, for other processes, and queue those that they have removed."""
        with self._lock:
            if time.monotonic() - self._recorded < _RETRY_LATER:
                return
            self._recorded = time.monotonic()
            absent = {
                shard
                for place, shard in enumerate(self._last_batch)
                if not shard.shards.cache.mark_needed(shard.shards.entries[shard.number], place)
            }
            self._waiting |= absent - self._active
