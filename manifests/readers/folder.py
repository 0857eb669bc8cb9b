"""A user's own data: one folder per class, or a CSV file."""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

from bmlpipe.manifests.readers.text_files import distinct, read_rows
from bmlpipe.manifests.schema import SPLITS, Clip, Manifest, ManifestError
from bmlpipe.manifests.video_files import CONTAINERS, split_name, walk

_REQUIRED = ("path", "label", "split")
_OPTIONAL = ("id", "start", "duration", "group")

_Row = tuple[Path, int, Clip, tuple[str, ...]]  # file, line, clip, its possible ids


def read(annotations: Path | None, videos: Path | None) -> Manifest:
    """Read a user's own data set.

    A clip without an id gets its path without suffix, followed by `@start` if the row states a start. Where two clips
    would have the same id, the suffix is kept and, if need be, `+duration` is appended. The classes are the labels,
    sorted; if all labels are whole numbers, they are sorted as numbers.

    Args:
        annotations: CSV file with the columns path, label, split and optionally id, start and duration (in seconds)
            and group, in any order, named by a header. Paths are relative to `videos`. None: each folder in `videos`
            is a class, or `videos` contains folders train, val and test, and these contain the classes.
        videos: Folder of the video files; may be None if annotations are given.

    Returns:
        Clips in the order of the file, or sorted by path.

    Raises:
        ManifestError: A row is malformed, a path leads out of `videos`, or the folders contain no clips.
    """
    if annotations is not None:
        rows, notes = _read_csv(annotations, videos)
        clips, repeated = distinct(_named(rows))
        notes += repeated
    elif videos is not None:
        clips, notes = _scan(videos)
    else:
        raise ManifestError(
            "the data set `folder` needs the folder of videos, or a CSV file as annotations: give one of them, or both"
        )
    return Manifest("folder", _sorted_labels({clip.label for clip in clips}), clips, notes)


def _sorted_labels(labels: set[str]) -> tuple[str, ...]:
    if all(label.isdecimal() and len(label) < 19 for label in labels):
        return tuple(sorted(labels, key=lambda label: (int(label), label)))
    return tuple(sorted(labels))


def _read_csv(path: Path, videos: Path | None) -> tuple[list[_Row], tuple[str, ...]]:
    lines = read_rows(path)
    header = [name.lower() for name in next(lines, (1, []))[1]]
    missing = [name for name in _REQUIRED if name not in header]
    if missing:
        raise ManifestError(f"{path}, line 1: the header {header} lacks the columns {', '.join(missing)}: add them")
    used = [name for name in header if name in _REQUIRED + _OPTIONAL]
    if len(set(used)) != len(used):
        raise ManifestError(f"{path}, line 1: a column occurs twice in the header {header}: delete one")
    other = [name for name in header if name and name not in used]
    rows = [_row(path, line, header, fields, videos) for line, fields in lines]
    if not rows:
        raise ManifestError(f"{path} contains a header and no clips: add a row for each clip")
    return rows, ((f"columns not used: {', '.join(other)}",) if other else ())


def _row(path: Path, line: int, header: list[str], fields: list[str], videos: Path | None) -> _Row:
    where = f"{path}, line {line}"
    if len(fields) != len(header):
        raise ManifestError(f"{where}: the row has {len(fields)} fields, the header has {len(header)}: quote commas")
    value = dict(zip(header, fields))
    if not value["label"]:
        raise ManifestError(f"{where}: the label is empty: give the name of a class")
    if value["split"] not in SPLITS:
        raise ManifestError(f"{where}: split is {value['split']!r}: must be one of {', '.join(SPLITS)}")
    start = _seconds(value.get("start", ""), f"{where}: start")
    duration = _seconds(value.get("duration", ""), f"{where}: duration")
    if duration == 0:
        raise ManifestError(f"{where}: duration is 0: give a length in seconds, or leave it empty for the whole file")
    source = _inside(value["path"], videos, where)
    name = value.get("id", "")
    ids = (name,) if name else _ids(source, start, duration)
    split, label, group = sys.intern(value["split"]), sys.intern(value["label"]), value.get("group", "")
    clip = Clip(ids[0], split, label, source, start or 0.0, duration, group)
    return path, line, clip, ids


