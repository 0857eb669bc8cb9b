"""Encoders by name: the input of one modality, (B, T, C, H, W), to one feature vector per sample, (B, D).

B samples, T frames (1 for a spectrogram), C channels (1 for audio, 2 per flow field, 3 for images), H × W pixels or
frequency × time bins. docs/models.md describes the encoders, and how to register one of your own.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable

from torch import nn

from bmlpipe.manifests.common.errors import OptionError
from bmlpipe.train.config.registries import ENCODERS
from bmlpipe.train.models.encoders.cnn4 import CNN4
from bmlpipe.train.models.encoders.resnet18 import ResNet18

# How much `cnn4` averages the input of a modality: spectrograms are an order of magnitude larger than frames.
_CNN4_DOWNSAMPLE = {"audio": 4}


def resnet18(modality: str, channels: int, *, all_stages: bool = False) -> ResNet18:
    """Make a ResNet-18 that reads every frame (TSN if there are several)."""
    return ResNet18(channels, all_stages=all_stages)


def tsm18(modality: str, channels: int, *, all_stages: bool = False) -> ResNet18:
    """Make a ResNet-18 with the temporal shift (TSM)."""
    return ResNet18(channels, shift=True, all_stages=all_stages)


def cnn4(modality: str, channels: int, *, all_stages: bool = False) -> CNN4:
    """Make a small network of four convolutions."""
    return CNN4(channels, downsample=_CNN4_DOWNSAMPLE.get(modality, 1), all_stages=all_stages)


def make_encoder(name: str, modality: str, *, channels: int, all_stages: bool = False) -> nn.Module:
    """Make a new encoder.

    Args:
        name: A name of `ENCODERS`. A plug-in is a callable with the arguments (modality, channels), and with the
            keyword `all_stages` if it offers that.
        modality: The modality that it will read: `audio`, `visual`, `flow`, …
        channels: Number of input channels.
        all_stages: Its feature must include all stages, as some fusions require
            (`bmlpipe.train.models.fusion.registry.needs_all_stages`).

    Returns:
        A module (B, T, C, H, W) → (B, D) with the attribute `feature_dim` = D.

    Raises:
        OptionError: The name is unknown, the encoder has no `feature_dim`, or it does not offer `all_stages` where that
            is required.
        PluginError: An encoder of another package cannot be loaded.
    """
    if name not in ENCODERS:
        raise OptionError(f"unknown encoder {name!r}; known: {', '.join(sorted(ENCODERS))}")
    maker: Callable[..., nn.Module] = ENCODERS[name]
    if not all_stages:
        encoder = maker(modality, channels)
    elif "all_stages" in inspect.signature(maker).parameters:
        encoder = maker(modality, channels, all_stages=True)
    else:
        raise OptionError(
            f"encoder {name!r} does not offer features of all its stages (its maker has no keyword `all_stages`), "
            f"which this fusion needs. Use another fusion, or one of {', '.join(sorted(ENCODERS.own))}"
        )
    if not hasattr(encoder, "feature_dim"):
        raise OptionError(f"encoder {name!r} must have the attribute `feature_dim`, the length of its output")
    return encoder
