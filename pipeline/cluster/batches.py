"""Batches of work on Dask: a bounded number in flight, and a worker's death costs one item."""

from __future__ import annotations

import asyncio
import importlib.util
import logging
import sys
import time
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import CancelledError
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeVar

from bmlpipe.manifests.common.errors import BmlpipeError
from bmlpipe.manifests.common.logs import log_settings
from bmlpipe.pipeline.cluster.worker_checks import Answer, answering, packed

_logger = logging.getLogger(__name__)

T = TypeVar("T")
R = TypeVar("R")

_SETTINGS = {
    # No second try by Dask: what is tried again, and how, is decided by `map_batches`.
    "distributed.scheduler.allowed-failures": 0,
    # Dask looks at itself many times a second, for tasks of milliseconds, at a twentieth of what extraction costs.
    "distributed.worker.profile.enabled": False,
    "distributed.admin.tick.interval": "500ms",
    "distributed.admin.tick.cycle": "10s",
    "distributed.admin.system-monitor.interval": "2s",
    "distributed.admin.system-monitor.gil.enabled": False,
    "distributed.scheduler.active-memory-manager.start": False,  # nothing is held twice
}
_DASHBOARD = "127.0.0.1:8787"  # where Dask's users look for it; another port where that one is taken
_FILE = "file://"
_PATIENCE = 60  # seconds to wait for another worker where all that came were unfit


class ClusterError(BmlpipeError):
    """The Dask scheduler cannot be reached, or was lost, or none of its workers can do the work."""


_LOST = "the Dask scheduler was lost: what is done stays done, run the same command again"


def map_batches(
    function: Callable[[Sequence[T]], R],
    batches: Iterable[Sequence[T]],
    died: Callable[[T], R],
    *,
    workers: int,
    scheduler: str | None = None,
    look_again: Callable[[Sequence[T]], Sequence[T]] = lambda batch: batch,
) -> Generator[R, None, None]:
    """Apply a function to each batch on Dask; results come as they are finished.

    At most two batches a worker are in flight, and batches are taken from the iterable only then. When a worker dies,
    Dask suspects every batch that it held: their items are put aside, and at the end each is tried in a batch of its
    own with nothing else on the cluster. One that kills its worker again is given to `died`.

    A worker of an existing scheduler that cannot do the work (another version of this package, or the function raises
    `UnfitWorkerError`) is retired with a warning, and its batch is done by another one.

    Args:
        function: Runs in a worker; it, its arguments and results must be picklable.
        batches: What to apply it to.
        died: Makes the result of an item whose worker died, in this process.
        workers: Processes of a cluster on this machine, closed at the end.
        scheduler: An existing Dask scheduler instead: its address, or `file://` and the path of its scheduler file.
        look_again: Makes a batch that a worker found unfit for itself anew; where it comes out different, the fault
            was the batch's and the worker is kept.

    Raises:
        ClusterError: The scheduler cannot be reached, was lost on the way, or has none but unfit workers.
    """
    from distributed import KilledWorker, as_completed
    from distributed.comm.core import CommClosedError

    with ExitStack() as stack:
        for name in ("distributed.client", "tornado.application"):  # what matters of it is raised here
            _silence(stack, name)
        crew: _Crew | None = None
        if scheduler is None:
            client = stack.enter_context(_own_cluster(stack, workers))
        else:
            client = stack.enter_context(_connected(scheduler))
            crew = _Crew(client, scheduler)
        if link := _dashboard(client):
            _logger.info("Dask's dashboard: %s", link)
        waiting, suspects, given_back = iter(batches), deque[T](), deque[Sequence[T]]()
        flying: dict[Any, tuple[Sequence[T], bool]] = {}  # future → batch, whether it has the cluster for itself
        completed = as_completed()  # type: ignore[no-untyped-call]

        def submit(batch: Sequence[T], *, alone: bool = False) -> None:
            call = (function, batch) if crew is None else (crew.answer, packed(function, batch))
            future = client.submit(*call, pure=False)
            flying[future] = (batch, alone)
            completed.add(future)  # type: ignore[no-untyped-call]

        def fill() -> None:
            slots = 2 * max(1, _threads(client))
            while len(flying) < slots and given_back:
                submit(given_back.popleft())
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
            else:
                if crew is not None:
                    answer = Answer(*result)
                    crew.note(answer)
                    if not answer.fit:
                        renewed = look_again(batch)
                        if alone:
                            suspects.extend(renewed)
                        else:
                            given_back.append(renewed)
                        future.release()  # Dask lets no worker go that holds what somebody may want
                        if renewed != batch or crew.retire(answer) or not flying:
                            fill()
                        continue
                    result = answer.value
            yield result
            fill()


