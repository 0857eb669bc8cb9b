"""`bmlpipe inspect`: selection of samples, axes and colours, the HTML page, and failed clips."""

from __future__ import annotations

import base64
import colorsys
import csv
import io
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import simplejpeg
from click.testing import CliRunner, Result
from PIL import Image

from bmlpipe.pipeline.cli import main
from bmlpipe.pipeline.front_ends.flow import quantise
from bmlpipe.pipeline.front_ends.presets import PRESETS
from bmlpipe.pipeline.front_ends.spectrogram import SpectrogramOptions, log_spectrogram
from bmlpipe.pipeline.front_ends.waveform import encode_waveform
from bmlpipe.pipeline.inspection.contact_sheet import draw_sample
from bmlpipe.pipeline.inspection.flow_colours import flow_colours, flow_wheel
from bmlpipe.pipeline.inspection.samples import (
    InspectedSample,
    SampleSelection,
    samples_from_features,
    samples_from_shards,
)
from bmlpipe.pipeline.inspection.sound import spectrogram_axes
from bmlpipe.pipeline.inspection.tiles import tile_rows
from bmlpipe.pipeline.store.folder import FeatureFolder
from bmlpipe.pipeline.store.reasons import REASONS
from bmlpipe.shards.index import SAMPLES_FILE
from bmlpipe.shards.kinds import KINDS, kind_of
from bmlpipe.shards.reader import ShardReader
from bmlpipe.shards.sample import Sample, key_of
from bmlpipe.shards.writer import ShardWriter

SPECTROGRAM, WAVEFORM = KINDS["spectrogram"].member, KINDS["waveform"].member


def bmlpipe(*words: object) -> Result:
    result = CliRunner().invoke(main, [str(word) for word in words])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def npy(values: npt.NDArray[Any]) -> bytes:
    file = io.BytesIO()
    np.save(file, values.astype(np.float16))
    return file.getvalue()


# ----- axes -----


def heard(preset: str, sound: npt.NDArray[np.float64]) -> InspectedSample:
    """A sample with the spectrogram of this audio alone."""
    values = log_spectrogram(sound.astype(np.float32), preset)
    parameters = SpectrogramOptions(preset).parameters(3)
    return InspectedSample("k", {SPECTROGRAM: npy(values)}, {}, {"spectrogram": parameters}, "")


@pytest.mark.parametrize("hertz", [440, 3000])
@pytest.mark.parametrize("preset", sorted(PRESETS.keys() - {"mfcc"}))  # which has no axis of frequencies
def test_a_tone_lies_at_its_place_on_the_frequency_axis(preset: str, hertz: int) -> None:
    """The brightest row is read off by the labels of the axis."""
    rate = PRESETS[preset].rate
    sample = heard(preset, 0.5 * np.sin(2 * np.pi * hertz * np.arange(3 * rate) / rate))
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
def test_a_mel_bin_is_drawn_around_its_own_centre(row: int) -> None:
    """Kaldi's bins: 128 triangles whose corners are evenly spaced on its mel scale from 20 to 8000 Hz."""
    low, high = (1127 * np.log(1 + hertz / 700) for hertz in (20, 8000))
    centre = low + (row + 1) * (high - low) / 129
    tone = np.sin(2 * np.pi * 700 * np.expm1(centre / 1127) * np.arange(48000) / 16000)
    sample = heard("kaldi-fbank", 0.5 * tone)
    values = np.load(io.BytesIO(sample.members[SPECTROGRAM]))
    assert values.mean(axis=1, dtype=np.float32).argmax() == row
    axes = spectrogram_axes(sample.features["spectrogram"], values.shape)
    assert axes is not None
    _, _, bottom, top = axes.extent
    assert bottom + (row + 0.5) * (top - bottom) / 128 == pytest.approx(centre)


@pytest.mark.parametrize("preset", PRESETS)
def test_a_click_lies_at_its_time(preset: str) -> None:
    layout = PRESETS[preset]
    sound = np.random.default_rng(0).normal(0, 1e-4, 3 * layout.rate)
    sound[round(1.2345 * layout.rate)] = 0.9
    sample = heard(preset, sound)
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


