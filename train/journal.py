"""The journal: a row a step in `steps.jsonl` and TensorBoard, without making the device wait.

A step's numbers lie in one vector on the device. It is copied to the host in the background and read two steps
later, by then it has long arrived. All ranks read the same rows (they were summed over the ranks), so decisions such
as to stop are the same everywhere.
"""

from __future__ import annotations

import json
import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

STEPS_FILE = "steps.jsonl"
METRICS_FILE = "metrics.jsonl"

_LAG = 2  # steps between a row's making and its reading

Row = dict[str, Any]


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
    """

    def __init__(self, folder: Path, *, first_step: int = 0, evaluated: int = 0, tensorboard: bool = True) -> None:
        _keep(folder / STEPS_FILE, lambda row: row["step"] < first_step)
        _keep(folder / METRICS_FILE, lambda row: row["step"] <= evaluated and row["split"] != "test")
        self._steps = (folder / STEPS_FILE).open("a", encoding="utf-8", buffering=1)
        self._metrics = (folder / METRICS_FILE).open("a", encoding="utf-8", buffering=1)
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=first_step) if tensorboard else None

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def step(self, row: Row) -> None:
        """Write a step's row."""
        self._steps.write(_line(row))
        self._scalars("", row, row["step"])

    def metrics(self, row: Row) -> None:
        """Write an evaluation's row; `step` is the number of steps done."""
        self._metrics.write(_line(row))
        self._scalars(f"{row['split']}/", row, row["step"])

    def _scalars(self, prefix: str, row: Row, step: int) -> None:
        if self._board is not None:
            for name, value in row.items():
                if isinstance(value, float) and math.isfinite(value):
                    self._board.add_scalar(prefix + name, value, step)

    def close(self) -> None:
        """Close all files."""
        self._steps.close()
        self._metrics.close()
        if self._board is not None:
            self._board.close()


def _keep(path: Path, wanted: Callable[[Row], bool]) -> None:
    """Rewrite a journal file with the wanted rows only."""
    rows = read_rows(path) if path.is_file() else []
    temporary = path.with_name(path.name + ".writing")
    temporary.write_text("".join(_line(row) for row in rows if wanted(row)), encoding="utf-8")
    temporary.replace(path)


def _line(row: Mapping[str, Any]) -> str:
    """One JSON object a line; JSON has no NaN or infinity, so these become null."""
    clean = {
        name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in row.items()
    }
    return json.dumps(clean, allow_nan=False) + "\n"


def read_rows(path: Path) -> list[Row]:
    """Rows of a journal; a last line that a kill cut, or that is still being written, is left out."""
    rows: list[Row] = []
    with path.open(encoding="utf-8") as file:
        for line in file:
            try:
                rows.append(json.loads(line))
            except ValueError:
                continue
    return rows
