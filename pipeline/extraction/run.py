"""Extract a whole data set: carry out a plan with a bounded number of batches in flight, and keep the ledger.

The rows of the manifest are always the sum of those that are ok, failed and absent, whatever happens during the run.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from functools import partial
from pathlib import Path

from bmlpipe.manifests.common.files import write_atomically
from bmlpipe.manifests.common.signals import signals_blocked
from bmlpipe.manifests.schema import write_clips
from bmlpipe.pipeline.cluster.batches import map_batches
from bmlpipe.pipeline.cluster.worker_pool import LocalWorkers
from bmlpipe.pipeline.extraction.clip_timeout import ClipTimeout
from bmlpipe.pipeline.extraction.plan import ExtractionPlan, stored_parameters
from bmlpipe.pipeline.extraction.request import ExtractionRequest
from bmlpipe.pipeline.extraction.shared_folders import map_on_scheduler
from bmlpipe.pipeline.extraction.task import ClipTask
from bmlpipe.pipeline.extraction.worker import extract_batch
from bmlpipe.pipeline.store.feature_file import FeatureStore, writing
from bmlpipe.pipeline.store.folder import FeatureFolder
from bmlpipe.pipeline.store.ledger import Ledger, LedgerRow
from bmlpipe.pipeline.store.versions import installed_versions

#: Called with the ledger rows of each finished batch.
OnBatch = Callable[[Sequence[LedgerRow]], None]


def run_extraction(
    plan: ExtractionPlan,
    *,
    workers: int = 1,
    scheduler: str | None = None,
    batch: int = 8,
    clip_timeout: float | None = None,
    progress: OnBatch = lambda rows: None,
    extract: Callable[..., list[LedgerRow]] = extract_batch,
) -> Counter[str]:
    """Carry out a plan. Make the plan and call this inside `bmlpipe.manifests.common.exclusive_folder`.

    Args:
        plan: The plan; see `make_plan`.
        workers: Number of processes of a Dask cluster on this machine; 0: extract in this process, without Dask.
        scheduler: An existing Dask scheduler to use instead: its address, or `file://` and the path of its scheduler
            file. Workers that do not see the same folders are not used.
        batch: Number of clips per Dask task.
        clip_timeout: Seconds that a clip may take on a cluster; a clip that takes longer twice fails with the reason
            `timeout`. Without a cluster there is no limit, since the process to end would be this one.
        progress: Called with the ledger rows of each finished batch.
        extract: Extracts one batch, in a worker; see `extract_batch`.

    Returns:
        Number of clips of the whole manifest per status.

    Raises:
        StoreWriteError: The folder cannot be written; features that are stored stay stored.
        ClusterError: The Dask scheduler cannot be reached, was lost during the run, or has no worker that can do the
            work; features that are stored stay stored.

    Examples:
        >>> with exclusive_folder(out, "extraction"):  # doctest: +SKIP
        ...     counts = run_extraction(make_plan(manifest, videos, out, request), workers=8)
    """
    out = plan.out
    with writing(out):
        _write_description(plan)
        FeatureStore(out).remove_leftovers()
    timeout = ClipTimeout(FeatureFolder(out).hung, clip_timeout) if clip_timeout and (scheduler or workers) else None
    function = partial(extract, request=plan.request, out=out, videos=plan.videos, timeout=timeout)
    starts = range(0, len(plan.tasks), batch)
    batches = (plan.tasks[start : start + batch] for start in starts)
    with ExitStack() as stack:
        ledger = stack.enter_context(Ledger(out, plan.rows))
        finished: Iterable[list[LedgerRow]]
        if not starts or (scheduler is None and workers == 0):
            finished = map(function, batches)
        else:
            died = partial(_died, request=plan.request, videos=plan.videos, timeout=timeout)
            if scheduler is None:
                on_dask = map_batches(function, batches, died, LocalWorkers(min(workers, len(starts))))
            else:
                on_dask = map_on_scheduler(function, batches, died, request=plan.request, out=out, scheduler=scheduler)
            finished = stack.enter_context(closing(on_dask))
        for rows in finished:
            with signals_blocked():  # a signal between the two would let the status differ from the ledger
                ledger.append(rows)
                progress(rows)
    if timeout:
        timeout.clean()
    return ledger.counts()


def _died(task: ClipTask, request: ExtractionRequest, videos: Path, timeout: ClipTimeout | None) -> list[LedgerRow]:
    """Make the ledger row of a clip whose worker died twice."""
    try:
        stamp = task.stamp(request)
    except OSError:
        stamp = ""
    row = task.ledger_row(request, videos, status="failed", stamp=stamp)
    where = timeout.pop_traceback(task.clip.id) if timeout else ""
    if timeout and where:
        message = f"the clip took longer than {timeout.seconds:g} s, twice; the second time it was in {where}"
        return [replace(row, reason="timeout", message=message)]
    message = "the worker process died twice on this clip (a crash of a decoder, or killed for its memory)"
    return [replace(row, reason="worker_died", message=message)]


def _write_description(plan: ExtractionPlan) -> None:
    """Write the description of the data set and the manifest into the feature folder."""
    manifest, folder = plan.manifest, FeatureFolder(plan.out)
    content = {
        "dataset": manifest.dataset,
        "classes": list(manifest.classes),
        "clips": manifest.counts(),
        "notes": list(manifest.notes),
        "features": {**stored_parameters(manifest, plan.out), **plan.request.parameters},
        "software": installed_versions(),
        "written": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    write_atomically(folder.dataset, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    write_clips(manifest.clips, folder.manifest)
