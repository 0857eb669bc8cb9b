"""Read annotation files as text: encodings, line ends, line numbers, repeated rows."""

from __future__ import annotations

import codecs
import csv
from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path

from bmlpipe.manifests.schema import SPLITS, Clip, ManifestError


def read_text(path: Path) -> str:
    r"""Read a text file in UTF-8, with or without byte-order mark, or in UTF-16 with one. Line ends become `\n`.

    Raises:
        ManifestError: The file cannot be opened, has another encoding, or is not text.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise ManifestError(f"{path} cannot be read ({error.strerror}): check its name and its permissions") from error
    encoding = "utf-16" if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"
    try:
        text = raw.decode(encoding)
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ManifestError(
            f"{path}, line {line}: byte 0x{raw[error.start]:02x} is not {encoding}: save the file as UTF-8"
        ) from error
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise ManifestError(
            f"{path}, line {line}: the file contains a NUL character, so it is not text: give the official file"
        )
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the lines that are not blank, without surrounding white space, each with its number, from 1."""
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if line.strip():
            yield number, line.strip()


def read_rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield the rows of a CSV file that are not blank, each with the number of its first line. Fields are stripped.

    Raises:
        ManifestError: A quote is not closed, or is closed in the middle of a field.
    """
    rows = csv.reader(_with_ends(read_text(path)), strict=True)
    line = 1
    try:
        for row in rows:
            fields = [field.strip() for field in row]
            if any(fields):
                yield line, fields
            line = rows.line_num + 1
    except csv.Error as error:
        raise ManifestError(f"{path}, line {line}: {error}: correct the quotes") from error


def _with_ends(text: str) -> Iterator[str]:
    """Yield lines with their ends, one at a time; `io.StringIO` would copy the text, at four bytes per character."""
    start = 0
    while start < len(text):
        end = text.find("\n", start) + 1 or len(text)
        yield text[start:end]
        start = end


def distinct(rows: Iterable[tuple[Path, int, Clip]]) -> tuple[list[Clip], tuple[str, ...]]:
    """Drop rows that repeat an earlier one.

    Args:
        rows: File, line and clip, in the order of the annotation.

    Returns:
        The clips without repetitions, and a note if there were any.

    Raises:
        ManifestError: Two rows have the same id and differ.
    """
    first: dict[str, Clip] = {}
    files: list[Path] = []  # of each clip of `first`, as their lines
    lines = array("q")
    repeated: list[str] = []
    for path, line, clip in rows:
        seen = first.setdefault(clip.id, clip)
        if seen is clip:
            files.append(path)
            lines.append(line)
            continue
        if seen != clip:
            differing = ", ".join(
                f"{name} {getattr(clip, name)!r} and {getattr(seen, name)!r}"
                for name in ("split", "label", "path", "start", "duration", "group")
                if getattr(clip, name) != getattr(seen, name)
            )
            number = list(first).index(clip.id)
            raise ManifestError(
                f"{path}, line {line}: clip {clip.id!r} contradicts {files[number].name}, line {lines[number]}: "
                f"{differing}: delete one of the two rows"
            )
        repeated.append(f"{path.name}, line {line}")
    notes = (f"{len(repeated)} repeated rows dropped, the first at {repeated[0]}",) if repeated else ()
    return list(first.values()), notes


def split_files(annotations: Path, pattern: str) -> list[tuple[str, Path]]:
    """Find lists whose names state their splits.

    Args:
        annotations: Folder of the lists, or one of them; the others are expected in the same folder.
        pattern: File name with `{}` for the split: `"{}.csv"`.

    Returns:
        Split and file of each list that exists, in the order train, val, test.

    Raises:
        ManifestError: No list exists, or the file has another name.
    """
    names = {split: pattern.format(split) for split in SPLITS}
    one = not annotations.is_dir()
    if one and annotations.name not in names.values():
        raise ManifestError(f"{annotations} does not state its split: name it as one of {', '.join(names.values())}")
    folder = annotations.parent if one else annotations
    found = [(split, folder / name) for split, name in names.items() if (folder / name).is_file()]
    if not found:
        raise ManifestError(
            f"{folder} contains none of {', '.join(names.values())}: give the folder of the official lists"
        )
    return found
