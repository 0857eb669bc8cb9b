"""Quality flags: what is measured, on which side of the thresholds, and what stats and shard make of the flags."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from fractions import Fraction
from math import asin, pi
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
import pytest
from click.testing import CliRunner, Result

from bmlpipe.pipeline.cli import main
from bmlpipe.pipeline.extraction.clip import extract_clip
from bmlpipe.pipeline.extraction.request import ExtractionRequest
from bmlpipe.pipeline.front_ends.features import ClipFeatures
from bmlpipe.pipeline.front_ends.flow import FlowOptions
from bmlpipe.pipeline.front_ends.frames import FrameOptions
from bmlpipe.pipeline.front_ends.quality import MEASURED_IN, PictureQuality, measure_sound, quality_flags
from bmlpipe.pipeline.front_ends.rgb_diff import RgbDiffOptions
from bmlpipe.pipeline.front_ends.spectrogram import SpectrogramOptions
from bmlpipe.pipeline.front_ends.waveform import WaveformOptions
from bmlpipe.pipeline.store.feature_file import FeatureStore
from bmlpipe.pipeline.store.ledger import read_ledger
from bmlpipe.pipeline.store.reasons import FLAGS, REASONS, named_flags
from bmlpipe.shards.index import Index, read_index, write_index
from bmlpipe.shards.reader import ShardReader
from bmlpipe.shards.stats import describe
from bmlpipe.shards.writer import ShardWriter

ROOT = Path(__file__).resolve().parents[2]
RATE = 16_000
Luma = npt.NDArray[np.uint8]


def bmlpipe(*words: object) -> Result:
    result = CliRunner().invoke(main, [str(word) for word in words])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def textured(shift: int = 0, size: tuple[int, int] = (64, 96)) -> Luma:
    """Full-range luma with squares of 8 pixels, moved to the right by so many pixels."""
    picture = np.random.default_rng(0).integers(60, 200, (size[0] // 8, size[1] // 8), np.uint8)
    return np.roll(picture.repeat(8, axis=0).repeat(8, axis=1), shift, axis=1)


def tone(amplitude: float, seconds: float = 3.0) -> npt.NDArray[np.float64]:
    return amplitude * np.sin(2 * np.pi * 437.0 * np.arange(round(seconds * RATE)) / RATE)


def write(path: Path, pictures: Sequence[Luma], sound: npt.NDArray[np.float64]) -> Path:
    """A Matroska file: 8 pictures a second (H.264, full range), 16-bit mono sound, cut to ±1 as a recorder does."""
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=8, options={"crf": "23"})
        video.height, video.width = pictures[0].shape
        video.pix_fmt = "yuvj420p"
        video.codec_context.thread_count = 1
        audio = container.add_stream("pcm_s16le", rate=RATE, layout="mono")
        for number, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(picture, format="gray").reformat(format="yuvj420p", dst_color_range=2)
            frame.pts, frame.time_base = number, Fraction(1, 8)
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        levels = np.rint(np.clip(sound, -1, 1) * 32767).astype(np.int16)[None]
        whole = av.AudioFrame.from_ndarray(levels, format="s16", layout="mono")
        whole.sample_rate, whole.pts, whole.time_base = RATE, 0, Fraction(1, RATE)
        container.mux(audio.encode(whole))
        container.mux(audio.encode(None))
    return path


MOVING = [textured(4 * n) for n in range(24)]
STILL = [textured()] * 24
BLACK = [np.full((64, 96), 10, np.uint8)] * 24


def extracted(path: Path, seconds: int = 3) -> ClipFeatures:
    return extract_clip(path, ExtractionRequest((FrameOptions(short_side=32), SpectrogramOptions()), seconds))


# ----- what is flagged -----


@pytest.mark.parametrize(
    ("pictures", "sound", "flags"),
    [
        pytest.param(MOVING, tone(0.5), set(), id="nothing"),
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
        pytest.param(STILL[:6], tone(0, 0.75), {"short_audio", "short_video", "silent_audio"}, id="one picture"),
    ],
)
def test_clips_get_the_flags_that_they_deserve(
    pictures: list[Luma], sound: npt.NDArray[np.float64], flags: set[str], tmp_path: Path
) -> None:
    assert set(extracted(write(tmp_path / "clip.mkv", pictures, sound)).flags) == flags


def test_something_small_that_moves_is_seen(tmp_path: Path) -> None:
    """A square of 8 × 8 in 240 × 320: 0.08 % of the picture."""
    pictures = [textured(size=(240, 320)).copy() for _ in range(24)]
    for number in range(8, 16):
        pictures[number][100:108, 200:208] ^= 0x80
    features = extracted(write(tmp_path / "clip.mkv", pictures, tone(0.5)))
    assert features.flags == ()
    assert extracted(write(tmp_path / "still.mkv", pictures[:1] * 24, tone(0.5))).flags == ("still_video",)


def test_what_is_measured_does_not_depend_on_the_features_wanted(tmp_path: Path) -> None:
    clip = write(tmp_path / "clip.mkv", MOVING, tone(0.7))
    ways = [
        (FrameOptions(short_side=32),),
        (FrameOptions(short_side=80), RgbDiffOptions(short_side=32)),
        (FlowOptions(short_side=48, stack=2),),
    ]
    pictures = [extract_clip(clip, ExtractionRequest(way, 3)).media["pictures"] for way in ways]
    assert pictures[0] == pictures[1] == pictures[2]
    assert (pictures[0]["instants"], pictures[0]["black"]) == (3, 0)
    ways = [(SpectrogramOptions(),), (WaveformOptions(),)]
    sound = [extract_clip(clip, ExtractionRequest(way, 3)).media["sound"] for way in ways]
    assert sound[0] == sound[1] == {"peak": pytest.approx(0.7, abs=2e-3), "clipped": 0}
    assert "sound" not in extract_clip(clip, ExtractionRequest((FrameOptions(),), 3)).media


# ----- what is measured -----


def test_sound_is_measured_as_arithmetic_says() -> None:
    assert measure_sound(tone(0.5).astype(np.float32)) == {"peak": pytest.approx(0.5, abs=1e-3), "clipped": 0}
    assert measure_sound(np.array([0.1, -0.8], np.float32))["peak"] == pytest.approx(0.8)
    found = measure_sound(tone(2.0).astype(np.float32))
    assert found["peak"] == pytest.approx(2.0, abs=0.01)  # before it is cut to ±1
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
def test_thresholds(media: dict[str, dict[str, float]], flags: set[str]) -> None:
    assert quality_flags(media) == flags
    assert all(MEASURED_IN[flag] in media for flag in flags)


def measured(*pictures: av.VideoFrame) -> dict[str, float]:
    meter = PictureQuality()
    for picture in pictures:
        meter.add(picture)
    return meter.result()


def grey(picture: Luma, form: str = "yuvj420p") -> av.VideoFrame:
    """The picture in a pixel format, with these luma levels as they are."""
    frame = av.VideoFrame.from_ndarray(picture, format="gray")
    if form == "yuvj420p":
        return frame.reformat(format=form, src_color_range=2, dst_color_range=2)
    planes = np.concatenate([picture, np.full((picture.shape[0] // 2, picture.shape[1]), 128, np.uint8)])
    return av.VideoFrame.from_ndarray(planes, format="yuv420p")


def test_change_is_the_largest_of_any_block() -> None:
    """96 × 128: every second pixel is looked at, a block is 8 × 8 pixels."""
    first = np.full((96, 128), 100, np.uint8)
    second, third = first.copy(), first.copy()
    second[40:48, 64:72] = 140  # one block
    third[40:48, 64:68] = 20  # half of it
    assert measured(grey(first), grey(second)) == {"instants": 2, "black": 0, "change": 40}
    assert measured(grey(first), grey(third))["change"] == 40
    assert measured(grey(first), grey(first), grey(second))["change"] == 40
    assert measured(grey(first)) == {"instants": 1, "black": 0, "change": 0}
    noisy = np.random.default_rng(0).normal(100, 6, (2, 96, 128)).clip(0, 255).astype(np.uint8)
    assert measured(*map(grey, noisy))["change"] < 10  # pixels differ by 30


def test_levels_are_of_full_range_whatever_the_pixel_format() -> None:
    limited = np.full((64, 96), 126, np.uint8)  # half of 16 … 235, more or less
    raised = limited + np.uint8(20)
    expected = pytest.approx(20 * 255 / 219, abs=0.06)
    frames = [grey(limited, "yuv420p"), grey(raised, "yuv420p")]
    assert measured(*frames)["change"] == expected
    assert measured(*(frame.reformat(format="yuv420p10le") for frame in frames))["change"] == expected
    assert measured(*(frame.reformat(format="rgb24") for frame in frames))["change"] == pytest.approx(23.3, abs=1.5)
    for level, black in ((37, 1), (39, 0)):  # 10 % of the range is 37.9
        assert measured(grey(np.full((64, 96), level, np.uint8), "yuv420p"))["black"] == black
    for level, black in ((25, 1), (26, 0)):  # and here 25.5
        assert measured(grey(np.full((64, 96), level, np.uint8)))["black"] == black


@pytest.mark.parametrize("size", [(2, 2), (6, 34), (47, 49), (50, 1000), (1080, 1920)])
def test_pictures_of_any_size(size: tuple[int, int]) -> None:
    dark, bright = (av.VideoFrame.from_ndarray(np.full(size, level, np.uint8), format="gray") for level in (16, 235))
    assert measured(dark, bright) == {"instants": 2, "black": 1, "change": 255}


def test_a_video_that_changes_its_size_does_not_stand_still() -> None:
    assert measured(grey(textured()), grey(textured(size=(64, 128)))) == {"instants": 2, "black": 0, "change": 255}


# ----- what is made of it -----


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight clips of two classes: two silent ones in train, of which one is still, and a black one in test."""
    folder = tmp_path_factory.mktemp("quality")
    odd = {("train", "a", 0): (MOVING, 0), ("train", "b", 0): (STILL, 0), ("test", "b", 0): (BLACK, 0.5)}
    for split, count in (("train", 2), ("val", 1), ("test", 1)):
        for label in "ab":
            for number in range(count):
                pictures, loud = odd.get((split, label, number), (MOVING, 0.5))
                place = folder / "videos" / split / label
                place.mkdir(parents=True, exist_ok=True)
                write(place / f"{number}.mkv", pictures[:10], tone(loud, 1.25))
    out = folder / "features"
    more = ("--videos", folder / "videos", "--kinds", "frames,spectrogram", "--seconds", 1, "--short-side", 32)
    result = bmlpipe("extract", "--dataset", "folder", *more, "--out", out, "--workers", 0)
    assert result.stdout.startswith("ok 8, failed 0")
    return out


