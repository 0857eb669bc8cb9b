"""A line about a running training."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

from rich.console import Console
from rich.live import Live
from rich.text import Text

from bmlpipe.manifests.common.logs import log_settings
from bmlpipe.train.runs.journal import Row

_logger = logging.getLogger(__name__)

_EVERY_ON_TERMINAL, _EVERY_IN_LOG = 1.0, 30.0  # seconds


class ProgressLine:
    """Says where the run stands; use it as a context manager. Warnings are said once each.

    On a terminal it is one line that is renewed in its place, below the log. Elsewhere, and where the log is JSON, it
    is a line of the log every 30 seconds.

    Args:
        steps: Steps of the whole run.
    """

    def __init__(self, steps: int) -> None:
        self._steps = steps
        console = Console(stderr=True, highlight=False)
        on_terminal = console.is_terminal and not console.is_dumb_terminal and log_settings().format == "text"
        self._live = Live(console=console, auto_refresh=False, transient=True, redirect_stdout=False)
        self._on_terminal = on_terminal and _logger.isEnabledFor(logging.INFO)
        self._every = _EVERY_ON_TERMINAL if self._on_terminal else _EVERY_IN_LOG
        self._said_at = time.monotonic()
        self._warned: set[str] = set()
        self._seconds = self._waited = self._samples = 0.0
        self._count = 0

    def __enter__(self) -> ProgressLine:
        if self._on_terminal:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

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
        minutes, seconds = divmod(int((self._steps - row["step"] - 1) * self._seconds / self._count), 60)
        ratios = "".join(f"  {name.replace('rho/', 'ρ ')} {value:.2f}" for name, value in row.items() if "rho/" in name)
        line = (
            f"step {row['step'] + 1} of {self._steps}, epoch {row['epoch']}  loss {row['loss']:.3f}{ratios}  "
            f"{self._samples / self._seconds:.0f} samples/s  waiting for data "
            f"{100 * self._waited / self._seconds:.0f} %  {minutes} min {seconds:02d} s left"
        )
        if self._on_terminal:
            self._live.update(Text(line, no_wrap=True, overflow="ellipsis"), refresh=True)
        else:
            _logger.info("%s", line)
        self._said_at = time.monotonic()
        self._seconds = self._waited = self._samples = 0.0
        self._count = 0
