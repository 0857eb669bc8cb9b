"""Encoders: one modality's input (B, T, C, H, W) to one feature vector a sample, (B, D).

B samples, T frames (1 for a spectrogram), C channels (audio 1, flow 2 a field, images 3), H × W pixels or
frequency × time bins. The frames of a sample share the encoder and are averaged over time and space.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

#: torchvision's ImageNet weights of ResNet-18; the name holds the first 8 digits of the file's SHA-256.
IMAGENET_URL = "https://download.pytorch.org/models/resnet18-f37072fd.pth"


class BasicBlock(nn.Module):
    """Two 3 × 3 convolutions and a shortcut (He et al. 2016, Fig. 2), with torchvision's parameter names."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample: nn.Sequential | None = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) → (N, outputs, ⌈H/stride⌉, ⌈W/stride⌉)."""
        shortcut = x if self.downsample is None else self.downsample(x)
        x = functional.relu(self.bn1(self.conv1(x)))
        return functional.relu(self.bn2(self.conv2(x)) + shortcut)


def _stage(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    return nn.Sequential(BasicBlock(inputs, outputs, stride), BasicBlock(outputs, outputs, 1))


class ResNet18(nn.Module):
    """ResNet-18 (He et al. 2016, Table 1) without its classifier, for any number of input channels.

    Names and shapes of parameters are torchvision's, so that its weight files load (`load_imagenet`).

    Args:
        channels: Input channels: 1 for a spectrogram, 2 for a flow field, 3 for an image; any number ≥ 1.

    Attributes:
        features: Length of the output, 512.
    """

    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        self.features = 512
        self.conv1 = nn.Conv2d(_at_least_one(channels, "channels"), 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.layer1 = _stage(64, 64, 1)
        self.layer2 = _stage(64, 128, 2)
        self.layer3 = _stage(128, 256, 2)
        self.layer4 = _stage(256, 512, 2)
        _initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C, H, W) → (B, 512)."""
        frames, restore = _fold(x)
        frames = self.maxpool(functional.relu(self.bn1(self.conv1(frames))))
        return restore(self.layer4(self.layer3(self.layer2(self.layer1(frames)))))


def _block(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False),
        nn.MaxPool2d(2, ceil_mode=True),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


class CNN4(nn.Module):
    """A small network for laptops and tests: four times convolution, max pooling, batch norm and ReLU.

    The first convolution is 5 × 5 with stride 2, the others are 3 × 3. Pooling before batch norm and ReLU, and the
    channels-last layout, together more than halve the CPU time of a training step.

    Args:
        channels: Input channels.
        width: Channels of the first convolution; the four have w, 2w, 4w and 4w.
        downsample: Side of the squares that the input is averaged over first (1: not at all).

    Attributes:
        features: Length of the output, 4 · width.
    """

    def __init__(self, channels: int = 3, *, width: int = 32, downsample: int = 1) -> None:
        super().__init__()
        self.downsample = _at_least_one(downsample, "downsample")
        self.features = 4 * _at_least_one(width, "width")
        self.blocks = nn.Sequential(
            _block(_at_least_one(channels, "channels"), width, kernel=5, stride=2),
            _block(width, 2 * width),
            _block(2 * width, 4 * width),
            _block(4 * width, 4 * width),
        )
        _initialise(self)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C, H, W) → (B, 4 · width); H and W at least `downsample`."""
        frames, restore = _fold(x)
        if self.downsample > 1:
            frames = functional.avg_pool2d(frames, self.downsample)
        return restore(self.blocks(frames.contiguous(memory_format=torch.channels_last)))


#: How much `cnn4` averages each modality's input down: spectrograms are an order of magnitude larger than frames.
_CNN4_DOWNSAMPLE = {"audio": 4}

#: Name → maker of an encoder from (modality, channels).
ENCODERS: dict[str, Callable[[str, int], nn.Module]] = {
    "resnet18": lambda modality, channels: ResNet18(channels),
    "cnn4": lambda modality, channels: CNN4(channels, downsample=_CNN4_DOWNSAMPLE.get(modality, 1)),
}


def make_encoder(name: str, modality: str, *, channels: int) -> nn.Module:
    """A new encoder.

    Args:
        name: A key of `ENCODERS`.
        modality: What it will read: `audio`, `visual`, `flow`, …
        channels: Its input channels.

    Returns:
        A module (B, T, C, H, W) → (B, D) with the attribute `features` = D.

    Raises:
        ValueError: Unknown name.
    """
    if name not in ENCODERS:
        raise ValueError(f"unknown encoder {name!r}; known: {', '.join(sorted(ENCODERS))}")
    return ENCODERS[name](modality, channels)


def load_imagenet(encoder: ResNet18, file: Path | None = None, *, url: str = IMAGENET_URL) -> None:
    """Load torchvision's ImageNet weights.

    The classifier (`fc.*`) is left out. The first convolution of an encoder with C ≠ 3 channels gets the mean over
    RGB in each channel (Wang et al. 2016, cross-modality pre-training), times 3/C, so that an input that is the same in
    all channels gets the response that a grey image gets.

    Args:
        encoder: Changed in place.
        file: A local copy; None downloads `url` into torch's hub cache, where it is found the next time.
        url: Its name must end with `-<first digits of the SHA-256>.<ending>`; the download is checked against it.

    Raises:
        ValueError: The file holds something else than ResNet-18's weights; names what is missing, extra or misshapen.
    """
    if file is None:
        source = url
        weights: dict[str, Any] = torch.hub.load_state_dict_from_url(
            url, map_location="cpu", progress=False, check_hash=True, weights_only=True
        )
    else:
        source = str(file)
        weights = torch.load(file, map_location="cpu", weights_only=True)
    own = encoder.state_dict()
    weights = {name: value for name, value in weights.items() if not name.startswith("fc.")}
    for name in own:  # files older than batch norm's counter lack it
        if name.endswith("num_batches_tracked"):
            weights.setdefault(name, own[name])
    channels = own["conv1.weight"].shape[1]
    first = weights.get("conv1.weight")
    if channels != 3 and isinstance(first, Tensor) and first.ndim == 4 and first.shape[1] == 3:
        mean = first.mean(dim=1, keepdim=True)
        weights["conv1.weight"] = mean.repeat(1, channels, 1, 1) * (3 / channels)
    wrong = sorted(own.keys() ^ weights.keys())
    wrong += [name for name in own.keys() & weights.keys() if own[name].shape != weights[name].shape]
    if wrong:
        raise ValueError(
            f"{source} does not hold the weights of ResNet-18: {len(wrong)} entries are missing, extra or of another "
            f"shape, first {wrong[0]!r}; the file is torchvision's, {IMAGENET_URL}"
        )
    encoder.load_state_dict(weights)


def _at_least_one(value: int, name: str) -> int:
    if value < 1:
        raise ValueError(f"{name} must be at least 1, not {value}")
    return value


def _fold(x: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """Frames into the batch, and the way back: (B·T, D, h, w) → mean over time and space (B, D)."""
    if x.ndim != 5:
        raise ValueError(f"an encoder's input has the axes (B, T, C, H, W), not the shape {tuple(x.shape)}")
    batch, time = x.shape[:2]
    return x.flatten(0, 1), lambda maps: maps.mean(dim=(2, 3)).unflatten(0, (batch, time)).mean(dim=1)


def _initialise(module: nn.Module) -> None:
    """He et al. 2015 for convolutions (fan out, as torchvision's ResNet); batch norm keeps torch's 1 and 0."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
