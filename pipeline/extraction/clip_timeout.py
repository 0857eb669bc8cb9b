"""A time limit for each clip: a decoder that hangs is ended together with its process, and what it was at is kept.

A thread cannot be stopped from outside, and one that hangs inside a codec never looks at a flag. So the process of
the worker ends; its cluster starts another one and deals with the death as with any other (`cluster.map_batches`).
The clock is `faulthandler`'s, which needs neither the interpreter nor its lock to strike.
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
class TimeLimit:
    """Ends this process when a clip takes longer than allowed.

    Attributes:
        folder: Where the traceback of a process that was ended is left, one file a clip; made when needed.
        seconds: The limit, above 0.
    """

    folder: Path
    seconds: float

    def __post_init__(self) -> None:
        if not self.seconds > 0:
            raise OptionError(f"the time limit is {self.seconds} s: must be above 0")

    @contextmanager
    def watch(self, clip_id: str) -> Iterator[None]:
        """The limit holds inside the block; one block at a time in a process."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self._path(clip_id)
        with path.open("w", encoding="utf-8") as file:
            faulthandler.dump_traceback_later(self.seconds, exit=True, file=file)
            try:
                yield
            finally:
                faulthandler.cancel_dump_traceback_later()
                path.unlink(missing_ok=True)

    def struck(self, clip_id: str) -> str:
        """Where in the code the clip's process was when it was ended, innermost first; empty: it was not.

        The file is removed.
        """
        path = self._path(clip_id)
        try:
            lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        except FileNotFoundError:
            return ""
        path.unlink(missing_ok=True)
        calls = [line.strip() for line in lines if line.lstrip().startswith("File ")]
        return "; ".join(calls[:3]) or ("; ".join(lines[:1]))

    def sweep(self) -> None:
        """Remove what ended processes left of clips that went well the second time."""
        for path in self.folder.glob("*.hung") if self.folder.is_dir() else ():
            path.unlink(missing_ok=True)
        if self.folder.is_dir() and not any(self.folder.iterdir()):
            self.folder.rmdir()

    def _path(self, clip_id: str) -> Path:
        return self.folder / f"{key_of(clip_id)}.hung"
