"""Read a run's folder, as far as it can be read, with a note on everything that cannot."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import yaml

from bmlpipe.train.config.options import ConfigError
from bmlpipe.train.runs.folder import RunFolder
from bmlpipe.train.runs.journal_reader import Faults, Row, Values, read_columns, read_rows
from bmlpipe.train.runs.traces import Trace, trace
from bmlpipe.train.tasks.metric_names import SELECTION_METRIC


@dataclass(frozen=True)
class Note:
    """A problem of a file, and its consequence for the report.

    Attributes:
        file: Path of the file.
        text: The problem and its consequence.
    """

    file: str
    text: str


@dataclass(frozen=True)
class Run:
    """The content of a run's folder.

    Attributes:
        folder: The folder.
        config: Resolved options, as `config.yaml` holds them.
        metrics: Rows of `metrics.jsonl`.
        traces: Column of `steps.jsonl` → its course over the steps; also `waiting`, the fraction of the time of a step
            that was spent waiting for data.
        halfway: Column → mean over the steps of the epoch in the middle of the run.
        steps_done: Number of rows of `steps.jsonl`.
        step_seconds: Median time of a step without waiting for data, seconds; None without steps.
        samples_per_s: Mean number of samples per second, waiting included; None without steps.
        waiting: Fraction of the time of all steps that was spent waiting for data; None without steps.
        notes: Problems of the files.
    """

    folder: Path
    config: Mapping[str, Any]
    metrics: Sequence[Row] = ()
    traces: Mapping[str, Trace] = field(default_factory=dict)
    halfway: Mapping[str, float] = field(default_factory=dict)
    steps_done: int = 0
    step_seconds: float | None = None
    samples_per_s: float | None = None
    waiting: float | None = None
    notes: Sequence[Note] = ()

    @property
    def modalities(self) -> tuple[str, ...]:
        """Modalities of the configuration."""
        return tuple(map(str, self.config.get("modalities") or ()))

    @property
    def modulation(self) -> str:
        """Modulation of the configuration."""
        return str(self.config.get("modulation", "none"))

    @property
    def seed(self) -> str:
        """Seed of the configuration, as text."""
        return str(self.config.get("seed", "–"))

    @property
    def final(self) -> Row | None:
        """The row of the test split or, without one, the best row of validation; None without any row."""
        tests = [row for row in self.metrics if row.get("split") == "test"]
        if tests:
            return tests[-1]
        return max(self.metrics, key=lambda row: number(row, SELECTION_METRIC, -1.0), default=None)

    @property
    def epochs_done(self) -> int:
        """Number of epochs that were evaluated on validation."""
        return len({row.get("epoch") for row in self.metrics if row.get("split") == "val"})

    @property
    def finished(self) -> bool:
        """Whether the run was trained to its end."""
        epochs = self.config.get("epochs")
        tested = any(row.get("split") == "test" for row in self.metrics)
        return tested or (isinstance(epochs, int) and self.epochs_done >= epochs)


def number(row: Row, name: str, default: float = math.nan) -> float:
    """Return the value `name` of a row if it is a finite number, else `default`."""
    value = row.get(name)
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else default


def read_run(folder: Path) -> Run:
    """Read the options and journals of a run, which may still be running.

    Raises:
        ConfigError: The folder holds no run, or its options cannot be read.
    """
    files = RunFolder(folder)
    config = _read_config(files.config)
    metrics_faults, faults = Faults(), Faults()
    metrics = read_rows(files.metrics, metrics_faults) if files.metrics.is_file() else []
    columns = read_columns(files.steps, faults) if files.steps.is_file() else {}
    notes = _journal_notes(files.metrics, metrics_faults, len(metrics), "no accuracies of this run")
    steps, columns = _rows_with_step(columns)
    notes += _journal_notes(files.steps, faults, len(steps), "nothing of this run over its steps")
    notes += _number_notes(files.steps, steps, columns)
    run = Run(folder, config, metrics, steps_done=len(steps), notes=notes, **_summarise(steps, columns, config))
    return run if run.finished else replace(run, notes=[_unfinished_note(run, files), *run.notes])


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(
            f"{path.parent} holds no run ({path.name} is missing): name folders that a training has written"
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read as YAML ({error}): restore it, or leave this run out") from error
    if not isinstance(config, dict):
        raise ConfigError(f"{path} holds no options: restore it, or leave this run out")
    return {str(name): value for name, value in config.items()}


def _rows_with_step(columns: dict[str, Values]) -> tuple[npt.NDArray[np.int64], dict[str, Values]]:
    """Return the step of each row, (N,), and the columns, without the rows that have no step."""
    steps = columns.get("step", np.empty(0))
    known = np.isfinite(steps) & (steps >= 0) & (steps < 2**53)
    if not known.all():
        columns = {name: values[known] for name, values in columns.items()}
    return steps[known].astype(np.int64), columns


def _summarise(
    steps: npt.NDArray[np.int64], columns: Mapping[str, Values], config: Mapping[str, Any]
) -> dict[str, Any]:
    """Compute the attributes of `Run` that come from the columns of `steps.jsonl`."""
    if not len(steps):
        return {}
    nothing = np.full(len(steps), np.nan)
    waited, lasted = columns.get("data_s", nothing), columns.get("step_s", nothing)
    timed = np.isfinite(waited) & np.isfinite(lasted) & (lasted > 0)
    drawn = {name: values for name, values in columns.items() if name not in ("step", "epoch")}
    if timed.any():
        drawn["waiting"] = np.where(timed, waited / np.where(timed, lasted, 1), np.nan)
    epochs = columns.get("epoch", nothing)
    planned = config.get("epochs")
    middle = epochs == (planned // 2 if isinstance(planned, int) else np.nanmax(epochs, initial=0) // 2)
    halfway = {name: values[middle & np.isfinite(values)] for name, values in columns.items()}
    whole = timed & np.isfinite(columns.get("samples", nothing))
    return {
        "traces": {name: trace(steps, values) for name, values in drawn.items()},
        "halfway": {name: float(values.mean()) for name, values in halfway.items() if len(values)},
        "step_seconds": float(np.median((lasted - waited)[timed])) if timed.any() else None,
        "samples_per_s": float(columns["samples"][whole].sum() / lasted[whole].sum()) if whole.any() else None,
        "waiting": float(waited[timed].sum() / lasted[timed].sum()) if timed.any() else None,
    }


def _journal_notes(path: Path, faults: Faults, rows: int, without: str) -> list[Note]:
    """Note the lines of a journal that were left out."""
    if not path.is_file():
        return [Note(str(path), f"is missing: the page shows {without}")]
    notes = []
    if not rows:
        notes.append(Note(str(path), f"has no rows: the page shows {without}"))
    if faults.lines:
        more = ", …" if faults.lines > len(faults.first) else ""
        listed = ", ".join(map(str, faults.first)) + more
        which = f"line {listed} is" if faults.lines == 1 else f"lines {listed} are"
        count = "" if faults.lines == 1 else f" ({faults.lines} in all)"
        text = f"{which} no JSON object{count}: left out, all other lines are shown"
        notes.append(Note(str(path), text))
    if faults.cut is not None:
        text = f"line {faults.cut}, the last one, is incomplete (being written, or cut by a kill): left out"
        notes.append(Note(str(path), text))
    return notes


def _number_notes(path: Path, steps: npt.NDArray[np.int64], columns: Mapping[str, Values]) -> list[Note]:
    """Note the columns with values that are not finite; one note for columns that have them at the same steps."""
    found: dict[tuple[int, int], list[str]] = {}
    for name, values in columns.items():
        missing = ~np.isfinite(values)
        if missing.any():
            found.setdefault((int(missing.sum()), int(steps[missing.argmax()])), []).append(name)
    return [
        Note(
            str(path),
            f"{', '.join(names)}: not a finite number (NaN and inf are null in the journal) in {count:,} of "
            f"{len(steps):,} rows, first at step {first:,}: these rows are gaps in the figures",
        )
        for (count, first), names in found.items()
    ]


def _unfinished_note(run: Run, files: RunFolder) -> Note:
    written = max((path.stat().st_mtime for path in (files.steps, files.metrics) if path.is_file()), default=None)
    when = f", last written {datetime.fromtimestamp(written):%Y-%m-%d %H:%M:%S}" if written else ""
    text = (
        f"not finished: {run.epochs_done} of {run.config.get('epochs', '?')} epochs evaluated, {run.steps_done:,} steps"
        f"{when}; shown as far as it is"
    )
    return Note(str(run.folder), text)
