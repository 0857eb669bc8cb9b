"""Log lines on stderr: a line for people, or a JSON object, each with its time and level.

Everything that is no result goes this way, other packages' warnings included; results are printed on stdout.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import Any

from bmlpipe.manifests.common.errors import OptionError

FORMATS = ("text", "json")

#: Environment variable that chooses the format where no option does.
ENVIRONMENT = "BMLPIPE_LOG"

_OWN = "bmlpipe"
_STANDARD = {*vars(logging.makeLogRecord({})), "message", "asctime", "taskName"}


class _Text(logging.Formatter):
    """`2025-03-01 04:05:06 INFO    message`, local time; loggers of other packages are named."""

    def __init__(self, rank: int | None) -> None:
        super().__init__(datefmt="%Y-%m-%d %H:%M:%S")
        self._rank = f"rank {rank}: " if rank else ""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  (logging's name)
        foreign = "" if record.name.partition(".")[0] == _OWN else f"{record.name}: "
        return f"{self.formatTime(record, self.datefmt)} {record.levelname:7} {self._rank}{foreign}{record.message}"

    def usesTime(self) -> bool:  # noqa: N802  (logging's name)
        return False


class _Json(logging.Formatter):
    """One object a line: time (UTC), level, logger, message; rank, fields and traceback where there are any."""

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
    """Writes to what stderr is at that moment: a progress bar puts a stream of its own in its place."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form = form

    def filter(self, record: logging.LogRecord) -> bool:
        """Other packages are heard from WARNING on, whatever level they have chosen for themselves."""
        return record.levelno >= logging.WARNING or record.name.partition(".")[0] == _OWN

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)


def configure(form: str = "text", level: int = logging.INFO, rank: int | None = None) -> None:
    """Send all log lines of this process to stderr, in the place of an earlier call's choice.

    Args:
        form: `text` or `json`. The fields of a JSON line are what its caller gave as `extra`.
        level: Lowest level of this package's own lines; other packages are heard from WARNING on.
        rank: Number of this process in a training: in every JSON line, and in the text of all but the first.
    """
    if form not in FORMATS:
        raise OptionError(f"log format is {form!r}: must be one of {', '.join(FORMATS)}")
    handler = _Stderr(form)
    handler.setFormatter(_Json(rank) if form == "json" else _Text(rank))
    root = logging.getLogger()
    root.handlers = [old for old in root.handlers if not isinstance(old, _Stderr)] + [handler]
    root.setLevel(max(level, logging.WARNING))  # Dask and others find a handler there and add none of their own
    logging.getLogger(_OWN).setLevel(level)
    logging.captureWarnings(True)
    if form == "json":
        sys.excepthook = lambda kind, error, trace: logging.getLogger(_OWN).critical(
            "internal error: %s", error, exc_info=(kind, error, trace)
        )


def chosen() -> tuple[str, int]:
    """Format and level of the last `configure`, for its call in another process."""
    forms = [handler.form for handler in logging.getLogger().handlers if isinstance(handler, _Stderr)]
    return (forms[0] if forms else "text"), logging.getLogger(_OWN).getEffectiveLevel()
