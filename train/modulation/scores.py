"""Uni-modal scores: how well each modality alone supports the right class of each sample (Eq. 6, Sec. 4.3.7).

Everything here is computed without gradient, in the precision of the head's parameters even under autocast, and leaves
the head unchanged.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from bmlpipe.manifests.common.errors import OptionError


def unimodal_logits(
    head: nn.Module, features: Mapping[str, Tensor], gamma: Sequence[float] | None = None
) -> dict[str, Tensor]:
    """Compute the prediction of each modality alone (Eq. 6, Sec. 4.3.7).

    If the head has a method `split_logits` (concatenation, summation), its logits are split exactly. Any other head is
    read by zero-out: the features of all other modalities are set to 0. The head is put into evaluation mode for this,
    so that no batch-norm statistic changes and no dropout disturbs the prediction.

    Args:
        head: A module {m: (B, D_m)} → (B, K).
        features: {m: (B, D_m)}, before any drop, of any floating-point type.
        gamma: Share γ^m of the bias in each modality's logits (Table 14), in the order of the head's modalities; only
            for heads that split. It applies to the one bias of concatenation (None: 1/M each), and to each branch's own
            bias in summation (None: 1; the release uses ½). The shares need not add up to 1.

    Returns:
        {m: (B, K)}, float32, detached, in the order of `features`.

    Raises:
        OptionError: `gamma` is given for a head that does not split, does not have M entries, or is not finite.
    """
    if gamma is not None and not all(math.isfinite(share) for share in gamma):
        raise OptionError(f"gamma must be finite numbers, not {list(gamma)}")
    some = next(iter(features.values()))
    with torch.no_grad(), torch.autocast(some.device.type, enabled=False):
        dtype = next((parameter.dtype for parameter in head.parameters()), torch.float32)
        exact = {m: feature.detach().to(dtype) for m, feature in features.items()}
        split = getattr(head, "split_logits", None)
        if split is not None:
            logits: dict[str, Tensor] = split(exact, gamma)
            return {m: logits[m].float() for m in features}
        if gamma is not None:
            raise OptionError(
                f"gamma shares the bias of a linear head, but {type(head).__name__} is read by zero-out: leave it out"
            )
        return {m: value.float() for m, value in zero_out(head, exact).items()}


def zero_out(head: nn.Module, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Predict from each modality with the features of all others set to 0 (Sec. 4.3.7).

    Computed in evaluation mode without gradient; afterwards every module is in its previous mode.

    Args:
        head: A module {m: (B, D_m)} → (B, K).
        features: {m: (B, D_m)}.

    Returns:
        {m: (B, K)}.
    """
    zeros = {m: torch.zeros_like(feature) for m, feature in features.items()}
    training = [module for module in head.modules() if module.training]
    head.eval()
    try:
        with torch.no_grad():
            return {m: head({**zeros, m: feature}) for m, feature in features.items()}
    finally:
        for module in training:
            module.training = True


def unimodal_scores(logits: Mapping[str, Tensor], labels: Tensor) -> dict[str, Tensor]:
    """Compute the uni-modal scores s_i^m = softmax(logits^m_i)[y_i] (Eq. 6).

    Args:
        logits: {m: (B, K)}.
        labels: Class ids y_i, (B,), int64, on the device of the logits.

    Returns:
        {m: (B,)}, float32 in [0, 1], detached.
    """
    return {m: _probability_of(value.detach().float(), labels) for m, value in logits.items()}


def _probability_of(logits: Tensor, labels: Tensor) -> Tensor:
    return logits.softmax(dim=1).gather(1, labels[:, None]).squeeze(1)
