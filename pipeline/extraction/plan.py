"""The plan of an extraction: the manifest compared with the files on disk and with the ledger of earlier runs.

A data set may have millions of rows. So only the state of each row is held in memory, and for clips to be extracted the
names of their files; tasks and ledger rows are made on request.
"""

from __future__ import annotations

import json
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, overload

from bmlpipe.manifests.locate import Locator, Source
from bmlpipe.manifests.schema import Clip, Manifest
from bmlpipe.pipeline.extraction.request import ExtractionRequest
from bmlpipe.pipeline.extraction.task import ClipTask
from bmlpipe.pipeline.store.errors import ExtractionError
from bmlpipe.pipeline.store.feature_file import FeatureStore
from bmlpipe.pipeline.store.folder import FeatureFolder
from bmlpipe.pipeline.store.ledger import NOT_TRIED, KnownRows, LedgerRow

_ABSENT, _TO_DO, _SETTLED = range(3)  # states of a clip


class ClipTasks(Sequence[ClipTask]):
    """The clips to be extracted, in the manifest's order; each task is made when it is requested.

    Args:
        clips: All clips of the manifest.
        videos: Folder of the source files.
    """

    def __init__(self, clips: Sequence[Clip], videos: Path) -> None:
        self._clips, self._videos = clips, videos
        self._positions = array("q")
        self._names: list[str] = []
        self._sounds: dict[int, str] = {}  # number of the task → its sound file

    def append(self, position: int, video: str, audio: str | None) -> None:
        """Add a clip.

        Args:
            position: Position of the clip in the manifest.
            video: Name of its video file, relative to the folder of videos.
            audio: Name of its separate sound file; None: there is none.
        """
        if audio is not None:
            self._sounds[len(self._names)] = audio
        self._positions.append(position)
        self._names.append(video)

    def __len__(self) -> int:
        return len(self._names)

    @overload
    def __getitem__(self, index: int) -> ClipTask: ...

    @overload
    def __getitem__(self, index: slice) -> list[ClipTask]: ...

    def __getitem__(self, index: int | slice) -> ClipTask | list[ClipTask]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        number = range(len(self))[index]
        source = Source.below(self._videos, self._names[number], self._sounds.get(number))
        return ClipTask(self._clips[self._positions[number]], source)


@dataclass(frozen=True)
class ExtractionPlan:
    """The work of one run.

    Attributes:
        manifest: All clips.
        videos: Folder of the source files, absolute: workers of a cluster have working folders of their own.
        out: Feature folder, absolute.
        request: The features to make of each clip.
        tasks: The clips to be extracted.
        known: Number of the other clips per status, all unchanged since an earlier run: `ok`, `failed`; or `absent`.
        states: State of each row of the manifest, for `rows`.
    """

    manifest: Manifest
    videos: Path
    out: Path
    request: ExtractionRequest
    tasks: ClipTasks
    known: Counter[str] = field(default_factory=Counter)
    states: bytearray = field(default_factory=bytearray, repr=False)

    def __str__(self) -> str:
        splits = ", ".join(f"{split} {count}" for split, count in self.manifest.counts().items())
        return (
            f"{self.manifest.dataset}: {len(self.states)} clips ({splits}); {len(self.tasks)} to do, "
            f"{self.known['ok']} done before, {self.known['failed']} failed before, "
            f"{self.known['absent']} without a file"
        )

    @property
    def rows(self) -> Iterator[LedgerRow]:
        """One ledger row for each clip of the manifest, in the manifest's order, with the state before the run.

        Rows of clips that are not extracted again come from the ledger on disk: iterate before it changes.
        """
        missing = f"no file of this clip below {self.videos}"
        message = "the run was stopped before this clip: run the same command again"
        absent = {"status": "absent", "reason": "not_found", "message": missing, "parameters": self.request.sha256}
        number = 0
        with KnownRows(self.out) as known:
            for clip, state in zip(self.manifest.clips, self.states, strict=True):
                old = known.find(clip.id)
                if state == _ABSENT:
                    yield LedgerRow(clip.id, clip.split, **absent)
                elif state == _TO_DO:
                    task = self.tasks[number]
                    number += 1
                    values = {"status": "failed", "reason": NOT_TRIED, "message": message}
                    yield task.ledger_row(self.request, self.videos, **values)
                elif old is not None:
                    yield old


def make_plan(
    manifest: Manifest, videos: Path, out: Path, request: ExtractionRequest, *, retry_failed: str | None = None
) -> ExtractionPlan:
    """Compare the manifest with the files on disk and with the ledger of earlier runs. Nothing is written.

    Args:
        manifest: All clips.
        videos: Folder of the source files; it is scanned once.
        out: Feature folder of this and earlier runs; it need not exist.
        request: The features to make of each clip.
        retry_failed: Extract failed clips again: those with this reason code, or all with `all`. Clips whose file,
            start, duration or parameters have changed are always extracted again.

    Raises:
        ExtractionError: The folder holds features of another data set.
        ManifestError: The folder of videos cannot be scanned.
    """
    videos, out = videos.absolute(), out.absolute()
    stored_parameters(manifest, out)
    locator, tasks = Locator(manifest.dataset, videos), ClipTasks(manifest.clips, videos)
    plan = ExtractionPlan(manifest, videos, out, request, tasks)
    with KnownRows(out) as known:
        for position, clip in enumerate(manifest.clips):
            names, old = locator.paths(clip), known.find(clip.id)
            if names is None:
                plan.states.append(_ABSENT)
                plan.known["absent"] += 1
            elif old is not None and _settled(old, ClipTask(clip, Source.below(videos, *names)), plan, retry_failed):
                plan.states.append(_SETTLED)
                plan.known[old.status] += 1
            else:
                plan.states.append(_TO_DO)
                tasks.append(position, *names)
    return plan


def _settled(old: LedgerRow, task: ClipTask, plan: ExtractionPlan, retry_failed: str | None) -> bool:
    """Return whether an earlier row still holds, so that the clip need not be extracted again."""
    new = task.ledger_row(plan.request, plan.videos)
    if (old.split, old.source, old.parameters) != (new.split, new.source, new.parameters):
        return False
    try:
        if old.stamp != task.stamp(plan.request):
            return False
    except OSError:
        return False  # the worker reports it
    if old.status == "ok":
        return FeatureStore(plan.out).path(old.id).is_file()
    return old.status == "failed" and retry_failed not in ("all", old.reason)


def stored_parameters(manifest: Manifest, out: Path) -> dict[str, Any]:
    """Read which feature kinds a folder holds, with their parameters; empty if it does not exist.

    Raises:
        ExtractionError: The folder is that of another data set, or its description is damaged.
    """
    path = FeatureFolder(out).dataset
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
