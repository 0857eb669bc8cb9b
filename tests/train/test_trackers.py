"""What W&B, MLflow and TensorBoard receive of a run; training never depends on it."""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
import time
import types
from pathlib import Path
from typing import Any

import pytest

from bmlpipe.train.config.options import ConfigError
from bmlpipe.train.config.parsing import parse
from bmlpipe.train.run import train
from bmlpipe.train.runs import trackers
from bmlpipe.train.runs.journal import Journal
from bmlpipe.train.runs.trackers import Trackers, check_installed, tags

SMALL = {"encoder": "cnn4", "image_size": 32, "batch_size": 24, "workers": 0, "device": "cpu", "modulation": "opm"}


class FakeRun:
    def __init__(self, calls: list[Any], name: str) -> None:
        self.calls, self.id = calls, name

    def define_metric(self, *names: str, **options: str) -> None:
        self.calls.append(("define_metric", names, options))

    def log(self, values: dict[str, float]) -> None:
        self.calls.append(("log", values))

    def mark_preempting(self) -> None:
        self.calls.append(("mark_preempting",))

    def finish(self, exit_code: int) -> None:
        self.calls.append(("finish", exit_code))


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """A module of that name which only remembers its calls."""
    calls: list[Any] = []
    module = types.ModuleType("wandb")
    module.__spec__ = types.SimpleNamespace()  # type: ignore[assignment]

    def init(**options: Any) -> FakeRun:
        calls.append(("init", options))
        return FakeRun(calls, options.get("id", "given"))

    module.init = init  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", module)
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    return calls


class FakeMlflow:
    """MLflow's client, with runs that outlive it."""

    def __init__(self) -> None:
        self.runs: dict[str, dict[str, Any]] = {}
        self.experiments: dict[str, str] = {}

    def MlflowClient(self) -> FakeMlflow:  # noqa: N802
        return self

    def get_experiment_by_name(self, name: str) -> Any:
        there = self.experiments.get(name)
        return there and types.SimpleNamespace(experiment_id=there)

    def create_experiment(self, name: str) -> str:
        self.experiments[name] = f"experiment {name}"
        return self.experiments[name]

    def create_run(self, experiment: str, run_name: str) -> Any:
        key = f"run-{len(self.runs)}"
        self.runs[key] = {
            "experiment": experiment,
            "name": run_name,
            "params": {},
            "metrics": [],
            "status": ["RUNNING"],
        }
        return types.SimpleNamespace(info=types.SimpleNamespace(run_id=key))

    def update_run(self, key: str, status: str) -> None:
        if key not in self.runs:
            raise FakeMlflowError
        self.runs[key]["status"].append(status)

    def log_batch(self, key: str, metrics: Any = (), params: Any = ()) -> None:
        self.runs[key]["params"] |= dict(params)
        self.runs[key]["metrics"] += list(metrics)

    def set_terminated(self, key: str, status: str) -> None:
        self.runs[key]["status"].append(status)


class FakeMlflowError(Exception):
    error_code = "RESOURCE_DOES_NOT_EXIST"


@pytest.fixture
def mlflow(monkeypatch: pytest.MonkeyPatch) -> FakeMlflow:
    fake = FakeMlflow()
    module = types.ModuleType("mlflow")
    module.__spec__ = types.SimpleNamespace()  # type: ignore[assignment]
    module.MlflowClient = fake.MlflowClient  # type: ignore[attr-defined]
    entities, exceptions = types.ModuleType("mlflow.entities"), types.ModuleType("mlflow.exceptions")
    entities.Metric = lambda *values: values  # type: ignore[attr-defined]
    entities.Param = lambda *values: values  # type: ignore[attr-defined]
    exceptions.MlflowException = FakeMlflowError  # type: ignore[attr-defined]
    for one in (module, entities, exceptions):
        monkeypatch.setitem(sys.modules, one.__name__, one)
    for name in [name for name in os.environ if name.startswith("MLFLOW_")]:
        monkeypatch.delenv(name)
    return fake


def logged(calls: list[Any]) -> list[dict[str, float]]:
    return [call[1] for call in calls if call[0] == "log"]


