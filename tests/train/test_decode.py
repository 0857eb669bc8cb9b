"""Frame choice, crops, decoding at a reduced size, flow."""

from __future__ import annotations

import io
from typing import Literal

import cv2
import numpy as np
import pytest
import simplejpeg
from PIL import Image

from bmlpipe.train.data import decode
from bmlpipe.train.data.decode import (
    Crop,
    DamagedMemberError,
    centre_crop,
    choose_instants,
    mirror_motion,
    random_crop,
    spectrogram,
)


def gradient(height: int, width: int) -> bytes:
    """Red grows to the right, green downwards: so the colour of a pixel shows where it was."""
    rows, columns = np.mgrid[0:height, 0:width]
    image = np.stack([columns * 255 / (width - 1), rows * 255 / (height - 1), np.full_like(rows, 99)], axis=2)
    return bytes(simplejpeg.encode_jpeg(image.astype(np.uint8), 98, colorspace="RGB", colorsubsampling="444"))


def picture(jpeg: bytes, crop: Crop, size: int, channels: int = 3) -> np.ndarray:
    out = np.empty((size, size, channels), np.uint8)
    decode.picture(jpeg, crop, out)
    return out


def uniform_numbers(seed: int, epoch: int, number: int, count: int) -> list[float]:
    return list(decode.uniform_numbers(seed, np.array([epoch]), np.array([number]), count)[0])


@pytest.mark.parametrize(
    ("available", "count", "expected"),
    [(10, 3, [1, 5, 8]), (10, 10, list(range(10))), (1, 3, [0, 0, 0]), (2, 3, [0, 1, 1]), (10, 1, [5])],
)
def test_evaluation_frames_are_the_middles_of_equal_segments(available: int, count: int, expected: list[int]) -> None:
    assert choose_instants(available, count) == expected


def test_random_frames_stay_in_their_segments() -> None:
    seen = {tuple(choose_instants(10, 3, [u, u, u])) for u in np.linspace(0, 0.999, 50)}
    assert len(seen) > 3
    assert all(0 <= a < 4 and 3 <= b < 7 and 6 <= c < 10 for a, b, c in seen)


def test_evaluation_sees_the_largest_centred_square() -> None:
    image = picture(gradient(90, 160), centre_crop(90, 160), 90)
    assert image.shape == (90, 90, 3)
    # columns 35 … 125 of 160, all rows
    assert image[45, 0, 0] == pytest.approx(35 * 255 / 159, abs=4)
    assert image[45, -1, 0] == pytest.approx(124 * 255 / 159, abs=4)
    assert image[0, 45, 1] == pytest.approx(0, abs=4)
    assert image[-1, 45, 1] == pytest.approx(255, abs=4)


