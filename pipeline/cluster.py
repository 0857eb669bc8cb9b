"""Batches of work on Dask: a bounded number in flight, and a worker's death costs one item."""

from __future__ import annotations

import logging
import signal
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import CancelledError
from contextlib import ExitStack
from typing import Any, TypeVar

_logger = logging.getLogger(__name__)

T = TypeVar("T")
R = TypeVar("R")


class ClusterError(Exception):
    """The Dask scheduler cannot be reached, or was lost."""


_LOST = "the Dask scheduler was lost: what is done stays done, run the same command again"


def map_batches(
    function: Callable[[Sequence[T]], R],
    batches: Iterable[Sequence[T]],
    died: Callable[[T], R],
    *,
    workers: int,
    scheduler: str | None = None,
) -> Generator[R, None, None]:
    """Apply a function to each batch on Dask; results come as they are finished.

    At most two batches a worker are in flight, and batches are taken from the iterable only then. When a worker dies,
    Dask suspects every batch that it held: their items are put aside, and at the end each is tried in a batch of its
    own with nothing else on the cluster. One that kills its worker again is given to `died`.

    Args:
        function: Runs in a worker; it, its arguments and results must be picklable.
        batches: What to apply it to.
        died: Makes the result of an item whose worker died, in this process.
        workers: Processes of a cluster on this machine, closed at the end.
        scheduler: Address of an existing Dask scheduler instead.

    Raises:
        ClusterError: The scheduler cannot be reached, or was lost on the way.
    """
    from dask import config
    from distributed import Client, KilledWorker, LocalCluster, as_completed
    from distributed.comm.core import CommClosedError

    with ExitStack() as stack:
        chatter = logging.getLogger("distributed.client")  # what matters of it is raised here
        stack.callback(chatter.setLevel, chatter.level)
        chatter.setLevel(logging.CRITICAL + 1)
        cluster: Any = scheduler
        if scheduler is None:
            # No second try by Dask: what is tried again, and how, is decided below.
            stack.enter_context(config.set({"distributed.scheduler.allowed-failures": 0}))
            local = LocalCluster(  # type: ignore[no-untyped-call]
                n_workers=workers,
                threads_per_worker=1,
                processes=True,
                dashboard_address=None,
                silence_logs=logging.CRITICAL,
            )
            cluster = stack.enter_context(local)
        try:
            client = stack.enter_context(Client(cluster))  # type: ignore[no-untyped-call]
        except (OSError, ValueError) as error:
            raise ClusterError(f"no Dask scheduler answers at {scheduler} ({error}): is its address right?") from error
        if scheduler is None:
            client.run(_ignore_interrupts)
        if not _threads(client):
            _logger.warning("no worker has joined the Dask scheduler at %s yet: waiting for one", scheduler)
        waiting, suspects = iter(batches), deque[T]()
        flying: dict[Any, tuple[Sequence[T], bool]] = {}  # future → batch, whether it has the cluster for itself
        completed = as_completed()  # type: ignore[no-untyped-call]

        def submit(batch: Sequence[T], *, alone: bool = False) -> None:
            future = client.submit(function, batch, pure=False)
            flying[future] = (batch, alone)
            completed.add(future)  # type: ignore[no-untyped-call]

        def fill() -> None:
            slots = 2 * max(1, _threads(client))
            while len(flying) < slots and (batch := next(waiting, None)) is not None:
                submit(batch)
            if not flying and suspects:
                submit([suspects.popleft()], alone=True)

        fill()
        for future in completed:
            batch, alone = flying.pop(future)
            try:
                result = future.result()
            except KilledWorker:
                if not alone:
                    suspects.extend(batch)
                    fill()
                    continue
                result = died(batch[0])
            except (CancelledError, CommClosedError) as error:
                raise ClusterError(_LOST) from error
            yield result
            fill()


def _ignore_interrupts() -> None:
    """Ctrl-C reaches all processes of a terminal; only the one that gave out the work shall answer it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _threads(client: Any) -> int:
    try:
        return sum(client.nthreads().values())
    except (OSError, CancelledError) as error:
        raise ClusterError(_LOST) from error
