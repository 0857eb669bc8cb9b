"""Remote shards: reading through the cache, retries, the size limit, prefetching and verification."""

from __future__ import annotations

import asyncio
import dataclasses
import errno
import gc
import hashlib
import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fsspec
import numpy as np
import pytest
import torch
from fsspec.asyn import AsyncFileSystem

from bmlpipe.manifests.common.locks import locked, release, try_lock
from bmlpipe.shards.combined_reader import CombinedReader
from bmlpipe.shards.errors import ShardError
from bmlpipe.shards.index import index_text
from bmlpipe.shards.order import EpochOrder
from bmlpipe.shards.reader import ShardReader
from bmlpipe.shards.remote import cache as cache_module
from bmlpipe.shards.remote import download as download_module
from bmlpipe.shards.remote.cache import Cache, CacheEntry, write_all
from bmlpipe.shards.remote.download import RetryPolicy
from bmlpipe.shards.remote.prefetch import PrefetchingBatches
from bmlpipe.shards.remote.shard_set import open_cache
from bmlpipe.shards.sample import Sample
from bmlpipe.shards.verify.compare import verify
from bmlpipe.shards.writer import ShardWriter
from bmlpipe.train.data.dataset import ClipDataset, make_loader
from bmlpipe.train.data.sampler import BatchItem

QUICK = RetryPolicy(stall=3, attempts=4, pause=0.01)
HASTY = RetryPolicy(stall=0.8, attempts=2, pause=0.01)  # for faults that stop a transfer
FIRST = "train-000000.tar"


@pytest.fixture(autouse=True)
def _surroundings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("BMLPIPE_CACHE", str(tmp_path / "cache"))
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


def write_set(out: Path, *, shards: int = 4, seed: int = 0, size: int = 3000) -> Path:
    """A set of `shards` shards of 3 samples, each of 2 members of random bytes."""
    random = np.random.default_rng(seed)
    with ShardWriter(out, dataset="folder", classes=["a", "b"], features={}, samples_per_shard=3) as writer:
        for number in range(3 * shards):
            members = {"x.bin": random.bytes(size), "y.bin": random.bytes(5)}
            writer.write("train", Sample(f"sample-{number:03d}", number % 2, members, {"id": str(number)}))
    return out


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_set(tmp_path_factory.mktemp("local") / "set")


