"""The front end `flow`: optical flow between consecutive pictures, stored as pairs of grey JPEGs.

The fields are computed on the scaled luma planes. A displacement v (pixels at the stored size; x to the right, y
downwards) is clipped to ±bound and stored as the grey level round(128 + v · 127 / bound). With the default bound of 20,
one grey level is 0.157 pixels, so that the error of quantisation alone is at most 0.079 pixels. Measured on VGGSound
clips with `dis` at quality 90, quantisation and JPEG together have a root mean square error of 0.01 to 0.06 pixels.

`tvl1` is OpenCV's TV-L1 with its default settings, the field's standard. `tvl1-fast` is the same with 2 warpings
instead of 5 and a stopping threshold of 0.03 instead of 0.01. Measured on 9 pairs of VGGSound and UCF-101 pictures of
short side 256 in one thread (medians): `tvl1` takes 830 ms per pair, `tvl1-fast` 117 ms and `dis` 2.1 ms. The fields of
`tvl1-fast` and `dis` differ from those of `tvl1`, which are 0.82 pixels long on average, by 0.23 and 0.51 pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from bmlpipe.manifests.common.errors import OptionError
from bmlpipe.pipeline.front_ends import flow_images
from bmlpipe.pipeline.front_ends.features import JpegSeries
from bmlpipe.pipeline.front_ends.frames import Plane, Scaler, check_quality, check_short_side
from bmlpipe.pipeline.front_ends.front_end import PictureFrontEnd, PictureOptions
from bmlpipe.pipeline.media.errors import ClipError
from bmlpipe.pipeline.media.source_file import SourceFile
from bmlpipe.pipeline.media.video import ClipSpan, SelectedFrames, VideoDecoder

ALGORITHMS = ("dis", "farneback", "tvl1", "tvl1-fast")

VERSION = 1  # of the values: increase it with every change that alters them

Field = npt.NDArray[np.float32]
Estimate = Callable[[Plane, Plane], Field]


@dataclass(frozen=True)
class FlowOptions(PictureOptions):
    """Options of the front end `flow`.

    Attributes:
        algorithm: `dis` (OpenCV's DIS, preset fast), `farneback`, `tvl1` or `tvl1-fast` (400 and 56 times slower than
            `dis`).
        stack: Number of consecutive fields at each instant (L), 1 to 10.
        bound: Displacements are clipped to ±`bound` pixels, above 0 and at most 1000.
        quality: JPEG quality, 1 to 100.
        short_side: Shorter side in pixels of the pictures that the flow is computed on, 16 to 4096.
        images: Folder of precomputed flow images to take instead (see `flow_images`). `bound` is then the one they were
            made with, and `algorithm`, `quality` and `short_side` are not used.

    Raises:
        OptionError: A value is out of range.
    """

    kind: ClassVar[str] = "flow"

    algorithm: str = "dis"
    stack: int = 1
    bound: float = 20.0
    quality: int = 90
    short_side: int = 256
    images: Path | None = None

    @classmethod
    def from_command_line(cls, values: Mapping[str, Any]) -> FlowOptions:
        """See `FrontEndOptions.from_command_line`."""
        images = values["flow_images"]
        return cls(
            algorithm=values["flow_algorithm"],
            stack=values["flow_stack"],
            bound=values["flow_bound"],
            short_side=values["short_side"],
            images=images and images.absolute(),
        )

    def __post_init__(self) -> None:
        if self.algorithm not in ALGORITHMS:
            raise OptionError(f"flow algorithm is {self.algorithm!r}: must be one of {', '.join(ALGORITHMS)}")
        if not 1 <= self.stack <= 10:
            raise OptionError(f"flow stack is {self.stack}: must be from 1 to 10 consecutive fields")
        if not 0 < self.bound <= 1000:
            raise OptionError(f"flow bound is {self.bound}: must be above 0 and at most 1000 pixels")
        check_quality(self.quality)
        check_short_side(self.short_side)

    @property
    def lookahead(self) -> int:
        """See `PictureOptions.lookahead`."""
        return self.stack

    @property
    def counts_frames(self) -> bool:
        """Flow images are numbered from the first picture of the file."""
        return self.images is not None

    @property
    def companion_folder(self) -> Path | None:
        """See `FrontEndOptions.companion_folder`."""
        return self.images

    def companion_stamp(self, video: Path) -> str:
        """Return the number, total size and newest modification time of the clip's flow images."""
        return "" if self.images is None else "images:{}:{}:{}".format(*flow_images.quick_check(self.images, video))

    def companion(self, video: Path) -> SourceFile | None:
        """See `FrontEndOptions.companion`."""
        return None if self.images is None else flow_images.identity(self.images, video)

    def companion_unchanged(self, old: SourceFile | None, video: Path) -> bool:
        """See `FrontEndOptions.companion_unchanged`."""
        return self.images is None or flow_images.same_images(old, self.images, video)

    def start(self, decoder: VideoDecoder, span: ClipSpan, path: Path) -> PictureFrontEnd:
        """See `PictureOptions.start`."""
        if self.images is not None:
            return ImportedFlow(self, decoder, span, flow_images.FlowImages(self.images, path))
        return ComputedFlow(self, decoder, span)

    def parameters(self, seconds: int | None) -> dict[str, Any]:
        """See `FrontEndOptions.parameters`."""
        if self.images is not None:
            return {
                "version": VERSION,
                "algorithm": "images",
                "stack": self.stack,
                "bound": float(self.bound),
                "fps": 1,
                "seconds": seconds,
            }
        return {
            "version": VERSION,
            "algorithm": self.algorithm,
            "stack": self.stack,
            "bound": float(self.bound),
            "jpeg_quality": self.quality,
            "short_side": self.short_side,
            "fps": 1,
            "seconds": seconds,
        }


