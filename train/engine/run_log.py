"""The log of a training: its rows in the journal and the progress line, warnings, and the decision to stop."""

from __future__ import annotations

import logging
import math

from torch import Tensor

from bmlpipe.manifests.common.errors import BmlpipeError
from bmlpipe.train.engine.delayed_rows import DelayedRows
from bmlpipe.train.modulation import Modulation, row_advice
from bmlpipe.train.runs.journal import Journal
from bmlpipe.train.runs.journal_reader import Row
from bmlpipe.train.runs.progress_line import ProgressLine
from bmlpipe.train.tasks.registry import Task

_logger = logging.getLogger(__name__)


class DivergedError(BmlpipeError):
    """The loss is NaN or infinite."""


class RunLog:
    """Log of a training: every rank reads its rows, the first rank writes them.

    Args:
        modulation: Its columns come first in the device's numbers of a step, then the loss and the requests to stop.
        task: Describes evaluations.
        journal: Journal of the run; None on all ranks but the first.
        line: Progress line; None on all ranks but the first.

    Attributes:
        stop_agreed: Whether a row says that a rank was asked to stop. It turns true in the same step on every rank.
    """

    def __init__(
        self, modulation: Modulation, task: Task, journal: Journal | None = None, line: ProgressLine | None = None
    ) -> None:
        self._modulation, self._task, self._journal, self._line = modulation, task, journal, line
        self._rows = DelayedRows([*modulation.columns, "loss", "stop"])
        self.stop_agreed = False

    def step(self, host_values: Row, device_values: Tensor) -> None:
        """Add the row of a step. It is read two steps later.

        Raises:
            DivergedError: The row that is read now has no finite loss.
        """
        if (row := self._rows.push(host_values, device_values)) is not None:
            self._read(row)

    def flush(self) -> None:
        """Read all rows that are left, as before a checkpoint is written.

        Raises:
            DivergedError: One of them has no finite loss.
        """
        for row in self._rows.flush():
            self._read(row)

    def evaluation(self, row: Row) -> None:
        """Write the row of an evaluation."""
        if self._journal is not None:
            self._journal.metrics(row)
            _logger.info("%s after epoch %d:  %s", row["split"], row["epoch"], self._task.describe(row))

    def mark_stopped(self) -> None:
        """Mark the run as stopped on request, for the trackers."""
        if self._journal is not None:
            self._journal.stopped = True

    def _read(self, row: Row) -> None:
        self.stop_agreed |= row.pop("stop") > 0
        if self._journal is not None:
            self._journal.step(row)
        if self._line is not None:
            self._line.step(row, row_advice({name: row[name] for name in self._modulation.columns}, self._modulation))
        if not math.isfinite(row["loss"]):
            raise DivergedError(
                f"the loss is {row['loss']} at step {row['step']} (epoch {row['epoch']}): lower --lr (now "
                f"{row['lr']:g}), or look for the cause in the gradient norms in steps.jsonl; the last checkpoint was "
                "written before this step"
            )
