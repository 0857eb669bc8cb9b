"""Reading the journals of a run: rows, or columns of a million of them, whatever a kill or a full disk left.

A line that is no JSON object costs that line only and is reported with its number. orjson parses the lines: with the
arrays made, that takes less than half of the time in which the standard library parses them (benchmarks/report.py).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

Row = dict[str, Any]
Values = npt.NDArray[np.float64]

_BLOCK = 160_000  # bytes parsed at once; with larger blocks the objects fall out of the processor's cache
_LISTED = 5  # unreadable lines that are remembered one by one


@dataclass
class Faults:
    """What of a file could not be read.

    Attributes:
        lines: Number of lines left out, a last line without an end not counted.
        first: Numbers of the first few of them, from 1.
        cut: Number of the last line, where it is incomplete: its writer is at work, or was killed.
    """

    lines: int = 0
    first: list[int] = field(default_factory=list)
    cut: int | None = None

    def add(self, number: int) -> None:
        """Count a line."""
        self.lines += 1
        if len(self.first) < _LISTED:
            self.first.append(number)


def read_rows(path: Path, faults: Faults | None = None) -> list[Row]:
    """Rows of a journal; lines that a kill cut, that are being written or that are damaged are left out.

    Args:
        path: A file of JSON lines.
        faults: Told what was left out.
    """
    return list(each_row(path, faults))


def each_row(path: Path, faults: Faults | None = None) -> Iterator[Row]:
    """As `read_rows`, one after the other: the file need not fit into memory."""
    for block in _blocks(path, Faults() if faults is None else faults):
        yield from block


def read_columns(path: Path, faults: Faults | None = None) -> dict[str, Values]:
    """The numbers of a journal, column by column.

    8 bytes a number: 160 MB for a million steps of two modalities, twice that while they are read.

    Args:
        path: A file of JSON lines.
        faults: Told what was left out.

    Returns:
        Name → (N,), float64, in the file's order; NaN where a row lacks the name or holds null or no number.
    """
    parts = [_matrix(rows) for rows in _blocks(path, Faults() if faults is None else faults)]
    names = tuple(dict.fromkeys(name for own, _ in parts for name in own))
    columns = {name: np.full(sum(len(part) for _, part in parts), np.nan) for name in names}
    start = 0
    for own, part in parts:
        for number, name in enumerate(own):
            columns[name][start : start + len(part)] = part[:, number]
        start += len(part)
    return columns


def _matrix(rows: list[Row]) -> tuple[tuple[str, ...], Values]:
    """All names of the rows, and (rows, names); NaN for what is no number."""
    names = tuple(rows[0])
    if len(names) > 1 and sum(map(len, rows)) == len(rows) * len(names):
        pick = itemgetter(*names)
        try:
            return names, np.array([pick(row) for row in rows], dtype=np.float64)
        except (KeyError, TypeError, ValueError, OverflowError):
            pass  # other names, or values that are no numbers
    names = tuple(dict.fromkeys(name for row in rows for name in row))
    values = [_number(row.get(name)) for row in rows for name in names]
    return names, np.array(values).reshape(len(rows), len(names))


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) and abs(value) <= sys.float_info.max else np.nan


def _blocks(path: Path, faults: Faults) -> Iterator[list[Row]]:
    """Rows, some hundreds at a time; no list is empty."""
    number = 0
    with path.open("rb") as file:
        while lines := file.readlines(_BLOCK):
            try:
                rows = orjson.loads(b"[" + b",".join(lines) + b"]")
                whole = len(rows) == len(lines) and all(map(_closed, lines))
            except orjson.JSONDecodeError:
                whole = False
            if not whole:
                rows = list(_one_by_one(lines, number, faults))
            number += len(lines)
            if rows:
                yield rows


def _closed(line: bytes) -> bool:
    """Whether a line is an object by its ends: halves of objects must not join with those of other lines."""
    return line.startswith(b"{") and line.endswith(b"}\n")


def _one_by_one(lines: list[bytes], before: int, faults: Faults) -> Iterator[Row]:
    for number, line in enumerate(lines, start=before + 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)  # takes NaN and Infinity, which are not JSON but which others write
        except (ValueError, RecursionError):
            row = None
        if isinstance(row, dict):
            yield row
        elif line.endswith(b"\n"):
            faults.add(number)
        else:
            faults.cut = number
