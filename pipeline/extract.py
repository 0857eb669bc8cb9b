"""Extraction of a whole data set: plan, run with a bounded number of batches in flight, keep the ledger.

Rows of the manifest = ok + failed + absent, whatever happens in between.
"""

from __future__ import annotations

import fcntl
import json
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from bmlpipe.manifests.locate import Locator
from bmlpipe.manifests.schema import Manifest, write_clips
from bmlpipe.pipeline.cluster import map_batches
from bmlpipe.pipeline.ledger import NOT_TRIED, Ledger, Row, known_rows
from bmlpipe.pipeline.software import software
from bmlpipe.pipeline.store import FeatureStore, writing
from bmlpipe.pipeline.watchdog import TimeLimit
from bmlpipe.pipeline.work import Recipe, Task, extract_batch

_logger = logging.getLogger(__name__)

MANIFEST_FILE = "manifest.csv"
DATASET_FILE = "dataset.json"
_LOCK_FILE = ".lock"
_HUNG_FOLDER = ".hung"

Progress = Callable[[Sequence[Row]], None]


class ExtractionError(Exception):
    """A run that cannot start or go on; the message says why and what to do."""


@dataclass(frozen=True)
class Plan:
    """What a run will do.

    Attributes:
        manifest: All clips.
        videos: Folder of the source files, absolute: the workers of a cluster have working folders of their own.
        out: Feature folder, absolute.
        recipe: What is wanted.
        tasks: Clips to hand to workers.
        rows: A ledger row for each clip of the manifest, in its order, as things stand: `ok` done before and `failed`
            before, both unchanged since; `absent`; `failed`, `not_tried` for those of `tasks`.
    """

    manifest: Manifest
    videos: Path
    out: Path
    recipe: Recipe
    tasks: Sequence[Task]
    rows: Sequence[Row]

    def __str__(self) -> str:
        known = Counter(row.status for row in self.rows if row.reason != NOT_TRIED)
        splits = ", ".join(f"{split} {count}" for split, count in self.manifest.counts().items())
        return (
            f"{self.manifest.dataset}: {len(self.rows)} clips ({splits}); {len(self.tasks)} to do, "
            f"{known['ok']} done before, {known['failed']} failed before, {known['absent']} without a file"
        )


def make_plan(manifest: Manifest, videos: Path, out: Path, recipe: Recipe, *, retry_failed: str | None = None) -> Plan:
    """Compare the manifest with what is on disk and with what earlier runs recorded; writes nothing.

    Args:
        manifest: All clips.
        videos: Folder of the source files, scanned once.
        out: Feature folder of this and earlier runs; need not exist.
        recipe: What is wanted.
        retry_failed: Take failed clips again: those with this reason code, or all for `all`. Clips whose file,
            stretch or parameters have changed are always taken again.

    Raises:
        ExtractionError: The folder holds features of another data set.
        ManifestError: The videos' folder cannot be scanned.
    """
    videos, out = videos.absolute(), out.absolute()
    _old_features(manifest, out)
    known, store, locator = known_rows(out), FeatureStore(out), Locator(manifest.dataset, videos)
    tasks: list[Task] = []
    rows: list[Row] = []
    missing = f"no file of this clip below {videos}"  # one text for all rows: there may be millions
    for clip in manifest.clips:
        source = locator.find(clip)
        if source is None:
            rows.append(Row(clip.id, clip.split, "absent", "not_found", missing, parameters=recipe.sha256))
            continue
        task, old = Task(clip, source), known.get(clip.id)
        if old is not None and _settled(old, task.row(recipe, videos), task, store, retry_failed):
            rows.append(old)
            continue
        tasks.append(task)
        message = "the run was stopped before this clip: run the same command again"
        rows.append(task.row(recipe, videos, status="failed", reason=NOT_TRIED, message=message))
    return Plan(manifest, videos, out, recipe, tasks, rows)


def _settled(old: Row, new: Row, task: Task, store: FeatureStore, retry_failed: str | None) -> bool:
    """Whether an old row still says what a worker would find."""
    if (old.split, old.source, old.parameters) != (new.split, new.source, new.parameters):
        return False
    try:
        if old.stamp != task.stamp():
            return False
    except OSError:
        return False  # the worker reports it
    if old.status == "ok":
        return store.path(old.id).is_file()
    return old.status == "failed" and retry_failed not in ("all", old.reason)


