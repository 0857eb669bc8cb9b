"""Log lines on stderr, as text or as one JSON object per line, each with its time and level.

Results go to stdout. Everything else is logged, including warnings of other packages.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from types import TracebackType
from typing import Any, NamedTuple

from bmlpipe.manifests.common.errors import OptionError

FORMATS = ("text", "json")

#: Environment variable that sets the format when no option does.
ENVIRONMENT = "BMLPIPE_LOG"

_OWN = "bmlpipe"
_STANDARD = {*vars(logging.makeLogRecord({})), "message", "asctime", "taskName"}


class _Text(logging.Formatter):
    """`2025-03-01 04:05:06 INFO    message`, in local time. Lines of other packages name their logger."""

    def __init__(self, rank: int | None) -> None:
        super().__init__(datefmt="%Y-%m-%d %H:%M:%S")
        self._rank = f"rank {rank}: " if rank else ""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  (logging's name)
        foreign = "" if record.name.partition(".")[0] == _OWN else f"{record.name}: "
        return f"{self.formatTime(record, self.datefmt)} {record.levelname:7} {self._rank}{foreign}{record.message}"

    def usesTime(self) -> bool:  # noqa: N802  (logging's name)
        return False


class _Json(logging.Formatter):
    """One JSON object per line: time (UTC), level, logger, message, and where present rank, fields and traceback."""

    def __init__(self, rank: int | None) -> None:
        super().__init__()
        self._rank = rank

    def format(self, record: logging.LogRecord) -> str:
        seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        content: dict[str, Any] = {
            "time": f"{seconds}.{int(record.msecs):03d}Z",
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if self._rank is not None:
            content["rank"] = self._rank
        if fields := {name: value for name, value in vars(record).items() if name not in _STANDARD}:
            content["fields"] = fields
        if record.exc_info:
            content["traceback"] = self.formatException(record.exc_info)
        return json.dumps(content, default=str)


class _Stderr(logging.StreamHandler):  # type: ignore[type-arg]  # generic from Python 3.11 on only
    """A handler for the current `sys.stderr`, which a progress bar replaces while it is shown."""

    def __init__(self, form: str, rank: int | None) -> None:
        super().__init__()
        self.form, self.rank = form, rank

    def filter(self, record: logging.LogRecord) -> bool:
        """Drop other packages' lines below WARNING, whatever level they set on their loggers."""
        return record.levelno >= logging.WARNING or record.name.partition(".")[0] == _OWN

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)


class LogSettings(NamedTuple):
    """The arguments of the last `configure`."""

    format: str
    level: int
    rank: int | None


def configure(form: str = "text", level: int = logging.INFO, rank: int | None = None) -> None:
    """Send all log lines and uncaught exceptions of this process to stderr. A later call replaces an earlier one.

    Args:
        form: `text` or `json`: one JSON object per line, with `fields` for the values that a caller passed as `extra`.
        level: Lowest level of bmlpipe's own lines. Other packages' lines appear from WARNING on.
        rank: Rank of this process in a distributed run. Every JSON line states it, and the text lines of all ranks but
            the first.

    Raises:
        OptionError: The format is unknown.
    """
    if form not in FORMATS:
        raise OptionError(f"log format is {form!r}: must be one of {', '.join(FORMATS)}")
    handler = _Stderr(form, rank)
    handler.setFormatter(_Json(rank) if form == "json" else _Text(rank))
    root = logging.getLogger()
    root.handlers = [old for old in root.handlers if not isinstance(old, _Stderr)] + [handler]
    root.setLevel(max(level, logging.WARNING))  # Dask adds a handler of its own if the root logger has none
    logging.getLogger(_OWN).setLevel(level)
    logging.captureWarnings(True)
    sys.excepthook = _log_uncaught


def log_settings() -> LogSettings:
    """Return the settings of the last `configure`, to repeat it in another process."""
    handlers = [handler for handler in logging.getLogger().handlers if isinstance(handler, _Stderr)]
    form, rank = (handlers[0].form, handlers[0].rank) if handlers else ("text", None)
    return LogSettings(form, logging.getLogger(_OWN).getEffectiveLevel(), rank)


def configure_for_rank(rank: int) -> None:
    """State the rank in this process's log lines; ranks other than the first log warnings and errors only."""
    form, level, _ = log_settings()
    configure(form, level if rank == 0 else max(level, logging.WARNING), rank)


def _log_uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    logging.getLogger(_OWN).critical("unexpected error: %s: %s", kind.__name__, error, exc_info=(kind, error, trace))
