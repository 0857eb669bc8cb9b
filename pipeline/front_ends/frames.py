"""The front end `frames`: from the decoder's YUV planes to JPEG's planes, without a conversion to RGB in between."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import av
import av.error
import numpy as np
import numpy.typing as npt
import simplejpeg
from av.video.reformatter import VideoReformatter

from bmlpipe.manifests.common.errors import OptionError
from bmlpipe.pipeline.front_ends.features import JpegSeries
from bmlpipe.pipeline.front_ends.front_end import PictureFrontEnd, PictureOptions
from bmlpipe.pipeline.media.errors import ClipError
from bmlpipe.pipeline.media.video import ClipSpan, SelectedFrames, VideoDecoder

Plane = npt.NDArray[np.uint8]

VERSION = 1  # of the values: increase it with every change that alters them

# libswscale's SWS_BICUBIC, SWS_ACCURATE_RND and SWS_BITEXACT; PyAV 17 does not name all of them.
_SCALING = 0x4 | 0x40000 | 0x80000
_BT601 = 5  # libswscale's number of the matrix
_LIMITED, _FULL = 1, 2  # libavutil's numbers of the ranges
_LONGEST = 65_500  # pixels; JPEG's limit

# libavutil's numbers of the matrices that differ from BT.601, each with its luma weights (Kr, Kb).
_WEIGHTS = {1: (0.2126, 0.0722), 7: (0.212, 0.087), 9: (0.2627, 0.0593), 10: (0.2627, 0.0593)}
_WEIGHTS_601 = (0.299, 0.114)


@dataclass(frozen=True)
class FrameOptions(PictureOptions):
    """Options of the front end `frames`.

    Attributes:
        short_side: Length of the shorter side in pixels, 16 to 4096; smaller pictures are enlarged.
        quality: JPEG quality, 1 to 100.

    Raises:
        OptionError: A value is out of range.
    """

    kind: ClassVar[str] = "frames"

    short_side: int = 256
    quality: int = 95

    @classmethod
    def from_command_line(cls, values: Mapping[str, Any]) -> FrameOptions:
        """See `FrontEndOptions.from_command_line`."""
        return cls(short_side=values["short_side"])

    def __post_init__(self) -> None:
        check_short_side(self.short_side)
        check_quality(self.quality)

    def parameters(self, seconds: int | None) -> dict[str, Any]:
        """See `FrontEndOptions.parameters`."""
        return {
            "version": VERSION,
            "fps": 1,
            "short_side": self.short_side,
            "jpeg_quality": self.quality,
            "subsampling": "4:2:0",
            "seconds": seconds,
        }

    def start(self, decoder: VideoDecoder, span: ClipSpan, path: Path) -> FramesFrontEnd:
        """See `PictureOptions.start`."""
        return FramesFrontEnd(self, decoder, span)


def check_short_side(value: int) -> None:
    """Raise OptionError unless the value is a valid short side of a picture."""
    if not 16 <= value <= 4096:
        raise OptionError(f"short_side is {value}: must be from 16 to 4096 pixels")


def check_quality(value: int) -> None:
    """Raise OptionError unless the value is a valid JPEG quality."""
    if not 1 <= value <= 100:
        raise OptionError(f"quality is {value}: must be a JPEG quality from 1 to 100")


class Planes(NamedTuple):
    """A picture in JPEG's colours (full range, BT.601, 4:2:0): luma (h, w), cb and cr (⌈h/2⌉, ⌈w/2⌉), all uint8."""

    luma: Plane
    cb: Plane
    cr: Plane


def encode(planes: Planes, quality: int) -> bytes:
    """Encode a picture as a baseline JPEG."""
    data: bytes = simplejpeg.encode_jpeg_yuv_planes(*planes, quality=quality)
    return data


class FramesFrontEnd(PictureFrontEnd):
    """The picture shown at each instant."""

    def __init__(self, options: FrameOptions, decoder: VideoDecoder, span: ClipSpan) -> None:
        super().__init__(decoder, span)
        self._quality = options.quality
        self._scaler = Scaler(options.short_side, decoder.stream.sample_aspect_ratio)

    def add(self, selected: SelectedFrames) -> None:
        """See `PictureFrontEnd.add`."""
        planes = self._scaler.planes(selected.shown.image)
        self._size = planes.luma.shape
        self._jpegs.append(encode(planes, self._quality))
        self._times.append(self._seconds(selected.shown))

    def finish(self) -> JpegSeries:
        """See `PictureFrontEnd.finish`."""
        return JpegSeries(tuple(self._jpegs), tuple(self._times), *self._size)


