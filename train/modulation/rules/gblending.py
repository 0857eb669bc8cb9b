"""Gradient-Blending, offline: a classifier per modality beside the joint one, and a weighted sum of their losses.

Wang, Tran, Feiszli, "What makes training multi-modal classification networks hard?", CVPR 2020. The weights come from
finished runs of each modality alone and of all modalities together (`bmlpipe.train.engine.gblending_references`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from bmlpipe.manifests.common.errors import OptionError
from bmlpipe.train.modulation.checks import check_choice
from bmlpipe.train.modulation.names import JOINT
from bmlpipe.train.modulation.rule import Rule

#: Epoch of the reference runs that is compared with their start.
Until = Literal["last", "lowest"]

# Lower bound of a gap between validation and training loss, as a share of the largest gap.
_LEAST_GAP = 0.1


@dataclass(frozen=True, kw_only=True)
class GBlending(Rule):
    """A rule that gives the run a `BlendedHead`. It changes no feature and no gradient itself.

    Attributes:
        blend_until: Measure the reference runs up to their `last` epoch (paper), or up to the epoch of the `lowest`
            validation loss, for runs so long that the loss rose above its start.
    """

    blend_until: Until = "last"

    def __post_init__(self) -> None:
        check_choice("blend_until", self.blend_until, Until)


@dataclass(frozen=True)
class Losses:
    """Mean cross-entropies of a reference run.

    Attributes:
        start: Of the untrained model, taken to be the same for training and validation samples.
        train: On the training samples at the end.
        val: On the validation samples at the end.
    """

    start: float
    train: float
    val: float

    @property
    def generalisation(self) -> float:
        """G: by how much the validation loss fell."""
        return self.start - self.val

    @property
    def overfitting(self) -> float:
        """O: by how much the gap between validation and training loss grew from 0 at the start."""
        return self.val - self.train


def blend_weights(losses: Mapping[str, Losses]) -> dict[str, float]:
    """Compute the weights of the losses, w_k = (1/Z) · G_k / O_k², with Z such that they sum to 1.

    A run that did not generalise, G_k ≤ 0, has weight 0. |O_k| counts as at least a tenth of the largest one: a smaller
    gap is within the error of the losses, and would take all the weight. If every O is 0, the weights are proportional
    to G.

    Args:
        losses: `JOINT` and each modality → the losses of its reference run.

    Raises:
        OptionError: No run generalised, or a loss is not finite.
    """
    gains = {name: max(0.0, one.generalisation) for name, one in losses.items()}
    least = _LEAST_GAP * max(abs(one.overfitting) for one in losses.values())
    gaps = {name: max(abs(one.overfitting), least) if least else 1.0 for name, one in losses.items()}
    raw = {name: gains[name] / gaps[name] ** 2 for name in losses}
    total = sum(raw.values())
    if not 0 < total < float("inf"):
        shown = ", ".join(f"{name}: from {one.start:.4g} to {one.val:.4g}" for name, one in losses.items())
        raise OptionError(
            f"no reference run lowered its validation loss ({shown}), so there is nothing to weight. "
            "Train them for fewer epochs or at a lower learning rate, or use blend_until=lowest"
        )
    return {name: value / total for name, value in raw.items()}


class BlendedHead(nn.Module):
    """A fusion head and, beside it, one linear classifier per modality.

    The scores of the modalities are read from the fusion head, as without blending. Evaluation uses only the head.

    Args:
        head: {m: (B, D_m)} → (B, K).
        dims: Modality → length D_m of its feature.
        classes: K.
        weights: Weights of the losses of `JOINT` and of each modality. None: they are loaded with a state dict, and
            are NaN until then.

    Raises:
        OptionError: The weights do not belong to `JOINT` and these modalities.
    """

    weights: Tensor

    def __init__(
        self, head: nn.Module, dims: Mapping[str, int], classes: int, weights: Mapping[str, float] | None = None
    ) -> None:
        super().__init__()
        names = (JOINT, *dims)
        if weights is not None and set(weights) != set(names):
            raise OptionError(f"the weights are of {', '.join(weights)}, but the losses of {', '.join(names)}")
        self.modalities = tuple(dims)
        self.joint = head
        self.branches = nn.ModuleDict({m: nn.Linear(dim, classes) for m, dim in dims.items()})
        values = [torch.nan] * len(names) if weights is None else [weights[name] for name in names]
        self.register_buffer("weights", torch.tensor(values))

    def forward(self, features: Mapping[str, Tensor]) -> Tensor:
        """Compute logits: {m: (B, D_m)} → (B, 1 + M, K) in training, the joint ones first; (B, K) in evaluation."""
        joint: Tensor = self.joint(features)
        if not self.training:
            return joint
        return torch.stack([joint, *(self.branches[m](features[m]) for m in self.modalities)], dim=1)

    def objective(self, output: Tensor, labels: Tensor) -> Tensor:
        """Compute w_joint · L(joint) + Σ_m w_m · L(branch m): (B, 1 + M, K) and labels (B,) → (B,), float32."""
        each = labels[:, None].expand(-1, output.shape[1])
        losses = functional.cross_entropy(output.float().transpose(1, 2), each, reduction="none")
        return losses @ self.weights.to(losses)

    @property
    def split_logits(self) -> Any:
        """The method of the fusion head. If the head has none, this attribute does not exist either."""
        return self.joint.split_logits
