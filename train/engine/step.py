"""One optimiser step on one rank.

Scores of all micro-batches → one collective → backward passes → unscale → modulate → clip → update, in this order. No
operation waits for the device.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from bmlpipe.train.data.normalise import Normaliser
from bmlpipe.train.distributed.group import ProcessInfo
from bmlpipe.train.models.multimodal import MultimodalModel
from bmlpipe.train.modulation import Modulation
from bmlpipe.train.modulation.scores import unimodal_logits
from bmlpipe.train.tasks.registry import Task

Precision = Literal["fp32", "bf16", "fp16"]

_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}

#: (output of the model in training, labels (B,)) → loss of each sample, (B,), float32.
Loss = Callable[[Tensor, Tensor], Tensor]


def loss_of(head: nn.Module, task: Task) -> Loss:
    """Return the loss to minimise: the method `objective` of the head, which GBlending's has, or the task's loss."""
    loss: Loss = getattr(head, "objective", task.loss)
    return loss


@dataclass(frozen=True)
class StepOptions:
    """Options of a step.

    Attributes:
        precision: Precision of the forward and backward passes; `fp16` scales the loss, and adapts the scale.
        gamma: Share of the head's bias that each modality's score gets; None: the head's default.
        max_grad_norm: Largest Euclidean norm of the gradient of all parameters, after modulation; 0: no clipping.
        compiled: Compile the model with torch.compile. Measuring and dropping stay outside the compiled graph.
    """

    precision: Precision = "fp32"
    gamma: Sequence[float] | None = None
    max_grad_norm: float = 0.0
    compiled: bool = False


class TrainStep:
    """The optimiser step: micro-batches in, one row of numbers out.

    Args:
        model: Encoders and head, on the device; compiled in place if `options` say so.
        normaliser: Normalises raw batches, on the device.
        modulation: Measures the discrepancy and modulates.
        optimizer: Optimiser of the model's parameters.
        task: Defines the loss of a sample and the score of a modality.
        process: This process.
        options: Precision, clipping and compilation; None: the defaults.
    """

    def __init__(
        self,
        model: MultimodalModel,
        normaliser: Normaliser,
        modulation: Modulation,
        optimizer: Optimizer,
        task: Task,
        process: ProcessInfo,
        options: StepOptions | None = None,
    ) -> None:
        self._options = options or StepOptions()
        self.scaler = torch.amp.GradScaler(process.device.type, enabled=self._options.precision == "fp16")
        self._model, self._normaliser, self._modulation = model, normaliser, modulation
        self._optimizer, self._task, self._device = optimizer, task, process.device
        self._world_size = process.world_size
        self._loss = loss_of(model.head, task)
        self._autocast = _AUTOCAST.get(self._options.precision)
        if self._options.compiled:
            model.compile()
        self._wrapped: nn.Module = model
        if process.world_size > 1:
            on_cuda = process.device.type == "cuda"
            self._wrapped = DistributedDataParallel(model, device_ids=[process.device] if on_cuda else None)

    def __call__(
        self, batches: Sequence[Mapping[str, Any]], *, samples: int, sum_over_ranks: Sequence[float] = ()
    ) -> Tensor:
        """Take one step.

        Args:
            batches: Micro-batches of this rank, one or more.
            samples: Number of samples of the global batch, padding excluded.
            sum_over_ranks: Further numbers of this rank, summed over the ranks in the step's collective.

        Returns:
            Float64, on the device: the modulation's row, the mean loss of the global batch, and the sums.
        """
        self._optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), device=self._device)
        for batch in batches[:-1]:
            with self._without_reduction():
                loss = self._forward(batch, samples)
                total += loss.detach()
                self._backward(loss)
        loss = self._forward(batches[-1], samples)
        total += loss.detach()
        self._modulation.reduce(torch.stack([total, *total.new_tensor(sum_over_ranks)]))
        self._backward(loss)
        self._update()
        return torch.cat([self._modulation.row, self._modulation.extra])

    def _without_reduction(self) -> Any:
        """Accumulate gradients locally: only the last micro-batch averages them over the ranks."""
        return self._wrapped.no_sync() if isinstance(self._wrapped, DistributedDataParallel) else nullcontext()

    def _forward(self, batch: Mapping[str, Any], samples: int) -> Tensor:
        """Compute the share of one micro-batch in the mean loss of the global batch."""
        raw = {m: batch[m].to(self._device, non_blocking=True) for m in self._modulation.modalities}
        labels, ids, weights = (
            batch[name].to(self._device, non_blocking=True) for name in ("label", "number", "weight")
        )

        def measure_and_drop(features: dict[str, Tensor]) -> dict[str, Tensor]:
            branches = unimodal_logits(self._model.head, features, self._options.gamma)
            return self._modulation.forward(features, self._task.scores(branches, labels), ids, weights)

        hook = measure_and_drop
        if self._options.compiled:
            hook = torch.compiler.disable(measure_and_drop)  # type: ignore[no-untyped-call]
        with torch.autocast(self._device.type, self._autocast, enabled=self._autocast is not None):
            inputs = self._modulation.inputs(self._normaliser(raw), ids)
            losses = self._loss(self._wrapped(inputs, feature_hook=hook), labels)
        share: Tensor = (losses * weights).sum() / samples
        return share

    def _backward(self, loss: Tensor) -> None:
        # DistributedDataParallel averages the gradients over the ranks; they are summed here.
        self.scaler.scale(loss * self._world_size).backward()  # type: ignore[no-untyped-call]

    def _update(self) -> None:
        if self.scaler.is_enabled():
            self.scaler.unscale_(self._optimizer)
        encoders: Any = self._model.encoders
        self._modulation.backward(encoders)
        if self._options.max_grad_norm:
            nn.utils.clip_grad_norm_(self._model.parameters(), self._options.max_grad_norm)
        self._modulation.update(lambda: self.scaler.step(self._optimizer), encoders)
        self.scaler.update()