def _seconds(text: str, where: str) -> float | None:
    try:
        value = float(text) if text else None
    except ValueError:
        raise ManifestError(f"{where} is {text!r}: must be a number of seconds") from None
    if value is not None and not (math.isfinite(value) and value >= 0):
        raise ManifestError(f"{where} is {text!r}: must be finite and not negative")
    return value


def _inside(text: str, videos: Path | None, where: str) -> str:
    """Return the path relative to `videos`, with `/`; refuse a path that leads out of it."""
    path = PurePosixPath(text)
    if path.is_absolute() and videos is not None:
        for folder in (videos.absolute(), videos.resolve()):
            if path.is_relative_to(folder):
                path = path.relative_to(folder)
    if path.is_absolute() or ".." in path.parts or not path.name:
        raise ManifestError(f"{where}: path is {text!r}: must name a file inside the videos' folder {videos or ''}")
    return str(path)


def _ids(path: str, start: float | None, duration: float | None) -> tuple[str, ...]:
    """Return the possible ids of a clip, from short to long."""
    stem = str(PurePosixPath(path).with_name(split_name(path)[0]))
    at = "" if start is None else f"@{_number(start)}"
    length = "" if duration is None else f"+{_number(duration)}"
    return stem + at, path + at, path + at + length


def _number(seconds: float) -> str:
    return repr(seconds).removesuffix(".0")


def _named(rows: Sequence[_Row]) -> Iterator[tuple[Path, int, Clip]]:
    """Give each clip its shortest id that no other clip has; repeated rows share one."""
    names = {(clip, ids): ids[0] for _, _, clip, ids in rows}
    for length in (1, 2):
        count = Counter(names.values())
        names = {
            (clip, ids): ids[min(length, len(ids) - 1)] if count[name] > 1 else name
            for (clip, ids), name in names.items()
        }
    for path, line, clip, ids in rows:
        yield path, line, replace(clip, id=names[clip, ids])


def _scan(videos: Path) -> tuple[list[Clip], tuple[str, ...]]:
    if not videos.is_dir():
        raise ManifestError(f"videos is {videos}, which is not a folder: give the folder of the class folders")
    paths = sorted(path for path in walk(videos) if split_name(path)[1] in CONTAINERS)
    top = {path.partition("/")[0] for path in paths if "/" in path}
    splits, others = top & set(SPLITS), top - set(SPLITS)
    if len(splits) > 1 and others:
        raise ManifestError(
            f"{videos} contains {', '.join(sorted(splits))} and {min(others)}, which is not a split: move it away, or "
            "write a CSV file"
        )
    by_split = bool(splits) and not others
    rows: list[_Row] = []
    loose: list[str] = []
    for path in paths:
        try:
            path.encode()
        except UnicodeEncodeError as error:
            raise ManifestError(f"{videos} contains {path!r}, whose name is not UTF-8: rename the file") from error
        *folders, _ = path.split("/")
        if len(folders) <= by_split:
            loose.append(path)
            continue
        ids = _ids(path, None, None)
        split, label = (folders[0], folders[1]) if by_split else ("train", folders[0])
        clip = Clip(ids[0], sys.intern(split), sys.intern(label), path)
        rows.append((videos, 0, clip, ids))
    if not rows:
        raise ManifestError(
            f"{videos} contains no video files ({' '.join(CONTAINERS)}) in class folders, and {len(loose)} outside "
            "of them: move them into one folder per class"
        )
    notes = (
        (f"{len(loose)} video files outside of class folders were left out, the first is {loose[0]}",) if loose else ()
    )
    return [clip for _, _, clip in _named(rows)], notes
