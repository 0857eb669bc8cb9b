"""Functions that the encoders share: folding of frames, the mean over them, and initialisation."""

from __future__ import annotations

from torch import Tensor, nn

from bmlpipe.manifests.common.errors import OptionError


def fold_frames(x: Tensor) -> Tensor:
    """Fold the frames into the batch: (B, T, C, H, W) → (B·T, C, H, W), a view.

    Raises:
        OptionError: `x` does not have five axes.
    """
    if x.ndim != 5:
        raise OptionError(f"the input of an encoder must have the axes (B, T, C, H, W), not the shape {tuple(x.shape)}")
    return x.flatten(0, 1)


def mean_over_frames(maps: Tensor) -> Tensor:
    """Average over the cells of a frame, then over the frames: (B, T, C, h, w) → (B, C)."""
    return maps.mean(dim=(3, 4)).mean(dim=1)


def initialise_convolutions(module: nn.Module) -> None:
    """Initialise convolutions as He et al. 2015 do (fan out, as torchvision's ResNet).

    Batch norm keeps torch's scale 1 and shift 0.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")


def check_positive(value: int, name: str) -> int:
    """Return the value, if it is at least 1.

    Raises:
        OptionError: It is below 1.
    """
    if value < 1:
        raise OptionError(f"{name} must be at least 1, not {value}")
    return value
