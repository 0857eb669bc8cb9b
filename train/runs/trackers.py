"""Send the numbers of a run to Weights & Biases and MLflow, configured by their own environment variables.

A request to a service can take seconds or fail, so each service has a thread of its own: no step waits for it, and its
errors are one warning. The package of a service is imported only if the run names it (docs/sweeps.md).
"""

from __future__ import annotations

import importlib.util
import logging
import math
import os
import queue
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, Protocol

from bmlpipe.train.config.options import ConfigError
from bmlpipe.train.runs.journal_reader import Row

_logger = logging.getLogger(__name__)

Outcome = Literal["finished", "failed", "stopped"]
Values = Mapping[str, float]

_HELD = 1000  # rows that wait for a service; beyond that the oldest are dropped
_PROJECT = "bmlpipe"  # W&B project and MLflow experiment, unless their environment variables name another
_SPEED = ("data_s", "step_s", "samples_per_s")


def tags(row: Row) -> dict[str, float]:
    """The finite numbers of a journal row, under names that dashboards group by their first part.

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


class Service(Protocol):
    """A connection to a service. Every call may take long, or raise any exception."""

    def log(self, values: Values, step: int) -> None:
        """Send the numbers of a step."""

    def close(self, outcome: Outcome) -> None:
        """Send everything that is left, and how the run ended."""


class Trackers:
    """Sends the rows of a run to services.

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
        """Tell the services how the run ended, and wait until they have received everything, or for `patience`."""
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
        """Wait for the thread to end; whether it has."""
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


def _title(folder: Path) -> str:
    """Name of a run at the services: `opm/seed-0` for the folder runs/opm/seed-0."""
    return "/".join(folder.absolute().parts[-2:])


class _WandB:
    """Weights & Biases. Rows are plotted over `step`, since its own count of rows cannot go back to a checkpoint."""

    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        import wandb

        id_file = folder / "wandb-run.txt"
        known = id_file.read_text(encoding="utf-8").strip() if id_file.is_file() else uuid.uuid4().hex[:12]
        chosen = {"id": known, "project": _PROJECT, "name": _title(folder)}
        unset = {key: value for key, value in chosen.items() if not os.environ.get(_WANDB_VARIABLES[key])}
        self._run = wandb.init(dir=str(folder), config=dict(config), resume="allow", **unset)
        id_file.write_text(f"{self._run.id}\n", encoding="utf-8")
        self._run.define_metric("*", step_metric="step")

    def log(self, values: Values, step: int) -> None:
        self._run.log({**values, "step": step})

    def close(self, outcome: Outcome) -> None:
        if outcome == "stopped":
            self._run.mark_preempting()
        self._run.finish(exit_code=int(outcome != "finished"))


_WANDB_VARIABLES = {"id": "WANDB_RUN_ID", "project": "WANDB_PROJECT", "name": "WANDB_NAME"}


class _MLflow:
    """MLflow, at the server that MLFLOW_TRACKING_URI names."""

    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        import mlflow
        from mlflow.entities import Metric, Param
        from mlflow.exceptions import MlflowException

        self._metric, self._client = Metric, mlflow.MlflowClient()
        id_file = folder / "mlflow-run.txt"
        known = id_file.read_text(encoding="utf-8").strip() if id_file.is_file() else os.environ.get("MLFLOW_RUN_ID")
        if known:
            try:
                self._client.update_run(known, status="RUNNING")
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
                known = None  # the run is on another server
        if not known:
            run = self._client.create_run(self._experiment(), run_name=_title(folder))
            known = run.info.run_id
            params = [Param(name, str(value)[:500]) for name, value in config.items()]
            self._client.log_batch(known, params=params)
            id_file.write_text(f"{known}\n", encoding="utf-8")
        self._id = known

    def _experiment(self) -> str:
        if given := os.environ.get("MLFLOW_EXPERIMENT_ID"):
            return given
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or _PROJECT
        there = self._client.get_experiment_by_name(name)
        return str(there.experiment_id if there else self._client.create_experiment(name))

    def log(self, values: Values, step: int) -> None:
        now = time.time_ns() // 1_000_000
        self._client.log_batch(
            self._id, metrics=[self._metric(name, value, now, step) for name, value in values.items()]
        )

    def close(self, outcome: Outcome) -> None:
        status = {"finished": "FINISHED", "failed": "FAILED", "stopped": "KILLED"}[outcome]
        self._client.set_terminated(self._id, status=status)


#: Name of a service, which is that of its package → its class, called with the folder and the options of the run.
SERVICES: dict[str, Callable[[Path, Mapping[str, Any]], Service]] = {"wandb": _WandB, "mlflow": _MLflow}
