"""The table of clips that every later stage starts from."""

from __future__ import annotations

import csv
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from itertools import chain
from pathlib import Path

from bmlpipe.manifests.common.errors import BmlpipeError
from bmlpipe.manifests.common.tables import write_csv

SPLITS = ("train", "val", "test")


class ManifestError(BmlpipeError):
    """An annotation file or manifest that cannot be read as what it should be.

    The message names the file (and line), the value, and what to do about it.
    """


@dataclass(frozen=True, slots=True)
class Clip:
    """One clip: a stretch of one video file with one label.

    Attributes:
        id: The data set's own name of the clip, unique in its manifest (VGGSound: `<youtube id>_<start:06d>`).
        split: `train`, `val` or `test`.
        label: Class name, one of the manifest's classes.
        path: Where the annotation says that the file is, relative to the videos' folder; empty where the
            annotation names an id only and the file is found by its name (`bmlpipe.manifests.locate`).
        start: Seconds into the source file at which the clip begins, 0 for a file that holds just the clip.
        duration: Length of the clip in seconds; None: to the end of the file.
        group: Clips of one group never stand in two splits made by us (UCF-101 group, CREMA-D actor); may be empty.
    """

    id: str
    split: str
    label: str
    path: str = ""
    start: float = 0.0
    duration: float | None = None
    group: str = ""


_COLUMNS = tuple(field.name for field in fields(Clip))


@dataclass(frozen=True)
class Manifest:
    """All clips of a data set, in the order of its annotation.

    Attributes:
        dataset: Name of the data set (`bmlpipe datasets`).
        classes: Class names; a clip's class id is the position of its label here. They come from the annotation,
            never from what is on disk, so that ids stay the same whatever could be downloaded.
        clips: The table.
        notes: What the reader noticed and how it resolved it (duplicates, a validation split made here).
    """

    dataset: str
    classes: tuple[str, ...]
    clips: Sequence[Clip]
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        known = set(self.classes)
        seen: set[str] = set()
        for clip in self.clips:
            if clip.id in seen:
                raise ManifestError(
                    f"clip id {clip.id!r} occurs twice in the manifest of {self.dataset}: ids must be unique"
                )
            seen.add(clip.id)
            if clip.label not in known:
                raise ManifestError(
                    f"clip {clip.id!r} has label {clip.label!r}, which is not one of the {len(known)} classes"
                )
            if clip.split not in SPLITS:
                raise ManifestError(f"clip {clip.id!r} has split {clip.split!r}: must be one of {', '.join(SPLITS)}")

    def counts(self) -> dict[str, int]:
        """Number of clips of each split, zero included."""
        found = Counter(clip.split for clip in self.clips)
        return {split: found[split] for split in SPLITS}


def write_clips(clips: Iterable[Clip], path: Path) -> None:
    """Write clips as CSV, columns in the order of `Clip`; `read_clips` reads them back exactly."""
    write_csv(path, chain([_COLUMNS], map(_cells, clips)))


def _cells(clip: Clip) -> list[str]:
    duration = "" if clip.duration is None else repr(clip.duration)
    return [clip.id, clip.split, clip.label, clip.path, repr(clip.start), duration, clip.group]


def read_clips(path: Path) -> list[Clip]:
    """Read what `write_clips` wrote.

    Raises:
        ManifestError: The header is another one or a number cannot be read.
    """
    with path.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        rows = csv.reader(file)
        header = next(rows, [])
        if tuple(header) != _COLUMNS:
            raise ManifestError(
                f"{path}: header is {header}, expected {list(_COLUMNS)}: not a table of clips of this version"
            )
        try:
            return [
                Clip(
                    id_,
                    sys.intern(split),
                    sys.intern(label),
                    source,
                    float(start),
                    float(duration) if duration else None,
                    group,
                )
                for id_, split, label, source, start, duration, group in rows
            ]
        except ValueError as error:
            raise ManifestError(f"{path}, line {rows.line_num}: {error}") from error
