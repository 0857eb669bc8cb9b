"""UCF-101 (Soomro et al., 2012): 101 actions; the clips of a group were cut from one recording."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from bmlpipe.manifests.readers.text_files import distinct, read_lines
from bmlpipe.manifests.schema import Clip, Manifest, ManifestError

_CLASS = re.compile(r"([0-9]{1,4})\s+(\S+)")
_ENTRY = re.compile(r"([^/\s]+)/(v_\w+_(g[0-9]+)_c[0-9]+)\.\w+(?:\s+([0-9]{1,4}))?")


def read(annotations: Path, fold: int) -> Manifest:
    """Read `classInd.txt`, `trainlist0N.txt` and `testlist0N.txt`.

    The class of a clip is the folder in its path (`HandstandPushups`, whose files begin with `v_HandStandPushups_`).
    The number in the training list must agree with it.

    Args:
        annotations: Folder of the three files (`ucfTrainTestlist`).
        fold: Number N of the official split, 1 to 3.

    Returns:
        Clips; the id is the file name without suffix, the path is that of the list, the group is class and group
        (`Archery_g08`).

    Raises:
        ManifestError: A file is missing, or an entry is malformed.
    """
    if fold not in (1, 2, 3):
        raise ManifestError(f"fold is {fold}: must be one of the official splits 1, 2 and 3")
    if not annotations.is_dir():
        raise ManifestError(
            f"annotations is {annotations}, which is not a folder: give the folder of classInd.txt and the lists"
        )
    classes = _read_classes(annotations / "classInd.txt")
    files = {split: annotations / f"{split}list{fold:02d}.txt" for split in ("train", "test")}
    clips, notes = distinct(row for split, path in files.items() for row in _entries(path, split, classes))
    return Manifest("ucf101", classes, clips, notes)


def _read_classes(path: Path) -> tuple[str, ...]:
    classes: list[str] = []
    for line, text in read_lines(path):
        match = _CLASS.fullmatch(text)
        if not match or int(match[1]) != len(classes) + 1 or match[2] in classes:
            raise ManifestError(f"{path}, line {line}: {text!r} must be '{len(classes) + 1} <new class name>'")
        classes.append(match[2])
    return tuple(classes)


def _entries(path: Path, split: str, classes: tuple[str, ...]) -> Iterator[tuple[Path, int, Clip]]:
    numbers = {name.lower(): number for number, name in enumerate(classes, start=1)}
    for line, text in read_lines(path):
        match = _ENTRY.fullmatch(text)
        if not match:
            raise ManifestError(f"{path}, line {line}: {text!r} must be <class>/v_<class>_gNN_cNN.avi [number]")
        number = numbers.get(match[1].lower())
        if number is None:
            raise ManifestError(f"{path}, line {line}: folder {match[1]!r} is not a class of classInd.txt")
        if match[4] is not None and int(match[4]) != number:
            raise ManifestError(f"{path}, line {line}: {match[1]} is class {number} in classInd.txt, not {match[4]}")
        source = PurePosixPath(text.split()[0])
        label = classes[number - 1]
        yield path, line, Clip(source.stem, split, label, str(source), group=f"{label}_{match[3]}")