def test_a_spectrogram_of_unknown_parameters_has_bins_and_windows(toy_shards: Path) -> None:
    (sample,) = samples_from_shards(ShardReader(toy_shards), SampleSelection(("val-003",)))
    figure = draw_sample(sample)
    assert {"bin"} <= {axes.get_ylabel() for axes in figure.axes}


# ----- flow -----


@pytest.mark.parametrize(
    ("x", "y", "degrees"), [(3, 0, 0), (3, 3, 45), (0, 3, 90), (-3, 0, 180), (0, -3, 270), (2, -2, 315)]
)
def test_a_direction_has_its_hue_and_a_length_its_saturation(x: float, y: float, degrees: float) -> None:
    field = np.broadcast_to(np.array([x, y], np.float32), (4, 6, 2))
    saturation = min(1, (x**2 + y**2) ** 0.5 / 4)
    expected = 255 * np.array(colorsys.hsv_to_rgb(degrees / 360, saturation, 1))
    colours = flow_colours(field, 4.0)
    assert colours.shape == (4, 6, 3)
    assert np.abs(colours - expected).max() <= 1
    assert (flow_colours(0 * field, 4.0) == 255).all()


def test_the_wheel_has_the_colour_of_each_displacement_at_its_place() -> None:
    wheel = flow_wheel(96)
    assert (wheel[0, 0] == 255).all()
    assert (wheel[47:49, 47:49] > 240).all()
    for row, column, degrees in ((48, 94, 0), (94, 48, 90), (48, 1, 180), (1, 48, 270)):
        hue, saturation, value = colorsys.rgb_to_hsv(*(wheel[row, column] / 255))
        assert (saturation > 0.95, value) == (True, 1)
        assert abs((360 * hue - degrees + 180) % 360 - 180) < 2


def test_motion_to_the_right_is_red_up_to_the_edge_of_its_wheel(tmp_path: Path) -> None:
    """Uniform fields, stored as grey JPEGs: 6 pixels to the right and 2 upwards, bound 20."""
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


def test_rgb_differences_are_grey_where_nothing_changes_and_stronger_than_stored(tmp_path: Path) -> None:
    levels = np.full((32, 48, 3), 128, np.uint8)
    levels[:, 24:] = 138  # a change by 20
    jpeg = simplejpeg.encode_jpeg(levels, 100, colorspace="RGB")
    meta = {"rgb_diff": {"times": [0.0], "height": 32, "width": 48}}
    (row,) = tile_rows(InspectedSample("k", {"rgb_diff_000.jpg": jpeg}, meta, {}, ""))
    (tile,) = row.tiles
    assert np.abs(tile.pixels[:, :16].astype(int) - 128).max() <= 4
    assert np.abs(tile.pixels[:, 32:].astype(int) - 168).max() <= 4  # 128 + 4 · 10


# ----- selection -----


def chosen(shards: Path | str, **wanted: Any) -> list[str]:
    return [sample.key for sample in samples_from_shards(ShardReader(shards), SampleSelection(**wanted))]


def test_samples_are_selected_by_name_at_random_by_split_and_by_class(toy_shards: Path) -> None:
    assert chosen(toy_shards, names=("test-004", "train-000")) == ["test-004", "train-000"]
    first = chosen(toy_shards, count=8)
    assert first == chosen(toy_shards, count=8)
    assert len(set(first)) == 8
    assert first != chosen(toy_shards, count=8, seed=1)
    assert {key.split("-")[0] for key in chosen(toy_shards, count=30)} == {"train", "val", "test"}
    val = chosen(toy_shards, count=1000, split="val")
    assert sorted(val) == [f"val-{number:03d}" for number in range(24)]
    wanted = chosen(toy_shards, count=1000, split="test", label="b")
    assert sorted(wanted) == [f"test-{number:03d}" for number in range(1, 25, 4)]


