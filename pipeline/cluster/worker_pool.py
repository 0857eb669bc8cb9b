"""Dask workers: a cluster on this machine, or the workers of an existing scheduler."""

from __future__ import annotations

import asyncio
import importlib.util
import logging
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bmlpipe.manifests.common.errors import BmlpipeError
from bmlpipe.manifests.common.logs import log_settings
from bmlpipe.pipeline.cluster.worker_checks import WorkerReply, pickle_call, remote_caller
from bmlpipe.pipeline.store.versions import installed_versions

_logger = logging.getLogger(__name__)

_DASK_SETTINGS = {
    "distributed.scheduler.allowed-failures": 0,  # `map_batches` decides itself which batches are tried again
    # Dask monitors itself many times per second, which costs a twentieth of an extraction's time.
    "distributed.worker.profile.enabled": False,
    "distributed.admin.tick.interval": "500ms",
    "distributed.admin.tick.cycle": "10s",
    "distributed.admin.system-monitor.interval": "2s",
    "distributed.admin.system-monitor.gil.enabled": False,
    "distributed.scheduler.active-memory-manager.start": False,  # no result is held twice
}
_DASHBOARD_ADDRESS = "127.0.0.1:8787"  # Dask's usual port; another one if it is taken
_FILE_SCHEME = "file://"
_RETIRE_ATTEMPTS, _RETIRE_PAUSE = 10, 0.05  # seconds


class ClusterError(BmlpipeError):
    """The Dask scheduler cannot be reached, was lost, or has no worker that can do the work."""


_SCHEDULER_LOST = "the Dask scheduler was lost: finished work is kept, so run the same command again"


@dataclass(frozen=True)
class LocalWorkers:
    """A Dask cluster of worker processes on this machine.

    Attributes:
        count: Number of worker processes, each with one thread.
        dashboard: Start Dask's dashboard; None: if the package bokeh is installed.
    """

    count: int
    dashboard: bool | None = None

    @contextmanager
    def open(self) -> Iterator[WorkerPool]:
        """Start the cluster. It is closed at the end of the block."""
        from dask import config
        from distributed import Client, LocalCluster

        from bmlpipe.pipeline.cluster.local_worker import LocalWorker

        dashboard = importlib.util.find_spec("bokeh") is not None if self.dashboard is None else self.dashboard
        # Dask's messages about workers that die are silenced: `map_batches` handles them.
        with _silenced("distributed", "distributed.client", "tornado.application"), config.set(_DASK_SETTINGS):
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", r"Port \d+ is already in use")
                cluster = LocalCluster(  # type: ignore[no-untyped-call]
                    n_workers=self.count,
                    threads_per_worker=1,
                    processes=True,
                    dashboard_address=_DASHBOARD_ADDRESS if dashboard else None,
                    silence_logs=logging.CRITICAL,
                )
            with cluster, Client(cluster) as client:  # type: ignore[no-untyped-call]
                client.register_plugin(LocalWorker(*log_settings()[:2]), name="bmlpipe-local-worker")
                yield WorkerPool(client, dashboard)


@dataclass(frozen=True)
class ExistingScheduler:
    """A running Dask scheduler, whose workers may be on other hosts.

    Attributes:
        address: Its address, or `file://` and the path of its scheduler file.
        patience: Seconds to wait for another worker once the last one was unfit.
        versions: Package → version with which the workers are compared; None: the versions installed here.
    """

    address: str
    patience: float = 60
    versions: Mapping[str, str] | None = None

    @contextmanager
    def open(self) -> Iterator[WorkerPool]:
        """Connect to the scheduler. It is left running at the end of the block.

        Raises:
            ClusterError: The scheduler does not answer.
        """
        with _silenced("distributed.client", "tornado.application"), self._connected() as client:
            yield CheckedWorkerPool(client, self)

    def _connected(self) -> Any:
        from distributed import Client

        try:
            if not self.address.startswith(_FILE_SCHEME):
                return Client(self.address)  # type: ignore[no-untyped-call]
            path = Path(self.address.removeprefix(_FILE_SCHEME))
            if not path.is_file():  # Dask would wait for it without limit
                raise ClusterError(f"there is no scheduler file {path}: start `dask scheduler --scheduler-file {path}`")
            return Client(scheduler_file=str(path))  # type: ignore[no-untyped-call]
        except (OSError, ValueError) as error:
            raise ClusterError(f"no Dask scheduler answers at {self.address} ({error}): check its address") from error


