"""Set-up of the worker processes of this machine's own Dask cluster."""

from __future__ import annotations

import signal

from distributed import WorkerPlugin

from bmlpipe.manifests.common.logs import configure


class LocalWorker(WorkerPlugin):
    """The set-up of each worker process when it starts, also of one that replaces a dead worker.

    Ctrl-C reaches every process of a terminal, but only the process that hands out the work may react to it. Log lines
    have the format and level of that process.

    Args:
        log_format: As for `logs.configure`.
        log_level: As for `logs.configure`.
    """

    def __init__(self, log_format: str, log_level: int) -> None:
        self._log_format, self._log_level = log_format, log_level

    def setup(self, worker: object) -> None:
        """Set up a worker; Dask calls this in the worker's main thread."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        configure(self._log_format, self._log_level)
