"""From a configuration to the model to train."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from bmlpipe.shards.index import Index
from bmlpipe.shards.kinds import kind_named
from bmlpipe.train.config.options import TrainConfig
from bmlpipe.train.models.encoders.registry import make_encoder
from bmlpipe.train.models.encoders.resnet18 import ResNet18, load_imagenet
from bmlpipe.train.models.fusion.registry import make_fusion, needs_all_stages
from bmlpipe.train.models.intermediate import make_intermediate
from bmlpipe.train.models.multimodal import MultimodalModel
from bmlpipe.train.modulation.rules.gblending import BlendedHead


def build_model(
    config: TrainConfig, index: Index, *, blend: bool = False, weights: Mapping[str, float] | None = None
) -> MultimodalModel:
    """Make the encoders of the configured modalities and a head for the classes of the shards, initialised by the seed.

    Args:
        config: Resolved configuration.
        index: Index of the shards.
        blend: Whether the head gets the branches of GBlending.
        weights: Weights of the branches' losses. None: a checkpoint brings them.
    """
    torch.manual_seed(config.seed)
    encoders: dict[str, nn.Module] = {}
    all_stages = needs_all_stages(config.fusion)
    for modality in config.resolved_modalities:
        encoder = make_encoder(
            config.encoder, modality, channels=_channels(config.kinds[modality], index), all_stages=all_stages
        )
        if config.weights != "none" and isinstance(encoder, ResNet18):
            load_imagenet(encoder, None if config.weights == "imagenet" else Path(str(config.weights)))
        encoders[modality] = encoder
    dims = {modality: int(encoder.feature_dim) for modality, encoder in encoders.items()}  # type: ignore[arg-type]
    stage_channels = (
        {modality: encoder.stage_channels for modality, encoder in encoders.items()} if all_stages else None
    )
    classes = len(index.classes)
    head = make_fusion(
        config.fusion,
        dims,
        classes,
        classifier_layers=config.classifier_layers,
        stage_channels=stage_channels,  # type: ignore[arg-type]
    )
    if blend:
        head = BlendedHead(head, dims, classes, weights)
    return MultimodalModel(encoders, head, make_intermediate(config.intermediate, encoders))


def _channels(kind: str, index: Index) -> int:
    """Return the number of input channels of an encoder of this feature kind: those of all steps of the stack."""
    return kind_named(kind).channels * int(index.features.get(kind, {}).get("stack", 1))
