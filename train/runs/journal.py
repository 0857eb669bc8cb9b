"""The journal of a run: one row per optimiser step and one per evaluation, as JSON lines and for TensorBoard."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from bmlpipe.manifests.common.files import open_atomically
from bmlpipe.manifests.common.locks import lock_folder, release
from bmlpipe.train.runs.folder import RunFolder
from bmlpipe.train.runs.journal_reader import Row, each_row
from bmlpipe.train.runs.tracker_services import Outcome
from bmlpipe.train.runs.trackers import Trackers, tags

_LOCK_PATIENCE = 10.0  # seconds: the loader processes of a killed run hold the lock for some seconds


class Journal:
    """Writer of `steps.jsonl`, `metrics.jsonl` and TensorBoard's files; it passes the rows on to trackers.

    Args:
        folder: Folder of the run.
        first_step: Step at which the run starts or resumes. Rows of this and later steps, which a killed run wrote
            after its last checkpoint, are deleted.
        validated_step: Number of steps done at the last validation that the checkpoint knows of. Rows of later
            evaluations are deleted, and the rows of the test split.
        tensorboard: Whether to write TensorBoard's files.
        trackers: Receive all rows too, and are closed with the journal.
        lock_patience: Seconds to wait for another process that is training into the folder.

    Attributes:
        stopped: Whether the run was stopped on request, for the trackers.

    Raises:
        LockError: Another process is training into this folder.
    """

    def __init__(
        self,
        folder: Path,
        *,
        first_step: int = 0,
        validated_step: int = 0,
        tensorboard: bool = True,
        trackers: Trackers | None = None,
        lock_patience: float = _LOCK_PATIENCE,
    ) -> None:
        run = RunFolder(folder)
        self._lock = lock_folder(folder, "training", patience=lock_patience)
        _delete_rows(run.steps, lambda row: row["step"] >= first_step)
        _delete_rows(run.metrics, lambda row: row["step"] > validated_step or row["split"] == "test")
        self._steps = run.steps.open("a", encoding="utf-8", buffering=1)
        self._metrics = run.metrics.open("a", encoding="utf-8", buffering=1)
        # TensorBoard hides rows of an earlier writer from this step on. The row of the last validation, which stays,
        # may have the step first_step.
        purge = max(first_step, validated_step + 1)
        self._board = SummaryWriter(str(run.tensorboard), purge_step=purge) if tensorboard else None
        self._trackers = trackers
        self.stopped = False

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.stopped |= kind is not None and issubclass(kind, KeyboardInterrupt)
        self.close("stopped" if self.stopped else "failed" if kind else "finished")

    def step(self, row: Row) -> None:
        """Write the row of a step; `step` is the number of steps before it."""
        self._steps.write(_to_json(row))
        values = self._write_scalars(row)
        if self._trackers is not None:
            self._trackers.step(values, row["step"])

    def metrics(self, row: Row) -> None:
        """Write the row of an evaluation; `step` is the number of steps done."""
        self._metrics.write(_to_json(row))
        values = self._write_scalars(row)
        if self._trackers is not None:
            self._trackers.metrics(values, row["step"])

    def close(self, outcome: Outcome = "finished") -> None:
        """Close all files, and report the outcome of the run to the trackers."""
        self._steps.close()
        self._metrics.close()
        if self._board is not None:
            self._board.close()
        if self._trackers is not None:
            self._trackers.close(outcome)
        if self._lock is not None:
            release(self._lock)

    def _write_scalars(self, row: Row) -> dict[str, float]:
        values = tags(row)
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(name, value, row["step"])
        return values


def _delete_rows(path: Path, stale: Callable[[Row], bool]) -> None:
    """Rewrite a journal file without stale rows, row by row, since it may be larger than memory."""
    rows = each_row(path) if path.is_file() else ()
    with open_atomically(path) as file:
        file.writelines(_to_json(row).encode() for row in rows if not stale(row))


def _to_json(row: Mapping[str, Any]) -> str:
    """Write one line of JSON; NaN and infinity, which JSON lacks, become null."""
    clean = {
        name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in row.items()
    }
    return json.dumps(clean, allow_nan=False) + "\n"
