"""Encoders that run stage by stage, which intermediate fusion and features of all stages need.

B samples, T frames, C channels, h × w cells; the maps after a stage are (B, T, C, h, w).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from bmlpipe.manifests.common.errors import OptionError

#: ({m: maps after a stage}, number of the stage from the end, −1 the last) → {m: maps for the next stage}.
IntermediateFusion = Callable[[dict[str, Tensor], int], dict[str, Tensor]]


@runtime_checkable
class StagedEncoder(Protocol):
    """An encoder whose stages can be run one by one.

    Its forward pass must be `run_stages`: every stage in turn, and the concatenation of what `pool` returns.

    Attributes:
        stage_channels: Number of channels of the maps after each stage.
    """

    stage_channels: tuple[int, ...]

    def stage(self, number: int, maps: Tensor) -> Tensor:
        """Run stage `number`, counted from 0: (B, T, C, h, w) → (B, T, stage_channels[number], h', w').

        Stage 0 takes the input of the encoder.
        """

    def pool(self, number: int, maps: Tensor) -> Tensor | None:
        """Pool the maps after a stage to their part of the feature, (B, d); None if they have none."""


def require_staged(encoders: Mapping[str, nn.Module], user: str) -> dict[str, StagedEncoder]:
    """Check that encoders are staged, and return them.

    Args:
        encoders: Modality → encoder.
        user: Name of the part that needs staged encoders, for the message.

    Raises:
        OptionError: An encoder is not staged.
    """
    staged: dict[str, StagedEncoder] = {
        m: encoder for m, encoder in encoders.items() if isinstance(encoder, StagedEncoder)
    }
    for m in encoders.keys() - staged.keys():
        raise OptionError(
            f"{user} works between the stages of the encoders, but {type(encoders[m]).__name__} of {m!r} is not made "
            "of stages. Give it stage_channels, stage() and pool() (class StagedEncoder in "
            "bmlpipe.train.models.encoders.staged_encoder), or use late fusion only"
        )
    return staged


def run_stages(encoder: StagedEncoder, x: Tensor) -> Tensor:
    """Run all stages of one encoder: (B, T, C, H, W) → (B, D)."""
    parts = []
    for number in range(len(encoder.stage_channels)):
        x = encoder.stage(number, x)
        part = encoder.pool(number, x)
        if part is not None:
            parts.append(part)
    return torch.cat(parts, dim=1)


def run_stages_jointly(
    encoders: Mapping[str, StagedEncoder], inputs: Mapping[str, Tensor], fusion: IntermediateFusion
) -> dict[str, Tensor]:
    """Run all stages of several encoders, with an intermediate fusion after each stage.

    Stages are matched from the end: the last with the last. An encoder with more stages runs its first stages alone.

    Args:
        encoders: Modality → encoder.
        inputs: {m: (B, T, C, H, W)}.
        fusion: Called after each stage that all encoders have; the maps that it returns enter the next stage and the
            features.

    Returns:
        {m: (B, D_m)}.
    """
    maps = {m: inputs[m] for m in encoders}
    parts: dict[str, list[Tensor]] = {m: [] for m in encoders}
    depths = {m: len(encoder.stage_channels) for m, encoder in encoders.items()}
    for left in range(max(depths.values()), 0, -1):
        running = [m for m in encoders if depths[m] >= left]
        for m in running:
            maps[m] = encoders[m].stage(depths[m] - left, maps[m])
        if len(running) == len(encoders):
            maps = fusion(maps, -left)
        for m in running:
            part = encoders[m].pool(depths[m] - left, maps[m])
            if part is not None:
                parts[m].append(part)
    return {m: torch.cat(parts[m], dim=1) for m in encoders}
