"""Fetch remote shards ahead of their use, in the order in which the coming batches need them."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Iterator
from typing import Generic, Protocol, TypeVar

from bmlpipe.shards.errors import ShardError
from bmlpipe.shards.remote.download import StoppedError
from bmlpipe.shards.remote.shard_set import RemoteShards

_logger = logging.getLogger(__name__)

Batch = TypeVar("Batch")
Batch_co = TypeVar("Batch_co", covariant=True)

#: A shard that a batch needs: its set and its number there.
Need = tuple[RemoteShards, int]

_HORIZON = 1024  # batches that are looked at ahead, at most
_PORTION = 16  # of them at once
_SHARE = 0.75  # of the cache, for the shards of batches that are not due yet
_AGAIN = 0.2  # seconds until a shard is asked for again that another process fetches, or that had no room
_LATER = 10.0  # seconds until one is that could not be had; also between two records of what is needed


class Batches(Protocol[Batch_co]):
    """A batch sampler, as the DataLoader wants it; iterating over it twice at a time yields the same."""

    def __iter__(self) -> Iterator[Batch_co]: ...

    def __len__(self) -> int: ...


class FetchAhead(Generic[Batch]):
    """A batch sampler that yields another one's batches, while threads fetch the shards that later ones need.

    What a thread cannot fetch is logged and left to the reader, which tries itself and raises the error.

    Args:
        batches: The other one.
        needs: The remote shards of a batch.
        in_flight: Batches that may have been yielded and not been used up, the last one included.
        threads: Shards that are fetched at a time.
    """

    def __init__(
        self,
        batches: Batches[Batch],
        needs: Callable[[Batch], Collection[Need]],
        *,
        in_flight: int = 1,
        threads: int = 4,
    ) -> None:
        self._batches, self._needs, self._in_flight, self._threads = batches, needs, in_flight, threads

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[Batch]:
        work = _Work(iter(self._batches), self._needs, self._in_flight)
        end = work.stopped
        try:
            for number in range(self._threads):
                threading.Thread(target=work.run, name=f"fetch-ahead-{number}", daemon=True).start()
            for number, batch in enumerate(self._batches):
                work.finished(number - self._in_flight)
                yield batch
            end = work.over  # the last batches are still to be read
        finally:
            end.set()


class _Work(Generic[Batch]):
    """What is needed and what is still to be fetched, shared by the threads."""

    def __init__(self, coming: Iterator[Batch], needs: Callable[[Batch], Collection[Need]], in_flight: int) -> None:
        self.stopped = threading.Event()  # leave everything
        self.over = threading.Event()  # finish what is needed already
        self._coming, self._needs, self._in_flight = coming, needs, in_flight
        self._lock = threading.Lock()
        self._seen = 0  # batches looked at
        self._done = -1  # last batch that is used up
        self._last: dict[Need, int] = {}  # needed shards, the first one first → last batch known to need each
        self._open: set[Need] = set()  # of them, those that are neither there nor being fetched
        self._busy: set[Need] = set()  # and those that a thread fetches
        self._recorded = 0.0

    def finished(self, batch: int) -> None:
        """This batch and all before it are used up."""
        with self._lock:
            self._done = batch
            for need in [need for need, last in self._last.items() if last <= batch]:
                del self._last[need]
                self._open.discard(need)

    def run(self) -> None:
        """Fetch, in a thread, until stopped."""
        while not self.stopped.is_set():
            self._look()
            self._record()
            need, keep = self._take()
            if need is None:
                if self.over.is_set() or self.stopped.wait(_AGAIN):
                    return
                continue
            remote, shard = need
            try:
                there, pause = remote.fetch(shard, keep, self.stopped), _AGAIN
            except StoppedError:
                return
            except ShardError as error:
                _logger.warning("not fetched ahead: %s", error)
                there, pause = False, _LATER
            if not there and not self.over.is_set():
                self.stopped.wait(pause)
            with self._lock:
                self._busy.discard(need)
                if not there and need in self._last and not self.over.is_set():
                    self._open.add(need)

    def _look(self) -> None:
        """Look at the next few batches, as far as their shards have room."""
        with self._lock:
            for _ in range(_PORTION):
                size = sum(remote.entries[shard].bytes for remote, shard in self._last)
                limit = min((remote.cache.limit for remote, _ in self._last), default=1)
                ahead = self._seen - self._done
                if ahead > self._in_flight and (size >= _SHARE * limit or ahead > _HORIZON):
                    break
                batch = next(self._coming, None)
                if batch is None:
                    break
                for need in self._needs(batch):
                    if need not in self._last and need not in self._busy:
                        self._open.add(need)
                    self._last[need] = self._seen
                self._seen += 1

    def _take(self) -> tuple[Need | None, frozenset[str]]:
        """The shard to fetch next, and the names of those that must not go for it."""
        with self._lock:
            need = next((need for need in self._last if need in self._open), None)
            if need is not None:
                self._open.discard(need)
                self._busy.add(need)
            return need, frozenset(remote.entries[shard].sha256 for remote, shard in self._last)

    def _record(self) -> None:
        """Tell the other processes what is needed, now and then; what they have removed is fetched again."""
        with self._lock:
            if time.monotonic() - self._recorded < _LATER:
                return
            self._recorded = time.monotonic()
            absent = {
                (remote, shard)
                for place, (remote, shard) in enumerate(self._last)
                if not remote.cache.touch(remote.entries[shard], place)
            }
            self._open |= absent - self._busy
