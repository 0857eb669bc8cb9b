"""Make the golden set: tiny files of every format that bmlpipe writes, as the present code writes them.

    python tests/golden/make.py

Run it only to begin a new version of a format. The stored files guard version 1: today's code must go on reading them
(tests/system/test_golden.py). The program replaces everything in this folder but `make.py`, `plugin/` and `README.md`,
by the command line of bmlpipe with the options below, and writes down in expected.json what is read from the files.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import imageio_ffmpeg

from bmlpipe.shards.index import read_index
from bmlpipe.shards.reader import ShardReader

HERE = Path(__file__).resolve().parent
TRAIN = HERE.parents[1] / "train" / "run.py"
KINDS = "frames,spectrogram,flow,rgb_diff,waveform"
SPLITS = {"train": 4, "val": 1, "test": 1}

EXTRACT = [
    *("extract", "--dataset", "folder", "--videos", "clips", "--kinds", KINDS, "--seconds", "1", "--short-side", "32"),
    *("--spectrogram-preset", "mfcc", "--workers", "0"),
]
SHARD = ["shard", "--dataset", "folder", "--features", "all_features", "--out", "shards", "--samples-per-shard", "3"]
TRAINING = [
    *("--dataset", "folder", "--shards", "shards", "--encoder", "golden", "--modulation", "opm+ogm", "--out", "run"),
    *("--image-size", "32", "--frames", "1", "--epochs", "2", "--batch-size", "2", "--lr", "0.01", "--workers", "0"),
    *("--device", "cpu", "--no-tensorboard", "--seed", "1"),
]
EVALUATION = ["evaluate", "run", "--checkpoint", "last", "--split", "test", "--workers", "0", "--device", "cpu"]


def environment() -> dict[str, str]:
    """One thread, no accelerator, and the plug-in on the import path."""
    return {
        **os.environ,
        "PYTHONPATH": str(HERE / "plugin"),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "PYTHONDONTWRITEBYTECODE": "1",
    }


def bmlpipe(arguments: list[str], folder: Path) -> None:
    """Run a command of bmlpipe in a folder."""
    subprocess.run(
        [sys.executable, "-m", "bmlpipe.pipeline.cli", *arguments], cwd=folder, env=environment(), check=True
    )


def train(arguments: list[str], folder: Path) -> None:
    """Run a training in a folder."""
    subprocess.run([sys.executable, str(TRAIN), *arguments], cwd=folder, env=environment(), check=True)


def make_clips(folder: Path) -> None:
    """Clips of 1.2 s in two classes, of moving test pictures and a tone, and two tables: of all, and of the first."""
    rows = ["path,label,split"]
    splits = [split for split, count in SPLITS.items() for _ in range(count)]
    for number, split in enumerate(splits):
        label = ("high", "low")[number % 2]
        path = folder / label / f"{split}.{number}.mp4"  # the dot makes key and id differ
        path.parent.mkdir(parents=True, exist_ok=True)
        inputs = [
            *("-f", "lavfi", "-i", f"testsrc2=size=48x36:rate=10:duration=1.2,hue=h={40 * number}"),
            *("-f", "lavfi", "-i", f"sine=frequency={(880, 220)[number % 2] + 20 * number}:duration=1.2"),
        ]
        command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", *inputs, "-threads", "1", str(path)]
        subprocess.run(command, check=True)
        rows.append(f"{label}/{path.name},{label},{split}")
    (folder / "clips.csv").write_text("\n".join(rows) + "\n")
    (folder / "first.csv").write_text("\n".join(rows[:2]) + "\n")


def sha256(data: bytes | memoryview) -> str:
    """SHA-256 of bytes."""
    return hashlib.sha256(data).hexdigest()


def expected(folder: Path) -> dict[str, object]:
    """What is read from the files."""
    index, reader = read_index(folder / "shards"), ShardReader(folder / "shards")
    samples = [
        {
            "key": sample.key,
            "label": sample.label,
            "meta": sample.meta,
            "members": {name: sha256(data) for name, data in sample.members.items()},
        }
        for sample in (reader[number] for number in range(len(reader)))
    ]
    evaluation = sorted((folder / "run" / "evaluation").glob("*.json"))
    return {
        "index": {
            "sha256": index.sha256,
            "classes": list(index.classes),
            "features": index.features,
            "statistics": index.statistics,
            "splits": {split: list(index.split_range(split)) for split in SPLITS},
        },
        "samples": samples,
        "files": {path.name: sha256(path.read_bytes()) for path in sorted((folder / "shards").iterdir())},
        "evaluation": {path.name: json.loads(path.read_text()) for path in evaluation},
    }


def main() -> None:
    """Make everything in a temporary folder, then put it in place."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        make_clips(folder / "clips")
        bmlpipe([*EXTRACT, "--annotations", "clips/clips.csv", "--out", "all_features"], folder)
        bmlpipe([*EXTRACT, "--annotations", "clips/first.csv", "--out", "features"], folder)
        bmlpipe(SHARD, folder)
        train(TRAINING, folder)
        bmlpipe(EVALUATION, folder)
        (folder / "expected.json").write_text(json.dumps(expected(folder), indent=1, ensure_ascii=False) + "\n")
        shutil.rmtree(folder / "run" / "evaluation")
        for name in ("shards", "features", "run"):
            for rest in (".lock", "status.json", "status.prom"):
                (folder / name / rest).unlink(missing_ok=True)
            shutil.rmtree(HERE / name, ignore_errors=True)
            shutil.copytree(folder / name, HERE / name)
        shutil.copy(folder / "expected.json", HERE)


if __name__ == "__main__":
    main()
