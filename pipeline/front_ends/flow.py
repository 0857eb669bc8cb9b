"""Optical flow between consecutive frames, stored as pairs of grey JPEGs.

The fields are computed on the scaled luma planes. A displacement v (pixels at the stored size; x to the right, y
downwards) is clipped to ±bound and stored as the grey level round(128 + v · 127 / bound). With the default bound of 20
a grey level is 0.157 pixels, so that quantisation alone errs by 0.079 pixels at most. Measured on VGGSound clips with
`dis` at quality 90, quantisation and JPEG together err by 0.01 to 0.06 pixels root mean square.

`tvl1` is OpenCV's TV-L1 with its defaults, the field's standard. `tvl1-fast` is the same with 2 warpings instead of 5
and a stopping threshold of 0.03 instead of 0.01. Measured on 9 pairs of VGGSound and UCF-101 pictures of short side 256
in one thread: `tvl1` takes 830 ms a pair, `tvl1-fast` 117 ms, `dis` 2.1 ms (medians); the fields of the last two are
0.23 and 0.51 pixels from those of `tvl1` on average, which are 0.82 pixels long. Bound and quantisation are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bmlpipe.manifests.common.errors import OptionError
from bmlpipe.pipeline.front_ends.frames import Plane, check_quality, check_short_side

ALGORITHMS = ("dis", "farneback", "tvl1", "tvl1-fast")

VERSION = 1  # of the values: raise it with every change that alters them

Field = npt.NDArray[np.float32]
Estimate = Callable[[Plane, Plane], Field]


@dataclass(frozen=True)
class FlowOptions:
    """How optical flow is computed and stored.

    Attributes:
        algorithm: `dis` (OpenCV's DIS, preset fast), `farneback`, `tvl1` or `tvl1-fast` (400 and 56 times slower).
        stack: Consecutive fields at each instant (L), 1 to 10.
        bound: Displacements are clipped to ± bound pixels.
        quality: JPEG quality, 1 to 100.
        short_side: Pixels of the shorter side of the pictures that flow is computed on, 16 to 4096.
        images: Folder of ready-made images to take instead (see `flow_images`): then `bound` is theirs, and algorithm,
            quality and size have no meaning.
    """

    algorithm: str = "dis"
    stack: int = 1
    bound: float = 20.0
    quality: int = 90
    short_side: int = 256
    images: Path | None = None

    def __post_init__(self) -> None:
        if self.algorithm not in ALGORITHMS:
            raise OptionError(f"flow algorithm is {self.algorithm!r}: must be one of {', '.join(ALGORITHMS)}")
        if not 1 <= self.stack <= 10:
            raise OptionError(f"flow stack is {self.stack}: must be from 1 to 10 consecutive fields")
        if not 0 < self.bound <= 1000:
            raise OptionError(f"flow bound is {self.bound}: must be above 0 and at most 1000 pixels")
        check_quality(self.quality)
        check_short_side(self.short_side)

    def parameters(self) -> dict[str, Any]:
        """Everything that the bytes depend on, for hashing."""
        if self.images is not None:
            return {
                "version": VERSION,
                "algorithm": "images",
                "stack": self.stack,
                "bound": float(self.bound),
                "fps": 1,
            }
        return {
            "version": VERSION,
            "algorithm": self.algorithm,
            "stack": self.stack,
            "bound": float(self.bound),
            "jpeg_quality": self.quality,
            "short_side": self.short_side,
            "fps": 1,
        }


def estimator(algorithm: str) -> Estimate:
    """A function from two grey pictures to the field that carries the first to the second: (h, w, 2) float32, (x, y).

    OpenCV's thread count is a setting of the whole process; it is set to 1 here, as extraction runs one process a core.
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
    """One component of a field as grey levels 1 to 255; 128 is no motion."""
    levels: Plane = np.rint(128 + np.clip(component, -bound, bound) * (127 / bound)).astype(np.uint8)
    return levels


def dequantise(levels: Plane, bound: float) -> Field:
    """Grey levels, as decoded from a stored JPEG, back to pixels."""
    return (levels.astype(np.float32) - 128) * np.float32(bound / 127)


def encode_fields(
    pictures: Sequence[Plane], estimate: Estimate, bound: float, quality: int
) -> tuple[tuple[bytes, bytes], ...]:
    """The fields between consecutive pictures as (x, y) JPEGs.

    Args:
        pictures: L + 1 grey pictures (h, w).
        estimate: See `estimator`.
        bound: Clipping, pixels.
        quality: JPEG quality.
    """
    import simplejpeg

    def jpeg(component: Field) -> bytes:
        grey = quantise(component, bound)[..., None]
        data: bytes = simplejpeg.encode_jpeg(grey, quality=quality, colorspace="GRAY")
        return data

    fields = (estimate(first, second) for first, second in pairwise(pictures))
    return tuple((jpeg(field[..., 0]), jpeg(field[..., 1])) for field in fields)
