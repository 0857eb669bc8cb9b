"""Files: written atomically, and hashed."""

from __future__ import annotations

import hashlib
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

#: Suffix of a file that is being written. A process that is killed leaves such a file behind; it may be deleted.
TEMPORARY_SUFFIX = ".writing"

_BLOCK = 1 << 20  # bytes


@contextmanager
def open_atomically(path: Path, *, sync: bool = False, concurrent: bool = False) -> Iterator[BinaryIO]:
    """Open a file for writing that appears at `path`, whole, when the block ends; an error leaves `path` as it was.

    Args:
        path: The file to create or replace. Its folder must exist.
        sync: Flush the content to the disk before the file is renamed, so that it survives a power failure.
        concurrent: Several processes may write `path` at the same time: use a temporary name of this call alone.

    Yields:
        The temporary file beside `path`, in binary mode.

    Raises:
        OSError: The file cannot be written; the error names `path` or the temporary file.
    """
    own = f".{uuid.uuid4().hex[:8]}" if concurrent else ""
    temporary = path.with_name(f"{path.name}{own}{TEMPORARY_SUFFIX}")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            if sync:
                os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno is not None and error.filename is None:
            error.filename = str(path)  # `write` on a full disk states no file name
        raise


def write_atomically(path: Path, content: bytes | str, *, sync: bool = False, concurrent: bool = False) -> None:
    """Create or replace a file as a whole; text is encoded as UTF-8. See `open_atomically`."""
    with open_atomically(path, sync=sync, concurrent=concurrent) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def sha256_of(source: Path | BinaryIO | int) -> str:
    """Compute the SHA-256 of a file of any size, as 64 hexadecimal digits.

    Args:
        source: Path of the file, or an open binary file or descriptor, which is read from its position to its end.
    """
    if isinstance(source, Path):
        with source.open("rb") as file:
            return sha256_of(file)
    if isinstance(source, int):
        with open(source, "rb", buffering=0, closefd=False) as file:
            return sha256_of(file)
    digest = hashlib.sha256()
    while block := source.read(_BLOCK):
        digest.update(block)
    return digest.hexdigest()
