"""Fixtures of the tests of remote shards."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from remote_sets import Server, serving, write_set

from bmlpipe.shards.remote.cache import Cache


@pytest.fixture
def isolated_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Put the default cache into the folder of the test, and use no proxy."""
    monkeypatch.setenv("BMLPIPE_CACHE", str(tmp_path / "cache"))
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture(scope="session")
def local(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set of 4 shards in a folder."""
    return write_set(tmp_path_factory.mktemp("local") / "set")


@pytest.fixture
def server(local: Path) -> Iterator[Server]:
    """An HTTP server of the set `local`."""
    with serving(local) as started:
        yield started


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    """A cache of 10 MB in the folder of the test."""
    return Cache(tmp_path / "cache", 10**7)
