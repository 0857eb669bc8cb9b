"""Decode stored bytes into the inputs of encoders: choice of instants, crop, flip, decoding, resizing.

All random choices are a pure function of (seed, epoch, sample number), so they are the same on any number of ranks and
loader processes and after any restart. Evaluation makes no random choices.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
import numpy.typing as npt
import simplejpeg

from bmlpipe.manifests.common.errors import BmlpipeError
from bmlpipe.shards.order import keyed_uniform

Image = npt.NDArray[np.uint8]

# Grey level of a horizontal motion → grey level of the opposite motion; 128 is no motion.
_MIRRORED = np.clip(256 - np.arange(256), 0, 255).astype(np.uint8)


class DamagedMemberError(BmlpipeError):
    """A member of a sample cannot be decoded. The message states what is wrong with it."""


@dataclass(frozen=True)
class Crop:
    """A rectangle of a picture, relative to the size of the picture, and whether it is flipped.

    Attributes:
        top: Upper edge, as a fraction of the picture's height.
        left: Left edge, as a fraction of the picture's width.
        height: Height of the rectangle, as a fraction of the picture's height.
        width: Width of the rectangle, as a fraction of the picture's width.
        flip: Whether the result is mirrored left to right.
    """

    top: float
    left: float
    height: float
    width: float
    flip: bool = False


def centre_crop(height: int, width: int) -> Crop:
    """Return the largest centred square, for evaluation and for training without augmentation."""
    side = min(height, width)
    return Crop((height - side) / 2 / height, (width - side) / 2 / width, side / height, side / width)


def random_crop(height: int, width: int, numbers: Sequence[float]) -> Crop:
    """Make a random crop with 8% to 100% of the area and an aspect ratio from 3:4 to 4:3, flipped with probability ½.

    This is the training crop of Inception and ResNet (Szegedy et al. 2015, Sec. 6). A crop that would be taller or
    wider than the picture is cut to it.

    Args:
        height: Height of the picture, in pixels.
        width: Width of the picture, in pixels.
        numbers: Five uniform numbers in [0, 1).
    """
    area = height * width * (0.08 + 0.92 * numbers[0])
    ratio = math.exp(math.log(3 / 4) + numbers[1] * math.log(16 / 9))
    tall = min(height, math.sqrt(area / ratio))
    wide = min(width, math.sqrt(area * ratio))
    top, left = (height - tall) * numbers[2], (width - wide) * numbers[3]
    return Crop(top / height, left / width, tall / height, wide / width, numbers[4] < 0.5)


def uniform_numbers(
    seed: int, epochs: npt.NDArray[np.int64], numbers: npt.NDArray[np.int64], count: int
) -> npt.NDArray[np.float64]:
    """Draw uniform numbers for samples.

    They use stream 2 of the keyed generator; the order of samples uses streams 0 and 1.

    Args:
        seed: Seed of the run.
        epochs: Epoch of each sample, (B,).
        numbers: Sample numbers, (B,).
        count: Number of numbers per sample.

    Returns:
        (B, count), in [0, 1). A row depends only on its own epoch and number, and a larger `count` extends it.
    """
    return keyed_uniform(seed, epochs[:, None], 2, numbers[:, None], np.arange(count))


def choose_instants(available: int, count: int, numbers: Sequence[float] | None = None) -> list[int]:
    """Choose one instant from each of `count` equal segments of a sample.

    Args:
        available: Number of instants of the sample, at least 1.
        count: Number of instants to choose; if fewer are available some are chosen twice.
        numbers: One uniform number in [0, 1) per segment, for a random instant (the sampling of TSN); None: choose the
            middle of each segment.

    Returns:
        Indices of the chosen instants, ascending.
    """
    inside = numbers if numbers is not None else [0.5] * count
    return [min(available - 1, int((segment + inside[segment]) * available / count)) for segment in range(count)]


def picture(jpeg: bytes | memoryview, crop: Crop, out: Image) -> None:
    """Decode a JPEG file, crop it and resize it.

    The decoder halves the picture in the DCT domain, up to three times, as long as the crop stays at least as large as
    `out`. It could scale by any n/8, but scales between two halvings take longer than the larger of the two. The rest
    is resized bilinearly, by less than a factor of two; an axis of a long crop that shrinks more is averaged.

    Args:
        jpeg: Content of a JPEG file.
        crop: Part of the picture to keep.
        out: Receives the result; contiguous, (height, width, 3) for RGB or (height, width, 1) for grey, uint8.

    Raises:
        DamagedMemberError: The bytes are not a JPEG file.
    """
    image = _reduced(jpeg, crop, out)
    rows, columns = image.shape[:2]
    top, left = round(crop.top * rows), round(crop.left * columns)
    tall, wide = max(1, round(crop.height * rows)), max(1, round(crop.width * columns))
    part = image[top : top + tall, left : left + wide]
    long = tall > 2 * out.shape[0] or wide > 2 * out.shape[1]
    size, interpolation = (out.shape[1], out.shape[0]), cv2.INTER_AREA if long else cv2.INTER_LINEAR
    if crop.flip:
        cv2.flip(cv2.resize(part, size, interpolation=interpolation), 1, dst=out)
    else:
        cv2.resize(part, size, dst=out, interpolation=interpolation)


def _reduced(jpeg: bytes | memoryview, crop: Crop, out: Image) -> Image:
    """Decode a JPEG file at the smallest scale at which the crop is at least as large as `out`."""
    try:
        height, width = simplejpeg.decode_jpeg_header(jpeg)[:2]
        spare = min(round(crop.height * height) / out.shape[0], round(crop.width * width) / out.shape[1])
        reduction = next(factor for factor in (8, 4, 2, 1) if spare >= factor or factor == 1)
        image: Image = simplejpeg.decode_jpeg(
            jpeg,
            "RGB" if out.shape[2] == 3 else "GRAY",
            min_height=math.ceil(height / reduction),
            min_width=math.ceil(width / reduction),
            min_factor=1,
        )
    except ValueError as error:
        raise DamagedMemberError(f"a picture is not a JPEG file ({error})") from error
    return image


def mirror_motion(x: Image) -> None:
    """Reverse the sign of the horizontal component of a flow field that was mirrored; in place."""
    np.take(_MIRRORED, x, out=x)


def spectrogram(npy: bytes | memoryview) -> npt.NDArray[np.float16]:
    """Read a stored spectrogram, (bins, windows), float16, without copying the bytes.

    Raises:
        DamagedMemberError: The bytes are not a spectrogram.
    """
    start = 10 + int.from_bytes(npy[8:10], "little")
    try:
        shape, fortran = _npy_layout(bytes(npy[:start]))
        values = np.frombuffer(npy, "<f2", math.prod(shape), start)
    except ValueError as error:
        raise DamagedMemberError(f"its spectrogram is not an array of NumPy ({error})") from error
    return values.reshape(shape, order="F" if fortran else "C")


def waveform(flac: bytes | memoryview) -> npt.NDArray[np.int16]:
    """Decode stored sound into samples, (n,), int16.

    Raises:
        DamagedMemberError: The bytes are not FLAC.
    """
    import soundfile  # takes a tenth of a second, and only sound needs it

    try:
        samples: npt.NDArray[np.int16] = soundfile.read(io.BytesIO(flac), dtype="int16")[0]
    except soundfile.LibsndfileError as error:
        raise DamagedMemberError(f"its waveform is not FLAC ({error})") from error
    return samples


@lru_cache(maxsize=64)  # parsing takes longer than copying the spectrogram, and a set has few lengths
def _npy_layout(header: bytes) -> tuple[tuple[int, ...], bool]:
    file = io.BytesIO(header)
    np.lib.format.read_magic(file)
    shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
    if dtype != np.dtype("<f2") or len(shape) != 2:
        raise DamagedMemberError(
            f"its spectrogram has type {dtype} and shape {shape}: must be float16, (bins, windows)"
        )
    return shape, fortran
