"""Encoders that run stage by stage: what fusion at several depths (an exchange, a pyramid of features) needs.

B samples, T frames, C channels, h × w cells; the maps of a stage are (B, T, C, h, w).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from bmlpipe.manifests.common.errors import OptionError

#: ({m: maps after a stage}, that stage counted from the end, −1 the last) → {m: maps for the next stage}.
Exchange = Callable[[dict[str, Tensor], int], dict[str, Tensor]]


@runtime_checkable
class Staged(Protocol):
    """What an encoder has beside its forward pass so that something can happen between its stages.

    Its forward pass is `run`: every stage in turn, and the parts that `pool` gives one after the other.

    Attributes:
        widths: Channels of the maps after each stage.
    """

    widths: tuple[int, ...]

    def stage(self, number: int, maps: Tensor) -> Tensor:
        """Stage `number`, from 0: (B, T, C, h, w) → (B, T, widths[number], h', w'); stage 0 takes the input."""

    def pool(self, number: int, maps: Tensor) -> Tensor | None:
        """What the maps after a stage add to the feature, (B, d); None where they add nothing."""


def staged(encoders: Mapping[str, nn.Module], what: str) -> dict[str, Staged]:
    """The same encoders, known to run stage by stage.

    Args:
        encoders: Modality → encoder.
        what: Who asks, for the message.

    Raises:
        OptionError: One of them does not.
    """
    found: dict[str, Staged] = {m: encoder for m, encoder in encoders.items() if isinstance(encoder, Staged)}
    for m in encoders.keys() - found.keys():
        raise OptionError(
            f"{what} works between the stages of the encoders, but {type(encoders[m]).__name__} of {m!r} is not made "
            "of stages: give it widths, stage() and pool() (bmlpipe.train.models.encoders.Staged), or fuse late only"
        )
    return found


def run(encoder: Staged, x: Tensor) -> Tensor:
    """All stages of one encoder: (B, T, C, H, W) → (B, D)."""
    parts = []
    for number in range(len(encoder.widths)):
        x = encoder.stage(number, x)
        part = encoder.pool(number, x)
        if part is not None:
            parts.append(part)
    return torch.cat(parts, dim=1)


def run_together(encoders: Mapping[str, Staged], inputs: Mapping[str, Tensor], exchange: Exchange) -> dict[str, Tensor]:
    """All stages of several encoders, which meet after each stage.

    Stages are matched from the end: the last with the last. An encoder with more of them begins alone.

    Args:
        encoders: Modality → encoder.
        inputs: {m: (B, T, C, H, W)}.
        exchange: Called after each stage that all have; its maps go on to the next stage and into the features.

    Returns:
        {m: (B, D_m)}.
    """
    maps = {m: inputs[m] for m in encoders}
    parts: dict[str, list[Tensor]] = {m: [] for m in encoders}
    depths = {m: len(encoder.widths) for m, encoder in encoders.items()}
    for left in range(max(depths.values()), 0, -1):
        begun = [m for m in encoders if depths[m] >= left]
        for m in begun:
            maps[m] = encoders[m].stage(depths[m] - left, maps[m])
        if len(begun) == len(encoders):
            maps = exchange(maps, -left)
        for m in begun:
            part = encoders[m].pool(depths[m] - left, maps[m])
            if part is not None:
                parts[m].append(part)
    return {m: torch.cat(parts[m], dim=1) for m in encoders}


def mean_over_frames(maps: Tensor) -> Tensor:
    """(B, T, C, h, w) → (B, C): the mean over the cells of a frame, then over the frames."""
    return maps.mean(dim=(3, 4)).mean(dim=1)