def flagged(out: Path, flags: Callable[[int], list[str]]) -> Path:
    """Shards of 60 samples without features; sample n has the flags `flags(n)`."""
    with ShardWriter(out, dataset="t", classes=["a"], features={}, samples_per_shard=10) as writer:
        for number in range(60):
            clip = f"clip.{number}"
            writer.write("train", Sample(key_of(clip), 0, {}, {"id": clip, "flags": flags(number)}))
    return out


def test_samples_are_searched_for_flags_no_longer_than_needed(tmp_path: Path) -> None:
    shards = flagged(tmp_path / "s", lambda n: ["silent_audio"] if n % 20 == 0 else ["still_video"] if n == 7 else [])
    looked: list[int] = []

    def found(*flags: str, **wanted: Any) -> list[str]:
        looked.clear()
        choice = SampleSelection(flags=flags, **wanted)
        return [str(s.meta["id"]) for s in samples_from_shards(ShardReader(shards), choice, lambda: looked.append(1))]

    assert sorted(found("silent_audio")) == ["clip.0", "clip.20", "clip.40"]
    assert len(looked) < 60  # the index says that there are three
    assert set(found("silent_audio", "still_video")) == {"clip.0", "clip.20", "clip.40", "clip.7"}
    assert len(found("silent_audio", count=1)) == 1
    assert found("black_video") == []
    assert not looked
    assert chosen(shards, names=("clip.7",)) == [key_of("clip.7")]  # an id


def test_few_remote_shards_are_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shards = flagged(tmp_path / "s", lambda n: [])
    monkeypatch.setenv("BMLPIPE_CACHE", str(tmp_path / "cache"))
    address = f"file://{shards}"
    reader = ShardReader(address)
    fetched: list[int] = []
    assert reader.remote is not None
    original = reader.remote.open
    monkeypatch.setattr(reader.remote, "open", lambda shard: (fetched.append(shard), original(shard))[1])
    keys = [sample.key for sample in samples_from_shards(reader, SampleSelection(count=6))]
    assert len(set(keys)) == 6
    assert len(set(fetched)) == 1
    assert len(list(samples_from_shards(reader, SampleSelection(count=25)))) == 25
    assert len(set(fetched)) == 3


# ----- the command -----


def test_a_png_and_a_page_of_shards(toy_shards: Path, tmp_path: Path) -> None:
    result = bmlpipe("inspect", toy_shards, "--random", 3, "--split", "val", "--out", tmp_path / "s.png")
    assert (result.exit_code, result.stdout) == (0, f"3 samples: {tmp_path / 's.png'}\n")
    picture = np.asarray(Image.open(tmp_path / "s.png").convert("RGB"))
    assert picture.shape[1] == 1920
    assert picture.shape[0] % 3 == 0
    for part in np.split(picture, 3):
        assert 0.05 < (part < 250).any(axis=2).mean() < 0.95
    result = bmlpipe("inspect", toy_shards, "--key", "val-003", "--out", tmp_path / "s.html")
    assert (result.exit_code, result.stdout) == (0, f"1 sample: {tmp_path / 's.html'}\n")
    page = Page.of(tmp_path / "s.html")
    sample = ShardReader(toy_shards)[int(np.flatnonzero(ShardReader(toy_shards).index.samples["key"] == b"val-003")[0])]
    jpegs = [base64.b64decode(source.split(",")[1]) for source in page.sources if source.startswith("data:image/jpeg")]
    assert jpegs == [bytes(sample.members[f"frame_{at:03d}.jpg"]) for at in range(4)]
    assert "d · val3" in page.text  # class and id
    assert re.findall(r"\d\.\d\d s", page.text)[:4] == ["0.00 s", "1.00 s", "2.00 s", "3.00 s"]


