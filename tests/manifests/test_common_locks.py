"""Lock files have one holder at a time; on a file system without locks, a warning replaces them."""

from __future__ import annotations

import logging
import threading
import time
from pathlib import Path

import pytest

from bmlpipe.manifests.common.locks import LockError, exclusive_folder, lock_folder, locked, release, try_lock


def test_a_folder_has_one_holder_at_a_time(tmp_path: Path) -> None:
    with (
        exclusive_folder(tmp_path, "extraction"),
        pytest.raises(LockError, match="another extraction is writing into"),
        exclusive_folder(tmp_path, "extraction"),
    ):
        pass
    with exclusive_folder(tmp_path, "extraction") as descriptor:
        assert descriptor is not None


def test_waiting_for_a_lock_ends_after_the_patience(tmp_path: Path) -> None:
    held = try_lock(tmp_path / "lock")
    assert held is not None
    with pytest.raises(LockError, match="was held by another process"), locked(tmp_path / "lock", patience=0.1):
        pass
    threading.Timer(0.2, release, (held,)).start()
    start = time.monotonic()
    with locked(tmp_path / "lock"):
        assert time.monotonic() - start > 0.1


def test_a_removed_lock_file_can_be_locked_again(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    assert try_lock(path, create=False) is None
    held = try_lock(path)
    assert held is not None
    path.unlink()
    second = try_lock(path)
    assert second is not None
    release(held)
    release(second)


def test_the_error_names_a_folder_that_cannot_be_created(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError) as caught:
        lock_folder(tmp_path / "file" / "out", "extraction")
    assert caught.value.filename.startswith(str(tmp_path / "file"))


def test_a_file_system_without_locks_is_used_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", no_locks)
    with caplog.at_level(logging.WARNING), exclusive_folder(tmp_path, "extraction") as descriptor:
        assert descriptor is None
    assert "start no second extraction" in caplog.text
