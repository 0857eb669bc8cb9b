"""Drawings of `bmlpipe inspect`: axes of spectrograms, colours of flow, and RGB differences."""

from __future__ import annotations

import colorsys
import io
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import simplejpeg

from bmlpipe.pipeline.front_ends.flow import quantise
from bmlpipe.pipeline.front_ends.presets import PRESETS
from bmlpipe.pipeline.front_ends.spectrogram import SpectrogramOptions, log_spectrogram
from bmlpipe.pipeline.inspection.contact_sheet import draw_sample
from bmlpipe.pipeline.inspection.flow_colours import flow_colours, flow_wheel
from bmlpipe.pipeline.inspection.samples import (
    InspectedSample,
    SampleSelection,
    samples_from_shards,
)
from bmlpipe.pipeline.inspection.sound import spectrogram_axes
from bmlpipe.pipeline.inspection.tiles import tile_rows
from bmlpipe.shards.kinds import KINDS
from bmlpipe.shards.reader import ShardReader

SPECTROGRAM = KINDS["spectrogram"].member


def npy(values: npt.NDArray[Any]) -> bytes:
    file = io.BytesIO()
    np.save(file, values.astype(np.float16))
    return file.getvalue()


# ----- axes -----


def sample_of_sound(preset: str, sound: npt.NDArray[np.float64]) -> InspectedSample:
    """A sample that has only the spectrogram of this sound."""
    values = log_spectrogram(sound.astype(np.float32), preset)
    parameters = SpectrogramOptions(preset).parameters(3)
    return InspectedSample("k", {SPECTROGRAM: npy(values)}, {}, {"spectrogram": parameters}, "")


@pytest.mark.parametrize("hertz", [440, 3000])
@pytest.mark.parametrize("preset", sorted(PRESETS.keys() - {"mfcc"}))  # MFCCs have no frequency axis
def test_a_tone_is_at_its_frequency_on_the_axis(preset: str, hertz: int) -> None:
    """The frequency of the brightest row is read from the labels of the axis."""
    rate = PRESETS[preset].rate
    sample = sample_of_sound(preset, 0.5 * np.sin(2 * np.pi * hertz * np.arange(3 * rate) / rate))
    figure = draw_sample(sample)
    axes = next(axes for axes in figure.axes if axes.get_ylabel().startswith("frequency (kHz)"))
    image = axes.images[0]
    _, _, bottom, top = image.get_extent()
    values = np.asarray(image.get_array())
    row = int(values.mean(axis=1).argmax())
    place = bottom + (row + 0.5) * (top - bottom) / len(values)
    if preset in ("kaldi-fbank", "log-mel"):
        ticks = [(axes.get_yticks()[n], float(label.get_text())) for n, label in enumerate(axes.get_yticklabels())]
        assert [khz for _, khz in ticks] == [0.1, 0.25, 0.5, 1, 2, 4, 8]
        places, labels = zip(*ticks)
        read = np.interp(place, places, np.log(1 + np.array(labels) / 0.7))
        assert 700 * np.expm1(read) == pytest.approx(hertz, abs=hertz / 20 + 15)
    else:
        read = float(axes.yaxis.get_major_formatter()(place))
        assert 1000 * read == pytest.approx(hertz, abs=rate / PRESETS[preset].window / 2)


@pytest.mark.parametrize("row", [60, 90, 120])
def test_a_mel_bin_is_drawn_around_its_centre_frequency(row: int) -> None:
    """Kaldi's bins are 128 triangles whose corners are evenly spaced on its mel scale from 20 to 8000 Hz."""
    low, high = (1127 * np.log(1 + hertz / 700) for hertz in (20, 8000))
    centre = low + (row + 1) * (high - low) / 129
    tone = np.sin(2 * np.pi * 700 * np.expm1(centre / 1127) * np.arange(48000) / 16000)
    sample = sample_of_sound("kaldi-fbank", 0.5 * tone)
    values = np.load(io.BytesIO(sample.members[SPECTROGRAM]))
    assert values.mean(axis=1, dtype=np.float32).argmax() == row
    axes = spectrogram_axes(sample.features["spectrogram"], values.shape)
    assert axes is not None
    _, _, bottom, top = axes.extent
    assert bottom + (row + 0.5) * (top - bottom) / 128 == pytest.approx(centre)


