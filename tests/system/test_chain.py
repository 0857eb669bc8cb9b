"""The whole pipeline on real clips through its commands: extract, shard, verify and train on two ranks."""

from __future__ import annotations

import csv
import io
import json
import math
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
import webdataset

from bmlpipe.pipeline.store.ledger import LedgerRow, read_ledger
from bmlpipe.shards.reader import ShardReader, StoredSample

pytestmark = [pytest.mark.real, pytest.mark.slow, pytest.mark.xdist_group("both_cores")]

ROOT = Path(__file__).resolve().parents[2]

#: Clips from which extraction fails → split and reason.
FAILURES = {
    "edge/broken": ("train", "damaged_container"),
    "edge/corrupted": ("val", "missing_audio"),
    "edge/video_90": ("test", "missing_audio"),
    "kinetics-like/test": ("train", "missing_audio"),
}


def command(*words: object, status: int = 0) -> str:
    done = subprocess.run(
        [sys.executable, *map(str, words)], cwd=ROOT, capture_output=True, text=True, check=False, timeout=500
    )
    assert done.returncode == status, done.stdout[-3000:] + done.stderr[-3000:]
    assert "Traceback" not in done.stderr
    return done.stdout + done.stderr


def bmlpipe(*words: object, status: int = 0) -> str:
    return command("-m", "bmlpipe.pipeline.cli", *words, status=status)


def samples(shards: Path) -> dict[str, StoredSample]:
    reader = ShardReader(shards)
    return {sample.meta["id"]: sample for sample in (reader[number] for number in range(len(reader)))}


def picture(sample: StoredSample, member: str) -> tuple[int, ...]:
    return tuple(simplejpeg.decode_jpeg(bytes(sample.members[member])).shape)


