"""A small JSON file that says how a running program stands, for machines: replaced as a whole every few seconds.

A program that is killed cannot say so: its file goes on saying `running`, and `updated` grows old. A file that was not
replaced for a minute, on a machine whose clock is right, belongs to a process that is gone or stands still as a whole.
"""

from __future__ import annotations

import json
import logging
import os
import shlex
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from bmlpipe.manifests.common.files import write_atomically

_logger = logging.getLogger(__name__)

STATUS_FILE = "status.json"

#: Seconds between two versions of the file.
EVERY = 5.0


class StatusFile:
    """Keeps a status file up to date from a thread of its own while a block runs; use it as a context manager.

    The program's work does not wait for it, and goes on where it cannot be written.

    Args:
        folder: Where the file lies, `STATUS_FILE`.
        content: What it says beside `version`, `command`, `pid`, `host`, `started`, `updated` (UTC), `state` and
            `error`: called in the thread.
        beside: File name → its text made of the whole content, for files written with it.

    Attributes:
        state: `running`, and at the block's end `finished`, `failed` (an exception, told as `error`) or `stopped` (by
            Ctrl-C or a signal, or because the block said so).
    """

    def __init__(
        self,
        folder: Path,
        content: Callable[[], Mapping[str, Any]],
        beside: Mapping[str, Callable[[Mapping[str, Any]], str]] | None = None,
    ) -> None:
        self.state = "running"
        self._folder, self._content, self._beside = folder, content, beside or {}
        self._error = ""
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._repeat, name="status", daemon=True)

    def __enter__(self) -> StatusFile:
        self._started = _now()
        self._write()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join(timeout=EVERY)  # longer only where its content waits for a machine that is gone
        if isinstance(error, KeyboardInterrupt):
            self.state = "stopped"
        elif error is not None:
            self.state, self._error = "failed", f"{type(error).__name__}: {error}"
        elif self.state == "running":
            self.state = "finished"
        self._write()

    def _repeat(self) -> None:
        while not self._ended.wait(EVERY):
            self._write()

    def _write(self) -> None:
        content = {
            "version": 1,
            "command": shlex.join(sys.argv),
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "started": self._started,
            "updated": _now(),
            "state": self.state,
            **({"error": self._error} if self._error else {}),
            **self._content(),
        }
        texts = {STATUS_FILE: json.dumps(content, indent=1) + "\n"}
        texts |= {name: text(content) for name, text in self._beside.items()}
        try:
            for name, text in texts.items():
                write_atomically(self._folder / name, text)
        except OSError as error:
            _logger.debug("%s not written: %s", STATUS_FILE, error)


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