class Server(ThreadingHTTPServer):
    """HTTP server of a folder; `faults[name]` lists the faults of the next requests of a file, one per request."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder, self.ranges = folder, True
        self.faults: dict[str, list[str]] = defaultdict(list)
        self.log: list[tuple[str, str]] = []  # file and range of each request
        self.end_stalls = threading.Event()
        self.url = f"http://127.0.0.1:{self.server_address[1]}/set/"

    def count(self) -> Counter[str]:
        return Counter(name for name, _ in self.log)

    def handle_error(self, request: object, client_address: object) -> None:
        """Ignore clients that disconnect."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_GET(self) -> None:
        name = self.path.removeprefix("/set/")
        given = self.headers.get("Range", "")
        self.server.log.append((name, given))
        faults = self.server.faults[name]
        fault = faults.pop(0) if faults else ""
        path = self.server.folder / name
        if fault.isdigit() or not path.is_file():
            self.send_response(int(fault or 404))
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        data = path.read_bytes()
        if fault == "short":
            data = data[:-512]
        if fault == "wrong":
            data = data[:700] + bytes([data[700] ^ 1]) + data[701:]
        start = int(given.removeprefix("bytes=").split("-")[0]) if given and self.server.ranges else 0
        self.send_response(206 if given and self.server.ranges else 200)
        if given and self.server.ranges:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        body = data[start:]
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        half = len(body) // 2
        self.wfile.write(body[:half])
        self.wfile.flush()
        if fault == "cut":
            time.sleep(0.05)  # the client would lose data that arrives together with the end of the connection
            self.close_connection = True
            return
        if fault == "stall":
            self.server.end_stalls.wait(20)
        if fault == "slow":
            for at in range(half, len(body), len(body) // 12):
                time.sleep(0.2)  # one pause is shorter than the limit of HASTY, all together are longer
                self.wfile.write(body[at : min(at + len(body) // 12, len(body))])
                self.wfile.flush()
            return
        self.wfile.write(body[half:])

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(local: Path) -> Iterator[Server]:
    with Server(local) as made:
        threading.Thread(target=made.serve_forever, args=(0.02,), daemon=True).start()
        yield made
        made.end_stalls.set()
        made.shutdown()


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache", 10**7)


def reader_of(url: str, cache: Cache, retry: RetryPolicy = QUICK) -> ShardReader:
    return ShardReader(url, cache=cache, retry=retry)


def contents(reader: ShardReader) -> list[tuple[str, int, dict[str, bytes]]]:
    return [
        (s.key, s.label, {name: bytes(data) for name, data in s.members.items()})
        for s in map(reader.__getitem__, range(len(reader)))
    ]


def names(cache: Cache) -> set[str]:
    """Return the names of the cached files, without the links to indexes and the lock."""
    return {path.name for path in cache.folder.iterdir()} - {"sets", "lock"}


# ----- reading -----


def test_an_address_reads_like_a_folder_and_each_file_is_downloaded_once(
    server: Server, local: Path, cache: Cache
) -> None:
    assert contents(reader_of(server.url, cache)) == contents(ShardReader(local))
    files = [path.name for path in local.iterdir()]
    assert server.count() == dict.fromkeys(files, 1)
    assert contents(reader_of(server.url, cache)) == contents(ShardReader(local))
    assert server.count() == dict.fromkeys(files, 1) | {"index.json": 2}  # a new reader asks for the newest index
    assert names(cache) == {hashlib.sha256((local / name).read_bytes()).hexdigest() for name in files}


def test_a_folder_needs_neither_cache_nor_fsspec(local: Path, tmp_path: Path) -> None:
    code = f"""
import sys
from pathlib import Path
from bmlpipe.shards.reader import ShardReader
for folder in ({str(local)!r}, Path({str(local)!r})):
    reader = ShardReader(folder)
    assert reader[3].key == "sample-003" and reader.remote is None and reader.remote_shards_of([3]) == []
assert not {{"fsspec", "aiohttp", "asyncio"}} & sys.modules.keys(), sys.modules.keys()
"""
    environment = {**os.environ, "BMLPIPE_CACHE": str(tmp_path / "cache")}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
    assert not (tmp_path / "cache").exists()


def test_other_protocols_of_fsspec_are_read(local: Path, cache: Cache) -> None:
    assert contents(reader_of(local.as_uri(), cache)) == contents(ShardReader(local))


def test_a_pickled_reader_keeps_its_index(server: Server, local: Path, cache: Cache) -> None:
    reader = reader_of(server.url, cache)
    text = pickle.dumps(reader)
    assert len(text) < 2000
    server.faults["index.json"] = ["500"] * 9
    code = "import pickle, sys; reader = pickle.load(sys.stdin.buffer); print([reader[n].key for n in range(12)])"
    done = subprocess.run([sys.executable, "-c", code], input=text, capture_output=True, check=True)
    assert done.stdout.decode().strip() == str([key for key, _, _ in contents(ShardReader(local))])
    assert server.count() == dict.fromkeys((path.name for path in local.iterdir()), 1)


@pytest.mark.parametrize(("workers", "prefetch"), [(2, False), (2, True), (0, True)])
def test_loader_workers_download_each_file_once(toy_shards: Path, workers: int, prefetch: bool) -> None:
    """Forked workers can download after their parent has, and either may download a shard first."""
    order = [[BatchItem(0, number) for number in range(start, start + 24)] for start in (0, 48, 24)]

    def batches(shards: Path | str, workers: int) -> list[dict[str, torch.Tensor]]:
        data = ClipDataset(shards, ("audio", "visual"), frames=2, image_size=32, augment=True, seed=1)
        if not prefetch:
            return list(make_loader(data, order, workers=workers))
        coming = PrefetchingBatches(
            order,
            lambda batch: data.reader.remote_shards_of([item.number for item in batch]),
            in_flight=max(1, 4 * workers),
        )
        return list(make_loader(data, coming, workers=workers))

    expected = batches(toy_shards, 0)
    with Server(toy_shards) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        for there, here in zip(batches(server.url, workers), expected, strict=True):
            assert there.keys() == here.keys()
            assert all(torch.equal(there[name], here[name]) for name in here)
        assert max(server.count().values()) == 1
        server.shutdown()


class SlowFileSystem(AsyncFileSystem):
    """A folder as a filesystem in which a request of more than `most` bytes never ends, as on a very slow server."""

    protocol, cachable = "interrupted", False
    folder, most = Path(), 0

    async def _cat_file(self, path: str, start: int, end: int) -> bytes:
        data = (self.folder / path.rpartition("/")[2]).read_bytes()[start:end]
        if len(data) > self.most:
            await asyncio.sleep(1000)
        return data


def test_ranges_shrink_when_large_ones_time_out(local: Path, cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    fsspec.register_implementation("interrupted", SlowFileSystem, clobber=True)
    SlowFileSystem.folder, SlowFileSystem.most = local, 5000
    monkeypatch.setattr(download_module, "_RANGE", (256, 1 << 15))
    retry = RetryPolicy(stall=0.3, attempts=4, pause=0.01)
    reader = reader_of("interrupted://set/", cache, retry)
    assert contents(reader) == contents(ShardReader(local))
    SlowFileSystem.most = 50
    reader.remote.cache.folder = cache.folder / "other"
    with pytest.raises(
        ShardError, match=r"interrupted://set/train-000000.tar: given up at attempt 4: FSTimeoutError: .*in time"
    ):
        reader[0]


def test_s3_addresses_are_read(local: Path, cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    moto = pytest.importorskip("moto.server", reason="moto and flask are not installed")
    pytest.importorskip("s3fs")
    import boto3

    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        for name, value in {
            "AWS_ENDPOINT_URL": f"http://{host}:{port}",
            "AWS_ACCESS_KEY_ID": "someone",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "us-east-1",
        }.items():
            monkeypatch.setenv(name, value)
        client = boto3.client("s3")
        client.create_bucket(Bucket="bucket")
        for path in local.iterdir():
            client.upload_file(str(path), "bucket", f"sets/one/{path.name}")
        assert contents(reader_of("s3://bucket/sets/one/", cache)) == contents(ShardReader(local))
        client.delete_object(Bucket="bucket", Key=f"sets/one/{FIRST}")
        shutil.rmtree(cache.folder)
        reader = reader_of("s3://bucket/sets/one", cache)
        assert reader[3].key == "sample-003"
        with pytest.raises(
            ShardError, match=rf"s3://bucket/sets/one/{FIRST}: given up at attempt 1: FileNotFoundError"
        ):
            reader[0]
    finally:
        server.stop()


# ----- faults -----


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


def names_of(folder: Path, *files: str) -> set[str]:
    return {hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in files}


def test_a_download_restarts_if_the_server_has_no_ranges(server: Server, local: Path, cache: Cache) -> None:
    server.ranges = False
    server.faults[FIRST] = ["cut", "503"]
    assert contents(reader_of(server.url, cache)) == contents(ShardReader(local))
    assert server.count()[FIRST] == 3


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


def change_index(folder: Path, change: Callable[[dict[str, object]], object]) -> None:
    """Change index.json, and update the hash that it states of itself."""
    content = json.loads((folder / "index.json").read_text())
    del content["sha256"]
    change(content)
    (folder / "index.json").write_text(index_text(content))


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


# ----- the cache -----


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
    with pytest.raises(
        ShardError, match=rf"disk of the cache .* is full .*{size} needed, no cached file left to remove"
    ):
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


# ----- prefetching -----


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


# ----- verification -----


def damage(folder: Path, at: int) -> None:
    whole = (folder / FIRST).read_bytes()
    (folder / FIRST).write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: None,
        lambda folder: damage(folder, 4000),
        lambda folder: damage(folder, 20),
        lambda folder: (folder / FIRST).write_bytes((folder / FIRST).read_bytes()[:-5000]),
        lambda folder: (folder / FIRST).write_bytes((folder / FIRST).read_bytes() + b"more"),
        lambda folder: shutil.copy(folder / FIRST, folder / "train-000001.tar"),
        lambda folder: (folder / "samples.npy").write_bytes(bytes(1000)),
        lambda folder: (folder / "index.json").write_text("{}"),
    ],
    ids=["sound", "contents", "header", "short", "long", "swapped", "samples", "index"],
)
def test_an_address_is_verified_like_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Path], object]
) -> None:
    folder = write_set(tmp_path / "set")
    change(folder)
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    with Server(folder) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        server.faults["train-000002.tar"] = ["cut", "503"]
        counted: list[int] = []
        found = [dataclasses.astuple(fault) for fault in verify(server.url, counted.append, workers=3)]
        server.shutdown()
    here = [dataclasses.astuple(fault) for fault in verify(folder)]
    assert [(*where, about.replace(server.url, f"{folder}/")) for *where, about in found] == [
        (*where, about) for *where, about in here
    ]
    assert (sum(counted) == 12) == (not here or here[0][0].endswith(".tar"))
    assert not list(temporary.iterdir())
    assert not (tmp_path / "cache").exists()


def test_files_that_cannot_be_downloaded_are_named_in_verification(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.faults["train-000001.tar"] = ["404"]
    (fault,) = verify(server.url)
    assert (fault.shard, fault.key) == ("train-000001.tar", "")
    assert re.search(rf"cannot be downloaded: {server.url}train-000001.tar: .*FileNotFound", fault.message)
    server.faults["samples.npy"] = ["404"]
    assert [fault.shard for fault in verify(server.url)] == ["samples.npy"]
    with pytest.raises(ShardError, match=r"elsewhere/index.json: given up at attempt 1"):
        next(verify(server.url + "elsewhere"))
    copy = write_set(tmp_path / "set", shards=2)
    change_index(copy, lambda c: c["shards"][0].update(file="../../stolen"))
    found = [(fault.shard, fault.message) for fault in verify(copy.as_uri())]
    assert ("index.json", "names a shard '../../stolen': not a plain file name") in found

    def full(descriptor: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(cache_module.os, "write", full)
    with pytest.raises(ShardError, match=r"bmlpipe-verify-.*No space left.* 1 workers at a time; set TMPDIR"):
        list(verify(server.url))


def test_the_command_verifies_an_address(tmp_path: Path, server: Server) -> None:
    from click.testing import CliRunner

    from bmlpipe.pipeline.cli import main

    assert CliRunner().invoke(main, ["verify", server.url]).exit_code == 0
    folder = write_set(tmp_path / "set")
    damage(folder, 4000)
    result = CliRunner().invoke(main, ["verify", folder.as_uri(), "--workers", "2"])
    assert result.exit_code == 1
    assert result.stdout.startswith(f"{FIRST}\tsample-000\tx.bin\t")


# ----- mixtures -----


def test_the_cache_of_a_mixture_must_hold_a_window_of_each_set(tmp_path: Path, cache: Cache) -> None:
    folders = [write_set(tmp_path / name / "set", seed=seed) for seed, name in enumerate("ab")]
    size = (folders[0] / FIRST).stat().st_size
    readers = [reader_of(folder.as_uri(), cache) for folder in folders]
    indexes = sum((folder / name).stat().st_size for folder in folders for name in ("index.json", "samples.npy"))
    mixed = CombinedReader([*readers, ShardReader(folders[0])])  # a local set needs no cache
    cache.limit = 4 * size + indexes
    for reader in readers:
        reader.check_cache_size(3)
    mixed.check_cache_size(2)
    with pytest.raises(ShardError) as caught:
        mixed.check_cache_size(3)
    message = str(caught.value)
    assert f"may hold {cache.limit} bytes; 3 shards of {folders[0].as_uri()}/" in message
    assert f"; 3 shards of {folders[1].as_uri()}/, read at the same time, have up to {3 * size}" in message
    assert f"all sets of the mixture are in use at once, {6 * size + indexes} bytes together" in message
    assert message.endswith("raise --cache-bytes (BMLPIPE_CACHE_BYTES), or lower --shuffle-shards")
    elsewhere = Cache(tmp_path / "other", 3 * size + indexes)
    apart = CombinedReader([readers[0], reader_of(folders[1].as_uri(), elsewhere)])
    apart.check_cache_size(3)  # each set has a cache of its own
