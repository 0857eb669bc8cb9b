"""People's own data: one folder a class, or a CSV file."""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

from bmlpipe.manifests.locate import CONTAINERS, split_name, walk
from bmlpipe.manifests.readers.text_files import distinct, read_rows
from bmlpipe.manifests.schema import SPLITS, Clip, Manifest, ManifestError

_REQUIRED = ("path", "label", "split")
_OPTIONAL = ("id", "start", "duration", "group")

_Row = tuple[Path, int, Clip, tuple[str, ...]]  # file, line, clip, its possible ids from short to long


def read(annotations: Path | None, videos: Path | None) -> Manifest:
    """Read a data set of one's own.

    A clip's id, where none is given, is its path without the suffix, and `@start` where the row has a start; the
    suffix stays, and `+duration` follows, where clips could not be told apart otherwise. Classes are the labels,
    sorted; labels that are all whole numbers are sorted as numbers.

    Args:
        annotations: CSV file with a header of path, label, split and, where wanted, id, start, duration (seconds) and
            group, in any order; paths are relative to `videos`. None: each folder in `videos` is a class, or
            `videos` holds folders train, val, test and these hold the classes.
        videos: Folder of the video files; may be None where annotations are given.

    Returns:
        Clips in the order of the file, or sorted by path.

    Raises:
        ManifestError: A row is wrong, a path leaves `videos`, or the folders hold no clips.
    """
    if annotations is not None:
        rows, notes = _read_csv(annotations, videos)
        clips, repeated = distinct(_named(rows))
        notes += repeated
    elif videos is not None:
        clips, notes = _scan(videos)
    else:
        raise ManifestError("folder: give the folder of videos, or a CSV file as annotations, or both")
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
        raise ManifestError(f"{path}, line 1: no column {', '.join(missing)} in the header {header}")
    used = [name for name in header if name in _REQUIRED + _OPTIONAL]
    if len(set(used)) != len(used):
        raise ManifestError(f"{path}, line 1: a column occurs twice in the header {header}")
    other = [name for name in header if name and name not in used]
    rows = [_row(path, line, header, fields, videos) for line, fields in lines]
    if not rows:
        raise ManifestError(f"{path}: holds a header and no clips")
    return rows, ((f"columns not used: {', '.join(other)}",) if other else ())


def _row(path: Path, line: int, header: list[str], fields: list[str], videos: Path | None) -> _Row:
    where = f"{path}, line {line}"
    if len(fields) != len(header):
        raise ManifestError(
            f"{where}: {len(fields)} fields, the header has {len(header)} (a field with a comma must be quoted)"
        )
    value = dict(zip(header, fields))
    if not value["label"]:
        raise ManifestError(f"{where}: the label is empty")
    if value["split"] not in SPLITS:
        raise ManifestError(f"{where}: split {value['split']!r} must be one of {', '.join(SPLITS)}")
    start = _seconds(value.get("start", ""), f"{where}: start")
    duration = _seconds(value.get("duration", ""), f"{where}: duration")
    if duration == 0:
        raise ManifestError(f"{where}: duration is 0: give a length in seconds, or nothing for the whole file")
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
    """The path relative to `videos`, with `/`; anything that leaves it is refused."""
    path = PurePosixPath(text)
    if path.is_absolute() and videos is not None:
        for folder in (videos.absolute(), videos.resolve()):
            if path.is_relative_to(folder):
                path = path.relative_to(folder)
    if path.is_absolute() or ".." in path.parts or not path.name:
        raise ManifestError(f"{where}: path {text!r} must name a file inside the videos' folder {videos or ''}")
    return str(path)


def _ids(path: str, start: float | None, duration: float | None) -> tuple[str, ...]:
    """Ids from short to long."""
    stem = str(PurePosixPath(path).with_name(split_name(path)[0]))
    at = "" if start is None else f"@{_number(start)}"
    length = "" if duration is None else f"+{_number(duration)}"
    return stem + at, path + at, path + at + length


def _number(seconds: float) -> str:
    return repr(seconds).removesuffix(".0")


def _named(rows: Sequence[_Row]) -> Iterator[tuple[Path, int, Clip]]:
    """Give each clip the shortest of its ids that no other clip has; repeated rows share theirs."""
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
        raise ManifestError(f"videos {videos}: is no folder: give the one that holds a folder for each class")
    paths = sorted(path for path in walk(videos) if split_name(path)[1] in CONTAINERS)
    top = {path.partition("/")[0] for path in paths if "/" in path}
    splits, others = top & set(SPLITS), top - set(SPLITS)
    if len(splits) > 1 and others:
        raise ManifestError(
            f"{videos}: holds {', '.join(sorted(splits))} beside {min(others)}, which is no split: "
            "move what is no split away, or write a CSV file"
        )
    by_split = bool(splits) and not others
    rows: list[_Row] = []
    loose: list[str] = []
    for path in paths:
        try:
            path.encode()
        except UnicodeEncodeError as error:
            raise ManifestError(f"{videos}: file name {path!r} is not UTF-8: rename the file") from error
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
            f"{videos}: no video files ({' '.join(CONTAINERS)}) in a folder for each class: {len(loose)} stand loose"
        )
    notes = (f"{len(loose)} video files in no class folder left out, the first is {loose[0]}",) if loose else ()
    return [clip for _, _, clip in _named(rows)], notes
