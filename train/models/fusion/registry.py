"""Fusion heads by name, ours and those of installed packages."""

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
    """Concatenation and a linear classifier, or one of several layers."""
    if classifier_layers == 1:
        return Concatenation(dims, classes)
    return DeepConcatenation(dims, classes, classifier_layers=classifier_layers)


def make_fusion(
    name: str,
    dims: Mapping[str, int],
    classes: int,
    *,
    classifier_layers: int = 1,
    widths: Mapping[str, Sequence[int]] | None = None,
) -> nn.Module:
    """A new head.

    Args:
        name: A key of `FUSIONS`, or the name of an entry point of the group `bmlpipe.fusions`: a callable with the
            arguments (dims, classes), and the keywords `classifier_layers` and `widths` where it has a use for them.
        dims: Modality → length of its feature, in the order of the modalities.
        classes: K.
        classifier_layers: Linear layers of the classifier, 1 or more.
        widths: Modality → lengths of the parts that the encoder's stages gave to the feature; only for a head that
            `reads_pyramid`, any other one is made without.

    Raises:
        OptionError: Unknown name, fewer modalities than the head needs, or a head that has one layer only.
    """
    maker = _maker(name)
    takes = inspect.signature(maker).parameters
    options: dict[str, Any] = {}
    if "classifier_layers" in takes:
        options["classifier_layers"] = classifier_layers
    elif classifier_layers != 1:
        raise OptionError(f"fusion {name!r} takes no classifier_layers (its maker does not name it): leave it at 1")
    if widths is not None and "widths" in takes:
        options["widths"] = widths
    return maker(dims, classes, **options)


def reads_pyramid(name: str) -> bool:
    """Whether a head wants the features of all stages: encoders made with `pyramid=True`, and their `widths`.

    Raises:
        OptionError: Unknown name.
    """
    return "widths" in inspect.signature(_maker(name)).parameters


def _maker(name: str) -> Callable[..., nn.Module]:
    if name not in FUSIONS:
        raise OptionError(f"unknown fusion {name!r}; known: {', '.join(sorted(FUSIONS))}")
    return FUSIONS[name]
