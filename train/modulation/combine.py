"""One object for a training loop: it measures the discrepancy over all ranks and lets rules act on it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from bmlpipe.train.modulation.ratio import NEUTRAL, Form, check_choice, discrepancy
from bmlpipe.train.modulation.rule import Rule, Step


@dataclass
class _Batch:
    """The step in progress: what its micro-batches gave, of this rank until it is reduced."""

    sums: Tensor  # S^1 … S^M and the number of samples, (M + 1,)
    dropped: Tensor  # (M,)
    q: Tensor  # (M,)
    reduced: Tensor | None = None  # what the collective is working on
    work: dist.Work | None = None


class Modulation:
    """Measures ρ at every step and applies rules, in their order.

    A step is: `forward` for each micro-batch (one, without gradient accumulation), the backward passes of the loss,
    `backward` once, the optimiser's step. `reduce` may be called between the last `forward` and `backward`: it starts
    the step's only collective, so that it runs beside the loss's backward pass.

    The global batch is that of all ranks and micro-batches. Every rank calls the same methods in the same order. All
    (M,) tensors follow `modalities`; nothing here waits for the device, gloo's collective aside.

    Args:
        modalities: Names; two or more where there are rules.
        rules: What acts. None: ρ is only measured.
        seed: Of the run; keys the drops and the noise, equal on all ranks.
        form: Of ρ.
        group: Process group of the data-parallel ranks; None: the default one, or none at all.

    Attributes:
        epoch: Set it at the beginning of each epoch, counted from 0: it keys the drops and the rules' windows.
        index: Steps done.
        columns: Names of the entries of `row`.
        row: What the last step did, (len(columns),), float64, on the device: `score/m` S^m over the number of samples,
            `rho/m` (absent for one modality), `q/m` used for this step's drops, `k/m`, `dropped/m` samples of the
            global batch, `grad_norm/m` of the encoder's gradient before it was modulated.
        extra: What `reduce` was given, summed over the ranks, float64.

    Raises:
        ValueError: No modality, one twice, rules for a single one, or an unknown form.
    """

    def __init__(
        self,
        modalities: tuple[str, ...],
        *rules: Rule,
        seed: int = 0,
        form: Form = "ratio",
        group: dist.ProcessGroup | None = None,
    ) -> None:
        if not modalities or len(set(modalities)) < len(modalities):
            raise ValueError(f"modalities must be one or more different names, not {list(modalities)}")
        if rules and len(modalities) == 1:
            raise ValueError(
                f"{type(rules[0]).__name__} balances two or more modalities, there is only {modalities[0]!r}; "
                "train one modality without modulation"
            )
        check_choice("form", form, Form)
        self.modalities = tuple(modalities)
        self.rules = rules
        self.seed = seed
        self.form = form
        self.group = group
        self.epoch = 0
        self.index = 0
        rho = ["rho"] if len(modalities) > 1 else []
        kinds = ["score", *rho, "q", "k", "dropped", "grad_norm"]
        self.columns = tuple(f"{kind}/{m}" for kind in kinds for m in modalities)
        self.row = torch.full((len(self.columns),), torch.nan, dtype=torch.float64)
        self.extra = torch.empty(0, dtype=torch.float64)
        self._ratio = torch.full((len(modalities),), NEUTRAL[form], dtype=torch.float64)
        self._same_step = any(rule.same_step for rule in rules)
        self._batch: _Batch | None = None

    def forward(self, features: Mapping[str, Tensor], scores: Mapping[str, Tensor], ids: Tensor) -> dict[str, Tensor]:
        """Measure a (micro-)batch of this rank, then let the rules change its features.

        Args:
            features: {m: (B, D_m)}, as the encoders gave them.
            scores: {m: (B,)}, s_i^m of these features (`bmlpipe.train.scores`).
            ids: Ids of the samples, (B,), int64, on any device: the same sample has the same id in every epoch.

        Returns:
            {m: (B, D_m)} for the head.

        Raises:
            ValueError: Features or scores of other modalities than these.
            RuntimeError: A micro-batch after `reduce`, or a second one under a rule with `same_step`.
        """
        self._check(features, "features")
        self._check(scores, "scores")
        batch = self._observe(scores)
        if self._same_step:
            if _distributed():
                dist.all_reduce(batch.sums, group=self.group)
            self._ratio = discrepancy(batch.sums[:-1], self.form)
        step = self._step(ids)
        changed = dict(features)
        for rule in self.rules:
            changed = rule.forward(changed, step)
        if step.q is not None:
            batch.q = step.q
        if step.dropped is not None:
            batch.dropped = batch.dropped + step.dropped
        return changed

    def reduce(self, extra: Tensor | None = None) -> None:
        """Start the step's collective; `backward` waits for it, and starts it where this was not called.

        Args:
            extra: Numbers of the loop's own to sum over the ranks in the same collective, such as a loss or a request
                to stop: (E,), on the device of the scores.

        Raises:
            RuntimeError: Before `forward`, or twice in a step.
        """
        batch = self._batch
        if batch is None or batch.reduced is not None:
            raise RuntimeError("reduce() and backward() come once a step, after forward()")
        own = [batch.dropped] if self._same_step else [batch.sums, batch.dropped]
        batch.reduced = torch.cat(own if extra is None else [*own, extra.detach().to(batch.sums)])
        if _distributed():
            batch.work = dist.all_reduce(batch.reduced, group=self.group, async_op=True)

    @torch.no_grad()
    def backward(self, encoders: Mapping[str, nn.Module]) -> None:
        """Form ρ and modulate the gradients, in place; then `row` and `extra` tell of this step.

        Call it when the last `loss.backward()` has returned and gradients are unscaled, before they are clipped.

        Args:
            encoders: Modality → encoder (a `ModuleDict` will do).

        Raises:
            RuntimeError: Before `forward`.
        """
        if self._batch is None or self._batch.reduced is None:
            self.reduce()
        batch = self._batch
        assert batch is not None
        assert batch.reduced is not None
        if batch.work is not None:
            batch.work.wait()
        size = len(self.modalities)
        whole = torch.cat([batch.sums, batch.reduced]) if self._same_step else batch.reduced
        sums, count, dropped = whole[:size], whole[size], whole[size + 1 : 2 * size + 1]
        self.extra = whole[2 * size + 1 :]
        if not self._same_step:
            self._ratio = discrepancy(sums, self.form)
        norms = torch.stack([_norm(encoders[m]).to(sums) for m in self.modalities])
        step = self._step(None)
        for rule in self.rules:
            rule.backward(encoders, step)
        k = torch.ones_like(sums) if step.k is None else step.k
        ratio = [self._ratio] if size > 1 else []
        self.row = torch.cat([sums / count, *ratio, batch.q, k, dropped, norms])
        self.index += 1
        self._batch = None

    def telemetry(self) -> dict[str, Tensor]:
        """The last step's `columns` and `row` as a mapping to tensors without dimensions, on the device."""
        return dict(zip(self.columns, self.row.unbind(), strict=True))

    def state_dict(self) -> dict[str, Any]:
        """What the next step depends on: plain numbers, names and a tensor on the CPU. Take it between steps."""
        return {"modalities": list(self.modalities), "index": self.index, "ratio": self._ratio.cpu()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where a `state_dict` was taken; a step in progress is forgotten.

        Raises:
            ValueError: The state is of other modalities.
        """
        if tuple(state["modalities"]) != self.modalities:
            raise ValueError(f"the state is of modalities {state['modalities']}, not {list(self.modalities)}")
        self.index = int(state["index"])
        self._ratio = state["ratio"].to(dtype=torch.float64, copy=True)
        self._batch = None

    @torch.no_grad()
    def _observe(self, scores: Mapping[str, Tensor]) -> _Batch:
        """Add a micro-batch's scores to the step's."""
        if self._batch is not None and (self._same_step or self._batch.reduced is not None):
            raise RuntimeError(
                "forward() after the step's scores were reduced: call backward() once after the last micro-batch; "
                "gradient accumulation does not go with same_step"
            )
        stacked = torch.stack([scores[m] for m in self.modalities])
        count = stacked.new_full((1,), stacked.shape[1], dtype=torch.float64)
        sums = torch.cat([stacked.sum(dim=1, dtype=torch.float64), count])
        self._ratio = self._ratio.to(sums.device, non_blocking=True)
        if self._batch is None:
            self._batch = _Batch(sums, torch.zeros_like(self._ratio), torch.zeros_like(self._ratio))
        else:
            self._batch.sums = self._batch.sums + sums
        return self._batch

    def _step(self, ids: Tensor | None) -> Step:
        neutral = NEUTRAL[self.form]
        return Step(self.modalities, self.seed, self.epoch, self.index, self._ratio, neutral, ids)

    def _check(self, given: Mapping[str, Tensor], what: str) -> None:
        if given.keys() != set(self.modalities):
            raise ValueError(f"{what} of {sorted(given)}, but the modulation is of {sorted(self.modalities)}")


def _distributed() -> bool:
    return dist.is_available() and dist.is_initialized()


def _norm(encoder: nn.Module) -> Tensor:
    """Euclidean norm of all gradients of a module; 0 where there is none."""
    gradients = [parameter.grad for parameter in encoder.parameters() if parameter.grad is not None]
    if not gradients:
        return torch.zeros(())
    norm: Tensor = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
    return norm
