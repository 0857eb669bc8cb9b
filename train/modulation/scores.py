"""Uni-modal scores: how well each modality alone supports the right class of each sample (Eq. 6, Sec. 4.3.7).

Everything here is computed without gradient, in the precision of the head's parameters (float32 also under autocast),
and leaves the head as it was.
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
    """The prediction of each modality alone.

    A head with the method `split_logits` (concatenation, summation) is split exactly. From any other one it is read by
    zero-out (Sec. 4.3.7): the features of all other modalities are set to 0. For that the head is put into evaluation
    mode for a moment, so that no batch-norm statistic changes and no dropout blurs the reading.

    Args:
        head: Takes {m: (B, D_m)}, gives (B, K).
        features: {m: (B, D_m)}, undropped, of any floating type.
        gamma: Shares γ^m of the head's bias that the terms get (Table 14), in the order of the head's modalities, only
            for heads that split: of the one bias of concatenation (None: 1/M each), of each branch's own bias in
            summation (None: 1; the release's form: ½). They need not add up to anything.

    Returns:
        {m: (B, K)}, float32, detached, in the order of `features`.

    Raises:
        OptionError: `gamma` with a head that does not split, of another length than M, or not finite.
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
            raise OptionError(f"gamma splits the bias of a linear head; {type(head).__name__} is read by zero-out")
        return {m: value.float() for m, value in zero_out(head, exact).items()}


def zero_out(head: nn.Module, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """{m: head(φ^m, the others 0)} in evaluation mode, without gradient; every module's mode is put back."""
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
    """s_i^m = softmax(logits^m_i)[y_i].

    Args:
        logits: {m: (B, K)}.
        labels: Class ids, (B,), int64, on the logits' device.

    Returns:
        {m: (B,)}, float32 in [0, 1], detached.
    """
    return {m: _probability_of(value.detach().float(), labels) for m, value in logits.items()}


def _probability_of(logits: Tensor, labels: Tensor) -> Tensor:
    return logits.softmax(dim=1).gather(1, labels[:, None]).squeeze(1)
