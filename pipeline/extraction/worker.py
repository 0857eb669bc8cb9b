"""The work of a worker on a batch of clips: find out what is missing, extract it, store it, and report.

The same function runs in Dask workers and in the process of the command; its arguments and results are plain data.
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

from bmlpipe.pipeline.extraction.clip import extract_clip
from bmlpipe.pipeline.extraction.clip_timeout import ClipTimeout
from bmlpipe.pipeline.extraction.freed_memory import keep_freed_memory
from bmlpipe.pipeline.extraction.request import ExtractionRequest
from bmlpipe.pipeline.extraction.task import ClipTask
from bmlpipe.pipeline.media.errors import ClipError
from bmlpipe.pipeline.media.source_file import SourceFile
from bmlpipe.pipeline.store.errors import StoreError, StoreWriteError
from bmlpipe.pipeline.store.feature_file import FeatureStore, StoredClip
from bmlpipe.pipeline.store.ledger import LedgerRow
from bmlpipe.pipeline.store.versions import installed_versions

_logger = logging.getLogger(__name__)


def extract_batch(
    tasks: Sequence[ClipTask], request: ExtractionRequest, out: Path, videos: Path, timeout: ClipTimeout | None = None
) -> list[LedgerRow]:
    """Extract clips one after the other. A clip that fails becomes a row of the ledger and does not stop the batch.

    Args:
        tasks: The clips.
        request: The features to make of each clip.
        out: Feature folder.
        videos: Folder that the ledger's source names are relative to.
        timeout: Time limit per clip, after which this process is ended; None: no limit.

    Returns:
        A ledger row for each clip, in order.

    Raises:
        StoreWriteError: The feature folder cannot be written (full disk, no permission). The run must stop; features
            that are stored stay stored.
    """
    keep_freed_memory()
    store = FeatureStore(out)
    rows = []
    for task in tasks:
        with timeout.watch(task.clip.id) if timeout else nullcontext():
            rows.append(_extract_task(task, request, store, videos))
    return rows


def _extract_task(task: ClipTask, request: ExtractionRequest, store: FeatureStore, videos: Path) -> LedgerRow:
    row = task.ledger_row(request, videos)
    try:
        row = replace(row, stamp=task.stamp(request))
        flags = _bring_up_to_date(task, request, store)
    except StoreWriteError:
        raise
    except ClipError as error:
        return replace(row, status="failed", reason=error.reason, message=error.message)
    except OSError as error:
        return replace(row, status="failed", reason="unreadable_file", message=str(error))
    except MemoryError as error:
        return replace(row, status="failed", reason="out_of_memory", message=str(error) or "no memory for this clip")
    except Exception as error:  # a bug of this package must cost one clip, not the whole run
        _logger.exception("internal error in clip %s", task.clip.id)
        where = traceback.extract_tb(error.__traceback__)[-1]
        message = f"{type(error).__name__}: {error} ({Path(where.filename).name}:{where.lineno})"
        return replace(row, status="failed", reason="internal_error", message=message)
    return replace(row, flags=" ".join(flags))


def _bring_up_to_date(task: ClipTask, request: ExtractionRequest, store: FeatureStore) -> Sequence[str]:
    """Extract the kinds that are missing or have other parameters, and keep the rest; return the clip's flags."""
    clip, video = task.clip, task.source.video
    old = _usable(task, store)
    missing = _outdated(old, request, video)
    if old is not None and not missing:
        return old.features.flags
    kept = old.parameters.keys() - missing if old is not None else set()
    if kept:
        try:
            old = store.read(clip.id, kept)
        except StoreError:  # the attributes are intact, but the data is damaged
            kept, missing = set(), set(request.kinds)
    sources = tuple(SourceFile.of(path) for path in task.files)  # first: a file that changes meanwhile is taken again
    part = request.only(missing)
    companions = {options.kind: options.companion(video) for options in part.front_ends}
    features = extract_clip(video, part, audio=task.source.audio, start=clip.start, duration=clip.duration)
    versions = installed_versions() | (request.ffmpeg.software() if request.ffmpeg is not None else {})
    new = StoredClip(
        id=clip.id,
        clip=(clip.start, clip.duration),
        sources=sources,
        parameters=dict(part.parameters),
        features=features,
        software=dict.fromkeys(missing, versions),
        companions={kind: identity for kind, identity in companions.items() if identity is not None},
    )
    if old is not None and kept:
        new = new.with_kept(old, kept)
    store.write(new)
    return new.features.flags


def _usable(task: ClipTask, store: FeatureStore) -> StoredClip | None:
    """Read the provenance of the stored features, if they were made from the same part of the same bytes."""
    try:
        old = store.read(task.clip.id, ())
    except StoreError:
        return None
    expected = (task.clip.id, (task.clip.start, task.clip.duration), len(task.files))
    if (old.id, old.clip, len(old.sources)) != expected:
        return None
    return old if all(file.same_content(path) for file, path in zip(old.sources, task.files)) else None


def _outdated(old: StoredClip | None, request: ExtractionRequest, video: Path) -> set[str]:
    """List the kinds of the request that are not stored, or were made with other parameters or companion files."""
    if old is None:
        return set(request.kinds)
    return {
        options.kind
        for options in request.front_ends
        if old.parameters.get(options.kind) != request.parameters[options.kind]
        or not options.companion_unchanged(old.companions.get(options.kind), video)
    }
