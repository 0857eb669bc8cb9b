"""From stored bytes to what an encoder sees: frame choice, crop, flip, decode, resize.

All random choices are a pure function of (seed, epoch, sample number): the same on any number of ranks and workers
and after any restart. Evaluation has none.
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

from bmlpipe.shards.order import keyed_uniform

Image = npt.NDArray[np.uint8]

# Grey level of a horizontal motion → that of the opposite one: 128 is none.
_MIRRORED = np.clip(256 - np.arange(256), 0, 255).astype(np.uint8)


@dataclass(frozen=True)
class View:
    """Which part of each picture is seen.

    Attributes:
        top: Upper edge of the square or box, as a fraction of the height.
        left: Left edge, as a fraction of the width.
        height: Its height as a fraction of the height.
        width: Its width as a fraction of the width.
        flip: Mirror left and right.
    """

    top: float
    left: float
    height: float
    width: float
    flip: bool = False


def centre_view(height: int, width: int) -> View:
    """The largest centred square: what evaluation sees, and training without augmentation."""
    side = min(height, width)
    return View((height - side) / 2 / height, (width - side) / 2 / width, side / height, side / width)


def random_view(height: int, width: int, numbers: Sequence[float]) -> View:
    """A random box of 8 % to 100 % of the area and an aspect ratio of 3:4 to 4:3, flipped half of the time.

    The training crop of Inception and ResNet (Szegedy et al. 2015, Sec. 6), from five uniform numbers. A box that
    does not fit is cut to the picture.
    """
    area = height * width * (0.08 + 0.92 * numbers[0])
    ratio = math.exp(math.log(3 / 4) + numbers[1] * math.log(16 / 9))
    tall = min(height, math.sqrt(area / ratio))
    wide = min(width, math.sqrt(area * ratio))
    top, left = (height - tall) * numbers[2], (width - wide) * numbers[3]
    return View(top / height, left / width, tall / height, wide / width, numbers[4] < 0.5)


def uniform_numbers(
    seed: int, epochs: npt.NDArray[np.int64], numbers: npt.NDArray[np.int64], count: int
) -> npt.NDArray[np.float64]:
    """Uniform numbers of samples (stream 2; streams 0 and 1 are the order's).

    Args:
        seed: Seed of the run.
        epochs: Epoch of each sample, (B,).
        numbers: Sample numbers, (B,).
        count: How many each.

    Returns:
        (B, count), in [0, 1); a row depends on its own epoch and number only, and more of them begin with the same.
    """
    return keyed_uniform(seed, epochs[:, None], 2, numbers[:, None], np.arange(count))


def choose(available: int, count: int, numbers: Sequence[float] | None = None) -> list[int]:
    """Indices of `count` of `available` instants, one from each of `count` equal segments.

    Args:
        available: Instants that the sample has, at least 1.
        count: Instants wanted; with fewer available some come twice.
        numbers: A uniform number a segment, for a random instant of it (TSN's sampling); None: its middle.
    """
    inside = numbers if numbers is not None else [0.5] * count
    return [min(available - 1, int((segment + inside[segment]) * available / count)) for segment in range(count)]


def picture(jpeg: bytes | memoryview, view: View, out: Image) -> None:
    """Decode a JPEG and show a view of it.

    The decoder halves the picture (in the DCT domain; once, twice or three times) as long as the view stays at least
    as large as `out`. It could scale by any n/8, but what lies between two halvings takes longer than the larger of
    them. What is left to shrink is less than twofold and bilinear; an axis of a long box that shrinks more is averaged.

    Args:
        jpeg: A JPEG of any size.
        view: Part to show.
        out: Where to, contiguous: (height, width, 3) for RGB or (height, width, 1) for grey.
    """
    height, width = simplejpeg.decode_jpeg_header(jpeg)[:2]
    spare = min(round(view.height * height) / out.shape[0], round(view.width * width) / out.shape[1])
    reduction = next(factor for factor in (8, 4, 2, 1) if spare >= factor or factor == 1)
    image = simplejpeg.decode_jpeg(
        jpeg,
        "RGB" if out.shape[2] == 3 else "GRAY",
        min_height=math.ceil(height / reduction),
        min_width=math.ceil(width / reduction),
        min_factor=1,
    )
    rows, columns = image.shape[:2]
    top, left = round(view.top * rows), round(view.left * columns)
    tall, wide = max(1, round(view.height * rows)), max(1, round(view.width * columns))
    part = image[top : top + tall, left : left + wide]
    long = tall > 2 * out.shape[0] or wide > 2 * out.shape[1]
    size, interpolation = (out.shape[1], out.shape[0]), cv2.INTER_AREA if long else cv2.INTER_LINEAR
    if view.flip:
        cv2.flip(cv2.resize(part, size, interpolation=interpolation), 1, dst=out)
    else:
        cv2.resize(part, size, dst=out, interpolation=interpolation)


def mirror_motion(x: Image) -> None:
    """Turn the horizontal component of a flow field, which a flip has mirrored, to the other side; in place."""
    np.take(_MIRRORED, x, out=x)


def spectrogram(npy: bytes | memoryview) -> npt.NDArray[np.float16]:
    """A stored spectrogram, (bins, windows), float16: a view into the bytes.

    Raises:
        ValueError: It is not one.
    """
    start = 10 + int.from_bytes(npy[8:10], "little")
    shape, fortran = _npy_layout(bytes(npy[:start]))
    values = np.frombuffer(npy, "<f2", math.prod(shape), start)
    return values.reshape(shape, order="F" if fortran else "C")


def waveform(flac: bytes | memoryview) -> npt.NDArray[np.int16]:
    """Stored sound: (n,) 16-bit samples.

    Raises:
        ValueError: It is not FLAC.
    """
    import soundfile  # a tenth of a second, and only sound needs it

    try:
        samples: npt.NDArray[np.int16] = soundfile.read(io.BytesIO(flac), dtype="int16")[0]
    except soundfile.LibsndfileError as error:
        raise ValueError(f"its waveform is not FLAC: {error}") from error
    return samples


@lru_cache(maxsize=64)  # parsing costs more than copying the spectrogram, and a set has few lengths
def _npy_layout(header: bytes) -> tuple[tuple[int, ...], bool]:
    file = io.BytesIO(header)
    np.lib.format.read_magic(file)
    shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
    if dtype != np.dtype("<f2") or len(shape) != 2:
        raise ValueError(f"a spectrogram of type {dtype} and shape {shape}: must be float16, (bins, windows)")
    return shape, fortran
