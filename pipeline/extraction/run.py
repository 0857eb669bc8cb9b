"""Extraction of a whole data set: do what a plan says with a bounded number of batches in flight, keep the ledger.

Rows of the manifest = ok + failed + absent, whatever happens in between.
"""

from __future__ import annotations

import json
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from functools import partial
from pathlib import Path

from bmlpipe.manifests.common.files import write_atomically
from bmlpipe.manifests.schema import write_clips
from bmlpipe.pipeline.cluster.batches import map_batches
from bmlpipe.pipeline.cluster.worker_pool import LocalWorkers
from bmlpipe.pipeline.extraction.clip_timeout import TimeLimit
from bmlpipe.pipeline.extraction.plan import DATASET_FILE, ExtractionError, Plan, make_plan, old_features
from bmlpipe.pipeline.extraction.shared_folders import map_on_scheduler
from bmlpipe.pipeline.extraction.worker import Recipe, Task, extract_batch
from bmlpipe.pipeline.store.feature_file import FeatureStore, writing
from bmlpipe.pipeline.store.ledger import Ledger, Row
from bmlpipe.pipeline.store.versions import software

__all__ = ["DATASET_FILE", "MANIFEST_FILE", "ExtractionError", "Plan", "make_plan", "run"]

_logger = logging.getLogger(__name__)

MANIFEST_FILE = "manifest.csv"
_HUNG_FOLDER = ".hung"

Progress = Callable[[Sequence[Row]], None]


def run(
    plan: Plan,
    *,
    workers: int = 1,
    scheduler: str | None = None,
    batch: int = 8,
    time_limit: float | None = None,
    progress: Progress = lambda rows: None,
) -> Counter[str]:
    """Do what the plan says; make the plan and call this inside `exclusive_folder`.

    Args:
        plan: From `make_plan`.
        workers: Processes of a Dask cluster on this machine; 0: no Dask, in this process.
        scheduler: An existing Dask scheduler instead, by its address or `file://` and its scheduler file; workers of it
            that do not see the same folders are not used.
        batch: Clips a Dask task.
        time_limit: Seconds that a clip may take on a cluster; one that takes longer twice fails with `timeout`. Without
            a cluster there is none: the process that would have to be ended is this one.
        progress: Called with the rows of each finished batch.

    Returns:
        Number of clips of each status, of the whole manifest.

    Raises:
        StoreWriteError: The folder cannot be written; what is done stays done.
        ClusterError: The Dask scheduler cannot be reached, was lost on the way, or has no worker that can do the work;
            what is done stays done.
    """
    out = plan.out
    with writing(out):
        _describe(plan)
        FeatureStore(out).sweep()
    limit = TimeLimit(out / _HUNG_FOLDER, time_limit) if time_limit and (scheduler or workers) else None
    function = partial(extract_batch, recipe=plan.recipe, out=out, videos=plan.videos, limit=limit)
    starts = range(0, len(plan.tasks), batch)
    batches = (plan.tasks[start : start + batch] for start in starts)
    with ExitStack() as stack:
        ledger = stack.enter_context(Ledger(out, plan.rows))
        finished: Iterable[list[Row]]
        if not starts or (scheduler is None and workers == 0):
            finished = map(function, batches)
        else:
            died = partial(_died, recipe=plan.recipe, videos=plan.videos, limit=limit)
            if scheduler is None:
                on_dask = map_batches(function, batches, died, LocalWorkers(min(workers, len(starts))))
            else:
                on_dask = map_on_scheduler(function, batches, died, recipe=plan.recipe, out=out, scheduler=scheduler)
            finished = stack.enter_context(closing(on_dask))
        for rows in finished:
            ledger.append(rows)
            progress(rows)
    if limit:
        limit.sweep()
    return ledger.counts()


def _died(task: Task, recipe: Recipe, videos: Path, limit: TimeLimit | None) -> list[Row]:
    try:
        stamp = task.stamp(recipe.flow_images)
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
        "features": {**old_features(manifest, plan.out), **plan.recipe.parameters},
        "software": software(),
        "written": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
    write_atomically(plan.out / DATASET_FILE, text)
    write_clips(manifest.clips, plan.out / MANIFEST_FILE)
