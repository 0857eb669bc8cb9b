"""CSV that reads back exactly."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from typing import TextIO


def write_rows(file: TextIO, rows: Iterable[Sequence[str]]) -> None:
    """Write CSV that reads back exactly, whatever the cells hold but NUL; lines end with a line feed."""
    plain = csv.writer(file, lineterminator="\n")
    quoted = csv.writer(file, lineterminator="\n", quoting=csv.QUOTE_ALL)  # csv leaves a lone "\r" unquoted
    for row in rows:
        (quoted if "\r" in "".join(row) else plain).writerow(row)
