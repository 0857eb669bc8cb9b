"""Shards of extracted features: their content, reproducible bytes, refused folders, and kills of the extraction."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
import webdataset

from bmlpipe.manifests.common.locks import exclusive_folder
from bmlpipe.manifests.datasets import read_manifest
from bmlpipe.pipeline.extraction.plan import make_plan
from bmlpipe.pipeline.extraction.request import ExtractionRequest
from bmlpipe.pipeline.extraction.run import run_extraction
from bmlpipe.pipeline.front_ends.flow import FlowOptions
from bmlpipe.pipeline.front_ends.frames import FrameOptions
from bmlpipe.pipeline.front_ends.rgb_diff import RgbDiffOptions
from bmlpipe.pipeline.front_ends.spectrogram import SpectrogramOptions
from bmlpipe.pipeline.front_ends.waveform import WaveformOptions
from bmlpipe.pipeline.sharding.write import write_shards
from bmlpipe.pipeline.store.errors import ExtractionError, StoreError
from bmlpipe.pipeline.store.feature_file import FeatureStore
from bmlpipe.pipeline.store.folder import FeatureFolder
from bmlpipe.pipeline.store.ledger import read_ledger
from bmlpipe.shards.errors import ShardError
from bmlpipe.shards.index import read_index
from bmlpipe.shards.kinds import KINDS
from bmlpipe.shards.reader import ShardReader
from bmlpipe.shards.verify.compare import verify

REQUEST = ExtractionRequest(
    (
        FrameOptions(short_side=32),
        SpectrogramOptions(),
        FlowOptions(stack=2, short_side=32),
        RgbDiffOptions(stack=2, short_side=32),
        WaveformOptions(),
    ),
    1,
)
LABELS = ("cat", "dog", "owl")


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory, make_clip: Callable[..., Path]) -> Path:
    """A folder of 14 annotated clips of 1.2 s in three classes; two clips are damaged and one is missing."""
    folder = tmp_path_factory.mktemp("clips")
    rows = []
    for number in range(14):
        label = LABELS[number % 3]
        path = folder / label / f"{number:02d}.mp4"
        path.parent.mkdir(exist_ok=True)
        make_clip(path, seconds=1.2, size=(48, 32), tone=300.0 * (1 + number), audio_rate=16000, channels=1)
        rows.append((f"{label}/{path.name}", label, ("train", "train", "val", "test")[number % 4]))
    (folder / rows[4][0]).write_bytes(b"<html>not found</html>")
    whole = (folder / rows[9][0]).read_bytes()
    (folder / rows[9][0]).write_bytes(whole[: len(whole) // 2])
    (folder / rows[11][0]).unlink()
    with (folder / "clips.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("path", "label", "split"), *rows])
    return folder


def extract(clips: Path, out: Path, request: ExtractionRequest = REQUEST, *, workers: int = 0, batch: int = 3) -> Path:
    manifest = read_manifest("folder", clips / "clips.csv", videos=clips)
    with exclusive_folder(out, "extraction"):
        run_extraction(make_plan(manifest, clips, out, request), workers=workers, batch=batch)
    return out


@pytest.fixture(scope="module")
def features(clips: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return extract(clips, tmp_path_factory.mktemp("features") / "all")


@pytest.fixture(scope="module")
def shards(features: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("shards") / "all"
    assert write_shards("folder", features, out, samples_per_shard=4) == {"train": 6, "val": 3, "test": 2}
    return out


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_shards_contain_exactly_the_clips_that_are_ok(features: Path, shards: Path) -> None:
    index, reader = read_index(shards), ShardReader(shards)
    ok = {row.id: row.split for row in read_ledger(features) if row.status == "ok"}
    assert len(ok) == 11
    stored = [reader[number] for number in range(len(reader))]
    assert {sample.meta["id"]: sample.meta["split"] for sample in stored} == ok
    assert [(shard.file, shard.samples) for shard in index.shards] == [
        ("train-000000.tar", 4),
        ("train-000001.tar", 2),
        ("val-000000.tar", 3),
        ("test-000000.tar", 2),
    ]
    assert index.classes == LABELS
    for sample in stored:
        label = sample.meta["id"].split("/")[0]
        assert (sample.label, sample.meta["label"]) == (LABELS.index(label), label)
        assert bytes(sample.members["cls"]) == str(sample.label).encode()
    assert list(verify(shards)) == []
    reader.close()


def test_members_have_the_names_and_content_of_the_format(features: Path, shards: Path) -> None:
    sample = ShardReader(shards)[0]
    kept = FeatureStore(features).read(sample.meta["id"]).features
    assert list(sample.members) == [
        "cls",
        "flow_000_00_x.jpg",
        "flow_000_00_y.jpg",
        "flow_000_01_x.jpg",
        "flow_000_01_y.jpg",
        "frame_000.jpg",
        "json",
        "rgb_diff_000.jpg",
        "rgb_diff_000_01.jpg",
        "spectrogram.npy",
        "waveform.flac",
    ]
    assert kept.features.keys() == set(KINDS)
    assert bytes(sample.members["waveform.flac"]) == kept["waveform"].flac
    assert bytes(sample.members["frame_000.jpg"]) == kept["frames"].jpegs[0]
    assert bytes(sample.members["flow_000_01_y.jpg"]) == kept["flow"].at(0)[3]
    assert [bytes(sample.members[f"rgb_diff_000{step}.jpg"]) for step in ("", "_01")] == list(kept["rgb_diff"].at(0))
    assert sample.meta["rgb_diff"] == {"times": [0.0], "height": 32, "width": 48}
    assert simplejpeg.decode_jpeg(bytes(sample.members["frame_000.jpg"])).shape == (32, 48, 3)
    assert simplejpeg.decode_jpeg(bytes(sample.members["flow_000_00_x.jpg"]), colorspace="GRAY").shape == (32, 48, 1)
    values = np.load(io.BytesIO(sample.members["spectrogram.npy"]), allow_pickle=False)
    assert (values.dtype, values.shape) == (np.float16, (257, 98))
    assert np.array_equal(values, kept["spectrogram"].values)
    assert (sample.meta["frames"]["height"], sample.meta["frames"]["width"]) == (32, 48)
    assert sample.meta["frames"]["times"] == [0.0]
    assert sample.meta["flow"]["bound"] == 20.0
    assert len(sample.meta["source_sha256"][0]) == 64


@pytest.mark.parametrize(("seconds", "windows"), [(10, 1004), (3, 299)])
def test_a_spectrogram_has_the_size_of_the_paper(clips: Path, tmp_path: Path, seconds: int, windows: int) -> None:
    request = ExtractionRequest((SpectrogramOptions(),), seconds)
    extract(clips, tmp_path / "features", request)
    write_shards("folder", tmp_path / "features", tmp_path / "shards")
    raw = bytes(ShardReader(tmp_path / "shards")[0].members["spectrogram.npy"])
    assert raw[:6] == b"\x93NUMPY"
    values = np.load(io.BytesIO(raw), allow_pickle=False)
    assert (values.dtype, values.shape) == (np.float16, (257, windows))
    assert np.isfinite(values).all()


def test_the_index_has_the_parameters_and_statistics_of_the_features(shards: Path) -> None:
    content = json.loads((shards / "index.json").read_text())
    assert content["features"] == REQUEST.parameters
    assert content["features_sha256"] == REQUEST.sha256
    assert content["features"]["spectrogram"]["rate"] == 16000
    assert content["features"]["flow"]["stack"] == 2
    numbers = content["statistics"]["rgb_diff"]
    assert [len(numbers[name]) for name in ("mean", "std")] == [3, 3]
    assert all(abs(mean - 128) < 10 for mean in numbers["mean"])
    assert all(0 < std < 128 for std in numbers["std"])


def test_kinds_can_be_selected(features: Path, tmp_path: Path) -> None:
    write_shards("folder", features, tmp_path / "s", kinds=("spectrogram",))
    assert read_index(tmp_path / "s").features == {"spectrogram": REQUEST.parameters["spectrogram"]}
    sample = ShardReader(tmp_path / "s")[0]
    assert list(sample.members) == ["cls", "json", "spectrogram.npy"]
    assert "frames" not in sample.meta


def test_webdataset_reads_the_shards(features: Path, shards: Path) -> None:
    urls = sorted(str(path) for path in shards.glob("*.tar"))
    items = list(webdataset.WebDataset(urls, shardshuffle=False).decode("rgb8"))
    reader = ShardReader(shards)
    own = {reader[number].key: reader[number] for number in range(len(reader))}
    assert [item["__key__"] for item in items if item["__url__"].endswith("train-000000.tar")] == list(own)[:4]
    for item in items:
        sample = own.pop(item["__key__"])
        assert item["cls"] == sample.label
        assert item["json"]["id"] == sample.meta["id"]
        assert item["frame_000.jpg"].shape == (32, 48, 3)
        assert np.array_equal(item["spectrogram.npy"], np.load(io.BytesIO(sample.members["spectrogram.npy"])))
    assert not own


def test_the_seed_changes_only_the_order_of_the_samples(features: Path, tmp_path: Path) -> None:
    keys = []
    for seed in (0, 1, 0):
        out = tmp_path / f"{len(keys)}"
        write_shards("folder", features, out, seed=seed)
        reader = ShardReader(out)
        keys.append([reader[number].key for number in range(len(reader))])
    assert keys[0] != keys[1]
    assert sorted(keys[0]) == sorted(keys[1])
    assert contents(tmp_path / "0") == contents(tmp_path / "2")


@pytest.mark.slow
def test_the_bytes_do_not_depend_on_workers_batches_or_history(clips: Path, features: Path, tmp_path: Path) -> None:
    write_shards("folder", features, tmp_path / "one")
    extract(clips, tmp_path / "by_two", workers=2, batch=1)
    write_shards("folder", tmp_path / "by_two", tmp_path / "two")
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    step = tmp_path / "step_by_step"
    for kinds in ({"spectrogram"}, {"frames", "spectrogram"}, {"frames", "rgb_diff", "spectrogram"}, set(KINDS)):
        extract(clips, step, REQUEST.only(kinds))
    write_shards("folder", step, tmp_path / "three")
    assert contents(tmp_path / "one") == contents(tmp_path / "three")


def test_folders_that_cannot_become_shards_are_refused(clips: Path, features: Path, tmp_path: Path) -> None:
    out = tmp_path / "shards"

    def refused(
        error: type[Exception], message: str, folder: Path = features, dataset: str = "folder", **kinds: object
    ) -> None:
        with pytest.raises(error, match=message):
            write_shards(dataset, folder, out, **kinds)  # type: ignore[arg-type]
        assert not out.exists()

    refused(ExtractionError, "holds no ledger.csv", tmp_path)
    refused(ExtractionError, "features of folder, not of vggsound", dataset="vggsound")
    frames = extract(clips, tmp_path / "frames", REQUEST.only({"frames"}))
    refused(ExtractionError, "has no flow, only frames", frames, kinds=("frames", "flow"))
    FeatureFolder(frames).ledger_log.write_text("")
    refused(ExtractionError, "is running or was interrupted", frames)
    FeatureFolder(frames).ledger_log.unlink()
    # The features of one clip have other parameters, as after a run that was stopped in the middle.
    store = FeatureStore(frames)
    other = store.read("cat/00")
    store.write(replace(other, parameters={"frames": {**other.parameters["frames"], "short_side": 99}}))
    refused(StoreError, "frames was made with other parameters", frames)
    store.path("cat/00").unlink()
    refused(StoreError, "is missing: run bmlpipe extract", frames)


def test_clips_that_lack_a_kind_are_named_with_the_remedy(
    clips: Path, tmp_path: Path, make_clip: Callable[..., Path]
) -> None:
    """A clip without video can be used for sound alone, never for both kinds."""
    folder, out = tmp_path / "videos", tmp_path / "features"
    for name, codec in (("a.mp4", "libx264"), ("b.mp4", None)):
        (folder / "x").mkdir(parents=True, exist_ok=True)
        make_clip(folder / "x" / name, seconds=1.2, size=(48, 32), codec=codec)
    manifest = read_manifest("folder", None, videos=folder)
    for request in (REQUEST.only({"frames"}), REQUEST.only({"spectrogram"})):
        with exclusive_folder(out, "extraction"):
            run_extraction(make_plan(manifest, folder, out, request), workers=0)
    with pytest.raises(StoreError, match="holds spectrogram but not frames: extract"):
        write_shards("folder", out, tmp_path / "shards")
    assert sum(write_shards("folder", out, tmp_path / "shards", kinds=("spectrogram",)).values()) == 2


def test_an_extraction_without_usable_clips_is_refused(tmp_path: Path) -> None:
    (tmp_path / "videos" / "x").mkdir(parents=True)
    (tmp_path / "videos" / "x" / "a.mp4").write_bytes(b"")
    manifest = read_manifest("folder", None, videos=tmp_path / "videos")
    with exclusive_folder(tmp_path / "f", "extraction"):
        run_extraction(make_plan(manifest, tmp_path / "videos", tmp_path / "f", REQUEST), workers=0)
    assert [row.reason for row in read_ledger(tmp_path / "f")] == ["empty_file"]
    with pytest.raises(ExtractionError, match="is ok: see the reasons"):
        write_shards("folder", tmp_path / "f", tmp_path / "s")


def test_a_folder_with_other_files_is_not_overwritten(features: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("important")
    with pytest.raises(ShardError, match="not a set of shards"):
        write_shards("folder", features, tmp_path)
    assert contents(tmp_path) == {"thesis.tex": b"important"}


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_repeated_kills_of_an_extraction_do_not_change_the_shards(clips: Path, tmp_path: Path, workers: int) -> None:
    """SIGKILL goes to the whole process group, at the start and after 1, 10, 40 and 80 clips."""
    videos, undisturbed, out = tmp_path / "videos", tmp_path / "undisturbed", tmp_path / "out"
    for number, path in enumerate(sorted(clips.glob("*/*.mp4")) * 10):
        (videos / path.parent.name).mkdir(parents=True, exist_ok=True)
        shutil.copy(path, videos / path.parent.name / f"{number}.mp4")
    rows = [(path.relative_to(videos), path.parent.name, "train") for path in sorted(videos.glob("*/*.mp4"))]
    with (videos / "clips.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("path", "label", "split"), *rows])
    extract(videos, undisturbed)
    command = [sys.executable, "-m", "bmlpipe.pipeline.cli", "extract", "--dataset", "folder", "--max-failed", "1"]
    command += ["--videos", str(videos), "--annotations", str(videos / "clips.csv"), "--out", str(out)]
    command += ["--kinds", ",".join(KINDS), "--seconds", "1", "--short-side", "32"]
    command += ["--flow-stack", "2", "--rgb-diff-stack", "2", "--workers", str(workers), "--clips-per-task", "3"]
    for target in (0, 1, 10, 40, 80):
        process = subprocess.Popen(command, start_new_session=True, stderr=subprocess.DEVNULL)
        while len(list(out.glob("clips/*/*.h5"))) < target or not (out / "ledger.csv").exists():
            assert process.poll() is None
            time.sleep(0.002)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        with (out / "ledger.csv").open(newline="") as file:
            assert [row["status"] in ("ok", "failed", "absent") for row in csv.DictReader(file)] == [True] * len(rows)
        assert len(list(out.glob("clips/*/*.h5"))) < 110, "the kill came too late to test anything"
        with pytest.raises(ExtractionError, match="continues where it stopped"):
            write_shards("folder", out, tmp_path / "too_early")
    subprocess.run(command, check=True, capture_output=True)
    for folder in (undisturbed, out):
        write_shards("folder", folder, folder / "shards", samples_per_shard=50)
    assert contents(out / "shards") == contents(undisturbed / "shards")
    assert read_ledger(out) == read_ledger(undisturbed)
    status = {"status.json", "status.prom"}  # written by the command only
    assert {path.name for path in out.iterdir()} == {path.name for path in undisturbed.iterdir()} | status
    assert not list(out.rglob("*.writing"))
