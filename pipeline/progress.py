"""Progress of long work: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections import Counter
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

_EVERY = 15.0  # seconds between lines where there is no terminal


class Meter:
    """Counts finished items on stderr; use it as a context manager.

    Args:
        what: What is counted, in the plural: `clips`.
        total: How many there will be.
    """

    def __init__(self, what: str, total: int) -> None:
        self._what, self._total = what, total
        self._done = 0
        self._failures: Counter[str] = Counter()
        self._console = Console(stderr=True, highlight=False)
        self._bar: Progress | None = None

    def __enter__(self) -> Meter:
        self._start = self._said = time.monotonic()
        if sys.stderr.isatty():
            columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"), TimeRemainingColumn())
            self._bar = Progress(*columns, console=self._console)
            self._task = self._bar.add_task(self._what, total=self._total)
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif self._done:
            self._console.print(self._line())

    def advance(self, count: int = 1, failures: Counter[str] | None = None) -> None:
        """Count finished items, and failures by their reason."""
        self._done += count
        self._failures.update(failures or {})
        if self._bar is not None:
            self._bar.update(self._task, advance=count, description=self._line(short=True))
        elif time.monotonic() - self._said > _EVERY:
            self._said = time.monotonic()
            self._console.print(self._line())

    def _line(self, *, short: bool = False) -> str:
        rate = self._done / max(time.monotonic() - self._start, 1e-9)
        parts = (
            [f"{self._what} {rate:.1f}/s"]
            if short
            else [f"{self._done} of {self._total} {self._what}", f"{rate:.1f}/s"]
        )
        if not short and self._done < self._total:
            minutes, seconds = divmod(int((self._total - self._done) / max(rate, 1e-9)), 60)
            parts.append(f"{minutes} min {seconds:02d} s left")
        parts += [f"{reason} {count}" for reason, count in self._failures.most_common(4)]
        return "  ".join(parts)
