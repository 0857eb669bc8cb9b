"""The devices of a sweep, shared out between the runs that train at the same time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bmlpipe.train.config.options import ConfigError

#: Command that starts a Python module; the name of the module follows.
PYTHON = (sys.executable, "-m")


@dataclass(frozen=True)
class DeviceGroup:
    """Devices on which one run trains at a time.

    Attributes:
        gpus: GPUs, named as in CUDA_VISIBLE_DEVICES; empty for the CPU.
        processes: Number of processes per run, started by torchrun; 0 for one process without torchrun.
        threads: Number of threads per process (OMP_NUM_THREADS, which overrides it if it is set).
    """

    gpus: tuple[str, ...] = ()
    processes: int = 0
    threads: int = 1

    def start(self, options: Path, log: Path, *, inherit: Sequence[int] = ()) -> subprocess.Popen[bytes]:
        """Start a run, or continue it from its last checkpoint.

        The run stays in this process group, but ignores Ctrl-C and the hang-up of a terminal, which would end it before
        it has saved. SIGTERM makes it save and end. The signal mask is inherited, also by the processes of torchrun.

        Args:
            options: Configuration file of the run.
            log: File to which the output of the run is appended.
            inherit: File descriptors that the run inherits.
        """
        torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(self.processes), "-m"]
        command = [*PYTHON, *(torchrun if self.processes else []), "bmlpipe.train.run", "--config", str(options)]
        command += ["--resume", *(["--device", "cuda"] if self.gpus else [])]
        visible = {"CUDA_VISIBLE_DEVICES": ",".join(self.gpus)} if self.gpus else {}
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGHUP})
        try:
            with log.open("ab") as file:
                return subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=file,
                    env={"OMP_NUM_THREADS": str(self.threads), **os.environ, **visible},
                    pass_fds=inherit,
                )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def __str__(self) -> str:
        where = f" on GPU {', '.join(self.gpus)}" if self.gpus else ""
        return f"{where} in {self.processes} processes" if self.processes else where


def share_devices(gpus: Sequence[str], *, jobs: int | None = None, processes: int = 0) -> list[DeviceGroup]:
    """Divide GPUs and CPU cores among the runs that train at the same time.

    Args:
        gpus: GPUs to use, named as in CUDA_VISIBLE_DEVICES; empty for the CPU.
        jobs: Number of runs at the same time. None: one per GPU (per group of `processes` GPUs), or one on the CPU. If
            there are more runs than groups of GPUs, several runs share a group.
        processes: Number of processes per run, each on a GPU of its own; 0 for one process without torchrun.

    Raises:
        ConfigError: A GPU is named twice, or there are fewer GPUs than processes of one run.
    """
    each = max(1, processes)
    if len(set(gpus)) < len(gpus):
        raise ConfigError(
            f"--devices is {','.join(gpus)}: name each GPU once. --jobs lets several runs share the same GPUs."
        )
    if gpus and len(gpus) < each:
        raise ConfigError(
            f"--nproc-per-node is {processes}, but there are only {len(gpus)} GPUs ({', '.join(gpus)}), and each "
            "process needs a GPU of its own. Lower it, or name more GPUs with --devices."
        )
    starts = range(0, len(gpus) - each + 1, each)
    groups = [tuple(gpus[start : start + each]) for start in starts] or [()]
    count = jobs or len(groups)
    threads = max(1, (os.cpu_count() or 1) // (count * each))
    return [DeviceGroup(groups[number % len(groups)], processes, threads) for number in range(count)]


def visible_gpus() -> list[str]:
    """List the GPUs that this process may use, named as in CUDA_VISIBLE_DEVICES; CUDA is not initialised."""
    import torch

    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = torch.cuda.device_count()
    names = named.split(",") if named else map(str, range(count))
    return [name.strip() for name in names][:count]
