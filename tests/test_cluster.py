"""Dask: bounded, and a worker that dies costs one clip. Functions defined inside tests travel by value."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from bmlpipe.manifests.schema import Clip, Manifest
from bmlpipe.pipeline import extract
from bmlpipe.pipeline.cluster import ClusterError, map_batches
from bmlpipe.pipeline.frames import FrameOptions
from bmlpipe.pipeline.ledger import Row, read_ledger
from bmlpipe.pipeline.watchdog import TimeLimit
from bmlpipe.pipeline.work import Recipe, Task

pytestmark = pytest.mark.slow


def batches_of(count: int, size: int, pulled: list[int]) -> Iterator[Sequence[int]]:
    for first in range(0, count, size):
        pulled.append(first)
        yield range(first, min(first + size, count))


def died(item: int) -> list[tuple[int, str]]:
    return [(item, "died")]


def worker(killers: set[int], delay: float = 0.0) -> Callable[[Sequence[int]], list[tuple[int, str]]]:
    """A batch function whose process dies on some items."""

    def work(batch: Sequence[int]) -> list[tuple[int, str]]:
        time.sleep(delay)
        for item in batch:
            if item in killers:
                os.kill(os.getpid(), signal.SIGKILL)
        return [(item, "ok") for item in batch]

    return work


@pytest.fixture
def scheduler() -> Iterator[str]:
    """Address of a running cluster with one worker of two threads."""
    from distributed import LocalCluster

    with LocalCluster(n_workers=1, threads_per_worker=2, processes=True, dashboard_address=None) as cluster:
        yield cluster.scheduler_address


def test_a_worker_that_dies_costs_one_item_and_no_more_is_in_flight_than_two_batches_a_worker() -> None:
    killers, pulled, results = {5, 6, 31}, list[int](), list[tuple[int, str]]()
    for rows in map_batches(worker(killers), batches_of(60, 4, pulled), died, workers=2):
        results += rows
        assert len(pulled) <= 2 * 2 + -(-len(results) // 4) + 2 * len(killers) + 1
    assert dict(results) == {item: "died" if item in killers else "ok" for item in range(60)}
    assert len(results) == 60  # nothing twice


def test_batches_are_taken_only_when_there_is_room() -> None:
    pulled: list[int] = []
    results = map_batches(worker(set(), 0.01), batches_of(10**9, 1, pulled), died, workers=2)
    for number in range(1, 21):
        next(results)
        assert len(pulled) <= 4 + number
    results.close()  # and stopping in the middle closes the cluster


def test_an_existing_scheduler_is_used_and_left_running(scheduler: str) -> None:
    from distributed import Client

    pulled: list[int] = []
    for _ in range(2):
        results = [
            r
            for rows in map_batches(worker(set()), batches_of(9, 2, pulled), died, workers=0, scheduler=scheduler)
            for r in rows
        ]
        assert sorted(results) == [(item, "ok") for item in range(9)]
    with Client(scheduler) as client:
        assert sum(client.nthreads().values()) == 2


def test_an_error_of_the_function_arrives_here(scheduler: str) -> None:
    def fail(batch: Sequence[int]) -> list[tuple[int, str]]:
        raise LookupError("what the worker raised")

    with pytest.raises(LookupError, match="what the worker raised"):
        list(map_batches(fail, [[1]], died, workers=0, scheduler=scheduler))


def test_a_scheduler_that_does_not_answer_is_named() -> None:
    import dask

    with dask.config.set({"distributed.comm.timeouts.connect": "1s"}):
        for address in ("tcp://127.0.0.1:1", "carrier-pigeon://coop"):
            with pytest.raises(ClusterError, match=f"no Dask scheduler answers at {address}"):
                list(map_batches(worker(set()), [[1]], died, workers=1, scheduler=address))


def test_a_lost_scheduler_is_an_error_that_says_what_to_do() -> None:
    import dask
    from distributed import LocalCluster

    with (
        dask.config.set({"distributed.comm.timeouts.connect": "1s"}),
        LocalCluster(n_workers=1, threads_per_worker=1, processes=True, dashboard_address=None) as cluster,
    ):
        address = cluster.scheduler_address
        results = map_batches(worker(set(), 0.2), batches_of(99, 1, []), died, workers=0, scheduler=address)
        next(results)
        cluster.close()
        with pytest.raises(ClusterError, match="run the same command again"):
            list(results)


def test_relative_folders_work_on_workers_that_stand_elsewhere(
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


def test_a_clip_that_kills_its_worker_becomes_a_row(
    videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the place of `extract_batch`, a function whose process dies on one clip."""

    def batch_function(
        tasks: Sequence[Task], recipe: Recipe, out: Path, videos: Path, limit: TimeLimit | None
    ) -> list[Row]:
        if any(task.clip.id == "7" for task in tasks):
            os.kill(os.getpid(), signal.SIGKILL)
        return [task.row(recipe, videos, stamp=task.stamp()) for task in tasks]

    monkeypatch.setattr(extract, "extract_batch", batch_function)
    clips = [Clip(str(number), "train", "x", f"{number}.mp4") for number in range(12)]
    manifest, recipe = Manifest("folder", ("x",), clips), Recipe(3, FrameOptions())
    out, batches = tmp_path / "out", list[int]()
    with extract.claimed(out):
        plan = extract.make_plan(manifest, videos, out, recipe)
        counts = extract.run(plan, workers=2, batch=4, progress=lambda rows: batches.append(len(rows)))
    assert counts == {"ok": 11, "failed": 1}
    rows = read_ledger(out)
    assert [row.id for row in rows] == [str(number) for number in range(12)]
    assert [(row.id, row.reason, row.source) for row in rows if row.status == "failed"] == [
        ("7", "worker_died", "7.mp4")
    ]
    assert sum(batches) == 12
    # It is not tried again by itself.
    kept = extract.make_plan(manifest, videos, out, recipe).rows
    assert [row.reason for row in kept if row.id == "7"] == ["worker_died"]


def test_a_clip_that_hangs_becomes_a_row_and_the_others_are_not_lost(
    videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Clip 3 hangs inside a C call, as a decoder would; clip 5 only on the first try."""

    def batch_function(tasks: Sequence[Task], recipe: Recipe, out: Path, videos: Path, limit: TimeLimit) -> list[Row]:
        for task in tasks:
            with limit.watch(task.clip.id):
                tried = videos / f"{task.clip.id}.tried"
                if task.clip.id == "3" or (task.clip.id == "5" and not tried.exists()):
                    tried.touch()
                    time.sleep(60)
        return [task.row(recipe, videos, stamp=task.stamp()) for task in tasks]

    monkeypatch.setattr(extract, "extract_batch", batch_function)
    clips = [Clip(str(number), "train", "x", f"{number}.mp4") for number in range(8)]
    manifest, recipe = Manifest("folder", ("x",), clips), Recipe(3, FrameOptions())
    out = tmp_path / "out"
    with extract.claimed(out):
        plan = extract.make_plan(manifest, videos, out, recipe)
        counts = extract.run(plan, workers=2, batch=4, time_limit=0.5)
    assert counts == {"ok": 7, "failed": 1}
    (row,) = [row for row in read_ledger(out) if row.status == "failed"]
    assert (row.id, row.reason) == ("3", "timeout")
    assert "longer than 0.5 s" in row.message
    assert "batch_function" in row.message
    assert not (out / ".hung").exists()