def shard(features: Path, out: Path, *more: object) -> Result:
    return bmlpipe("shard", "--dataset", "folder", "--features", features, "--out", out, *more)


@pytest.fixture(scope="module")
def two_seconds(features: Path) -> Path:
    """The same clips, of which 2 s are wanted: each is shorter, and has two instants to compare."""
    out = features.with_name("two")
    more = ("--videos", features.with_name("videos"), "--kinds", "frames,spectrogram", "--seconds", 2)
    result = bmlpipe("extract", "--dataset", "folder", *more, "--short-side", 32, "--out", out, "--workers", 0)
    assert result.exit_code == 0
    return out


def test_flags_stand_in_the_ledger_the_feature_file_and_the_sample(two_seconds: Path, tmp_path: Path) -> None:
    rows = {row.id: row.flags.split() for row in read_ledger(two_seconds)}
    assert rows["train/a/1"] == ["short_audio"]
    assert rows["train/b/0"] == ["short_audio", "silent_audio", "still_video"]
    assert rows["test/b/0"] == ["black_video", "short_audio", "still_video"]
    shard(two_seconds, tmp_path / "s")
    reader = ShardReader(tmp_path / "s")
    for number in range(len(reader)):
        meta = reader[number].meta
        assert meta["flags"] == rows[meta["id"]]
        assert meta["source"] == [Path(meta["id"]).name + ".mkv"]
        stored = FeatureStore(two_seconds).read(meta["id"], ())
        assert list(stored.features.flags) == rows[meta["id"]]
        assert stored.features.media == meta["media"]
        assert {"sound", "pictures"} < meta["media"].keys()