class Page(HTMLParser):
    """The tags, attributes and text of an HTML file."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.sources: list[str] = []
        self.attributes: set[str] = set()
        self.text = ""

    @classmethod
    def of(cls, path: Path) -> Page:
        page = cls()
        page.feed(path.read_text(encoding="utf-8"))
        return page

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes |= {name for name, _ in attrs}
        self.sources += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data: str) -> None:
        if self.tags[-1:] != ["style"]:
            self.text += data


def test_nothing_in_a_page_comes_from_the_names_or_the_network(tmp_path: Path) -> None:
    """Ids, classes, flags and sources may contain anything, including what matplotlib takes for a formula."""
    evil = '"><script>alert(1)</script><img src=x onerror=alert(2)> $\\frac{{{ 7*7 }}{% x %}$ 音'
    jpeg = simplejpeg.encode_jpeg(np.full((40, 48, 3), 90, np.uint8), colorspace="RGB")
    sound = 0.3 * np.sin(np.arange(16000) / 5).astype(np.float32)
    members = {"frame_000.jpg": jpeg, WAVEFORM: encode_waveform(sound)}
    members[SPECTROGRAM] = npy(log_spectrogram(sound))
    meta = {"id": evil, "label": evil, "split": "train", "flags": ["silent_audio", evil], "source": [evil]}
    meta |= {
        "frames": {"times": [0.0], "height": 40, "width": 48},
        "media": {"video_codec": evil, "width": 1, "height": 2},
    }
    out = tmp_path / "s"
    with ShardWriter(out, dataset="t", classes=[evil], features={"spectrogram": {"preset": evil}}) as writer:
        writer.write("train", Sample(key_of(evil), 0, members, meta))
    for name in ("sheet.html", "sheet.png"):
        assert bmlpipe("inspect", out, "--id", evil, "--out", tmp_path / name).exit_code == 0
    page = Page.of(tmp_path / "sheet.html")
    assert not {"script", "iframe", "link", "object"} & set(page.tags)
    assert not {name for name in page.attributes if name.startswith("on")}
    assert all(source.startswith(("data:image/", "data:audio/flac;", "#s1")) for source in page.sources)
    assert page.text.count(evil) >= 4
    assert "No sample reaches −60 dBFS" in page.text
    assert {"audio", "details"} <= set(page.tags)
    assert "default-src 'none'" in (tmp_path / "sheet.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["--key", "nothing"], 1, "has no sample with the key or id 'nothing'"),
        (["--label", "e"], 1, "there is no class 'e'"),
        (["--split", "tset"], 1, "no samples of split 'tset'"),
        (["--flag", "silent"], 1, "no sample of"),
        (["--flag", "loud"], 2, "there is no flag 'loud'"),
        (["--key", "val-003", "--random", "2"], 2, "excludes --random"),
        (["--out", "sheet.pdf"], 2, "must end in .png or .html"),
        (["--csv"], 2, "--csv needs --failed"),
        (["--failed", "--split", "val"], 2, "excludes --split"),
        (["--failed"], 2, "holds no ledger.csv"),
    ],
)
def test_wrong_options_are_reported(toy_shards: Path, words: list[str], status: int, message: str) -> None:
    result = bmlpipe("inspect", toy_shards, *words)
    assert (result.exit_code, message in result.stderr) == (status, True), result.stderr
    assert not Path("sheet.png").exists()


def test_a_folder_of_neither_kind_is_reported(tmp_path: Path) -> None:
    result = bmlpipe("inspect", tmp_path)
    assert (result.exit_code, "holds neither index.json nor ledger.csv" in result.stderr) == (1, True)
    (tmp_path / SAMPLES_FILE).write_bytes(b"")
    assert bmlpipe("inspect", tmp_path).exit_code == 1


# ----- a feature folder -----


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory, make_clip: Callable[..., Path]) -> Path:
    """Nine clips: two good, one silent, four web pages, one empty; one is absent."""
    folder = tmp_path_factory.mktemp("inspect")
    videos, rows = folder / "videos", []
    (videos / "x").mkdir(parents=True)
    for name, tone in (("good0", 500.0), ("good1", 900.0), ("mute", 0.0)):
        make_clip(videos / "x" / f"{name}.mp4", seconds=1.2, size=(48, 32), tone=tone)
        rows.append((f"x/{name}.mp4", "x", "train"))
    for number in range(4):
        (videos / "x" / f"page{number}.mp4").write_text("<html>gone, and, <b>commas</b></html>")
        rows.append((f"x/page{number}.mp4", "x", ("train", "val")[number == 3]))
    (videos / "x" / "empty.mp4").touch()
    rows += [("x/empty.mp4", "x", "train"), ("x/absent.mp4", "x", "test")]
    with (folder / "clips.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("path", "label", "split"), *rows])
    result = bmlpipe(
        *("extract", "--dataset", "folder", "--videos", videos, "--annotations", folder / "clips.csv"),
        *("--out", folder / "features", "--kinds", "frames,spectrogram,waveform,flow,rgb_diff", "--seconds", 1),
        *("--short-side", 32, "--workers", 0, "--max-failed", 1),
    )
    assert result.stdout.startswith("ok 3, failed 5, absent 1")
    return folder / "features"


def test_clips_of_a_feature_folder_are_shown_like_samples(features: Path, tmp_path: Path) -> None:
    def selected(*names: str, **wanted: Any) -> list[str]:
        found = samples_from_features(features, SampleSelection(names, **wanted))
        return sorted(str(sample.meta["id"]) for sample in found)

    (one,) = samples_from_features(features, SampleSelection(("x/good1",)))
    assert (one.key, one.source) == (key_of("x/good1"), "x/good1.mp4")
    assert one.features["spectrogram"]["preset"] == "vggsound"
    assert {kind_of(member) for member in one.members} == set(KINDS)
    assert selected(one.key) == ["x/good1"]
    assert selected() == ["x/good0", "x/good1", "x/mute"]
    assert selected(flags=("silent_audio",)) == ["x/mute"]
    assert selected(split="val") == []
    result = bmlpipe("inspect", features, "--flag", "silent", "--out", tmp_path / "s.html")
    assert (result.exit_code, result.stdout.startswith("1 sample:")) == (0, True)
    assert "silent_audio" in Page.of(tmp_path / "s.html").text
    result = bmlpipe("inspect", features, "--id", "x/page1")
    assert (result.exit_code, "x/page1 has no features: failed, not_media" in result.stderr) == (1, True)
    assert "no clip with the id or key 'y'" in bmlpipe("inspect", features, "--id", "y").stderr


def test_failed_clips_are_counted_and_explained_with_examples(features: Path) -> None:
    result = bmlpipe("inspect", features, "--failed")
    assert result.exit_code == 0
    assert result.stdout.startswith("9 clips: ok 3, failed 5, absent 1\n")
    assert re.findall(r"^(\w+): (\d+) \((.*)\)$", result.stdout, re.MULTILINE) == [
        ("not_media", "4", "44.4%; train 3, val 1"),
        ("empty_file", "1", "11.1%; train 1"),
        ("not_found", "1", "11.1%; test 1"),
    ]
    said = " ".join(result.stdout.split())
    for reason in ("not_media", "empty_file", "not_found"):
        assert REASONS[reason].cause in said
        assert f"remedy: {REASONS[reason].remedy}" in said
    assert "x/page0 x/page0.mp4" in said
    assert "x/page3" not in said
    assert "… and 1 more" in said
    assert f"{features.parent}/videos/x/empty.mp4" in said


def test_failed_clips_as_csv(features: Path) -> None:
    rows = list(csv.DictReader(io.StringIO(bmlpipe("inspect", features, "--failed", "--csv").stdout)))
    assert [(row["id"], row["split"], row["status"], row["reason"]) for row in rows] == [
        *((f"x/page{n}", "val" if n == 3 else "train", "failed", "not_media") for n in range(4)),
        ("x/empty", "train", "failed", "empty_file"),
        ("x/absent", "test", "absent", "not_found"),
    ]
    assert rows[4]["source"] == "x/empty.mp4"
    assert all(row["message"] for row in rows)


def test_a_running_extraction_can_be_inspected(features: Path) -> None:
    row = ["x/page0", "train", "ok", "", "", "", "x/page0.mp4", "", ""]
    FeatureFolder(features).ledger_log.write_text(json.dumps(row) + "\n")
    try:
        result = bmlpipe("inspect", features, "--failed")
    finally:
        FeatureFolder(features).ledger_log.unlink()
    assert "running or was interrupted" in result.stderr
    assert result.stdout.startswith("9 clips: ok 4, failed 4, absent 1\n")
