"""Faults of remote shards: retries, damaged files, wrong indexes and unreadable addresses."""

from __future__ import annotations

import hashlib
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from remote_sets import FIRST, HASTY, QUICK, Server, change_index, contents, names, names_of, reader_of, write_set

from bmlpipe.shards.errors import ShardError
from bmlpipe.shards.reader import ShardReader
from bmlpipe.shards.remote.cache import Cache

pytestmark = pytest.mark.usefixtures("isolated_environment")


@pytest.mark.parametrize(
    ("faults", "ranges"),
    [
        (["503", "500", "429"], ["", "", "", ""]),
        (["cut", "cut"], ["", "half", "more"]),
        (["stall"], ["", "half"]),
        (["slow"], [""]),
        (["wrong", "short"], ["", "", ""]),
        (["cut", "wrong"], ["", "half"]),
    ],
)
def test_failed_downloads_are_retried(
    server: Server, local: Path, cache: Cache, faults: list[str], ranges: list[str]
) -> None:
    server.faults[FIRST] = list(faults)
    retry = HASTY if {"stall", "slow"} & set(faults) else QUICK
    assert reader_of(server.url, cache, retry)[0].key == "sample-000"
    half = (local / FIRST).stat().st_size // 2
    given = [given for name, given in server.log if name == FIRST]
    assert len(given) >= len(ranges)
    assert [bool(one) for one in given[: len(ranges)]] == [bool(one) for one in ranges]
    assert all(one == f"bytes={half}-" for one, kind in zip(given, ranges) if kind == "half")
    assert names(cache) == names_of(local, "index.json", "samples.npy", FIRST)


def test_a_download_restarts_if_the_server_has_no_ranges(server: Server, local: Path, cache: Cache) -> None:
    server.ranges = False
    server.faults[FIRST] = ["cut", "503"]
    assert contents(reader_of(server.url, cache)) == contents(ShardReader(local))
    assert server.count()[FIRST] == 3


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "attempts", "words"),
    [
        ("404", 1, "FileNotFoundError"),
        ("403", 1, "403"),
        ("503", 4, "503"),
        ("stall", 2, "Timeout"),
        ("wrong", 3, "with SHA-256 [0-9a-f]{64} were received, but the index states [0-9]+ bytes with [0-9a-f]{64}"),
        ("short", 3, "the set is damaged, or was overwritten"),
    ],
)
def test_lasting_faults_are_reported_with_cause_and_attempts(
    server: Server, local: Path, cache: Cache, fault: str, attempts: int, words: str
) -> None:
    server.faults[FIRST] = [fault] * 99
    server.ranges = fault != "stall"  # with ranges, every attempt would receive half of the rest, which is progress
    reader = reader_of(server.url, cache, HASTY if fault == "stall" else QUICK)
    before = time.monotonic()
    with pytest.raises(ShardError, match=rf"{server.url}{FIRST}: given up at attempt {attempts}: .*{words}"):
        reader[0]
    assert time.monotonic() - before < 10
    assert server.count()[FIRST] == attempts
    assert names(cache) == names_of(local, "index.json", "samples.npy")
    assert reader[3].key == "sample-003"  # other shards can still be read


def test_a_refused_connection_is_reported_without_the_password(cache: Cache) -> None:
    with pytest.raises(ShardError, match=r"127.0.0.1:9/set/index.json: given up at attempt 4: .*Connect"):
        reader_of("http://user:secret@127.0.0.1:9/set", cache)
    with pytest.raises(ShardError) as caught:
        reader_of("http://user:secret@127.0.0.1:9/set", cache)
    assert "secret" not in str(caught.value)


def test_a_damaged_cache_file_is_downloaded_again(server: Server, local: Path, cache: Cache) -> None:
    reader = reader_of(server.url, cache)
    assert reader[0].key == "sample-000"
    entry = cache.path(reader.remote.entries[0])
    whole = entry.read_bytes()
    for damaged in (whole[:2000] + bytes([whole[2000] ^ 4]) + whole[2001:], whole[:-512]):
        entry.write_bytes(damaged)
        assert reader[0].key == "sample-000"
        assert entry.read_bytes() == whole
    assert server.count()[FIRST] == 3
    (cache.folder / names_of(local, "samples.npy").pop()).write_bytes((local / "samples.npy").read_bytes()[:-1] + b"x")
    assert contents(reader_of(server.url, cache)) == contents(ShardReader(local))  # so is a damaged index
    assert server.count()["samples.npy"] == 2


def test_an_index_with_a_wrong_checksum_is_reported(tmp_path: Path, cache: Cache) -> None:
    copy = write_set(tmp_path / "set", shards=1)
    samples = np.load(copy / "samples.npy")
    samples["crc32"][1] ^= 1
    np.save(copy / "samples.npy", samples)
    change_index(
        copy, lambda c: c["samples"].update(sha256=hashlib.sha256((copy / "samples.npy").read_bytes()).hexdigest())
    )
    reader = reader_of(copy.as_uri(), cache)
    assert reader[0].key == "sample-000"
    with pytest.raises(ShardError, match=r"sample-001: .* they are damaged: the index of file://"):
        reader[1]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c["shards"][0].update(file="../../etc/passwd"), "not a plain file name"),
        (lambda c: c["shards"][0].update(file="http://elsewhere/x.tar"), "not a plain file name"),
        (lambda c: c["shards"][0].update(file=".."), "not a plain file name"),
        (lambda c: c["shards"][0].update(sha256="../../../root/.profile"), "not a SHA-256"),
        (lambda c: c["shards"][0].update(bytes=-1), "not a size in bytes"),
        (lambda c: c["samples"].update(sha256="../x"), "damaged"),
        (lambda c: c.update(version=99), "format version 99"),
        (lambda c: c.update(format="other"), "not an index of"),
    ],
)
def test_an_index_cannot_name_files_outside_the_cache(
    tmp_path: Path, cache: Cache, change: Callable[[dict[str, object]], object], words: str
) -> None:
    copy = write_set(tmp_path / "set", shards=1)
    change_index(copy, change)
    with pytest.raises(ShardError, match=words):
        reader_of(copy.as_uri(), cache)
    assert {path.name for path in tmp_path.iterdir()} == {"set", "cache"}


def test_a_rewritten_set_is_detected(tmp_path: Path, cache: Cache) -> None:
    folder = write_set(tmp_path / "set")
    reader = reader_of(folder.as_uri(), cache)
    assert reader[0].key == "sample-000"
    write_set(folder, seed=1)
    with pytest.raises(ShardError, match="overwritten"):
        reader[3]
    assert contents(reader_of(folder.as_uri(), cache)) == contents(ShardReader(folder))


def test_unreadable_addresses_are_refused_with_a_remedy(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ShardError, match="remove the part after the path"):
        reader_of("https://host/set/?token=secret", cache)
    with pytest.raises(ShardError, match="nonsense"):
        reader_of("nonsense://host/set", cache)
    with pytest.raises(ShardError, match="pass it as a string"):
        ShardReader(Path("s3://bucket/set"))
    monkeypatch.setitem(sys.modules, "aiohttp", None)
    with pytest.raises(ShardError, match=r"pip install 'bmlpipe\[http\]'"):
        reader_of("https://not-opened-before/set", cache)