def test_rows_reach_both_services_and_a_resumed_run_continues_there(
    toy_shards: Path, tmp_path: Path, wandb: list[Any], mlflow: FakeMlflow, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "mine too")
    monkeypatch.setattr(Trackers.__init__, "__kwdefaults__", {"every": 0.0, "patience": 30.0})
    out = tmp_path / "opm" / "seed-0"
    options = {**SMALL, "shards": str(toy_shards), "out": str(out), "tensorboard": False, "trackers": "wandb,mlflow"}
    assert train(parse({**options, "epochs": 1}, "test").resolved()) == 0
    assert train(parse({**options, "epochs": 2, "resume": True}, "test").resolved()) == 0

    inits = [call[1] for call in wandb if call[0] == "init"]
    assert [init["name"] for init in inits] == ["opm/seed-0"] * 2
    assert inits[0]["id"] == inits[1]["id"] == (out / "wandb-run.txt").read_text().strip()
    assert inits[0]["resume"] == "allow"
    assert inits[0]["config"]["modulation"] == "opm"
    assert "project" not in inits[0]  # the variable says it
    assert ("define_metric", ("*",), {"step_metric": "step"}) in wandb
    assert [call for call in wandb if call[0] == "finish"] == [("finish", 0)] * 2

    rows = [json.loads(line) for line in (out / "steps.jsonl").read_text().splitlines()]
    steps = [row for row in logged(wandb) if "train/loss" in row]
    assert [row["step"] for row in steps] == list(range(8))
    for row, sent in zip(rows, steps, strict=True):
        assert (sent["train/loss"], sent["rho/audio"], sent["speed/step_s"]) == (
            row["loss"],
            row["rho/audio"],
            row["step_s"],
        )
    evaluations = [row for row in logged(wandb) if "val/accuracy" in row]
    assert [row["step"] for row in evaluations] == [4, 8]
    assert sum("test/mAP" in row for row in logged(wandb)) == 2

    (run,) = mlflow.runs.values()
    assert (run["experiment"], run["name"]) == ("experiment mine too", "opm/seed-0")
    assert run["params"]["modulation"] == "opm"
    assert run["status"] == ["RUNNING", "FINISHED", "RUNNING", "FINISHED"]
    losses = [(name, value, step) for name, value, _, step in run["metrics"] if name == "train/loss"]
    assert losses == [("train/loss", row["loss"], row["step"]) for row in rows]
    assert not any(name.startswith("bmlpipe tracker") for name in map(str, threading.enumerate()))


@pytest.mark.parametrize(
    ("error", "stopped", "code", "status"),
    [(None, True, 1, "KILLED"), (KeyboardInterrupt(), False, 1, "KILLED"), (ValueError(), False, 1, "FAILED")],
)
def test_the_services_receive_the_outcome_of_a_run(
    tmp_path: Path,
    wandb: list[Any],
    mlflow: FakeMlflow,
    error: BaseException | None,
    stopped: bool,
    code: int,
    status: str,
) -> None:
    def body() -> None:
        sinks = Trackers(["wandb", "mlflow"], tmp_path, {})
        with Journal(tmp_path, tensorboard=False, trackers=sinks) as journal:
            journal.stopped = stopped
            if error is not None:
                raise error

    if error is None:
        body()
    else:
        with pytest.raises(type(error)):
            body()
    assert wandb[-1] == ("finish", code)
    assert (("mark_preempting",) in wandb) == (status == "KILLED")
    assert mlflow.runs["run-0"]["status"][-1] == status


def test_a_run_known_to_another_server_is_created_anew(tmp_path: Path, mlflow: FakeMlflow) -> None:
    (tmp_path / "mlflow-run.txt").write_text("theirs\n")
    Trackers(["mlflow"], tmp_path, {"lr": 0.1}).close("finished")
    assert (tmp_path / "mlflow-run.txt").read_text() == "run-0\n"
    assert mlflow.runs["run-0"]["params"] == {"lr": "0.1"}


class Faulty:
    """A service that fails at a given call, or hangs until it is released."""

    def __init__(self, where: str, free: threading.Event) -> None:
        self.where, self.free, self.taken = where, free, list[int]()
        if where == "start":
            raise ConnectionError("no route")

    def log(self, values: Any, step: int) -> None:
        if self.where == "hang":
            self.free.wait(60)
        if self.where == "log" and step == 0:
            raise OSError("disk full")
        self.taken.append(step)

    def close(self, outcome: str) -> None:
        if self.where == "close":
            raise OSError("cannot sync")


