"""A time limit per clip: a process whose decoder hangs is ended, and the traceback of that moment is kept.

A thread cannot be stopped from outside, and one that hangs inside a codec never looks at a flag. So the process of the
worker ends; its cluster starts another one and handles it like any other death of a worker (`cluster.batches`). The
clock is that of `faulthandler`, which needs neither the interpreter nor its lock to act.
"""

from __future__ import annotations

import faulthandler
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bmlpipe.manifests.common.errors import OptionError
from bmlpipe.shards.sample import key_of


@dataclass(frozen=True)
class ClipTimeout:
    """A time limit per clip, after which this process ends.

    Attributes:
        folder: Folder of the tracebacks of ended processes, one file per clip; made when needed.
        seconds: The limit, above 0.

    Raises:
        OptionError: The limit is out of range.
    """

    folder: Path
    seconds: float

    def __post_init__(self) -> None:
        if not self.seconds > 0:
            raise OptionError(f"the time limit per clip is {self.seconds} s: must be above 0")

    @contextmanager
    def watch(self, clip_id: str) -> Iterator[None]:
        """Apply the limit inside the block; only one block at a time per process."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self._path(clip_id)
        with path.open("w", encoding="utf-8") as file:
            faulthandler.dump_traceback_later(self.seconds, exit=True, file=file)
            try:
                yield
            finally:
                faulthandler.cancel_dump_traceback_later()
                path.unlink(missing_ok=True)

    def pop_traceback(self, clip_id: str) -> str:
        """Return where the process of a clip was when it was ended, innermost call first; empty: it was not ended.

        Remove the file of the traceback.
        """
        path = self._path(clip_id)
        try:
            lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        except FileNotFoundError:
            return ""
        path.unlink(missing_ok=True)
        calls = [line.strip() for line in lines if line.lstrip().startswith("File ")]
        return "; ".join(calls[:3]) or ("; ".join(lines[:1]))

    def clean(self) -> None:
        """Remove the tracebacks of clips that succeeded the second time."""
        for path in self.folder.glob("*.hung") if self.folder.is_dir() else ():
            path.unlink(missing_ok=True)
        if self.folder.is_dir() and not any(self.folder.iterdir()):
            self.folder.rmdir()

    def _path(self, clip_id: str) -> Path:
        return self.folder / f"{key_of(clip_id)}.hung"
