"""JPEG frames: colours, sizes, pixel aspect ratio and rotation."""

import io
from fractions import Fraction

import av
import numpy as np
import pytest
import simplejpeg
from PIL import Image

from bmlpipe.pipeline.extraction.clip import extract_clip
from bmlpipe.pipeline.extraction.request import ExtractionRequest
from bmlpipe.pipeline.front_ends.frames import FrameOptions, Scaler, encode
from bmlpipe.pipeline.media.ffmpeg_program import FFmpeg

COLOURS = np.array(  # two rows of four patches
    [
        [(200, 30, 30), (30, 180, 40), (40, 50, 190), (128, 128, 128)],
        [(230, 220, 40), (30, 200, 200), (190, 40, 180), (16, 16, 16)],
    ],
    np.float64,
)
WEIGHTS = {"bt601": (0.299, 0.114), "bt709": (0.2126, 0.0722), "bt2020": (0.2627, 0.0593)}
NUMBERS = {"bt601": 6, "bt709": 1, "bt2020": 9, "unspecified": 2}


def ycbcr(rgb, matrix):
    """Convert RGB to full-range Y, Cb, Cr (0–255, chroma around 128) by the definition of the standard."""
    kr, kb = WEIGHTS[matrix]
    red, green, blue = np.moveaxis(rgb, -1, 0)
    y = kr * red + (1 - kr - kb) * green + kb * blue
    return np.stack([y, (blue - y) / (2 * (1 - kb)) + 128, (red - y) / (2 * (1 - kr)) + 128])


