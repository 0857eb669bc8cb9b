"""The cache of remote shards: its size limit, and several processes and a full disk."""

from __future__ import annotations

import errno
import os
import pickle
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from remote_sets import FIRST, Server, contents, names, names_of, reader_of, write_set

from bmlpipe.manifests.common.locks import locked, release, try_lock
from bmlpipe.shards.errors import ShardError
from bmlpipe.shards.reader import ShardReader
from bmlpipe.shards.remote import cache as cache_module
from bmlpipe.shards.remote.cache import Cache, CacheEntry, write_all
from bmlpipe.shards.remote.shard_set import open_cache

pytestmark = pytest.mark.usefixtures("isolated_environment")


def test_sets_with_the_same_file_names_do_not_collide_and_equal_shards_are_shared(tmp_path: Path, cache: Cache) -> None:
    one, two = write_set(tmp_path / "a" / "set"), write_set(tmp_path / "b" / "set", seed=1)
    same = write_set(tmp_path / "c" / "set")
    for folder in (one, two, one, two):
        assert contents(reader_of(folder.as_uri(), cache)) == contents(ShardReader(folder))
    before = names(cache)
    shutil.rmtree(one)
    assert contents(reader_of(same.as_uri(), cache)) == contents(ShardReader(same))
    assert names(cache) == before


def test_the_least_recently_used_shards_are_removed_at_the_limit(server: Server, local: Path, cache: Cache) -> None:
    sizes = [path.stat().st_size for path in local.glob("*.tar")]
    index = sum((local / name).stat().st_size for name in ("index.json", "samples.npy"))
    cache.limit = index + 2 * max(sizes) + 4096
    reader, most = reader_of(server.url, cache), 0
    for number in (0, 3, 0, 6, 0, 9, 0, 3):
        assert reader[number].key == f"sample-{number:03d}"
        assert cache.used() <= cache.limit
        cache.mark_needed(reader.remote.entries[number // 3])  # uses within seconds count as one: record this one
        most = max(most, cache.used())
    assert most > index + max(sizes)
    assert server.count()[FIRST] == 1
    assert server.count()["train-000001.tar"] == 2
    reader.close()  # only now may the index be removed, too
    cache.limit = 2 * max(sizes)
    third = (local / "train-000002.tar").read_bytes()
    os.close(cache.get(reader.remote.entries[2], lambda into: write_all(into, third)))
    assert cache.used() <= cache.limit
    assert not names_of(local, "index.json", "samples.npy") <= names(cache)


def test_needed_entries_are_not_removed(cache: Cache) -> None:
    def offer(letter: str, keep: str = "") -> bool:
        found = cache.try_get(
            CacheEntry(letter * 64, 100), lambda into: write_all(into, bytes(100)), [k * 64 for k in keep]
        )
        if found is not None:
            os.close(found)
        return found is not None

    cache.limit = 300
    assert all(offer(letter) for letter in "abc")
    assert not offer("d", keep="abc")
    assert names(cache) == {letter * 64 for letter in "abc"}
    assert offer("d", keep="ac")
    assert names(cache) == {letter * 64 for letter in "acd"}
    assert cache.mark_needed(CacheEntry("a" * 64, 100))
    assert offer("e")
    assert names(cache) == {letter * 64 for letter in "ade"}


def test_files_are_renamed_under_the_lock_of_the_cache(cache: Cache) -> None:
    """Otherwise a process that measures the cache at that moment may see neither name and count too few bytes."""
    entry, seen = CacheEntry("a" * 64, 100), list[bool]()

    def fill(into: int) -> None:
        assert cache.used() == 100  # an unfinished file counts with its full size from the start
        write_all(into, bytes(100))
        counting = try_lock(cache.folder / "lock")
        assert counting is not None
        threading.Timer(0.2, lambda: (seen.append(cache.path(entry).exists()), release(counting))).start()

    os.close(cache.get(entry, fill))
    assert seen == [False]


def test_a_limit_that_is_too_small_is_refused_with_the_sizes(server: Server, local: Path, cache: Cache) -> None:
    size = (local / FIRST).stat().st_size
    cache.limit = size
    with pytest.raises(ShardError, match=rf"may hold {size} bytes; 1 shards .* have up to {size} and its index"):
        reader_of(server.url, cache)
    cache.limit = 3 * size
    reader = reader_of(server.url, cache)
    reader.check_cache_size(2)
    with pytest.raises(ShardError, match=rf"may hold {3 * size} bytes; 3 shards .*lower --shuffle-shards"):
        reader.check_cache_size(3)
    with pytest.raises(ShardError, match="may hold 100 bytes, and one file has"):
        reader_of(server.url, Cache(cache.folder / "other", 100))


def test_the_limit_holds_at_every_moment(local: Path, cache: Cache) -> None:
    """Readers that need more than fits remove each other's shards, and still read the right samples."""
    size = (local / FIRST).stat().st_size
    cache.limit = 2 * size + 8000
    reader, expected = reader_of(local.as_uri(), cache), contents(ShardReader(local))
    wrong: list[object] = []
    most = 0

    def read(seed: int) -> None:
        for number in np.random.default_rng(seed).integers(12, size=60):
            sample = reader[int(number)]
            if sample.key != expected[number][0] or bytes(sample.members["x.bin"]) != expected[number][2]["x.bin"]:
                wrong.append(number)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        with locked(cache.folder / "lock"):
            most = max(most, cache.used())
        time.sleep(0.001)
    assert not wrong
    assert size < most <= cache.limit
    assert len(names(cache)) == 4  # index.json, samples.npy and two shards


@pytest.mark.slow
def test_two_processes_download_each_file_once(server: Server, local: Path, cache: Cache) -> None:
    server.faults[FIRST] = ["slow"]  # both request it during the download
    code = f"""
from pathlib import Path
from bmlpipe.shards.remote.cache import Cache
from bmlpipe.shards.reader import ShardReader
reader = ShardReader({server.url!r}, cache=Cache(Path({str(cache.folder)!r}), 10**7))
print([sample.key for sample in map(reader.__getitem__, range(12))])
"""
    both = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) for _ in range(2)]
    expected = str([key for key, _, _ in contents(ShardReader(local))])
    assert [one.communicate(timeout=60)[0].decode().strip() for one in both] == [expected] * 2
    assert [one.returncode for one in both] == [0, 0]
    assert server.count() == {path.name: 1 + (path.name == "index.json") for path in local.iterdir()}


