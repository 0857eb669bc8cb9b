"""Quality flags of stored clips: in ledger, samples, index and statistics, and in the choice of samples."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result

from bmlpipe.pipeline.front_ends.quality import MEASURED_IN
from bmlpipe.pipeline.store.feature_file import FeatureStore
from bmlpipe.pipeline.store.ledger import read_ledger
from bmlpipe.pipeline.store.reasons import named_flags
from bmlpipe.shards.index import Index, read_index, write_index
from bmlpipe.shards.reader import ShardReader
from bmlpipe.shards.stats import describe
from bmlpipe.shards.writer import ShardWriter

Command = Callable[..., Result]

TEXTURE = np.random.default_rng(0).integers(60, 200, (8, 12), np.uint8).repeat(8, axis=0).repeat(8, axis=1)
MOVING = [np.roll(TEXTURE, 4 * number, axis=1) for number in range(10)]
STILL = [TEXTURE] * 10
BLACK = [np.full_like(TEXTURE, 10)] * 10
TONE = np.sin(2 * np.pi * 437 * np.arange(20_000) / 16_000)  # 1.25 s


@pytest.fixture(scope="module")
def features(bmlpipe: Command, write_clip: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Features of eight clips of two classes: two silent clips in train, one of them still, and a black one in test."""
    folder = tmp_path_factory.mktemp("quality")
    exceptions = {("train", "a", 0): (MOVING, 0), ("train", "b", 0): (STILL, 0), ("test", "b", 0): (BLACK, 0.5)}
    for split, count in (("train", 2), ("val", 1), ("test", 1)):
        for label in "ab":
            for number in range(count):
                pictures, loud = exceptions.get((split, label, number), (MOVING, 0.5))
                place = folder / "videos" / split / label
                place.mkdir(parents=True, exist_ok=True)
                write_clip(place / f"{number}.mkv", pictures, loud * TONE)
    out = folder / "features"
    more = ("--videos", folder / "videos", "--kinds", "frames,spectrogram", "--seconds", 1, "--short-side", 32)
    result = bmlpipe("extract", "--dataset", "folder", *more, "--out", out, "--workers", 0)
    assert result.stdout.startswith("ok 8, failed 0")
    return out


@pytest.fixture(scope="module")
def shard(bmlpipe: Command) -> Command:
    """A function that writes shards of a feature folder."""

    def run(features: Path, out: Path, *more: object) -> Result:
        return bmlpipe("shard", "--dataset", "folder", "--features", features, "--out", out, *more)

    return run


@pytest.fixture(scope="module")
def two_seconds(bmlpipe: Command, features: Path) -> Path:
    """Features of the same clips for a length of 2 s: each clip is shorter, and has two instants to compare."""
    out = features.with_name("two")
    more = ("--videos", features.with_name("videos"), "--kinds", "frames,spectrogram", "--seconds", 2)
    result = bmlpipe("extract", "--dataset", "folder", *more, "--short-side", 32, "--out", out, "--workers", 0)
    assert result.exit_code == 0
    return out


def test_flags_are_in_the_ledger_the_feature_file_and_the_sample(
    shard: Command, two_seconds: Path, tmp_path: Path
) -> None:
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


def test_stats_counts_the_flags_of_each_split(
    bmlpipe: Command, shard: Command, two_seconds: Path, tmp_path: Path
) -> None:
    shard(two_seconds, tmp_path / "s")
    about = describe(ShardReader(tmp_path / "s"), samples=1)
    assert {split: values["flags"] for split, values in about["splits"].items()} == {
        "train": {"short_audio": 4, "silent_audio": 2, "still_video": 1},
        "val": {"short_audio": 2},
        "test": {"black_video": 1, "short_audio": 2, "still_video": 1},
    }
    text = bmlpipe("stats", tmp_path / "s", "--samples", 1).stdout
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]
    assert ["flag", "train", "val", "test"] in rows
    assert ["silent_audio", "2", "0", "0"] in rows
    assert ["still_video", "1", "0", "1"] in rows
    assert "flags: short_audio 100.0%, silent_audio 25.0%, still_video 25.0%, black_video 12.5%\n" in text


