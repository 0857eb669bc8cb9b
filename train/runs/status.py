"""The status file of a training, `status.json` in the run's folder, made from the journal on disk."""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bmlpipe.manifests.common.status_file import StatusFile
from bmlpipe.train.config.options import TrainConfig
from bmlpipe.train.runs.folder import RunFolder
from bmlpipe.train.runs.journal_reader import Row

_RECENT = 32_768  # bytes at the end of a journal that are read: some dozens of rows
_COLUMNS = {"step", "epoch", "step_s", "data_s", "samples_per_s"}  # columns of a step's row that are used here


def run_status(config: TrainConfig, steps: int) -> StatusFile:
    """Make the status file of a run. Its own thread reads the last rows of the journal, so no step waits for it.

    Args:
        config: Resolved options of the run.
        steps: Number of steps of the whole run.
    """
    folder = RunFolder(Path(config.out))
    about = {"dataset": config.dataset, "modulation": config.modulation, "epochs": config.epochs, "steps": steps}
    return StatusFile(folder.path, lambda: {**about, **progress(folder, steps)})


def progress(folder: RunFolder, steps: int) -> Mapping[str, Any]:
    """Find out from its journal how far a run is.

    Returns:
        `step` (number of steps done); `epoch` and `last`, the epoch and the row of the last step; `samples_per_second`,
        `data_wait` (fraction of the time of a step that is spent waiting for data) and `seconds_left` (of training,
        without evaluations), from medians over the last rows; `metrics`, the row of the last evaluation. Keys whose
        value is not known yet are left out.
    """
    rows = [row for row in _last_rows(folder.steps) if row.keys() >= _COLUMNS]
    metrics = _last_rows(folder.metrics)
    found: dict[str, Any] = {"step": 0}
    if rows:
        last = rows[-1]
        seconds = statistics.median(row["step_s"] for row in rows)
        found = {
            "step": last["step"] + 1,
            "epoch": last["epoch"],
            "samples_per_second": statistics.median(row["samples_per_s"] for row in rows),
            "data_wait": statistics.median(row["data_s"] / row["step_s"] for row in rows),
            "seconds_left": round((steps - last["step"] - 1) * seconds),
            "last": last,
        }
    if metrics:
        found["metrics"] = metrics[-1]
    return found


def _last_rows(path: Path) -> list[Row]:
    """Read the last rows of a journal, without incomplete lines."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _RECENT))
            lines = file.read().split(b"\n")
    except OSError:
        return []
    whole = lines[:-1] if size <= _RECENT else lines[1:-1]
    rows = []
    for line in whole:
        try:
            row = json.loads(line)
        except ValueError:  # damaged lines are reported by those who read the whole journal
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows
