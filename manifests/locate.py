"""Find the files of a clip: match the file names in use against one scan of the folder of videos."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from bmlpipe.manifests.readers.kinetics_sounds import parse_key
from bmlpipe.manifests.schema import Clip, ManifestError
from bmlpipe.manifests.video_files import CONTAINERS, split_name, walk

_PREFERENCE = {suffix: position for position, suffix in enumerate(CONTAINERS)}
_SECONDS = 10  # length of a VGGSound or Kinetics clip whose name does not state its end


@dataclass(frozen=True, slots=True)
class Source:
    """The files of one clip.

    Attributes:
        video: The video file. It exists, but may be empty or corrupt.
        audio: A separate sound file, if the data set has one (CREMA-D's `AudioWAV/<id>.wav`); None: none.
    """

    video: Path
    audio: Path | None = None

    @classmethod
    def below(cls, folder: Path, video: str, audio: str | None) -> Source:
        """Make a source of the files at these paths below a folder."""
        return cls(folder / video, folder / audio if audio else None)


@dataclass(frozen=True)
class _FileNames:
    """The rule by which the files of a data set are named.

    Attributes:
        stems: Clip → file names without suffix under which its file may be found, the preferred one first.
        any_case: Upper and lower case are not distinguished.
        sound_files: A `.wav` file of the same stem holds the sound.
    """

    stems: Callable[[Clip], tuple[str, ...]]
    any_case: bool = False
    sound_files: bool = False


class Locator:
    """A search for clips' files by name, in any sub-folder.

    The folder is scanned once, at construction; each look-up is then a few dictionary accesses. Names are built from
    the clip and looked up; names on disk are never parsed. A clip of a data set without fixed names (`folder`) has a
    path, and its folder is not scanned.

    Args:
        dataset: Name of the data set; it decides which file names are looked up (docs/datasets.md).
        videos: Folder of the video files.

    Raises:
        ManifestError: The data set is unknown, `videos` is not a folder, or a folder below it cannot be listed.
    """

    def __init__(self, dataset: str, videos: Path) -> None:
        if dataset not in _FILE_NAMES:
            raise ManifestError(f"data set is {dataset!r}: must be one of {', '.join(_FILE_NAMES)}")
        if not videos.is_dir():
            raise ManifestError(f"videos is {videos}, which is not a folder: give the folder that holds the clips")
        self._names = _FILE_NAMES[dataset]
        self._videos = videos
        self._found: dict[str, str | list[str]] = {}  # stem → path below the folder, or paths
        self._sounds: dict[str, str] = {}  # stem → path
        if self._names is not None:
            self._scan(self._names)

    def _scan(self, names: _FileNames) -> None:
        for path in walk(self._videos):
            stem, suffix = split_name(path)
            if suffix in _PREFERENCE:
                key = stem.lower() if names.any_case else stem
                before = self._found.setdefault(key, path)
                if isinstance(before, list):
                    before.append(path)
                elif before is not path:
                    self._found[key] = [before, path]
            elif suffix == ".wav" and names.sound_files:
                self._sounds[stem] = min(path, self._sounds.get(stem, path))

    def find(self, clip: Clip) -> Source | None:
        """Find the files of a clip; return None if there is no video.

        Args:
            clip: A clip of the data set.

        If several files match, the first form of name wins, then the path that the annotation states, then the
        preferred container (`CONTAINERS`), then the first path in alphabetical order.
        """
        paths = self.paths(clip)
        return None if paths is None else Source.below(self._videos, *paths)

    def paths(self, clip: Clip) -> tuple[str, str | None] | None:
        """Find the same files, as paths of video and sound file relative to the folder of videos."""
        if self._names is None:
            return (clip.path, None) if os.path.isfile(f"{self._videos}/{clip.path}") else None  # noqa: PTH113  (fast)
        for stem in self._names.stems(clip):
            paths = self._found.get(stem.lower() if self._names.any_case else stem)
            if paths is not None:
                if isinstance(paths, list):
                    best = min(paths, key=lambda path: (path != clip.path, _PREFERENCE[split_name(path)[1]], path))
                else:
                    best = paths
                return best, self._sounds.get(stem)
        return None


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


def _id_stem(clip: Clip) -> tuple[str, ...]:
    return (clip.id,)


#: Data set → how its files are named; None: the annotation states their paths.
_FILE_NAMES: Mapping[str, _FileNames | None] = {
    "vggsound": _FileNames(_vggsound_stems),
    "kinetics-sounds": _FileNames(_kinetics_stems),
    "cremad": _FileNames(_id_stem, sound_files=True),
    "ucf101": _FileNames(_id_stem, any_case=True),
    "folder": None,
}