@pytest.mark.parametrize(
    ("where", "said"),
    [
        ("start", "cannot be reached, so it does not track this run (ConnectionError: no route)"),
        ("log", "did not accept a row (OSError: disk full)"),
        ("close", "did not accept a row (OSError: cannot sync)"),
        ("hang", "is too slow, its oldest rows are dropped"),
    ],
)
def test_a_failing_service_only_causes_a_warning(
    where: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    made: list[Faulty] = []
    free = threading.Event()

    def make(folder: Path, config: Any) -> Faulty:
        made.append(Faulty(where, free))
        return made[-1]

    monkeypatch.setitem(trackers.SERVICES, "json", make)
    patience = 0.2 if where == "hang" else 20.0
    rows = 1200 if where == "hang" else 5
    try:
        sinks = Trackers(["json"], tmp_path, {}, every=0.0, patience=patience)
        with Journal(tmp_path, tensorboard=False, trackers=sinks) as journal:
            for step in range(rows):
                journal.step({"step": step, "loss": 1.0})
    finally:
        free.set()
    assert len((tmp_path / "steps.jsonl").read_text().splitlines()) == rows
    warnings = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert warnings[0].startswith(f"json {said}")
    assert len(warnings) == (2 if where == "hang" else 1)
    if where == "hang":
        assert warnings[1] == "json did not receive the last rows within 0.2 s"
    elif where == "log":
        assert made[0].taken == [1, 2, 3, 4]


def test_steps_are_sent_at_intervals_and_evaluations_always(tmp_path: Path, wandb: list[Any]) -> None:
    sinks = Trackers(["wandb"], tmp_path, {}, every=3600.0)
    for step in range(5):
        sinks.step({"train/loss": 1.0}, step)
        sinks.metrics({"val/accuracy": 0.5}, step)
    sinks.close("finished")
    assert [row["step"] for row in logged(wandb) if "train/loss" in row] == [0]
    assert [row["step"] for row in logged(wandb) if "val/accuracy" in row] == [0, 1, 2, 3, 4]


def test_numbers_that_are_not_finite_are_not_sent() -> None:
    row = {"step": 1, "loss": float("nan"), "rho/audio": float("inf"), "k/audio": 1.0, "samples": 3, "mAP": None}
    assert tags(row) == {"k/audio": 1.0}


def test_an_unknown_or_missing_service_is_an_error_before_training(
    toy_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match="'comet' is not a service: choose among wandb, mlflow"):
        check_installed(["comet"])
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: None)
    options = {**SMALL, "shards": str(toy_shards), "out": str(tmp_path / "run"), "trackers": "mlflow", "epochs": 1}
    with pytest.raises(ConfigError, match=r"mlflow is not installed: pip install 'bmlpipe\[mlflow\]'"):
        train(parse(options, "test").resolved())


# ----- the real packages, where they are installed -----


def test_real_mlflow_gets_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "store").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)
    for begin in (0, 2):
        sinks = Trackers(["mlflow"], tmp_path, {"lr": 0.1}, every=0.0)
        for step in (begin, begin + 1):
            sinks.step({"train/loss": 1.0 / (step + 1), "rho/audio": 2.0}, step)
        sinks.close("finished" if begin else "stopped")
    client = real.MlflowClient()
    (run,) = client.search_runs([client.get_experiment_by_name("bmlpipe").experiment_id])
    assert run.info.run_id == (tmp_path / "mlflow-run.txt").read_text().strip()
    assert (run.info.status, run.data.params) == ("FINISHED", {"lr": "0.1"})
    history = client.get_metric_history(run.info.run_id, "train/loss")
    assert sorted((metric.step, metric.value) for metric in history) == [(0, 1.0), (1, 0.5), (2, 1 / 3), (3, 0.25)]


@pytest.mark.slow
def test_real_wandb_gets_the_run_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    for step, outcome in ((7, "stopped"), (8, "finished")):
        sinks = Trackers(["wandb"], tmp_path, {"lr": 0.1}, every=0.0)
        sinks.step({"train/loss": step + 0.123456789}, step)
        sinks.close(outcome)  # type: ignore[arg-type]
        known = (tmp_path / "wandb-run.txt").read_text().strip()
        expected = (b"train/loss", f"{step}.123456789".encode())
        for _ in range(200):  # its own process still writes for a moment
            files = (tmp_path / "wandb").glob(f"offline-run-*/run-{known}.wandb")
            if any(all(part in path.read_bytes() for part in expected) for path in files):
                break
            time.sleep(0.1)
        else:
            pytest.fail(f"no file of run {known} holds step {step}")
    assert not caplog.records


# ----- TensorBoard -----


def test_tensorboard_groups_the_numbers_and_keeps_an_evaluation_before_a_resumed_step(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with Journal(tmp_path) as journal:
        for step in range(6):
            journal.step({"step": step, "loss": 1.0 + step, "lr": 0.1, "rho/audio": 2.0, "step_s": 0.1})
        journal.metrics({"step": 4, "split": "val", "accuracy": 0.25, "accuracy/audio": 0.5})
    with Journal(tmp_path, first_step=4, validated_step=4) as journal:
        journal.step({"step": 5, "loss": 60.0})
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    names = {"train/loss", "train/lr", "rho/audio", "speed/step_s", "val/accuracy", "val/accuracy/audio"}
    assert set(board.Tags()["scalars"]) == names
    assert [(event.step, event.value) for event in board.Scalars("val/accuracy")] == [(4, 0.25)]
    assert [(event.step, event.value) for event in board.Scalars("train/loss")][-1] == (5, 60.0)
    assert [event.step for event in board.Scalars("train/loss")].count(5) == 1


# ----- the line -----
