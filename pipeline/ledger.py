"""The ledger: what happened to every clip of the manifest, as a CSV that outlives kills.

`ledger.csv` has a row for each row of the manifest, in the manifest's order, from the start of a run on: clips that
the run has not come to are `failed`, `not_tried`. While it goes on, rows are appended to `ledger.log.jsonl` (one line a
row, so that a kill can spoil one line only); at its end `ledger.csv` is written anew and the log removed. So a log that
is there means a run that goes on or did not finish.
"""

from __future__ import annotations

import csv
import json
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import astuple, dataclass, fields
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import TextIO

from bmlpipe.manifests.table import write_rows
from bmlpipe.pipeline.store import writing

LEDGER_FILE = "ledger.csv"
LOG_FILE = "ledger.log.jsonl"

#: Reason of a clip that a run has not come to (yet).
NOT_TRIED = "not_tried"

_LONGEST = 500  # characters of a message


class LedgerError(Exception):
    """There is no ledger, or the extraction that it belongs to has not finished."""


@dataclass(frozen=True, slots=True)
class Row:
    """One clip's state.

    Attributes:
        id: Clip id.
        split: Its split.
        status: `ok`, `failed` or `absent` (no file found).
        reason: Stable code (docs/reasons.md), empty for `ok`.
        message: For people; made one line of at most 500 characters.
        flags: Flags of an `ok` clip, separated by spaces.
        source: The file it was made from, relative to the videos' folder.
        stamp: The quick check for changes: size and modification time of the source file(s), and the stretch taken.
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

    def __post_init__(self) -> None:
        line = " ".join(self.message.replace("\0", " ").split())[:_LONGEST]
        if line != self.message:
            object.__setattr__(self, "message", line)


_COLUMNS = [field.name for field in fields(Row)]


class Ledger:
    """The ledger of one run; use it as a context manager. Only one run at a time may write it (`extract.claimed`).

    Args:
        folder: Feature folder.
        rows: A row for each row of the manifest, in its order, as things stand before the run.

    Raises:
        StoreWriteError: The folder cannot be written.
    """

    def __init__(self, folder: Path, rows: Iterable[Row]) -> None:
        self._folder = folder
        self._rows = {row.id: row for row in rows}

    def __enter__(self) -> Ledger:
        path = self._folder / LOG_FILE
        with writing(path):
            self._log: TextIO = path.open("a", encoding="ascii")  # from now on the folder counts as unfinished
            _write_csv(self._folder, self._rows.values())
            self._log.truncate(0)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._log.close()
            _write_csv(self._folder, self._rows.values())
            if kind is None:
                (self._folder / LOG_FILE).unlink()
        except OSError:
            if kind is None:
                with writing(self._folder / LEDGER_FILE):
                    raise

    def append(self, rows: Iterable[Row]) -> None:
        """Put these in the place of their clips' rows: they survive a kill of this process.

        Raises:
            StoreWriteError: The folder cannot be written.
        """
        with writing(self._folder / LOG_FILE):
            for row in rows:
                self._rows[row.id] = row
                self._log.write(json.dumps(astuple(row)) + "\n")
            self._log.flush()

    def counts(self) -> Counter[str]:
        """Number of rows of each status; together as many as the manifest has."""
        return Counter(row.status for row in self._rows.values())


def known_rows(folder: Path) -> dict[str, Row]:
    """All that earlier runs recorded, finished or not, by clip id."""
    return {row.id: row for row in (*_read_csv(folder / LEDGER_FILE), *_read_log(folder / LOG_FILE))}


def read_ledger(folder: Path) -> list[Row]:
    """Rows of a finished extraction, in the manifest's order.

    Raises:
        LedgerError: There is none, or it has not finished.
    """
    if not (folder / LEDGER_FILE).is_file():
        raise LedgerError(f"{folder} holds no {LEDGER_FILE}, so no extraction: run bmlpipe extract first")
    if (folder / LOG_FILE).exists():
        raise LedgerError(
            f"the extraction into {folder} is running or was interrupted ({LOG_FILE} is there): "
            "let bmlpipe extract come to its end; it goes on where it stopped"
        )
    return list(_read_csv(folder / LEDGER_FILE))


def _write_csv(folder: Path, rows: Iterable[Row]) -> None:
    temporary = folder / f"{LEDGER_FILE}.writing"
    with temporary.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
        write_rows(file, chain([_COLUMNS], map(astuple, rows)))
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(folder / LEDGER_FILE)


def _read_csv(path: Path) -> Iterator[Row]:
    if path.is_file():
        with path.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
            rows = csv.reader(file)
            if next(rows, []) == _COLUMNS:  # else of another version: its clips are looked at again
                yield from (_row(cells) for cells in rows if len(cells) == len(_COLUMNS))


def _row(cells: Sequence[str]) -> Row:
    """A row whose cells share what repeats from clip to clip: ledgers of millions of rows are held in memory."""
    id_, split, status, reason, message, flags, source, stamp, parameters = cells
    split, status, reason, message, flags = map(sys.intern, (split, status, reason, message, flags))
    return Row(id_, split, status, reason, message, flags, source, stamp, sys.intern(parameters))


def _read_log(path: Path) -> Iterator[Row]:
    if path.is_file():
        with path.open(encoding="ascii", errors="replace") as file:
            for line in file:
                try:
                    yield _row(json.loads(line))
                except (ValueError, TypeError):  # cut by a kill: its clip is looked at again
                    continue
