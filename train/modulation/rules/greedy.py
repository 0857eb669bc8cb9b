"""Greedy: balanced multi-modal learning by conditional learning speeds, for models with MMTM layers.

Wu, Jastrzębski, Cho, Geras, "Characterizing and overcoming the greedy nature of learning in multi-modal deep neural
networks", ICML 2022.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bmlpipe.manifests.common.errors import OptionError
from bmlpipe.train.modulation.checks import check_count, check_range
from bmlpipe.train.modulation.host_copy import LAG, HostCopy
from bmlpipe.train.modulation.rule import Rule, StepContext


@dataclass(kw_only=True, eq=False)
class Greedy(Rule):
    """Greedy training: only the slowest encoder is trained for some steps, whenever learning speeds differ too much.

    The conditional learning speed of modality m compares how fast its branch learns from the other modalities with how
    fast it learns from its own:

        s^m = log10( Σ_t |g(θ'^m)|²/|θ'^m|² / Σ_t |g(θ^m)|²/|θ^m|² )

    θ^m are the parameters of its encoder, θ'^m those of MMTM that act on the branch (its own and the shared ones), and
    t runs over all regular steps so far. A high s^m means that the branch relies on the other modalities. If
    max s − min s exceeds the tolerance (|s^1 − s^2| for two modalities), re-balancing steps follow: MMTM gives the
    branch m of the highest s only the running averages of the other modalities (`MMTM.solo(m)`), and only encoder m of
    the whole model is updated. After them comes a regular step, and the next decision.

    A decision uses the numbers that have arrived on the host: those of two steps before, or of the last regular steps
    before that. So nothing waits for the device. Gradients and parameters are the same on all ranks, and so are the
    decisions.

    `bind` must be called once before training. A step whose gradients are not finite adds nothing to the sums. Outside
    the forward passes of training MMTM is unchanged, so evaluation is not affected.

    Attributes:
        greedy_tolerance: Largest difference of the speeds (log10) that is tolerated, ≥ 0 (release: 0.01).
        greedy_window: Number of consecutive re-balancing steps, 1 or more (release: 5).
        greedy_warmup: Number of epochs before the first re-balancing step, 0 or more (release: 1).

    Raises:
        OptionError: An option is outside its range.
    """

    greedy_tolerance: float = 0.01
    greedy_window: int = 5
    greedy_warmup: int = 1

    #: MMTM works inside the encoders, so it is set before they run.
    acts_on_inputs = True

    def __post_init__(self) -> None:
        check_range("greedy_tolerance", self.greedy_tolerance, 0)
        check_count("greedy_window", self.greedy_window, 1)
        check_count("greedy_warmup", self.greedy_warmup, 0)
        self._model: nn.Module | None = None
        self._gates: list[Any] = []
        # Σ_t |g|²/|θ|² of the encoders, then of MMTM's parameters that act on them, (2, M)
        self._effort: Tensor | None = None
        self._arriving: deque[tuple[int, HostCopy]] = deque()  # step, speeds
        self._speeds: list[float] | None = None  # the last that arrived on the host, (M,)
        self._alone: str | None = None
        self._left = 0

    def bind(self, model: nn.Module) -> None:
        """Receive the model, the one that DistributedDataParallel wraps and not the wrapper.

        Raises:
            OptionError: The model has no MMTM layer.
        """
        self._gates = [module for module in model.modules() if callable(getattr(module, "solo", None))]
        if not self._gates:
            raise OptionError(
                f"greedy compares the encoders with the MMTM layers between them, but {type(model).__name__} has none: "
                "train it with --intermediate mmtm"
            )
        self._model = model

    def inputs(self, inputs: dict[str, Tensor], step: StepContext) -> dict[str, Tensor]:
        """Set MMTM up for a regular or a re-balancing step.

        Raises:
            RuntimeError: `bind` was not called.
        """
        if self._model is None:
            raise RuntimeError("greedy does not know the model: call bind(model) once before training")
        self._solo(self._alone)
        return inputs

    def forward(self, features: dict[str, Tensor], step: StepContext) -> dict[str, Tensor]:
        """Reset MMTM, which the encoders have passed."""
        self._solo(None)
        return features

    def backward(self, encoders: Mapping[str, nn.Module], step: StepContext) -> None:
        """Measure a regular step, keep one encoder's gradients in a re-balancing step, and decide on the next step."""
        alone = self._alone
        if alone is None:
            self._measure(encoders, step)
        else:
            assert self._model is not None
            self._left -= 1
            _keep_gradients(self._model, encoders[alone])
            step.k = torch.zeros_like(step.rho)
            step.k[step.modalities.index(alone)] = 1
        while self._arriving and self._arriving[0][0] <= step.index - LAG:
            self._speeds = self._arriving.popleft()[1].read()
        if alone is not None:
            self._alone = alone if self._left else None
        elif step.epoch >= self.greedy_warmup and self._speeds is not None:
            highest = max(self._speeds)
            if highest - min(self._speeds) > self.greedy_tolerance:
                self._left = self.greedy_window
                self._alone = step.modalities[self._speeds.index(highest)]

    def state_dict(self) -> dict[str, Any]:
        """Return the sums, the speeds and the re-balancing in progress. Waits for the device."""
        return {
            "effort": None if self._effort is None else self._effort.cpu(),
            "arriving": [(index, speeds.read()) for index, speeds in self._arriving],
            "speeds": self._speeds,
            "alone": self._alone,
            "left": self._left,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a state from `state_dict`.

        Raises:
            OptionError: The state belongs to another rule.
        """
        if missing := sorted(self.state_dict().keys() - state.keys()):
            raise OptionError(f"the state does not belong to greedy: {', '.join(missing)} is missing")
        self._effort = state["effort"]
        self._arriving = deque(
            (index, HostCopy(torch.tensor(speeds, dtype=torch.float64))) for index, speeds in state["arriving"]
        )
        self._speeds, self._alone, self._left = state["speeds"], state["alone"], int(state["left"])

    def _solo(self, alone: str | None) -> None:
        for gate in self._gates:
            gate.solo(alone)

    def _measure(self, encoders: Mapping[str, nn.Module], step: StepContext) -> None:
        """Add the gradients of this step to the sums, and start to copy the speeds to the host."""
        own = [encoders[m].parameters() for m in step.modalities]
        crossing = [self._crossing(m, step.modalities) for m in step.modalities]
        effort = torch.stack([_effort(part, step.rho.device) for part in [*own, *crossing]]).view(2, -1)
        effort = torch.where(effort.isfinite().all(), effort, 0.0)
        self._effort = effort if self._effort is None else self._effort.to(effort.device) + effort
        self._arriving.append((step.index, HostCopy(torch.log10(self._effort[1] / self._effort[0]))))

    def _crossing(self, modality: str, modalities: tuple[str, ...]) -> list[nn.Parameter]:
        """Return the parameters of MMTM that act on a modality: those under its name, and those that all share."""
        others = set(modalities) - {modality}
        return [
            parameter
            for gate in self._gates
            for name, parameter in gate.named_parameters()
            if others.isdisjoint(name.split("."))
        ]


def _effort(parameters: Iterable[nn.Parameter], device: torch.device) -> Tensor:
    """Compute |g|²/|θ|² of the parameters that have a gradient, float64, without dimensions; NaN if none has one."""
    trained = [parameter for parameter in parameters if parameter.grad is not None]
    if not trained:
        return torch.full((), torch.nan, dtype=torch.float64, device=device)
    gradients = [parameter.grad for parameter in trained]
    return (_norm(gradients) / _norm(trained)).square().to(device)


def _norm(tensors: Any) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(tensors)), dtype=torch.float64)
    return norm


def _keep_gradients(model: nn.Module, encoder: nn.Module) -> None:
    """Remove the gradients of all other parameters, so that no optimiser moves them, not even by momentum."""
    kept = {id(parameter) for parameter in encoder.parameters()}
    for parameter in model.parameters():
        if id(parameter) not in kept:
            parameter.grad = None
