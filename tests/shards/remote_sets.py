"""Sets of shards at an address for the tests: a small set, an HTTP server with faults, and readers through a cache."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np

from bmlpipe.shards.index import index_text
from bmlpipe.shards.reader import ShardReader
from bmlpipe.shards.remote.cache import Cache
from bmlpipe.shards.remote.download import RetryPolicy
from bmlpipe.shards.sample import Sample
from bmlpipe.shards.writer import ShardWriter

QUICK = RetryPolicy(stall=3, attempts=4, pause=0.01)
HASTY = RetryPolicy(stall=0.8, attempts=2, pause=0.01)  # for faults that stop a transfer
FIRST = "train-000000.tar"


def write_set(out: Path, *, shards: int = 4, seed: int = 0, size: int = 3000) -> Path:
    """Write a set of `shards` shards of 3 samples, each with 2 members of random bytes."""
    random = np.random.default_rng(seed)
    with ShardWriter(out, dataset="folder", classes=["a", "b"], features={}, samples_per_shard=3) as writer:
        for number in range(3 * shards):
            members = {"x.bin": random.bytes(size), "y.bin": random.bytes(5)}
            writer.write("train", Sample(f"sample-{number:03d}", number % 2, members, {"id": str(number)}))
    return out


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


@contextmanager
def serving(folder: Path) -> Iterator[Server]:
    """Run a server of a folder in a thread during the block."""
    with Server(folder) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield server
        server.end_stalls.set()
        server.shutdown()


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


def names_of(folder: Path, *files: str) -> set[str]:
    return {hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in files}


def change_index(folder: Path, change: Callable[[dict[str, object]], object]) -> None:
    """Change index.json, and update the hash that it states of itself."""
    content = json.loads((folder / "index.json").read_text())
    del content["sha256"]
    change(content)
    (folder / "index.json").write_text(index_text(content))
