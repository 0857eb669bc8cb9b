"""The cost that Dask adds to extraction, and the gain from a second worker.

The same batches of the same clips (frames, spectrogram, HDF5) are extracted in alternating rounds: by a plain process
pool and by the Dask workers of `bmlpipe extract`, each with two workers and with one. CPU time (user + system) includes
this process and all its children. CPU time and wall-clock time are counted from the moment when each worker has
finished a batch; the time of starting up is printed separately, because it hardly matters in an extraction of hours.

Ratios: `dask_vs_pool_cpu` is the CPU time with Dask over that of the pool. `two_workers_vs_one` is the number of clips
per second with two workers over that with one. `two_in_a_pool_vs_one` is the same for the pool, the limit of the
machine. An even number of batches is counted.
"""

from __future__ import annotations

import argparse
import multiprocessing
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import psutil
from _measure import ratios, show, write
from extract import WITHOUT_FLOW, make_clips

from bmlpipe.manifests.common.locks import exclusive_folder
from bmlpipe.manifests.schema import Clip, Manifest
from bmlpipe.pipeline.extraction.plan import ExtractionPlan, make_plan
from bmlpipe.pipeline.extraction.run import run_extraction
from bmlpipe.pipeline.extraction.worker import extract_batch
from bmlpipe.pipeline.store.ledger import LedgerRow

BATCH = 8


def cpu_seconds() -> float:
    """CPU time (user + system) of this process and all living descendants, in seconds."""
    own = psutil.Process()
    times = [process.cpu_times() for process in (own, *own.children(recursive=True))]
    return sum(one.user + one.system for one in times)


class Stopwatch:
    """Measures the time from the first finished batches to the last one.

    Args:
        warm_up: Number of batches that are not counted: the first one of each worker, and those in progress
            at that time.

    Attributes:
        started: Seconds from the beginning to the end of the warm-up.
        cpu: CPU seconds per clip after the warm-up.
        wall: Wall-clock seconds per clip after the warm-up.
    """

    def __init__(self, warm_up: int) -> None:
        self._left, self._clips, self._begun = warm_up, 0, time.perf_counter()

    def batch(self, rows: Sequence[LedgerRow]) -> None:
        """Count a finished batch."""
        if any(row.status != "ok" for row in rows):
            raise RuntimeError(next(row.message for row in rows if row.status != "ok"))
        self._left -= 1
        if self._left == 0:
            self.started = time.perf_counter() - self._begun
            self._cpu, self._wall = cpu_seconds(), time.perf_counter()
        elif self._left < 0:
            self._clips += len(rows)
            self.cpu = (cpu_seconds() - self._cpu) / self._clips
            self.wall = (time.perf_counter() - self._wall) / self._clips


def on_pool(plan: ExtractionPlan, workers: int, watch: Stopwatch) -> None:
    """Extract with a plain process pool, as a program without Dask would."""
    batches = [plan.tasks[start : start + BATCH] for start in range(0, len(plan.tasks), BATCH)]
    function = partial(extract_batch, request=plan.request, out=plan.out, videos=plan.videos)
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        for rows in pool.imap_unordered(function, batches):
            watch.batch(rows)


def on_dask(plan: ExtractionPlan, workers: int, watch: Stopwatch) -> None:
    """Extract as `bmlpipe extract --workers` does."""
    with exclusive_folder(plan.out, "extraction"):
        run_extraction(plan, workers=workers, batch=BATCH, progress=watch.batch)


def rounds(folder: Path, count: int, repeats: int) -> Iterator[dict[str, Stopwatch]]:
    """Run each method once per round; the first round fills the page cache."""
    videos = folder / "videos"
    videos.mkdir()
    clips = make_clips(folder, 6, 250)
    for number in range(count):
        (videos / f"{number}.mp4").hardlink_to(clips[number % len(clips)])
    table = [Clip(str(number), "train", "x", f"{number}.mp4") for number in range(count)]
    manifest = Manifest("folder", ("x",), table)
    ways = {"pool 2": (on_pool, 2), "dask 2": (on_dask, 2), "dask 1": (on_dask, 1), "pool 1": (on_pool, 1)}
    for _ in range(repeats + 1):
        found = {}
        for name, (way, workers) in ways.items():
            out = folder / "out"
            watch = Stopwatch(2 * workers)
            way(make_plan(manifest, videos, out, WITHOUT_FLOW), workers, watch)
            shutil.rmtree(out)
            found[name] = watch
        yield found


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="file for the machine and the ratios")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--clips", type=int, default=192)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        _, *found = rounds(Path(name), options.clips, options.rounds)
    for what in ("cpu", "wall", "started"):
        rows = {way: [getattr(one[way], what) for one in found] for way in found[0]}
        title = {"cpu": "CPU ms per clip", "wall": "ms per clip", "started": "ms to the first batches"}[what]
        show(title, rows, 1e3, 1)
    costs = {
        f"{way} {what}": [getattr(one[way], what) for one in found] for way in found[0] for what in ("cpu", "wall")
    }
    pairs = {
        "dask_vs_pool_cpu": ("dask 2 cpu", "pool 2 cpu"),
        "two_workers_vs_one": ("dask 1 wall", "dask 2 wall"),
        "two_in_a_pool_vs_one": ("pool 1 wall", "pool 2 wall"),
    }
    write(options.json, ratios(costs, pairs), "av", "dask", "distributed")


if __name__ == "__main__":
    main()
