"""Fractions as people read them. Files for other programs hold fractions from 0 to 1."""

from __future__ import annotations

import math


def percent(fraction: float) -> str:
    """Format a fraction in per cent, with one decimal.

    Examples:
        >>> percent(0.1604), percent(float("nan"))
        ('16.0%', '-')
    """
    return f"{100 * fraction:.1f}%" if math.isfinite(fraction) else "-"
