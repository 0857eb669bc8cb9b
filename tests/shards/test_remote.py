"""Reading remote shards through the cache: addresses, protocols, workers and mixtures."""

from __future__ import annotations

import asyncio
import hashlib
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import fsspec
import pytest
import torch
from fsspec.asyn import AsyncFileSystem
from remote_sets import FIRST, Server, contents, names, reader_of, serving, write_set

from bmlpipe.shards.combined_reader import CombinedReader
from bmlpipe.shards.errors import ShardError
from bmlpipe.shards.reader import ShardReader
from bmlpipe.shards.remote import download as download_module
from bmlpipe.shards.remote.cache import Cache
from bmlpipe.shards.remote.download import RetryPolicy
from bmlpipe.shards.remote.prefetch import PrefetchingBatches
from bmlpipe.train.data.dataset import ClipDataset, make_loader
from bmlpipe.train.data.sampler import BatchItem

pytestmark = pytest.mark.usefixtures("isolated_environment")


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
    with serving(toy_shards) as server:
        for there, here in zip(batches(server.url, workers), expected, strict=True):
            assert there.keys() == here.keys()
            assert all(torch.equal(there[name], here[name]) for name in here)
        assert max(server.count().values()) == 1


class SlowFileSystem(AsyncFileSystem):
    """A folder as a filesystem in which a request of more than `most` bytes never ends, as on a very slow server."""

    protocol, cachable = "interrupted", False
    folder, most = Path(), 0

    async def _cat_file(self, path: str, start: int, end: int) -> bytes:
        data = (self.folder / path.rpartition("/")[2]).read_bytes()[start:end]
        if len(data) > self.most:
            await asyncio.sleep(1000)
        return data


@pytest.mark.slow
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


@pytest.mark.slow
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
    assert f"3 shards of {folders[1].as_uri()}/" in message
    assert f"have up to {3 * size}" in message
    assert f"{6 * size + indexes} bytes together" in message
    assert "--cache-bytes" in message
    assert "--shuffle-shards" in message
    elsewhere = Cache(tmp_path / "other", 3 * size + indexes)
    apart = CombinedReader([readers[0], reader_of(folders[1].as_uri(), elsewhere)])
    apart.check_cache_size(3)  # each set has a cache of its own