@pytest.fixture(scope="module")
def annotation(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table of all 27 clips, labelled by their folder; each split has intact and faulty clips."""
    path = tmp_path_factory.mktemp("annotation") / "clips.csv"
    clips = sorted((real_data / "clips").glob("*/*.*"))
    assert len(clips) == 27
    rows, good = [], 0
    for clip in clips:
        name = clip.relative_to(real_data / "clips")
        split, _ = FAILURES.get(str(name.with_suffix("")), ("", ""))
        if not split:
            split = ("train", "test", "train", "val", "train")[good % 5]
            good += 1
        rows.append((str(name), clip.parent.name, split))
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("path", "label", "split"), *rows])
    return path


@pytest.fixture(scope="module")
def folders(real_data: Path, annotation: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The folders of features and shards of all clips."""
    out = tmp_path_factory.mktemp("chain")
    output = bmlpipe(
        *("extract", "--dataset", "folder", "--videos", real_data / "clips", "--annotations", annotation),
        *("--out", out / "features", "--seconds", 3, "--workers", 2, "--clips-per-task", 3, "--max-failed", 0.2),
    )
    assert "ok 23, failed 4, absent 0" in output
    output = bmlpipe("shard", "--dataset", "folder", "--features", out / "features", "--out", out / "shards")
    assert "23 samples (train 14, val 4, test 5)" in output
    return out / "features", out / "shards"


def test_each_real_clip_has_a_row_in_the_ledger(folders: tuple[Path, Path]) -> None:
    rows: dict[str, LedgerRow] = {row.id: row for row in read_ledger(folders[0])}
    assert len(rows) == 27
    assert {id_: (row.split, row.reason) for id_, row in rows.items() if row.status != "ok"} == FAILURES
    assert rows["edge/realshort"].flags.split() == ["short_audio", "short_video"]
    assert rows["edge/big_buck_bunny_432_433"].flags.split() == ["short_audio", "short_video"]
    for clip in ("flv/bbb", "grid/bbaf2n", "ucf101/v_ApplyEyeMakeup_g01_c01", "vggsound/-Qowmc0P9ic_34000_44000"):
        assert (rows[clip].status, rows[clip].flags) == ("ok", "")


def test_the_shards_contain_the_extracted_features(folders: tuple[Path, Path]) -> None:
    found = samples(folders[1])
    assert len(found) == 23
    for clip_id, sample in found.items():
        frames = [name for name in sample.members if name.startswith("frame_")]
        expected = {"edge/realshort": 2, "edge/big_buck_bunny_432_433": 1}.get(clip_id, 3)
        assert len(frames) == len(sample.meta["frames"]["times"]) == expected, clip_id
        height, width, colours = picture(sample, "frame_000.jpg")
        assert (min(height, width), colours) == (256, 3)
        assert (height, width) == (sample.meta["frames"]["height"], sample.meta["frames"]["width"])
        values = np.load(io.BytesIO(sample.members["spectrogram.npy"]), allow_pickle=False)
        assert (values.shape, values.dtype) == ((257, 299), np.float16)
        assert abs(float(values.astype(np.float64).mean())) < 1e-2
        assert abs(float(values.astype(np.float64).std()) - 1) < 1e-2
    portrait = found["vggsound/53UdZyM9MyE_252000_262000"]
    assert picture(portrait, "frame_000.jpg") == (320, 256, 3)


def test_shards_of_real_clips_are_valid_and_webdataset_reads_them(folders: tuple[Path, Path]) -> None:
    assert "3 shards, 23 samples, 0 faults" in bmlpipe("verify", folders[1])
    urls = [str(path) for path in sorted(folders[1].glob("*.tar"))]
    stock = list(webdataset.WebDataset(urls, shardshuffle=False).decode("rgb8"))
    assert len(stock) == 23
    assert {item["spectrogram.npy"].shape for item in stock} == {(257, 299)}
    assert {item["frame_000.jpg"].dtype for item in stock} == {np.dtype(np.uint8)}


def test_one_epoch_is_trained_on_two_ranks(folders: tuple[Path, Path], tmp_path: Path) -> None:
    command(
        *("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2, "train/run.py"),
        *("--dataset", "folder", "--shards", folders[1], "--out", tmp_path / "run", "--modulation", "opm+ogm"),
        *("--encoder", "cnn4", "--image-size", 32, "--batch-size", 4, "--epochs", 1, "--workers", 0),
        *("--device", "cpu", "--no-tensorboard"),
    )
    steps = [json.loads(line) for line in (tmp_path / "run" / "steps.jsonl").read_text().splitlines()]
    assert [row["step"] for row in steps] == [0, 1, 2]  # 14 clips in batches of 4
    for row in steps:
        assert math.isfinite(row["loss"])
        assert row["rho/audio"] * row["rho/visual"] == pytest.approx(1, rel=1e-4)  # Eq. 7 with two modalities
    metrics = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["split"] for row in metrics] == ["val", "test"]
    for row in metrics:
        assert {"accuracy", "accuracy/audio", "accuracy/visual"} <= row.keys()
        assert 0 <= row["accuracy"] <= 1


def test_the_vggsound_reader_finds_the_seven_clips_among_15446(real_data: Path, tmp_path: Path) -> None:
    table = real_data / "annotations" / "vggsound" / "vggsound_test_part.csv"
    common = ("extract", "--dataset", "vggsound", "--videos", real_data / "clips", "--annotations", table)
    output = bmlpipe(*common, "--out", tmp_path / "features", "--workers", 0)
    assert "ok 7, failed 0, absent 15439" in output
    rows = read_ledger(tmp_path / "features")
    assert len(rows) == 15446
    assert Counter((row.status, row.reason) for row in rows) == {("ok", ""): 7, ("absent", "not_found"): 15439}
    assert "0 to do, 7 done before" in bmlpipe(*common, "--out", tmp_path / "features", "--workers", 0)
    bmlpipe("shard", "--dataset", "vggsound", "--features", tmp_path / "features", "--out", tmp_path / "shards")
    found = samples(tmp_path / "shards")
    with (real_data / "clips" / "manifest.csv").open(newline="") as file:
        official = {row["official_id"][:-4]: row["label"] for row in csv.DictReader(file) if row["official_id"]}
    assert {clip_id: sample.meta["label"] for clip_id, sample in found.items()} == official
    index = json.loads((tmp_path / "shards" / "index.json").read_text())
    assert len(index["classes"]) == 309
    for sample in found.values():
        assert index["classes"][sample.label] == sample.meta["label"]
        assert sum(name.startswith("frame_") for name in sample.members) == 10
        assert np.load(io.BytesIO(sample.members["spectrogram.npy"])).shape == (257, 1004)
        assert sample.meta["flags"] == []


def test_frames_and_flow_of_a_whole_ucf101_clip_are_extracted(real_data: Path, tmp_path: Path) -> None:
    output = bmlpipe(
        *("extract", "--dataset", "ucf101", "--videos", real_data / "clips"),
        *("--annotations", real_data / "annotations" / "ucf101", "--out", tmp_path / "features"),
        *("--workers", 0, "--flow-stack", 2),
    )
    assert "ok 1, failed 0, absent 13319" in output
    bmlpipe("shard", "--dataset", "ucf101", "--features", tmp_path / "features", "--out", tmp_path / "shards")
    (sample,) = samples(tmp_path / "shards").values()
    assert (sample.key, sample.label) == ("v_ApplyEyeMakeup_g01_c01", 0)
    instants = range(7)  # 6.56 s
    names = {f"frame_{i:03d}.jpg" for i in instants}
    names |= {f"flow_{i:03d}_{step:02d}_{axis}.jpg" for i in instants for step in range(2) for axis in "xy"}
    assert set(sample.members) == names | {"cls", "json"}
    assert picture(sample, "frame_006.jpg") == (256, 342, 3)
    assert picture(sample, "flow_003_01_x.jpg")[:2] == (256, 342)
    content = json.loads((tmp_path / "shards" / "index.json").read_text())["features"]
    assert (content["flow"]["stack"], content["flow"]["seconds"]) == (2, None)
    assert "spectrogram" not in content
    assert "0 faults" in bmlpipe("verify", tmp_path / "shards")
