"""The ledger: what happened to every clip of the manifest, as a CSV that outlives kills.

While a run goes on, rows are appended to `ledger.log.jsonl` (one line a row, so that a kill can spoil one line only);
at its end `ledger.csv` is written anew, a row for each row of the manifest in the manifest's order. After a kill the
next run reads both.
"""

from __future__ import annotations

import csv
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import TextIO

LEDGER_FILE = "ledger.csv"
_LOG_FILE = "ledger.log.jsonl"


@dataclass(frozen=True, slots=True)
class Row:
    """One clip's state.

    Attributes:
        id: Clip id.
        split: Its split.
        status: `ok`, `failed` or `absent` (no file found).
        reason: Stable code (docs/reasons.md), empty for `ok`.
        message: For people.
        flags: Flags of an `ok` clip, separated by spaces.
        source: The file it was made from, relative to the videos' folder.
        stamp: Size and modification time of the source file(s): the quick check for changes.
        parameters: Hash of all parameters that were asked for.
    """

    id: str
    split: str
    status: str
    reason: str = ""
    message: str = ""
    flags: str = ""
    source: str = ""
    stamp: str = ""
    parameters: str = ""


_COLUMNS = [field.name for field in fields(Row)]


class Ledger:
    """The ledger of one feature folder. Only one run at a time may write it (`bmlpipe.pipeline.extract` locks).

    Args:
        folder: Feature folder.
    """

    def __init__(self, folder: Path) -> None:
        self._file = folder / LEDGER_FILE
        self._log_file = folder / _LOG_FILE
        self._log: TextIO | None = None
        self.rows = {row.id: row for row in (*_read_csv(self._file), *_read_log(self._log_file))}

    def append(self, rows: Iterable[Row]) -> None:
        """Record rows at once: they survive a kill of this process."""
        if self._log is None:
            self._log = self._log_file.open("a", encoding="ascii")
            self._log.write("\n")  # ends a line that a kill cut
        for row in rows:
            self.rows[row.id] = row
            self._log.write(json.dumps(astuple(row)) + "\n")
        self._log.flush()

    def finish(self, ids: Sequence[str]) -> None:
        """Write `ledger.csv`: one row for each clip id, in that order, and drop the log.

        Raises:
            KeyError: A clip has no row; nothing is changed then.
        """
        temporary = self._file.with_suffix(".csv.writing")
        with temporary.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(_COLUMNS)
            writer.writerows(astuple(self.rows[id_]) for id_ in ids)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self._file)
        if self._log is not None:
            self._log.close()
            self._log = None
        self._log_file.unlink(missing_ok=True)

    def counts(self) -> Counter[str]:
        """Number of rows of each status."""
        return Counter(row.status for row in self.rows.values())


def _read_csv(path: Path) -> Iterator[Row]:
    if path.is_file():
        with path.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
            rows = csv.reader(file)
            next(rows, None)
            yield from (Row(*cells) for cells in rows if len(cells) == len(_COLUMNS))


def _read_log(path: Path) -> Iterator[Row]:
    if path.is_file():
        with path.open(encoding="ascii") as file:
            for line in file:
                try:
                    yield Row(*json.loads(line))
                except ValueError:  # blank, or cut by a kill: its clip is looked at again
                    continue


def read_ledger(folder: Path) -> list[Row]:
    """Rows of a finished extraction, in the manifest's order.

    Raises:
        FileNotFoundError: The extraction into this folder has not finished.
    """
    if not (folder / LEDGER_FILE).is_file():
        raise FileNotFoundError(f"no {LEDGER_FILE} in {folder}: run bmlpipe extract into it until it finishes")
    return list(_read_csv(folder / LEDGER_FILE))
