"""Plans of large manifests: rows of the last run are found in any order, and a row takes little memory."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from bmlpipe.manifests.common.locks import exclusive_folder
from bmlpipe.manifests.datasets import read_manifest
from bmlpipe.manifests.schema import Clip, Manifest
from bmlpipe.pipeline.extraction.plan import make_plan
from bmlpipe.pipeline.extraction.request import ExtractionRequest
from bmlpipe.pipeline.extraction.run import run_extraction
from bmlpipe.pipeline.front_ends.frames import FrameOptions
from bmlpipe.pipeline.store.ledger import NOT_TRIED, KnownRows, Ledger, LedgerRow, read_ledger

REQUEST = ExtractionRequest((FrameOptions(),), 10)


def rows_of(ids: Iterable[str], status: str = "ok") -> list[LedgerRow]:
    return [LedgerRow(id_, "train", status, "" if status == "ok" else NOT_TRIED) for id_ in ids]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Feature folder of a run over clips a to f that was killed after clips e and b."""
    with pytest.raises(RuntimeError), Ledger(tmp_path, rows_of("abcdef", "failed")) as ledger:
        ledger.append(rows_of("e"))
        ledger.append(rows_of("b"))
        raise RuntimeError("killed")
    return tmp_path


@pytest.mark.parametrize("order", ["abcdef", "fedcba", "cafebd", "xaybzc", "f", ""])
def test_rows_are_found_in_any_order(folder: Path, order: str) -> None:
    with KnownRows(folder) as known:
        found = {id_: known.find(id_) for id_ in order}
    for id_, row in found.items():
        if id_ in "abcdef":
            assert row == rows_of(id_, "ok" if id_ in "be" else "failed")[0]
        else:
            assert row is None


def test_rows_read_in_the_order_of_the_table_are_not_kept(folder: Path) -> None:
    with KnownRows(folder) as known:
        for id_ in "abcdef":
            known.find(id_)
            assert not known._skipped
        assert known.find("g") is None


def test_the_tasks_of_a_plan_are_a_sequence(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    for name in ("1.flv", "3.mp4", "3.wav"):
        (tmp_path / name).write_bytes(b"x")
    clips = [Clip(str(number), "train", "x") for number in range(5)]
    tasks = make_plan(Manifest("cremad", ("x",), clips), tmp_path, tmp_path / "out", REQUEST).tasks
    assert [task.clip.id for task in tasks] == ["1", "3"]
    assert [task.source.video.name for task in tasks] == ["1.flv", "3.mp4"]
    assert [task.source.audio for task in tasks] == [None, tmp_path / "3.wav"]
    assert tasks[-1] == tasks[1] == tasks[0:9][1]
    assert (len(tasks), tasks[1:1]) == (2, [])
    with pytest.raises(IndexError):
        tasks[2]


def test_repeated_plans_agree_with_the_ledger(tmp_path: Path) -> None:
    """Failed and absent clips alternate; after the first run one file is added and one removed."""
    videos, out = tmp_path / "videos", tmp_path / "out"
    videos.mkdir()
    clips = [Clip(f"{number}", "train", "x", f"{number}.mp4") for number in range(30)]
    manifest = Manifest("folder", ("x",), clips)
    for number in range(0, 30, 3):
        (videos / f"{number}.mp4").write_bytes(b"x")
    for step in range(3):
        with exclusive_folder(out, "extraction"):
            plan = make_plan(manifest, videos, out, REQUEST)
            planned = list(plan.rows)
            assert [row.id for row in planned] == [clip.id for clip in clips]
            assert sum(row.reason == NOT_TRIED for row in planned) == len(plan.tasks) == (10, 1, 0)[step]
            assert plan.known.total() + len(plan.tasks) == 30
            counts = run_extraction(plan, workers=0, batch=4)
        present = {f"{number}" for number in range(30) if (videos / f"{number}.mp4").exists()}
        assert counts == {"failed": len(present), "absent": 30 - len(present)}
        assert {row.id for row in read_ledger(out) if row.status == "failed"} == present
        if step == 0:
            (videos / "1.mp4").write_bytes(b"x")
            (videos / "27.mp4").unlink()


def memory(work: Callable[[], object]) -> tuple[int, int]:
    """Measure the memory that `work` allocates in Python: at its peak and at its end, in bytes."""
    gc.collect()
    tracemalloc.start()
    try:
        kept = work()
        after, peak = tracemalloc.get_traced_memory()
        del kept
    finally:
        tracemalloc.stop()
    return peak, after


@pytest.mark.slow
def test_memory_per_row_is_small(tmp_path: Path) -> None:
    """Memory for reading the annotations, and for planning and running, by tracemalloc; all clips are absent."""
    (tmp_path / "videos").mkdir()
    reading, planning = {}, {}
    for rows in (1000, 6000):
        annotation, out = tmp_path / f"{rows}.csv", tmp_path / f"out{rows}"
        annotation.write_text("".join(f"clip{number:07d},30,class {number % 9},train\n" for number in range(rows)))
        manifests: list[Manifest] = []
        reading[rows] = memory(lambda: manifests.append(read_manifest("vggsound", annotation)))  # noqa: B023

        def plan_and_run_twice() -> object:
            for _ in range(2):
                with exclusive_folder(out, "extraction"):  # noqa: B023
                    plan = make_plan(manifests[0], tmp_path / "videos", out, REQUEST)  # noqa: B023
                    run_extraction(plan, workers=0)
            return plan

        planning[rows] = memory(plan_and_run_twice)
    added = 5000
    assert (reading[6000][0] - reading[1000][0]) / added < 420
    assert (reading[6000][1] - reading[1000][1]) / added < 260
    assert (planning[6000][0] - planning[1000][0]) / added < 20