def test_stats_counts_flags_in_each_split(two_seconds: Path, tmp_path: Path) -> None:
    shard(two_seconds, tmp_path / "s")
    about = describe(ShardReader(tmp_path / "s"), samples=1)
    assert {split: of["flags"] for split, of in about["splits"].items()} == {
        "train": {"short_audio": 4, "silent_audio": 2, "still_video": 1},
        "val": {"short_audio": 2},
        "test": {"black_video": 1, "short_audio": 2, "still_video": 1},
    }
    said = bmlpipe("stats", tmp_path / "s", "--samples", 1).stdout
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in said.splitlines()]
    assert ["flag", "train", "val", "test"] in rows
    assert ["silent_audio", "2", "0", "0"] in rows
    assert ["still_video", "1", "0", "1"] in rows
    assert "flags: short_audio 100.0%, silent_audio 25.0%, still_video 25.0%, black_video 12.5%\n" in said


def test_a_set_whose_index_does_not_count_flags_is_described_by_its_samples(
    two_seconds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write_old(folder: Path, index: Index) -> None:
        write_index(folder, replace(index, flags=None))

    monkeypatch.setattr("bmlpipe.shards.writer.write_index", write_old)
    shard(two_seconds, tmp_path / "s")
    assert "flags" not in json.loads((tmp_path / "s" / "index.json").read_text())
    assert describe(ShardReader(tmp_path / "s"))["splits"]["train"]["flags"] is None
    said = bmlpipe("stats", tmp_path / "s").stdout
    assert "silent_audio 25.0%, still_video 25.0%, black_video 12.5%, of the samples read\n" in said
    assert "samples that carry a flag" not in said


def test_flagged_clips_are_left_out_and_the_index_says_so(two_seconds: Path, tmp_path: Path) -> None:
    shard(two_seconds, tmp_path / "all")
    out = tmp_path / "s"
    result = shard(two_seconds, out, "--drop-flag", "silent", "--drop-flag", "black_video", "--drop-flag", "clipped")
    assert "left out by their flags: 3 of 8 clips (black_video 1, silent_audio 2, clipped_audio 0)" in result.stderr
    assert "5 samples (train 2, val 2, test 1)" in result.stdout
    reader = ShardReader(out)
    kept = {reader[number].meta["id"] for number in range(len(reader))}
    assert kept == {"train/a/1", "train/b/1", "val/a/0", "val/b/0", "test/a/0"}
    index, whole = read_index(out), read_index(tmp_path / "all")
    assert dict(index.dropped) == {"black_video": 1, "silent_audio": 2, "clipped_audio": 0}
    assert index.classes == whole.classes
    assert index.features_sha256 == whole.features_sha256  # flags are no parameter: the sets can be mixed
    assert "dropped" not in json.loads((tmp_path / "all" / "index.json").read_text())
    assert bmlpipe("verify", out).exit_code == 0
    assert (
        "left out by their flags when this was written: black_video 1, silent_audio 2" in bmlpipe("stats", out).stdout
    )


def test_flags_that_cannot_be_dropped(two_seconds: Path, tmp_path: Path) -> None:
    result = shard(two_seconds, tmp_path / "s", "--drop-flag", "noisy")
    assert (result.exit_code, "there is no flag 'noisy': choose among short_video" in result.stderr) == (2, True)
    result = shard(two_seconds, tmp_path / "s", "--drop-flag", "short")
    assert (result.exit_code, "is ok without a flag of --drop-flag" in result.stderr) == (1, True)
    assert not (tmp_path / "s").exists()


def test_clips_that_nobody_looked_at_are_told(features: Path, tmp_path: Path) -> None:
    """Files of an extraction that measured nothing carry no such flag, which does not mean that they are fine."""
    store = FeatureStore(features)
    whole = store.read("train/a/1")
    media = {name: value for name, value in whole.features.media.items() if name != "pictures"}
    store.write(replace(whole, features=replace(whole.features, media=media)))
    result = shard(features, tmp_path / "s", "--drop-flag", "still", "--drop-flag", "silent")
    store.write(whole)
    assert "still_video was not looked for in 1 of these clips" in result.stderr
    assert "silent_audio was never" not in result.stderr


def test_flags_are_no_parameter_and_nothing_is_extracted_again(features: Path) -> None:
    store = FeatureStore(features)
    before = store.path("val/a/0").stat().st_mtime_ns
    more = ("--videos", features.with_name("videos"), "--kinds", "frames,spectrogram", "--seconds", 1)
    result = bmlpipe("extract", "--dataset", "folder", *more, "--short-side", 32, "--out", features, "--workers", 0)
    assert "0 to do, 8 done before" in result.stderr
    assert store.path("val/a/0").stat().st_mtime_ns == before
    parameters = json.dumps(store.read("val/a/0", ()).parameters)
    assert not [name for name in MEASURED_IN if name in parameters]


def test_a_writer_counts_what_the_samples_say(tmp_path: Path) -> None:
    from bmlpipe.shards.sample import Sample

    with ShardWriter(tmp_path / "s", dataset="t", classes=["a"], features={}) as writer:
        writer.write("train", Sample("k0", 0, {}, {"flags": ["b", "a"]}))
        writer.write("train", Sample("k1", 0, {}, {"flags": ["a"]}))
        writer.write("val", Sample("k2", 0, {}, {}))
    index = read_index(tmp_path / "s")
    assert index.flags == {"train": {"a": 2, "b": 1}, "val": {}}
    assert index.dropped == {}


# ----- the texts -----


def table(title: str) -> dict[str, list[str]]:
    """Rows of the table below a heading of docs/reasons.md: code → the other cells."""
    text = (ROOT / "docs" / "reasons.md").read_text(encoding="utf-8").split(f"\n## {title}\n")[1].split("\n## ")[0]
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("| `")
    ]
    return {row[0].strip("`"): row[1:] for row in rows}