@pytest.mark.parametrize("size", [16, 32, 56, 112, 224])
@pytest.mark.parametrize("crop", [Crop(0.1, 0.25, 0.6, 0.5), Crop(0, 0, 0.4, 1), Crop(0.5, 0.1, 0.25, 0.2)])
def test_decoding_at_a_reduced_size_equals_decoding_at_full_size(size: int, crop: Crop) -> None:
    jpeg = gradient(256, 340)
    whole = np.asarray(Image.open(io.BytesIO(jpeg)).convert("RGB"))
    top, left, tall, wide = (
        round(part * of) for part, of in zip((crop.top, crop.left, crop.height, crop.width), (256, 340, 256, 340))
    )
    part = whole[top : top + tall, left : left + wide]
    shrinks = tall >= size and wide >= size
    expected = cv2.resize(part, (size, size), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    assert np.abs(picture(jpeg, crop, size).astype(int) - expected).max() <= 8


@pytest.mark.parametrize(
    ("side", "decoded"), [(256, 256), (224, 256), (129, 256), (128, 128), (112, 128), (64, 64), (16, 32)]
)
def test_pictures_are_decoded_at_the_smallest_sufficient_size(
    side: int, decoded: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    heights, decode = [], simplejpeg.decode_jpeg

    def recorded(*args: object, **options: object) -> np.ndarray:
        image: np.ndarray = decode(*args, **options)
        heights.append(image.shape[0])
        return image

    monkeypatch.setattr(simplejpeg, "decode_jpeg", recorded)
    picture(gradient(256, 340), centre_crop(256, 340), side)
    assert heights == [decoded]


def test_a_flipped_crop_is_the_mirror_image() -> None:
    jpeg = gradient(64, 64)
    one, mirrored = picture(jpeg, Crop(0, 0, 1, 1), 64), picture(jpeg, Crop(0, 0, 1, 1, flip=True), 64)
    np.testing.assert_array_equal(one[:, ::-1], mirrored)


def test_random_crops_lie_inside_and_have_the_stated_sizes() -> None:
    for number in range(300):
        crop = random_crop(240, 320, uniform_numbers(0, 1, number, 5))
        assert crop.top >= 0
        assert crop.left >= 0
        assert crop.top + crop.height <= 1 + 1e-9
        assert crop.left + crop.width <= 1 + 1e-9
        assert crop.height * crop.width >= 0.08 * 0.5
        ratio = crop.width * 320 / (crop.height * 240)
        assert 0.74 < ratio < 1.34 or max(crop.height, crop.width) == pytest.approx(1)


def test_random_numbers_depend_on_seed_epoch_and_sample_only() -> None:
    assert uniform_numbers(1, 2, 3, 8)[:5] == uniform_numbers(1, 2, 3, 5)
    others = [uniform_numbers(*key, 5) for key in ((0, 2, 3), (1, 0, 3), (1, 2, 0))]
    assert all(other != uniform_numbers(1, 2, 3, 5) for other in others)
    batch = decode.uniform_numbers(1, np.array([2, -1, 0]), np.array([3, 10**7, 0]), 5)
    assert batch.tolist() == [uniform_numbers(1, *key, 5) for key in ((2, 3), (-1, 10**7), (0, 0))]


def test_flipped_flow_points_the_other_way() -> None:
    x = np.array([[[0], [1], [88], [128], [168], [255]]], np.uint8)
    mirror_motion(x)
    assert x.ravel().tolist() == [255, 255, 168, 128, 88, 1]


def test_grey_pictures_have_one_channel() -> None:
    rows = np.mgrid[0:32, 0:48][1].astype(np.uint8)[..., None] * 5
    jpeg = simplejpeg.encode_jpeg(rows, 98, colorspace="GRAY")
    shown = picture(jpeg, Crop(0, 0, 1, 2 / 3, flip=True), 32, channels=1)
    assert np.abs(shown.astype(int) - rows[:, 31::-1]).max() <= 2


@pytest.mark.parametrize("shape", [(257, 40), (257, 1004), (1, 1)])
@pytest.mark.parametrize("order", ["C", "F"])
def test_a_spectrogram_equals_what_numpy_reads(shape: tuple[int, int], order: Literal["C", "F"]) -> None:
    file, values = io.BytesIO(), np.random.default_rng(0).normal(size=shape).astype(np.float16, order=order)
    np.save(file, values)
    np.testing.assert_array_equal(spectrogram(memoryview(file.getvalue())), values)


@pytest.mark.parametrize("values", [np.zeros((2, 3)), np.zeros(3, np.float16), np.array([[None]])])
def test_other_arrays_are_refused_as_spectrograms(values: np.ndarray) -> None:
    file = io.BytesIO()
    np.save(file, values)
    with pytest.raises(DamagedMemberError, match="its spectrogram"):
        spectrogram(file.getvalue())


def test_other_bytes_are_refused_as_pictures() -> None:
    with pytest.raises(DamagedMemberError, match="not a JPEG"):
        picture(b"no picture at all", Crop(0, 0, 1, 1), 8)
