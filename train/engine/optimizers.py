"""Optimisers of a run and the learning rate of an epoch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import torch
from torch import nn
from torch.optim import Optimizer

Name = Literal["sgd", "adamw"]


def make_optimizer(
    name: Name, parameters: Iterable[nn.Parameter], *, lr: float, momentum: float, weight_decay: float, fused: bool
) -> Optimizer:
    """An optimiser over all parameters.

    Args:
        name: `sgd` (the paper's, with momentum) or `adamw` (the T-PAMI release's).
        parameters: Of the model.
        lr: Learning rate of the first epoch.
        momentum: Of SGD; AdamW keeps its own two averages.
        weight_decay: Of SGD an L2 term in the gradient, of AdamW decoupled from it.
        fused: One kernel for all parameters. Under loss scaling it also skips a step of infinite gradients on the
            device, where the other implementations ask the host.
    """
    if name == "sgd":
        return torch.optim.SGD(parameters, lr, momentum=momentum, weight_decay=weight_decay, fused=fused)
    return torch.optim.AdamW(parameters, lr, weight_decay=weight_decay, fused=fused)


def set_lr(optimizer: Optimizer, *, lr: float, epoch: int, every: int, gamma: float) -> float:
    """Set the learning rate of an epoch, lr · gamma^⌊epoch / every⌋ (`every` 0: constant); returns it."""
    now = lr * gamma ** (epoch // every) if every else lr
    for group in optimizer.param_groups:
        group["lr"] = now
    return now
