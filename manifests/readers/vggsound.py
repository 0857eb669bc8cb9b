"""VGGSound (Chen et al., 2020): 10 s clips from YouTube, 309 sound classes."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

from bmlpipe.manifests.readers.text_files import distinct, read_rows, split_files
from bmlpipe.manifests.schema import SPLITS, Clip, Manifest, ManifestError

_YOUTUBE = re.compile(r"[A-Za-z0-9_-]+")
_START = re.compile(r"[0-9]{1,6}")
_FILE = re.compile(r"([A-Za-z0-9_-]+)_([0-9]{1,6})(?:\.[A-Za-z0-9]+)?")


def read(annotations: Path) -> Manifest:
    """Read the official lists. The classes are the labels, sorted.

    Args:
        annotations: `vggsound.csv` with rows `youtube_id,start_seconds,label,split`, without header; or the folder of
            the older release's `train.csv` and `test.csv` with rows `<id>_<start:06d>.mp4,label`, or one of these
            files.

    Returns:
        Clips; the id is `<youtube id>_<start:06d>`, the group is the YouTube id, since a video can give several clips.

    Raises:
        ManifestError: A row is malformed, or contradicts another row.
    """
    if annotations.is_dir() and (annotations / "vggsound.csv").is_file():
        annotations /= "vggsound.csv"
    if annotations.is_dir() or len(next(read_rows(annotations), (0, []))[1]) == 2:
        files = split_files(annotations, "{}.csv")
        clips, notes = distinct(row for split, path in files for row in _two_columns(path, split))
    else:
        clips, notes = distinct(_four_columns(annotations))
    if not clips:
        raise ManifestError(f"{annotations} contains no clips: give the official file")
    return Manifest("vggsound", tuple(sorted({clip.label for clip in clips})), clips, notes)


def _four_columns(path: Path) -> Iterator[tuple[Path, int, Clip]]:
    for line, row in read_rows(path):
        if len(row) != 4:
            raise ManifestError(
                f"{path}, line {line}: the row has {len(row)} columns, expected "
                "youtube_id,start_seconds,label,split: quote labels that contain a comma"
            )
        youtube, start, label, split = row
        if line == 1 and not _START.fullmatch(start) and split not in SPLITS:
            continue  # a header
        if not _YOUTUBE.fullmatch(youtube) or not _START.fullmatch(start):
            raise ManifestError(
                f"{path}, line {line}: {youtube!r},{start!r} must be a YouTube id and a start in whole seconds"
            )
        if split not in SPLITS:
            raise ManifestError(f"{path}, line {line}: split is {split!r}: must be one of {', '.join(SPLITS)}")
        yield path, line, _clip(path, line, youtube, int(start), label, split)


def _two_columns(path: Path, split: str) -> Iterator[tuple[Path, int, Clip]]:
    for line, row in read_rows(path):
        match = _FILE.fullmatch(row[0])
        if len(row) != 2 or not match:
            raise ManifestError(f"{path}, line {line}: {row} must be <youtube id>_<start:06d>.mp4,label")
        yield path, line, _clip(path, line, match[1], int(match[2]), row[1], split)


def _clip(path: Path, line: int, youtube: str, start: int, label: str, split: str) -> Clip:
    if not label:
        raise ManifestError(f"{path}, line {line}: the label is empty")
    return Clip(f"{youtube}_{start:06d}", sys.intern(split), sys.intern(label), group=youtube)
