"""Data parallelism: the process group of a run, and a check that its replicas are bitwise equal."""

from __future__ import annotations

import gc
import hashlib
import os
import socket
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn

from bmlpipe.manifests.common.errors import BmlpipeError, OptionError

#: How long a rank waits for another one before the run is given up. It must be longer than what one rank may do while
#: the others wait: fetch a shard, write a checkpoint, compile.
TIMEOUT = timedelta(minutes=10)


class LostRankError(BmlpipeError):
    """Another rank has ended or does not answer, so this one cannot go on; the message says what to do."""


@dataclass(frozen=True)
class ProcessInfo:
    """Where this process stands.

    Attributes:
        rank: Its number among all processes, from 0.
        world: Number of processes.
        local_rank: Its number on this machine.
        device: What it computes on.
    """

    rank: int
    world: int
    local_rank: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes files and speaks."""
        return self.rank == 0


@contextmanager
def process_group(device: str = "auto", *, timeout: timedelta = TIMEOUT) -> Iterator[ProcessInfo]:
    """The processes of this run, for the length of a `with` block.

    Under torchrun a process group is made from its environment variables (NCCL on CUDA, gloo on the CPU) and torn down
    at the end. Without torchrun there is one process and no group.

    Args:
        device: `auto` (CUDA where there is one), `cpu`, `cuda` (the GPU numbered as the local rank) or `cuda:N`.
        timeout: How long this rank waits for the others, in the beginning and in each collective.

    Yields:
        This process's place.

    Raises:
        OptionError: A device that is not there, or torchrun's variables only in part.
        LostRankError: In the place of what the backend raises, in the beginning or inside the block, where another
            rank has ended (at once) or does not answer (after `timeout`). NCCL ends the process itself after
            `timeout`, with a report.
    """
    given = {name: os.environ[name] for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK") if name in os.environ}
    if given and len(given) < 3:
        raise OptionError(
            f"of torchrun's RANK, WORLD_SIZE and LOCAL_RANK only {', '.join(given)} is set; set all or none"
        )
    rank, world, local_rank = (int(given.get(name, default)) for name, default in _ALONE.items())
    process = ProcessInfo(rank, world, local_rank, _device(device, local_rank))
    if process.device.type == "cuda":
        torch.cuda.set_device(process.device)
    if not given:
        yield process
        return
    # DDP imports this too. Once there is a group, it would keep it, and its threads, for ever.
    from torch import _dynamo  # noqa: F401

    on_cuda, whole = process.device.type == "cuda", False
    try:
        dist.init_process_group(
            "nccl" if on_cuda else "gloo", timeout=timeout, device_id=process.device if on_cuda else None
        )
        yield process
        whole = True
    except RuntimeError as error:
        if not _of_the_group(error):
            raise
        raise LostRankError(
            f"rank {rank} of {world}, on {socket.gethostname()}, has lost another rank: it has ended, or it did not "
            f"answer within {timeout.total_seconds():g} s. What the ranks that ended first said is the cause; then go "
            f"on from the last checkpoint with --resume. (The backend says: {str(error).splitlines()[0]})"
        ) from error
    finally:
        if dist.is_initialized():
            _tear_down(whole)


#: Groups that are not to be destructed: their threads may wait for ranks that are gone, or for Python.
_kept: list[dist.ProcessGroup] = []


def _tear_down(whole: bool) -> None:
    """Leave the group; if all went well and nothing holds it any more, its threads have ended then.

    A thread that has just finished a collective needs Python once more; if the program is ending, that aborts it.
    """
    gc.collect()  # a model that nobody uses any more may hold the group
    group = dist.group.WORLD
    left = group and weakref.ref(group)
    if whole:
        del group
    dist.destroy_process_group()
    if left and (held := left()) is not None:
        _kept.append(held)


def _of_the_group(error: RuntimeError) -> bool:
    """Whether an error comes from talking to other ranks; gloo has no class of its own for them."""
    told = str(error)  # gloo's own source file, or what an operation hears after another one has timed out
    return isinstance(error, dist.DistError) or "/gloo/" in told or "caused pair closure" in told


def share_buffers(module: nn.Module) -> None:
    """Give all ranks the first one's buffers: local batch norm lets the running statistics of the ranks drift apart.

    Do it before an evaluation, so that all ranks evaluate the model that the first one saves. Every rank calls it.
    """
    if dist.is_available() and dist.is_initialized():
        for buffer in module.buffers():
            dist.broadcast(buffer, src=0)


def unequal_tensors(module: nn.Module) -> list[str]:
    """Names of the parameters and buffers that are not the same on all ranks, bit for bit.

    Costs a copy to the host and a hash of each tensor: for tests and for finding faults. Every rank calls it. Running
    statistics of a batch norm that is not synchronised are rightly found: each rank has seen its own samples.
    """
    state = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    if not (dist.is_available() and dist.is_initialized()) or not state:
        return []
    digests = torch.stack([_digest(tensor) for tensor in state.values()]).to(next(iter(state.values())).device)
    gathered = [torch.empty_like(digests) for _ in range(dist.get_world_size())]
    dist.all_gather(gathered, digests)
    unequal = (torch.stack(gathered) != digests).flatten(start_dim=2).any(dim=2).any(dim=0)
    return [name for name, differs in zip(state, unequal.tolist(), strict=True) if differs]


def all_equal(module: nn.Module) -> bool:
    """Whether all parameters and buffers are bitwise equal on all ranks; the same answer on each of them."""
    return not unequal_tensors(module)


_ALONE = {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0}


def _device(name: str, local_rank: int) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise OptionError(f"device must be auto, cpu, cuda or cuda:N, not {name!r}") from error
    if device.type == "cpu":
        return torch.device("cpu")
    if device.type != "cuda":
        raise OptionError(f"device must be auto, cpu, cuda or cuda:N, not {name!r}")
    index = local_rank if device.index is None else device.index
    if index >= torch.cuda.device_count():
        raise OptionError(
            f"GPU number {index} is asked for, this machine has {torch.cuda.device_count()}; start fewer processes "
            "(--nproc-per-node) or choose --device cpu"
        )
    return torch.device("cuda", index)


def _digest(tensor: Tensor) -> Tensor:
    """SHA-256 of a tensor's bytes, (32,), uint8."""
    data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return torch.tensor(list(hashlib.sha256(data.tobytes()).digest()), dtype=torch.uint8)
