"""The identity of a source file: its size, modification time and SHA-256."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path

from bmlpipe.manifests.common.files import sha256_of


@dataclass(frozen=True)
class SourceFile:
    """The identity of a source file. Size and modification time are the quick check, SHA-256 the sure one.

    Attributes:
        name: File name without its folder.
        bytes: Size.
        mtime_ns: Modification time in nanoseconds since the epoch.
        sha256: Hexadecimal digest of the contents.
    """

    name: str
    bytes: int
    mtime_ns: int
    sha256: str

    @classmethod
    def of(cls, path: Path) -> SourceFile:
        """Read the identity of a file.

        Raises:
            OSError: The file cannot be read.
        """
        if not stat.S_ISREG(path.stat().st_mode):  # opening a pipe or a device could block or have side effects
            raise OSError(f"{path} is not a regular file but a folder, pipe, socket or device")
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            return cls(path.name, status.st_size, status.st_mtime_ns, sha256_of(file))

    def same_content(self, path: Path) -> bool:
        """Return whether `path` holds the same bytes; hash it only if the size matches and name or time differs."""
        status = path.stat()
        if status.st_size != self.bytes:
            return False
        if (path.name, status.st_mtime_ns) == (self.name, self.mtime_ns):
            return True
        return SourceFile.of(path).sha256 == self.sha256
