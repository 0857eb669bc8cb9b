"""The places where runs of a sweep go on: a GPU or a group of them, or a share of the processor."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bmlpipe.train.config.options import ConfigError

#: Starts a Python module; what follows is its name.
PYTHON = (sys.executable, "-m")


@dataclass(frozen=True)
class Slot:
    """A place where one run goes on at a time.

    Attributes:
        gpus: As CUDA_VISIBLE_DEVICES names them; empty: the processor.
        processes: Ranks of a run, started by torchrun; 0: one process without it.
        threads: OMP_NUM_THREADS of each, unless it is set.
    """

    gpus: tuple[str, ...] = ()
    processes: int = 0
    threads: int = 1

    def start(self, options: Path, log: Path, *, inherit: Sequence[int] = ()) -> subprocess.Popen[bytes]:
        """Start a run, or go on with it.

        It stays in this process group, but is deaf to a terminal's Ctrl-C and hang-up, by which it would end before it
        has saved: it is asked by SIGTERM. The mask of signals is inherited, by torchrun's ranks too.

        Args:
            options: Its configuration file.
            log: Grows by what it says.
            inherit: Descriptors to pass on.
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


def make_slots(gpus: Sequence[str], *, jobs: int | None = None, processes: int = 0) -> list[Slot]:
    """Share out the machine.

    Args:
        gpus: GPUs to use, as CUDA_VISIBLE_DEVICES names them; empty: the processor.
        jobs: Runs at a time; None: one for each GPU (with ranks: group of GPUs), on the processor one. More than
            there are groups share them.
        processes: Ranks of a run, each with a GPU of its own where there are GPUs; 0: one process without torchrun.

    Raises:
        ConfigError: A GPU is named twice, or there are fewer than ranks of one run.
    """
    each = max(1, processes)
    if len(set(gpus)) < len(gpus):
        raise ConfigError(f"--devices {','.join(gpus)}: name each GPU once; --jobs lets several runs share them")
    if gpus and len(gpus) < each:
        raise ConfigError(
            f"--nproc-per-node is {processes} and there are {len(gpus)} GPUs ({', '.join(gpus)}): each process needs "
            "one of its own; lower it or name more --devices"
        )
    starts = range(0, len(gpus) - each + 1, each)
    groups = [tuple(gpus[start : start + each]) for start in starts] or [()]
    count = jobs or len(groups)
    threads = max(1, (os.cpu_count() or 1) // (count * each))
    return [Slot(groups[number % len(groups)], processes, threads) for number in range(count)]


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them; CUDA is not started."""
    import torch

    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = torch.cuda.device_count()
    names = named.split(",") if named else map(str, range(count))
    return [name.strip() for name in names][:count]
