"""The journal: a row a step in `steps.jsonl` and TensorBoard, without making the device wait.

A step's numbers lie in one vector on the device. It is copied to the host in the background and read two steps
later, by then it has long arrived. All ranks read the same rows (they were summed over the ranks), so decisions such
as to stop are the same everywhere.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from bmlpipe.manifests.common.locks import locked, unlock
from bmlpipe.train.config.options import ConfigError
from bmlpipe.train.runs.journal_reader import Row, each_row, read_rows
from bmlpipe.train.runs.trackers import Outcome, Trackers, tags

__all__ = ["METRICS_FILE", "STEPS_FILE", "DelayedRows", "Journal", "Row", "read_rows"]

STEPS_FILE = "steps.jsonl"
METRICS_FILE = "metrics.jsonl"

_LAG = 2  # steps between a row's making and its reading
_LOCK_FILE = ".lock"
_PATIENCE = 10  # seconds to wait for the lock

_logger = logging.getLogger(__name__)


@dataclass
class _Waiting:
    about: Row
    values: Tensor
    arrived: torch.cuda.Event | None


class DelayedRows:
    """Rows on their way from the device to the host.

    Args:
        columns: Names of the entries of each vector.
    """

    def __init__(self, columns: Sequence[str]) -> None:
        self._columns = tuple(columns)
        self._waiting: deque[_Waiting] = deque()

    def push(self, about: Row, values: Tensor) -> Row | None:
        """Hand in a step's numbers; returns the row of two steps before, if there is one.

        Args:
            about: What the host knows: step, epoch, times.
            values: (len(columns),), on the device.
        """
        arrived = None
        if values.is_cuda:
            host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            host.copy_(values, non_blocking=True)
            arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            arrived.record()
            values = host
        self._waiting.append(_Waiting(about, values, arrived))
        return self._pop() if len(self._waiting) > _LAG else None

    def flush(self) -> Iterator[Row]:
        """All rows that are still on their way."""
        while self._waiting:
            yield self._pop()

    def _pop(self) -> Row:
        oldest = self._waiting.popleft()
        if oldest.arrived is not None:
            oldest.arrived.synchronize()
        return {**oldest.about, **dict(zip(self._columns, oldest.values.tolist(), strict=True))}


class Journal:
    """The files of a run that grow: `steps.jsonl`, `metrics.jsonl` and TensorBoard's.

    Args:
        folder: Folder of the run.
        first_step: Step at which the run begins or goes on; rows of later steps, which a killed run wrote after its
            last checkpoint, are dropped.
        evaluated: Steps done at the last evaluation that the checkpoint knows of; later ones are dropped, and the
            test split's.
        tensorboard: Write TensorBoard files too.
        trackers: Get the rows too, and are closed with the journal.

    Attributes:
        stopped: Whether the run was asked to stop: what its trackers are told.

    Raises:
        ConfigError: Another process is training into this folder.
    """

    def __init__(
        self,
        folder: Path,
        *,
        first_step: int = 0,
        evaluated: int = 0,
        tensorboard: bool = True,
        trackers: Trackers | None = None,
    ) -> None:
        self._lock = _held(folder / _LOCK_FILE)
        _keep(folder / STEPS_FILE, lambda row: row["step"] < first_step)
        _keep(folder / METRICS_FILE, lambda row: row["step"] <= evaluated and row["split"] != "test")
        self._steps = (folder / STEPS_FILE).open("a", encoding="utf-8", buffering=1)
        self._metrics = (folder / METRICS_FILE).open("a", encoding="utf-8", buffering=1)
        # TensorBoard hides what an earlier writer wrote from this step on; an evaluation's row may stand at first_step.
        purge = max(first_step, evaluated + 1)
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=purge) if tensorboard else None
        self._trackers = trackers
        self.stopped = False

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.stopped |= kind is not None and issubclass(kind, KeyboardInterrupt)
        self.close("stopped" if self.stopped else "failed" if kind else "finished")

    def step(self, row: Row) -> None:
        """Write a step's row."""
        self._steps.write(_line(row))
        values = self._scalars(row)
        if self._trackers is not None:
            self._trackers.step(values, row["step"])

    def metrics(self, row: Row) -> None:
        """Write an evaluation's row; `step` is the number of steps done."""
        self._metrics.write(_line(row))
        values = self._scalars(row)
        if self._trackers is not None:
            self._trackers.metrics(values, row["step"])

    def _scalars(self, row: Row) -> dict[str, float]:
        values = tags(row)
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(name, value, row["step"])
        return values

    def close(self, outcome: Outcome = "finished") -> None:
        """Close all files, and tell the trackers how the run ended."""
        self._steps.close()
        self._metrics.close()
        if self._board is not None:
            self._board.close()
        if self._trackers is not None:
            self._trackers.close(outcome)
        if self._lock is not None:
            unlock(self._lock)


def _held(path: Path) -> int | None:
    """The lock of a run's folder; the loader workers of a killed run have it for some seconds more."""
    for _ in range(_PATIENCE):
        try:
            descriptor = locked(path)
        except OSError as error:
            if not path.exists():
                raise
            # Some network file systems know no locks.
            _logger.warning("%s cannot be locked (%s): start no second training into it", path.parent, error.strerror)
            return None
        if descriptor is not None:
            return descriptor
        time.sleep(1)
    raise ConfigError(
        f"another process is training into {path.parent}: wait for it or end it (fuser -v {path} shows it), or choose "
        "another --out"
    )


def _keep(path: Path, wanted: Callable[[Row], bool]) -> None:
    """Rewrite a journal file with the wanted rows only; it may be longer than what memory holds."""
    temporary = path.with_name(path.name + ".writing")
    with temporary.open("w", encoding="utf-8") as file:
        file.writelines(_line(row) for row in (each_row(path) if path.is_file() else ()) if wanted(row))
    temporary.replace(path)


def _line(row: Mapping[str, Any]) -> str:
    """One JSON object a line; JSON has no NaN or infinity, so these become null."""
    clean = {
        name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in row.items()
    }
    return json.dumps(clean, allow_nan=False) + "\n"
