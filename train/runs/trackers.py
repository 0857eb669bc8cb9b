"""Weights & Biases and MLflow: a run's numbers sent there too, by their own environment variables (docs/sweeps.md).

Each service has a thread of its own, so that a slow or lost connection never holds up a step, and its package is
imported only where it is named. What goes wrong there is a warning, once.
"""

from __future__ import annotations

import importlib.util
import logging
import math
import os
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

from bmlpipe.train.config.options import ConfigError
from bmlpipe.train.runs.journal_reader import Row

_logger = logging.getLogger(__name__)

Outcome = Literal["finished", "failed", "stopped"]
Values = Mapping[str, float]

_HELD = 1000  # rows that wait for a service; then the oldest are dropped
_PATIENCE = 30.0  # seconds that the end of a run waits for a service
_PROJECT = "bmlpipe"  # of W&B, and experiment of MLflow, where no variable names one
_SPEED = ("data_s", "step_s", "samples_per_s")


def tags(row: Row) -> dict[str, float]:
    """The finite numbers of a journal row under names that boards group by their first part.

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
    """What a service does with a run; every call may take long, or fail."""

    def log(self, values: Values, step: int) -> None:
        """Send numbers of a step."""

    def close(self, outcome: Outcome) -> None:
        """Send what is left, and how the run ended."""


class Trackers:
    """Sends a run's rows to services.

    Args:
        names: Of `SERVICES`.
        folder: Of the run; keeps the id under which a service knows it, so that a resumed run goes on there.
        config: The run's options.
        every: Seconds between the steps' rows that are sent; the journal has them all.

    Raises:
        ConfigError: The package of a service is not installed.
    """

    def __init__(self, names: Sequence[str], folder: Path, config: Mapping[str, Any], *, every: float = 1.0) -> None:
        check_installed(names)
        self._channels = [_Channel(name, folder, config) for name in names]
        self._every = every
        self._sent = -math.inf

    def step(self, values: Values, step: int) -> None:
        """Hand over a step's numbers."""
        now = time.monotonic()
        if now - self._sent >= self._every:
            self._sent = now
            self.metrics(values, step)

    def metrics(self, values: Values, step: int) -> None:
        """Hand over an evaluation's numbers."""
        for channel in self._channels:
            channel.put(values, step)

    def close(self, outcome: Outcome) -> None:
        """Give the services a while to take what is left."""
        for channel in self._channels:
            channel.end(outcome)
        until = time.monotonic() + _PATIENCE
        for channel in self._channels:
            channel.join(max(0.0, until - time.monotonic()))


def check_installed(names: Sequence[str]) -> None:
    """Look for the services' packages without importing them.

    Raises:
        ConfigError: One is not known, or not installed.
    """
    for name in names:
        if name not in SERVICES:
            raise ConfigError(f"trackers: {name!r} is not known: choose among {', '.join(SERVICES)}")
        if importlib.util.find_spec(name) is None:
            raise ConfigError(f"trackers names {name}, which is not installed: pip install 'bmlpipe[{name}]'")


class _Channel:
    """Rows on their way to one service, in a thread of its own."""

    def __init__(self, name: str, folder: Path, config: Mapping[str, Any]) -> None:
        importlib.import_module(name)  # here and not in the thread: loader workers are forked meanwhile
        self._name, self._folder, self._config = name, folder, config
        self._rows: deque[tuple[Values, int]] = deque(maxlen=_HELD)
        self._outcome: Outcome | None = None
        self._changed = threading.Condition()
        self._lost = self._warned = False
        self._thread = threading.Thread(target=self._run, name=f"tracker {name}", daemon=True)
        self._thread.start()

    def put(self, values: Values, step: int) -> None:
        with self._changed:
            late = len(self._rows) == _HELD
            self._rows.append((values, step))
            self._changed.notify()
        if late and not self._lost:
            self._warn("does not keep up; the oldest rows are left out")

    def end(self, outcome: Outcome) -> None:
        with self._changed:
            self._outcome = outcome
            self._changed.notify()

    def join(self, seconds: float) -> None:
        self._thread.join(seconds)
        if self._thread.is_alive():
            _logger.warning("%s has not taken the last rows within %g s; left behind", self._name, _PATIENCE)

    def _run(self) -> None:
        try:
            service = SERVICES[self._name](self._folder, self._config)
        except Exception as error:  # whatever another package raises, training goes on
            self._lost = True
            self._warn(f"cannot be reached, the run is not tracked there ({type(error).__name__}: {error})")
            return
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._rows or self._outcome)
                row = self._rows.popleft() if self._rows else None
            try:
                if row is None:
                    assert self._outcome is not None
                    service.close(self._outcome)
                    return
                service.log(*row)
            except Exception as error:  # as above; the next row may get through
                self._warn(f"has not taken a row ({type(error).__name__}: {error})")
                if row is None:
                    return

    def _warn(self, what: str) -> None:
        if not self._warned:
            self._warned = True
            _logger.warning("%s %s; training goes on, its journal has every row (said once)", self._name, what)


def _title(folder: Path) -> str:
    """`opm/seed-0` for runs/opm/seed-0."""
    return "/".join(folder.absolute().parts[-2:])


class _WandB:
    """Weights & Biases; rows stand over `step`, since its own count of rows cannot go back to a checkpoint."""

    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        import wandb

        memory = folder / "wandb-run.txt"
        known = memory.read_text(encoding="utf-8").strip() if memory.is_file() else uuid.uuid4().hex[:12]
        chosen = {"id": known, "project": _PROJECT, "name": _title(folder)}
        unset = {key: value for key, value in chosen.items() if not os.environ.get(_WANDB_VARIABLES[key])}
        self._run = wandb.init(dir=str(folder), config=dict(config), resume="allow", **unset)
        memory.write_text(f"{self._run.id}\n", encoding="utf-8")
        self._run.define_metric("*", step_metric="step")

    def log(self, values: Values, step: int) -> None:
        self._run.log({**values, "step": step})

    def close(self, outcome: Outcome) -> None:
        if outcome == "stopped":
            self._run.mark_preempting()
        self._run.finish(exit_code=int(outcome != "finished"))


_WANDB_VARIABLES = {"id": "WANDB_RUN_ID", "project": "WANDB_PROJECT", "name": "WANDB_NAME"}


class _MLflow:
    """MLflow, at MLFLOW_TRACKING_URI."""

    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        import mlflow
        from mlflow.entities import Metric, Param
        from mlflow.exceptions import MlflowException

        self._metric, self._client = Metric, mlflow.MlflowClient()
        memory = folder / "mlflow-run.txt"
        known = memory.read_text(encoding="utf-8").strip() if memory.is_file() else os.environ.get("MLFLOW_RUN_ID")
        if known:
            try:
                self._client.update_run(known, status="RUNNING")
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
                known = None  # it is another server's
        if not known:
            run = self._client.create_run(self._experiment(), run_name=_title(folder))
            known = run.info.run_id
            params = [Param(name, str(value)[:500]) for name, value in config.items()]
            self._client.log_batch(known, params=params)
            memory.write_text(f"{known}\n", encoding="utf-8")
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


#: Name of a package → what sends a run there: made with the run's folder and options.
SERVICES: dict[str, Callable[[Path, Mapping[str, Any]], Service]] = {"wandb": _WandB, "mlflow": _MLflow}
