"""`bmlpipe stats` describes a set of shards."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from bmlpipe.pipeline.cli import main
from bmlpipe.shards.reader import ShardReader
from bmlpipe.shards.sample import Sample
from bmlpipe.shards.stats import describe
from bmlpipe.shards.writer import ShardWriter

FEATURES = {"frames": {"short_side": 8}, "spectrogram": {"preset": "test"}, "rgb_diff": {"stack": 1}}
STATISTICS = {"frames": {"mean": [1.0, 2.0, 3.0], "std": [4.0, 5.0, 6.0]}}


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """20 samples of 12 classes; the n-th has n % 3 + 1 frames of 100 bytes and lasts n seconds."""
    out = tmp_path / "shards"
    classes = [f"c{n}" for n in range(12)]
    with ShardWriter(out, dataset="t", classes=classes, features=FEATURES, samples_per_shard=4) as writer:
        for n in range(20):
            members = {f"frame_{i:03d}.jpg": bytes(100) for i in range(n % 3 + 1)}
            members |= {"spectrogram.npy": bytes(50), "rgb_diff_000.jpg": bytes(7)}
            meta: dict[str, Any] = {"flags": ["mono"] if n % 4 == 0 else [], "start": 0.0, "duration": float(n)}
            if n == 7:
                meta["duration"] = None
            if n == 8:
                meta |= {"duration": None, "start": 2.0, "media": {"duration_s": 10.0}}
            writer.write("train" if n < 15 else "test", Sample(f"k{n}", 11 if n < 15 else n - 15, members, meta))
        writer.statistics = STATISTICS
    return out


def bmlpipe(*words: object) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words])


def test_counts_are_exact_when_all_samples_are_read(shards: Path) -> None:
    about = describe(ShardReader(shards), samples=0)
    assert (about["dataset"], about["samples"], about["version"]) == ("t", 20, 1)
    assert about["bytes"] == sum(path.stat().st_size for path in shards.glob("*.tar"))
    train, test = about["splits"]["train"], about["splits"]["test"]
    assert (train["shards"], train["samples"], test["shards"], test["samples"]) == (4, 15, 2, 5)
    assert train["classes"] == {**{f"c{n}": 0 for n in range(11)}, "c11": 15}
    assert sum(test["classes"].values()) == 5
    assert train["bytes"] + test["bytes"] == about["bytes"]
    assert (about["features"], about["statistics"]) == (FEATURES, STATISTICS)
    read = about["read"]
    frames = sum(n % 3 + 1 for n in range(20)) / 20
    assert read["samples"] == 20
    assert read["kinds"]["frames"] == {"members": frames, "bytes": 100 * frames}
    assert read["kinds"]["spectrogram"] == {"members": 1, "bytes": 50}
    assert read["kinds"]["rgb_diff"] == {"members": 1, "bytes": 7}
    assert list(read["kinds"]) == ["frames", "spectrogram", "rgb_diff", "cls", "json"]
    assert read["flags"] == {"mono": 5}
    assert read["seconds"] == {"shortest": 0, "median": 10, "mean": (sum(range(20)) - 7) / 19, "longest": 19}


def test_only_the_requested_number_of_samples_is_read(shards: Path) -> None:
    numbers: list[int] = []

    class Counting(ShardReader):
        def __getitem__(self, number: int) -> Any:
            numbers.append(number)
            return super().__getitem__(number)

    assert describe(Counting(shards), samples=3)["read"]["samples"] == 3
    assert numbers == [0, 6, 13]
    assert describe(ShardReader(shards), samples=500)["read"]["samples"] == 20


def test_the_table_shows_splits_kinds_and_the_first_and_last_classes(shards: Path) -> None:
    result = bmlpipe("stats", shards)
    assert result.exit_code == 0
    lines = [[part.strip() for part in line.strip("|").split("|")] for line in result.stdout.splitlines()]
    assert ["train", "4", "15"] in [line[:3] for line in lines]
    frames = next(line for line in lines if line[0] == "frames")
    assert (frames[1], frames[2], frames[4], frames[5]) == ("1.95", "195 B", "1 2 3", "4 5 6")
    assert ["c11", "15", "0"] in lines
    assert ["…", "…", "…"] in lines
    assert "20 samples of 12 classes" in result.stdout
    assert "flags: mono 25.0%" in result.stdout
    assert "seconds: 0 to 19, median 10" in result.stdout


def test_statistics_are_printed_as_json_or_csv(shards: Path) -> None:
    result = bmlpipe("stats", shards, "--json", "--samples", 0)
    assert json.loads(result.stdout) == describe(ShardReader(shards), samples=0)
    rows = list(csv.reader(io.StringIO(bmlpipe("stats", shards, "--csv").stdout)))
    assert rows[:3] == [["class", "train", "test"], ["c11", "15", "0"], ["c0", "0", "1"]]
    assert len(rows) == 13
    assert bmlpipe("stats", shards, "--csv", "--json").exit_code == 2


def test_a_folder_without_shards_is_reported_without_a_traceback(shards: Path, tmp_path: Path) -> None:
    assert bmlpipe("stats", tmp_path / "nothing").exit_code == 2
    result = bmlpipe("stats", tmp_path)
    assert (result.exit_code, "not a set of shards" in result.stderr) == (1, True)


def test_an_empty_set_has_zero_counts(tmp_path: Path) -> None:
    with ShardWriter(tmp_path / "s", dataset="t", classes=["a"], features={}):
        pass
    about = describe(ShardReader(tmp_path / "s"))
    assert (about["samples"], about["splits"], about["read"]["samples"]) == (0, {}, 0)
    assert bmlpipe("stats", tmp_path / "s").exit_code == 0
    assert bmlpipe("verify", tmp_path / "s").exit_code == 0
