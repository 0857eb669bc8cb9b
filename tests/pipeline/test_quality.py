"""Quality flags of one clip: the measurements of frames and sound, and the thresholds of the flags."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import asin, pi
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
import pytest

from bmlpipe.pipeline.extraction.clip import extract_clip
from bmlpipe.pipeline.extraction.request import ExtractionRequest
from bmlpipe.pipeline.front_ends.features import ClipFeatures
from bmlpipe.pipeline.front_ends.flow import FlowOptions
from bmlpipe.pipeline.front_ends.frames import FrameOptions
from bmlpipe.pipeline.front_ends.quality import MEASURED_IN, PictureQuality, measure_sound, quality_flags
from bmlpipe.pipeline.front_ends.rgb_diff import RgbDiffOptions
from bmlpipe.pipeline.front_ends.spectrogram import SpectrogramOptions
from bmlpipe.pipeline.front_ends.waveform import WaveformOptions

RATE = 16_000
Luma = npt.NDArray[np.uint8]
Write = Callable[[Path, Sequence[Luma], npt.NDArray[np.float64]], Path]


def textured(shift: int = 0, size: tuple[int, int] = (64, 96)) -> Luma:
    """Full-range luma of random squares of 8 × 8 pixels, shifted to the right by `shift` pixels."""
    picture = np.random.default_rng(0).integers(60, 200, (size[0] // 8, size[1] // 8), np.uint8)
    return np.roll(picture.repeat(8, axis=0).repeat(8, axis=1), shift, axis=1)


def tone(amplitude: float, seconds: float = 3.0) -> npt.NDArray[np.float64]:
    return amplitude * np.sin(2 * np.pi * 437.0 * np.arange(round(seconds * RATE)) / RATE)


MOVING = [textured(4 * n) for n in range(24)]
STILL = [textured()] * 24
BLACK = [np.full((64, 96), 10, np.uint8)] * 24


def extracted(path: Path, seconds: int = 3) -> ClipFeatures:
    return extract_clip(path, ExtractionRequest((FrameOptions(short_side=32), SpectrogramOptions()), seconds))


# ----- flags -----


@pytest.mark.parametrize(
    ("pictures", "sound", "flags"),
    [
        pytest.param(MOVING, tone(0.5), set(), id="no flag"),
        pytest.param(MOVING, tone(0), {"silent_audio"}, id="silent"),
        pytest.param(MOVING, tone(0.0005), {"silent_audio"}, id="below -60 dBFS"),
        pytest.param(MOVING, tone(0.002), set(), id="quiet"),
        pytest.param(MOVING, tone(2), {"clipped_audio"}, id="clipped"),
        pytest.param(MOVING, tone(0.9), set(), id="loud"),
        pytest.param(STILL, tone(0.5), {"still_video"}, id="still"),
        pytest.param(BLACK, tone(0.5), {"still_video", "black_video"}, id="black"),
        pytest.param(BLACK[:12] + MOVING[:12], tone(0.5), {"black_video"}, id="black at 0 and 1 of 3 s"),
        pytest.param(BLACK[:6] + MOVING[:18], tone(0.5), set(), id="black at 0 s only"),
        pytest.param(MOVING[:10], tone(0.5, 1.25), {"short_audio", "short_video"}, id="short"),
        pytest.param(STILL[:6], tone(0, 0.75), {"short_audio", "short_video", "silent_audio"}, id="one instant"),
    ],
)
def test_a_clip_gets_its_flags(
    pictures: list[Luma], sound: npt.NDArray[np.float64], flags: set[str], write_clip: Write, tmp_path: Path
) -> None:
    assert set(extracted(write_clip(tmp_path / "clip.mkv", pictures, sound)).flags) == flags


def test_a_small_moving_object_is_noticed(write_clip: Write, tmp_path: Path) -> None:
    """A square of 8 × 8 pixels, 0.08 % of a frame of 240 × 320."""
    pictures = [textured(size=(240, 320)).copy() for _ in range(24)]
    for number in range(8, 16):
        pictures[number][100:108, 200:208] ^= 0x80
    features = extracted(write_clip(tmp_path / "clip.mkv", pictures, tone(0.5)))
    assert features.flags == ()
    assert extracted(write_clip(tmp_path / "still.mkv", pictures[:1] * 24, tone(0.5))).flags == ("still_video",)


def test_measurements_do_not_depend_on_the_requested_kinds(write_clip: Write, tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mkv", MOVING, tone(0.7))
    requests = [
        (FrameOptions(short_side=32),),
        (FrameOptions(short_side=80), RgbDiffOptions(short_side=32)),
        (FlowOptions(short_side=48, stack=2),),
    ]
    pictures = [extract_clip(clip, ExtractionRequest(request, 3)).media["pictures"] for request in requests]
    assert pictures[0] == pictures[1] == pictures[2]
    assert (pictures[0]["instants"], pictures[0]["black"]) == (3, 0)
    sound_requests = [(SpectrogramOptions(),), (WaveformOptions(),)]
    sound = [extract_clip(clip, ExtractionRequest(request, 3)).media["sound"] for request in sound_requests]
    assert sound[0] == sound[1] == {"peak": pytest.approx(0.7, abs=2e-3), "clipped": 0}
    assert "sound" not in extract_clip(clip, ExtractionRequest((FrameOptions(),), 3)).media


# ----- measurements -----


def test_peak_and_clipping_of_sound_equal_the_analytic_values() -> None:
    assert measure_sound(tone(0.5).astype(np.float32)) == {"peak": pytest.approx(0.5, abs=1e-3), "clipped": 0}
    assert measure_sound(np.array([0.1, -0.8], np.float32))["peak"] == pytest.approx(0.8)
    found = measure_sound(tone(2.0).astype(np.float32))
    assert found["peak"] == pytest.approx(2.0, abs=0.01)  # before the samples are limited to ±1
    assert found["clipped"] == pytest.approx(1 - 2 / pi * asin(0.99 / 2), abs=2e-3)


@pytest.mark.parametrize(
    ("media", "flags"),
    [
        ({"sound": {"peak": 0.000999, "clipped": 0}}, {"silent_audio"}),
        ({"sound": {"peak": 0.001, "clipped": 0}}, set()),
        ({"sound": {"peak": 1.0, "clipped": 0.000499}}, set()),
        ({"sound": {"peak": 1.0, "clipped": 0.0005}}, {"clipped_audio"}),
        ({"pictures": {"instants": 10, "black": 4, "change": 6.1}}, set()),
        ({"pictures": {"instants": 10, "black": 5, "change": 6.1}}, {"black_video"}),
        ({"pictures": {"instants": 10, "black": 0, "change": 6.0}}, {"still_video"}),
        ({"pictures": {"instants": 1, "black": 0, "change": 0.0}}, set()),
        ({}, set()),
    ],
)
def test_the_thresholds_of_the_flags(media: dict[str, dict[str, float]], flags: set[str]) -> None:
    assert quality_flags(media) == flags
    assert all(MEASURED_IN[flag] in media for flag in flags)


def measured(*pictures: av.VideoFrame) -> dict[str, float]:
    meter = PictureQuality()
    for picture in pictures:
        meter.add(picture)
    return meter.result()


def grey(picture: Luma, form: str = "yuvj420p") -> av.VideoFrame:
    """A grey frame of a pixel format, with the luma levels unchanged."""
    frame = av.VideoFrame.from_ndarray(picture, format="gray")
    if form == "yuvj420p":
        return frame.reformat(format=form, src_color_range=2, dst_color_range=2)
    planes = np.concatenate([picture, np.full((picture.shape[0] // 2, picture.shape[1]), 128, np.uint8)])
    return av.VideoFrame.from_ndarray(planes, format="yuv420p")


def test_change_is_the_largest_change_of_any_block() -> None:
    """In frames of 96 × 128, every second pixel is read, and a block has 8 × 8 pixels."""
    first = np.full((96, 128), 100, np.uint8)
    second, third = first.copy(), first.copy()
    second[40:48, 64:72] = 140  # one block
    third[40:48, 64:68] = 20  # half of it
    assert measured(grey(first), grey(second)) == {"instants": 2, "black": 0, "change": 40}
    assert measured(grey(first), grey(third))["change"] == 40
    assert measured(grey(first), grey(first), grey(second))["change"] == 40
    assert measured(grey(first)) == {"instants": 1, "black": 0, "change": 0}
    noisy = np.random.default_rng(0).normal(100, 6, (2, 96, 128)).clip(0, 255).astype(np.uint8)
    assert measured(*map(grey, noisy))["change"] < 10  # single pixels differ by up to 30


def test_levels_are_full_range_for_every_pixel_format() -> None:
    limited = np.full((64, 96), 126, np.uint8)  # about the middle of 16 to 235
    raised = limited + np.uint8(20)
    expected = pytest.approx(20 * 255 / 219, abs=0.06)
    frames = [grey(limited, "yuv420p"), grey(raised, "yuv420p")]
    assert measured(*frames)["change"] == expected
    assert measured(*(frame.reformat(format="yuv420p10le") for frame in frames))["change"] == expected
    assert measured(*(frame.reformat(format="rgb24") for frame in frames))["change"] == pytest.approx(23.3, abs=1.5)
    for level, black in ((37, 1), (39, 0)):  # the threshold, 10 % of the range, is 37.9
        assert measured(grey(np.full((64, 96), level, np.uint8), "yuv420p"))["black"] == black
    for level, black in ((25, 1), (26, 0)):  # in full range it is 25.5
        assert measured(grey(np.full((64, 96), level, np.uint8)))["black"] == black


@pytest.mark.parametrize("size", [(2, 2), (6, 34), (47, 49), (50, 1000), (1080, 1920)])
def test_frames_of_any_size_are_measured(size: tuple[int, int]) -> None:
    dark, bright = (av.VideoFrame.from_ndarray(np.full(size, level, np.uint8), format="gray") for level in (16, 235))
    assert measured(dark, bright) == {"instants": 2, "black": 1, "change": 255}


def test_a_change_of_the_frame_size_counts_as_change() -> None:
    assert measured(grey(textured()), grey(textured(size=(64, 128)))) == {"instants": 2, "black": 0, "change": 255}


def test_a_clip_without_sound_has_no_measurement_of_sound(make_clip: Callable[..., Path], tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "clip.mp4", seconds=1.2, size=(48, 32), audio_codec=None)
    assert "sound" not in extract_clip(clip, ExtractionRequest((FrameOptions(),), 1)).media
