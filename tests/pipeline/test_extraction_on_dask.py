"""Extraction on Dask: clips that kill or block a worker, and workers that see other folders."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from bmlpipe.manifests.common.locks import exclusive_folder
from bmlpipe.manifests.locate import Source
from bmlpipe.manifests.schema import Clip, Manifest
from bmlpipe.pipeline.cluster.worker_checks import UnfitWorkerError
from bmlpipe.pipeline.extraction.clip_timeout import ClipTimeout
from bmlpipe.pipeline.extraction.plan import make_plan
from bmlpipe.pipeline.extraction.request import ExtractionRequest
from bmlpipe.pipeline.extraction.run import run_extraction
from bmlpipe.pipeline.extraction.shared_folders import OnSharedFolders, TaskFiles, run_marker
from bmlpipe.pipeline.extraction.task import ClipTask
from bmlpipe.pipeline.front_ends.frames import FrameOptions
from bmlpipe.pipeline.store.errors import StoreWriteError
from bmlpipe.pipeline.store.ledger import LedgerRow, read_ledger

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("both_cores")]


@pytest.fixture
def scheduler() -> Iterator[str]:
    """Address of a running cluster with one worker of two threads."""
    from distributed import LocalCluster

    with LocalCluster(n_workers=1, threads_per_worker=2, processes=True, dashboard_address=None) as cluster:
        yield cluster.scheduler_address


def test_relative_folders_work_on_workers_with_another_current_folder(
    scheduler: str, tmp_path: Path, make_clip: Callable[..., Path]
) -> None:
    (tmp_path / "videos" / "x").mkdir(parents=True)
    make_clip(tmp_path / "videos" / "x" / "1.mp4", seconds=1.0, size=(48, 32))
    words = ["--dataset", "folder", "--videos", "videos", "--out", "out", "--seconds", "1", "--scheduler", scheduler]
    command = [sys.executable, "-m", "bmlpipe.pipeline.cli", "extract", *words]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout.startswith("ok 1, failed 0, absent 0"), done.stderr
    assert [row.source for row in read_ledger(tmp_path / "out")] == ["x/1.mp4"]
    assert len(list((tmp_path / "out").glob("clips/*/*.h5"))) == 1


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    folder = tmp_path / "videos"
    folder.mkdir()
    for number in range(12):
        (folder / f"{number}.mp4").write_bytes(b"x")
    return folder


def test_a_clip_that_kills_its_worker_fails(videos: Path, tmp_path: Path) -> None:
    """The batch function kills its process on clip 7."""

    def batch_function(
        tasks: Sequence[ClipTask], request: ExtractionRequest, out: Path, videos: Path, timeout: ClipTimeout | None
    ) -> list[LedgerRow]:
        if any(task.clip.id == "7" for task in tasks):
            os.kill(os.getpid(), signal.SIGKILL)
        return [task.ledger_row(request, videos, stamp=task.stamp(request)) for task in tasks]

    clips = [Clip(str(number), "train", "x", f"{number}.mp4") for number in range(12)]
    manifest, request = Manifest("folder", ("x",), clips), ExtractionRequest((FrameOptions(),), 3)
    out, batches = tmp_path / "out", list[int]()
    with exclusive_folder(out, "extraction"):
        plan = make_plan(manifest, videos, out, request)
        counts = run_extraction(
            plan, workers=2, batch=4, progress=lambda rows: batches.append(len(rows)), extract=batch_function
        )
    assert counts == {"ok": 11, "failed": 1}
    rows = read_ledger(out)
    assert [row.id for row in rows] == [str(number) for number in range(12)]
    assert [(row.id, row.reason, row.source) for row in rows if row.status == "failed"] == [
        ("7", "worker_died", "7.mp4")
    ]
    assert sum(batches) == 12
    # The next run retries it only on request.
    kept = make_plan(manifest, videos, out, request).rows
    assert [row.reason for row in kept if row.id == "7"] == ["worker_died"]


def test_a_clip_that_hangs_fails_and_the_other_clips_are_kept(videos: Path, tmp_path: Path) -> None:
    """Clip 3 hangs in a C call, as in a decoder; clip 5 hangs only on the first try."""

    def batch_function(
        tasks: Sequence[ClipTask], request: ExtractionRequest, out: Path, videos: Path, timeout: ClipTimeout
    ) -> list[LedgerRow]:
        for task in tasks:
            with timeout.watch(task.clip.id):
                tried = videos / f"{task.clip.id}.tried"
                if task.clip.id == "3" or (task.clip.id == "5" and not tried.exists()):
                    tried.touch()
                    time.sleep(60)
        return [task.ledger_row(request, videos, stamp=task.stamp(request)) for task in tasks]

    clips = [Clip(str(number), "train", "x", f"{number}.mp4") for number in range(8)]
    manifest, request = Manifest("folder", ("x",), clips), ExtractionRequest((FrameOptions(),), 3)
    out = tmp_path / "out"
    with exclusive_folder(out, "extraction"):
        plan = make_plan(manifest, videos, out, request)
        counts = run_extraction(plan, workers=2, batch=4, clip_timeout=0.5, extract=batch_function)
    assert counts == {"ok": 7, "failed": 1}
    (row,) = [row for row in read_ledger(out) if row.status == "failed"]
    assert (row.id, row.reason) == ("3", "timeout")
    assert "longer than 0.5 s" in row.message
    assert "batch_function" in row.message
    assert not (out / ".hung").exists()


def test_a_worker_that_sees_other_files_returns_its_batch(videos: Path, tmp_path: Path) -> None:
    """Files that change after planning stand in for a worker that sees other folders."""
    out = tmp_path / "out"
    out.mkdir()
    (out / ".run-left").touch()
    tasks = [ClipTask(Clip(str(number), "train", "x", ""), Source(videos / f"{number}.mp4")) for number in range(2)]
    request, ends = ExtractionRequest((FrameOptions(),), 3), list[Exception]()

    def work(batch: Sequence[ClipTask]) -> list[LedgerRow]:
        if ends:
            (videos / "1.mp4").unlink()
            raise ends[0]
        readable = [task.source.video.exists() for task in batch]
        return [
            LedgerRow(task.clip.id, "train", "ok" if ok else "failed", "" if ok else "unreadable_file")
            for task, ok in zip(batch, readable)
        ]

    with run_marker(out) as marker:
        assert [path.name for path in out.iterdir()] == [marker.name]
        on_worker = OnSharedFolders(work, request, marker)
        batch = [TaskFiles.seen_now(task) for task in tasks]
        assert [row.status for row in on_worker(batch)] == ["ok", "ok"]
        (videos / "0.mp4").write_bytes(b"longer")
        with pytest.raises(UnfitWorkerError, match=r"0\.mp4 has 1 bytes here, it sees 6"):
            on_worker(batch)
        assert [files.seen_again().sizes for files in batch] == [(None,), (1,)]  # looked at again: the worker is fit
        assert [row.status for row in on_worker([files.seen_again() for files in batch])] == ["ok", "ok"]
        batch = [TaskFiles.seen_now(task) for task in tasks]
        ends.append(StoreWriteError("a mount was lost"))
        with pytest.raises(UnfitWorkerError, match=r"1\.mp4 has 1 bytes here, it does not see it"):
            on_worker(batch)
        gone = [TaskFiles.seen_now(task) for task in tasks]  # missing everywhere: the clip fails and the worker is fit
        ends.clear()
        assert [row.reason for row in on_worker(gone)] == ["", "unreadable_file"]
        elsewhere = OnSharedFolders(work, request, tmp_path / "unmounted" / marker.name)
        with pytest.raises(UnfitWorkerError, match=r"does not see the feature folder .*unmounted"):
            elsewhere(gone)
    assert list(out.iterdir()) == []
