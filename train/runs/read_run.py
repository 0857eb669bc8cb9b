"""What a run left in its folder, read as far as it can be, with a note on all that cannot."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from bmlpipe.train.config.options import ConfigError, TrainConfig
from bmlpipe.train.runs.checkpoint import FREE
from bmlpipe.train.runs.journal import METRICS_FILE, STEPS_FILE
from bmlpipe.train.runs.journal_reader import Faults, Row, Values, read_columns, read_rows
from bmlpipe.train.runs.traces import Trace, trace


@dataclass(frozen=True)
class Note:
    """Something about a file that the reader must know: what it is, and what follows from it."""

    file: str
    text: str


@dataclass(frozen=True)
class Run:
    """What a run left.

    Attributes:
        folder: Its folder.
        config: Its resolved options, whichever version of bmlpipe wrote them.
        metrics: Rows of `metrics.jsonl`.
        traces: Column of `steps.jsonl` → what it did over the steps, the share of time spent waiting for data
            (`waiting`) too.
        halfway: Column → mean over the steps of the epoch in the middle of the run.
        steps_done: Rows of `steps.jsonl`.
        step_seconds: Median time of a step, waiting for data left out; None without steps.
        samples_per_s: Over all steps, waiting included; None without steps.
        waiting: Share of the steps' time that was waiting for data; None without steps.
        notes: What could not be read, or is otherwise than it should be.
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
        """Of the configuration."""
        return tuple(map(str, self.config.get("modalities") or ()))

    @property
    def modulation(self) -> str:
        """Of the configuration."""
        return str(self.config.get("modulation", "none"))

    @property
    def seed(self) -> str:
        """Of the configuration, as text."""
        return str(self.config.get("seed", "–"))

    @property
    def final(self) -> Row | None:
        """The test row; without a test split, validation's best; None for a run without any."""
        tests = [row for row in self.metrics if row.get("split") == "test"]
        if tests:
            return tests[-1]
        return max(self.metrics, key=lambda row: number(row, "accuracy", -1.0), default=None)

    @property
    def epochs_done(self) -> int:
        """Epochs that were evaluated on validation."""
        return len({row.get("epoch") for row in self.metrics if row.get("split") == "val"})

    @property
    def finished(self) -> bool:
        """Whether the run came to its end."""
        epochs = self.config.get("epochs")
        tested = any(row.get("split") == "test" for row in self.metrics)
        return tested or (isinstance(epochs, int) and self.epochs_done >= epochs)


def number(row: Row, name: str, otherwise: float = math.nan) -> float:
    """A finite number of a row, or `otherwise`."""
    value = row.get(name)
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else otherwise


def read_run(folder: Path) -> Run:
    """Read a run's configuration and journals; one that is still going on is read as far as it is.

    Raises:
        ConfigError: The folder holds no run.
    """
    path = folder / "config.yaml"
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(
            f"{folder} holds no run (config.yaml is missing): name folders that train/run.py wrote"
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read as YAML ({error}): restore it, or leave this run out") from error
    if not isinstance(config, dict):
        raise ConfigError(f"{path} holds no options: restore it, or leave this run out")
    config = {str(name): value for name, value in config.items()}
    notes = _about_config(path, config)
    metrics_faults, faults = Faults(), Faults()
    metrics = read_rows(folder / METRICS_FILE, metrics_faults) if (folder / METRICS_FILE).is_file() else []
    columns = read_columns(folder / STEPS_FILE, faults) if (folder / STEPS_FILE).is_file() else {}
    notes += _about_file(folder / METRICS_FILE, metrics_faults, len(metrics), "no accuracies of this run")
    steps, columns = _in_steps(columns)
    notes += _about_file(folder / STEPS_FILE, faults, len(steps), "nothing of this run over its steps")
    notes += _about_numbers(folder / STEPS_FILE, steps, columns)
    run = Run(folder, config, metrics, steps_done=len(steps), notes=notes, **_digest(steps, columns, config))
    return run if run.finished else _unfinished(run)


def _in_steps(columns: dict[str, Values]) -> tuple[np.ndarray[Any, np.dtype[np.int64]], dict[str, Values]]:
    """The numbers of the steps, and the columns without rows that have none."""
    at = columns.get("step", np.empty(0))
    known = np.isfinite(at) & (at >= 0) & (at < 2**53)
    if not known.all():
        columns = {name: values[known] for name, values in columns.items()}
    return at[known].astype(np.int64), columns


def _digest(
    steps: np.ndarray[Any, np.dtype[np.int64]], columns: Mapping[str, Values], config: Mapping[str, Any]
) -> dict[str, Any]:
    """What `Run` keeps of a journal's columns."""
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


def _about_config(path: Path, config: Mapping[str, Any]) -> list[Note]:
    """Options of another version of bmlpipe than this one."""
    ours = TrainConfig.__dataclass_fields__
    notes = []
    if unknown := [name for name in config if name not in ours]:
        text = f"has options that this bmlpipe does not know ({', '.join(unknown)}): compared as they stand"
        notes.append(Note(str(path), text))
    if absent := [name for name in ours if name not in config and name not in FREE]:
        text = f"lacks options of this bmlpipe ({', '.join(absent)}): taken as today's defaults"
        notes.append(Note(str(path), text))
    return notes


def _about_file(path: Path, faults: Faults, rows: int, without: str) -> list[Note]:
    """What of a journal's lines was left out."""
    if not path.is_file():
        return [Note(str(path), f"is missing: the page shows {without}")]
    notes = []
    if not rows:
        notes.append(Note(str(path), f"holds no row: the page shows {without}"))
    if faults.lines:
        more = ", …" if faults.lines > len(faults.first) else ""
        which = f"line {faults.first[0]} is" if faults.lines == 1 else f"lines {_listed(faults.first)}{more} are"
        count = "" if faults.lines == 1 else f" ({faults.lines} in all)"
        text = f"{which} no JSON object{count}: left out, every other line is shown"
        notes.append(Note(str(path), text))
    if faults.cut is not None:
        text = f"line {faults.cut}, the last one, is incomplete: it is being written, or a kill cut it; left out"
        notes.append(Note(str(path), text))
    return notes


def _about_numbers(path: Path, steps: np.ndarray[Any, np.dtype[np.int64]], columns: Mapping[str, Values]) -> list[Note]:
    """Columns with values that are not finite; those that fail at the same steps in one note."""
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


def _unfinished(run: Run) -> Run:
    from dataclasses import replace

    files = [path for name in (STEPS_FILE, METRICS_FILE) if (path := run.folder / name).is_file()]
    written = max((path.stat().st_mtime for path in files), default=None)
    when = f", last written {datetime.fromtimestamp(written):%Y-%m-%d %H:%M:%S}" if written else ""
    text = (
        f"not finished: {run.epochs_done} of {run.config.get('epochs', '?')} epochs evaluated, {run.steps_done:,} steps"
        f"{when}; shown as far as it is"
    )
    return replace(run, notes=[Note(str(run.folder), text), *run.notes])


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))
