"""Mean and standard deviation of each feature kind, by which training normalises its inputs."""

from __future__ import annotations

from typing import Any

import numpy as np

from bmlpipe.pipeline.front_ends.features import Array, ClipFeatures
from bmlpipe.shards.kinds import KINDS

#: Number of training samples that the statistics are taken from: the first of the shuffled order, so a random choice.
SAMPLES = 1000


class Statistics:
    """Sums over samples of `Feature.channel_values`: all values of an array, one picture of each picture kind.

    Attributes:
        samples: Number of samples that have been added.
    """

    def __init__(self) -> None:
        self.samples = 0
        self._sums: dict[str, Any] = {}

    def add(self, clip: ClipFeatures) -> None:
        """Add a sample, unless there are `SAMPLES` already."""
        if self.samples == SAMPLES:
            return
        self.samples += 1
        for name, kind in KINDS.items():
            if name in clip.features and kind.normalisation == "dataset":
                self._count(name, clip[name].channel_values(kind))

    def _count(self, kind: str, values: Array) -> None:
        sums = np.stack([np.full(len(values), values.shape[1]), values.sum(axis=1), (values**2).sum(axis=1)])
        self._sums[kind] = self._sums.get(kind, 0) + sums

    def result(self) -> dict[str, dict[str, list[float]]]:
        """Compute feature kind → `mean` and `std` of each channel; of pictures in levels from 0 to 255."""
        found = {}
        for kind, (count, total, squares) in self._sums.items():
            mean = total / count
            std = np.sqrt(np.maximum(squares / count - mean**2, 0))
            found[kind] = {"mean": [round(v, 6) for v in mean.tolist()], "std": [round(v, 6) for v in std.tolist()]}
        return found