def test_flags_missing_in_an_older_index_are_counted_from_samples(
    bmlpipe: Command, shard: Command, two_seconds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write_without_flags(folder: Path, index: Index) -> None:
        write_index(folder, replace(index, flags=None))

    monkeypatch.setattr("bmlpipe.shards.writer.write_index", write_without_flags)
    shard(two_seconds, tmp_path / "s")
    assert "flags" not in json.loads((tmp_path / "s" / "index.json").read_text())
    assert describe(ShardReader(tmp_path / "s"))["splits"]["train"]["flags"] is None
    text = bmlpipe("stats", tmp_path / "s").stdout
    assert "silent_audio 25.0%, still_video 25.0%, black_video 12.5%, of the samples read\n" in text
    assert "samples that carry a flag" not in text


def test_clips_with_dropped_flags_are_left_out_and_counted_in_the_index(
    bmlpipe: Command, shard: Command, two_seconds: Path, tmp_path: Path
) -> None:
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
    assert index.features_sha256 == whole.features_sha256  # flags are not parameters, so the sets can be combined
    assert "dropped" not in json.loads((tmp_path / "all" / "index.json").read_text())
    assert bmlpipe("verify", out).exit_code == 0
    assert (
        "left out by their flags when this was written: black_video 1, silent_audio 2" in bmlpipe("stats", out).stdout
    )


def test_flags_that_do_not_exist_or_exclude_all_clips_are_refused(
    shard: Command, two_seconds: Path, tmp_path: Path
) -> None:
    result = shard(two_seconds, tmp_path / "s", "--drop-flag", "noisy")
    assert (result.exit_code, "there is no flag 'noisy': choose among short_video" in result.stderr) == (2, True)
    result = shard(two_seconds, tmp_path / "s", "--drop-flag", "short")
    assert (result.exit_code, "is ok without a flag of --drop-flag" in result.stderr) == (1, True)
    assert not (tmp_path / "s").exists()


def test_clips_without_the_measurement_of_a_dropped_flag_are_reported(
    shard: Command, features: Path, tmp_path: Path
) -> None:
    """A clip that was never measured has no flag, which does not mean that it has no fault."""
    store = FeatureStore(features)
    whole = store.read("train/a/1")
    media = {name: value for name, value in whole.features.media.items() if name != "pictures"}
    store.write(replace(whole, features=replace(whole.features, media=media)))
    result = shard(features, tmp_path / "s", "--drop-flag", "still", "--drop-flag", "silent")
    store.write(whole)
    assert "still_video was not looked for in 1 of these clips" in result.stderr
    assert "silent_audio was never" not in result.stderr


def test_measurements_are_not_parameters_of_the_features(bmlpipe: Command, features: Path) -> None:
    store = FeatureStore(features)
    before = store.path("val/a/0").stat().st_mtime_ns
    more = ("--videos", features.with_name("videos"), "--kinds", "frames,spectrogram", "--seconds", 1)
    result = bmlpipe("extract", "--dataset", "folder", *more, "--short-side", 32, "--out", features, "--workers", 0)
    assert "0 to do, 8 done before" in result.stderr
    assert store.path("val/a/0").stat().st_mtime_ns == before
    parameters = json.dumps(store.read("val/a/0", ()).parameters)
    assert not [name for name in MEASURED_IN if name in parameters]


def test_a_writer_counts_the_flags_of_its_samples(tmp_path: Path) -> None:
    from bmlpipe.shards.sample import Sample

    with ShardWriter(tmp_path / "s", dataset="t", classes=["a"], features={}) as writer:
        writer.write("train", Sample("k0", 0, {}, {"flags": ["b", "a"]}))
        writer.write("train", Sample("k1", 0, {}, {"flags": ["a"]}))
        writer.write("val", Sample("k2", 0, {}, {}))
    index = read_index(tmp_path / "s")
    assert index.flags == {"train": {"a": 2, "b": 1}, "val": {}}
    assert index.dropped == {}


def test_a_flag_may_be_named_without_its_modality() -> None:
    assert named_flags(["silent"]) == ("silent_audio",)
    assert named_flags(["short", "short_audio"]) == ("short_video", "short_audio")
    assert named_flags([]) == ()
    for wrong in ("sil", "", "silent_", "video"):
        with pytest.raises(ValueError, match="there is no flag"):
            named_flags([wrong])
