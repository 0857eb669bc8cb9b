"""Read the journals of a run as rows or as columns, even if a kill or a full disk has damaged them.

Lines that are no JSON objects are left out and reported by their numbers. orjson parses the lines: together with making
the arrays it takes less than half the time that the standard library takes to parse them (benchmarks/report.py).
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

_BLOCK = 160_000  # bytes parsed at once; the objects of larger blocks do not fit into the processor's cache
_LISTED = 5  # unreadable lines whose numbers are kept


@dataclass
class Faults:
    """Lines of a file that could not be read.

    Attributes:
        lines: Number of lines left out, without an incomplete last line.
        first: Numbers of the first five of them, from 1.
        cut: Number of the last line, if it is incomplete: it is being written, or its writer was killed.
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
    """Read the rows of a journal, without incomplete and damaged lines.

    Args:
        path: File of JSON lines.
        faults: Receives the lines that are left out.
    """
    return list(each_row(path, faults))


def each_row(path: Path, faults: Faults | None = None) -> Iterator[Row]:
    """Yield the rows of `read_rows` one at a time, so that the file may be larger than memory."""
    for block in _blocks(path, Faults() if faults is None else faults):
        yield from block


def read_columns(path: Path, faults: Faults | None = None) -> dict[str, Values]:
    """Read the numbers of a journal, column by column.

    A number takes 8 bytes: 160 MB for a million steps with two modalities, and twice that during reading.

    Args:
        path: File of JSON lines.
        faults: Receives the lines that are left out.

    Returns:
        Name → values of the N rows in the order of the file, (N,), float64; NaN where a row has no number of that name.
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
    """Return all names of the rows, and their values, (rows, names); NaN where a row has no number."""
    names = tuple(rows[0])
    if len(names) > 1 and sum(map(len, rows)) == len(rows) * len(names):
        pick = itemgetter(*names)
        try:
            return names, np.array([pick(row) for row in rows], dtype=np.float64)
        except (KeyError, TypeError, ValueError, OverflowError):
            pass  # rows with other names, or values that are no numbers
    names = tuple(dict.fromkeys(name for row in rows for name in row))
    values = [_number(row.get(name)) for row in rows for name in names]
    return names, np.array(values).reshape(len(rows), len(names))


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) and abs(value) <= sys.float_info.max else np.nan


def _blocks(path: Path, faults: Faults) -> Iterator[list[Row]]:
    """Yield lists of some hundred rows; no list is empty."""
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
    """Check that a line starts and ends like an object: two lines with half an object each must not parse as one."""
    return line.startswith(b"{") and line.endswith(b"}\n")


def _one_by_one(lines: list[bytes], before: int, faults: Faults) -> Iterator[Row]:
    for number, line in enumerate(lines, start=before + 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)  # accepts NaN and Infinity, which are not JSON but which other programs write
        except (ValueError, RecursionError):
            row = None
        if isinstance(row, dict):
            yield row
        elif line.endswith(b"\n"):
            faults.add(number)
        else:
            faults.cut = number
