"""Configuration and shards → the model."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from bmlpipe.shards.index import Index
from bmlpipe.train.config import TrainConfig
from bmlpipe.train.encoders import ResNet18, load_imagenet, make_encoder
from bmlpipe.train.fusion import make_fusion
from bmlpipe.train.model import MultimodalModel


def build_model(config: TrainConfig, index: Index) -> MultimodalModel:
    """Encoders for the configured modalities and a head for the shards' classes, initialised by the seed."""
    torch.manual_seed(config.seed)
    channels = {"audio": 1, "visual": 3, "flow": 2 * int(index.features.get("flow", {}).get("stack", 1))}
    encoders: dict[str, nn.Module] = {}
    for modality in config.chosen:
        encoder = make_encoder(config.encoder, modality, channels=channels[modality])
        if config.weights != "none" and isinstance(encoder, ResNet18):
            load_imagenet(encoder, None if config.weights == "imagenet" else Path(str(config.weights)))
        encoders[modality] = encoder
    dims = {modality: int(encoder.features) for modality, encoder in encoders.items()}  # type: ignore[arg-type]
    return MultimodalModel(encoders, make_fusion(config.fusion, dims, len(index.classes)))
