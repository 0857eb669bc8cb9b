"""Extraction of a whole data set: plan, run on Dask with a bounded number of batches in flight, keep the ledger.

Rows of the manifest = ok + failed + absent, whatever happens in between.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bmlpipe.manifests.locate import Locator
from bmlpipe.manifests.schema import Manifest, write_clips
from bmlpipe.pipeline.ledger import Ledger, Row
from bmlpipe.pipeline.software import software
from bmlpipe.pipeline.store import FeatureStore
from bmlpipe.pipeline.work import Recipe, Task, extract_batch, stamp

_logger = logging.getLogger(__name__)

MANIFEST_FILE = "manifest.csv"
DATASET_FILE = "dataset.json"

Progress = Callable[[Sequence[Row]], None]


class ExtractionError(Exception):
    """A run that cannot start or go on; the message says why and what to do."""


@dataclass(frozen=True)
class Plan:
    """What a run will do.

    Attributes:
        tasks: Clips to hand to workers.
        done: Clips that the ledger and their files' stamps show to be done already.
        failed: Clips that failed before, unchanged since, and are not to be tried again.
        absent: Clips without a file.
    """

    tasks: Sequence[Task]
    done: Sequence[Row]
    failed: Sequence[Row]
    absent: Sequence[Row]


def make_plan(manifest: Manifest, videos: Path, out: Path, recipe: Recipe, *, retry_failed: str | None = None) -> Plan:
    """Compare the manifest with what is on disk and with what earlier runs recorded.

    Args:
        manifest: All clips.
        videos: Folder of the source files, scanned once.
        out: Feature folder of this and earlier runs.
        recipe: What is wanted.
        retry_failed: Take failed clips again: those with this reason code, or all for `all`. Clips whose file or
            parameters have changed are always taken again.
    """
    ledger, store, locator = Ledger(out), FeatureStore(out), Locator(manifest.dataset, videos)
    tasks: list[Task] = []
    done: list[Row] = []
    failed: list[Row] = []
    absent: list[Row] = []
    for clip in manifest.clips:
        source = locator.find(clip)
        if source is None:
            message = f"no file of this clip below {videos}"
            absent.append(Row(clip.id, clip.split, "absent", "not_found", message, parameters=recipe.sha256))
            continue
        old = ledger.rows.get(clip.id)
        try:
            unchanged = old is not None and old.parameters == recipe.sha256 and old.stamp == stamp(source)
        except OSError:
            unchanged = False  # the worker reports it
        if old is not None and unchanged and old.split == clip.split:
            if old.status == "ok" and store.path(clip.id).is_file():
                done.append(old)
                continue
            if old.status == "failed" and retry_failed not in ("all", old.reason):
                failed.append(old)
                continue
        tasks.append(Task(clip, source))
    return Plan(tasks, done, failed, absent)


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def claimed(out: Path) -> Iterator[None]:
    """Hold the feature folder for this run.

    Raises:
        ExtractionError: Another run holds it, or it cannot be written.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        file = (out / ".lock").open("w")
    except OSError as error:
        raise ExtractionError(f"{out} cannot be written ({error.strerror}): choose another --out or mend it") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ExtractionError(
                f"another extraction is writing into {out}: wait for it, or choose another --out"
            ) from error
        yield


def run(
    manifest: Manifest,
    videos: Path,
    out: Path,
    recipe: Recipe,
    plan: Plan,
    *,
    workers: int = 1,
    scheduler: str | None = None,
    batch: int = 8,
    progress: Progress = lambda rows: None,
) -> Counter[str]:
    """Do what the plan says; call it inside `claimed`.

    Args:
        manifest: All clips.
        videos: Folder of the source files.
        out: Feature folder.
        recipe: What to make.
        plan: From `make_plan`.
        workers: Processes of the local Dask cluster; 0: no Dask, in this process.
        scheduler: Address of an existing Dask scheduler instead, whose workers see the same folders.
        batch: Clips a Dask task.
        progress: Called with the rows of each finished batch.

    Returns:
        Number of clips of each status, of the whole manifest.

    Raises:
        ExtractionError: The folder belongs to another data set.
        StoreWriteError: The folder cannot be written; what is done stays done.
    """
    write_description(manifest, out, recipe)
    FeatureStore(out).sweep()
    ledger = Ledger(out)
    ledger.append([*plan.absent, *plan.done, *plan.failed])
    batches = [plan.tasks[start : start + batch] for start in range(0, len(plan.tasks), batch)]
    # Absolute paths: the workers of a cluster have working folders of their own.
    arguments = (recipe, out.absolute(), videos.absolute())
    finished: Iterable[list[Row]]
    if not batches:
        finished = ()
    elif scheduler is None and workers == 0:
        finished = (extract_batch(tasks, *arguments) for tasks in batches)
    else:
        finished = _on_dask(batches, arguments, workers, scheduler)
    for rows in finished:
        ledger.append(rows)
        progress(rows)
    ledger.finish([clip.id for clip in manifest.clips])
    return Counter(ledger.rows[clip.id].status for clip in manifest.clips)


