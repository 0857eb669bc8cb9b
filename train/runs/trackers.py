"""Send the numbers of a run to tracking services, without making a step wait for them.

A request to a service can take seconds or fail, so each service has a thread of its own, and its errors are one
warning. The package of a service is imported only if the run names it (docs/sweeps.md).
"""

from __future__ import annotations

import importlib.util
import logging
import math
import queue
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from bmlpipe.train.config.options import ConfigError
from bmlpipe.train.runs.journal_reader import Row
from bmlpipe.train.runs.tracker_services import SERVICES, Outcome, Values

_logger = logging.getLogger(__name__)

_HELD = 1000  # rows that wait for a service; beyond that the oldest are dropped
_SPEED = ("data_s", "step_s", "samples_per_s")


def tags(row: Row) -> dict[str, float]:
    """Return the finite numbers of a journal row, under names that dashboards group by their first part.

    Examples:
        >>> tags({"step": 3, "loss": 0.5, "rho/audio": 1.25, "step_s": 0.125})
        {'train/loss': 0.5, 'rho/audio': 1.25, 'speed/step_s': 0.125}
        >>> tags({"step": 4, "split": "val", "accuracy": 0.75, "accuracy/audio": 0.5})
        {'val/accuracy': 0.75, 'val/accuracy/audio': 0.5}
    """
    split = row.get("split")
    found = {}
    for name, value in row.items():
        if isinstance(value, float) and math.isfinite(value):
            group = f"{split}/" if split else "" if "/" in name else "speed/" if name in _SPEED else "train/"
            found[group + name] = value
    return found


class Trackers:
    """Sender of a run's rows to tracking services.

    Args:
        names: Names of services, keys of `SERVICES`.
        folder: Folder of the run. It keeps the id of the run at each service, so that a resumed run continues there.
        config: Options of the run.
        every: Seconds between two steps whose rows are sent; the journal holds the rows of all steps.
        patience: Seconds that the end of the run waits for the services.

    Raises:
        ConfigError: A service is unknown, or its package is not installed.
    """

    def __init__(
        self,
        names: Sequence[str],
        folder: Path,
        config: Mapping[str, Any],
        *,
        every: float = 1.0,
        patience: float = 30.0,
    ) -> None:
        check_installed(names)
        self._senders = [_Sender(name, folder, config) for name in names]
        self._every, self._patience = every, patience
        self._last_step_sent = -math.inf

    def step(self, values: Values, step: int) -> None:
        """Send the numbers of a step, unless those of another step were sent less than `every` seconds ago."""
        now = time.monotonic()
        if now - self._last_step_sent >= self._every:
            self._last_step_sent = now
            self.metrics(values, step)

    def metrics(self, values: Values, step: int) -> None:
        """Send the numbers of an evaluation."""
        for sender in self._senders:
            sender.put((values, step))

    def close(self, outcome: Outcome) -> None:
        """Send the outcome of the run, and wait until the services have received everything, or for `patience`."""
        for sender in self._senders:
            sender.put(outcome)
        end = time.monotonic() + self._patience
        for sender in self._senders:
            if not sender.wait(max(0.0, end - time.monotonic())):
                _logger.warning("%s did not receive the last rows within %g s", sender.name, self._patience)


def check_installed(names: Sequence[str]) -> None:
    """Check that services exist and their packages are installed, without importing them.

    Raises:
        ConfigError: A service is unknown, or its package is not installed.
    """
    for name in names:
        if name not in SERVICES:
            raise ConfigError(f"trackers: {name!r} is not a service: choose among {', '.join(SERVICES)}")
        if importlib.util.find_spec(name) is None:
            raise ConfigError(f"trackers: {name} is not installed: pip install 'bmlpipe[{name}]'")


class _Sender:
    """A queue of rows, and the thread that sends them to one service."""

    def __init__(self, name: str, folder: Path, config: Mapping[str, Any]) -> None:
        importlib.import_module(name)  # not in the thread: loader processes are forked meanwhile
        self.name, self._folder, self._config = name, folder, config
        self._queue = queue.Queue[tuple[Values, int] | Outcome](_HELD)
        self._warned = False
        self._thread = threading.Thread(target=self._run, name=f"tracker {name}", daemon=True)
        self._thread.start()

    def put(self, item: tuple[Values, int] | Outcome) -> None:
        """Add a row, or at the end the outcome of the run; on a full queue the oldest row is dropped."""
        while True:
            try:
                self._queue.put_nowait(item)
            except queue.Full:
                self._warn("is too slow, its oldest rows are dropped")
                with suppress(queue.Empty):
                    self._queue.get_nowait()
            else:
                return

    def wait(self, seconds: float) -> bool:
        """Wait for the thread to end, and return whether it has."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            service = SERVICES[self.name](self._folder, self._config)
        except Exception as error:  # any exception of a service's package: training continues
            self._warn(f"cannot be reached, so it does not track this run ({type(error).__name__}: {error})")
            return
        while True:
            item = self._queue.get()
            try:
                if isinstance(item, str):
                    service.close(item)
                    return
                service.log(*item)
            except Exception as error:  # as above; the next row may succeed
                self._warn(f"did not accept a row ({type(error).__name__}: {error})")
                if isinstance(item, str):
                    return

    def _warn(self, problem: str) -> None:
        if not self._warned:
            self._warned = True
            _logger.warning("%s %s; training continues and the journal is complete (warned once)", self.name, problem)
