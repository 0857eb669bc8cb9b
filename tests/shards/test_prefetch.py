"""Prefetching of remote shards: order, size limit, failures and threads."""

from __future__ import annotations

import gc
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from remote_sets import FIRST, HASTY, Server, names, reader_of

from bmlpipe.manifests.common.locks import release, try_lock
from bmlpipe.shards.errors import ShardError
from bmlpipe.shards.order import EpochOrder
from bmlpipe.shards.reader import ShardReader
from bmlpipe.shards.remote.cache import Cache
from bmlpipe.shards.remote.prefetch import PrefetchingBatches

pytestmark = pytest.mark.usefixtures("isolated_environment")


def prefetched(reader: ShardReader, batches: list[list[int]], **options: int) -> PrefetchingBatches[list[int]]:
    return PrefetchingBatches(batches, reader.remote_shards_of, **options)


def test_shards_are_prefetched_in_the_order_of_need(
    server: Server, cache: Cache, wait_until: Callable[..., None]
) -> None:
    order = EpochOrder([3] * 4, seed=3, epoch=0, shuffle_shards=1)
    batches = order.slice(0, 12).reshape(6, 2).tolist()
    reader = reader_of(server.url, cache)
    iterator = iter(prefetched(reader, batches, threads=1))
    first = next(iterator)
    needed = list(dict.fromkeys(f"train-{number // 3:06d}.tar" for batch in batches for number in batch))
    tars = lambda: [name for name, _ in server.log if name.endswith(".tar")]  # noqa: E731
    wait_until(lambda: len(tars()) == 4)
    assert tars() == needed  # all of them during the first batch, because they fit
    assert [first, *iterator] == batches
    assert [reader[number].key for batch in batches for number in batch] == [
        f"sample-{n:03d}" for b in batches for n in b
    ]
    assert max(server.count().values()) == 1


def test_prefetching_keeps_the_limit_and_the_shards_needed_sooner(server: Server, local: Path, cache: Cache) -> None:
    size = (local / FIRST).stat().st_size
    index = sum((local / name).stat().st_size for name in ("index.json", "samples.npy"))
    cache.limit = index + 4096 + 3 * size
    batches = [[number] for _ in range(3) for number in range(12)]  # three passes over four shards, of which three fit
    reader = reader_of(server.url, cache)
    for (number,) in prefetched(reader, batches, threads=2):
        assert reader[number].key == f"sample-{number:03d}"
        assert cache.used() <= cache.limit
        time.sleep(0.01)
    assert max(server.count()[path.name] for path in local.glob("*.tar")) <= 3  # no shard twice in one pass


def test_a_failed_prefetch_is_reported_by_the_reader(
    server: Server, cache: Cache, caplog: pytest.LogCaptureFixture, wait_until: Callable[..., None]
) -> None:
    server.faults[FIRST] = ["404"] * 99
    reader = reader_of(server.url, cache)
    iterator = iter(prefetched(reader, [[3], [0], [6]]))
    assert reader[next(iterator)[0]].key == "sample-003"
    wait_until(lambda: "not prefetched" in caplog.text)
    with pytest.raises(ShardError, match="FileNotFoundError"):
        reader[next(iterator)[0]]
    assert reader[next(iterator)[0]].key == "sample-006"


def test_a_download_by_another_process_does_not_delay_other_shards(
    server: Server, cache: Cache, wait_until: Callable[..., None]
) -> None:
    reader = reader_of(server.url, cache)
    entries = reader.remote.entries
    held = try_lock(Path(f"{cache.path(entries[0])}.part"))
    assert held is not None
    iterator = iter(prefetched(reader, [[0], [3], [6], [9]], threads=2))
    next(iterator)
    wait_until(lambda: all(cache.path(entry).is_file() for entry in entries[1:]))
    assert server.count()[FIRST] == 0
    release(held)
    wait_until(cache.path(entries[0]).is_file)


def test_a_shard_removed_by_another_process_is_prefetched_again(
    server: Server, cache: Cache, monkeypatch: pytest.MonkeyPatch, wait_until: Callable[..., None]
) -> None:
    monkeypatch.setattr("bmlpipe.shards.remote.prefetch._RETRY_LATER", 0.05)
    reader = reader_of(server.url, cache)
    iterator = iter(prefetched(reader, [[0], [3]]))
    next(iterator)
    second = cache.path(reader.remote.entries[1])
    wait_until(second.is_file)
    second.unlink()
    wait_until(second.is_file)


def test_prefetching_threads_end_with_the_iteration(
    server: Server, cache: Cache, wait_until: Callable[..., None]
) -> None:
    def running() -> int:
        return sum(thread.name.startswith("prefetch") for thread in threading.enumerate())

    gc.collect()  # iterators that other tests have dropped
    wait_until(lambda: running() == 0)
    reader = reader_of(server.url, cache)
    iterator = iter(prefetched(reader, [[number] for number in range(12)]))
    assert running() == 0  # no thread before the first batch, because loader workers are forked before it
    next(iterator)
    assert running() == 4
    del iterator  # like a loader that is dropped
    wait_until(lambda: running() == 0)
    server.faults["train-000003.tar"] = ["stall"]
    shutil.rmtree(cache.folder)
    half = iter(prefetched(reader_of(server.url, cache, HASTY), [[0], [9]]))
    next(half)
    wait_until(lambda: server.count()["train-000003.tar"] > 0)
    del half
    wait_until(lambda: running() == 0)
    assert not any(name.endswith(".part") for name in names(cache))