@contextmanager
def claimed(out: Path) -> Iterator[None]:
    """Hold the feature folder for this run; it is made where it does not exist.

    Raises:
        ExtractionError: Another run holds it, or it cannot be written.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        file = (out / _LOCK_FILE).open("w")
    except OSError as error:
        raise ExtractionError(f"{out} cannot be written ({error.strerror}): choose another --out or mend it") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ExtractionError(
                f"another extraction is writing into {out}: wait for it, or choose another --out"
            ) from error
        except OSError as error:  # some network file systems
            _logger.warning("%s cannot be locked (%s): start no second extraction into it", out, error.strerror)
        yield


def run(
    plan: Plan,
    *,
    workers: int = 1,
    scheduler: str | None = None,
    batch: int = 8,
    time_limit: float | None = None,
    progress: Progress = lambda rows: None,
) -> Counter[str]:
    """Do what the plan says; make the plan and call this inside `claimed`.

    Args:
        plan: From `make_plan`.
        workers: Processes of a Dask cluster on this machine; 0: no Dask, in this process.
        scheduler: Address of an existing Dask scheduler instead, whose workers see the same folders.
        batch: Clips a Dask task.
        time_limit: Seconds that a clip may take on a cluster; one that takes longer twice fails with `timeout`. Without
            a cluster there is none: the process that would have to be ended is this one.
        progress: Called with the rows of each finished batch.

    Returns:
        Number of clips of each status, of the whole manifest.

    Raises:
        StoreWriteError: The folder cannot be written; what is done stays done.
        ClusterError: The Dask scheduler cannot be reached, or was lost on the way; what is done stays done.
    """
    out = plan.out
    with writing(out):
        _describe(plan)
        FeatureStore(out).sweep()
    limit = TimeLimit(out / _HUNG_FOLDER, time_limit) if time_limit and (scheduler or workers) else None
    function = partial(extract_batch, recipe=plan.recipe, out=out, videos=plan.videos, limit=limit)
    batches = [plan.tasks[start : start + batch] for start in range(0, len(plan.tasks), batch)]
    with ExitStack() as stack:
        ledger = stack.enter_context(Ledger(out, plan.rows))
        finished: Iterable[list[Row]]
        if not batches or (scheduler is None and workers == 0):
            finished = map(function, batches)
        else:
            died = partial(_died, recipe=plan.recipe, videos=plan.videos, limit=limit)
            on_dask = map_batches(function, batches, died, workers=min(workers, len(batches)), scheduler=scheduler)
            finished = stack.enter_context(closing(on_dask))
        for rows in finished:
            ledger.append(rows)
            progress(rows)
    if limit:
        limit.sweep()
    return ledger.counts()


def _died(task: Task, recipe: Recipe, videos: Path, limit: TimeLimit | None) -> list[Row]:
    try:
        stamp = task.stamp()
    except OSError:
        stamp = ""
    row = task.row(recipe, videos, status="failed", stamp=stamp)
    where = limit.struck(task.clip.id) if limit else ""
    if limit and where:
        message = f"it took longer than {limit.seconds:g} s, twice; the second time it was in {where}"
        return [replace(row, reason="timeout", message=message)]
    message = "the worker process died on it twice (a crash of a decoder, or killed for its memory)"
    return [replace(row, reason="worker_died", message=message)]


def _describe(plan: Plan) -> None:
    """Put the manifest and the features' parameters beside the features."""
    manifest = plan.manifest
    content = {
        "dataset": manifest.dataset,
        "classes": list(manifest.classes),
        "clips": manifest.counts(),
        "notes": list(manifest.notes),
        "features": {**_old_features(manifest, plan.out), **plan.recipe.parameters},
        "software": software(),
        "written": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
    temporary = plan.out / f"{DATASET_FILE}.writing"
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(plan.out / DATASET_FILE)
    temporary = plan.out / f"{MANIFEST_FILE}.writing"
    write_clips(manifest.clips, temporary)
    temporary.replace(plan.out / MANIFEST_FILE)


def _old_features(manifest: Manifest, out: Path) -> dict[str, Any]:
    """Feature kinds that the folder holds already, with their parameters; refuses another data set's folder."""
    path = out / DATASET_FILE
    if not path.is_file():
        return {}
    try:
        old = json.loads(path.read_text(encoding="utf-8"))
        dataset, classes, features = old["dataset"], tuple(old["classes"]), dict(old["features"])
    except (ValueError, KeyError, TypeError) as error:
        raise ExtractionError(f"{path} is damaged ({error}): delete it, or choose another --out") from error
    if (dataset, classes) != (manifest.dataset, manifest.classes):
        raise ExtractionError(
            f"{out} holds features of {dataset} with {len(classes)} classes, not of {manifest.dataset} with these "
            f"{len(manifest.classes)}: choose another --out"
        )
    return features