def _on_dask(
    batches: Sequence[Sequence[Task]], arguments: tuple[Any, ...], workers: int, scheduler: str | None
) -> Iterator[list[Row]]:
    """Run batches on Dask, at most two a worker in flight.

    A batch whose worker died is taken apart and its clips tried singly; a clip that kills its worker again is
    recorded as failed.
    """
    import dask
    from distributed import Client, LocalCluster, as_completed
    from distributed.scheduler import KilledWorker

    settings = {
        "distributed.scheduler.allowed-failures": 0,  # we decide ourselves what is tried again
        "distributed.worker.daemon": True,
        "distributed.admin.large-graph-warning-threshold": "1GB",
    }
    with dask.config.set(settings):
        cluster = scheduler or LocalCluster(
            n_workers=workers, threads_per_worker=1, processes=True, dashboard_address=None, silence_logs=logging.ERROR
        )
        with Client(cluster) as client:
            waiting = deque(batches)
            flying: dict[Any, Sequence[Task]] = {}
            completed = as_completed()

            def fill() -> None:
                slots = 2 * max(1, sum(client.ncores().values()))
                while waiting and len(flying) < slots:
                    tasks = waiting.popleft()
                    future = client.submit(extract_batch, tasks, *arguments, pure=False)
                    flying[future] = tasks
                    completed.add(future)

            fill()
            for future in completed:
                tasks = flying.pop(future)
                try:
                    yield future.result()
                except KilledWorker:
                    if len(tasks) > 1:
                        waiting.extendleft([task] for task in tasks)
                    else:
                        yield [_died(tasks[0], arguments[0])]
                fill()
        if scheduler is None:
            cluster.close()


def _died(task: Task, recipe: Recipe) -> Row:
    message = f"the worker process died twice on {task.source.video.name} (crash of a decoder, or killed for memory)"
    row = Row(task.clip.id, task.clip.split, "failed", "worker_died", message, parameters=recipe.sha256)
    try:
        return Row(**{**{name: getattr(row, name) for name in row.__slots__}, "stamp": stamp(task.source)})
    except OSError:
        return row


def write_description(manifest: Manifest, out: Path, recipe: Recipe) -> None:
    """Put the manifest and the features' parameters beside the features.

    Raises:
        ExtractionError: The folder holds another data set.
    """
    path = out / DATASET_FILE
    features: dict[str, Any] = {}
    if path.is_file():
        old = json.loads(path.read_text(encoding="utf-8"))
        if old["dataset"] != manifest.dataset or tuple(old["classes"]) != manifest.classes:
            raise ExtractionError(
                f"{out} holds features of {old['dataset']} with {len(old['classes'])} classes, not of "
                f"{manifest.dataset} with these {len(manifest.classes)}: choose another --out"
            )
        features = old["features"]
    content = {
        "dataset": manifest.dataset,
        "classes": list(manifest.classes),
        "clips": manifest.counts(),
        "notes": list(manifest.notes),
        "features": {**features, **recipe.parameters},
        "software": software(),
        "written": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    for name, text in ((DATASET_FILE, json.dumps(content, indent=1, ensure_ascii=False) + "\n"), (MANIFEST_FILE, None)):
        temporary = out / f"{name}.writing"
        with temporary.open("w", encoding="utf-8", newline="") as file:
            if text is None:
                write_clips(manifest.clips, file)
            else:
                file.write(text)
        temporary.replace(out / name)
