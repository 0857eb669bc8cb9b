"""How a training stands, for machines: `status.json` in the run's folder, made from what the journal has on disk."""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bmlpipe.manifests.common.status_file import StatusFile
from bmlpipe.train.config.options import TrainConfig
from bmlpipe.train.runs.journal import METRICS_FILE, STEPS_FILE, Row

_RECENT = 32_768  # bytes of a journal that are looked at: some dozens of rows
_TOLD = {"step", "epoch", "step_s", "data_s", "samples_per_s"}  # columns of a step's row that are needed here


def run_status(config: TrainConfig, steps: int) -> StatusFile:
    """The status file of a run. Nothing of it is on the way of a step: a thread reads the journal's last rows.

    Args:
        config: The run's resolved configuration.
        steps: Steps of the whole run.
    """
    folder = Path(config.out)
    about = {"dataset": config.dataset, "modulation": config.modulation, "epochs": config.epochs, "steps": steps}
    return StatusFile(folder, lambda: {**about, **progress(folder, steps)})


def progress(folder: Path, steps: int) -> Mapping[str, Any]:
    """Where a run stands by its journal.

    Returns:
        `step` (steps done), `epoch`, `last` (the last step's row), `samples_per_second`, `data_wait` (share of the time
        that steps waited for data) and `seconds_left` (training alone, without evaluations) as medians of the last
        rows; `metrics`, the last evaluation's row. What is not known yet is left out.
    """
    rows = [row for row in _last_rows(folder / STEPS_FILE) if row.keys() >= _TOLD]
    metrics = _last_rows(folder / METRICS_FILE)
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
    """The last rows of a journal, whole ones only."""
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
        except ValueError:  # damage is for those to tell who read the journal whole
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows
