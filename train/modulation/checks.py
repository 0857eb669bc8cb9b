"""Checks of the options of rules: each raises an `OptionError` that names the option, its value and its range."""

from __future__ import annotations

import math
from typing import get_args

from bmlpipe.manifests.common.errors import OptionError

#: Range of epochs in which a rule acts, (first, end), counted from 0, `end` excluded; end None: to the last epoch.
Epochs = tuple[int, int | None]


def check_choice(name: str, value: str, choices: object) -> None:
    """Check that an option is one of the values of a `Literal`.

    Raises:
        OptionError: It is another value.
    """
    allowed = get_args(choices)
    if value not in allowed:
        raise OptionError(f"{name} must be one of {', '.join(allowed)}, not {value!r}")


def check_flag(name: str, value: bool) -> None:
    """Check that an option is a bool. A word such as `off` is refused, since it would count as true.

    Raises:
        OptionError: It is anything but True or False.
    """
    if value is not True and value is not False:
        raise OptionError(f"{name} must be true or false, not {value!r}")


def check_range(name: str, value: float, low: float, high: float = math.inf) -> None:
    """Check that an option is a finite number in [low, high].

    Raises:
        OptionError: It is no number (a bool does not count), not finite, or outside the range.
    """
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not low <= value <= high or value == math.inf:
        bounds = f"in [{low:g}, {high:g}]" if high < math.inf else f"finite and at least {low:g}"
        raise OptionError(f"{name} must be {bounds}, not {value!r}")


def check_count(name: str, value: int, low: int) -> None:
    """Check that an option is a whole number of at least `low`.

    Raises:
        OptionError: It is smaller.
    """
    if value < low:
        raise OptionError(f"{name} must be at least {low}, not {value}")


def check_below_one(name: str, value: float) -> None:
    """Check that a drop probability is in [0, 1). A probability of 1 would leave nothing.

    Raises:
        OptionError: It is outside [0, 1).
    """
    if not 0 <= value < 1:
        raise OptionError(f"{name} must be in [0, 1), not {value}")


def check_epochs(epochs: Epochs) -> None:
    """Check that a range of epochs is a pair (first, end) with 0 ≤ first < end.

    Raises:
        OptionError: It is no pair, begins before epoch 0 or is empty.
    """
    if not isinstance(epochs, tuple) or len(epochs) != 2:
        raise OptionError(f"epochs must be a pair (first, end), not {epochs!r}")
    first, end = epochs
    if first < 0 or (end is not None and end <= first):
        raise OptionError(f"epochs must be (first, end) with 0 ≤ first < end, not {epochs}")


def is_within(epochs: Epochs, epoch: int) -> bool:
    """Return whether an epoch, counted from 0, lies in the range."""
    first, end = epochs
    return first <= epoch and (end is None or epoch < end)
