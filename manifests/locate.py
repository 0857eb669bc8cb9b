"""Where a clip's file is: the variants of file names in use, matched against one scan of the videos' folder."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from bmlpipe.manifests.readers.kinetics_sounds import parse_key
from bmlpipe.manifests.schema import Clip, ManifestError

#: Suffixes of video files, in any case, in order of preference where a clip exists in several containers.
CONTAINERS = (".mp4", ".mkv", ".webm", ".avi", ".flv", ".mov", ".mpg", ".mpeg", ".m4v", ".wmv", ".ts")

_PREFERENCE = {suffix: position for position, suffix in enumerate(CONTAINERS)}
_SECONDS = 10  # a VGGSound or Kinetics clip, where the name does not say its end


@dataclass(frozen=True, slots=True)
class Source:
    """The files of one clip.

    Attributes:
        video: The video file; it exists, and may still be empty or corrupt.
        audio: A sound file of its own, where the data set has one (CREMA-D's `AudioWAV/<id>.wav`).
    """

    video: Path
    audio: Path | None = None

    @classmethod
    def below(cls, folder: Path, video: str, audio: str | None) -> Source:
        """The files of these names in a folder."""
        return cls(folder / video, folder / audio if audio else None)


class Locator:
    """Finds clips' files by name, in any sub-folder.

    The folder is scanned once, when the locator is made: then each look-up is a few dictionary accesses. Names are
    built from the clip and looked up; names on disk are never parsed. A clip of `folder` has a path and needs no
    scan.

    Args:
        dataset: Name of the data set: decides on the forms of names (docs/datasets.md).
        videos: Folder of the video files.

    Raises:
        ManifestError: The data set is unknown, `videos` is no folder, or a folder in it cannot be listed.
    """

    def __init__(self, dataset: str, videos: Path) -> None:
        if dataset != "folder" and dataset not in _STEMS:
            raise ManifestError(f"data set {dataset!r} must be one of {', '.join((*_STEMS, 'folder'))}")
        if not videos.is_dir():
            raise ManifestError(f"videos {videos}: is no folder: give the one that holds the clips")
        self._dataset = dataset
        self._videos = videos
        self._found: dict[str, str | list[str]] = {}  # stem (UCF-101: in lower case) → path below the folder, or paths
        self._sounds: dict[str, str] = {}  # stem → path
        if dataset == "folder":
            return
        for path in walk(videos):
            stem, suffix = split_name(path)
            if suffix in _PREFERENCE:
                key = stem.lower() if dataset == "ucf101" else stem
                before = self._found.setdefault(key, path)
                if isinstance(before, list):
                    before.append(path)
                elif before is not path:
                    self._found[key] = [before, path]
            elif suffix == ".wav" and dataset == "cremad":
                self._sounds[stem] = min(path, self._sounds.get(stem, path))

    def find(self, clip: Clip) -> Source | None:
        """The clip's files, or None where the video is absent.

        Where several files match: the first form of name, then the preferred container (`CONTAINERS`), then the first
        path in alphabetical order; a path that the annotation names goes before all.
        """
        names = self.names(clip)
        return None if names is None else Source.below(self._videos, *names)

    def names(self, clip: Clip) -> tuple[str, str | None] | None:
        """As `find`: the paths of video and sound file below the videos' folder."""
        if self._dataset == "folder":
            return (clip.path, None) if os.path.isfile(f"{self._videos}/{clip.path}") else None  # noqa: PTH113  (fast)
        for stem in _STEMS[self._dataset](clip):
            paths = self._found.get(stem)
            if paths is not None:
                if isinstance(paths, list):
                    best = min(paths, key=lambda path: (path != clip.path, _PREFERENCE[split_name(path)[1]], path))
                else:
                    best = paths
                return best, self._sounds.get(stem)
        return None


def walk(folder: Path) -> Iterator[str]:
    """All files below a folder, as paths relative to it with `/`; hidden ones and `lost+found` left out.

    Links to files count as files. Links to folders are followed after everything else, and only to folders that
    were not visited yet: so no loop is entered, and a file that lies below the folder is met under its own path.

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
            raise ManifestError(f"{real}: cannot be listed: {error.strerror}: make it readable or move it") from error


def split_name(path: str) -> tuple[str, str]:
    """Stem and lower-case suffix of a path's last part.

    >>> split_name("playing harp/6zlMP_kQ_-w_000030.MP4")
    ('6zlMP_kQ_-w_000030', '.mp4')
    """
    name = path.rpartition("/")[2]
    stem, dot, suffix = name.rpartition(".")
    return (stem, dot + suffix.lower()) if stem else (name, "")


def _vggsound_stems(clip: Clip) -> tuple[str, ...]:
    youtube, _, digits = clip.id.rpartition("_")
    if not digits.isdecimal():
        return (clip.id,)
    single, double, milliseconds = _forms(youtube, int(digits), int(digits) + _SECONDS)
    return (*single, milliseconds, *double)


def _kinetics_stems(clip: Clip) -> tuple[str, ...]:
    parts = parse_key(clip.id)
    if parts is None:
        return (clip.id,)
    youtube, start, end = parts
    single, double, milliseconds = _forms(youtube, start, start + _SECONDS if end is None else end)
    return (clip.id, *double, *single, milliseconds)


def _forms(youtube: str, start: int, end: int) -> tuple[tuple[str, ...], tuple[str, ...], str]:
    single = (f"{youtube}_{start:06d}", f"{youtube}_{start}")
    double = (f"{youtube}_{start:06d}_{end:06d}", f"{youtube}_{start}_{end}")
    return single, double, f"{youtube}_{start * 1000}_{end * 1000}"


#: Data set → the stems under which a clip's file may be found, the preferred form first.
_STEMS: dict[str, Callable[[Clip], tuple[str, ...]]] = {
    "vggsound": _vggsound_stems,
    "kinetics-sounds": _kinetics_stems,
    "cremad": lambda clip: (clip.id,),
    "ucf101": lambda clip: (clip.id.lower(),),
}
