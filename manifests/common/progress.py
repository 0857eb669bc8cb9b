"""Progress of long work: one line, updated in place on a terminal and logged at intervals elsewhere."""

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
    from rich.live import Live

_logger = logging.getLogger(__name__)

_BAR_WIDTH = 30  # characters


class StatusLine:
    """A display of the state of long work on stderr; use it as a context manager.

    On a terminal it is a bar and one line below the log, updated in place. If stderr is not a terminal, or the log is
    JSON, it is a line of the log.

    Args:
        on_terminal: Seconds between two updates on a terminal.
        in_log: Seconds between two log lines.
        transient: Remove the line from the terminal at the end.
    """

    def __init__(self, *, on_terminal: float = 0.2, in_log: float = 15.0, transient: bool = False) -> None:
        self._intervals, self._transient = (on_terminal, in_log), transient
        self._live: Live | None = None

    def __enter__(self) -> StatusLine:
        if log_settings().format == "text" and _logger.isEnabledFor(logging.INFO) and sys.stderr.isatty():
            self._live = _live(self._transient)
        self._shown_at = time.monotonic()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def due(self) -> bool:
        """Return whether it is time for the next update."""
        return time.monotonic() - self._shown_at >= self._intervals[self._live is None]

    def show(self, text: str, *, share: float | None = None, fields: Mapping[str, Any] | None = None) -> None:
        """Show a line now.

        Args:
            text: The line.
            share: Share of the work that is done, from 0 to 1; None if it is not known.
            fields: The same information as JSON values, for the log in JSON.
        """
        self._shown_at = time.monotonic()
        if self._live is not None:
            self._live.update(_renderable(text, share), refresh=True)
        else:
            _logger.info("%s", text, extra=dict(fields or {}))


class ProgressMeter:
    """A counter of finished items that shows their number, rate and remaining time; use it as a context manager.

    Args:
        unit: Name of the items, in the plural: `clips`.
        total: Expected number of items; None if it is not known yet (see `expect`).
    """

    def __init__(self, unit: str, total: int | None = None) -> None:
        self._unit, self._total = unit, total
        self._done = 0
        self._failures: Counter[str] = Counter()
        self._line = StatusLine()

    def __enter__(self) -> ProgressMeter:
        self._start = time.monotonic()
        self._line.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._done:
            self._show()
        self._line.__exit__(kind, error, trace)

    def expect(self, total: int) -> None:
        """Set the expected number of items."""
        self._total = total

    def advance(self, count: int = 1, failures: Mapping[str, int] | None = None) -> None:
        """Count finished items, and those of them that failed, by reason."""
        self._done += count
        self._failures.update(failures or {})
        if self._line.due():
            self._show()

    def _show(self) -> None:
        rate = self._done / max(time.monotonic() - self._start, 1e-9)
        text = f"{self._done} of {self._total or '?'} {self._unit}  {rate:.1f}/s"
        fields: dict[str, Any] = {"done": self._done, "total": self._total, "per_second": round(rate, 3)}
        if self._total and self._done < self._total:
            fields["seconds_left"] = int((self._total - self._done) / rate)
            text += f"  {duration_text(fields['seconds_left'])} left"
        if self._failures:
            fields["failures"] = dict(self._failures)
        text += "".join(f"  {reason} {count}" for reason, count in self._failures.most_common(4))
        self._line.show(text, share=self._done / self._total if self._total else None, fields=fields)


def duration_text(seconds: float) -> str:
    """Format a duration for people.

    Examples:
        >>> duration_text(67), duration_text(3720)
        ('1 min 07 s', '1 h 02 min')
    """
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min {rest:02d} s"


def _live(transient: bool) -> Live | None:
    """Start a display on stderr; return None on a terminal that cannot move its cursor."""
    from rich.console import Console
    from rich.live import Live

    console = Console(stderr=True, highlight=False, markup=False)
    if not console.is_terminal or console.is_dumb_terminal:
        return None
    live = Live(console=console, auto_refresh=False, transient=transient, redirect_stdout=False)
    live.start()
    return live


def _renderable(text: str, share: float | None) -> Any:
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    line = Text(text, no_wrap=True, overflow="ellipsis")
    if share is None:
        return line
    grid = Table.grid(padding=(0, 1))
    grid.add_column(width=_BAR_WIDTH)
    grid.add_column(no_wrap=True, overflow="ellipsis")
    grid.add_row(ProgressBar(total=1.0, completed=share, width=_BAR_WIDTH), line)
    return grid
