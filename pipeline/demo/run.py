"""The commands of the demo: from synthetic clips to two trained models and a report."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from bmlpipe.pipeline.demo.synthetic_clips import SECONDS, SIZE, DemoError

_MARKER_FILE = "made-by-bmlpipe-demo.txt"

#: Program → the arguments that start it with the Python interpreter that runs the demo.
_PROGRAMS = {"bmlpipe": ["-m", "bmlpipe.pipeline.cli"], "torchrun": ["-m", "torch.distributed.run"]}


def prepare_folder(folder: Path) -> None:
    """Create the demo's folder, or empty the folder of an earlier demo.

    Raises:
        DemoError: The folder contains something else.
    """
    if folder.exists() and any(folder.iterdir()):
        if not (folder / _MARKER_FILE).is_file():
            raise DemoError(
                f"{folder} is not empty and was not made by the demo: choose another --out. Nothing was changed"
            )
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _MARKER_FILE).write_text("Made by `bmlpipe demo`, which replaces this folder when it runs again.\n")


def demo_commands(out: Path, annotation: Path, *, epochs: int, processes: int) -> list[list[str]]:
    """List the commands of the demo in their order, each as a user would type it.

    Args:
        out: The demo's folder.
        annotation: The annotation of the clips, in their folder.
        epochs: Epochs of each training.
        processes: Processes per training.

    Returns:
        Program and arguments of each command.
    """
    clips, features, shards = str(annotation.parent), str(out / "features"), str(out / "shards")
    joint, balanced = str(out / "runs" / "none"), str(out / "runs" / "opm")

    extract = f"bmlpipe extract --dataset folder --seconds {SECONDS} --short-side {SIZE}".split()
    extract += ["--videos", clips, "--annotations", str(annotation), "--out", features]
    shard = ["bmlpipe", "shard", "--dataset", "folder", "--features", features, "--out", shards]
    verify = ["bmlpipe", "verify", shards]
    train = f"torchrun --standalone --nproc-per-node {processes} -m bmlpipe.train.run --dataset folder".split()
    train += f"--encoder cnn4 --image-size {SIZE} --augment none --epochs {epochs}".split()
    train += ["--batch-size", "32", "--lr", "0.01", "--workers", "1", "--shards", shards]
    report = ["bmlpipe", "report", joint, balanced, "--out", str(out / "report.png")]
    return [
        extract,
        shard,
        verify,
        [*train, "--modulation", "none", "--out", joint],
        [*train, "--modulation", "opm", "--out", balanced],
        report,
    ]


def run_command(command: Sequence[str]) -> None:
    """Run one of the `demo_commands`.

    Raises:
        DemoError: The command failed.
    """
    environment = {"OMP_NUM_THREADS": "1", **os.environ}  # one thread per training process, unless set otherwise
    done = subprocess.run([sys.executable, *_PROGRAMS[command[0]], *command[1:]], env=environment, check=False)
    if done.returncode:
        raise DemoError(f"a command of the demo failed with exit status {done.returncode}: {' '.join(command)}")
