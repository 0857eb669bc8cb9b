"""`Modulation`, the object that a training loop calls: it measures ρ over all ranks and applies rules."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from bmlpipe.manifests.common.errors import OptionError
from bmlpipe.train.modulation.checks import check_choice
from bmlpipe.train.modulation.discrepancy import NEUTRAL, Form
from bmlpipe.train.modulation.measurement import DiscrepancyMeter, StepTotals, count_samples, union
from bmlpipe.train.modulation.rule import Rule, StepContext

_T = TypeVar("_T")


class Modulation:
    """Measurement of ρ at every step, and rules that act on it in the order in which they are given.

    The calls of one step are: `inputs` and `forward` for each micro-batch (a single one without gradient
    accumulation), the backward passes of the loss, `backward` once, and `update` around the optimiser's step. `inputs`
    and `update` may be left out if no rule acts there. `reduce`, called between the last `forward` and the last
    backward pass, starts the step's only collective early, so that it overlaps with the backward pass of the loss.

    The global batch is the batch of all ranks and all micro-batches. Every rank makes the same calls in the same
    order. All (M,) tensors follow the order of `modalities`. Apart from gloo's collective, nothing waits for the
    device.

    Args:
        modalities: Names of the modalities; two or more if there are rules.
        rules: Rules to apply. None: ρ is only measured.
        seed: Seed of the run, the same on all ranks; drops and noise are functions of it.
        form: Form of ρ (`bmlpipe.train.modulation.discrepancy.Form`).
        group: Process group of the data-parallel ranks. None: the default group, if there is one.

    Attributes:
        epoch: Set it at the beginning of each epoch, counted from 0: drops and the epochs of the rules depend on it.
        index: Number of finished steps.
        columns: Names of the entries of `row`.
        row: Measurements and actions of the last step, (len(columns),), float64, on the device: `score/m` mean score,
            `rho/m` (absent for one modality), `q/m` the drop probabilities of this step, `k/m` the gradient factors,
            `dropped/m` the number of samples of the global batch that lost m, `grad_norm/m` the norm of the encoder's
            gradient before modulation. With several rules `q` is the probability that one of them drops, `k` their
            product, and `dropped` counts what any of them dropped.
        extra: Argument of `reduce`, summed over the ranks, (E,), float64.

    Raises:
        OptionError: No modality, a modality given twice, rules for a single modality, or an unknown form.
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
            raise OptionError(f"modalities must be one or more different names, not {list(modalities)}")
        if rules and len(modalities) == 1:
            raise OptionError(
                f"{type(rules[0]).__name__} balances two or more modalities, but there is only {modalities[0]!r}; "
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
        quantities = ["score", *(["rho"] if len(modalities) > 1 else []), "q", "k", "dropped", "grad_norm"]
        self.columns = tuple(f"{quantity}/{m}" for quantity in quantities for m in modalities)
        self.row = torch.full((len(self.columns),), torch.nan, dtype=torch.float64)
        self.extra = torch.empty(0, dtype=torch.float64)
        self._same_step = any(rule.same_step for rule in rules)
        self._on_inputs = any(rule.acts_on_inputs for rule in rules)
        self._on_update = any(rule.acts_on_update for rule in rules)
        self._meter = DiscrepancyMeter(self.modalities, form, self._on_inputs)
        self._totals: StepTotals | None = None  # sums of the step in progress, from its first forward() on
        self._await_forward: list[StepContext] | None = None  # one per rule, between inputs() and forward()
        self._await_update: list[StepContext] | None = None  # one per rule, between backward() and update()

    def bind(self, model: nn.Module) -> None:
        """Pass the model, not its wrapper, to the rules. Call it once before training; few rules need it."""
        for rule in self.rules:
            rule.bind(model)

    def inputs(self, inputs: Mapping[str, Tensor], ids: Tensor) -> dict[str, Tensor]:
        """Let the rules change the inputs of a (micro-)batch, before the encoders.

        Args:
            inputs: {m: (B, …)}, normalised as the encoders read them, so that 0 carries no information.
            ids: Ids of the samples as in `forward`, which must follow.

        Returns:
            {m: (B, …)} for the encoders; unchanged if no rule acts on inputs.

        Raises:
            OptionError: The inputs are of other modalities.
            RuntimeError: The last step still waits for `update`.
        """
        self._check(inputs, "inputs")
        changed = dict(inputs)
        if self._on_inputs:
            self._meter.to(changed[self.modalities[0]].device)
            self._await_forward = [self._context(ids) for _ in self.rules]
            for rule, step in zip(self.rules, self._await_forward, strict=True):
                changed = rule.inputs(changed, step)
        return changed

    def forward(
        self,
        features: Mapping[str, Tensor],
        scores: Mapping[str, Tensor],
        ids: Tensor,
        weights: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Measure a (micro-)batch of this rank, then let the rules change its features.

        Args:
            features: {m: (B, D_m)}, the outputs of the encoders.
            scores: {m: (B,)}, s_i^m of these features (`bmlpipe.train.modulation.scores.scores`).
            ids: Ids of the samples, (B,), int64, on any device. A sample has the same id in every epoch.
            weights: (B,), on the device of the scores: 0 for samples that only pad the batch, which count neither
                towards S^m nor towards the numbers of samples and drops, else 1. None: no sample is padding.

        Returns:
            {m: (B, D_m)} for the head.

        Raises:
            OptionError: The features or the scores are of other modalities.
            RuntimeError: A micro-batch after `reduce`, or a second micro-batch under a rule with `same_step`; or a
                rule needs `inputs` or `update`, and that call was left out.
        """
        self._check(features, "features")
        self._check(scores, "scores")
        if self._on_inputs and self._await_forward is None:
            raise RuntimeError("a rule acts on the inputs: call inputs() before the encoders, in each micro-batch")
        steps, self._await_forward = self._await_forward or [self._context(ids) for _ in self.rules], None
        totals = self._add_scores(scores, weights, union(step.dropped for step in steps) if self._on_inputs else None)
        last_rho = self._meter.rho
        if self._same_step:
            totals.reduce_scores(self.group)
            self._meter.measure(totals.sums)
        changed = dict(features)
        for rule, step in zip(self.rules, steps, strict=True):
            step.rho, step.weights = self._meter.rho if rule.same_step else last_rho, weights
            changed = rule.forward(changed, step)
        probabilities = [step.q for step in steps if step.q is not None]
        if len(probabilities) == 1:
            totals.q = probabilities[0]
        elif probabilities:
            totals.q = 1 - torch.stack([1 - q for q in probabilities]).prod(dim=0)
        dropped = union(step.dropped for step in steps)
        if dropped is not None:
            totals.dropped = totals.dropped + count_samples(dropped, weights)
        return changed

    def reduce(self, extra: Tensor | None = None) -> None:
        """Start the step's collective early. `backward` waits for it, and starts it if this was not called.

        Args:
            extra: Numbers of the training loop to sum over the ranks in the same collective, such as a loss or a
                request to stop, (E,), on the device of the scores.

        Raises:
            RuntimeError: It is called before `forward`, or twice in a step.
        """
        if self._totals is None:
            raise RuntimeError("reduce() must be called after forward()")
        self._totals.reduce(extra, self.group)

    @torch.no_grad()
    def backward(self, encoders: Mapping[str, nn.Module]) -> None:
        """Form ρ and modulate the gradients in place. Afterwards `row` and `extra` describe this step.

        Call it after the last `loss.backward()`, on unscaled gradients, before they are clipped.

        Args:
            encoders: Modality → encoder (a `ModuleDict` is accepted).

        Raises:
            RuntimeError: It is called before `forward`.
        """
        totals = self._totals
        if totals is None:
            raise RuntimeError("backward() must be called once per step, after forward()")
        self.extra = totals.wait(self.group)
        if not self._same_step:
            self._meter.measure(totals.sums)
        norms = torch.stack([_gradient_norm(encoders[m]).to(totals.q) for m in self.modalities])
        steps = [self._context(None) for _ in self.rules]
        for rule, step in zip(self.rules, steps, strict=True):
            rule.backward(encoders, step)
        factors = [step.k for step in steps if step.k is not None]
        k = torch.stack(factors).prod(dim=0) if factors else torch.ones_like(norms)
        rho = [self._meter.rho] if len(self.modalities) > 1 else []
        self.row = torch.cat([self._meter.means, *rho, totals.q, k, totals.dropped, norms])
        self.index += 1
        self._totals = self._await_forward = None
        self._await_update = steps if self._on_update else None

    @torch.no_grad()
    def update(self, step: Callable[[], _T], encoders: Mapping[str, nn.Module]) -> _T:
        """Make the optimiser's step and let the rules change its effect on the encoders.

        If no rule acts on the update, this only calls `step`, so a training loop may always use it.

        Args:
            step: `optimizer.step`, or for example `lambda: scaler.step(optimizer)`. To skip a step, pass a function
                that does nothing.
            encoders: As in `backward`.

        Returns:
            The result of `step`.

        Raises:
            RuntimeError: A rule acts on the update, and `backward` was not called before.
        """
        if not self._on_update:
            return step()
        if self._await_update is None:
            raise RuntimeError("update() must be called once per step, after backward()")
        pairs = zip(self.rules, self._await_update, strict=True)
        afterwards = [after for after in (rule.update(encoders, done) for rule, done in pairs) if after is not None]
        result = step()
        for after in reversed(afterwards):
            after()
        self._await_update = None
        return result

    def telemetry(self) -> dict[str, Tensor]:
        """Return `columns` and `row` of the last step as a mapping to tensors without dimensions, on the device."""
        return dict(zip(self.columns, self.row.unbind(), strict=True))

    def state_dict(self) -> dict[str, Any]:
        """Return the state that the next step depends on: plain values and tensors (those of this class on the CPU).

        Call it between steps.
        """
        return {
            "modalities": list(self.modalities),
            "form": self.form,
            "index": self.index,
            "ratio": self._meter.rho.cpu(),
            "means": self._meter.means.cpu(),
            "rules": [type(rule).__name__ for rule in self.rules],
            "memories": [rule.state_dict() for rule in self.rules],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a state from `state_dict`; a step in progress is discarded.

        Raises:
            OptionError: The state belongs to other modalities, another form, other rules or another version.
        """
        mine = self.state_dict()
        if state.keys() != mine.keys():
            raise OptionError(f"the state has the keys {sorted(state)}, not {sorted(mine)}: it is of another version")
        for what in ("modalities", "form", "rules"):
            if state[what] != mine[what]:
                raise OptionError(f"the state was saved with {what} {state[what]}, but here they are {mine[what]}")
        for rule, memory in zip(self.rules, state["memories"], strict=True):
            rule.load_state_dict(memory)
        self.index = int(state["index"])
        self._meter.rho = state["ratio"].to(dtype=torch.float64, copy=True)
        self._meter.means = state["means"].to(dtype=torch.float64, copy=True)
        self._totals = self._await_forward = self._await_update = None

    @torch.no_grad()
    def _add_scores(self, scores: Mapping[str, Tensor], weights: Tensor | None, dropped: Tensor | None) -> StepTotals:
        """Add the scores of a micro-batch to those of the step; `dropped` marks inputs that rules dropped, (M, B)."""
        if self._totals is not None and self._totals.closed:
            raise RuntimeError(
                "forward() was called after the scores of the step were reduced: call backward() once after the last "
                "micro-batch; gradient accumulation does not work with same_step"
            )
        self._meter.to(scores[self.modalities[0]].device)
        sums = self._meter.sums(scores, weights, dropped)
        self._totals = self._totals or StepTotals(sums, len(self.modalities))
        self._totals.sums = self._totals.sums + sums
        return self._totals

    def _context(self, ids: Tensor | None) -> StepContext:
        key = (self.modalities, self.seed, self.epoch, self.index)
        return StepContext(*key, self._meter.rho, NEUTRAL[self.form], ids)

    def _check(self, given: Mapping[str, Tensor], what: str) -> None:
        if given.keys() != set(self.modalities):
            raise OptionError(f"{what} are of {sorted(given)}, but the modulation is of {sorted(self.modalities)}")
        if self._await_update is not None:
            raise RuntimeError(
                "a rule acts on the update: call update(optimizer.step, encoders) instead of optimizer.step()"
            )


def _gradient_norm(encoder: nn.Module) -> Tensor:
    """Compute the Euclidean norm of all gradients of a module, without dimensions; 0 if there is none."""
    gradients = [parameter.grad for parameter in encoder.parameters() if parameter.grad is not None]
    if not gradients:
        return torch.zeros(())
    norm: Tensor = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
    return norm
