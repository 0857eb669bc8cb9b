"""Random numbers that are a pure function of their key: the same on every rank, device and after every restart."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

# splitmix64 (Steele, Lea, Flood 2014), its constants as the signed integers that torch computes with.
_GAMMA = 0x9E3779B97F4A7C15 - (1 << 64)
_MIX1 = 0xBF58476D1CE4E5B9 - (1 << 64)
_MIX2 = 0x94D049BB133111EB - (1 << 64)


def key(*parts: int | str) -> int:
    """A 63-bit key of whole numbers and names, the same on every machine and Python version."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def uniform(ids: Tensor, stream: int) -> Tensor:
    """A uniform number for each id.

    Number n of the stream is output n of the generator splitmix64 seeded with `stream`, so any id is one look-up and
    no number depends on which others are drawn.

    Args:
        ids: int64, any shape.
        stream: The key of the stream, see `key`.

    Returns:
        float64 in [0, 1), multiples of 2⁻⁵³, the shape and device of `ids`.
    """
    z = (ids + 1) * _GAMMA + stream  # int64 wraps around, as the algorithm wants
    z = (z ^ _shift(z, 30)) * _MIX1
    z = (z ^ _shift(z, 27)) * _MIX2
    z = z ^ _shift(z, 31)
    return _shift(z, 11).to(torch.float64) * 2.0**-53


def chance(*parts: int | str) -> float:
    """One uniform number in [0, 1) for a key, on the host."""
    return key(*parts) / 2.0**63


def _shift(z: Tensor, bits: int) -> Tensor:
    """Logical shift to the right of int64."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)
