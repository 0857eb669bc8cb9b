"""The interface of a rule: its four stages, and the context of a step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from bmlpipe.manifests.common.errors import OptionError


@dataclass
class StepContext:
    """A rule's knowledge about a step, and its record of what it did. Each rule has its own.

    Attributes:
        modalities: Names of the M modalities, in the order of every (M,) tensor.
        seed: Seed of the run.
        epoch: Current epoch, counted from 0.
        index: Number of the step, counted from 0 over all epochs; the micro-batches of a step share it.
        rho: ρ^m, (M,), float64, on the device. Before the backward stage it is that of the last step (in `forward`
            that of this step for rules with `same_step`); from the backward stage on it is that of this step.
        neutral: The value of ρ at which a rule does nothing: 1 for the ratio form, 0 for the difference form.
        ids: Ids of the samples of this rank's (micro-)batch, (B,), int64; None from the backward stage on.
        weights: 0 for samples that only pad the (micro-)batch, else 1, (B,). None: no sample is padding, or the
            weights are not known yet (`inputs`).
        q: Recorded by the rule before the backward stage: drop probability of each modality, (M,), float64.
        dropped: Recorded by the rule before the backward stage: whether sample i lost modality m, (M, B), bool.
        k: Recorded by the rule in the backward stage: factor of each encoder's gradient or update, (M,), float64.
    """

    modalities: tuple[str, ...]
    seed: int
    epoch: int
    index: int
    rho: Tensor
    neutral: float
    ids: Tensor | None = None
    weights: Tensor | None = None
    q: Tensor | None = None
    dropped: Tensor | None = None
    k: Tensor | None = None


class Rule:
    """Base class of all rules. Override the stages in which a rule acts; the defaults do nothing.

    The stages run at every step on every rank, in the order in which they are listed here. They must give the same
    result on all ranks (draw random numbers from `bmlpipe.train.modulation.keyed`) and should not wait for the device.
    A rule records in `step` what it did. Under gradient accumulation `inputs` and `forward` run once per micro-batch,
    `backward` and `update` once per step.
    """

    #: Whether `forward` reads the ρ of this step instead of the last one.
    same_step: bool = False
    #: Whether `inputs` does anything. The training loop must then call `Modulation.inputs`.
    acts_on_inputs: bool = False
    #: Whether `update` does anything. The training loop must then call `Modulation.update`.
    acts_on_update: bool = False

    def bind(self, model: nn.Module) -> None:
        """Receive the model once, before training. For rules that need more than inputs, features and encoders."""

    def inputs(self, inputs: dict[str, Tensor], step: StepContext) -> dict[str, Tensor]:
        """Change the inputs of the encoders, {m: (B, …)} → the same shapes.

        The samples recorded in `step.dropped` do not count towards the score of that modality.
        """
        return inputs

    def forward(self, features: dict[str, Tensor], step: StepContext) -> dict[str, Tensor]:
        """Change the features that the head receives, {m: (B, D_m)} → the same shapes. Scores are already measured."""
        return features

    def backward(self, encoders: Mapping[str, nn.Module], step: StepContext) -> None:
        """Change the gradients of the encoders in place; a new `.grad` would break the bucket views of DDP."""

    def update(self, encoders: Mapping[str, nn.Module], step: StepContext) -> Callable[[], None] | None:
        """Prepare for the optimiser's step.

        Args:
            encoders: Modality → encoder.
            step: The context of the backward stage.

        Returns:
            A function to call after the optimiser's step, or None.
        """
        return None

    def state_dict(self) -> dict[str, Any]:
        """Return the state that the next step depends on: plain values and tensors. Empty for a rule without state."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a state from `state_dict`.

        Raises:
            OptionError: The state belongs to another rule.
        """
        if state:
            raise OptionError(f"{type(self).__name__} keeps no state, but the saved one has {', '.join(sorted(state))}")
