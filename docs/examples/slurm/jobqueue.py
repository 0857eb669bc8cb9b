"""Extraction on SLURM with workers that join and leave, by dask-jobqueue (`pip install 'bmlpipe[jobqueue]'`).

    python jobqueue.py 40 --dataset vggsound --videos /shared/videos --annotations vggsound.csv --out /shared/features

The first argument is the number of SLURM jobs. Queue, cores, memory and time limit of a job are read from
~/.config/dask/jobqueue.yaml (https://jobqueue.dask.org); `processes` must equal `cores`, because each worker has one
thread. Run the program on a host that can submit jobs. It ends when the extraction has finished.
"""

from __future__ import annotations

import subprocess
import sys

import dask
from dask_jobqueue import SLURMCluster


def main(jobs: int, arguments: list[str]) -> int:
    """Run `bmlpipe extract` with the given arguments on a number of jobs; returns its exit status."""
    # bmlpipe tries a clip that has killed its worker again, alone. Dask would first try it three times with its batch.
    with dask.config.set({"distributed.scheduler.allowed-failures": 0}), SLURMCluster() as cluster:
        cluster.scale(jobs=jobs)
        command = [sys.executable, "-m", "bmlpipe.pipeline.cli", "extract", *arguments]
        return subprocess.run([*command, "--scheduler", cluster.scheduler_address], check=False).returncode


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2:]))
