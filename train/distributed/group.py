"""The process group of a run, and a check that the replicas of a module are bitwise equal."""

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

#: Time that a rank waits for another rank before it gives up. It must be longer than anything that one rank does while
#: the others wait: fetch a shard, write a checkpoint, compile.
TIMEOUT = timedelta(minutes=10)


class LostRankError(BmlpipeError):
    """Another rank has ended or does not answer, so this rank cannot continue."""


@dataclass(frozen=True)
class ProcessInfo:
    """One process of a run.

    Attributes:
        rank: Number of the process among all processes of the run, from 0.
        world_size: Number of processes.
        local_rank: Number of the process on this machine, from 0.
        device: Device that the process computes on.
    """

    rank: int
    world_size: int
    local_rank: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes files and log lines, rank 0."""
        return self.rank == 0


@contextmanager
def process_group(device: str = "auto", *, timeout: timedelta = TIMEOUT) -> Iterator[ProcessInfo]:
    """Join the process group of the run for the duration of a `with` block.

    Under torchrun the process group is created from torchrun's environment variables (NCCL on CUDA, gloo on the CPU)
    and destroyed at the end. Without torchrun there is one process and no group.

    Args:
        device: `auto` (CUDA if available), `cpu`, `cuda` (the GPU with the number of the local rank) or `cuda:N`.
        timeout: Time that this rank waits for the others when the group is created and in each collective.

    Yields:
        This process.

    Raises:
        OptionError: The device does not exist, or only some of torchrun's variables are set.
        LostRankError: Another rank has ended (raised at once) or does not answer (raised after `timeout`). It replaces
            the backend's error, when the group is created and inside the block. NCCL ends the process itself after
            `timeout`, with a report.
    """
    given = {name: os.environ[name] for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK") if name in os.environ}
    if given and len(given) < 3:
        raise OptionError(
            f"of torchrun's variables RANK, WORLD_SIZE and LOCAL_RANK only {', '.join(given)} is set: set all of them "
            "or none"
        )
    rank, world_size, local_rank = (int(given.get(name, default)) for name, default in _ALONE.items())
    process = ProcessInfo(rank, world_size, local_rank, _device(device, local_rank))
    if process.device.type == "cuda":
        torch.cuda.set_device(process.device)
    if not given:
        yield process
        return
    # DistributedDataParallel imports this too. Imported after the group exists, it would keep the group and its threads
    # alive until the process ends.
    from torch import _dynamo  # noqa: F401

    on_cuda, completed = process.device.type == "cuda", False
    try:
        dist.init_process_group(
            "nccl" if on_cuda else "gloo", timeout=timeout, device_id=process.device if on_cuda else None
        )
        yield process
        completed = True
    except RuntimeError as error:
        if not _is_communication_error(error):
            raise
        raise LostRankError(
            f"rank {rank} of {world_size}, on {socket.gethostname()}, has lost another rank: it has ended, or it did "
            f"not answer within {timeout.total_seconds():g} s. Look for the cause in the messages of the ranks that "
            f"ended first, then continue from the last checkpoint with --resume. (The backend reports: "
            f"{str(error).splitlines()[0]})"
        ) from error
    finally:
        if dist.is_initialized():
            _destroy_group(completed)


#: Groups that must not be destructed: their threads may be waiting for ranks that have ended, or for Python.
_kept: list[dist.ProcessGroup] = []


def _destroy_group(completed: bool) -> None:
    """Leave the group. If the block completed and nothing else holds the group, its threads have ended afterwards.

    A thread that has just finished a collective needs the interpreter once more; at the end of the program that would
    abort it.
    """
    gc.collect()  # a model that is not used any more may still hold the group
    group = dist.group.WORLD
    left = group and weakref.ref(group)
    if completed:
        del group
    dist.destroy_process_group()
    if left and (held := left()) is not None:
        _kept.append(held)


def _is_communication_error(error: RuntimeError) -> bool:
    """Return whether an error comes from the communication between ranks; gloo has no exception class of its own."""
    text = str(error)  # names gloo's source file, or is raised by an operation after another one has timed out
    return isinstance(error, dist.DistError) or "/gloo/" in text or "caused pair closure" in text


def broadcast_buffers(module: nn.Module) -> None:
    """Copy the buffers of rank 0 to all ranks, since local batch norm lets running statistics drift apart.

    Call it on every rank before an evaluation: then all ranks evaluate the model that rank 0 saves.
    """
    if dist.is_available() and dist.is_initialized():
        for buffer in module.buffers():
            dist.broadcast(buffer, src=0)


def unequal_tensors(module: nn.Module) -> list[str]:
    """Find the parameters and buffers that are not bitwise equal on all ranks; every rank calls it.

    It copies every tensor to the host and hashes it: meant for tests and for finding faults. The running statistics of
    a batch norm that is not synchronised are unequal by design, as each rank has seen its own samples.

    Returns:
        Their names, the same on every rank.
    """
    state = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    if not (dist.is_available() and dist.is_initialized()) or not state:
        return []
    digests = torch.stack([_sha256(tensor) for tensor in state.values()]).to(next(iter(state.values())).device)
    gathered = [torch.empty_like(digests) for _ in range(dist.get_world_size())]
    dist.all_gather(gathered, digests)
    unequal = (torch.stack(gathered) != digests).flatten(start_dim=2).any(dim=2).any(dim=0)
    return [name for name, differs in zip(state, unequal.tolist(), strict=True) if differs]


def all_equal(module: nn.Module) -> bool:
    """Return whether all parameters and buffers are bitwise equal on all ranks; the same answer on every rank."""
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
            f"there is no GPU number {index}, this machine has {torch.cuda.device_count()}: start fewer processes "
            "(--nproc-per-node), or choose --device cpu"
        )
    return torch.device("cuda", index)


def _sha256(tensor: Tensor) -> Tensor:
    """Hash a tensor's bytes with SHA-256: (32,), uint8."""
    data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return torch.tensor(list(hashlib.sha256(data.tobytes()).digest()), dtype=torch.uint8)
