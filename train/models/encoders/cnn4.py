"""CNN4: a small convolutional network for laptops and tests."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from bmlpipe.train.models.encoders.layers import check_positive, fold_frames, initialise_convolutions, mean_over_frames
from bmlpipe.train.models.encoders.staged_encoder import run_stages


class CNN4(nn.Module):
    """Four stages of convolution, max pooling, batch norm and ReLU.

    The frames of a sample share the network and are averaged over time and space. The first convolution is 5 × 5 with
    stride 2, the others are 3 × 3. Pooling before batch norm and ReLU, and the channels-last layout, together more
    than halve the CPU time of a training step.

    Args:
        channels: Number of input channels.
        width: Channels w of the first convolution; the four have w, 2w, 4w and 4w.
        downsample: Side in pixels of the squares over which the input is averaged first; 1: no averaging.
        all_stages: The feature concatenates the pooled maps of all four stages instead of those of the last one.

    Attributes:
        feature_dim: Length of the feature, 4 · width, or 11 · width with `all_stages`.
        stage_channels: Number of channels after each stage.

    Raises:
        OptionError: `channels`, `width` or `downsample` is below 1.
    """

    def __init__(self, channels: int = 3, *, width: int = 32, downsample: int = 1, all_stages: bool = False) -> None:
        super().__init__()
        self.downsample = check_positive(downsample, "downsample")
        w = check_positive(width, "width")
        self.stage_channels: tuple[int, ...] = (w, 2 * w, 4 * w, 4 * w)
        self.all_stages = all_stages
        self.feature_dim = sum(self.stage_channels) if all_stages else self.stage_channels[-1]
        self.blocks = nn.Sequential(
            _block(check_positive(channels, "channels"), w, kernel=5, stride=2),
            _block(w, 2 * w),
            _block(2 * w, 4 * w),
            _block(4 * w, 4 * w),
        )
        initialise_convolutions(self)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, x: Tensor) -> Tensor:
        """Encode a batch: (B, T, C, H, W) → (B, feature_dim); H and W are at least `downsample`."""
        return run_stages(self, x)

    def stage(self, number: int, maps: Tensor) -> Tensor:
        """Run one stage: (B, T, C, h, w) → (B, T, stage_channels[number], h', w')."""
        x = fold_frames(maps)
        if number == 0 and self.downsample > 1:
            x = functional.avg_pool2d(x, self.downsample)
        x = self.blocks[number](x.contiguous(memory_format=torch.channels_last))
        return torch.unflatten(x, 0, maps.shape[:2])

    def pool(self, number: int, maps: Tensor) -> Tensor | None:
        """Average over time and space, (B, stage_channels[number]), if the feature includes this stage."""
        return mean_over_frames(maps) if self.all_stages or number == len(self.stage_channels) - 1 else None


def _block(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False),
        nn.MaxPool2d(2, ceil_mode=True),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )
