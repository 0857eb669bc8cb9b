"""The progress line of a running training."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from bmlpipe.manifests.common.progress import StatusLine, duration_text
from bmlpipe.train.runs.journal_reader import Row

_logger = logging.getLogger(__name__)

_ON_TERMINAL, _IN_LOG = 1.0, 30.0  # seconds between two updates


class ProgressLine:
    """Step, loss, ρ, rates and remaining time of a training on the terminal; a context manager.

    On a terminal it is one line below the log, renewed in place. Elsewhere, and where the log is JSON, it is a log line
    every 30 seconds.

    Args:
        steps: Number of steps of the whole run.
    """

    def __init__(self, steps: int) -> None:
        self._steps = steps
        self._line = StatusLine(on_terminal=_ON_TERMINAL, in_log=_IN_LOG, transient=True)
        self._warned: set[str] = set()
        self._clear()

    def _clear(self) -> None:
        self._seconds = self._waited = self._samples = 0.0
        self._count = 0

    def __enter__(self) -> ProgressLine:
        self._line.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._line.__exit__(None, None, None)

    def step(self, row: Row, warnings: Sequence[str]) -> None:
        """Add a step.

        Args:
            row: The step's row of the journal.
            warnings: Warnings about its numbers. Each subject, the first word of a warning, is logged once.
        """
        for warning in warnings:
            subject = warning.partition(" ")[0]
            if subject not in self._warned:
                self._warned.add(subject)
                _logger.warning("step %d: %s (logged once; see steps.jsonl)", row["step"], warning)
        self._seconds += row["step_s"]
        self._waited += row["data_s"]
        self._samples += row["step_s"] * row["samples_per_s"]
        self._count += 1
        if self._line.due():
            self._show(row)

    def _show(self, row: Row) -> None:
        done = row["step"] + 1
        ratios = "".join(f"  {name.replace('rho/', 'ρ ')} {value:.2f}" for name, value in row.items() if "rho/" in name)
        text = (
            f"step {done} of {self._steps}, epoch {row['epoch']}  loss {row['loss']:.3f}{ratios}  "
            f"{self._samples / self._seconds:.0f} samples/s  waiting for data "
            f"{100 * self._waited / self._seconds:.0f}%  "
            f"{duration_text((self._steps - done) * self._seconds / self._count)} left"
        )
        self._line.show(text, share=done / self._steps)
        self._clear()
