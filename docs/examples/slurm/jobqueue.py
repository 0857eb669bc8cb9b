"""Extraction on SLURM with workers that come and go: a job each, by dask-jobqueue (`pip install 'bmlpipe[jobqueue]'`).

    python jobqueue.py 40 --dataset vggsound --videos /shared/videos --annotations vggsound.csv --out /shared/features

The first number is how many jobs to ask SLURM for. Queue, cores, memory and time of a job are read from
~/.config/dask/jobqueue.yaml (https://jobqueue.dask.org); `processes` must equal `cores`: a worker has one thread.
The program runs where jobs can be submitted, until the extraction is done.
"""

from __future__ import annotations

import subprocess
import sys

import dask
from dask_jobqueue import SLURMCluster


def main(jobs: int, words: list[str]) -> int:
    """Run `bmlpipe extract` with these words on so many jobs; returns its exit status."""
    # A clip that kills its worker is tried again by bmlpipe, alone; Dask would first try it three times beside others.
    with dask.config.set({"distributed.scheduler.allowed-failures": 0}), SLURMCluster() as cluster:
        cluster.scale(jobs=jobs)
        command = [sys.executable, "-m", "bmlpipe.pipeline.cli", "extract", *words]
        return subprocess.run([*command, "--scheduler", cluster.scheduler_address], check=False).returncode


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2:]))