def coloured(width, height, matrix="bt601", full=False, pixel_format="yuv420p"):
    """A frame of the colour patches, as a decoder returns it."""
    rows = np.arange(height) * 2 // height
    columns = np.arange(width) * 4 // width
    picture = ycbcr(COLOURS[rows][:, columns], "bt601" if matrix == "unspecified" else matrix)
    if not full:
        picture = (picture - [[[0]], [[128]], [[128]]]) * [[[219 / 255]], [[224 / 255]], [[224 / 255]]] + [
            [[16]],
            [[128]],
            [[128]],
        ]
    depth = 10 if "10" in pixel_format else 8
    dtype = np.uint16 if depth == 10 else np.uint8
    frame = av.VideoFrame(width, height, pixel_format)
    for plane, values in zip(frame.planes, np.rint(picture * 2 ** (depth - 8)).astype(dtype)):
        step_x, step_y = -(-width // plane.width), -(-height // plane.height)
        target = np.zeros((plane.height, plane.line_size // dtype().itemsize), dtype)
        target[:, : plane.width] = values[::step_y, ::step_x]
        plane.update(target.tobytes())
    frame.colorspace = NUMBERS[matrix]
    frame.color_range = 2 if full else 1
    return frame


def seen(jpeg):
    """Return the colour in the middle of each patch, decoded by Pillow."""
    picture = np.asarray(Image.open(io.BytesIO(jpeg)).convert("RGB"), np.float64)
    height, width = picture.shape[:2]
    return picture[[height // 4, 3 * height // 4]][:, [width * (2 * k + 1) // 8 for k in range(4)]]


@pytest.mark.parametrize("pixel_format", ["yuv420p", "yuv422p", "yuv444p", "yuv420p10le", "yuv422p10le"])
@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("matrix", ["bt601", "bt709", "bt2020"])
def test_colours_are_kept_for_every_matrix_range_and_pixel_format(matrix, full, pixel_format):
    frame = coloured(160, 120, matrix, full, pixel_format)
    jpeg = encode(Scaler(120).planes(frame), 95)
    assert np.abs(seen(jpeg) - COLOURS).max() <= 6


def test_colours_differ_for_a_wrong_matrix():
    frame = coloured(160, 120, "bt709")
    frame.colorspace = NUMBERS["bt601"]
    assert np.abs(seen(encode(Scaler(120).planes(frame), 95)) - COLOURS).max() > 15


@pytest.mark.parametrize(
    ("size", "matrix"), [((640, 480), "bt601"), ((576, 720), "bt601"), ((1280, 720), "bt709"), ((720, 1280), "bt709")]
)
def test_an_unspecified_matrix_is_chosen_by_the_frame_size(size, matrix):
    frame = coloured(*size, matrix)
    named = Scaler(128).planes(frame)
    frame.colorspace = NUMBERS["unspecified"]
    unnamed = Scaler(128).planes(frame)
    assert all(np.array_equal(one, other) for one, other in zip(named, unnamed))


@pytest.mark.parametrize(
    ("size", "aspect", "short_side", "expected"),
    [
        ((640, 360), None, 256, (256, 456)),
        ((360, 640), None, 256, (456, 256)),
        ((112, 80), None, 256, (256, 358)),  # enlarged
        ((320, 240), Fraction(4, 3), 240, (240, 426)),  # non-square pixels: shown as 16:9
        ((720, 576), Fraction(16, 15), 256, (256, 342)),
        ((101, 75), None, 75, (75, 100)),  # odd sizes
        ((100, 100), None, 64, (64, 64)),
        ((1000, 20), None, 16, (16, 800)),
    ],
)
def test_the_short_side_is_exact_and_the_aspect_ratio_is_kept(size, aspect, short_side, expected):
    planes = Scaler(short_side, aspect).planes(coloured(*size))
    height, width = planes.luma.shape
    assert (height, width) == expected
    assert planes.cb.shape == planes.cr.shape == ((height + 1) // 2, (width + 1) // 2)
    assert simplejpeg.decode_jpeg_header(encode(planes, 95))[:3] == (*expected, "YCbCr")
    assert np.abs(seen(encode(planes, 95)) - COLOURS).max() <= (8 if min(size) > 50 else 90)


@pytest.mark.parametrize("pixel_format", ["rgb24", "gbrp", "gray", "pal8"])
def test_colours_are_kept_for_formats_other_than_yuv(pixel_format):
    source = np.repeat(np.repeat(COLOURS.astype(np.uint8), 60, axis=0), 40, axis=1)
    frame = av.VideoFrame.from_ndarray(source, format="rgb24")
    if pixel_format == "pal8":
        frame = av.VideoFrame.from_ndarray(source, format="rgb24").reformat(format="rgb8")
    elif pixel_format != "rgb24":
        frame = frame.reformat(format=pixel_format, dst_color_range=2)
    shown = seen(encode(Scaler(120).planes(frame), 95))
    expected = COLOURS if pixel_format != "gray" else np.repeat(ycbcr(COLOURS, "bt601")[0][..., None], 3, axis=-1)
    assert np.abs(shown - expected).max() <= (40 if pixel_format == "pal8" else 6)


def test_luma_alone_equals_the_luma_of_the_frame():
    frame = coloured(320, 240)
    assert np.array_equal(Scaler(256).luma(frame), Scaler(256).planes(frame).luma)


def test_later_frames_are_scaled_to_the_size_of_the_first():
    scaler = Scaler(64)
    assert scaler.planes(coloured(160, 120)).luma.shape == scaler.planes(coloured(200, 200)).luma.shape == (64, 86)


ENCODED = {  # encoder, container, size, matrix, full range, pixel format, pixel aspect ratio
    "h264-601": ("libx264", "mp4", (160, 120), "bt601", False, "yuv420p", 1),
    "h264-709": ("libx264", "mp4", (160, 120), "bt709", False, "yuv420p", 1),
    "h264-709-full": ("libx264", "mkv", (160, 120), "bt709", True, "yuv420p", 1),
    "h264-unnamed-small": ("libx264", "mp4", (320, 240), "unspecified", False, "yuv420p", 1),
    "h264-odd-444": ("libx264", "mp4", (161, 121), "bt709", False, "yuv444p", 1),
    "h264-422-10": ("libx264", "mov", (160, 120), "bt709", False, "yuv422p10le", 1),
    "h264-wide-pixels": ("libx264", "mp4", (120, 120), "bt601", False, "yuv420p", Fraction(4, 3)),
    "h264-narrow-pixels": ("libx264", "ts", (160, 96), "bt601", False, "yuv420p", Fraction(4, 5)),
    "hevc-2020-10": ("libx265", "mp4", (160, 120), "bt2020", False, "yuv420p10le", 1),
    "hevc-709-full": ("libx265", "mkv", (160, 120), "bt709", True, "yuv420p", 1),
    "vp9-709": ("libvpx-vp9", "webm", (160, 120), "bt709", False, "yuv420p", 1),
    "mpeg2-709": ("mpeg2video", "mpg", (160, 120), "bt709", False, "yuv420p", 1),
    "mpeg4-avi": ("mpeg4", "avi", (160, 120), "bt601", False, "yuv420p", 1),
    "mjpeg": ("mjpeg", "avi", (160, 120), "bt601", True, "yuvj420p", 1),
    "mjpeg-422-odd": ("mjpeg", "mov", (161, 121), "bt601", True, "yuvj422p", 1),
    "prores-422-10": ("prores_ks", "mov", (160, 120), "bt709", False, "yuv422p10le", 1),
    "ffv1-rgb": ("ffv1", "mkv", (160, 120), "bt601", True, "bgr0", 1),
}


@pytest.mark.parametrize("decoder", [None, FFmpeg()], ids=["pyav", "ffmpeg"])
@pytest.mark.parametrize("name", ENCODED)
def test_colours_of_encoded_clips_are_kept(tmp_path, name, decoder):
    """Known colours pass through an encoder, a container, either decoder and the JPEG."""
    encoder, suffix, (width, height), matrix, full, form, aspect = ENCODED[name]
    if form == "bgr0":
        rows, columns = np.arange(height) * 2 // height, np.arange(width) * 4 // width
        frame = av.VideoFrame.from_ndarray(COLOURS[rows][:, columns].astype(np.uint8), format="rgb24").reformat(
            format=form
        )
    else:
        frame = coloured(width, height, matrix, full, form)
    clip = tmp_path / f"clip.{suffix}"
    options = {"libx264": {"crf": "1"}, "libx265": {"x265-params": "log-level=none:crf=4"}}.get(encoder, {})
    with av.open(str(clip), "w") as container:
        stream = container.add_stream(encoder, rate=25, options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, form
        context = stream.codec_context
        context.bit_rate, context.sample_aspect_ratio = 8_000_000, Fraction(aspect)
        if matrix != "unspecified":
            context.colorspace = NUMBERS[matrix] if form != "bgr0" else 0
        context.color_range = 2 if full else 1
        for number in range(12):
            frame.pts, frame.time_base = number, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    features = extract_clip(clip, ExtractionRequest((FrameOptions(short_side=120, quality=100),), 1, ffmpeg=decoder))
    shown = width * Fraction(aspect) / height
    assert abs(features["frames"].width / features["frames"].height - shown) < 0.02
    assert np.abs(seen(features["frames"].jpegs[0]) - COLOURS).max() <= 9
    assert (
        extract_clip(clip, ExtractionRequest((FrameOptions(short_side=120, quality=100),), 1))["frames"]
        == features["frames"]
    )


@pytest.mark.parametrize("rotation", [0, 90, -90, 180])
def test_frames_are_rotated_by_the_display_matrix(make_clip, frame_number, tmp_path, rotation):
    clip = make_clip(tmp_path / "clip.mp4", seconds=2, rotation=rotation, audio_codec=None)
    features = extract_clip(clip, ExtractionRequest((FrameOptions(short_side=80),), 2))
    upright = (features["frames"].height, features["frames"].width)
    assert upright == ((112, 80) if abs(rotation) == 90 else (80, 112))
    assert abs(features.media["rotation"]) == abs(rotation)
    for number, jpeg in zip((0, 25), features["frames"].jpegs):
        shown = simplejpeg.decode_jpeg(jpeg, colorspace="GRAY")[..., 0]
        assert frame_number(np.rot90(shown, -rotation // 90)) == number


def test_frames_are_mirrored_by_the_display_matrix(make_clip, tmp_path):
    """The matrix of an MP4 file is replaced by mirroring ones, which ffmpeg applies too."""
    import ffmpeg
    import imageio_ffmpeg

    clip = make_clip(tmp_path / "clip.mp4", seconds=1, rotation=90, audio_codec=None)
    one, minus = (1 << 16).to_bytes(4, "big"), (-(1 << 16) & 0xFFFFFFFF).to_bytes(4, "big")
    data, zero = clip.read_bytes(), bytes(4)
    last = (1 << 30).to_bytes(4, "big")
    at = data.index(b"tkhd") + 44
    for number, (a, b, c, d) in enumerate(
        [(minus, zero, zero, one), (one, zero, zero, minus), (zero, one, one, zero), (zero, minus, minus, zero)]
    ):
        matrix = a + b + zero + c + d + zero + zero + zero + last
        mirrored = tmp_path / f"mirrored{number}.mp4"
        mirrored.write_bytes(data[:at] + matrix + data[at + 36 :])
        features = extract_clip(mirrored, ExtractionRequest((FrameOptions(short_side=80, quality=100),), 1))
        ours = simplejpeg.decode_jpeg(features["frames"].jpegs[0], colorspace="GRAY")[..., 0].astype(int)
        out, _ = (
            ffmpeg.input(str(mirrored))
            .output("pipe:", format="rawvideo", pix_fmt="gray", vframes=1)
            .run(cmd=imageio_ffmpeg.get_ffmpeg_exe(), capture_stdout=True, capture_stderr=True)
        )
        theirs = np.frombuffer(out, np.uint8).reshape(ours.shape).astype(int)
        assert np.abs(ours - theirs).mean() < 3


def test_equal_frames_give_equal_bytes():
    first, second = (encode(Scaler(100).planes(coloured(320, 240, "bt709")), 95) for _ in range(2))
    assert first == second


def test_invalid_options_are_refused():
    for wrong in ({"short_side": 8}, {"short_side": 5000}, {"quality": 0}, {"quality": 101}):
        with pytest.raises(ValueError, match="must be"):
            FrameOptions(**wrong)
    assert FrameOptions().parameters(10) != FrameOptions(quality=90).parameters(10)
