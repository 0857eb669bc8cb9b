"""ResNet-18, with or without the temporal shift, and torchvision's ImageNet weights for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from bmlpipe.manifests.common.errors import OptionError
from bmlpipe.train.models.encoders.layers import check_positive, fold_frames, initialise_convolutions, mean_over_frames
from bmlpipe.train.models.encoders.staged_encoder import run_stages
from bmlpipe.train.models.encoders.temporal_shift import temporal_shift

#: torchvision's ImageNet weights of ResNet-18. The name holds the first 8 digits of the SHA-256 of the file.
IMAGENET_URL = "https://download.pytorch.org/models/resnet18-f37072fd.pth"


class BasicBlock(nn.Module):
    """Two 3 × 3 convolutions and a shortcut (He et al. 2016, Fig. 2), with torchvision's parameter names.

    With `shift`, the convolutions see channels of the neighbouring frames and the shortcut does not (residual shift,
    Lin et al. 2019, Sec. 4.2).
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
        """Run the block: (N, inputs, H, W) → (N, outputs, ⌈H/stride⌉, ⌈W/stride⌉); N is a multiple of `frames`."""
        shortcut = x if self.downsample is None else self.downsample(x)
        x = temporal_shift(x, frames) if self.shift else x
        x = functional.relu(self.bn1(self.conv1(x)))
        return functional.relu(self.bn2(self.conv2(x)) + shortcut)


class ResNet18(nn.Module):
    """ResNet-18 (He et al. 2016, Table 1) without its classifier, for any number of input channels.

    The frames of a sample share the network and are averaged over time and space. Names and shapes of the parameters
    are torchvision's, with the temporal shift too, so that its weight files load (`load_imagenet`). The four stages are
    `layer1`, with everything before it, to `layer4`.

    Args:
        channels: Number of input channels, 1 or more: 1 for a spectrogram, 2 for a flow field, 3 for an image.
        width: Channels of the first stage; the other stages have 2, 4 and 8 times as many. Torchvision's width is 64.
        shift: Apply the temporal shift in every block (TSM).
        all_stages: The feature concatenates the pooled maps of all four stages instead of those of the last one.

    Attributes:
        feature_dim: Length of the feature, 8 · width, or 15 · width with `all_stages`.
        stage_channels: Number of channels after each stage.

    Raises:
        OptionError: `channels` or `width` is below 1.
    """

    def __init__(self, channels: int = 3, *, width: int = 64, shift: bool = False, all_stages: bool = False) -> None:
        super().__init__()
        w = check_positive(width, "width")
        self.stage_channels: tuple[int, ...] = (w, 2 * w, 4 * w, 8 * w)
        self.all_stages = all_stages
        self.feature_dim = sum(self.stage_channels) if all_stages else self.stage_channels[-1]
        self.conv1 = nn.Conv2d(check_positive(channels, "channels"), w, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(w)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.layer1 = _layer(w, w, 1, shift)
        self.layer2 = _layer(w, 2 * w, 2, shift)
        self.layer3 = _layer(2 * w, 4 * w, 2, shift)
        self.layer4 = _layer(4 * w, 8 * w, 2, shift)
        initialise_convolutions(self)

    def forward(self, x: Tensor) -> Tensor:
        """Encode a batch: (B, T, C, H, W) → (B, feature_dim)."""
        return run_stages(self, x)

    def stage(self, number: int, maps: Tensor) -> Tensor:
        """Run one stage: (B, T, C, h, w) → (B, T, stage_channels[number], h', w')."""
        x = fold_frames(maps)
        if number == 0:
            x = self.maxpool(functional.relu(self.bn1(self.conv1(x))))
        for block in (self.layer1, self.layer2, self.layer3, self.layer4)[number]:
            x = block(x, maps.shape[1])
        return torch.unflatten(x, 0, maps.shape[:2])

    def pool(self, number: int, maps: Tensor) -> Tensor | None:
        """Average over time and space, (B, stage_channels[number]), if the feature includes this stage."""
        return mean_over_frames(maps) if self.all_stages or number == len(self.stage_channels) - 1 else None


def load_imagenet(encoder: ResNet18, file: Path | None = None, *, url: str = IMAGENET_URL) -> None:
    """Load torchvision's ImageNet weights into an encoder.

    The classifier (`fc.*`) is left out. If the encoder has C ≠ 3 input channels, each channel of its first convolution
    gets the mean over RGB (cross-modality pre-training, Wang et al. 2016), times 3/C, so that an input that is the same
    in all channels gives the response of a grey image.

    Args:
        encoder: Changed in place.
        file: A local copy. None: download `url` into torch's hub cache, unless it is there already.
        url: Its name must end with `-<first digits of the SHA-256>.<ending>`; the download is checked against it.

    Raises:
        OptionError: The file does not hold the weights of ResNet-18. The message names an entry that is missing, extra
            or of another shape.
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
    for name in own:  # files that are older than the counter of batch norm lack it
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
        raise OptionError(
            f"{source} does not hold the weights of ResNet-18: {len(wrong)} entries are missing, extra or of another "
            f"shape, the first is {wrong[0]!r}. Use torchvision's file, {IMAGENET_URL}"
        )
    encoder.load_state_dict(weights)


def _layer(inputs: int, outputs: int, stride: int, shift: bool) -> nn.Sequential:
    return nn.Sequential(BasicBlock(inputs, outputs, stride, shift=shift), BasicBlock(outputs, outputs, 1, shift=shift))
