"""The job scripts of docs/examples/slurm, run with stand-ins for SLURM's commands that start local processes."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from bmlpipe.pipeline.store.ledger import read_ledger

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("both_cores")]

SLURM = Path(__file__).parents[2] / "docs" / "examples" / "slurm"
LIMIT = 240  # seconds after which a command that hangs is ended
CLIPS = 60

#: As in SLURM, srun runs a command in its own process group, which scancel signals as a whole.
STAND_INS = {
    "srun": 'while [ "${1#--}" != "$1" ]; do shift; done; echo $$ > "$FAKE/step"; exec setsid "$@"',
    "scancel": 'case $1 in --signal=TERM) kill -TERM -- "-$(cat "$FAKE/step")";; *) kill -TERM -- "-$1";; esac',
    "scontrol": 'case $1 in show) echo localhost;; requeue) echo "$2" >> "$FAKE/requeued";; esac',
    "sbatch": 'shift $(($# - 1)); setsid bash "$1" > "$FAKE/job.log" 2>&1 & echo "$!" >> "$FAKE/jobs"; '
    'echo "Submitted batch job $!"',
    # torchrun only runs its script: test_nodes.py tests how it starts ranks
    "torchrun": 'while [ "${1%.py}" = "$1" ]; do shift; done; exec python "$@"',
}


@pytest.fixture
def slurm(tmp_path: Path) -> Path:
    """A folder of programs with the names of SLURM's commands and with their records."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, body in STAND_INS.items():
        path = folder / name
        path.write_text(f"#!/bin/bash\n{body}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return folder


@contextmanager
def started(slurm: Path, *command: str, **variables: str) -> Iterator[subprocess.Popen[bytes]]:
    """Start a command with these programs, and end everything that it started at the end of the block."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "FAKE": str(slurm), **variables}
    environment["PATH"] = f"{slurm}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment |= {"SLURM_JOB_ID": "4711", "SLURM_JOB_NODELIST": "node", "SLURM_NNODES": "1"}
    with (slurm / "log").open("ab") as log:
        process = subprocess.Popen(
            command,
            cwd=slurm,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        recorded = [
            word for name in ("step", "jobs") if (path := slurm / name).is_file() for word in path.read_text().split()
        ]
        for group in (process.pid, *map(int, recorded)):
            with suppress(ProcessLookupError):
                os.killpg(group, signal.SIGKILL)
        process.wait()


def lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.is_file() else 0


def test_a_preempted_training_job_saves_is_requeued_and_resumes(
    slurm: Path, toy_shards: Path, tmp_path: Path, wait_until: Callable[..., None]
) -> None:
    """SIGTERM is sent to the script alone and must reach every process of the step, as with scancel."""
    out = tmp_path / "run"
    journal, script = out / "steps.jsonl", str(SLURM / "train.sbatch")
    words = ["--dataset", "folder", "--shards", str(toy_shards), "--out", str(out), "--encoder", "cnn4"]
    words += ["--image-size", "32", "--batch-size", "24", "--workers", "2", "--device", "cpu", "--no-tensorboard"]
    place = {"BMLPIPE": str(Path(__file__).parents[2]), "RANKS": "1"}
    with started(slurm, "bash", script, *words, "--epochs", "500", **place) as job:
        wait_until(lambda: lines(journal) > 5, job, seconds=LIMIT, log=(slurm / "log").read_text)
        job.terminate()
        assert job.wait(LIMIT) == 143, (slurm / "log").read_text()
    assert (slurm / "requeued").read_text() == "4711\n"
    done = lines(journal)
    epochs = done // 4 + 2
    with started(slurm, "bash", script, *words, "--epochs", str(epochs), **place) as job:
        assert job.wait(LIMIT) == 0, (slurm / "log").read_text()
    steps = [json.loads(line)["step"] for line in journal.read_text().splitlines()]
    assert steps == list(range(4 * epochs))  # the steps of the stopped run are kept, and none is repeated
    assert (slurm / "requeued").read_text() == "4711\n"


@pytest.fixture
def videos(tmp_path: Path, make_clips: Callable[..., None]) -> Path:
    make_clips(tmp_path / "videos" / "x", CLIPS, seconds=1.0, size=(64, 48))
    return tmp_path / "videos"


def test_a_preempted_extraction_job_is_requeued_and_continues(
    slurm: Path, videos: Path, tmp_path: Path, wait_until: Callable[..., None]
) -> None:
    out, script = tmp_path / "features", str(SLURM / "extract.sbatch")
    words = [
        "--dataset",
        "folder",
        "--videos",
        str(videos),
        "--seconds",
        "1",
        "--clips-per-task",
        "1",
        "--out",
        str(out),
    ]
    with started(slurm, "bash", script, *words) as job:
        wait_until(lambda: lines(out / "ledger.log.jsonl") > 5, job, seconds=LIMIT, log=(slurm / "log").read_text)
        job.terminate()
        assert job.wait(LIMIT) == 143, (slurm / "log").read_text()
    assert (slurm / "requeued").read_text() == "4711\n"
    assert 0 < len(list(out.glob("clips/*/*.h5"))) < CLIPS
    with started(slurm, "bash", script, *words) as job:
        assert job.wait(LIMIT) == 0, (slurm / "log").read_text()
    assert [row.status for row in read_ledger(out)] == ["ok"] * CLIPS
    assert not list(slurm.glob("scheduler-*.json"))


def test_dask_jobqueue_starts_the_workers(slurm: Path, videos: Path, tmp_path: Path) -> None:
    pytest.importorskip("dask_jobqueue", reason="docs/examples/slurm/jobqueue.py needs the package dask-jobqueue")
    out, settings = tmp_path / "features", tmp_path / "jobqueue.yaml"
    settings.write_text("jobqueue: {slurm: {cores: 1, processes: 1, memory: 1GB, interface: lo}}\n")
    words = ["--dataset", "folder", "--videos", str(videos), "--seconds", "1", "--out", str(out)]
    with started(slurm, sys.executable, str(SLURM / "jobqueue.py"), "2", *words, DASK_CONFIG=str(settings)) as program:
        assert program.wait(LIMIT) == 0, (slurm / "log").read_text()
    assert [row.status for row in read_ledger(out)] == ["ok"] * CLIPS
    assert lines(slurm / "jobs") == 2
