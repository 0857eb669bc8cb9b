"""CREMA-D (Cao et al., 2014): 91 actors speak 12 sentences in 6 emotions."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from bmlpipe.manifests.readers.text_files import distinct, read_rows, split_files
from bmlpipe.manifests.schema import Clip, Manifest, ManifestError

#: Neutral, happy, sad, fear, disgust, anger: the order of the official release's `stat.csv`.
CLASSES = ("NEU", "HAP", "SAD", "FEA", "DIS", "ANG")

_NAME = re.compile(r"([0-9]{4})_[A-Z]{3}_[A-Z]{3}_[A-Z]{1,2}")  # actor, sentence, emotion, level


def read(annotations: Path) -> Manifest:
    """Read `train.csv` and `test.csv`; their rows are `1088_IOM_NEU_XX,NEU`, without header.

    Args:
        annotations: Folder of the two files, or one of them with the other in the same folder.

    Returns:
        Clips; the id is the file name without suffix, the group is the actor.

    Raises:
        ManifestError: A row is malformed, or contradicts another row.
    """
    files = split_files(annotations, "{}.csv")
    clips, notes = distinct(row for split, path in files for row in _rows(path, split))
    return Manifest("cremad", CLASSES, clips, notes)


def _rows(path: Path, split: str) -> Iterator[tuple[Path, int, Clip]]:
    for line, row in read_rows(path):
        match = _NAME.fullmatch(row[0])
        if len(row) != 2 or not match:
            raise ManifestError(f"{path}, line {line}: {row} must be <actor>_<sentence>_<emotion>_<level>,<emotion>")
        if row[1] not in CLASSES:
            raise ManifestError(f"{path}, line {line}: emotion is {row[1]!r}: must be one of {', '.join(CLASSES)}")
        yield path, line, Clip(row[0], split, row[1], group=match[1])
