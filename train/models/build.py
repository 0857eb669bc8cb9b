"""Configuration → the shards to read and the model to train."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from bmlpipe.shards.index import Index
from bmlpipe.train.config.options import TrainConfig
from bmlpipe.train.models.encoders.networks import ResNet18
from bmlpipe.train.models.encoders.registry import load_imagenet, make_encoder
from bmlpipe.train.models.fusion import make_fusion, reads_pyramid
from bmlpipe.train.models.intermediate import make_exchange
from bmlpipe.train.models.multimodal import MultimodalModel
from bmlpipe.train.modulation.rules.gblending import BlendedHead


def build_model(
    config: TrainConfig, index: Index, *, blend: bool = False, weights: Mapping[str, float] | None = None
) -> MultimodalModel:
    """Encoders for the configured modalities and a head for the shards' classes, initialised by the seed.

    Args:
        config: Resolved configuration.
        index: Of the shards.
        blend: Give the head GBlending's branches.
        weights: Theirs; None: a checkpoint will bring them.
    """
    torch.manual_seed(config.seed)
    encoders: dict[str, nn.Module] = {}
    pyramid = reads_pyramid(config.fusion)
    for modality in config.chosen:
        encoder = make_encoder(config.encoder, modality, channels=_channels(modality, index), pyramid=pyramid)
        if config.weights != "none" and isinstance(encoder, ResNet18):
            load_imagenet(encoder, None if config.weights == "imagenet" else Path(str(config.weights)))
        encoders[modality] = encoder
    dims = {modality: int(encoder.features) for modality, encoder in encoders.items()}  # type: ignore[arg-type]
    widths = {modality: encoder.widths for modality, encoder in encoders.items()} if pyramid else None
    classes = len(index.classes)
    head = make_fusion(config.fusion, dims, classes, classifier_layers=config.classifier_layers, widths=widths)  # type: ignore[arg-type]
    if blend:
        head = BlendedHead(head, dims, classes, weights)
    return MultimodalModel(encoders, head, make_exchange(config.intermediate, encoders))


def _channels(modality: str, index: Index) -> int:
    """Input channels: a flow or difference sample shows several consecutive ones at each instant."""
    one = {"audio": 1, "visual": 3, "flow": 2, "rgb_diff": 3}[modality]
    return one * int(index.features.get(modality, {}).get("stack", 1)) if modality in ("flow", "rgb_diff") else one
