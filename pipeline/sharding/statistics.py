"""Mean and standard deviation of each feature kind, by which training normalises its inputs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import simplejpeg

from bmlpipe.pipeline.front_ends.features import Features

#: Training samples that are looked at; the first ones of the shuffled order, so a random choice.
SAMPLES = 1000


class Statistics:
    """Sums over samples: of every value of the spectrogram, of every pixel of one picture of each other kind."""

    def __init__(self) -> None:
        self.samples = 0
        self._sums: dict[str, Any] = {}

    def add(self, features: Features) -> None:
        """Take a sample in, unless enough are in already."""
        if self.samples == SAMPLES:
            return
        self.samples += 1
        if features.frames is not None:
            middle = features.frames.jpegs[len(features.frames.jpegs) // 2]
            self._count("frames", simplejpeg.decode_jpeg(middle, "RGB").reshape(-1, 3).T)
        if features.spectrogram is not None:
            self._count("spectrogram", features.spectrogram.values.reshape(1, -1))
        if features.flow is not None:
            pair = features.flow.jpegs[len(features.flow.jpegs) // 2][0]
            self._count("flow", [simplejpeg.decode_jpeg(image, "GRAY").reshape(-1) for image in pair])
        if features.rgb_diff is not None:
            change = features.rgb_diff.jpegs[len(features.rgb_diff.jpegs) // 2][0]
            self._count("rgb_diff", simplejpeg.decode_jpeg(change, "RGB").reshape(-1, 3).T)

    def _count(self, kind: str, channels: Iterable[Any]) -> None:
        values = np.asarray(channels, dtype=np.float64)
        sums = np.stack([np.full(len(values), values.shape[1]), values.sum(axis=1), (values**2).sum(axis=1)])
        self._sums[kind] = self._sums.get(kind, 0) + sums

    def result(self) -> dict[str, dict[str, list[float]]]:
        """Feature kind → mean and std of each channel (RGB, flow's x and y, and RGB differences in 0 … 255)."""
        found = {}
        for kind, (count, total, squares) in self._sums.items():
            mean = total / count
            std = np.sqrt(np.maximum(squares / count - mean**2, 0))
            found[kind] = {"mean": [round(v, 6) for v in mean.tolist()], "std": [round(v, 6) for v in std.tolist()]}
        return found