def test_a_killed_download_is_taken_over(
    server: Server, local: Path, cache: Cache, wait_until: Callable[..., None]
) -> None:
    reader = reader_of(server.url, cache)
    text = pickle.dumps(reader)
    server.faults[FIRST] = ["stall"]
    code = "import pickle, sys; pickle.load(sys.stdin.buffer)[0]"
    killed = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE)
    assert killed.stdin is not None
    killed.stdin.write(text)
    killed.stdin.close()
    part = Path(f"{cache.path(reader.remote.entries[0])}.part")
    wait_until(lambda: server.count()[FIRST])
    waiting = threading.Thread(target=lambda: reader[0])  # waits for the other process
    waiting.start()
    time.sleep(0.1)
    assert part.is_file()
    assert server.count()[FIRST] == 1
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    waiting.join(10)
    assert not waiting.is_alive()
    assert server.count()[FIRST] == 2
    assert contents(reader) == contents(ShardReader(local))
    assert names(cache) == names_of(local, *(path.name for path in local.iterdir()))


def test_the_rest_of_a_killed_download_is_removed(server: Server, cache: Cache) -> None:
    reader = reader_of(server.url, cache)
    rest = cache.folder / f"{'0' * 64}.part"
    rest.write_bytes(bytes(cache.limit))
    assert reader[0].key == "sample-000"
    assert not rest.exists()


def test_waiting_for_a_stalled_process_ends_after_the_patience(server: Server, cache: Cache) -> None:
    reader = reader_of(server.url, cache)
    cache.patience = 0.3
    part = Path(f"{cache.path(reader.remote.entries[0])}.part")
    held = try_lock(part)
    assert held is not None
    with pytest.raises(ShardError, match=r"waited 0.3 s for another process"):
        reader[0]
    release(held)
    assert reader[0].key == "sample-000"


def test_a_full_disk_removes_old_shards_and_is_reported_if_none_is_left(
    server: Server, local: Path, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = (local / FIRST).stat().st_size
    free = 2 * size  # on a disk smaller than the cache's limit
    write = os.write

    def limited(descriptor: int, data: bytes) -> int:
        shards = [path for path in cache.folder.iterdir() if path.stat().st_size >= size - 512]
        full = sum(path.stat().st_size for path in shards if path.suffix != ".part") + size > free
        if full and os.lseek(descriptor, 0, os.SEEK_CUR) + len(data) > 1000:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(descriptor, data)

    reader = reader_of(server.url, cache)
    monkeypatch.setattr(cache_module.os, "write", limited)
    for number in (0, 3, 6, 9, 0):  # old shards are removed, as with a lower limit
        assert reader[number].key == f"sample-{number:03d}"
    free = 0
    with pytest.raises(ShardError, match=rf"disk of the cache .* is full .*{size} needed"):
        reader[3]
    assert names(cache) == names_of(local, "index.json", "samples.npy")  # the open index is kept


def test_an_unusable_cache_folder_is_reported(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ShardError, match=r"cannot be used .*choose another --cache"):
        reader_of(server.url, Cache(tmp_path / "file" / "cache", 10**7))


def test_folder_and_limit_come_from_arguments_or_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    for name in ("BMLPIPE_CACHE", "BMLPIPE_CACHE_BYTES"):
        monkeypatch.delenv(name, raising=False)
    usual = open_cache()
    assert usual.folder == tmp_path / "home" / "bmlpipe"
    assert 0 < usual.limit <= 50 * 10**9
    monkeypatch.setenv("BMLPIPE_CACHE", str(tmp_path / "there"))
    monkeypatch.setenv("BMLPIPE_CACHE_BYTES", "20 GiB")
    assert (open_cache().folder, open_cache().limit) == (tmp_path / "there", 20 * 2**30)
    assert (open_cache("x", "1.5MB").folder, open_cache("x", "1.5MB").limit) == (Path.cwd() / "x", 1_500_000)
    with pytest.raises(ShardError, match="'plenty' is not a number of bytes"):
        open_cache("x", "plenty")


def test_cache_entries_are_validated() -> None:
    for sha256, size in (("x" * 64, 1), ("a" * 63, 1), (None, 1), ("a" * 64, -1), ("a" * 64, "1")):
        with pytest.raises(ShardError, match="the index is damaged"):
            CacheEntry(sha256, size)  # type: ignore[arg-type]
