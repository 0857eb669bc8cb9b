"""From stored bytes to what an encoder sees: frame choice, crop, flip, decode, resize.

All random choices are a pure function of (seed, epoch, sample number): the same on any number of ranks and workers
and after any restart. Evaluation has none.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt
import simplejpeg

from bmlpipe.shards.order import keyed_uniform

Image = npt.NDArray[np.uint8]


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


def uniform_numbers(seed: int, epoch: int, number: int, count: int) -> list[float]:
    """Uniform numbers of one sample in one epoch (stream 2; streams 0 and 1 are the order's)."""
    numbers: list[float] = keyed_uniform(seed, epoch, 2, number, np.arange(count)).tolist()
    return numbers


def choose(available: int, count: int, numbers: Sequence[float] | None = None) -> list[int]:
    """Indices of `count` of `available` instants, one from each of `count` equal segments.

    Args:
        available: Instants that the sample has, at least 1.
        count: Instants wanted; with fewer available some come twice.
        numbers: A uniform number a segment, for a random instant of it (TSN's sampling); None: its middle.
    """
    inside = numbers if numbers is not None else [0.5] * count
    return [min(available - 1, int((segment + inside[segment]) * available / count)) for segment in range(count)]


def picture(jpeg: bytes | memoryview, view: View, size: int, *, grey: bool = False) -> Image:
    """Decode a JPEG and show a view of it.

    The decoder scales down by n/8 (in the DCT domain) as far as the view stays at least `size` large, which saves most
    of the work for small pictures.

    Args:
        jpeg: A JPEG of any size.
        view: Part to show.
        size: Side of the result in pixels.
        grey: One channel instead of RGB.

    Returns:
        (size, size, 3), or (size, size, 1) for grey; uint8.
    """
    height, width = simplejpeg.decode_jpeg_header(jpeg)[:2]
    scale = max(size / (view.height * height), size / (view.width * width))
    image = simplejpeg.decode_jpeg(
        jpeg,
        "GRAY" if grey else "RGB",
        min_height=min(height, math.ceil(scale * height)),
        min_width=min(width, math.ceil(scale * width)),
        min_factor=1,
    )
    rows, columns = image.shape[:2]
    top, left = round(view.top * rows), round(view.left * columns)
    tall, wide = max(1, round(view.height * rows)), max(1, round(view.width * columns))
    part = image[top : top + tall, left : left + wide]
    if part.shape[:2] != (size, size):
        shrinks = part.shape[0] >= size and part.shape[1] >= size
        part = cv2.resize(part, (size, size), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    if view.flip:
        part = part[:, ::-1]
    return np.ascontiguousarray(part.reshape(size, size, 1 if grey else 3))


def flow_field(x: bytes | memoryview, y: bytes | memoryview, view: View, size: int) -> Image:
    """One flow field as (size, size, 2); mirroring turns the horizontal component around its zero, 128."""
    across, down = picture(x, view, size, grey=True), picture(y, view, size, grey=True)
    if view.flip:
        across = np.clip(256 - across.astype(np.int16), 0, 255).astype(np.uint8)
    return np.concatenate([across, down], axis=2)


def spectrogram(npy: bytes | memoryview) -> npt.NDArray[np.float16]:
    """A stored spectrogram, (bins, windows), float16."""
    values: npt.NDArray[np.float16] = np.load(io.BytesIO(npy), allow_pickle=False)
    return values
