"""An extraction that is killed repeatedly at random times gives the files of an undisturbed extraction.

The environment variable BMLPIPE_KILLS sets the number of kills, by default 8.
"""

from __future__ import annotations

import csv
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from bmlpipe.pipeline.sharding.write import write_shards
from bmlpipe.pipeline.store.ledger import read_ledger

KILLS = int(os.environ.get("BMLPIPE_KILLS", "8"))
CLIPS = max(60, 3 * KILLS // 2)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600), pytest.mark.xdist_group("both_cores")]


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def same(one: Path, other: Path) -> bool:
    """Return whether two feature files are equal byte for byte, and print the differences."""
    if one.exists() and one.read_bytes() == other.read_bytes():
        return True

    def show(name: str, node: h5py.HLObject) -> None:
        for key, value in node.attrs.items():
            if str(value) != str(there[name].attrs.get(key)):
                print(other.name, name, key, value, there[name].attrs.get(key))
        if isinstance(node, h5py.Dataset) and not np.array_equal(node[()], there[name][()]):
            print(other.name, name)

    if one.exists():
        with h5py.File(one) as there, h5py.File(other) as here:
            show("/", here)
            here.visititems(show)
    return False


def wait_for_ledger(out: Path, process: subprocess.Popen[bytes]) -> bool:
    """Wait until the run has written its ledger; return False if it ended first."""
    while not (out / "ledger.log.jsonl").exists():
        if process.poll() is not None:
            return False
        time.sleep(0.001)
    return True


def test_killing_an_extraction_at_random_times_changes_neither_features_nor_shards(
    tmp_path: Path, make_clip: Callable[..., Path]
) -> None:
    videos = tmp_path / "videos"
    videos.mkdir()
    makers = [make_clip(tmp_path / f"{tone}.mp4", seconds=3.0, tone=tone) for tone in (500.0, 1500.0, 3000.0)]
    for number in range(CLIPS):
        shutil.copy(makers[number % 3], videos / f"{number}.mp4")
    (videos / f"{CLIPS}.mp4").write_bytes(makers[0].read_bytes()[:2000])
    with (videos / "clips.csv").open("w", newline="") as file:
        rows = [(f"{number}.mp4", "abc"[number % 3], "train") for number in range(CLIPS + 2)]  # the last one is absent
        csv.writer(file).writerows([("path", "label", "split"), *rows])

    def command(out: Path, workers: int) -> list[str]:
        given = ["--videos", str(videos), "--annotations", str(videos / "clips.csv"), "--out", str(out)]
        how = [
            "--seconds",
            "3",
            "--clips-per-task",
            "2",
            "--workers",
            str(workers),
            "--no-disk-check",
            "--max-failed",
            "1",
        ]
        content = ["--kinds", "frames,spectrogram,flow"]
        return [sys.executable, "-m", "bmlpipe.pipeline.cli", "extract", "--dataset", "folder", *given, *how, *content]

    undisturbed, out = tmp_path / "undisturbed", tmp_path / "out"
    clock = time.monotonic()
    subprocess.run(command(undisturbed, 0), check=True, capture_output=True)
    seconds_per_clip = (time.monotonic() - clock) / CLIPS
    chance = random.Random(20240617)
    killed = 0
    while killed < KILLS:
        workers = 2 if chance.random() < 0.2 else 0
        process = subprocess.Popen(
            command(out, workers), start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        if chance.random() < 0.3:
            time.sleep(chance.uniform(0, 1.5))  # while it imports, scans and plans
        elif wait_for_ledger(out, process):
            left = CLIPS - len(list(out.glob("clips/*/*.h5")))
            time.sleep(chance.expovariate(1) * seconds_per_clip * left / (KILLS - killed + 1))
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            killed += 1
        elif killed < KILLS // 2:
            pytest.fail("the extraction ended before half of the kills")
        process.wait()
        if (out / "ledger.csv").exists():
            with (out / "ledger.csv").open(newline="") as file:
                found = [row["status"] in ("ok", "failed", "absent") for row in csv.DictReader(file)]
            assert found == [True] * (CLIPS + 2), f"after kill {killed}"
    subprocess.run(command(out, 0), check=True, capture_output=True)
    differing = [
        name for name in tree(undisturbed / "clips") if not same(out / "clips" / name, undisturbed / "clips" / name)
    ]
    assert differing == []
    assert tree(out / "clips") == tree(undisturbed / "clips")
    assert read_ledger(out) == read_ledger(undisturbed)
    for folder in (undisturbed, out):
        write_shards("folder", folder, folder / "shards", samples_per_shard=50)
    assert tree(out / "shards") == tree(undisturbed / "shards")
