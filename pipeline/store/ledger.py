"""The ledger: what happened to every clip of the manifest, as a CSV that outlives kills.

`ledger.csv` has a row for each row of the manifest, in the manifest's order, from the start of a run on: clips that
the run has not come to are `failed`, `not_tried`. While it goes on, rows are appended to `ledger.log.jsonl` (one line a
row, so that a kill can spoil one line only); at its end `ledger.csv` is written anew and the log removed. So a log that
is there means a run that goes on or did not finish.
"""

from __future__ import annotations

import csv
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from operator import attrgetter
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from bmlpipe.manifests.common.errors import BmlpipeError
from bmlpipe.manifests.common.tables import write_csv
from bmlpipe.pipeline.store.feature_file import writing

LEDGER_FILE = "ledger.csv"
LOG_FILE = "ledger.log.jsonl"

#: Reason of a clip that a run has not come to (yet).
NOT_TRIED = "not_tried"

_LONGEST = 500  # characters of a message


class LedgerError(BmlpipeError):
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
        if self.message:
            line = " ".join(self.message.replace("\0", " ").split())[:_LONGEST]
            if line != self.message:
                object.__setattr__(self, "message", line)


_COLUMNS = [field.name for field in fields(Row)]
_STATUS = _COLUMNS.index("status")
_cells: Callable[[Row], tuple[str, ...]] = attrgetter(*_COLUMNS)


class Ledger:
    """The ledger of one run; use it as a context manager. Only one run at a time may write it (`exclusive_folder`).

    Of the rows of a run only their places in the log are held in memory: the table is written from stream to stream.

    Args:
        folder: Feature folder.
        rows: A row for each row of the manifest, in its order, as things stand before the run; taken once.

    Raises:
        StoreWriteError: The folder cannot be written.
    """

    def __init__(self, folder: Path, rows: Iterable[Row]) -> None:
        self._folder, self._before = folder, rows
        self._places: dict[str, int] = {}  # clip id → where its row of this run begins in the log
        self._counts: Counter[str] = Counter()

    def __enter__(self) -> Ledger:
        path = self._folder / LOG_FILE
        with writing(path):
            self._log: BinaryIO = path.open("ab")  # from now on the folder counts as unfinished
            self._counts = _write_csv(self._folder, map(_cells, self._before))
            self._log.truncate(0)
        self._end = 0
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._log.close()
            if self._places:
                with (self._folder / LOG_FILE).open("rb") as log:
                    self._counts = _write_csv(self._folder, self._now(log))
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
            lines, places, end = [], {}, self._end
            for row in rows:
                lines.append(json.dumps(_cells(row)).encode("ascii") + b"\n")
                places[row.id] = end
                end += len(lines[-1])
            self._log.write(b"".join(lines))
            self._log.flush()
            self._end = end
            self._places |= places

    def counts(self) -> Counter[str]:
        """Number of rows of each status in the table on disk; together as many as the manifest has."""
        return +self._counts

    def _now(self, log: BinaryIO) -> Iterator[Sequence[str]]:
        """The table's rows, those of this run in their places."""
        for cells in _read_cells(self._folder / LEDGER_FILE):
            place = self._places.get(cells[0])
            yield cells if place is None else _line_at(log, place)


class KnownRows:
    """All that earlier runs recorded, finished or not, looked up without being held in memory.

    Look-ups in the order of the table, which is the manifest's, read it once from beginning to end; rows that are
    passed over are kept.

    Args:
        folder: Feature folder; need not exist.
    """

    def __init__(self, folder: Path) -> None:
        self._places = {row.id: place for place, row in _read_log(folder / LOG_FILE)}
        self._log = (folder / LOG_FILE).open("rb") if self._places else None
        self._table = _read_cells(folder / LEDGER_FILE)
        self._passed: dict[str, Sequence[str]] = {}

    def __enter__(self) -> KnownRows:
        return self

    def __exit__(self, *_: object) -> None:
        if self._log is not None:
            self._log.close()

    def find(self, clip_id: str) -> Row | None:
        """A clip's row, None where there is none; ask once for each clip."""
        cells = self._passed.pop(clip_id, None) or self._read_until(clip_id)
        if self._log is not None and (place := self._places.get(clip_id)) is not None:
            return _row(_line_at(self._log, place))
        return None if cells is None else _row(cells)

    def _read_until(self, clip_id: str) -> Sequence[str] | None:
        for cells in self._table:
            if cells[0] == clip_id:
                return cells
            self._passed[cells[0]] = cells
        return None


def known_rows(folder: Path) -> dict[str, Row]:
    """All that earlier runs recorded, finished or not, by clip id."""
    rows = {cells[0]: _row(cells) for cells in _read_cells(folder / LEDGER_FILE)}
    return rows | {row.id: row for _, row in _read_log(folder / LOG_FILE)}


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
    return [_row(cells) for cells in _read_cells(folder / LEDGER_FILE)]


def _write_csv(folder: Path, rows: Iterable[Sequence[str]]) -> Counter[str]:
    """Replace the table; returns the number of rows of each status."""
    counts: Counter[str] = Counter()

    def counted() -> Iterator[Sequence[str]]:
        yield _COLUMNS
        for cells in rows:
            counts[cells[_STATUS]] += 1
            yield cells

    write_csv(folder / LEDGER_FILE, counted(), sync=True)
    return counts


def _read_cells(path: Path) -> Iterator[Sequence[str]]:
    if path.is_file():
        with path.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
            rows = csv.reader(file)
            if next(rows, []) == _COLUMNS:  # else of another version: its clips are looked at again
                yield from (cells for cells in rows if len(cells) == len(_COLUMNS))


def _row(cells: Sequence[str]) -> Row:
    """A row whose cells share what repeats from clip to clip: ledgers of millions of rows are held in memory."""
    id_, split, status, reason, message, flags, source, stamp, parameters = cells
    split, status, reason, message, flags = map(sys.intern, (split, status, reason, message, flags))
    return Row(id_, split, status, reason, message, flags, source, stamp, sys.intern(parameters))


def _read_log(path: Path) -> Iterator[tuple[int, Row]]:
    """Rows and where their lines begin; what is no row (cut by a kill) is left out: its clip is looked at again."""
    if path.is_file():
        place = 0
        with path.open("rb") as file:
            for line in file:
                with suppress(ValueError, TypeError):
                    yield place, _row(json.loads(line))
                place += len(line)


def _line_at(log: BinaryIO, place: int) -> Sequence[str]:
    if log.tell() != place:
        log.seek(place)
    cells: Sequence[str] = json.loads(log.readline())
    return cells
