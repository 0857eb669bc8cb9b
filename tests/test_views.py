"""Frame choice, crops, decoding at a reduced size, flow."""

from __future__ import annotations

import io

import cv2
import numpy as np
import pytest
import simplejpeg
from PIL import Image

from bmlpipe.train.views import View, centre_view, choose, flow_field, picture, random_view, uniform_numbers


def gradient(height: int, width: int) -> bytes:
    """Red grows to the right, green downwards: every position can be told from its colour."""
    rows, columns = np.mgrid[0:height, 0:width]
    image = np.stack([columns * 255 / (width - 1), rows * 255 / (height - 1), np.full_like(rows, 99)], axis=2)
    return bytes(simplejpeg.encode_jpeg(image.astype(np.uint8), 98, colorspace="RGB", colorsubsampling="444"))


@pytest.mark.parametrize(
    ("available", "count", "expected"),
    [(10, 3, [1, 5, 8]), (10, 10, list(range(10))), (1, 3, [0, 0, 0]), (2, 3, [0, 1, 1]), (10, 1, [5])],
)
def test_frames_are_the_middles_of_equal_segments(available: int, count: int, expected: list[int]) -> None:
    assert choose(available, count) == expected


def test_random_frames_stay_in_their_segments() -> None:
    seen = {tuple(choose(10, 3, [u, u, u])) for u in np.linspace(0, 0.999, 50)}
    assert len(seen) > 3
    assert all(0 <= a < 4 and 3 <= b < 7 and 6 <= c < 10 for a, b, c in seen)


def test_evaluation_sees_the_largest_centred_square() -> None:
    image = picture(gradient(90, 160), centre_view(90, 160), 90)
    assert image.shape == (90, 90, 3)
    # columns 35 … 125 of 160, all rows
    assert image[45, 0, 0] == pytest.approx(35 * 255 / 159, abs=4)
    assert image[45, -1, 0] == pytest.approx(124 * 255 / 159, abs=4)
    assert image[0, 45, 1] == pytest.approx(0, abs=4)
    assert image[-1, 45, 1] == pytest.approx(255, abs=4)


@pytest.mark.parametrize("size", [16, 32, 56, 112, 224])
def test_decoding_at_a_reduced_size_shows_the_same_as_decoding_whole(size: int) -> None:
    jpeg, view = gradient(256, 340), View(0.1, 0.25, 0.6, 0.5)
    whole = np.asarray(Image.open(io.BytesIO(jpeg)).convert("RGB"))
    part = whole[26 : 26 + 154, 85 : 85 + 170]
    expected = cv2.resize(part, (size, size), interpolation=cv2.INTER_AREA)
    assert np.abs(picture(jpeg, view, size).astype(int) - expected).max() <= 8


def test_a_flipped_view_is_the_mirror_image() -> None:
    jpeg = gradient(64, 64)
    one, mirrored = picture(jpeg, View(0, 0, 1, 1), 64), picture(jpeg, View(0, 0, 1, 1, flip=True), 64)
    np.testing.assert_array_equal(one[:, ::-1], mirrored)


def test_random_views_lie_inside_and_have_the_stated_sizes() -> None:
    for number in range(300):
        view = random_view(240, 320, uniform_numbers(0, 1, number, 5))
        assert view.top >= 0
        assert view.left >= 0
        assert view.top + view.height <= 1 + 1e-9
        assert view.left + view.width <= 1 + 1e-9
        assert view.height * view.width >= 0.08 * 0.5
        ratio = view.width * 320 / (view.height * 240)
        assert 0.74 < ratio < 1.34 or max(view.height, view.width) == pytest.approx(1)


def test_random_numbers_depend_on_seed_epoch_and_sample_only() -> None:
    assert uniform_numbers(1, 2, 3, 8)[:5] == uniform_numbers(1, 2, 3, 5)
    others = [uniform_numbers(*key, 5) for key in ((0, 2, 3), (1, 0, 3), (1, 2, 0))]
    assert all(other != uniform_numbers(1, 2, 3, 5) for other in others)


def test_mirrored_flow_points_the_other_way() -> None:
    still = np.full((32, 32, 1), 128, np.uint8)
    right = still + np.uint8(40)
    x, y = (simplejpeg.encode_jpeg(field, 98, colorspace="GRAY") for field in (right, still))
    straight, mirrored = (flow_field(x, y, View(0, 0, 1, 1, flip=flip), 32) for flip in (False, True))
    assert straight.shape == (32, 32, 2)
    assert abs(int(straight[16, 16, 0]) - 168) <= 1
    assert abs(int(mirrored[16, 16, 0]) - 88) <= 1
    assert abs(int(mirrored[16, 16, 1]) - 128) <= 1
