"""Intermediate fusion: modalities see each other between the stages of their encoders.

An exchange is called after each stage with the maps of all modalities, {m: (B, T_m, C_m, h_m, w_m)}, and the stage
counted from the end (−1 the last), and gives the maps that the next stage gets. Its parameters belong to no modality's
encoder: they are neither damped nor given noise.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from bmlpipe.manifests.common.errors import OptionError
from bmlpipe.train.config.registries import INTERMEDIATE_FUSIONS
from bmlpipe.train.models.encoders.stages import mean_over_frames, staged

#: Modality → channels after each stage of its encoder.
Widths = Mapping[str, Sequence[int]]


class TransferUnit(nn.Module):
    """Squeeze, join, excite after one stage (Joze et al., CVPR 2020, Sec. 3).

    s^m is the mean of modality m's maps over time and space; Z = ReLU(W [s^1 … s^M] + b); each channel of m is
    multiplied by its entry of 2·σ(W^m Z + b^m).

    Args:
        widths: Modality → channels C_m.
        ratio: Z has ΣC_m / ratio entries, the paper's is 4.

    Attributes:
        solo: A modality that is to be excited as if it were alone, or None (see `MMTM.solo`).
    """

    average: Tensor
    batches: Tensor

    def __init__(self, widths: Mapping[str, int], ratio: int) -> None:
        super().__init__()
        self.widths = dict(widths)
        total = sum(widths.values())
        joint = max(1, total // ratio)
        self.squeeze = nn.Linear(total, joint)
        self.excite = nn.ModuleDict({m: nn.Linear(joint, width) for m, width in widths.items()})
        self.register_buffer("average", torch.zeros(total))
        self.register_buffer("batches", torch.zeros((), dtype=torch.int64))
        self.solo: str | None = None

    def forward(self, maps: dict[str, Tensor]) -> dict[str, Tensor]:
        """{m: (B, T_m, C_m, h_m, w_m)} → the same shapes."""
        squeezed = torch.cat([mean_over_frames(maps[m]) for m in self.widths], dim=1)
        if self.training and self.solo is None:
            with torch.no_grad():
                self.batches += 1
                self.average += (squeezed.to(self.average.dtype).mean(dim=0) - self.average) / self.batches
        joint = dict.fromkeys(self.widths, self.squeeze(squeezed).relu())
        if self.solo is not None:
            joint[self.solo] = self.squeeze(self._alone(squeezed, self.solo)).relu()
        return {m: maps[m] * _over_maps(2 * torch.sigmoid(self.excite[m](joint[m]))) for m in self.widths}

    def _alone(self, squeezed: Tensor, m: str) -> Tensor:
        """The squeeze with all but m's replaced by its running average."""
        sizes = list(self.widths.values())
        pairs = zip(self.widths, torch.split(squeezed, sizes, 1), torch.split(self.average, sizes), strict=True)
        parts = [own if other == m else mean.to(own.dtype).expand_as(own) for other, own, mean in pairs]
        return torch.cat(parts, dim=1)


class MMTM(nn.Module):
    """Multimodal transfer modules (Joze et al., CVPR 2020): a `TransferUnit` after each of the later stages.

    A module keeps the mean of each squeeze over all training batches so far, from which `solo` reads.

    Args:
        widths: Modality → channels after each stage of its encoder.
        stages: Those after which the modalities meet, counted from the end; None: all but the first one.
        ratio: Entries of the squeezes for each one of the joint representation.

    Raises:
        OptionError: Fewer than two modalities, or a stage that an encoder does not have.
    """

    def __init__(self, widths: Widths, *, stages: Sequence[int] | None = None, ratio: int = 4) -> None:
        super().__init__()
        depth = _depth(widths, "MMTM")
        self.stages = tuple(range(-max(1, depth - 1), 0) if stages is None else stages)
        if not self.stages or not all(-depth <= stage <= -1 for stage in self.stages):
            raise OptionError(f"stages must be some of {list(range(-depth, 0))}, not {list(self.stages)}")
        self.units = nn.ModuleList(
            TransferUnit({m: each[stage] for m, each in widths.items()}, ratio) for stage in self.stages
        )
        self.modalities = tuple(widths)

    def forward(self, maps: dict[str, Tensor], stage: int) -> dict[str, Tensor]:
        """{m: (B, T_m, C_m, h_m, w_m)} after a stage → the same shapes."""
        if stage not in self.stages:
            return maps
        changed: dict[str, Tensor] = self.units[self.stages.index(stage)](maps)
        return changed

    def solo(self, m: str | None) -> None:
        """Excite m as if it were alone: every other modality's squeeze is replaced by its running average.

        The other modalities are excited as ever. The averages stand still until `solo(None)`. Wu et al. (ICML 2022,
        greedy learning) train one modality at a time by this.

        Raises:
            OptionError: An unknown modality.
        """
        if m is not None and m not in self.modalities:
            raise OptionError(f"solo must be one of {', '.join(self.modalities)} or None, not {m!r}")
        for unit in self.units:
            assert isinstance(unit, TransferUnit)
            unit.solo = m


