"""The tracking services, Weights & Biases and MLflow, configured by their own environment variables."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, Protocol

Outcome = Literal["finished", "failed", "stopped"]
Values = Mapping[str, float]

_PROJECT = "bmlpipe"  # W&B project and MLflow experiment, unless their environment variables name another


class Service(Protocol):
    """A connection to a service. Every call may take long, or raise any exception."""

    def log(self, values: Values, step: int) -> None:
        """Send the numbers of a step."""

    def close(self, outcome: Outcome) -> None:
        """Send everything that is left, and how the run ended."""


def _title(folder: Path) -> str:
    """Name a run for the services: `opm/seed-0` for the folder runs/opm/seed-0."""
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
        experiment = self._client.get_experiment_by_name(name)
        return str(experiment.experiment_id if experiment else self._client.create_experiment(name))

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
