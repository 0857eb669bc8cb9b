"""The status file of a running program: JSON for other programs, replaced as a whole every few seconds.

A program that is killed cannot report it: `state` stays `running`, and `updated` grows old. If `updated` is more than a
minute old, the process has ended or is suspended.
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

#: Seconds between two updates of the file.
EVERY = 5.0


class StatusFile:
    """A status file that a thread updates while a block runs; use it as a context manager.

    The block never waits for the file, and continues if the file cannot be written.

    Args:
        folder: Folder of the file, `STATUS_FILE`.
        content: Returns the fields besides `version`, `command`, `pid`, `host`, `started`, `updated` (UTC), `state` and
            `error`. It is called in the thread.
        beside: Name of a further file in the folder → function that makes its text from all fields.

    Attributes:
        state: `running`; at the end of the block `finished`, `failed` (by an exception, which `error` states) or
            `stopped` (by Ctrl-C or a signal, or because the block set it).
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
        self._thread.join(timeout=EVERY)  # `content` may wait for a machine that is gone
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
