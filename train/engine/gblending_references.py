"""GBlending's loss weights, computed from the journals of finished reference runs."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bmlpipe.manifests.common.errors import OptionError
from bmlpipe.train.config.options import ConfigError
from bmlpipe.train.modulation.names import JOINT
from bmlpipe.train.modulation.rules.gblending import Losses, Until, blend_weights
from bmlpipe.train.runs.folder import RunFolder
from bmlpipe.train.runs.journal_reader import read_columns
from bmlpipe.train.runs.run_reader import Run, read_run

_logger = logging.getLogger(__name__)


def reference_weights(folders: Sequence[str], modalities: Sequence[str], until: Until = "last") -> dict[str, float]:
    """Compute GBlending's weights from finished runs, and log them.

    Args:
        folders: Folders of one run of each modality alone and of one run of all modalities without modulation, in any
            order.
        modalities: Modalities of the run that will use the weights.
        until: Epoch of the reference runs that is compared with their start.

    Returns:
        `JOINT` and each modality → weight; the weights sum to 1.

    Raises:
        ConfigError: A folder holds no such run or an unfinished one, a run is missing or given twice, or no run
            generalised.
    """
    losses: dict[str, Losses] = {}
    for folder in folders:
        run = read_run(Path(folder))
        name = _trained_on(run, modalities)
        if name in losses:
            raise ConfigError(f"references: {folder} is a second run of {name}: name one run of each")
        losses[name] = run_losses(run, until)
    if missing := [name for name in (JOINT, *modalities) if name not in losses]:
        raise ConfigError(
            f"references: there is no run of {', '.join(missing)} (joint: {', '.join(modalities)} together, modulation "
            "none): GBlending's weights come from finished runs of each modality alone and of all together; train "
            "these first"
        )
    try:
        weights = blend_weights(losses)
    except OptionError as error:
        raise ConfigError(f"references: {error}") from error
    for name, weight in weights.items():
        reference = losses[name]
        _logger.info(
            "GBlending: weight of %s %.3f (generalisation G %.3f, overfitting O %.3f)",
            *(name, weight, reference.generalisation, reference.overfitting),
        )
    return weights


def run_losses(run: Run, until: Until = "last") -> Losses:
    """Read the losses of a finished run from its journals.

    `start` is the loss of the first batch, which the untrained model sees. `train` is the mean over the steps of an
    epoch: over augmented samples, and of a model that changes during the epoch.

    Raises:
        ConfigError: The run is not finished, or a loss is missing.
    """
    epochs = int(run.config["epochs"])
    rows = [row for row in run.metrics if row["split"] == "val"]
    path = RunFolder(run.folder).steps
    steps = read_columns(path) if path.is_file() else {}
    if not rows or rows[-1]["epoch"] != epochs - 1 or not len(steps.get("step", ())) or steps["step"][0] != 0:
        raise ConfigError(
            f"references: {run.folder} has not been trained to the end of its {epochs} epochs: finish it with --resume"
        )
    losses = steps.get("loss", np.full(1, np.nan))
    if not np.isfinite(losses).all() or any(row.get("loss") is None for row in rows):
        raise ConfigError(f"references: {run.folder} has rows without a finite loss: train it again")
    end = rows[-1] if until == "last" else min(rows, key=lambda row: float(row["loss"]))
    train = float(losses[steps["epoch"] == end["epoch"]].mean())
    return Losses(float(losses[0]), train, float(end["loss"]))


def _trained_on(run: Run, modalities: Sequence[str]) -> str:
    """Return the modality that a run was trained on, or `JOINT`."""
    of_run: tuple[str, ...] = tuple(run.config["modalities"])
    modulation = run.config["modulation"]
    if len(of_run) == 1 and of_run[0] in modalities:
        return of_run[0]
    if set(of_run) == set(modalities) and modulation == "none":
        return JOINT
    raise ConfigError(
        f"references: {run.folder} is a run of {', '.join(of_run)} with modulation {modulation}, neither of one of "
        f"{', '.join(modalities)} alone nor of all of them with modulation none"
    )
