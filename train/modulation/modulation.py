"""One object for a training loop: it measures the discrepancy over all ranks and lets rules act on it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from bmlpipe.manifests.common.errors import OptionError
from bmlpipe.train.modulation.discrepancy import NEUTRAL, Form, check_choice
from bmlpipe.train.modulation.measurement import Meter, count, union
from bmlpipe.train.modulation.rule import Rule, Step
from bmlpipe.train.modulation.totals import Totals

_T = TypeVar("_T")


class Modulation:
    """Measures ρ at every step and applies rules, in their order.

    A step is: `inputs` and `forward` for each micro-batch (one, without gradient accumulation), the backward passes
    of the loss, `backward` once, `update` around the optimiser's step. `inputs` and `update` may be left out where no
    rule acts there. `reduce`, between the last `forward` and `backward`, starts the step's only collective early, so
    that it runs beside the loss's backward pass.

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
        row: What the last step did, (len(columns),), float64, on the device: `score/m` the mean score, `rho/m` (absent
            for one modality), `q/m` used for this step's drops, `k/m`, `dropped/m` samples of the global batch,
            `grad_norm/m` of the encoder's gradient before it was modulated. Of several rules `q` is the chance that
            one of them drops, `k` the product, `dropped` what any of them dropped.
        extra: What `reduce` was given, summed over the ranks, float64.

    Raises:
        OptionError: No modality, one twice, rules for a single one, or an unknown form.
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
        kinds = ["score", *(["rho"] if len(modalities) > 1 else []), "q", "k", "dropped", "grad_norm"]
        self.columns = tuple(f"{kind}/{m}" for kind in kinds for m in modalities)
        self.row = torch.full((len(self.columns),), torch.nan, dtype=torch.float64)
        self.extra = torch.empty(0, dtype=torch.float64)
        self._same_step = any(rule.same_step for rule in rules)
        self._on_inputs = any(rule.acts_on_inputs for rule in rules)
        self._on_update = any(rule.acts_on_update for rule in rules)
        self._meter = Meter(self.modalities, form, self._on_inputs)
        self._totals: Totals | None = None
        self._begun: list[Step] | None = None  # each rule's, of a micro-batch whose inputs it has seen
        self._done: list[Step] | None = None  # each rule's, of a step that waits for `update`

    def bind(self, model: nn.Module) -> None:
        """Show the rules the model (not its wrapper) once before training; most can do without."""
        for rule in self.rules:
            rule.bind(model)

    def inputs(self, inputs: Mapping[str, Tensor], ids: Tensor) -> dict[str, Tensor]:
        """Let the rules change a (micro-)batch's inputs, before the encoders.

        Args:
            inputs: {m: (B, …)}, as the encoders take them: normalised, so that 0 means nothing.
            ids: As in `forward`, which must follow.

        Returns:
            {m: (B, …)} for the encoders; what was given where no rule acts on inputs.

        Raises:
            OptionError: Inputs of other modalities than these.
            RuntimeError: The last step was not finished.
        """
        self._check(inputs, "inputs")
        changed = dict(inputs)
        if self._on_inputs:
            self._meter.to(changed[self.modalities[0]].device)
            self._begun = [self._step(ids) for _ in self.rules]
            for rule, step in zip(self.rules, self._begun, strict=True):
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
            features: {m: (B, D_m)}, as the encoders gave them.
            scores: {m: (B,)}, s_i^m of these features (`bmlpipe.train.modulation.scores`).
            ids: Ids of the samples, (B,), int64, on any device: the same sample has the same id in every epoch.
            weights: (B,), on the device of the scores: 0 for samples that only pad the batch, else 1. The former add
                nothing to S^m, nor to the numbers of samples and drops. None: all are real.

        Returns:
            {m: (B, D_m)} for the head.

        Raises:
            OptionError: Features or scores of other modalities than these.
            RuntimeError: A micro-batch after `reduce`, or a second one under a rule with `same_step`; `inputs` or
                `update` was left out, which a rule needs.
        """
        self._check(features, "features")
        self._check(scores, "scores")
        if self._on_inputs and self._begun is None:
            raise RuntimeError("a rule acts on the inputs: call inputs() before the encoders, in each micro-batch")
        steps, self._begun = self._begun or [self._step(ids) for _ in self.rules], None
        totals = self._observe(scores, weights, union(step.dropped for step in steps) if self._on_inputs else None)
        last = self._meter.ratio
        if self._same_step:
            totals.reduce_sums(self.group)
            self._meter.take(totals.sums)
        changed = dict(features)
        for rule, step in zip(self.rules, steps, strict=True):
            step.ratio, step.weights = self._meter.ratio if rule.same_step else last, weights
            changed = rule.forward(changed, step)
        chances = [step.q for step in steps if step.q is not None]
        if chances:
            totals.q = chances[0] if len(chances) == 1 else 1 - torch.stack([1 - q for q in chances]).prod(dim=0)
        dropped = union(step.dropped for step in steps)
        if dropped is not None:
            totals.dropped = totals.dropped + count(dropped, weights)
        return changed

    def reduce(self, extra: Tensor | None = None) -> None:
        """Start the step's collective; `backward` waits for it, and starts it where this was not called.

        Args:
            extra: Numbers of the loop's own to sum over the ranks in the same collective, such as a loss or a request
                to stop: (E,), on the device of the scores.

        Raises:
            RuntimeError: Before `forward`, or twice in a step.
        """
        if self._totals is None:
            raise RuntimeError("reduce() comes after forward()")
        self._totals.reduce(extra, self.group)

    @torch.no_grad()
    def backward(self, encoders: Mapping[str, nn.Module]) -> None:
        """Form ρ and modulate the gradients, in place; then `row` and `extra` tell of this step.

        Call it when the last `loss.backward()` has returned and gradients are unscaled, before they are clipped.

        Args:
            encoders: Modality → encoder (a `ModuleDict` will do).

        Raises:
            RuntimeError: Before `forward`.
        """
        totals = self._totals
        if totals is None:
            raise RuntimeError("backward() comes once a step, after forward()")
        self.extra = totals.wait(self.group)
        if not self._same_step:
            self._meter.take(totals.sums)
        norms = torch.stack([_norm(encoders[m]).to(totals.q) for m in self.modalities])
        steps = [self._step(None) for _ in self.rules]
        for rule, step in zip(self.rules, steps, strict=True):
            rule.backward(encoders, step)
        factors = [step.k for step in steps if step.k is not None]
        k = torch.stack(factors).prod(dim=0) if factors else torch.ones_like(norms)
        ratio = [self._meter.ratio] if len(self.modalities) > 1 else []
        self.row = torch.cat([self._meter.means, *ratio, totals.q, k, totals.dropped, norms])
        self.index += 1
        self._totals = None
        self._done = steps if self._on_update else None

    @torch.no_grad()
    def update(self, step: Callable[[], _T], encoders: Mapping[str, nn.Module]) -> _T:
        """Make the optimiser's step and let the rules change what it did to the encoders.

        Where no rule acts on the update, this only calls `step`, so a loop may always use it.

        Args:
            step: `optimizer.step`, or for example `lambda: scaler.step(optimizer)`. Skip a step by giving what does
                nothing.
            encoders: As in `backward`.

        Returns:
            What `step` returned.

        Raises:
            RuntimeError: A rule acts on the update, and `backward` was not called before.
        """
        if not self._on_update:
            return step()
        if self._done is None:
            raise RuntimeError("update() comes once a step, after backward()")
        pairs = zip(self.rules, self._done, strict=True)
        afterwards = [after for after in (rule.update(encoders, done) for rule, done in pairs) if after is not None]
        result = step()
        for after in reversed(afterwards):
            after()
        self._done = None
        return result

    def telemetry(self) -> dict[str, Tensor]:
        """The last step's `columns` and `row` as a mapping to tensors without dimensions, on the device."""
        return dict(zip(self.columns, self.row.unbind(), strict=True))

    def state_dict(self) -> dict[str, Any]:
        """What the next step depends on: plain values and tensors (ours on the CPU). Take it between steps."""
        return {
            "modalities": list(self.modalities),
            "form": self.form,
            "index": self.index,
            "ratio": self._meter.ratio.cpu(),
            "means": self._meter.means.cpu(),
            "rules": [type(rule).__name__ for rule in self.rules],
            "memories": [rule.state_dict() for rule in self.rules],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where a `state_dict` was taken; a step in progress is forgotten.

        Raises:
            OptionError: The state is of other modalities, another form or other rules, or of another version.
        """
        mine = self.state_dict()
        if state.keys() != mine.keys():
            raise OptionError(f"the state has {sorted(state)}, not {sorted(mine)}: it is another version's")
        for what in ("modalities", "form", "rules"):
            if state[what] != mine[what]:
                raise OptionError(f"the state is of {what} {state[what]}, not {mine[what]}")
        for rule, own in zip(self.rules, state["memories"], strict=True):
            rule.load_state_dict(own)
        self.index = int(state["index"])
        self._meter.ratio = state["ratio"].to(dtype=torch.float64, copy=True)
        self._meter.means = state["means"].to(dtype=torch.float64, copy=True)
        self._totals = self._begun = self._done = None

    @torch.no_grad()
    def _observe(self, scores: Mapping[str, Tensor], weights: Tensor | None, lost: Tensor | None) -> Totals:
        """Add a micro-batch's scores to the step's; `lost` are the inputs that rules dropped, (M, B)."""
        if self._totals is not None and self._totals.closed:
            raise RuntimeError(
                "forward() after the step's scores were reduced: call backward() once after the last micro-batch; "
                "gradient accumulation does not go with same_step"
            )
        self._meter.to(scores[self.modalities[0]].device)
        sums = self._meter.sums(scores, weights, lost)
        self._totals = self._totals or Totals(sums, len(self.modalities))
        self._totals.sums = self._totals.sums + sums
        return self._totals

    def _step(self, ids: Tensor | None) -> Step:
        about = (self.modalities, self.seed, self.epoch, self.index)
        return Step(*about, self._meter.ratio, NEUTRAL[self.form], ids)

    def _check(self, given: Mapping[str, Tensor], what: str) -> None:
        if given.keys() != set(self.modalities):
            raise OptionError(f"{what} of {sorted(given)}, but the modulation is of {sorted(self.modalities)}")
        if self._done is not None:
            raise RuntimeError("a rule acts on the update: call update(optimizer.step, encoders), not optimizer.step()")


def _norm(encoder: nn.Module) -> Tensor:
    """Euclidean norm of all gradients of a module; 0 where there is none."""
    gradients = [parameter.grad for parameter in encoder.parameters() if parameter.grad is not None]
    if not gradients:
        return torch.zeros(())
    norm: Tensor = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
    return norm
