"""Optical flow of known motion, its quantised storage, and the error of that storage."""

import numpy as np
import pytest
import simplejpeg

from bmlpipe.pipeline.extraction.clip import extract_clip
from bmlpipe.pipeline.extraction.request import ExtractionRequest
from bmlpipe.pipeline.front_ends.flow import FlowOptions, dequantise, encode_fields, estimator, quantise
from bmlpipe.pipeline.media.errors import ClipError


def texture(height=120, width=160, seed=0):
    """A smooth random image, levels 0–255."""
    import cv2

    noise = np.random.default_rng(seed).integers(0, 256, (height, width), np.uint8)
    return cv2.normalize(cv2.GaussianBlur(noise, (0, 0), 2), None, 0, 255, cv2.NORM_MINMAX)


def shifted(image, right, down):
    """Shift an image by whole pixels."""
    return np.roll(image, (down, right), axis=(0, 1))


@pytest.mark.parametrize("algorithm", ["dis", "farneback", "tvl1-fast", pytest.param("tvl1", marks=pytest.mark.slow)])
def test_a_known_shift_is_estimated_with_the_right_sign_and_axis(algorithm):
    image = texture()
    field = estimator(algorithm)(image, shifted(image, 3, -2))
    assert field.shape == (120, 160, 2)
    assert field.dtype == np.float32
    inner = field[20:-20, 20:-20]
    assert np.abs(np.median(inner[..., 0]) - 3) < 0.2
    assert np.abs(np.median(inner[..., 1]) + 2) < 0.2


@pytest.mark.slow
def test_tvl1_fast_is_close_to_tvl1():
    """The second image is rotated by 3° and enlarged by 2 %, so motion is up to 5 pixels."""
    import cv2

    first = texture(160, 200)
    turn = cv2.getRotationMatrix2D((100, 80), 3, 1.02)
    second = cv2.warpAffine(first, turn, (200, 160), borderMode=cv2.BORDER_REFLECT)
    full, fast = (estimator(algorithm)(first, second)[20:-20, 20:-20] for algorithm in ("tvl1", "tvl1-fast"))
    assert np.linalg.norm(full, axis=-1).mean() > 2
    assert 0 < np.linalg.norm(fast - full, axis=-1).mean() < 0.25


def test_quantisation_error_is_as_stated():
    values = np.linspace(-30, 30, 10_001, dtype=np.float32)
    back = dequantise(quantise(values, 20), 20)
    assert np.abs(back - np.clip(values, -20, 20)).max() <= 20 / 254 + 1e-5
    assert quantise(np.zeros(1, np.float32), 20)[0] == 128
    assert (quantise(values, 20).min(), quantise(values, 20).max()) == (1, 255)


def test_stored_fields_decode_to_the_estimated_flow():
    first = texture()
    second = shifted(first, 3, 0)
    estimate = estimator("dis")
    ((x, y),) = encode_fields([first, second], estimate, 20, 90)
    back = np.stack(
        [dequantise(simplejpeg.decode_jpeg(data, colorspace="GRAY")[..., 0], 20) for data in (x, y)], axis=-1
    )
    error = back - np.clip(estimate(first, second), -20, 20)
    assert simplejpeg.decode_jpeg_header(x)[:3] == (120, 160, "Gray")
    assert np.sqrt((error**2).mean()) < 0.15
    assert np.abs(np.median(back[20:-20, 20:-20, 0]) - 3) < 0.2


def test_flow_of_a_clip_measures_the_motion_of_each_instant(make_clip, tmp_path):
    """The lower half of the test frames moves by 2 pixels per frame."""
    clip = make_clip(tmp_path / "clip.mp4", seconds=3, audio_codec=None, options={"crf": "12"})
    features = extract_clip(clip, ExtractionRequest((FlowOptions(stack=2, short_side=80),), 10))
    assert "frames" not in features.features
    assert features.flags == ("short_video",)
    assert features["flow"].times == (0.0, 1.0, 2.0)
    assert [len(features["flow"].at(instant)) for instant in range(3)] == [4, 4, 4]
    assert (features["flow"].height, features["flow"].width, features["flow"].numbers["bound"]) == (80, 112, 20.0)
    for x in features["flow"].jpegs[::2]:
        drift = dequantise(simplejpeg.decode_jpeg(x, colorspace="GRAY")[..., 0], 20)[50:70, 20:90]
        assert np.abs(np.median(drift) - 2) < 0.4


def test_the_last_window_is_moved_back_at_the_end_of_the_clip(make_clip, tmp_path):
    clip = make_clip(tmp_path / "clip.mp4", seconds=2.08, audio_codec=None)  # 52 frames
    features = extract_clip(clip, ExtractionRequest((FlowOptions(stack=10, short_side=80),), 3))
    assert features["flow"].times == (0.0, 1.0, 41 / 25)
    assert features.flags == ("flow_window_moved",)


def test_a_clip_of_one_frame_has_no_flow(make_clip, tmp_path):
    clip = make_clip(tmp_path / "clip.mp4", seconds=0.04, audio_codec=None)
    with pytest.raises(ClipError) as caught:
        extract_clip(clip, ExtractionRequest((FlowOptions(),)))
    assert caught.value.reason == "too_few_frames"


def test_invalid_options_are_refused():
    for wrong in ({"algorithm": "raft"}, {"stack": 0}, {"stack": 11}, {"bound": 0}, {"quality": 0}, {"short_side": 1}):
        with pytest.raises(ValueError, match="must be"):
            FlowOptions(**wrong)
    assert FlowOptions().parameters(10) != FlowOptions(stack=2).parameters(10)
