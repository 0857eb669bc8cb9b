"""A line about a running training, every few seconds."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Sequence

from bmlpipe.train.journal import Row

_logger = logging.getLogger(__name__)


class ProgressLine:
    """Logs where the run stands: every 5 seconds on a terminal, every 30 elsewhere. Warnings are said once each.

    Args:
        steps: Steps of the whole run.
    """

    def __init__(self, steps: int) -> None:
        self._steps = steps
        self._every = 5.0 if sys.stderr.isatty() else 30.0
        self._said_at = time.monotonic()
        self._warned: set[str] = set()
        self._seconds = self._waited = self._samples = 0.0
        self._count = 0

    def step(self, row: Row, warnings: Sequence[str]) -> None:
        """Take in a step's row; `warnings` are about its numbers."""
        for warning in warnings:
            subject = warning.partition(" ")[0]
            if subject not in self._warned:
                self._warned.add(subject)
                _logger.warning("step %d: %s (said once; see steps.jsonl)", row["step"], warning)
        self._seconds += row["step_s"]
        self._waited += row["data_s"]
        self._samples += row["step_s"] * row["samples_per_s"]
        self._count += 1
        if time.monotonic() - self._said_at >= self._every:
            self._say(row)

    def _say(self, row: Row) -> None:
        left = (self._steps - row["step"] - 1) * self._seconds / self._count
        ratios = "  ".join(f"{name.replace('rho/', 'ρ ')} {value:.2f}" for name, value in row.items() if "rho/" in name)
        _logger.info(
            "step %d of %d, epoch %d  loss %.3f  %s  %.0f samples/s  waiting for data %.0f %%  %d min %02d s left",
            row["step"] + 1,
            self._steps,
            row["epoch"],
            row["loss"],
            ratios,
            self._samples / self._seconds,
            100 * self._waited / self._seconds,
            *divmod(int(left), 60),
        )
        self._said_at = time.monotonic()
        self._seconds = self._waited = self._samples = 0.0
        self._count = 0