class Scaler:
    """A converter of the pictures of one video to the stored size, with square pixels, upright.

    The size follows from the first picture; later pictures of another size are scaled to the same. Scaling is bicubic,
    in libswscale's bit-exact arithmetic. A source that names no matrix is assumed to be BT.709 if it is high definition
    (longer side 1280 or more, or shorter side above 576) and BT.601 otherwise, as players do. A source that names no
    range is assumed to have limited range.

    Args:
        short_side: Length of the shorter side after scaling, in pixels; the longer one is rounded to an even number.
        pixel_aspect: Width of a pixel divided by its height; 0 or None: square.
    """

    def __init__(self, short_side: int, pixel_aspect: Fraction | None = None) -> None:
        self.short_side = short_side
        self.pixel_aspect = pixel_aspect or Fraction(1)
        self._reformatter = VideoReformatter()
        self._size: tuple[int, int] | None = None  # columns, rows, before turning

    def planes(self, frame: av.VideoFrame) -> Planes:
        """Scale a picture, convert it to JPEG's colours and turn it upright.

        Raises:
            ClipError: `decoder_error`: the pixel format or the shape cannot be stored as JPEG.
        """
        scaled = self._scale(frame, "yuv420p")
        planes = Planes(*(_array(plane) for plane in scaled.planes))
        planes = _to_bt601(planes, _matrix(frame))
        turn = _turn(frame)
        return planes if turn == (0, False) else Planes(*(_turned(plane, turn) for plane in planes))

    def luma(self, frame: av.VideoFrame) -> Plane:
        """Return the scaled and upright luma plane, full range, in the source's own matrix: (rows, columns) uint8.

        Raises:
            ClipError: See `planes`.
        """
        return _turned(_array(self._scale(frame, "gray").planes[0]), _turn(frame))

    def _scale(self, frame: av.VideoFrame, pixel_format: str) -> av.VideoFrame:
        if self._size is None:
            self._size = self._fit(frame)
        name = frame.format.name
        full = frame.color_range == _FULL or name.startswith("yuvj") or frame.format.is_rgb
        try:
            return self._reformatter.reformat(
                frame,
                *self._size,
                format=pixel_format,
                src_colorspace=_BT601,
                dst_colorspace=_BT601,
                src_color_range=_FULL if full else _LIMITED,
                dst_color_range=_FULL,
                interpolation=_SCALING,
                threads=1,
            )
        except av.error.FFmpegError as error:
            raise ClipError("decoder_error", f"pictures of pixel format {name} cannot be converted: {error}") from error

    def _fit(self, frame: av.VideoFrame) -> tuple[int, int]:
        width, height = frame.width * self.pixel_aspect, Fraction(frame.height)
        scale = self.short_side / min(width, height)
        longer = max(self.short_side, 2 * round(max(width, height) * scale / 2))
        if longer > _LONGEST:
            shape = f"{frame.width} × {frame.height} with pixels of {self.pixel_aspect}"
            raise ClipError(
                "decoder_error", f"pictures of {shape} are too long for JPEG at short side {self.short_side}"
            )
        return (longer, self.short_side) if width >= height else (self.short_side, longer)


def _array(plane: Any) -> Plane:
    whole = np.frombuffer(plane, np.uint8).reshape(plane.height, plane.line_size)
    return np.ascontiguousarray(whole[:, : plane.width])


def _matrix(frame: av.VideoFrame) -> int:
    """Return libavutil's number of the colour matrix; 6 (BT.601) for RGB, which libswscale converts itself."""
    if frame.format.is_rgb:
        return 6
    if frame.colorspace in (0, 2, 3):
        return 1 if max(frame.width, frame.height) >= 1280 or min(frame.width, frame.height) > 576 else 6
    return int(frame.colorspace)


def _to_bt601(planes: Planes, matrix: int) -> Planes:
    """Convert full-range YCbCr of another matrix to BT.601, without clipping to RGB in between."""
    if matrix not in _WEIGHTS:
        return planes
    source, target = _ycbcr_to_rgb(*_WEIGHTS[matrix]), _ycbcr_to_rgb(*_WEIGHTS_601)
    # Rows and columns: Y, Cb, Cr. The first column is 1, 0, 0.
    mix = (np.linalg.inv(target) @ source).astype(np.float32)
    cb, cr = planes.cb.astype(np.float32) - 128, planes.cr.astype(np.float32) - 128
    shift = np.rint(mix[0, 1] * cb + mix[0, 2] * cr).astype(np.int16)
    rows, columns = planes.luma.shape
    luma = planes.luma + shift.repeat(2, axis=0)[:rows].repeat(2, axis=1)[:, :columns]
    new_cb, new_cr = (np.rint(mix[i, 1] * cb + mix[i, 2] * cr + 128) for i in (1, 2))
    return Planes(*(np.clip(plane, 0, 255).astype(np.uint8) for plane in (luma, new_cb, new_cr)))


def _ycbcr_to_rgb(kr: float, kb: float) -> npt.NDArray[np.float64]:
    """Return the 3 × 3 matrix from full-range (Y, Cb, Cr) with centred chroma to RGB (ITU-T T.871, section 7)."""
    kg = 1 - kr - kb
    return np.array(
        [[1, 0, 2 * (1 - kr)], [1, -2 * kb * (1 - kb) / kg, -2 * kr * (1 - kr) / kg], [1, 2 * (1 - kb), 0]], np.float64
    )


def _turn(frame: av.VideoFrame) -> tuple[int, bool]:
    """Read what the display matrix requests: quarter turns counter-clockwise, then whether to mirror left to right."""
    data: Any
    for data in frame.side_data:
        if data.type.name == "DISPLAYMATRIX":
            a, b, _, c, d = np.frombuffer(data, np.int32)[:5].astype(np.int64)
            mirrored = bool(a * d - b * c < 0)
            if mirrored:
                a, c = -a, -c  # undo the mirroring, which comes last
            angle = np.degrees(np.arctan2(-float(b), float(a)))
            return int(np.rint(angle / 90)) % 4, mirrored
    return 0, False


def _turned(plane: Plane, turn: tuple[int, bool]) -> Plane:
    quarters, mirrored = turn
    turned = np.rot90(plane, quarters)
    return np.ascontiguousarray(turned[:, ::-1] if mirrored else turned)
