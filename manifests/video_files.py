"""Video files on disk: their suffixes, and all files below a folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from bmlpipe.manifests.schema import ManifestError

CONTAINERS = (".mp4", ".mkv", ".webm", ".avi", ".flv", ".mov", ".mpg", ".mpeg", ".m4v", ".wmv", ".ts")
"""Suffixes of video files, in any case, in order of preference if a clip exists in several containers."""


def walk(folder: Path) -> Iterator[str]:
    """Yield all files below a folder, as paths relative to it with `/`, except hidden files and `lost+found`.

    Links to files count as files. Links to folders are followed after everything else, and only to folders that have
    not been visited: so the walk enters no loop, and yields each file below `folder` under its own path.

    Raises:
        ManifestError: A folder cannot be listed.
    """
    pending = [("", folder.resolve())]
    links: list[tuple[str, Path]] = []
    visited: set[Path] = set()
    while pending or links:
        if not pending:
            links.sort()
            pending.append(links.pop(0))
        prefix, real = pending.pop()
        if real in visited:
            continue
        visited.add(real)
        try:
            with os.scandir(real) as entries:
                for entry in entries:
                    if entry.name.startswith(".") or entry.name == "lost+found":
                        continue
                    if entry.is_dir(follow_symlinks=False):
                        pending.append((f"{prefix}{entry.name}/", real / entry.name))
                    elif entry.is_symlink() and Path(entry.path).is_dir():
                        links.append((f"{prefix}{entry.name}/", Path(entry.path).resolve()))
                    elif entry.is_file(follow_symlinks=False) or Path(entry.path).is_file():
                        yield prefix + entry.name
        except OSError as error:
            raise ManifestError(
                f"the folder {real} cannot be listed ({error.strerror}): make it readable, or move it away"
            ) from error


def split_name(path: str) -> tuple[str, str]:
    """Split a path's last part into stem and lower-case suffix.

    Examples:
        >>> split_name("playing harp/6zlMP_kQ_-w_000030.MP4")
        ('6zlMP_kQ_-w_000030', '.mp4')
    """
    name = path.rpartition("/")[2]
    stem, dot, suffix = name.rpartition(".")
    return (stem, dot + suffix.lower()) if stem else (name, "")
