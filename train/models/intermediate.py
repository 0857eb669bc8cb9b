"""Intermediate fusion: the modalities exchange information between the stages of their encoders.

An intermediate fusion is called after each stage with the maps of all modalities, {m: (B, T_m, C_m, h_m, w_m)}, and the
number of the stage counted from the end (−1 the last). It returns the maps that enter the next stage. Its parameters
belong to no encoder, so OGM neither damps them nor adds noise.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from bmlpipe.manifests.common.errors import OptionError
from bmlpipe.train.config.registries import INTERMEDIATE_FUSIONS
from bmlpipe.train.models.encoders.layers import mean_over_frames
from bmlpipe.train.models.encoders.staged_encoder import require_staged

#: Modality → number of channels after each stage of its encoder.
StageChannels = Mapping[str, Sequence[int]]


class TransferUnit(nn.Module):
    """Squeeze, joint representation and excitation after one stage (Joze et al., CVPR 2020, Sec. 3).

    s^m is the mean of modality m's maps over time and space; Z = ReLU(W [s^1 … s^M] + b); each channel of m is
    multiplied by its entry of 2·σ(W^m Z + b^m).

    Args:
        channels: Modality → number of channels C_m.
        ratio: Z has ΣC_m / ratio entries; the paper uses 4.

    Attributes:
        solo: Modality that is excited as if it were alone, or None (see `MMTM.solo`).
    """

    average: Tensor
    batches: Tensor

    def __init__(self, channels: Mapping[str, int], ratio: int) -> None:
        super().__init__()
        self.channels = dict(channels)
        total = sum(channels.values())
        joint = max(1, total // ratio)
        self.squeeze = nn.Linear(total, joint)
        self.excite = nn.ModuleDict({m: nn.Linear(joint, count) for m, count in channels.items()})
        self.register_buffer("average", torch.zeros(total))
        self.register_buffer("batches", torch.zeros((), dtype=torch.int64))
        self.solo: str | None = None

    def forward(self, maps: dict[str, Tensor]) -> dict[str, Tensor]:
        """Excite the maps: {m: (B, T_m, C_m, h_m, w_m)} → the same shapes."""
        squeezed = torch.cat([mean_over_frames(maps[m]) for m in self.channels], dim=1)
        if self.training and self.solo is None:
            with torch.no_grad():
                self.batches += 1
                self.average += (squeezed.to(self.average.dtype).mean(dim=0) - self.average) / self.batches
        joint = dict.fromkeys(self.channels, self.squeeze(squeezed).relu())
        if self.solo is not None:
            joint[self.solo] = self.squeeze(self._squeezed_alone(squeezed, self.solo)).relu()
        return {m: maps[m] * _over_maps(2 * torch.sigmoid(self.excite[m](joint[m]))) for m in self.channels}

    def _squeezed_alone(self, squeezed: Tensor, m: str) -> Tensor:
        """Replace the squeezes of all modalities but m by their running averages."""
        sizes = list(self.channels.values())
        pairs = zip(self.channels, torch.split(squeezed, sizes, 1), torch.split(self.average, sizes), strict=True)
        parts = [own if other == m else mean.to(own.dtype).expand_as(own) for other, own, mean in pairs]
        return torch.cat(parts, dim=1)


class MMTM(nn.Module):
    """Multimodal transfer modules (Joze et al., CVPR 2020): a `TransferUnit` after each of the later stages.

    Each unit keeps the mean of its squeezes over all training batches so far, which `solo` uses.

    Args:
        stage_channels: Modality → number of channels after each stage of its encoder.
        stages: Stages after which there is a unit, counted from the end. None: all but the first one.
        ratio: Number of squeeze entries per entry of the joint representation.

    Raises:
        OptionError: Fewer than two modalities, or a stage that an encoder does not have.
    """

    def __init__(self, stage_channels: StageChannels, *, stages: Sequence[int] | None = None, ratio: int = 4) -> None:
        super().__init__()
        depth = _common_depth(stage_channels, "MMTM")
        self.stages = tuple(range(-max(1, depth - 1), 0) if stages is None else stages)
        if not self.stages or not all(-depth <= stage <= -1 for stage in self.stages):
            raise OptionError(f"stages must be one or more of {list(range(-depth, 0))}, not {list(self.stages)}")
        self.units = nn.ModuleList(
            TransferUnit({m: each[stage] for m, each in stage_channels.items()}, ratio) for stage in self.stages
        )
        self.modalities = tuple(stage_channels)

    def forward(self, maps: dict[str, Tensor], stage: int) -> dict[str, Tensor]:
        """Fuse the maps after a stage: {m: (B, T_m, C_m, h_m, w_m)} → the same shapes."""
        if stage not in self.stages:
            return maps
        changed: dict[str, Tensor] = self.units[self.stages.index(stage)](maps)
        return changed

    def solo(self, m: str | None) -> None:
        """Excite m as if it were alone: the squeezes of the other modalities are replaced by their running averages.

        The other modalities are excited as before. The running averages do not change until `solo(None)`. Wu et al.
        (ICML 2022, greedy learning) train one modality at a time with this.

        Args:
            m: A modality, or None to return to normal.

        Raises:
            OptionError: The modality is unknown.
        """
        if m is not None and m not in self.modalities:
            raise OptionError(f"solo must be one of {', '.join(self.modalities)} or None, not {m!r}")
        for unit in self.units:
            assert isinstance(unit, TransferUnit)
            unit.solo = m


class CrossModalAttention(nn.Module):
    """Attention over the tokens of all modalities after the last stage, in the manner of VATT (Akbari et al. 2021).

    A token is one cell of one frame. z = P^m(token) + e^m, with a learnt e^m per modality; the token becomes
    token + Q^m(MultiHead(LN(z), LN(z), LN(z))), where keys and values are the tokens of all modalities together. The
    model for this is VATT's backbone that all modalities share. Cells carry no position of their own, because the
    convolutions before them know it from their zero padding; so maps of any size are accepted.

    Args:
        stage_channels: Modality → number of channels after each stage of its encoder. The tokens are as wide as the
            widest last stage.
        heads: Number of attention heads, a divisor of that width. None: the largest divisor common with 8.

    Raises:
        OptionError: Fewer than two modalities, or `heads` does not divide the width.
    """

    def __init__(self, stage_channels: StageChannels, *, heads: int | None = None) -> None:
        super().__init__()
        _common_depth(stage_channels, "attention")
        last = {m: each[-1] for m, each in stage_channels.items()}
        width = max(last.values())
        heads = math.gcd(8, width) if heads is None else heads
        if heads < 1 or width % heads:
            raise OptionError(f"heads must be a divisor of the width of the tokens, {width}, not {heads}")
        self.read = nn.ModuleDict({m: nn.Linear(channels, width) for m, channels in last.items()})
        self.embedding = nn.ParameterDict({m: nn.Parameter(0.02 * torch.randn(width)) for m in last})
        self.norm = nn.LayerNorm(width)
        self.attend = nn.MultiheadAttention(width, heads, batch_first=True)
        self.write = nn.ModuleDict({m: nn.Linear(width, channels) for m, channels in last.items()})

    def forward(self, maps: dict[str, Tensor], stage: int) -> dict[str, Tensor]:
        """Fuse the maps after a stage: {m: (B, T_m, C_m, h_m, w_m)} → the same shapes."""
        if stage != -1:
            return maps
        cells = {m: value.movedim(2, -1) for m, value in maps.items()}  # (B, T, h, w, C)
        tokens = [self.read[m](value.flatten(1, 3)) + self.embedding[m] for m, value in cells.items()]
        z = self.norm(torch.cat(tokens, dim=1))
        attended = torch.split(self.attend(z, z, z, need_weights=False)[0], [part.shape[1] for part in tokens], 1)
        seen = {m: self.write[m](part) for m, part in zip(cells, attended, strict=True)}
        return {m: maps[m] + seen[m].unflatten(1, cells[m].shape[1:4]).movedim(-1, 2) for m in maps}


def make_intermediate(name: str, encoders: Mapping[str, nn.Module]) -> nn.Module | None:
    """Make a new intermediate fusion of encoders.

    Args:
        name: `none` or a name of `INTERMEDIATE_FUSIONS`. A plug-in is a callable with the one argument
            {m: number of channels after each stage}.
        encoders: Modality → staged encoder.

    Returns:
        The fusion, for `bmlpipe.train.models.multimodal.MultimodalModel`; None for `none`.

    Raises:
        OptionError: The name is unknown, an encoder is not staged, or there is a single modality.
        PluginError: A fusion of another package cannot be loaded.
    """
    if name == "none":
        return None
    if name not in INTERMEDIATE_FUSIONS:
        known = ", ".join(sorted(INTERMEDIATE_FUSIONS))
        raise OptionError(f"unknown intermediate fusion {name!r}; known: none, {known}")
    staged = require_staged(encoders, f"intermediate fusion {name!r}")
    made: nn.Module = INTERMEDIATE_FUSIONS[name]({m: encoder.stage_channels for m, encoder in staged.items()})
    return made


def _common_depth(stage_channels: StageChannels, what: str) -> int:
    """Return the number of stages that all encoders have."""
    if len(stage_channels) < 2:
        raise OptionError(
            f"{what} fuses two or more modalities, but there is only {', '.join(stage_channels) or 'none'}: "
            "use no intermediate fusion"
        )
    return min(len(each) for each in stage_channels.values())


def _over_maps(gate: Tensor) -> Tensor:
    """Add the axes of maps: (B, C) → (B, 1, C, 1, 1)."""
    return gate[:, None, :, None, None]
