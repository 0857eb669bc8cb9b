"""One optimiser step on one rank: micro-batches forward and backward, one collective, modulated gradients.

The order is METHOD's: scores of all micro-batches → one reduction → backward passes → unscale → modulate → clip →
update. Nothing here waits for the device.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from bmlpipe.train.data.normalise import Normaliser
from bmlpipe.train.distributed.process_group import ProcessInfo
from bmlpipe.train.models.multimodal import MultimodalModel
from bmlpipe.train.modulation import Modulation
from bmlpipe.train.modulation.scores import scores, unimodal_logits

Precision = Literal["fp32", "bf16", "fp16"]

#: (output of the model in training, labels (B,)) → the loss of each sample, (B,), float32.
Objective = Callable[[Tensor, Tensor], Tensor]

_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """The plain objective: cross-entropy of each sample, (B, K) and (B,) → (B,), in float32."""
    return functional.cross_entropy(logits.float(), labels, reduction="none")


class TrainStep:
    """What happens between a batch and the next one.

    Args:
        model: Encoders and head.
        wrapped: The same under DistributedDataParallel, or itself.
        inputs: Normalises raw batches.
        balance: Measures and modulates.
        optimizer: Of the model's parameters.
        place: This rank.
        objective: Loss of each sample.
        precision: Of forward and backward; `fp16` with a loss scale that adapts itself.
        gamma: Share of the head's bias that each modality's score gets; None: the head's default.
        clip: Largest Euclidean norm of all gradients together, after modulation; 0: not clipped.
        compiled: The model is compiled: what is measured and dropped inside its forward pass then stays out of that.
    """

    def __init__(
        self,
        model: MultimodalModel,
        wrapped: nn.Module,
        inputs: Normaliser,
        balance: Modulation,
        optimizer: Optimizer,
        process: ProcessInfo,
        *,
        objective: Objective = cross_entropy,
        precision: Precision = "fp32",
        gamma: Sequence[float] | None = None,
        clip: float = 0.0,
        compiled: bool = False,
    ) -> None:
        self.scaler = torch.amp.GradScaler(process.device.type, enabled=precision == "fp16")
        self._model, self._wrapped, self._inputs, self._balance = model, wrapped, inputs, balance
        self._optimizer, self._place, self._objective = optimizer, place, objective
        self._autocast, self._gamma, self._clip = _AUTOCAST.get(precision), gamma, clip
        self._compiled = compiled

    def __call__(self, batches: Sequence[Mapping[str, Any]], *, real: int, also: Sequence[float] = ()) -> Tensor:
        """Take one step.

        Args:
            batches: This rank's micro-batches of the step, one or more.
            real: Samples of the global batch that are not padding.
            also: Numbers of this rank to sum over the ranks in the step's collective.

        Returns:
            On the device, float64: the modulation's row, the loss (mean over the global batch), the sums of `also`.
        """
        self._optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), device=self._place.device)
        for batch in batches[:-1]:
            with self._without_reduction():
                loss = self._loss(batch, real)
                total += loss.detach()
                self._backward(loss)
        loss = self._loss(batches[-1], real)
        total += loss.detach()
        self._balance.reduce(torch.stack([total, *total.new_tensor(also)]))
        self._backward(loss)
        self._update()
        return torch.cat([self._balance.row, self._balance.extra])

    def _without_reduction(self) -> Any:
        """Micro-batches before the last one only add to the gradients; the ranks average them once, at the end."""
        return self._wrapped.no_sync() if isinstance(self._wrapped, DistributedDataParallel) else nullcontext()

    def _loss(self, batch: Mapping[str, Any], real: int) -> Tensor:
        """This micro-batch's part of the global batch's mean loss."""
        device = self._place.device
        raw = {m: batch[m].to(device, non_blocking=True) for m in self._balance.modalities}
        labels, ids, weights = (batch[name].to(device, non_blocking=True) for name in ("label", "number", "weight"))

        def between(features: dict[str, Tensor]) -> dict[str, Tensor]:
            alone = scores(unimodal_logits(self._model.head, features, self._gamma), labels)
            return self._balance.forward(features, alone, ids, weights)

        hook = torch.compiler.disable(between) if self._compiled else between  # type: ignore[no-untyped-call]
        with torch.autocast(device.type, self._autocast, enabled=self._autocast is not None):
            output = self._wrapped(self._balance.inputs(self._inputs(raw), ids), between=hook)
            losses = self._objective(output, labels)
        part: Tensor = (losses * weights).sum() / real
        return part

    def _backward(self, loss: Tensor) -> None:
        # DistributedDataParallel divides the sum of the ranks' gradients by their number.
        self.scaler.scale(loss * self._place.world).backward()  # type: ignore[no-untyped-call]

    def _update(self) -> None:
        if self.scaler.is_enabled():
            self.scaler.unscale_(self._optimizer)
        encoders: Any = self._model.encoders
        self._balance.backward(encoders)
        if self._clip:
            nn.utils.clip_grad_norm_(self._model.parameters(), self._clip)
        self._balance.update(lambda: self.scaler.step(self._optimizer), encoders)
        self.scaler.update()
