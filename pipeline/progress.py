"""Progress of long work: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Mapping
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

_EVERY = 15.0  # seconds between lines where there is no terminal


class Meter:
    """Counts finished items on stderr; use it as a context manager.

    Args:
        what: What is counted, in the plural: `clips`.
        total: How many there will be; None: not known yet (`expect`).
    """

    def __init__(self, what: str, total: int | None = None) -> None:
        self._what, self._total = what, total
        self._done = 0
        self._failures: Counter[str] = Counter()
        self._console = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
        self._bar: Progress | None = None

    def __enter__(self) -> Meter:
        self._start = self._said = time.monotonic()
        if sys.stderr.isatty():
            text = TextColumn("{task.description}", markup=False)
            self._bar = Progress(BarColumn(), MofNCompleteColumn(), text, TimeRemainingColumn(), console=self._console)
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
            self._console.print(self._line())

    def _rate(self) -> float:
        return self._done / max(time.monotonic() - self._start, 1e-9)

    def _failed(self) -> str:
        return "".join(f"  {reason} {count}" for reason, count in self._failures.most_common(4))

    def _line(self) -> str:
        line = f"{self._done} of {self._total or '?'} {self._what}  {self._rate():.1f}/s"
        if self._total and self._done < self._total:
            minutes, seconds = divmod(int((self._total - self._done) / self._rate()), 60)
            line += f"  {minutes} min {seconds:02d} s left"
        return line + self._failed()
