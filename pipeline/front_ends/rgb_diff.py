"""The front end `rgb_diff`: differences of consecutive pictures, stored as colour JPEGs.

Source: Wang et al. 2016, Temporal Segment Networks, Sec. 3.2. The difference d = next − this of two scaled pictures
lies in −255 … 255 and is stored as the level 128 + d / 2, rounded (half to even) and clipped to 0 … 255, for each of
R, G and B. It is computed on the planes that the pictures' own JPEGs are made of (Y, Cb, Cr; chroma at half the
resolution): RGB is a linear function of them, so that no conversion is needed.

A stored level is 2 levels of the pictures. The error of rounding is at most 1 level in each of Y, Cb and Cr, hence at
most 2.41, 2.06 and 2.78 in R, G and B. Measured on VGGSound clips, where the differences have a root mean square of
13.7, 13.3 and 12.8, that of the error is 0.75, 0.58 and 0.89 by rounding alone, 1.5, 1.4 and 1.8 with JPEG at quality
95 and 1.9, 1.7 and 2.2 at quality 90. RGB values of the pictures outside 0 … 255, which JPEG decoders clip, are not
clipped before the difference is taken.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from bmlpipe.manifests.common.errors import OptionError
from bmlpipe.pipeline.front_ends.features import JpegSeries
from bmlpipe.pipeline.front_ends.frames import Plane, Planes, Scaler, check_quality, check_short_side, encode
from bmlpipe.pipeline.front_ends.front_end import PictureFrontEnd, PictureOptions
from bmlpipe.pipeline.media.video import ClipSpan, SelectedFrames, VideoDecoder

VERSION = 1  # of the values: increase it with every change that alters them


@dataclass(frozen=True)
class RgbDiffOptions(PictureOptions):
    """Options of the front end `rgb_diff`.

    Attributes:
        stack: Number of consecutive differences at each instant, 1 to 10.
        quality: JPEG quality, 1 to 100.
        short_side: Length of the shorter side of the pictures in pixels, 16 to 4096.

    Raises:
        OptionError: A value is out of range.
    """

    kind: ClassVar[str] = "rgb_diff"

    stack: int = 1
    quality: int = 95
    short_side: int = 256

    @classmethod
    def from_command_line(cls, values: Mapping[str, Any]) -> RgbDiffOptions:
        """See `FrontEndOptions.from_command_line`."""
        return cls(stack=values["rgb_diff_stack"], short_side=values["short_side"])

    def __post_init__(self) -> None:
        if not 1 <= self.stack <= 10:
            raise OptionError(f"rgb_diff stack is {self.stack}: must be from 1 to 10 consecutive differences")
        check_quality(self.quality)
        check_short_side(self.short_side)

    @property
    def lookahead(self) -> int:
        """See `PictureOptions.lookahead`."""
        return self.stack

    def start(self, decoder: VideoDecoder, span: ClipSpan, path: Path) -> RgbDiffFrontEnd:
        """See `PictureOptions.start`."""
        return RgbDiffFrontEnd(self, decoder, span)

    def parameters(self, seconds: int | None) -> dict[str, Any]:
        """See `FrontEndOptions.parameters`."""
        return {
            "version": VERSION,
            "stack": self.stack,
            "step": 2,
            "jpeg_quality": self.quality,
            "subsampling": "4:2:0",
            "short_side": self.short_side,
            "fps": 1,
            "seconds": seconds,
        }


class RgbDiffFrontEnd(PictureFrontEnd):
    """Differences of the picture shown at each instant and those that follow it."""

    def __init__(self, options: RgbDiffOptions, decoder: VideoDecoder, span: ClipSpan) -> None:
        super().__init__(decoder, span)
        self._options = options
        self._scaler = Scaler(options.short_side, decoder.stream.sample_aspect_ratio)

    def add(self, selected: SelectedFrames) -> None:
        """See `PictureFrontEnd.add`."""
        frames, moved = selected.narrowed(self._options.stack)
        planes = [self._scaler.planes(frame.image) for frame in frames]
        self._size = planes[0].luma.shape
        self._jpegs += encode_differences(planes, self._options.quality)
        self._times.append(self._seconds(frames[0]))
        if moved:
            self.flags.add("rgb_diff_window_moved")

    def finish(self) -> JpegSeries:
        """See `PictureFrontEnd.finish`."""
        return JpegSeries(tuple(self._jpegs), tuple(self._times), *self._size, {"stack": self._options.stack})


def difference(first: Planes, second: Planes) -> Planes:
    """Compute the stored form of the difference between two pictures."""
    return Planes(*(_levels(one, other) for one, other in zip(first, second)))


def dequantise(rgb: npt.NDArray[np.uint8]) -> npt.NDArray[np.int16]:
    """Convert levels, as decoded from a stored JPEG, to differences from −256 to 254."""
    return 2 * (rgb.astype(np.int16) - 128)


def encode_differences(pictures: Sequence[Planes], quality: int) -> tuple[bytes, ...]:
    """Encode the differences between consecutive pictures as colour JPEGs.

    Args:
        pictures: L + 1 pictures of one size.
        quality: JPEG quality, 1 to 100.
    """
    return tuple(encode(difference(first, second), quality) for first, second in pairwise(pictures))


def _levels(first: Plane, second: Plane) -> Plane:
    half = np.subtract(second, first, dtype=np.float32)
    half *= 0.5
    half += 128
    levels: Plane = np.clip(np.rint(half, out=half), 0, 255, out=half).astype(np.uint8)
    return levels
