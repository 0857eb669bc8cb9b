"""The manifest: the clips of a data set, from which every later stage starts."""

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
"""Names of the splits."""


class ManifestError(BmlpipeError):
    """An annotation, a manifest or a folder of videos cannot be used.

    The message states the file and line, the value, and the remedy.
    """


@dataclass(frozen=True, slots=True)
class Clip:
    """One clip: a stretch of one video file with one label.

    Attributes:
        id: The data set's own name of the clip, unique in its manifest (VGGSound: `<youtube id>_<start:06d>`).
        split: `train`, `val` or `test`.
        label: Class name, one of the manifest's classes.
        path: Path of the file relative to the videos' folder, if the annotation states it. Empty if the annotation
            states an id only; then the file is found by its name (`bmlpipe.manifests.locate`).
        start: Start of the clip in its file, in seconds; 0 for a file that holds just the clip.
        duration: Length of the clip, in seconds; None: to the end of the file.
        group: Group that a validation split made by bmlpipe keeps together (UCF-101 group, CREMA-D actor); may be
            empty.
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
        classes: Class names. The class id of a clip is the position of its label here. They come from the annotation,
            never from the files on disk, so that ids do not depend on which clips could be downloaded.
        clips: The clips.
        notes: Changes that the reader made: repeated rows dropped, a validation split added.

    Raises:
        ManifestError: An id occurs twice, or a clip's label or split is unknown.
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
                    f"clip id {clip.id!r} occurs twice in the manifest of {self.dataset}: make the ids unique"
                )
            seen.add(clip.id)
            if clip.label not in known:
                raise ManifestError(
                    f"clip {clip.id!r} has label {clip.label!r}, which is not one of the {len(known)} classes"
                )
            if clip.split not in SPLITS:
                raise ManifestError(f"clip {clip.id!r} has split {clip.split!r}: must be one of {', '.join(SPLITS)}")

    def counts(self) -> dict[str, int]:
        """Count the clips per split, including splits without clips."""
        found = Counter(clip.split for clip in self.clips)
        return {split: found[split] for split in SPLITS}


def write_clips(clips: Iterable[Clip], path: Path) -> None:
    """Write clips as CSV, with the fields of `Clip` as columns; `read_clips` reads them back exactly.

    Args:
        clips: The clips.
        path: File to create or replace.
    """
    write_csv(path, chain([_COLUMNS], map(_cells, clips)))


def _cells(clip: Clip) -> list[str]:
    duration = "" if clip.duration is None else repr(clip.duration)
    return [clip.id, clip.split, clip.label, clip.path, repr(clip.start), duration, clip.group]


def read_clips(path: Path) -> list[Clip]:
    """Read clips from a CSV file that `write_clips` wrote.

    Args:
        path: The file.

    Raises:
        ManifestError: The header differs, or a number cannot be parsed.
    """
    with path.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        rows = csv.reader(file)
        header = next(rows, [])
        if tuple(header) != _COLUMNS:
            raise ManifestError(
                f"{path} has the header {header}, expected {list(_COLUMNS)}: run bmlpipe extract again to rewrite it"
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
