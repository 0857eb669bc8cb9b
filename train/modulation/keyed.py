"""Random numbers that are pure functions of a key: the same on every rank and device, and after every restart."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

# Constants of splitmix64 (Steele, Lea, Flood 2014), as the signed integers with which torch computes.
_GAMMA = 0x9E3779B97F4A7C15 - (1 << 64)
_MIX1 = 0xBF58476D1CE4E5B9 - (1 << 64)
_MIX2 = 0x94D049BB133111EB - (1 << 64)


def key(*parts: int | str) -> int:
    """Make a 63-bit key from integers and names, the same on every machine and Python version."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def uniform(ids: Tensor, stream: int) -> Tensor:
    """Draw one uniform random number per id.

    The number of id n is output n of the generator splitmix64 seeded with `stream`. It is computed directly, and does
    not depend on which other numbers are drawn.

    Args:
        ids: int64, of any shape.
        stream: Key of the stream, from `key`.

    Returns:
        float64 in [0, 1), multiples of 2⁻⁵³, with the shape and device of `ids`.
    """
    z = (ids + 1) * _GAMMA + stream  # int64 wraps around, as the algorithm requires
    z = (z ^ _shift(z, 30)) * _MIX1
    z = (z ^ _shift(z, 27)) * _MIX2
    z = z ^ _shift(z, 31)
    return _shift(z, 11).to(torch.float64) * 2.0**-53


def chance(*parts: int | str) -> float:
    """Draw one uniform random number in [0, 1) for a key, on the host."""
    return key(*parts) / 2.0**63


def _shift(z: Tensor, bits: int) -> Tensor:
    """Shift int64 to the right, filling with zeros."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)
