"""What extraction makes of one clip: plain data, between the decoder and the feature store."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Frames:
    """Frames at whole seconds.

    Attributes:
        jpegs: One baseline JPEG an instant.
        times: Presentation time in seconds, relative to the clip's start, of the frame shown at instant 0, 1, 2 …
        height: Rows of each picture.
        width: Columns of each picture.
    """

    jpegs: tuple[bytes, ...]
    times: tuple[float, ...]
    height: int
    width: int


@dataclass(frozen=True)
class Spectrogram:
    """A log spectrogram.

    Attributes:
        values: (frequency bins, windows), float16 as it is stored; bin b is b · rate / window Hz.
    """

    values: npt.NDArray[np.float16]


@dataclass(frozen=True)
class Flow:
    """Optical flow at the same instants as the frames.

    Attributes:
        jpegs: jpegs[instant][step] = (x, y): grey JPEGs, 128 = still, 1 grey level = bound / 127 pixels.
        times: Presentation time of each instant's first frame, seconds from the clip's start.
        height: Rows of each field.
        width: Columns of each field.
        bound: Displacements are clipped to ± bound pixels.
    """

    jpegs: tuple[tuple[tuple[bytes, bytes], ...], ...]
    times: tuple[float, ...]
    height: int
    width: int
    bound: float


@dataclass(frozen=True)
class RgbDiff:
    """RGB differences at the same instants as the frames.

    Attributes:
        jpegs: jpegs[instant][step]: colour JPEGs, 128 = no change, 1 level = 2 levels of the pictures.
        times: Presentation time of each instant's first picture, seconds from the clip's start.
        height: Rows of each difference.
        width: Columns of each difference.
    """

    jpegs: tuple[tuple[bytes, ...], ...]
    times: tuple[float, ...]
    height: int
    width: int


@dataclass(frozen=True)
class Waveform:
    """The sound.

    Attributes:
        flac: A FLAC file: 16-bit, mono.
    """

    flac: bytes


@dataclass(frozen=True)
class Features:
    """Everything that one decode of a clip gave.

    Attributes:
        flags: Conditions that did not fail the clip (docs/reasons.md), sorted: `short_video`, `silent_audio` …
        media: What the source is: codecs, width, height, frame rate, rotation, duration, sample rate, channels.
    """

    frames: Frames | None = None
    spectrogram: Spectrogram | None = None
    flow: Flow | None = None
    rgb_diff: RgbDiff | None = None
    waveform: Waveform | None = None
    flags: tuple[str, ...] = ()
    media: dict[str, Any] = field(default_factory=dict)
