"""Precomputed optical flow: one image per picture and component, in the layouts that UCF-101 and TSN have made common.

Two layouts are read, with or without a folder of the class in between; upper and lower case count as equal:

- `<video>/flow_x_0001.jpg`, `<video>/flow_y_0001.jpg` (or `x_0001.jpg`, `y_0001.jpg`);
- `u/<video>/frame000001.jpg` for x, `v/<video>/frame000001.jpg` for y.

Numbers run without gaps from 0 or 1, with any number of digits. The n-th image is the field from the n-th picture of
the video to the next: a video of N pictures has N - 1 images, or N, the last of which is not used.

The images are stored unchanged. Programs that make them usually store a displacement v as
round(255 · (v + bound) / (2 · bound)), with bound 20. Reading this as this package's own 128 + v · 127 / bound adds an
error of at most bound / 127 (0.16 pixels) to those of rounding (half a level, 0.08 pixels) and of JPEG.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import simplejpeg

from bmlpipe.pipeline.media.errors import ClipError
from bmlpipe.pipeline.media.source_file import SourceFile


class FlowImages:
    """The flow images of one video.

    Args:
        folder: Folder of the images of all videos.
        video: The video file. Its images are searched in a folder with its stem, directly or below a folder with the
            name of its class.

    Attributes:
        size: Rows and columns of the images; (0, 0) before the first one is read.

    Raises:
        ClipError: `missing_flow_images`: there is no folder for this video, or images are missing in it.
    """

    def __init__(self, folder: Path, video: Path) -> None:
        self.size = (0, 0)
        places = _places(folder, video)
        if not places:
            raise ClipError("missing_flow_images", f"{folder} holds neither {video.stem} nor u/{video.stem} with v/")
        if len(places) == 1:
            x, y = (_in_order(places[0], rf"(?:flow_?)?{axis}_?([0-9]+)\.jpe?g") for axis in "xy")
        else:
            x, y = (_in_order(place, r"[^0-9]*([0-9]+)\.jpe?g") for place in places)
        if len(x) != len(y):
            raise ClipError("missing_flow_images", f"{places[0]}: {len(x)} images of x, {len(y)} of y")
        self._pairs = list(zip(x, y))

    def fields(self, number: int, stack: int) -> tuple[tuple[bytes, bytes], ...]:
        """Read consecutive fields as (x, y) pairs of JPEGs.

        Args:
            number: Number of the first picture in the video, from 0.
            stack: Number of fields.

        Raises:
            ClipError: `missing_flow_images`: there are too few images. `bad_flow_images`: an image cannot be read, or
                differs in size from the others.
        """
        if number + stack > len(self._pairs):
            raise ClipError(
                "missing_flow_images",
                f"field {number + stack} of the video is needed, but there are only {len(self._pairs)} images",
            )
        return tuple((self._read(x), self._read(y)) for x, y in self._pairs[number : number + stack])

    def check_count(self, pictures: int) -> None:
        """Check that the number of images matches the number of pictures of the video.

        Raises:
            ClipError: `missing_flow_images`: it does not.
        """
        if len(self._pairs) not in (pictures - 1, pictures):
            raise ClipError(
                "missing_flow_images",
                f"there are {len(self._pairs)} images for {pictures} pictures: they may belong to another version of "
                "the video",
            )

    def _read(self, path: Path) -> bytes:
        data = path.read_bytes()
        try:
            size = simplejpeg.decode_jpeg(data, "GRAY").shape[:2]
        except ValueError as error:
            raise ClipError("bad_flow_images", f"{path} is not a JPEG or is damaged: {error}") from error
        if self.size not in ((0, 0), size):
            raise ClipError("bad_flow_images", f"{path} has {size} rows and columns, the others have {self.size}")
        self.size = size
        return data


def quick_check(folder: Path, video: Path) -> tuple[int, int, int]:
    """Return the number, total size in bytes and newest modification time in ns of a video's images; zeros without any.

    Equal numbers mean that the images have not changed.
    """
    stats = [entry.stat() for place in _places(folder, video) for entry in _files(place)]
    return len(stats), sum(stat.st_size for stat in stats), max((stat.st_mtime_ns for stat in stats), default=0)


def identity(folder: Path, video: Path) -> SourceFile:
    """Identify a video's images: the numbers of `quick_check`, and a SHA-256 of all names and contents."""
    count, size, newest = quick_check(folder, video)
    digest = hashlib.sha256()
    for place in _places(folder, video):
        for entry in sorted(_files(place), key=lambda entry: entry.name):
            data = Path(entry.path).read_bytes()
            digest.update(f"{entry.name}\0{len(data)}\0".encode("utf-8", "surrogateescape"))
            digest.update(data)
    return SourceFile(f"{count} images", size, newest, digest.hexdigest())


def same_images(old: SourceFile | None, folder: Path, video: Path) -> bool:
    """Return whether a video's images still have an identity. They are read only if their newest time has changed."""
    count, size, newest = quick_check(folder, video)
    if old is None or (old.name, old.bytes) != (f"{count} images", size):
        return False
    return old.mtime_ns == newest or old.sha256 == identity(folder, video).sha256


def _places(folder: Path, video: Path) -> tuple[Path, ...]:
    """Find the folder of a video's images, or the folders of x and of y; empty if there are none."""
    for names in ((video.stem,), (video.parent.name, video.stem)):
        if both := _below(folder, *names):
            return (both,)
        across, down = _below(folder, "u", *names), _below(folder, "v", *names)
        if across and down:
            return across, down
    return ()


def _files(place: Path) -> Iterator[os.DirEntry[str]]:
    with os.scandir(place) as entries:
        yield from (entry for entry in entries if entry.is_file())


def _in_order(folder: Path, pattern: str) -> list[Path]:
    """List the images whose names match a pattern, ordered by their number."""
    found = {
        int(match[1]): path for path in folder.iterdir() if (match := re.fullmatch(pattern, path.name, re.IGNORECASE))
    }
    numbers = sorted(found)
    first = min(1, *numbers) if numbers else 1
    if not numbers or numbers != list(range(first, first + len(numbers))):
        existing = f"numbers {numbers[0]} to {numbers[-1]}, {len(numbers)} in all" if numbers else "none"
        raise ClipError(
            "missing_flow_images",
            f"{folder}: images must be numbered from 0 or 1 without gaps, but there are {existing}",
        )
    return [found[number] for number in numbers]


def _below(folder: Path, *names: str) -> Path | None:
    """Find a sub-folder by its names, in upper or lower case; None if it does not exist."""
    place: Path | None = folder
    for name in names:
        place = None if place is None else _folders(place).get(name.casefold())
    return place if place is not None and place.is_dir() else None


def _folders(folder: Path) -> dict[str, Path]:
    """Map lower-case names to the entries of a folder, which is listed again only when it has changed."""
    return _listed(folder, folder.stat().st_mtime_ns) if folder.is_dir() else {}


@lru_cache(maxsize=256)
def _listed(folder: Path, changed: int) -> dict[str, Path]:
    return {path.name.casefold(): path for path in folder.iterdir()}
