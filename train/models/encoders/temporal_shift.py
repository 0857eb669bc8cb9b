"""The temporal shift (Lin, Gan, Han, ICCV 2019): a 2D network sees neighbouring frames without extra arithmetic."""

from __future__ import annotations

import torch
from torch import Tensor

# One channel in 8 comes from the next frame and one in 8 from the last frame, as in the paper.
_SHIFT_DIVISOR = 8


def temporal_shift(x: Tensor, frames: int) -> Tensor:
    """Replace 1/8 of the channels by those of the next frame, and another 1/8 by those of the last frame.

    The first and the last frame of a clip get zeros where they have no neighbour. A single frame has no neighbour and
    is returned unchanged, because zeros in a quarter of its channels would only remove information.

    Args:
        x: The frames of the clips one after the other, (B·T, C, H, W). Channels 0 to ⌊C/8⌋ − 1 are taken from the next
            frame, channels ⌊C/8⌋ to 2⌊C/8⌋ − 1 from the last one.
        frames: Number of frames per clip, T.

    Returns:
        (B·T, C, H, W), in the memory format of `x`.
    """
    if frames == 1:
        return x
    fold = x.shape[1] // _SHIFT_DIVISOR
    out = x.clone()
    old, new = (torch.unflatten(each, 0, (-1, frames)) for each in (x, out))
    new[:, :-1, :fold] = old[:, 1:, :fold]
    new[:, -1, :fold] = 0
    new[:, 1:, fold : 2 * fold] = old[:, :-1, fold : 2 * fold]
    new[:, 0, fold : 2 * fold] = 0
    return out
