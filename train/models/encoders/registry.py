"""Encoders by name: one modality's input (B, T, C, H, W) to one feature vector a sample, (B, D).

B samples, T frames (1 for a spectrogram), C channels (audio 1, flow 2 a field, images 3), H × W pixels or
frequency × time bins. Which encoder is what, and how to register one of one's own: docs/models.md.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bmlpipe.manifests.common.errors import OptionError
from bmlpipe.train.config.registries import ENCODERS
from bmlpipe.train.models.encoders.networks import CNN4, ResNet18

__all__ = ["CNN4", "ENCODERS", "ResNet18", "load_imagenet", "make_encoder"]

#: torchvision's ImageNet weights of ResNet-18; the name holds the first 8 digits of the file's SHA-256.
IMAGENET_URL = "https://download.pytorch.org/models/resnet18-f37072fd.pth"


def resnet18(modality: str, channels: int, *, pyramid: bool = False) -> ResNet18:
    """ResNet-18 on every frame."""
    return ResNet18(channels, pyramid=pyramid)


def tsm18(modality: str, channels: int, *, pyramid: bool = False) -> ResNet18:
    """ResNet-18 with temporal shift."""
    return ResNet18(channels, shift=True, pyramid=pyramid)


#: How much `cnn4` averages each modality's input down: spectrograms are an order of magnitude larger than frames.
_CNN4_DOWNSAMPLE = {"audio": 4}


def cnn4(modality: str, channels: int, *, pyramid: bool = False) -> CNN4:
    """The small CNN of four convolutions."""
    return CNN4(channels, downsample=_CNN4_DOWNSAMPLE.get(modality, 1), pyramid=pyramid)


def make_encoder(name: str, modality: str, *, channels: int, pyramid: bool = False) -> nn.Module:
    """A new encoder.

    Args:
        name: A key of `ENCODERS`, or the name of an entry point of the group `bmlpipe.encoders`: a callable with the
            arguments (modality, channels), and a keyword `pyramid` where it offers that.
        modality: What it will read: `audio`, `visual`, `flow`, …
        channels: Its input channels.
        pyramid: Its features are those of all its stages (for a head that asks for them,
            `bmlpipe.train.models.fusion.reads_pyramid`).

    Returns:
        A module (B, T, C, H, W) → (B, D) with the attribute `features` = D.

    Raises:
        OptionError: Unknown name, an encoder without `features`, or one that offers no pyramid where one is asked for.
    """
    if name not in ENCODERS:
        raise OptionError(f"unknown encoder {name!r}; known: {', '.join(sorted(ENCODERS))}")
    maker: Callable[..., nn.Module] = ENCODERS[name]
    if not pyramid:
        encoder = maker(modality, channels)
    elif "pyramid" in inspect.signature(maker).parameters:
        encoder = maker(modality, channels, pyramid=True)
    else:
        raise OptionError(
            f"encoder {name!r} offers no features of its stages (its maker takes no `pyramid`), which this fusion "
            f"needs; choose another fusion, or one of {', '.join(sorted(ENCODERS.own))}"
        )
    if not hasattr(encoder, "features"):
        raise OptionError(f"encoder {name!r} must have the attribute `features`, the length of its output")
    return encoder


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
        OptionError: The file holds something else than ResNet-18's weights; names what is missing, extra or misshapen.
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
        raise OptionError(
            f"{source} does not hold the weights of ResNet-18: {len(wrong)} entries are missing, extra or of another "
            f"shape, first {wrong[0]!r}; the file is torchvision's, {IMAGENET_URL}"
        )
    encoder.load_state_dict(weights)
