"""The temporal shift (Lin, Gan, Han, ICCV 2019): a 2D network sees the neighbours of a frame, without arithmetic."""

from __future__ import annotations

import torch
from torch import Tensor

#: One channel in so many moves forward in time, and one back: the paper's 1/8 each way.
SHARE = 8


def temporal_shift(x: Tensor, frames: int) -> Tensor:
    """Replace 1/8 of the channels by the next frame's and the second 1/8 by the last frame's.

    The first and the last frame of a clip get zeros where they have no neighbour. A single frame has none at all and
    is given back as it is: zeros in a quarter of its channels would only blind it.

    Args:
        x: Frames of clips one after the other, (B·T, C, H, W); of C, the channels ⌊C/8⌋ to 2⌊C/8⌋ come from the past,
            those before them from the future.
        frames: T, frames of a clip.

    Returns:
        (B·T, C, H, W), in the memory format of `x`.
    """
    if frames == 1:
        return x
    fold = x.shape[1] // SHARE
    out = x.clone()
    old, new = (torch.unflatten(each, 0, (-1, frames)) for each in (x, out))
    new[:, :-1, :fold] = old[:, 1:, :fold]
    new[:, -1, :fold] = 0
    new[:, 1:, fold : 2 * fold] = old[:, :-1, fold : 2 * fold]
    new[:, 0, fold : 2 * fold] = 0
    return out
