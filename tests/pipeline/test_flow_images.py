"""Precomputed flow images: both folder layouts, the images of each instant, and the errors of unfit images."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from click.testing import CliRunner

from bmlpipe.pipeline.cli import main
from bmlpipe.pipeline.extraction.clip import extract_clip
from bmlpipe.pipeline.extraction.request import ExtractionRequest
from bmlpipe.pipeline.front_ends.features import JpegSeries
from bmlpipe.pipeline.front_ends.flow import FlowOptions, dequantise
from bmlpipe.pipeline.front_ends.frames import FrameOptions
from bmlpipe.pipeline.media.errors import ClipError
from bmlpipe.pipeline.store.ledger import read_ledger

FRAMES_OF_CLIP = 52  # in 2.08 s at 25 fps


@pytest.fixture
def clip(make_clip: Callable[..., Path], tmp_path: Path) -> Path:
    (tmp_path / "videos" / "Archery").mkdir(parents=True)
    return make_clip(tmp_path / "videos" / "Archery" / "v_Archery_g01_c01.mp4", seconds=2.08, audio_codec=None)


def image(level: int, size: tuple[int, int] = (24, 32)) -> bytes:
    """A uniform grey JPEG; `write` sets the level to the frame's number (x) or to 255 minus the number (y)."""
    grey = np.full((*size, 1), level, np.uint8)
    return bytes(simplejpeg.encode_jpeg(grey, quality=95, colorspace="GRAY"))


def write(folder: Path, layout: str, name: str, *, count: int = FRAMES_OF_CLIP - 1, first: int = 1) -> Path:
    """Write the flow images of a video, numbered from `first`."""
    for number in range(count):
        for axis, letter, level in (("x", "u", number), ("y", "v", 255 - number)):
            if layout == "xy":
                path = folder / name / f"flow_{axis}_{first + number:04d}.jpg"
            else:
                path = folder / letter / name / f"frame{first + number:06d}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(image(level))
    return folder


def imported_flow(clip: Path, folder: Path, *, stack: int = 1, seconds: int | None = 10, **span: float) -> JpegSeries:
    request = ExtractionRequest((FlowOptions(stack=stack, images=folder),), seconds)
    flow = extract_clip(clip, request, **span)["flow"]  # type: ignore[arg-type]
    assert isinstance(flow, JpegSeries)
    return flow


def shown(flow: JpegSeries) -> list[list[int]]:
    """Return the frame numbers of the flow fields at each instant."""
    numbers = []
    for instant in range(len(flow.times)):
        levels = [int(simplejpeg.decode_jpeg(jpeg, "GRAY").mean().round()) for jpeg in flow.at(instant)]
        x, y = levels[::2], levels[1::2]
        assert [255 - level for level in y] == x
        numbers.append(x)
    return numbers


def failure(clip: Path, folder: Path, **arguments: object) -> tuple[str, str]:
    with pytest.raises(ClipError) as caught:
        imported_flow(clip, folder, **arguments)  # type: ignore[arg-type]
    return caught.value.reason, caught.value.message


@pytest.mark.parametrize("layout", ["xy", "uv"])
@pytest.mark.parametrize("name", ["v_Archery_g01_c01", "Archery/v_Archery_g01_c01", "archery/V_archery_g01_c01"])
def test_the_images_of_each_instant_are_stored_unchanged(clip: Path, tmp_path: Path, layout: str, name: str) -> None:
    folder = write(tmp_path / "flow", layout, name)
    flow = imported_flow(clip, folder, seconds=3, stack=2)
    assert shown(flow) == [[0, 1], [25, 26], [49, 50]]  # 51 images: the last window is moved back
    assert flow.times == (0.0, 1.0, 49 / 25)
    assert (flow.height, flow.width, flow.numbers) == (24, 32, {"stack": 2, "bound": 20.0})
    assert flow.at(1)[:2] == (image(25), image(230))


@pytest.mark.parametrize(("first", "count"), [(0, FRAMES_OF_CLIP - 1), (1, FRAMES_OF_CLIP), (0, FRAMES_OF_CLIP)])
def test_numbers_begin_at_0_or_1_and_the_last_frame_may_have_an_image(
    clip: Path, tmp_path: Path, first: int, count: int
) -> None:
    folder = write(tmp_path / "flow", "xy", clip.stem, first=first, count=count)
    assert shown(imported_flow(clip, folder, seconds=None)) == [[0], [25], [50]]


def test_images_of_a_span_are_numbered_from_the_start_of_the_file(
    make_clip: Callable[..., Path], tmp_path: Path
) -> None:
    clip = make_clip(tmp_path / "clip.mp4", seconds=4, audio_codec=None)
    folder = write(tmp_path / "flow", "uv", "clip", count=99)
    flow = imported_flow(clip, folder, start=2.2, duration=1.5)
    assert shown(flow) == [[55], [80]]
    assert flow.times == pytest.approx((0.0, 1.0))


