"""Kinetics-Sounds (Arandjelović and Zisserman, 2017): 31 classes of Kinetics that are both seen and heard."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bmlpipe.manifests.readers.text_files import distinct, read_lines, read_text, split_files
from bmlpipe.manifests.schema import Clip, Manifest, ManifestError

#: `labels` of the JSON file, in its order; the class ids of the text lists are positions in it.
CLASSES = (
    "blowing_nose", "blowing_out_candles", "bowling", "chopping_wood", "dribbling_basketball", "laughing",
    "mowing_lawn", "playing_accordion", "playing_bagpipes", "playing_bass_guitar", "playing_clarinet",
    "playing_drums", "playing_guitar", "playing_harmonica", "playing_keyboard", "playing_organ",
    "playing_piano", "playing_saxophone", "playing_trombone", "playing_trumpet", "playing_violin",
    "playing_xylophone", "ripping_paper", "shoveling_snow", "shuffling_cards", "singing", "stomping_grapes",
    "tap_dancing", "tapping_guitar", "tapping_pen", "tickling",
)  # fmt: skip

_SUBSETS = {"training": "train", "validation": "val", "testing": "test"}
_BOTH = re.compile(r"([A-Za-z0-9_-]+)_([0-9]{6})_([0-9]{6})")
_START = re.compile(r"([A-Za-z0-9_-]+)_([0-9]{1,6})")
_CLASS_ID = re.compile(r"[0-9]{1,4}")


def parse_key(key: str) -> tuple[str, int, int | None] | None:
    """Split an official key into its parts, from the right, since YouTube ids may contain `_` and digits.

    Returns:
        YouTube id, start and end in seconds; the end is None if the key states only the start. None for text that is
        not a key.

    Examples:
        >>> parse_key("-1IlTIWPNs4_000027_000037")
        ('-1IlTIWPNs4', 27, 37)
        >>> parse_key("_C52l_00012_33")
        ('_C52l_00012', 33, None)
    """
    match = _BOTH.fullmatch(key)
    if match and int(match[2]) < int(match[3]):
        return match[1], int(match[2]), int(match[3])
    match = _START.fullmatch(key)
    return (match[1], int(match[2]), None) if match else None


def read(annotations: Path) -> Manifest:
    """Read the official annotation in either of its forms; the ids are the official keys.

    Args:
        annotations: The JSON file; or `my_train.txt` with `my_test.txt` in the same folder; or that folder.

    Returns:
        Clips in the order of the annotation. Only the JSON file has a validation split.

    Raises:
        ManifestError: The file has neither form, or an entry is malformed.
    """
    if annotations.is_dir():
        documents = sorted(annotations.glob("*.json"))
        if any(annotations.glob("my_*.txt")):
            notes = tuple(
                f"{document.name} was not read, as text lists are in the same folder: give the file itself to use it"
                for document in documents
            )
            return _read_lists(annotations, notes)
        if len(documents) != 1:
            raise ManifestError(
                f"{annotations} contains neither my_train.txt nor exactly one JSON file: give the file itself"
            )
        annotations = documents[0]
    if annotations.suffix.lower() == ".json":
        return _read_json(annotations)
    return _read_lists(annotations, ())


def _read_lists(annotations: Path, notes: tuple[str, ...]) -> Manifest:
    files = split_files(annotations, "my_{}.txt")
    clips, repeated = distinct(row for split, path in files for row in _list_rows(path, split))
    return Manifest("kinetics-sounds", CLASSES, clips, notes + repeated)


def _list_rows(path: Path, split: str) -> Iterator[tuple[Path, int, Clip]]:
    for line, text in read_lines(path):
        key, *rest = [field.strip() for field in text.split(",")]
        if len(rest) != 2 or not _CLASS_ID.fullmatch(rest[1]) or not parse_key(key):
            raise ManifestError(f"{path}, line {line}: {text!r} must be <key>,<frames>,<class id>")
        if int(rest[1]) >= len(CLASSES):
            raise ManifestError(f"{path}, line {line}: class id is {rest[1]}: must be from 0 to {len(CLASSES) - 1}")
        yield path, line, Clip(key, split, CLASSES[int(rest[1])])


def _read_json(path: Path) -> Manifest:
    def checked(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        members: dict[str, Any] = {}
        for key, value in pairs:
            if members.setdefault(key, value) != value:
                raise ManifestError(f"{path}: key {key!r} occurs twice with different values: keep one of them")
        return members

    try:
        document = json.loads(read_text(path), object_pairs_hook=checked)
    except (json.JSONDecodeError, RecursionError) as error:
        raise ManifestError(f"{path} is not a JSON file ({error}): give the official file") from error
    labels = document.get("labels") if isinstance(document, dict) else None
    database = document.get("database") if isinstance(document, dict) else None
    if not isinstance(labels, list) or not isinstance(database, dict):
        raise ManifestError(f'{path}: expected {{"labels": [class, …], "database": {{key: …}}}}')
    if len(set(map(str, labels))) != len(labels) or not all(isinstance(label, str) for label in labels):
        raise ManifestError(f"{path}: labels is {labels}: must be different class names")
    clips = [_json_clip(path, key, entry, labels) for key, entry in database.items()]
    return Manifest("kinetics-sounds", tuple(labels), clips)


def _json_clip(path: Path, key: str, entry: object, labels: list[str]) -> Clip:
    if not parse_key(key):
        raise ManifestError(f"{path}: key {key!r} must be <id>_<start:06d>_<end:06d> or <id>_<start>")
    subset, label = (entry.get("subset"), entry.get("label")) if isinstance(entry, dict) else (None, None)
    if not isinstance(subset, str) or subset not in _SUBSETS:
        raise ManifestError(f"{path}: the subset of {key!r} is {subset!r}: must be one of {', '.join(_SUBSETS)}")
    if not isinstance(label, str) or label not in labels:
        raise ManifestError(f"{path}: the label of {key!r} is {label!r}: must be one of the {len(labels)} labels")
    return Clip(key, _SUBSETS[subset], label)
