"""What a run minimises: the cross-entropy, or the objective that its head brings along, such as GBlending's."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch import nn

from bmlpipe.manifests.common.errors import OptionError
from bmlpipe.train.config.options import ConfigError
from bmlpipe.train.engine.step import Objective, cross_entropy
from bmlpipe.train.modulation.rules.gblending import JOINT, Losses, Until, blend_weights
from bmlpipe.train.report import Run, read_run
from bmlpipe.train.runs.journal import STEPS_FILE
from bmlpipe.train.runs.journal_reader import read_columns

_logger = logging.getLogger(__name__)


def objective_of(head: nn.Module) -> Objective:
    """The method `objective` of a head, (its output in training, labels (B,)) → (B,); else the cross-entropy."""
    own: Objective = getattr(head, "objective", cross_entropy)
    return own


def reference_weights(folders: Sequence[str], modalities: Sequence[str], until: Until = "last") -> dict[str, float]:
    """GBlending's weights from the journals of finished runs, which are written into the log.

    Args:
        folders: One run of each modality alone and one of all together without modulation, in any order.
        modalities: Those of the run to come.
        until: Epoch of the references that is compared with their beginning.

    Returns:
        `JOINT` and each modality → weight; they sum to 1.

    Raises:
        ConfigError: A folder holds no such run or an unfinished one, a run is missing, or none generalised.
    """
    losses: dict[str, Losses] = {}
    for folder in folders:
        run = read_run(Path(folder))
        name = _name(run, modalities)
        if name in losses:
            raise ConfigError(f"references: {folder} is a second run of {name}: name one of each")
        losses[name] = run_losses(run, until)
    if missing := [name for name in (JOINT, *modalities) if name not in losses]:
        raise ConfigError(
            f"references: no run of {', '.join(missing)} (joint: {', '.join(modalities)} together, modulation none): "
            "GBlending is weighted by finished runs of each modality alone and of all together; train these first"
        )
    try:
        weights = blend_weights(losses)
    except OptionError as error:
        raise ConfigError(f"references: {error}") from error
    for name, weight in weights.items():
        one = losses[name]
        _logger.info("GBlending: %s weighs %.3f (G %.3f, O %.3f)", name, weight, one.generalisation, one.overfitting)
    return weights


def run_losses(run: Run, until: Until = "last") -> Losses:
    """The losses of a finished run, as its journals have them.

    `start` is the loss of the first batch, which the untrained model sees; `train` the mean over the epoch's steps, so
    of views that are augmented and of a model that changes meanwhile.

    Raises:
        ConfigError: The run is not finished, or lacks a loss.
    """
    epochs = int(run.config["epochs"])
    rows = [row for row in run.metrics if row["split"] == "val"]
    path = run.folder / STEPS_FILE
    steps = read_columns(path) if path.is_file() else {}
    if not rows or rows[-1]["epoch"] != epochs - 1 or not len(steps.get("step", ())) or steps["step"][0] != 0:
        raise ConfigError(f"references: {run.folder} has not been trained to the end of its {epochs} epochs: resume it")
    losses = steps.get("loss", np.full(1, np.nan))
    if not np.isfinite(losses).all() or any(row.get("loss") is None for row in rows):
        raise ConfigError(f"references: {run.folder} has rows without a finite loss: train it again")
    end = rows[-1] if until == "last" else min(rows, key=lambda row: float(row["loss"]))
    train = float(losses[steps["epoch"] == end["epoch"]].mean())
    return Losses(float(losses[0]), train, float(end["loss"]))


def _name(run: Run, modalities: Sequence[str]) -> str:
    """What a run is a reference of."""
    chosen: tuple[str, ...] = tuple(run.config["modalities"])
    modulation = run.config["modulation"]
    if len(chosen) == 1 and chosen[0] in modalities:
        return chosen[0]
    if set(chosen) == set(modalities) and modulation == "none":
        return JOINT
    raise ConfigError(
        f"references: {run.folder} is a run of {', '.join(chosen)} with modulation {modulation}, neither one of "
        f"{', '.join(modalities)} alone nor all of them with modulation none"
    )
