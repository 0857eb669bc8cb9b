"""What a worker process of this machine's own Dask cluster is told at its start."""

from __future__ import annotations

import signal

from distributed import WorkerPlugin

from bmlpipe.manifests.common.logs import configure


class LocalWorker(WorkerPlugin):
    """Set up each worker process as it starts, those that replace others included.

    Ctrl-C reaches all processes of a terminal; only the one that gave out the work shall answer it. Log lines are made
    as that one makes them.

    Args:
        form: See `logs.configure`.
        level: See there.
    """

    def __init__(self, form: str, level: int) -> None:
        self._form, self._level = form, level

    def setup(self, worker: object) -> None:
        """Called by Dask in the worker's main thread."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        configure(self._form, self._level)
