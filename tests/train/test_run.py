"""The ways to start a training, and its folder: `train/run.py`, `bmlpipe train`, `python -m bmlpipe.train`."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from bmlpipe.pipeline.cli.train import without_processes
from bmlpipe.shards.index import read_index

pytestmark = pytest.mark.xdist_group("both_cores")

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = str(Path(sys.executable).with_name("bmlpipe"))
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
FEW = [
    *("--encoder", "cnn4", "--image-size", "32", "--batch-size", "24", "--epochs", "1", "--workers", "0"),
    *("--device", "cpu", "--no-tensorboard"),
]

PLUGIN = """
import config
from bmlpipe.train.modulation import Rule

class Mine(Rule):
    def __init__(self):
        print("imported config from", config.__file__)
"""


def start(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(folder)}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_a_plugin_gets_its_own_module_where_a_folder_of_train_has_the_same_name(tmp_path: Path) -> None:
    """torchrun puts train/ first on the import path, where config/, data/ and models/ lie."""
    (tmp_path / "config.py").touch()
    (tmp_path / "mine.py").write_text(PLUGIN)
    info = tmp_path / "mine-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[bmlpipe.modulations]\nmine = mine:Mine\n")
    flags = ["--modulation", "mine", "--dataset", "folder", "--shards", "nowhere"]
    done = start([*TORCHRUN, "1", str(ROOT / "train" / "run.py"), *flags], tmp_path)
    assert f"imported config from {tmp_path / 'config.py'}" in done.stdout
    assert "no index.json in nowhere" in done.stderr


def test_arguments_for_torchrun_are_passed_on_without_its_own() -> None:
    assert without_processes(["--nproc-per-node", "2", "--seed", "2"]) == ["--seed", "2"]
    assert without_processes(["--resume", "--nproc-per-node=2"]) == ["--resume"]


@pytest.fixture
def project(toy_shards: Path, tmp_path: Path) -> Path:
    shutil.copytree(toy_shards, tmp_path / "shards" / "toys")
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [
        [PROGRAM, "train"],
        [PROGRAM, "train", "--nproc-per-node", "2"],
        [sys.executable, "-m", "bmlpipe.train"],
        [*TORCHRUN, "2", "-m", "bmlpipe.train"],
        [*TORCHRUN, "1", str(ROOT / "train" / "run.py")],
    ],
    ids=["bmlpipe", "bmlpipe-2", "module", "torchrun-module", "torchrun-file"],
)
def test_every_way_to_start_trains_with_the_only_shards(project: Path, command: list[str]) -> None:
    done = start([*command, *FEW], project)
    assert done.returncode == 0, done.stderr
    name = read_index(project / "shards" / "toys").dataset
    run = f"runs/{name}/none-seed0"
    assert f"data set {name}, shards shards/toys, modulation none, run {run}" in done.stderr
    assert f"Next: bmlpipe report {run}" in done.stderr
    config = yaml.safe_load((project / run / "config.yaml").read_text())
    assert (config["dataset"], config["shards"], config["out"]) == (name, ["shards/toys"], run)
    assert None not in (config["modalities"], config["frames"], config["weights"])
    if command == [PROGRAM, "train"]:
        again = start([*command, *FEW], project)
        assert again.returncode == 1
        assert f"{run} holds a run already" in again.stderr


@pytest.mark.slow
def test_sigterm_saves_where_bmlpipe_starts_the_training(project: Path) -> None:
    command = [PROGRAM, "train", *FEW, "--epochs", "1000", "--out", "run"]
    with subprocess.Popen(command, cwd=project, stderr=subprocess.PIPE, text=True) as process:
        steps = project / "run" / "steps.jsonl"
        while not steps.is_file() or not steps.stat().st_size:
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 143
    assert "continue with --resume" in errors
    assert (project / "run" / "checkpoints" / "last.pt").is_file()