class CrossModalAttention(nn.Module):
    """Attention over the tokens of all modalities after the last stage, in the manner of VATT (Akbari et al. 2021).

    A token is one cell of one frame. z = P^m(token) + e^m with a learnt e^m a modality; the token gets
    Q^m(MultiHead(LN(z), LN(z), LN(z))) added, where keys and values are the tokens of all modalities together. VATT's
    backbone shared by all modalities is the model of it; cells carry no position of their own, as the convolutions
    before have seen where they are (zero padding), so maps of any size go.

    Args:
        widths: Modality → channels after each stage of its encoder; the tokens are as wide as the widest last stage.
        heads: Attention heads, a divisor of that width; None: 8, or the largest number below that goes.

    Raises:
        OptionError: Fewer than two modalities, or heads that do not divide the width.
    """

    def __init__(self, widths: Widths, *, heads: int | None = None) -> None:
        super().__init__()
        _depth(widths, "attention")
        last = {m: each[-1] for m, each in widths.items()}
        width = max(last.values())
        heads = math.gcd(8, width) if heads is None else heads
        if heads < 1 or width % heads:
            raise OptionError(f"heads must divide the width of the tokens, {width}; {heads} does not")
        self.read = nn.ModuleDict({m: nn.Linear(channels, width) for m, channels in last.items()})
        self.embedding = nn.ParameterDict({m: nn.Parameter(0.02 * torch.randn(width)) for m in last})
        self.norm = nn.LayerNorm(width)
        self.attend = nn.MultiheadAttention(width, heads, batch_first=True)
        self.write = nn.ModuleDict({m: nn.Linear(width, channels) for m, channels in last.items()})

    def forward(self, maps: dict[str, Tensor], stage: int) -> dict[str, Tensor]:
        """{m: (B, T_m, C_m, h_m, w_m)} after a stage → the same shapes."""
        if stage != -1:
            return maps
        cells = {m: value.movedim(2, -1) for m, value in maps.items()}  # (B, T, h, w, C)
        tokens = [self.read[m](value.flatten(1, 3)) + self.embedding[m] for m, value in cells.items()]
        z = self.norm(torch.cat(tokens, dim=1))
        attended = torch.split(self.attend(z, z, z, need_weights=False)[0], [part.shape[1] for part in tokens], 1)
        seen = {m: self.write[m](part) for m, part in zip(cells, attended, strict=True)}
        return {m: maps[m] + seen[m].unflatten(1, cells[m].shape[1:4]).movedim(-1, 2) for m in maps}


def make_exchange(name: str, encoders: Mapping[str, nn.Module]) -> nn.Module | None:
    """A new exchange between encoders.

    Args:
        name: `none` or a name of `INTERMEDIATE_FUSIONS`. A plug-in is a callable with the one argument
            {m: channels after each stage}.
        encoders: Modality → encoder, made of stages.

    Returns:
        The exchange, for `bmlpipe.train.models.multimodal.MultimodalModel`; None for `none`.

    Raises:
        OptionError: Unknown name, an encoder without stages, or a single modality.
    """
    if name == "none":
        return None
    if name not in INTERMEDIATE_FUSIONS:
        known = ", ".join(sorted(INTERMEDIATE_FUSIONS))
        raise OptionError(f"unknown intermediate fusion {name!r}; known: none, {known}")
    able = staged(encoders, f"intermediate fusion {name!r}")
    made: nn.Module = INTERMEDIATE_FUSIONS[name]({m: encoder.widths for m, encoder in able.items()})
    return made


def _depth(widths: Widths, what: str) -> int:
    """Stages that all encoders have."""
    if len(widths) < 2:
        raise OptionError(f"{what} is between modalities, there is only {list(widths)}: choose no intermediate fusion")
    return min(len(each) for each in widths.values())


def _over_maps(gate: Tensor) -> Tensor:
    """(B, C) → (B, 1, C, 1, 1)."""
    return gate[:, None, :, None, None]
