"""RGB differences: their definition, an independent decode by ffmpeg, and the preset ucf101-three."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from click.testing import CliRunner

from bmlpipe.pipeline.cli import main
from bmlpipe.pipeline.extraction.clip import extract_clip
from bmlpipe.pipeline.extraction.request import ExtractionRequest
from bmlpipe.pipeline.front_ends.flow import FlowOptions
from bmlpipe.pipeline.front_ends.frames import FrameOptions, Planes
from bmlpipe.pipeline.front_ends.rgb_diff import RgbDiffOptions, dequantise, difference
from bmlpipe.pipeline.media.errors import ClipError
from bmlpipe.pipeline.media.video import SelectedFrames, TimedFrame
from bmlpipe.shards.reader import ShardReader

SMALL = RgbDiffOptions(short_side=80)


def rgb(planes: Planes) -> np.ndarray:
    """Convert planes of equal size to (R, G, B) by ITU-T T.871, section 7, neither rounded nor clipped."""
    y, cb, cr = (plane.astype(np.float64) for plane in planes)
    cb, cr = cb - 128, cr - 128
    return np.stack([y + 1.402 * cr, y - 0.344136 * cb - 0.714136 * cr, y + 1.772 * cb])


def random_picture(seed: int) -> Planes:
    return Planes(*np.random.default_rng(seed).integers(0, 256, (3, 64, 64)).astype(np.uint8))


def test_the_difference_equals_that_of_rgb_within_the_stated_rounding() -> None:
    first, second = random_picture(0), random_picture(1)
    error = 2 * (rgb(difference(first, second)) - 128) - (rgb(second) - rgb(first))
    errors = error.reshape(3, -1)
    assert (np.abs(errors).max(axis=1) <= (2.41, 2.06, 2.78)).all()
    assert (np.abs(errors).max(axis=1) >= (2.0, 1.7, 2.3)).all()  # the bounds are tight
    assert (np.abs(errors.mean(axis=1)) < 0.1).all()  # rounding is unbiased


def test_levels_cover_the_range_from_black_to_white() -> None:
    black, white = (Planes(*np.full((3, 2, 2), value, np.uint8)) for value in (0, 255))
    assert (difference(black, white).luma == 255).all()
    assert (difference(white, black).luma == 0).all()
    assert all((plane == 128).all() for plane in difference(white, white))
    assert dequantise(np.array([0, 127, 128, 255], np.uint8)).tolist() == [-256, -2, 0, 254]


def test_stored_differences_equal_those_of_decoded_frames(make_clip: Callable[..., Path], tmp_path: Path) -> None:
    """A difference is the next frame minus this one, here of a coloured clip decoded to RGB by ffmpeg."""
    import av
    import ffmpeg
    import imageio_ffmpeg

    path = tmp_path / "clip.mp4"
    rows, columns = np.mgrid[0:80, 0:112]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"crf": "10"})
        stream.width, stream.height, stream.pix_fmt = 112, 80, "yuv420p"
        for number in range(30):
            phases = ((columns + 3 * number) / 15, (rows - 2 * number) / 11, (rows + columns + 4 * number) / 21)
            picture = np.stack([128 + 90 * np.sin(phase) for phase in phases], axis=-1).astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    out, _ = (
        ffmpeg.input(str(path))
        .output("pipe:", format="rawvideo", pix_fmt="rgb24", sws_flags="accurate_rnd+full_chroma_int")
        .run(cmd=imageio_ffmpeg.get_ffmpeg_exe(), capture_stdout=True, capture_stderr=True)
    )
    shown = np.frombuffer(out, np.uint8).reshape(30, 80, 112, 3).astype(int)
    found = extract_clip(path, ExtractionRequest((RgbDiffOptions(stack=3, short_side=80),), 2))["rgb_diff"]
    assert (found.height, found.width, found.times) == (80, 112, (0.0, 1.0))
    for instant in range(2):
        for step, jpeg in enumerate(found.at(instant)):
            assert simplejpeg.decode_jpeg_header(jpeg)[:3] == (80, 112, "YCbCr")
            number = 25 * instant + step
            expected = shown[number + 1] - shown[number]
            error = dequantise(simplejpeg.decode_jpeg(jpeg, "RGB")) - expected
            assert np.sqrt((expected**2).mean(axis=(0, 1))).min() > 8
            assert np.sqrt((error**2).mean(axis=(0, 1))).max() < 2.6
            assert np.abs(error.mean(axis=(0, 1))).max() < 0.5


def test_a_still_clip_gives_level_128_and_a_single_frame_fails(make_clip: Callable[..., Path], tmp_path: Path) -> None:
    path = make_clip(tmp_path / "clip.mp4", seconds=1, fps=1, audio_codec=None)
    with pytest.raises(ClipError) as caught:
        extract_clip(path, ExtractionRequest((SMALL,), 1))
    assert caught.value.reason == "too_few_frames"
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 112, 80, "yuv420p"
        for _ in range(3):
            frame = av.VideoFrame.from_ndarray(np.full((80, 112, 3), (200, 60, 90), np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    found = extract_clip(path, ExtractionRequest((SMALL,), 1))["rgb_diff"]
    assert np.abs(simplejpeg.decode_jpeg(found.jpegs[0], "RGB").astype(int) - 128).max() <= 1


def test_each_kind_uses_its_own_window(make_clip: Callable[..., Path], tmp_path: Path) -> None:
    """Beside flow of another stack, the bytes, times and flags are the same as alone, also at the end of the clip."""
    path = make_clip(tmp_path / "clip.mp4", seconds=2.08, audio_codec=None)  # 52 frames
    frames, flow, change = FrameOptions(short_side=80), FlowOptions(short_side=80), RgbDiffOptions(5, short_side=80)
    together = extract_clip(path, ExtractionRequest((frames, flow, change), 3))
    assert "flow" in together.features
    assert "rgb_diff" in together.features
    assert together["frames"] == extract_clip(path, ExtractionRequest((frames,), 3))["frames"]
    assert together["flow"] == extract_clip(path, ExtractionRequest((flow,), 3))["flow"]
    alone = extract_clip(path, ExtractionRequest((change,), 3))
    assert together["rgb_diff"] == alone["rgb_diff"]
    assert together["flow"].times == (0.0, 1.0, 2.0)
    assert together["rgb_diff"].times == (0.0, 1.0, 46 / 25)
    assert together.flags == alone.flags == ("rgb_diff_window_moved",)
    assert [len(together["rgb_diff"].at(instant)) for instant in range(3)] == [5, 5, 5]


def test_a_selection_is_narrowed_to_a_smaller_window() -> None:
    shots = tuple(TimedFrame(tick, None) for tick in range(10, 16))
    for at, after, expected, moved in ((0, 2, [10, 11, 12], False), (4, 1, [14, 15], False), (4, 3, [12, 15], True)):
        found, was_moved = SelectedFrames(0, shots[at], shots, frame_index=99, late=False, moved=at > 0).narrowed(after)
        ticks = [frame.pts for frame in found]
        assert (ticks[0], ticks[-1], len(ticks)) == (expected[0], expected[-1], after + 1)
        assert was_moved == moved


def test_invalid_options_are_refused() -> None:
    for wrong in ({"stack": 0}, {"stack": 11}, {"quality": 0}, {"short_side": 1}):
        with pytest.raises(ValueError, match="must be"):
            RgbDiffOptions(**wrong)
    assert RgbDiffOptions().parameters(10) != RgbDiffOptions(stack=2).parameters(10)


@pytest.mark.real
def test_ucf101_three_adds_differences_to_the_features_of_ucf101(real_data: Path, tmp_path: Path) -> None:
    features, shards = tmp_path / "features", tmp_path / "shards"

    def bmlpipe(*words: object) -> None:
        done = CliRunner().invoke(main, [str(word) for word in words])
        assert done.exit_code == 0, done.output

    videos = ("--videos", real_data / "clips", "--annotations", real_data / "annotations" / "ucf101")
    bmlpipe("extract", "--dataset", "ucf101", *videos, "--out", features, "--workers", 0)
    bmlpipe("shard", "--dataset", "ucf101", "--features", features, "--out", tmp_path / "two")
    bmlpipe("extract", "--dataset", "ucf101-three", *videos, "--out", features, "--workers", 0)
    bmlpipe("shard", "--dataset", "ucf101-three", "--features", features, "--out", shards)
    bmlpipe("verify", shards)
    two, three = (ShardReader(folder)[0].members for folder in (tmp_path / "two", shards))
    added = {f"rgb_diff_{i:03d}.jpg" for i in range(7)}
    assert set(three) == set(two) | added
    assert all(bytes(two[name]) == bytes(three[name]) for name in two if name != "json")
    index = json.loads((shards / "index.json").read_text())
    assert (index["dataset"], list(index["features"])) == ("ucf101", ["frames", "flow", "rgb_diff"])
