"""The ledger: the outcome of each clip of the manifest, as a CSV file that survives kills.

From the start of a run, `ledger.csv` has one row for each row of the manifest, in the manifest's order; clips that the
run has not reached are `failed` with the reason `not_tried`. During the run, rows are appended to `ledger.log.jsonl`,
one line per row, so that a kill can damage only one line. At the end of the run `ledger.csv` is rewritten and the
log is removed. So a log means that a run is in progress or did not finish.
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

from bmlpipe.manifests.common.tables import write_csv
from bmlpipe.pipeline.store.errors import ExtractionError
from bmlpipe.pipeline.store.feature_file import writing
from bmlpipe.pipeline.store.folder import FeatureFolder

#: Reason of a clip that a run has not reached.
NOT_TRIED = "not_tried"

_LONGEST = 500  # characters per message


@dataclass(frozen=True, slots=True)
class LedgerRow:
    """The state of one clip.

    Attributes:
        id: Clip id.
        split: The clip's split.
        status: `ok`, `failed` or `absent` (no file was found).
        reason: Stable code (docs/reasons.md); empty for `ok`.
        message: Explanation of the reason, shortened to one line of at most 500 characters.
        flags: Flags of an `ok` clip, separated by spaces.
        source: The file that the clip lies in, relative to the folder of videos.
        stamp: The quick check for changes; see `ClipTask.stamp`.
        parameters: SHA-256 of all requested parameters.
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


_COLUMNS = [field.name for field in fields(LedgerRow)]
_STATUS = _COLUMNS.index("status")
_cells: Callable[[LedgerRow], tuple[str, ...]] = attrgetter(*_COLUMNS)


class Ledger:
    """The ledger of one run; use it as a context manager. Only one run at a time may write it (`exclusive_folder`).

    Of the rows of a run, only their positions in the log are held in memory; the table is streamed from disk to disk.

    Args:
        folder: Feature folder.
        rows: One row for each row of the manifest, in the manifest's order, with the state before the run; iterated
            once.

    Raises:
        StoreWriteError: The folder cannot be written.
    """

    def __init__(self, folder: Path, rows: Iterable[LedgerRow]) -> None:
        self._folder, self._before = FeatureFolder(folder), rows
        self._places: dict[str, int] = {}  # clip id → where its row of this run begins in the log
        self._counts: Counter[str] = Counter()

    def __enter__(self) -> Ledger:
        path = self._folder.ledger_log
        with writing(path):
            self._log: BinaryIO = path.open("ab")  # from now on the folder counts as unfinished
            self._counts = _write_table(self._folder.ledger, map(_cells, self._before))
            self._log.truncate(0)
        self._end = 0
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._log.close()
            if self._places:
                with self._folder.ledger_log.open("rb") as log:
                    self._counts = _write_table(self._folder.ledger, self._now(log))
            if kind is None:
                self._folder.ledger_log.unlink()
        except OSError:
            if kind is None:
                with writing(self._folder.ledger):
                    raise

    def append(self, rows: Iterable[LedgerRow]) -> None:
        """Replace the rows of these clips. The rows are on disk when the call returns, so they survive a kill.

        Raises:
            StoreWriteError: The folder cannot be written.
        """
        with writing(self._folder.ledger_log):
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
        """Count the rows per status in the table on disk; the sum is the number of rows of the manifest."""
        return +self._counts

    def _now(self, log: BinaryIO) -> Iterator[Sequence[str]]:
        """Yield the rows of the table, with the rows of this run in place of the earlier ones."""
        for cells in _read_cells(self._folder.ledger):
            place = self._places.get(cells[0])
            yield cells if place is None else _line_at(log, place)


class KnownRows:
    """A look-up of the rows of earlier runs, finished or not, that does not hold them in memory.

    Look-ups in the order of the table, which is that of the manifest, read the table once from beginning to end; rows
    that are skipped are kept in memory.

    Args:
        folder: Feature folder; it need not exist.
    """

    def __init__(self, folder: Path) -> None:
        files = FeatureFolder(folder)
        self._places = {row.id: place for place, row in _read_log(files.ledger_log)}
        self._log = files.ledger_log.open("rb") if self._places else None
        self._table = _read_cells(files.ledger)
        self._skipped: dict[str, Sequence[str]] = {}

    def __enter__(self) -> KnownRows:
        return self

    def __exit__(self, *_: object) -> None:
        if self._log is not None:
            self._log.close()

    def find(self, clip_id: str) -> LedgerRow | None:
        """Find the row of a clip; None if there is none. Each clip may be looked up once."""
        cells = self._skipped.pop(clip_id, None) or self._read_until(clip_id)
        if self._log is not None and (place := self._places.get(clip_id)) is not None:
            return _row(_line_at(self._log, place))
        return None if cells is None else _row(cells)

    def _read_until(self, clip_id: str) -> Sequence[str] | None:
        for cells in self._table:
            if cells[0] == clip_id:
                return cells
            self._skipped[cells[0]] = cells
        return None


def known_rows(folder: Path) -> dict[str, LedgerRow]:
    """Read all rows of earlier runs, finished or not, by clip id."""
    files = FeatureFolder(folder)
    rows = {cells[0]: _row(cells) for cells in _read_cells(files.ledger)}
    return rows | {row.id: row for _, row in _read_log(files.ledger_log)}


def read_ledger(folder: Path) -> list[LedgerRow]:
    """Read the rows of a finished extraction, in the manifest's order.

    Args:
        folder: Feature folder.

    Raises:
        ExtractionError: There is no extraction, or it has not finished.
    """
    files = FeatureFolder(folder)
    if not files.ledger.is_file():
        raise ExtractionError(f"{folder} holds no {files.ledger.name}, so no extraction: run bmlpipe extract first")
    if files.ledger_log.exists():
        raise ExtractionError(
            f"the extraction into {folder} is running or was interrupted ({files.ledger_log.name} exists): wait until "
            "it finishes, or run the same bmlpipe extract command again; it continues where it stopped"
        )
    return [_row(cells) for cells in _read_cells(files.ledger)]


def _write_table(path: Path, rows: Iterable[Sequence[str]]) -> Counter[str]:
    """Replace the table; return the number of rows per status."""
    counts: Counter[str] = Counter()

    def counted() -> Iterator[Sequence[str]]:
        yield _COLUMNS
        for cells in rows:
            counts[cells[_STATUS]] += 1
            yield cells

    write_csv(path, counted(), sync=True)
    return counts


def _read_cells(path: Path) -> Iterator[Sequence[str]]:
    if path.is_file():
        with path.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
            rows = csv.reader(file)
            if next(rows, []) == _COLUMNS:  # otherwise of another version: its clips are checked again
                yield from (cells for cells in rows if len(cells) == len(_COLUMNS))


def _row(cells: Sequence[str]) -> LedgerRow:
    """Make a row; repeated values are shared between rows, since ledgers of millions of rows are held in memory."""
    id_, split, status, reason, message, flags, source, stamp, parameters = cells
    split, status, reason, message, flags = map(sys.intern, (split, status, reason, message, flags))
    return LedgerRow(id_, split, status, reason, message, flags, source, stamp, sys.intern(parameters))


def _read_log(path: Path) -> Iterator[tuple[int, LedgerRow]]:
    """Yield rows and where their lines begin. Lines cut by a kill are skipped: their clips are checked again."""
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
