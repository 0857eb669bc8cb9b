"""The networks that encode: ResNet-18, with or without the temporal shift, and a small one for laptops and tests.

Both run stage by stage (`bmlpipe.train.models.encoders.stages`). The frames of a sample share the
network and are averaged over time and space.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from bmlpipe.manifests.common.errors import OptionError
from bmlpipe.train.models.encoders.stages import mean_over_frames, run
from bmlpipe.train.models.encoders.temporal_shift import temporal_shift


class BasicBlock(nn.Module):
    """Two 3 × 3 convolutions and a shortcut (He et al. 2016, Fig. 2), with torchvision's parameter names.

    With `shift`, the convolutions see channels of the neighbouring frames and the shortcut does not (Lin et al. 2019,
    Sec. 4.2, residual shift).
    """

    def __init__(self, inputs: int, outputs: int, stride: int, *, shift: bool = False) -> None:
        super().__init__()
        self.shift = shift
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample: nn.Sequential | None = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor, frames: int = 1) -> Tensor:
        """(N, inputs, H, W) → (N, outputs, ⌈H/stride⌉, ⌈W/stride⌉); N is a multiple of `frames`."""
        shortcut = x if self.downsample is None else self.downsample(x)
        x = temporal_shift(x, frames) if self.shift else x
        x = functional.relu(self.bn1(self.conv1(x)))
        return functional.relu(self.bn2(self.conv2(x)) + shortcut)


class ResNet18(nn.Module):
    """ResNet-18 (He et al. 2016, Table 1) without its classifier, for any number of input channels.

    Names and shapes of parameters are torchvision's, so that its weight files load (`load_imagenet`), with the temporal
    shift too. Its four stages are `layer1` (with everything before it) to `layer4`.

    Args:
        channels: Input channels: 1 for a spectrogram, 2 for a flow field, 3 for an image; any number ≥ 1.
        width: Channels of the first stage; the others have 2, 4 and 8 times as many. Torchvision's is 64.
        shift: Temporal shift in every block (TSM).
        pyramid: The output is the pooled maps of all four stages one after the other instead of the last one's.

    Attributes:
        features: Length of the output, 8 · width, with `pyramid` 15 · width.
        widths: Channels after each stage.
    """

    def __init__(self, channels: int = 3, *, width: int = 64, shift: bool = False, pyramid: bool = False) -> None:
        super().__init__()
        w = _at_least_one(width, "width")
        self.widths: tuple[int, ...] = (w, 2 * w, 4 * w, 8 * w)
        self.pyramid = pyramid
        self.features = sum(self.widths) if pyramid else self.widths[-1]
        self.conv1 = nn.Conv2d(_at_least_one(channels, "channels"), w, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(w)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.layer1 = _stage(w, w, 1, shift)
        self.layer2 = _stage(w, 2 * w, 2, shift)
        self.layer3 = _stage(2 * w, 4 * w, 2, shift)
        self.layer4 = _stage(4 * w, 8 * w, 2, shift)
        _initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C, H, W) → (B, features)."""
        return run(self, x)

    def stage(self, number: int, maps: Tensor) -> Tensor:
        """(B, T, C, h, w) → (B, T, widths[number], h', w')."""
        x = _folded(maps)
        if number == 0:
            x = self.maxpool(functional.relu(self.bn1(self.conv1(x))))
        for block in (self.layer1, self.layer2, self.layer3, self.layer4)[number]:
            x = block(x, maps.shape[1])
        return torch.unflatten(x, 0, maps.shape[:2])

    def pool(self, number: int, maps: Tensor) -> Tensor | None:
        """The mean over time and space, (B, widths[number]), where the output has this stage."""
        return mean_over_frames(maps) if self.pyramid or number == len(self.widths) - 1 else None


def _stage(inputs: int, outputs: int, stride: int, shift: bool) -> nn.Sequential:
    return nn.Sequential(BasicBlock(inputs, outputs, stride, shift=shift), BasicBlock(outputs, outputs, 1, shift=shift))


class CNN4(nn.Module):
    """A small network for laptops and tests: four times convolution, max pooling, batch norm and ReLU.

    The first convolution is 5 × 5 with stride 2, the others are 3 × 3. Pooling before batch norm and ReLU, and the
    channels-last layout, together more than halve the CPU time of a training step. Each of the four is a stage.

    Args:
        channels: Input channels.
        width: Channels of the first convolution; the four have w, 2w, 4w and 4w.
        downsample: Side of the squares that the input is averaged over first (1: not at all).
        pyramid: The output is the pooled maps of all four stages one after the other instead of the last one's.

    Attributes:
        features: Length of the output, 4 · width, with `pyramid` 11 · width.
        widths: Channels after each stage.
    """

    def __init__(self, channels: int = 3, *, width: int = 32, downsample: int = 1, pyramid: bool = False) -> None:
        super().__init__()
        self.downsample = _at_least_one(downsample, "downsample")
        w = _at_least_one(width, "width")
        self.widths: tuple[int, ...] = (w, 2 * w, 4 * w, 4 * w)
        self.pyramid = pyramid
        self.features = sum(self.widths) if pyramid else self.widths[-1]
        self.blocks = nn.Sequential(
            _block(_at_least_one(channels, "channels"), w, kernel=5, stride=2),
            _block(w, 2 * w),
            _block(2 * w, 4 * w),
            _block(4 * w, 4 * w),
        )
        _initialise(self)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C, H, W) → (B, features); H and W at least `downsample`."""
        return run(self, x)

    def stage(self, number: int, maps: Tensor) -> Tensor:
        """(B, T, C, h, w) → (B, T, widths[number], h', w')."""
        x = _folded(maps)
        if number == 0 and self.downsample > 1:
            x = functional.avg_pool2d(x, self.downsample)
        x = self.blocks[number](x.contiguous(memory_format=torch.channels_last))
        return torch.unflatten(x, 0, maps.shape[:2])

    def pool(self, number: int, maps: Tensor) -> Tensor | None:
        """The mean over time and space, (B, widths[number]), where the output has this stage."""
        return mean_over_frames(maps) if self.pyramid or number == len(self.widths) - 1 else None


def _block(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False),
        nn.MaxPool2d(2, ceil_mode=True),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


def _at_least_one(value: int, name: str) -> int:
    if value < 1:
        raise OptionError(f"{name} must be at least 1, not {value}")
    return value


def _folded(x: Tensor) -> Tensor:
    """Frames into the batch: (B, T, C, H, W) → (B·T, C, H, W), a view."""
    if x.ndim != 5:
        raise ValueError(f"an encoder's input has the axes (B, T, C, H, W), not the shape {tuple(x.shape)}")
    return x.flatten(0, 1)


def _initialise(module: nn.Module) -> None:
    """He et al. 2015 for convolutions (fan out, as torchvision's ResNet); batch norm keeps torch's 1 and 0."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
