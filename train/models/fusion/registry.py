"""Fusion heads by name: those of bmlpipe and those of other packages."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn

from bmlpipe.manifests.common.errors import OptionError
from bmlpipe.train.config.registries import FUSIONS
from bmlpipe.train.models.fusion.classifier import DeepConcatenation
from bmlpipe.train.models.fusion.linear import Concatenation


def concatenation(dims: Mapping[str, int], classes: int, *, classifier_layers: int = 1) -> nn.Module:
    """Make a concatenation with a linear classifier, or with a classifier of several layers."""
    if classifier_layers == 1:
        return Concatenation(dims, classes)
    return DeepConcatenation(dims, classes, classifier_layers=classifier_layers)


def make_fusion(
    name: str,
    dims: Mapping[str, int],
    classes: int,
    *,
    classifier_layers: int = 1,
    stage_channels: Mapping[str, Sequence[int]] | None = None,
) -> nn.Module:
    """Make a new fusion head.

    Args:
        name: A name of `FUSIONS`. A plug-in is a callable with the arguments (dims, classes), and with the keywords
            `classifier_layers` and `stage_channels` if it uses them.
        dims: Modality → length D_m of its feature, in the order of the modalities.
        classes: Number of classes K.
        classifier_layers: Number of linear layers of the classifier, 1 or more.
        stage_channels: Modality → lengths of the parts of its feature, one per stage of its encoder. Only heads that
            need all stages (`needs_all_stages`) receive it.

    Returns:
        A module {m: (B, D_m)} → (B, K).

    Raises:
        OptionError: The name is unknown, there are too few modalities, or the head takes no `classifier_layers` and
            more than one is asked for.
        PluginError: A head of another package cannot be loaded.
    """
    maker = _maker(name)
    takes = inspect.signature(maker).parameters
    options: dict[str, Any] = {}
    if "classifier_layers" in takes:
        options["classifier_layers"] = classifier_layers
    elif classifier_layers != 1:
        raise OptionError(
            f"fusion {name!r} has no keyword `classifier_layers`, so it cannot have {classifier_layers}: use 1"
        )
    if stage_channels is not None and "stage_channels" in takes:
        options["stage_channels"] = stage_channels
    return maker(dims, classes, **options)


def needs_all_stages(name: str) -> bool:
    """Return whether a head reads the features of all stages (encoders with `all_stages=True`, `stage_channels`).

    Raises:
        OptionError: The name is unknown.
        PluginError: A head of another package cannot be loaded.
    """
    return "stage_channels" in inspect.signature(_maker(name)).parameters


def _maker(name: str) -> Callable[..., nn.Module]:
    if name not in FUSIONS:
        raise OptionError(f"unknown fusion {name!r}; known: {', '.join(sorted(FUSIONS))}")
    return FUSIONS[name]