def test_windows_are_the_same_as_for_computed_flow(clip: Path, tmp_path: Path) -> None:
    folder = write(tmp_path / "flow", "xy", clip.stem)
    options = FlowOptions(stack=10, short_side=80)
    computed = extract_clip(clip, ExtractionRequest((FrameOptions(short_side=80), options), 3))
    imported = extract_clip(
        clip, ExtractionRequest((FrameOptions(short_side=80), FlowOptions(stack=10, images=folder)), 3)
    )
    assert "flow" in computed.features
    assert "flow" in imported.features
    assert imported["flow"].times == computed["flow"].times
    assert imported.flags == computed.flags == ("flow_window_moved",)
    assert imported["frames"] == computed["frames"]


def test_missing_images_are_an_error_that_names_what_is_missing(clip: Path, tmp_path: Path) -> None:
    folder = tmp_path / "flow"
    folder.mkdir()
    reason, text = failure(clip, folder)
    assert reason == "missing_flow_images"
    assert "neither v_Archery_g01_c01 nor u/v_Archery_g01_c01" in text
    cases = {
        "empty": (0, "there are none"),
        "short": (40, "only 40 images"),
    }
    for name, (count, message) in cases.items():
        (folder / name / clip.stem).mkdir(parents=True)
        reason, text = failure(clip, write(folder / name, "xy", clip.stem, count=count), seconds=3)
        assert reason == "missing_flow_images"
        assert message in text
    for count in (FRAMES_OF_CLIP - 2, FRAMES_OF_CLIP + 1):  # noticed only when the whole video is read
        reason, text = failure(clip, write(folder / str(count), "xy", clip.stem, count=count), seconds=None)
        assert reason == "missing_flow_images"
    assert "53 images for 52 pictures" in text
    write(folder / "gap", "xy", clip.stem)
    (folder / "gap" / clip.stem / "flow_x_0030.jpg").unlink()
    assert "numbers 1 to 51, 50 in all" in failure(clip, folder / "gap")[1]
    write(folder / "one", "xy", clip.stem)
    (folder / "one" / clip.stem / "flow_y_0051.jpg").unlink()
    assert "51 images of x, 50 of y" in failure(clip, folder / "one")[1]
    shutil.rmtree(write(folder / "u", "uv", clip.stem) / "v")
    assert failure(clip, folder / "u")[0] == "missing_flow_images"


@pytest.mark.parametrize("content", [b"", b"GIF89a", image(3)[:-40], image(3, (24, 34))])
def test_an_image_that_cannot_be_decoded_or_has_another_size_is_named(
    clip: Path, tmp_path: Path, content: bytes
) -> None:
    folder = write(tmp_path / "flow", "xy", clip.stem)
    (folder / clip.stem / "flow_y_0026.jpg").write_bytes(content)
    reason, message = failure(clip, folder, seconds=3)
    assert reason == "bad_flow_images"
    assert "flow_y_0026.jpg" in message
    assert shown(imported_flow(clip, folder, seconds=1)) == [[0]]  # images that are not needed are not read


def test_the_other_quantisation_of_published_images_differs_by_the_stated_error() -> None:
    levels = np.arange(256, dtype=np.uint8)
    published = levels * (2 * 20 / 255) - 20
    assert np.abs(dequantise(levels, 20) - published).max() == pytest.approx(20 / 127, rel=1e-5)


def test_the_parameters_do_not_depend_on_the_folder() -> None:
    one, other = (FlowOptions(images=Path(name)).parameters(10) for name in ("/a", "/b"))
    assert one == other
    assert one != FlowOptions().parameters(10)
    assert one["algorithm"] == "images"


def test_the_command_imports_images_and_fails_clips_without_them(clip: Path, tmp_path: Path) -> None:
    (tmp_path / "videos" / "Bowling").mkdir()
    shutil.copy(clip, tmp_path / "videos" / "Bowling" / "v_Bowling_g01_c01.mp4")
    folder = write(tmp_path / "flow", "uv", clip.stem)
    command = ["extract", "--dataset", "folder", "--videos", str(tmp_path / "videos"), "--out", str(tmp_path / "out")]
    command += ["--kinds", "flow", "--flow-images", str(folder), "--seconds", "2", "--workers", "0"]
    result = CliRunner().invoke(main, [*command, "--max-failed", "1"])
    assert result.exit_code == 0, result.output
    reasons = {row.id: row.reason for row in read_ledger(tmp_path / "out")}
    assert reasons == {"Archery/v_Archery_g01_c01": "", "Bowling/v_Bowling_g01_c01": "missing_flow_images"}