class _Crew:
    """The workers of an existing scheduler.

    Attributes:
        answer: What to submit with a `packed` call, in the place of a function.
    """

    def __init__(self, client: Any, scheduler: str) -> None:
        self._client, self._scheduler = client, scheduler
        self._reasons: dict[str, str] = {}  # address of a retired worker → why
        self._noted: set[tuple[str, str]] = set()
        self.answer = answering()
        for address, about in _versions(client)["workers"].items():
            python = about["packages"]["python"]
            if python.split(".")[:2] != [str(part) for part in sys.version_info[:2]]:
                here = ".".join(map(str, sys.version_info[:2]))
                self.retire(Answer(address, address, False, f"it runs Python {python}, not {here} as here", ()))
        threads = client.nthreads()
        if not threads:
            _logger.warning("no worker has joined the Dask scheduler at %s yet: waiting for one", scheduler)
        if any(count > 1 for count in threads.values()):
            _logger.warning(
                "workers have up to %d threads: start them with --nthreads 1 (and more of them), a clip's time limit "
                "and the decoders are made for one",
                max(threads.values()),
            )

    def note(self, answer: Answer) -> None:
        """Tell what differs on a host, once."""
        for other in answer.others if answer.fit else ():
            if (answer.host, other) not in self._noted:
                self._noted.add((answer.host, other))
                _logger.warning("host %s has %s: its features may differ in the last bits", answer.host, other)

    def retire(self, answer: Answer) -> bool:
        """Take an unfit worker out of the cluster; returns whether it has gone.

        Raises:
            ClusterError: It was the last one, and no other one comes within a minute.
        """
        if answer.worker not in self._reasons:
            self._reasons[answer.worker] = reason = f"worker {answer.worker} on {answer.host}: {answer.value}"
            _logger.warning("retired %s", reason)
        if not self._gone(answer.worker):
            return False
        if not _threads(self._client):
            try:
                self._client.wait_for_workers(1, timeout=_PATIENCE)
            except (TimeoutError, asyncio.TimeoutError) as error:  # one and the same from Python 3.11 on
                listed = "; ".join(self._reasons.values())
                raise ClusterError(
                    f"no worker of the Dask scheduler at {self._scheduler} can do this ({listed}): mend it, start them "
                    "again and run the same command again"
                ) from error
        return True

    def _gone(self, worker: str) -> bool:
        for _ in range(10):
            if self._client.retire_workers([worker]) or worker not in self._client.nthreads():
                return True
            time.sleep(0.05)  # until the scheduler has heard that its answer is not wanted any more
        return False


def _silence(stack: ExitStack, name: str) -> None:
    """No line of a logger until the stack closes."""
    logger = logging.getLogger(name)
    stack.callback(logger.setLevel, logger.level)
    logger.setLevel(logging.CRITICAL + 1)


def _own_cluster(stack: ExitStack, workers: int) -> Any:
    """A client of a cluster on this machine that closes with the stack."""
    from dask import config
    from distributed import Client, LocalCluster

    from bmlpipe.pipeline.cluster.local_worker import LocalWorker

    _silence(stack, "distributed")  # of workers that die: they are dealt with and told by their clips' rows
    stack.enter_context(config.set(_SETTINGS))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Port \d+ is already in use")
        cluster = LocalCluster(  # type: ignore[no-untyped-call]
            n_workers=workers,
            threads_per_worker=1,
            processes=True,
            dashboard_address=_DASHBOARD if importlib.util.find_spec("bokeh") else None,
            silence_logs=logging.CRITICAL,
        )
    client = Client(stack.enter_context(cluster))  # type: ignore[no-untyped-call]
    client.register_plugin(LocalWorker(*log_settings()[:2]), name="bmlpipe-local-worker")
    return client


def _connected(scheduler: str) -> Any:
    """A client of an existing scheduler.

    Raises:
        ClusterError: It does not answer.
    """
    from distributed import Client

    try:
        if not scheduler.startswith(_FILE):
            return Client(scheduler)  # type: ignore[no-untyped-call]
        path = Path(scheduler.removeprefix(_FILE))
        if not path.is_file():  # Dask would wait for it for ever
            raise ClusterError(f"there is no scheduler file {path}: start `dask scheduler --scheduler-file {path}`")
        return Client(scheduler_file=str(path))  # type: ignore[no-untyped-call]
    except (OSError, ValueError) as error:
        raise ClusterError(f"no Dask scheduler answers at {scheduler} ({error}): is its address right?") from error


def _dashboard(client: Any) -> str | None:
    """Address of Dask's dashboard, where the scheduler has one that works: without bokeh it is a page that says so."""
    if _versions(client)["scheduler"]["packages"]["bokeh"] is None:
        return None
    try:
        return client.dashboard_link or None
    except KeyError:  # started without
        return None


def _versions(client: Any) -> Any:
    return client.get_versions(packages=["bokeh"])


def _threads(client: Any) -> int:
    try:
        return sum(client.nthreads().values())
    except (OSError, CancelledError) as error:
        raise ClusterError(_LOST) from error