class _FlowFrontEnd(PictureFrontEnd):
    """The common part of computed and imported flow."""

    def __init__(self, options: FlowOptions, decoder: VideoDecoder, span: ClipSpan) -> None:
        super().__init__(decoder, span)
        self._options = options

    def _append(self, fields: tuple[tuple[bytes, bytes], ...], time: float, moved: bool) -> None:
        self._jpegs += [component for field in fields for component in field]
        self._times.append(time)
        if moved:
            self.flags.add("flow_window_moved")

    def finish(self) -> JpegSeries:
        """See `PictureFrontEnd.finish`."""
        numbers = {"stack": self._options.stack, "bound": float(self._options.bound)}
        return JpegSeries(tuple(self._jpegs), tuple(self._times), *self._size, numbers)


class ComputedFlow(_FlowFrontEnd):
    """Flow computed from the picture shown at each instant and those that follow it."""

    def __init__(self, options: FlowOptions, decoder: VideoDecoder, span: ClipSpan) -> None:
        super().__init__(options, decoder, span)
        self._scaler = Scaler(options.short_side, decoder.stream.sample_aspect_ratio)
        self._estimate = estimator(options.algorithm)

    def add(self, selected: SelectedFrames) -> None:
        """See `PictureFrontEnd.add`."""
        frames, moved = selected.narrowed(self._options.stack)
        luma = [self._scaler.luma(frame.image) for frame in frames]
        self._size = luma[0].shape
        fields = encode_fields(luma, self._estimate, self._options.bound, self._options.quality)
        self._append(fields, self._seconds(frames[0]), moved)


class ImportedFlow(_FlowFrontEnd):
    """Flow taken over from precomputed images."""

    def __init__(
        self, options: FlowOptions, decoder: VideoDecoder, span: ClipSpan, images: flow_images.FlowImages
    ) -> None:
        super().__init__(options, decoder, span)
        self._images = images

    def add(self, selected: SelectedFrames) -> None:
        """See `PictureFrontEnd.add`."""
        frames, moved = selected.narrowed(self._options.stack)
        first = selected.frame_index - frames.index(selected.shown)
        fields = self._images.fields(first, self._options.stack)
        self._size = self._images.size
        self._append(fields, self._seconds(frames[0]), moved)

    def finish(self) -> JpegSeries:
        """See `PictureFrontEnd.finish`."""
        if self._decoder.lost_pts:
            raise ClipError(
                "damaged_video", "pictures cannot be decoded, so the flow images cannot be matched to the pictures"
            )
        if self._span.instants is None:  # every picture was decoded
            self._images.check_count(self._decoder.decoded_count)
        return super().finish()


def estimator(algorithm: str) -> Estimate:
    """Create a function that computes the flow from a first to a second grey picture.

    OpenCV's number of threads is a setting of the whole process. It is set to 1 here, since extraction runs one process
    per core.

    Returns:
        A function of two (h, w) uint8 pictures that returns (h, w, 2) float32, the displacements x and y in pixels.
    """
    import cv2

    cv2.setNumThreads(1)
    if algorithm == "farneback":

        def farneback(first: Plane, second: Plane) -> Field:
            field = cv2.calcOpticalFlowFarneback(first, second, None, 0.5, 3, 15, 3, 5, 1.2, 0)  # type: ignore[call-overload]
            return np.asarray(field, np.float32)

        return farneback
    if algorithm.startswith("tvl1"):
        method: Any = cv2.optflow.DualTVL1OpticalFlow_create()  # type: ignore[attr-defined]
        if algorithm == "tvl1-fast":
            method.setWarpingsNumber(2)
            method.setEpsilon(0.03)
    else:
        method = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_FAST)  # type: ignore[attr-defined]

    def calculate(first: Plane, second: Plane) -> Field:
        return np.asarray(method.calc(first, second, None), np.float32)

    return calculate


def quantise(component: Field, bound: float) -> Plane:
    """Convert one component of a field, in pixels, to grey levels from 1 to 255; 128 means no motion."""
    levels: Plane = np.rint(128 + np.clip(component, -bound, bound) * (127 / bound)).astype(np.uint8)
    return levels


def dequantise(levels: Plane, bound: float) -> Field:
    """Convert grey levels, as decoded from a stored JPEG, to displacements in pixels."""
    return (levels.astype(np.float32) - 128) * np.float32(bound / 127)


def encode_fields(
    pictures: Sequence[Plane], estimate: Estimate, bound: float, quality: int
) -> tuple[tuple[bytes, bytes], ...]:
    """Encode the fields between consecutive pictures as (x, y) pairs of JPEGs.

    Args:
        pictures: L + 1 grey pictures (h, w).
        estimate: See `estimator`.
        bound: Displacements are clipped to ±`bound` pixels.
        quality: JPEG quality, 1 to 100.
    """
    import simplejpeg

    def jpeg(component: Field) -> bytes:
        grey = quantise(component, bound)[..., None]
        data: bytes = simplejpeg.encode_jpeg(grey, quality=quality, colorspace="GRAY")
        return data

    fields = (estimate(first, second) for first, second in pairwise(pictures))
    return tuple((jpeg(field[..., 0]), jpeg(field[..., 1])) for field in fields)
