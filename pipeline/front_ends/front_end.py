"""The base classes of front ends, each of which makes one feature kind from the pictures or the sound of a clip.

A front end consists of its options, a frozen dataclass that is validated when it is made and hashed into the ledger,
and the code that turns a decoded clip into a `Feature`. There are two sorts: `PictureOptions` start a
`PictureFrontEnd` for each clip, which takes the pictures of one instant after the other; `SoundOptions` turn the whole
sound of a clip into a feature. `registry.FRONT_ENDS` lists all of them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from bmlpipe.pipeline.front_ends.features import Feature, JpegSeries
from bmlpipe.pipeline.media.source_file import SourceFile
from bmlpipe.pipeline.media.video import ClipSpan, SelectedFrames, TimedFrame, VideoDecoder


class FrontEndOptions(ABC):
    """The options of a front end.

    Attributes:
        kind: The feature kind that the front end makes, a name of `bmlpipe.shards.kinds.KINDS`.
    """

    kind: ClassVar[str]

    @classmethod
    def from_command_line(cls, values: Mapping[str, Any]) -> FrontEndOptions:
        """Make the options that `bmlpipe extract` was given.

        Args:
            values: Name of a command-line option, with underscores → its value. Options of other front ends are
                ignored.

        Raises:
            OptionError: A value is out of range.
        """
        return cls()

    @abstractmethod
    def parameters(self, seconds: int | None) -> dict[str, Any]:
        """Return all that the stored bytes depend on, as JSON values. Its hash decides what is extracted again.

        Args:
            seconds: Length of the clips, in seconds; None: each clip as long as it is.
        """

    @property
    def companion_folder(self) -> Path | None:
        """Folder of companion files, from which the feature is made in addition to the clip; None: there are none."""
        return None

    def companion_stamp(self, video: Path) -> str:
        """Return a quick check of a clip's companion files: an equal stamp means no change; empty: there are none."""
        return ""

    def companion(self, video: Path) -> SourceFile | None:
        """Identify a clip's companion files; None: there are none."""
        return None

    def companion_unchanged(self, old: SourceFile | None, video: Path) -> bool:
        """Return whether a clip's companion files are still those of an earlier `companion`."""
        return True


class PictureOptions(FrontEndOptions):
    """The options of a front end that reads pictures."""

    @property
    def lookahead(self) -> int:
        """Number of pictures needed after the one shown at each instant."""
        return 0

    @property
    def counts_frames(self) -> bool:
        """Whether the front end needs the number of each picture in the file, so that no seek is allowed."""
        return False

    @abstractmethod
    def start(self, decoder: VideoDecoder, span: ClipSpan, path: Path) -> PictureFrontEnd:
        """Begin a clip.

        Args:
            decoder: The video; the front end reads its properties only.
            span: The clip's span.
            path: The video file.

        Raises:
            ClipError: The clip's companion files cannot be used.
        """


class PictureFrontEnd(ABC):
    """Computes one feature kind of one clip, frame by frame.

    Args:
        decoder: The video.
        span: The clip's span.

    Attributes:
        flags: Flags of the clip (docs/reasons.md) that this front end found.
    """

    def __init__(self, decoder: VideoDecoder, span: ClipSpan) -> None:
        self.flags: set[str] = set()
        self._decoder, self._span = decoder, span
        self._jpegs: list[bytes] = []
        self._times: list[float] = []
        self._size = (0, 0)

    @abstractmethod
    def add(self, selected: SelectedFrames) -> None:
        """Take the pictures of the next instant.

        Raises:
            ClipError: The pictures cannot be used.
        """

    @abstractmethod
    def finish(self) -> JpegSeries:
        """Return the feature, once all instants have been added.

        Raises:
            ClipError: The clip cannot be used.
        """

    def _seconds(self, frame: TimedFrame) -> float:
        """Return the presentation time of a picture, in seconds from the clip's start."""
        return self._decoder.seconds_from_start(frame.pts, self._span)


class SoundOptions(FrontEndOptions):
    """The options of a front end that reads sound."""

    @property
    @abstractmethod
    def rate(self) -> int:
        """Sampling rate of the sound that the front end reads, in Hz."""

    @abstractmethod
    def make(self, samples: npt.NDArray[np.float32]) -> Feature:
        """Make the feature of one clip.

        Args:
            samples: (n,) mono sound at `rate`, within ±1, tiled or cut to the clip's fixed length.
        """
