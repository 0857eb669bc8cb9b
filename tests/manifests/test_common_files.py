"""Atomic writing of files, and their hashes."""

from __future__ import annotations

import errno
import hashlib
import os
from pathlib import Path

import pytest

from bmlpipe.manifests.common.files import open_atomically, sha256_of, write_atomically


@pytest.mark.parametrize("concurrent", [False, True])
def test_a_file_is_replaced_atomically(tmp_path: Path, concurrent: bool) -> None:
    path = tmp_path / "file"
    write_atomically(path, "old")
    with open_atomically(path, sync=True, concurrent=concurrent) as file:
        file.write(b"new")
        file.flush()
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_an_error_keeps_the_old_file_and_names_it(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomically(path, "old")
    with pytest.raises(OSError) as caught, open_atomically(path) as file:
        file.write(b"ne")
        raise OSError(errno.ENOSPC, "No space left on device")
    assert caught.value.filename == str(path)
    assert (path.read_text(), list(tmp_path.iterdir())) == ("old", [path])


def test_the_hash_of_a_path_an_open_file_and_a_descriptor_are_the_same(tmp_path: Path) -> None:
    path = tmp_path / "file"
    content = os.urandom(3 << 20)
    write_atomically(path, content)
    expected = hashlib.sha256(content).hexdigest()
    with path.open("rb") as file:
        assert sha256_of(path) == sha256_of(file) == expected
        os.lseek(file.fileno(), 0, os.SEEK_SET)
        assert sha256_of(file.fileno()) == expected
        os.fstat(file.fileno())  # still open
