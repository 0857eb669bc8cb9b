"""Draw optical flow in colours."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Picture = npt.NDArray[np.uint8]

_WHEEL_SIDE = 96  # pixels


def flow_colours(field: npt.NDArray[np.floating[Any]], radius: float) -> Picture:
    """Colour a field of displacements by direction (hue) and length (saturation).

    Args:
        field: (H, W, 2), x to the right and y downwards.
        radius: Length that gets full saturation, in the field's unit.

    Returns:
        (H, W, 3), uint8. No motion is white; motion to the right is red (0°), down yellow-green (90°), to the left cyan
        (180°), up violet (270°).
    """
    from matplotlib.colors import hsv_to_rgb

    x, y = field[..., 0], field[..., 1]
    hue = np.arctan2(y, x) / (2 * np.pi) % 1
    saturation = np.minimum(np.hypot(x, y) / radius, 1)
    colours = hsv_to_rgb(np.stack([hue, saturation, np.ones_like(hue)], axis=-1))
    picture: Picture = np.rint(255 * colours).astype(np.uint8)
    return picture


def flow_wheel(side: int = _WHEEL_SIDE) -> Picture:
    """Draw the legend of `flow_colours`: the colour of each displacement up to the radius, on a white square."""
    place = (np.arange(side) + 0.5) / side * 2 - 1
    field = np.stack(np.meshgrid(place, place), axis=-1)
    wheel = flow_colours(field, 1.0)
    wheel[np.hypot(field[..., 0], field[..., 1]) > 1] = 255
    return wheel
