"""What an extraction will do: the manifest against what is on disk and what earlier runs recorded.

A data set may have millions of rows. So nothing is held of a row but which case it is, and of a clip to be done the
names of its files; tasks and ledger rows are made when they are asked for.
"""

from __future__ import annotations

import json
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, overload

from bmlpipe.manifests.common.errors import BmlpipeError
from bmlpipe.manifests.locate import Locator, Source
from bmlpipe.manifests.schema import Clip, Manifest
from bmlpipe.pipeline.extraction.worker import Recipe, Task
from bmlpipe.pipeline.store.feature_file import FeatureStore
from bmlpipe.pipeline.store.ledger import NOT_TRIED, KnownRows, Row

DATASET_FILE = "dataset.json"

_ABSENT, _TO_DO, _SETTLED = range(3)


class ExtractionError(BmlpipeError):
    """A run that cannot start or go on; the message says why and what to do."""


class Tasks(Sequence[Task]):
    """The clips to be handed to workers, in the manifest's order; a task is made when it is taken.

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
        """Add the clip at a position of the manifest, with its files' names below the videos' folder."""
        if audio is not None:
            self._sounds[len(self._names)] = audio
        self._positions.append(position)
        self._names.append(video)

    def __len__(self) -> int:
        return len(self._names)

    @overload
    def __getitem__(self, index: int) -> Task: ...

    @overload
    def __getitem__(self, index: slice) -> list[Task]: ...

    def __getitem__(self, index: int | slice) -> Task | list[Task]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        number = range(len(self))[index]
        source = Source.below(self._videos, self._names[number], self._sounds.get(number))
        return Task(self._clips[self._positions[number]], source)


@dataclass(frozen=True)
class Plan:
    """What a run will do.

    Attributes:
        manifest: All clips.
        videos: Folder of the source files, absolute: the workers of a cluster have working folders of their own.
        out: Feature folder, absolute.
        recipe: What is wanted.
        tasks: Clips to hand to workers.
        known: Number of the other clips of each status: `ok` done before and `failed` before, both unchanged since;
            `absent`.
    """

    manifest: Manifest
    videos: Path
    out: Path
    recipe: Recipe
    tasks: Tasks
    known: Counter[str] = field(default_factory=Counter)
    cases: bytearray = field(default_factory=bytearray, repr=False)

    def __str__(self) -> str:
        splits = ", ".join(f"{split} {count}" for split, count in self.manifest.counts().items())
        return (
            f"{self.manifest.dataset}: {len(self.cases)} clips ({splits}); {len(self.tasks)} to do, "
            f"{self.known['ok']} done before, {self.known['failed']} failed before, "
            f"{self.known['absent']} without a file"
        )

    @property
    def rows(self) -> Iterator[Row]:
        """A ledger row for each clip of the manifest, in its order, as things stand before the run.

        Rows of clips that are settled come from the ledger on disk: take them before it changes.
        """
        missing = f"no file of this clip below {self.videos}"
        message = "the run was stopped before this clip: run the same command again"
        absent = {"status": "absent", "reason": "not_found", "message": missing, "parameters": self.recipe.sha256}
        number = 0
        with KnownRows(self.out) as known:
            for clip, case in zip(self.manifest.clips, self.cases, strict=True):
                old = known.find(clip.id)
                if case == _ABSENT:
                    yield Row(clip.id, clip.split, **absent)
                elif case == _TO_DO:
                    task = self.tasks[number]
                    number += 1
                    yield task.row(self.recipe, self.videos, status="failed", reason=NOT_TRIED, message=message)
                elif old is not None:
                    yield old


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
    old_features(manifest, out)
    locator, tasks = Locator(manifest.dataset, videos), Tasks(manifest.clips, videos)
    plan = Plan(manifest, videos, out, recipe, tasks)
    with KnownRows(out) as known:
        for position, clip in enumerate(manifest.clips):
            names, old = locator.names(clip), known.find(clip.id)
            if names is None:
                plan.cases.append(_ABSENT)
                plan.known["absent"] += 1
            elif old is not None and _settled(old, Task(clip, Source.below(videos, *names)), plan, retry_failed):
                plan.cases.append(_SETTLED)
                plan.known[old.status] += 1
            else:
                plan.cases.append(_TO_DO)
                tasks.append(position, *names)
    return plan


def _settled(old: Row, task: Task, plan: Plan, retry_failed: str | None) -> bool:
    """Whether an old row still says what a worker would find."""
    new = task.row(plan.recipe, plan.videos)
    if (old.split, old.source, old.parameters) != (new.split, new.source, new.parameters):
        return False
    try:
        if old.stamp != task.stamp(plan.recipe.flow_images):
            return False
    except OSError:
        return False  # the worker reports it
    if old.status == "ok":
        return FeatureStore(plan.out).path(old.id).is_file()
    return old.status == "failed" and retry_failed not in ("all", old.reason)


def old_features(manifest: Manifest, out: Path) -> dict[str, Any]:
    """Feature kinds that the folder holds already, with their parameters; refuses another data set's folder.

    Raises:
        ExtractionError: It is another data set's, or its description is damaged.
    """
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
