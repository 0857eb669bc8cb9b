"""Normalise raw batches, on the device, to mean 0 and standard deviation 1 over the training samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from bmlpipe.shards.errors import ShardError
from bmlpipe.shards.kinds import MODALITY_KIND, Storage, kind_named
from bmlpipe.train.data.spectrogram import LogSpectrogram

# Channel means and standard deviations of ImageNet (RGB, pixels from 0 to 255), which torchvision's weights expect.
_IMAGENET: Mapping[str, Sequence[float]] = {"mean": [123.675, 116.28, 103.53], "std": [58.395, 57.12, 57.375]}

# Spectrograms computed from sound are standardised per clip.
_STANDARDISED: Mapping[str, Sequence[float]] = {"mean": [0.0], "std": [1.0]}


class Normaliser(nn.Module):
    """Normalisation of raw batches, a module whose means and deviations are buffers, so that a checkpoint holds them.

    Args:
        modalities: Modalities of the batches.
        statistics: Feature kind → `mean` and `std` of each channel, as the index of the shards has them.
        kinds: Modality → feature kind that it reads; sound is turned into spectrograms first.
        imagenet: Normalise kinds with the channels of ImageNet by its statistics, as pretrained encoders expect.

    Raises:
        ShardError: The statistics of a modality are missing.
    """

    def __init__(
        self,
        modalities: Sequence[str],
        statistics: Mapping[str, Mapping[str, Sequence[float]]],
        *,
        kinds: Mapping[str, str] = MODALITY_KIND,
        imagenet: bool = False,
    ) -> None:
        super().__init__()
        self.modalities = tuple(modalities)
        self._kinds = {modality: kind_named(kinds[modality]) for modality in modalities}
        stored_as_sound = any(kind.storage is Storage.FLAC for kind in self._kinds.values())
        self.of_sound = LogSpectrogram() if stored_as_sound else None
        for m, kind in self._kinds.items():
            numbers = statistics.get(kind.name) if kind.normalisation == "dataset" else _STANDARDISED
            if imagenet and kind.imagenet:
                numbers = _IMAGENET
            if numbers is None:
                raise ShardError(f"the shards have no statistics of {kinds[m]}: write them again with bmlpipe shard")
            for name in ("mean", "std"):
                values = torch.tensor(numbers[name], dtype=torch.float32)
                self.register_buffer(f"{m}_{name}", values.clamp(min=1e-6) if name == "std" else values)

    def forward(self, raw: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Normalise a batch.

        Args:
            raw: Modality → arrays (B, 1, F, N), float16; sound (B, 1, n), int16; pictures (B, T, C, H, W), uint8.

        Returns:
            {m: (B, T, C, height, width)}, float32; T = C = 1 for audio. The statistics of x and y apply to every field
            of a flow stack.
        """
        return {m: self._one(m, raw[m]) for m in self.modalities}

    def _one(self, modality: str, value: Tensor) -> Tensor:
        kind = self._kinds[modality]
        if kind.storage is Storage.FLAC and self.of_sound is not None:
            value = self.of_sound(value[:, 0])
        if not kind.is_pictures:
            value = value.unsqueeze(1)
        mean, std = (
            self.get_buffer(f"{modality}_{name}").repeat(value.shape[2] // len(self.get_buffer(f"{modality}_{name}")))
            for name in ("mean", "std")
        )
        shape = (1, 1, -1, 1, 1)
        return (value.float() - mean.view(shape)) / std.view(shape)
