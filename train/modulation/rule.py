"""What every modulation is: a rule with a forward and a backward stage, and what it may know at a step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

#: Epochs in which a rule acts, counted from 0: the first one, and the first one no more (None: to the end).
Epochs = tuple[int, int | None]


@dataclass
class Step:
    """What a rule knows at a step, and where it notes what it did.

    Attributes:
        modalities: Their names, in the order of every (M,) tensor.
        seed: Of the run.
        epoch: Counted from 0.
        index: Number of the step, counted from 0 over all epochs.
        ratio: ρ^m, (M,), float64, on the device. Forward: the last step's (this one's for a rule with `same_step`).
            Backward: this step's.
        neutral: The value of ρ at which nothing is to be done.
        ids: Sample ids of the (micro-)batch, (B,), int64; None in the backward stage.
        q: Noted by the forward stage: probability of a drop, (M,), float64.
        k: Noted by the backward stage: factor of the gradient, (M,), float64.
        dropped: Noted by the forward stage: samples dropped in this (micro-)batch on this rank, (M,), float64.
    """

    modalities: tuple[str, ...]
    seed: int
    epoch: int
    index: int
    ratio: Tensor
    neutral: float
    ids: Tensor | None = None
    q: Tensor | None = None
    k: Tensor | None = None
    dropped: Tensor | None = None


class Rule:
    """The interface of a modulation. A rule overrides one stage or both and keeps no state of its own.

    Both stages run at every step on every rank and give the same on all of them; nothing in them waits for the device.
    """

    #: Whether the forward stage is driven by this step's ratio instead of the last one's.
    same_step: bool = False

    def forward(self, features: dict[str, Tensor], step: Step) -> dict[str, Tensor]:
        """Change the features {m: (B, D_m)} that the head gets."""
        return features

    def backward(self, encoders: Mapping[str, nn.Module], step: Step) -> None:
        """Change the gradients of the encoders in place (a new `.grad` would break DDP's bucket views)."""


def check_epochs(epochs: Epochs) -> None:
    """Refuse a window that begins before epoch 0 or never acts.

    Raises:
        ValueError: With the window.
    """
    start, stop = epochs
    if start < 0 or (stop is not None and stop <= start):
        raise ValueError(f"epochs must be (first, end) with 0 ≤ first < end, not {epochs}")


def within(epochs: Epochs, epoch: int) -> bool:
    """Whether an epoch lies in the window."""
    start, stop = epochs
    return start <= epoch and (stop is None or epoch < stop)
