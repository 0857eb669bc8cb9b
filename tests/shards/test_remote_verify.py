"""Verification of remote shards."""

from __future__ import annotations

import dataclasses
import errno
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from remote_sets import FIRST, Server, change_index, serving, write_set

from bmlpipe.shards.errors import ShardError
from bmlpipe.shards.remote import cache as cache_module
from bmlpipe.shards.verify.compare import verify

pytestmark = [pytest.mark.usefixtures("isolated_environment"), pytest.mark.slow]


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
    with serving(folder) as server:
        server.faults["train-000002.tar"] = ["cut", "503"]
        counted: list[int] = []
        found = [dataclasses.astuple(fault) for fault in verify(server.url, counted.append, workers=3)]
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
