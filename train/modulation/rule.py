"""What a rule is: up to four stages, and what it may know at a step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

#: Epochs in which a rule acts, counted from 0: the first one, and the first one no more (None: to the end).
Epochs = tuple[int, int | None]


@dataclass
class Step:
    """What a rule knows at a step, and where it notes what it did. Each rule gets one of its own.

    Attributes:
        modalities: Their names, in the order of every (M,) tensor.
        seed: Of the run.
        epoch: Counted from 0.
        index: Number of the step, counted from 0 over all epochs; the micro-batches of a step share it.
        ratio: ρ^m, (M,), float64, on the device. Before the backward stage: the last step's (in `forward` this one's
            for rules with `same_step`). From the backward stage on: this step's.
        neutral: The value of ρ at which nothing is to be done.
        ids: Ids of the (micro-)batch's samples on this rank, (B,), int64; None from the backward stage on.
        weights: 0 for samples that only pad the (micro-)batch and count for nothing, else 1, (B,); None: all count,
            or not known yet (`inputs`).
        q: Noted before the backward stage: probability of a drop, (M,), float64.
        dropped: Noted there too: which samples lost modality m here, (M, B), bool.
        k: Noted by the backward stage: factor of the gradient or of the update, (M,), float64.
    """

    modalities: tuple[str, ...]
    seed: int
    epoch: int
    index: int
    ratio: Tensor
    neutral: float
    ids: Tensor | None = None
    weights: Tensor | None = None
    q: Tensor | None = None
    dropped: Tensor | None = None
    k: Tensor | None = None


class Rule:
    """The interface of a modulation: override the stages in which it acts.

    All stages run at every step on every rank, in the order in which they stand here, and give the same on all ranks
    (random numbers: `bmlpipe.train.modulation.keyed`); nothing in them waits for the device. A rule notes in `step`
    what it did. Under gradient accumulation `inputs` and `forward` run once a micro-batch, the others once a step.
    """

    #: Whether `forward` is driven by this step's ratio instead of the last one's.
    same_step: bool = False
    #: Whether `inputs` does anything; the loop must call `Modulation.inputs` then.
    acts_on_inputs: bool = False
    #: Whether `update` does anything; the loop must call `Modulation.update` then.
    acts_on_update: bool = False

    def bind(self, model: nn.Module) -> None:
        """See the model once, before training; for rules that act on more than inputs, features and encoders."""

    def inputs(self, inputs: dict[str, Tensor], step: Step) -> dict[str, Tensor]:
        """Change the inputs {m: (B, …)} that the encoders get.

        Samples noted in `step.dropped` are left out of that modality's score, which is to be of what it really saw.
        """
        return inputs

    def forward(self, features: dict[str, Tensor], step: Step) -> dict[str, Tensor]:
        """Change the features {m: (B, D_m)} that the head gets; scores are already taken."""
        return features

    def backward(self, encoders: Mapping[str, nn.Module], step: Step) -> None:
        """Change the gradients of the encoders in place (a new `.grad` would break DDP's bucket views)."""

    def update(self, encoders: Mapping[str, nn.Module], step: Step) -> Callable[[], None] | None:
        """Called before the optimiser's step, with the backward stage's `step`; what it returns is called after."""
        return None

    def state_dict(self) -> dict[str, Any]:
        """What the rule's next step depends on: plain values and tensors. Empty for a rule without memory."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where a `state_dict` was taken.

        Raises:
            ValueError: The state is not of such a rule.
        """
        if state:
            raise ValueError(f"{type(self).__name__} keeps no state, but the saved one has {', '.join(sorted(state))}")


def check_epochs(epochs: Epochs) -> None:
    """Refuse what is no window, begins before epoch 0 or never acts.

    Raises:
        ValueError: With the window.
    """
    if not isinstance(epochs, tuple) or len(epochs) != 2:
        raise ValueError(f"epochs must be a pair (first, end), not {epochs!r}")
    start, stop = epochs
    if start < 0 or (stop is not None and stop <= start):
        raise ValueError(f"epochs must be (first, end) with 0 ≤ first < end, not {epochs}")


def within(epochs: Epochs, epoch: int) -> bool:
    """Whether an epoch lies in the window."""
    start, stop = epochs
    return start <= epoch and (stop is None or epoch < stop)