@pytest.mark.parametrize("preset", PRESETS)
def test_a_click_is_at_its_time_on_the_axis(preset: str) -> None:
    layout = PRESETS[preset]
    sound = np.random.default_rng(0).normal(0, 1e-4, 3 * layout.rate)
    sound[round(1.2345 * layout.rate)] = 0.9
    sample = sample_of_sound(preset, sound)
    values = np.load(io.BytesIO(sample.members[SPECTROGRAM])).astype(np.float32)
    axes = spectrogram_axes(sample.features["spectrogram"], values.shape)
    assert axes is not None
    left, right, _, _ = axes.extent
    level = values.mean(axis=0)
    level -= np.median(level)
    width = (right - left) / values.shape[1]
    assert width == pytest.approx(layout.hop / layout.rate)
    loud = np.flatnonzero(level > level.max() / 2)
    middle = left + (loud.mean() + 0.5) * width
    assert middle == pytest.approx(1.2345, abs=width)


def test_a_spectrogram_with_unknown_parameters_has_an_axis_of_bins(toy_shards: Path) -> None:
    (sample,) = samples_from_shards(ShardReader(toy_shards), SampleSelection(("val-003",)))
    figure = draw_sample(sample)
    assert "bin" in {axes.get_ylabel() for axes in figure.axes}


# ----- flow -----


@pytest.mark.parametrize(
    ("x", "y", "degrees"), [(3, 0, 0), (3, 3, 45), (0, 3, 90), (-3, 0, 180), (0, -3, 270), (2, -2, 315)]
)
def test_direction_gives_the_hue_and_length_the_saturation(x: float, y: float, degrees: float) -> None:
    field = np.broadcast_to(np.array([x, y], np.float32), (4, 6, 2))
    saturation = min(1, (x**2 + y**2) ** 0.5 / 4)
    expected = 255 * np.array(colorsys.hsv_to_rgb(degrees / 360, saturation, 1))
    colours = flow_colours(field, 4.0)
    assert colours.shape == (4, 6, 3)
    assert np.abs(colours - expected).max() <= 1
    assert (flow_colours(0 * field, 4.0) == 255).all()


def test_the_colour_wheel_has_the_colours_of_all_directions() -> None:
    wheel = flow_wheel(96)
    assert (wheel[0, 0] == 255).all()
    assert (wheel[47:49, 47:49] > 240).all()
    for row, column, degrees in ((48, 94, 0), (94, 48, 90), (48, 1, 180), (1, 48, 270)):
        hue, saturation, value = colorsys.rgb_to_hsv(*(wheel[row, column] / 255))
        assert (saturation > 0.95, value) == (True, 1)
        assert abs((360 * hue - degrees + 180) % 360 - 180) < 2


def test_flow_tiles_have_the_colours_of_their_motion_and_a_wheel(tmp_path: Path) -> None:
    """Two uniform fields with bound 20: 6 pixels to the right, and 2 pixels upwards."""
    members = {}
    for instant, (x, y) in enumerate([(6.0, 0.0), (0.0, -2.0)]):
        for member, pixels in zip(KINDS["flow"].members_at(instant), (x, y)):
            levels = quantise(np.full((32, 48, 1), pixels, np.float32), 20)
            members[member] = simplejpeg.encode_jpeg(levels, 95, colorspace="GRAY")
    meta = {"flow": {"times": [0.0, 1.0], "height": 32, "width": 48, "bound": 20}}
    (row,) = tile_rows(InspectedSample("k", members, meta, {"flow": {"stack": 3}}, ""))
    right, up, wheel = row.tiles
    assert row.title == "flow, the first of 3 fields, stored up to ±20 px"
    assert (right.caption, up.caption, wheel.caption) == ("0.00 s", "1.00 s", "edge: 6.0 px")
    assert np.abs(right.pixels.astype(int) - (255, 0, 0)).max() < 8
    expected = 255 * np.array(colorsys.hsv_to_rgb(0.75, 1 / 3, 1))
    assert np.abs(up.pixels - expected).max() < 8


def test_rgb_differences_are_drawn_amplified_around_grey(tmp_path: Path) -> None:
    levels = np.full((32, 48, 3), 128, np.uint8)
    levels[:, 24:] = 138  # a change by 20
    jpeg = simplejpeg.encode_jpeg(levels, 100, colorspace="RGB")
    meta = {"rgb_diff": {"times": [0.0], "height": 32, "width": 48}}
    (row,) = tile_rows(InspectedSample("k", {"rgb_diff_000.jpg": jpeg}, meta, {}, ""))
    (tile,) = row.tiles
    assert np.abs(tile.pixels[:, :16].astype(int) - 128).max() <= 4
    assert np.abs(tile.pixels[:, 32:].astype(int) - 168).max() <= 4  # 128 + 4 · 10
