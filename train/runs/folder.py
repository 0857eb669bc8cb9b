"""The files of a run's folder: their names, in one place.

RUN/config.yaml              resolved options
RUN/steps.jsonl              one row per optimiser step
RUN/metrics.jsonl            one row per evaluated split
RUN/checkpoints/last.pt      newest state; best.pt: best validation epoch; epoch-003.pt: end of epoch 3 (from 0)
RUN/evaluation/              results of `bmlpipe evaluate`
RUN/tensorboard/             TensorBoard event files
RUN/status.json              progress, for other programs
RUN/options.yaml, log.txt    options and output of a run that `bmlpipe sweep` started
RUN/.lock                    locked while a training writes into the folder
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from bmlpipe.manifests.common.status_file import STATUS_FILE

CONFIG_FILE = "config.yaml"
STEPS_FILE = "steps.jsonl"
METRICS_FILE = "metrics.jsonl"
PROBES_FILE = "probes.json"
OPTIONS_FILE = "options.yaml"
LOG_FILE = "log.txt"

#: Names of checkpoints, as `bmlpipe evaluate --checkpoint` takes them.
LAST, BEST = "last", "best"


@dataclass(frozen=True)
class RunFolder:
    """The folder of one run.

    Attributes:
        path: The folder.
    """

    path: Path

    @property
    def config(self) -> Path:
        """Resolved options, YAML."""
        return self.path / CONFIG_FILE

    @property
    def steps(self) -> Path:
        """Journal of the optimiser steps, JSON lines."""
        return self.path / STEPS_FILE

    @property
    def metrics(self) -> Path:
        """Journal of the evaluations, JSON lines."""
        return self.path / METRICS_FILE

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.path / "checkpoints"

    def checkpoint(self, name: str) -> Path:
        """Return the path of a checkpoint by its name: `last`, `best` or `epoch-003`."""
        return self.checkpoints / f"{name}.pt"

    @property
    def evaluation(self) -> Path:
        """Folder of the results of `bmlpipe evaluate`."""
        return self.path / "evaluation"

    @property
    def tensorboard(self) -> Path:
        """Folder of the TensorBoard event files."""
        return self.path / "tensorboard"

    @property
    def status(self) -> Path:
        """Progress, for other programs."""
        return self.path / STATUS_FILE

    @property
    def options(self) -> Path:
        """Options that a sweep gave to the run."""
        return self.path / OPTIONS_FILE

    @property
    def log(self) -> Path:
        """Output of a run that a sweep started."""
        return self.path / LOG_FILE


def epoch_checkpoint(epoch: int) -> str:
    """Return the name of the checkpoint at the end of an epoch, counted from 0.

    Examples:
        >>> epoch_checkpoint(3)
        'epoch-003'
    """
    return f"epoch-{epoch:03d}"


def folder_of_checkpoint(path: Path) -> RunFolder:
    """Return the run that a checkpoint file belongs to; for a file that was copied elsewhere, its folder."""
    run = RunFolder(path.absolute().parent.parent)
    return run if run.config.is_file() else RunFolder(path.absolute().parent)
