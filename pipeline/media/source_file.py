"""A source file's identity: size, modification time and SHA-256."""

from __future__ import annotations

import hashlib
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class SourceFile:
    """A source file's identity: size and modification time as the quick check, SHA-256 as the sure one."""

    name: str
    bytes: int
    mtime_ns: int
    sha256: str

    @classmethod
    def of(cls, path: Path) -> SourceFile:
        """Read a file's identity.

        Raises:
            OSError: The file cannot be read.
        """
        if not stat.S_ISREG(path.stat().st_mode):  # to open a pipe or a device would wait, or do something
            raise OSError(f"{path} is no file, but a folder, a pipe, a socket or a device")
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            return cls(path.name, status.st_size, status.st_mtime_ns, _sha256(file))

    def same_content(self, path: Path) -> bool:
        """Whether the file holds the same bytes; it is hashed only where the size is equal and name or time is not."""
        status = path.stat()
        if status.st_size != self.bytes:
            return False
        if (path.name, status.st_mtime_ns) == (self.name, self.mtime_ns):
            return True
        return SourceFile.of(path).sha256 == self.sha256


def _sha256(file: Any) -> str:
    whole = hashlib.sha256()
    while block := file.read(1 << 20):
        whole.update(block)
    return whole.hexdigest()