def test_the_documentation_says_what_the_program_says() -> None:
    reasons = {code: (status, cause, remedy) for code, (status, cause, _, remedy) in table("Reasons").items()}
    assert reasons == REASONS
    assert {flag: meaning for flag, (meaning, _) in table("Flags").items()} == FLAGS


def test_every_reason_and_flag_has_its_text() -> None:
    reasons, flags = set(), set()
    for path in (ROOT / "pipeline").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
                name = ast.unparse(node.func)
                if name == "ClipError":
                    reasons.add(node.args[0].value)
                elif name.endswith("flags.add"):
                    flags.add(node.args[0].value)
            for keyword in getattr(node, "keywords", ()):
                if keyword.arg == "reason" and isinstance(keyword.value, ast.Constant):
                    reasons.add(keyword.value.value)
    assert {"truncated", "timeout"} <= reasons <= REASONS.keys()
    assert {"audio_gap", "still_video"} <= flags
    assert flags == FLAGS.keys()
    assert MEASURED_IN.keys() <= FLAGS.keys()
    retries = {code for reason in REASONS.values() for code in re.findall(r"--retry-failed=(\w+)", reason.remedy)}
    assert retries <= REASONS.keys()


def test_flags_are_named_in_short() -> None:
    assert named_flags(["silent"]) == ("silent_audio",)
    assert named_flags(["short", "short_audio"]) == ("short_video", "short_audio")
    assert named_flags([]) == ()
    for wrong in ("sil", "", "silent_", "video"):
        with pytest.raises(ValueError, match="there is no flag"):
            named_flags([wrong])


def test_nothing_that_is_not_decoded_is_claimed(make_clip: Callable[..., Path], tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "clip.mp4", seconds=1.2, size=(48, 32), audio_codec=None)
    assert "sound" not in extract_clip(clip, ExtractionRequest((FrameOptions(),), 1)).media
