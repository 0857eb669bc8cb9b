"""Progress of long work: a bar on a terminal, a log line now and then elsewhere."""

from __future__ import annotations

import logging
import sys
import time
from collections import Counter
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any

from bmlpipe.manifests.common.logs import log_settings

if TYPE_CHECKING:
    from rich.progress import Progress

_logger = logging.getLogger(__name__)

_EVERY = 15.0  # seconds between lines


class Meter:
    """Counts finished items on stderr; use it as a context manager.

    There is a bar where stderr is a terminal and log lines are for people, else a line every 15 s and at the end.

    Args:
        what: What is counted, in the plural: `clips`.
        total: How many there will be; None: not known yet (`expect`).
    """

    def __init__(self, what: str, total: int | None = None) -> None:
        self._what, self._total = what, total
        self._done = 0
        self._failures: Counter[str] = Counter()
        self._bar: Progress | None = None

    def __enter__(self) -> Meter:
        self._start = self._said = time.monotonic()
        if sys.stderr.isatty() and log_settings().format == "text" and _logger.isEnabledFor(logging.INFO):
            self._bar = _bar()
            self._task = self._bar.add_task(self._what, total=self._total)
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif self._done:
            self._say()

    def expect(self, total: int) -> None:
        """Say how many there will be."""
        self._total = total
        if self._bar is not None:
            self._bar.update(self._task, total=total)

    def advance(self, count: int = 1, failures: Mapping[str, int] | None = None) -> None:
        """Count finished items, and failures by their reason."""
        self._done += count
        self._failures.update(failures or {})
        if self._bar is not None:
            self._bar.update(
                self._task, advance=count, description=f"{self._rate():.1f} {self._what}/s{self._failed()}"
            )
        elif time.monotonic() - self._said > _EVERY:
            self._said = time.monotonic()
            self._say()

    def _rate(self) -> float:
        return self._done / max(time.monotonic() - self._start, 1e-9)

    def _failed(self) -> str:
        return "".join(f"  {reason} {count}" for reason, count in self._failures.most_common(4))

    def _say(self) -> None:
        line = f"{self._done} of {self._total or '?'} {self._what}  {self._rate():.1f}/s"
        fields: dict[str, Any] = {"done": self._done, "total": self._total, "per_second": round(self._rate(), 3)}
        if self._total and self._done < self._total:
            left = int((self._total - self._done) / self._rate())
            line += f"  {left // 60} min {left % 60:02d} s left"
            fields["seconds_left"] = left
        if self._failures:
            fields["failures"] = dict(self._failures)
        _logger.info("%s", line + self._failed(), extra=fields)


def _bar() -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
    text = TextColumn("{task.description}", markup=False)
    return Progress(BarColumn(), MofNCompleteColumn(), text, TimeRemainingColumn(), console=console)
