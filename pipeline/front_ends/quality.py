"""Quality of a clip's pictures and sound, measured on the decoded data; thresholds turn it into flags.

The measurements are properties of the source: they do not depend on the feature kinds, their sizes or the decoder. So
they are not parameters of any feature, and are recorded in `media` with codec and frame rate:

- `sound`: `peak`, the largest |x| of the mono mix at the front end's rate (full scale is 1), and `clipped`, the share
  of samples with |x| ≥ 0.99; both before the sound is tiled, limited to ±1 or standardised;
- `pictures`, those shown at the instants: `instants`, their number; `black`, the number of black ones; `change`, the
  largest difference between the mean luma of a block and that of the same block in the first picture, in levels of full
  range (0 … 255).

Pixels are sampled on a grid of at least 48 lines across the short side; a block is 4 × 4 of these. In the mean of a
block, noise of sensors and compression cancels out, but small moving objects do not. Measured on a VGGSound picture of
480 × 360 shown for 10 s: `change` is 1.4 encoded by x264 at crf 23, 4.1 at crf 35, 5.8 at crf 35 with strong noise, and
54 where a square of 12 × 12 pixels blinks. The calmest of 24 real clips, a talking head, has 9.2. In those with sound,
`clipped` is at most 9e-5; it is 1.2e-3 for a crying baby amplified to 5 dB above full scale.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import av
import numpy as np
import numpy.typing as npt

from bmlpipe.pipeline.front_ends.spectrogram import Floats

#: Sound whose peak is below this is silent: −60 dBFS, where FFmpeg's silencedetect has its default.
SILENT_PEAK = 1e-3

#: |x| at and above this counts as full scale. It is below 1 because resampling and lossy codecs add ripple to clipped
#: peaks.
FULL_SCALE = 0.99

#: Sound with at least this share of samples at full scale is clipped: 5 ms of 10 s, between the two figures above.
CLIPPED_SHARE = 5e-4

#: A picture is black if no block is brighter than this share of the luma range: pix_th of FFmpeg's blackdetect.
BLACK_LEVEL = 0.1

#: A clip is black if at least this share of its pictures is: one picture of a fade-in is not enough.
BLACK_SHARE = 0.5

#: A clip is still if no block changes by more levels than this: more than compression changes a still picture.
STILL_CHANGE = 6.0

#: Flag → the part of `media` that it follows from. Where that part is missing, the flag was not looked for.
MEASURED_IN = {
    "silent_audio": "sound",
    "clipped_audio": "sound",
    "black_video": "pictures",
    "still_video": "pictures",
}

_LINES = 48  # smallest number of lines of the grid across the short side
_BLOCK = 4  # lines per block
_FULL = 2  # libavutil's number of the range
_LUMA_FIRST = {f"yuv{j}{s}p" for j in ("", "j") for s in (420, 422, 444)} | {"nv12", "gray"}  # 8 bits, plane 0

_Levels = npt.NDArray[Any]


def measure_sound(samples: Floats) -> dict[str, float]:
    """Measure the peak and the share of samples at full scale of mono sound (n,), n ≥ 1; see the module."""
    peak = max(float(samples.max()), -float(samples.min()))
    clipped = np.count_nonzero(np.abs(samples) >= FULL_SCALE) / samples.size if peak >= FULL_SCALE else 0.0
    return {"peak": float(f"{peak:.3g}"), "clipped": float(f"{clipped:.3g}")}


class PictureQuality:
    """The measured quality of a clip's pictures.

    `add` only copies a few thousand pixels, since between two decoded pictures every call finds cold caches. `result`
    measures all of them together.
    """

    def __init__(self) -> None:
        self._grids: list[npt.NDArray[np.uint8]] = []
        self._full = False

    def add(self, frame: av.VideoFrame) -> None:
        """Add the picture of the next instant, which is not altered."""
        name = frame.format.name
        self._full = (frame.color_range == _FULL or name.startswith("yuvj")) and not frame.format.is_rgb
        if name not in _LUMA_FIRST:
            frame = frame.reformat(format="yuv420p")  # RGB to limited range; YUV keeps its own
        plane: Any = frame.planes[0]
        step = max(1, min(plane.height, plane.width) // _LINES)
        luma = np.frombuffer(plane, np.uint8).reshape(plane.height, plane.line_size)
        self._grids.append(luma[::step, : plane.width : step].copy())

    def result(self) -> dict[str, float]:
        """Return `instants`, `black` and `change`; see the module."""
        if len({grid.shape for grid in self._grids}) > 1:  # a video that changes its size is not still
            means = [self._means(grid[None]) for grid in self._grids]
            black, change = sum(int(self._black(mean)) for mean in means), 255.0
        else:
            blocks = self._means(np.stack(self._grids))
            black, change = self._black(blocks), float(np.abs(blocks - blocks[0]).max())
        return {"instants": len(self._grids), "black": black, "change": round(change, 1)}

    def _means(self, grids: npt.NDArray[np.uint8]) -> _Levels:
        """Average each block, in levels of full range: (pictures, lines, columns) → (pictures, blocks down, across)."""
        side = min(_BLOCK, *grids.shape[1:])
        rows, columns = (size // side * side for size in grids.shape[1:])
        # Sums of slices are ten times as fast as a mean over two axes of such small blocks.
        lines = sum(
            (grids[:, i:rows:side, :columns] for i in range(1, side)), grids[:, :rows:side, :columns].astype("u2")
        )
        means = sum((lines[:, :, i::side] for i in range(1, side)), lines[:, :, ::side]) / np.float32(side**2)
        return means if self._full else (means - 16) * np.float32(255 / 219)

    @staticmethod
    def _black(blocks: _Levels) -> int:
        return int(np.count_nonzero(blocks.max(axis=(1, 2)) <= 255 * BLACK_LEVEL))


def quality_flags(media: Mapping[str, Any]) -> set[str]:
    """Derive the flags (docs/reasons.md) that follow from the measurements in `media`."""
    flags = set()
    if sound := media.get("sound"):
        if sound["peak"] < SILENT_PEAK:
            flags.add("silent_audio")
        if sound["clipped"] >= CLIPPED_SHARE:
            flags.add("clipped_audio")
    if pictures := media.get("pictures"):
        if pictures["black"] >= BLACK_SHARE * pictures["instants"]:
            flags.add("black_video")
        if pictures["instants"] > 1 and pictures["change"] <= STILL_CHANGE:
            flags.add("still_video")
    return flags