class WorkerPool:
    """The workers of a Dask client.

    Args:
        client: The client (`distributed.Client`).
        dashboard: Whether the scheduler may have a working dashboard.
    """

    def __init__(self, client: Any, dashboard: bool) -> None:
        self._client = client
        if dashboard and (link := _dashboard_link(client)):
            _logger.info("Dask's dashboard: %s", link)

    def threads(self) -> int:
        """Count the threads of all workers.

        Raises:
            ClusterError: The scheduler was lost.
        """
        try:
            return sum(self._client.nthreads().values())
        except (OSError, CancelledError) as error:
            raise ClusterError(_SCHEDULER_LOST) from error

    def submit(self, function: Callable[[Sequence[Any]], Any], batch: Sequence[Any]) -> Any:
        """Submit a call; return its future (`distributed.Future`)."""
        return self._client.submit(function, batch, pure=False)

    def reply(self, future: Any) -> WorkerReply:
        """Return the reply to a finished call.

        Raises:
            ClusterError: The scheduler was lost.
            Exception: The exception that the function raised, or `distributed.KilledWorker` if its worker died.
        """
        return WorkerReply(self._result(future))

    def retire(self, reply: WorkerReply) -> bool:
        """Remove an unfit worker from the cluster; return whether it is gone."""
        raise NotImplementedError("workers of this machine are never unfit")

    def _result(self, future: Any) -> Any:
        from distributed.comm.core import CommClosedError

        try:
            return future.result()
        except (CancelledError, CommClosedError) as error:
            raise ClusterError(_SCHEDULER_LOST) from error


class CheckedWorkerPool(WorkerPool):
    """The workers of an existing scheduler: each call checks that its worker is fit, and unfit workers are retired."""

    def __init__(self, client: Any, scheduler: ExistingScheduler) -> None:
        versions = client.get_versions(packages=["bokeh"])
        super().__init__(client, dashboard=versions["scheduler"]["packages"]["bokeh"] is not None)
        self._scheduler = scheduler
        self._caller = remote_caller(installed_versions() if scheduler.versions is None else scheduler.versions)
        self._reasons: dict[str, str] = {}  # address of an unfit worker → why it was retired
        self._reported: set[tuple[str, str]] = set()  # (host, difference)
        here = ".".join(map(str, sys.version_info[:2]))
        for worker, about in versions["workers"].items():  # a call cannot be unpickled under another Python
            python = about["packages"]["python"]
            if python.split(".")[:2] != here.split("."):
                self.retire(WorkerReply(None, f"it runs Python {python}, but this process runs {here}", worker, worker))
        threads = client.nthreads()
        if not threads:
            _logger.warning("no worker has joined the Dask scheduler at %s yet: waiting for one", scheduler.address)
        if any(count > 1 for count in threads.values()):
            _logger.warning(
                "workers have up to %d threads, but the time limit per clip and the decoders are made for one: start "
                "more workers with --nthreads 1 instead",
                max(threads.values()),
            )

    def submit(self, function: Callable[[Sequence[Any]], Any], batch: Sequence[Any]) -> Any:
        """Submit a call that checks its worker first; return its future."""
        return super().submit(self._caller, pickle_call(function, batch))  # type: ignore[arg-type]

    def reply(self, future: Any) -> WorkerReply:
        """Return the reply to a finished call. Version differences are logged once per host."""
        reply = WorkerReply(*self._result(future))
        for difference in reply.differences if reply.unfit is None else ():
            if (reply.host, difference) not in self._reported:
                self._reported.add((reply.host, difference))
                _logger.warning("host %s has %s: its features may differ in the last bits", reply.host, difference)
        return reply

    def retire(self, reply: WorkerReply) -> bool:
        """Remove an unfit worker from the cluster; return whether it is gone.

        Dask keeps a worker that holds the only copy of a result that is still needed, and learns of a released result
        with a short delay.

        Raises:
            ClusterError: It was the last worker, and no other one has joined within the scheduler's patience.
        """
        if reply.worker not in self._reasons:
            self._reasons[reply.worker] = f"worker {reply.worker} on {reply.host}: {reply.unfit}"
            _logger.warning("retired %s", self._reasons[reply.worker])
        for _ in range(_RETIRE_ATTEMPTS):
            if self._client.retire_workers([reply.worker]) or reply.worker not in self._client.nthreads():
                break
            time.sleep(_RETIRE_PAUSE)
        else:
            return False
        if not self.threads():
            self._wait_for_worker()
        return True

    def _wait_for_worker(self) -> None:
        try:
            self._client.wait_for_workers(1, timeout=self._scheduler.patience)
        except (TimeoutError, asyncio.TimeoutError) as error:  # the same class from Python 3.11 on
            raise ClusterError(
                f"no worker of the Dask scheduler at {self._scheduler.address} can do this work "
                f"({'; '.join(self._reasons.values())}): correct this, start the workers and run the same command again"
            ) from error


@contextmanager
def _silenced(*names: str) -> Iterator[None]:
    """Suppress the messages of loggers inside the block; serious ones are raised as exceptions anyway."""
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels):
            logger.setLevel(level)


def _dashboard_link(client: Any) -> str | None:
    try:
        return client.dashboard_link or None
    except KeyError:  # the scheduler was started without one
        return None
